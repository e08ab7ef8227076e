"""Write a trained model in each form, load the file as its users will, and compare it with the trained model."""

from __future__ import annotations

import gc
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from selfalign.data.prompt_text import BOS, Control
from selfalign.errors import UserError
from selfalign.export import chat_template, compare, gguf_model, modelfile
from selfalign.export import merged as merged_model
from selfalign.export.merged import CHAT_TEMPLATE
from selfalign.export.trained_model import TrainedModel
from selfalign.generation import parity
from selfalign.generation.engines.base import RowError, Sampling, Step
from selfalign.generation.engines.llama_cpp import LlamaCpp
from selfalign.model import gguf_adapter
from selfalign.training import lora

_TORCH = "torch (float32)"
_ENGINE = "llama.cpp"
Predictions = tuple[list[int], list[float]]
"""The most likely token at each position, and its log-probability."""


@dataclass(slots=True)
class Checks:
    """The results of loading an export back."""

    details: dict[str, Any] = field(default_factory=dict)
    """For export.json."""
    faults: list[str] = field(default_factory=list)
    """Differences from the trained model that exceed a limit."""

    def add(self, trained: TrainedModel, comparison: compare.Comparison) -> Checks:
        """Print and record a comparison."""
        trained.context.screen.say(f"  {comparison.text()}", "" if comparison.holds else "yellow")
        self.details["comparison"] = {**asdict(comparison), "holds": comparison.holds, "text": comparison.text()}
        self.faults += comparison.faults
        return self


def write_adapter(trained: TrainedModel, folder: Path, weight_type: str = "") -> Checks:
    """Write the PEFT adapter."""
    model = trained.context.model
    reading, spans = _load_trained(trained)[1:]
    gc.collect()
    for name in ("adapter_model.safetensors", "adapter_config.json", "base.json"):
        if (trained.adapter / name).is_file():
            shutil.copyfile(trained.adapter / name, folder / name)
    settings = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    settings["base_model_name_or_path"] = model.name
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")
    checks = Checks()
    _write_chat_template(trained, folder, checks)
    loaded = lora.add_adapter(lora.load_base(model.folder()), folder)
    return checks.add(trained, compare.exact(reading, parity.torch_reads(loaded, spans), _TORCH))


def write_merged(trained: TrainedModel, folder: Path, weight_type: str) -> Checks:
    """Write the merged model in safetensors."""
    model, checks = trained.context.model, Checks()
    adapted, reading, spans = _load_trained(trained)
    was_tied = merged_model.tied(adapted.get_base_model())
    merged_model.write(adapted, model, folder, weight_type, trained.chat_template())
    del adapted
    gc.collect()
    loaded = lora.load_base(folder)
    logprobs = parity.torch_reads(loaded, spans)
    if merged_model.tied(loaded) != was_tied:
        checks.faults.append("the output head is no longer tied to the embeddings")
    ends = loaded.generation_config.eos_token_id
    expected = [i for t in model.end_tokens() for i in model.tokenizer().ids(t, special=True)]
    if sorted([ends] if isinstance(ends, int) else ends or []) != sorted(expected):
        checks.faults.append(f"generation would end at the tokens {ends} instead of {expected}")
    del loaded
    gc.collect()
    if weight_type == "f32":
        comparison = compare.exact(reading, logprobs, _TORCH)
    else:
        base = lora.load_base(model.folder())
        for parameter in base.parameters():
            parameter.data = parameter.data.to(merged_model.DTYPES[weight_type]).float()
        largest = float((logprobs - reading.trained).abs().max())
        loaded_with = f"torch ({weight_type} weights, float32 arithmetic)"
        rounded_base = compare.most_likely(parity.torch_reads(base, spans))
        comparison = compare.rounded(reading, *compare.most_likely(logprobs), loaded_with, rounded_base, largest)
    _check_tokens(trained, lambda messages: merged_model.chat_ids(folder, messages), "transformers", checks)
    return checks.add(trained, comparison)


def write_gguf_adapter(trained: TrainedModel, folder: Path, weight_type: str = "") -> Checks:
    """Write the adapter as a GGUF that llama.cpp loads on top of the base's GGUF."""
    model, checks = trained.context.model, Checks()
    base = model.gguf
    reading, spans = _load_trained(trained)[1:]
    gc.collect()
    file = folder / "adapter.gguf"
    gguf_adapter.write(trained.adapter, model.folder(), file, model.notice)
    _write_chat_template(trained, folder, checks)
    engine = _start_engine(trained, base, spans, {"adapter": file})
    try:
        base_predictions = parity.engine_reads(engine, None, spans)
        predictions = parity.engine_reads(engine, "adapter", spans)
    finally:
        engine.close()
    return checks.add(trained, compare.rounded(reading, *predictions, f"{_ENGINE} on the base", base_predictions))


def write_gguf(trained: TrainedModel, folder: Path, weight_type: str) -> Checks:
    """Write the merged GGUF, and the Modelfile for Ollama."""
    model, checks = trained.context.model, Checks()
    base = model.gguf_path
    if base is None:
        script = gguf_model.find_converter(model.source, model.folder())  # fail before the computation
    adapted, reading, spans = _load_trained(trained)
    file = folder / f"model-{weight_type}.gguf"
    end = model.tokenizer().ids(model.template.end, special=True)
    if len(end) != 1:
        raise UserError(f"the end token {model.template.end!r} is not one token of the tokenizer")
    base_predictions = None
    if base is None:
        with tempfile.TemporaryDirectory(prefix="merged-", dir=folder) as part:
            merged_model.write(adapted, model, Path(part), "f32", trained.chat_template())
            gguf_model.convert(script, Path(part), file, weight_type, _model_name(trained))
    del adapted
    gc.collect()
    if base is not None:
        base_predictions = _rewrite_base(trained, base, file, end[0], spans)
    text = modelfile.text(file.name, model.template, trained.system_prompt, trained.assistant, model.notice)
    (folder / modelfile.NAME).write_text(text, "utf-8")
    engine = _start_engine(trained, file, spans, {})
    try:
        predictions = parity.engine_reads(engine, None, spans)
        _check_tokens(trained, engine.chat_ids, _ENGINE, checks)
        _check_end(trained, engine, checks)
    finally:
        engine.close()
    return checks.add(trained, compare.rounded(reading, *predictions, _ENGINE, base_predictions))


WRITERS: dict[str, Callable[[TrainedModel, Path, str], Checks]] = {
    "adapter": write_adapter,
    "merged": write_merged,
    "gguf-adapter": write_gguf_adapter,
    "gguf": write_gguf,
}
"""Form -> function (trained model, folder, type of the weights) that writes and checks such an export."""


def _model_name(trained: TrainedModel) -> str:
    return f"{trained.assistant} ({trained.name})"


def _rewrite_base(trained: TrainedModel, base: Path, file: Path, end: int, spans: list[parity.Span]) -> Predictions:
    """Write the base's GGUF with the adapter added. Return the predictions of the base rewritten without it."""
    model = trained.context.model
    metadata = gguf_model.Metadata(_model_name(trained), trained.chat_template(), end, model.notice)
    weight_type: Any = file.stem.removeprefix("model-")
    plain_base = file.with_name("base.gguf")
    for adapter, target in ((trained.adapter, file), (None, plain_base)):
        gguf_model.write(base, adapter, model.folder(), target, weight_type, metadata)
    engine = _start_engine(trained, plain_base, spans, {})
    try:
        return parity.engine_reads(engine, None, spans)
    finally:
        engine.close()
        plain_base.unlink()


def _load_trained(trained: TrainedModel) -> tuple[Any, compare.Reading, list[parity.Span]]:
    """Load the trained model in torch. Return it, the log-probabilities of it and its base, and their positions."""
    context, model = trained.context, trained.context.model
    rows = parity.texts(context.run.constitution, model.template, model.tokenizer(context.screen.say))
    spans = parity.spans(rows)
    adapted = lora.add_adapter(lora.load_base(model.folder()), trained.adapter)
    logprobs = parity.torch_reads(adapted, spans)
    with adapted.disable_adapter():
        base = parity.torch_reads(adapted, spans)
    return adapted, compare.Reading(logprobs, base), spans


def _start_engine(trained: TrainedModel, file: Path, spans: list[parity.Span], loras: dict[str, Path]) -> LlamaCpp:
    longest = max(max(len(row) for row, _ in spans), *(len(ids) for _, ids in trained.dialogue_tokens()))
    return LlamaCpp(file, loras, slots=1, context=longest + 64, threads=trained.context.recipe.engine.threads)


def _write_chat_template(trained: TrainedModel, folder: Path, checks: Checks) -> None:
    """Write the chat template next to an adapter, and check that it renders the training text."""
    source, model = trained.chat_template(), trained.context.model
    (folder / CHAT_TEMPLATE).write_text(source, "utf-8")
    tokenizer = model.tokenizer()
    bos = tokenizer.text(tokenizer.encode((BOS,)))
    dialogues = chat_template.dialogues(trained.context.run.constitution)
    same = all(
        chat_template.render(source, chat_template.messages((system, turns)), bos)
        == chat_template.text(model.template, system or trained.system_prompt, turns, trained.assistant, bos)
        for system, turns in dialogues
    )
    checks.details["chat_template"] = {"rendered_with": "jinja2", "dialogues": len(dialogues), "same": same}
    if not same:
        checks.faults.append("the chat template does not render the text that the model was trained on")


def _check_tokens(
    trained: TrainedModel, encode: Callable[[list[dict[str, str]]], list[int]], loaded_with: str, checks: Checks
) -> None:
    """Check that the chat template in the export gives the token ids of training."""
    dialogues = trained.dialogue_tokens()
    different = []
    for messages, expected in dialogues:
        try:
            ids: list[int] | str = encode(messages)
        except RowError as error:
            ids = str(error)
        if ids != expected:
            different.append(f"{ids[:12]}… instead of {expected[:12]}…")
    checks.details["chat_template"] = {
        "tokenized_with": loaded_with, "dialogues": len(dialogues), "same": not different
    }  # fmt: skip
    if different:
        checks.faults.append(
            f"{loaded_with} encodes {len(different)} of {len(dialogues)} dialogues differently ({different[0]})"
        )
    else:
        trained.context.screen.say(f"  {loaded_with} encodes {len(dialogues)} dialogues as in training")


def _check_end(trained: TrainedModel, engine: LlamaCpp, checks: Checks) -> None:
    """Check that generation stops at the end token, by making that token certain."""
    end = Control(trained.context.model.template.end)
    part = engine.generate((BOS, "word"), Step(Sampling(0.0, 1.0, 4, bias=((end, 1000.0),))), 0, None)
    checks.details["ends"] = part.finish == "end"
    if part.finish != "end":
        checks.faults.append(f"llama.cpp does not stop at the end token {end}")
