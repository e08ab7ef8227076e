"""The forms: each is written into a folder, loaded back and compared; returns what does not hold."""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfalign.data.prompt_text import BOS, Control
from selfalign.errors import UserError
from selfalign.export import chat_template, compare, converter, gguf_model, modelfile
from selfalign.export import merged as merged_model
from selfalign.export.job import Job
from selfalign.export.merged import CHAT_TEMPLATE
from selfalign.generation import parity
from selfalign.generation.engines.base import RowError, Sampling, Step
from selfalign.generation.engines.llama_cpp import LlamaCpp
from selfalign.model import gguf_adapter as adapters
from selfalign.training import lora

_TORCH = "torch (float32)"
_ENGINE = "llama.cpp"


def adapter(job: Job, folder: Path) -> list[str]:
    """The PEFT adapter."""
    model, reading, at = _trained(job)
    del model
    gc.collect()
    for name in ("adapter_model.safetensors", "adapter_config.json", "base.json"):
        if (job.adapter / name).is_file():
            shutil.copyfile(job.adapter / name, folder / name)
    settings = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    settings["base_model_name_or_path"] = job.context.model.name
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")
    faults = _template_beside(job, folder)
    loaded = lora.add_adapter(lora.load_base(job.context.model.folder()), folder)
    return faults + _note(job, compare.exact(reading, parity.torch_reads(loaded, at), _TORCH))


def merged(job: Job, folder: Path) -> list[str]:
    """The merged model in safetensors."""
    context = job.context
    model, reading, at = _trained(job)
    was_tied = merged_model.tied(model.get_base_model())
    merged_model.write(model, context.model, folder, job.kind, job.jinja())  # type: ignore[arg-type]
    del model
    gc.collect()
    loaded = lora.load_base(folder)
    reads = parity.torch_reads(loaded, at)
    faults = [] if merged_model.tied(loaded) == was_tied else ["the output head is no longer tied to the embeddings"]
    ends = loaded.generation_config.eos_token_id
    wanted = [i for t in context.model.end_tokens() for i in context.model.tokenizer().ids(t, special=True)]
    if sorted([ends] if isinstance(ends, int) else ends or []) != sorted(wanted):
        faults.append(f"generation would end at {ends} instead of {wanted}")
    del loaded
    gc.collect()
    if job.kind == "f32":
        found = compare.exact(reading, reads, _TORCH)
    else:
        largest = float((reads - reading.trained).abs().max())
        base = _rounded_base(job, at)
        loaded_with = f"torch ({job.kind} weights, float32 arithmetic)"
        found = compare.rounded(reading, *_likeliest(reads), loaded_with, base, largest)
    faults += _same_ids(job, lambda messages: merged_model.chat_ids(folder, messages), "transformers")
    return faults + _note(job, found)


def _rounded_base(job: Job, at: list[parity.Span]) -> tuple[list[int], list[float]]:
    """The most likely tokens of the base with its weights rounded to the export's type, and their log-probabilities."""
    base = lora.load_base(job.context.model.folder())
    for parameter in base.parameters():
        parameter.data = parameter.data.to(merged_model.DTYPES[job.kind]).float()
    return _likeliest(parity.torch_reads(base, at))


def _likeliest(reads: Any) -> tuple[list[int], list[float]]:
    values, tops = reads.max(-1)
    return tops.tolist(), values.tolist()


def gguf_adapter(job: Job, folder: Path) -> list[str]:
    """The adapter as llama.cpp loads it onto the base's GGUF."""
    model = job.context.model
    base = model.gguf
    trained, reading, at = _trained(job)
    del trained
    gc.collect()
    file = folder / "adapter.gguf"
    adapters.write(job.adapter, model.folder(), file, model.notice)
    faults = _template_beside(job, folder)
    engine = _engine(job, base, at, {"adapter": file})
    try:
        own = parity.engine_reads(engine, None, at)
        found = parity.engine_reads(engine, "adapter", at)
    finally:
        engine.close()
    return faults + _note(job, compare.rounded(reading, *found, f"{_ENGINE} on the base", own))


def gguf(job: Job, folder: Path) -> list[str]:
    """The merged GGUF, and Ollama's Modelfile beside it."""
    context, model = job.context, job.context.model
    if model.gguf_path is None:
        converter.find(model.source, model.folder())  # or it is said before anything is computed
    trained, reading, at = _trained(job)
    file = folder / f"model-{job.kind}.gguf"
    end = model.tokenizer().ids(model.template.end, special=True)
    if len(end) != 1:
        raise UserError(f"the end token {model.template.end!r} is not one token of the tokenizer")
    if model.gguf_path is None:
        converter.write(trained, job, folder, file)
    del trained
    gc.collect()
    own = None if model.gguf_path is None else _rewritten(job, model.gguf_path, file, end[0], at)
    source = modelfile.text(file.name, model.template, job.system, job.label, model.notice)
    (folder / modelfile.NAME).write_text(source, "utf-8")
    faults = [f"Modelfile: {problem}" for problem in modelfile.check_modelfile(folder / modelfile.NAME)]
    dialogues = chat_template.dialogues(context.run.constitution)
    if not faults and not modelfile.renders(folder / modelfile.NAME, model.template, job.system, job.label, dialogues):
        faults.append("Modelfile: its TEMPLATE does not say what the model was trained on")
    engine = _engine(job, file, at, {})
    try:
        found = parity.engine_reads(engine, None, at)
        faults += _same_ids(job, engine.chat_ids, _ENGINE) + _ends(job, engine)
    finally:
        engine.close()
    return faults + _note(job, compare.rounded(reading, *found, _ENGINE, own))


def _rewritten(job: Job, base: Path, file: Path, end: int, at: list[parity.Span]) -> tuple[list[int], list[float]]:
    """Write the base's GGUF with the adapter added; returns what the base, rewritten alike without it, says."""
    model = job.context.model
    about = gguf_model.Identity(f"{job.label} ({job.model})", job.jinja(), end, model.notice)
    alike = file.with_name("base.gguf")
    for adapter, target in ((job.adapter, file), (None, alike)):
        gguf_model.write(base, adapter, model.folder(), target, job.kind, about)  # type: ignore[arg-type]
    engine = _engine(job, alike, at, {})
    try:
        return parity.engine_reads(engine, None, at)
    finally:
        engine.close()
        alike.unlink()


def _trained(job: Job) -> tuple[Any, compare.Reading, list[parity.Span]]:
    """The trained model in torch, what it and its base say, and where."""
    model = job.context.model
    rows = parity.texts(job.context.run.constitution, model.template, model.tokenizer(job.context.screen.say))
    at = parity.spans(rows)
    adapted = lora.add_adapter(lora.load_base(model.folder()), job.adapter)
    trained = parity.torch_reads(adapted, at)
    with adapted.disable_adapter():
        base = parity.torch_reads(adapted, at)
    return adapted, compare.Reading(trained, base), at


def _engine(job: Job, file: Path, at: list[parity.Span], loras: dict[str, Path]) -> LlamaCpp:
    longest = max(max(len(row) for row, _ in at), *(len(ids) for _, ids in job.expected()))
    return LlamaCpp(file, loras, slots=1, context=longest + 64, threads=job.context.recipe.engine.threads)


def _note(job: Job, found: compare.Comparison) -> list[str]:
    """Say and write down a comparison; returns its faults."""
    job.context.screen.say(f"  {found.text()}", "" if found.holds else "yellow")
    job.found["comparison"] = {**asdict(found), "holds": found.holds, "text": found.text()}
    return list(found.faults)


def _template_beside(job: Job, folder: Path) -> list[str]:
    """Put the chat template beside an adapter, whose base brings its own tokenizer, and render it once."""
    source, model = job.jinja(), job.context.model
    (folder / CHAT_TEMPLATE).write_text(source, "utf-8")
    tokenizer = model.tokenizer()
    start = tokenizer.text(tokenizer.encode((BOS,)))
    dialogues = chat_template.dialogues(job.context.run.constitution)
    wrong = [
        True
        for system, turns in dialogues
        if chat_template.render(source, chat_template.messages((system, turns)), start)
        != chat_template.text(model.template, system or job.system, turns, job.label, start)
    ]
    job.found["chat_template"] = {"rendered_with": "jinja2", "dialogues": len(dialogues), "same": not wrong}
    return ["the chat template does not say what the model was trained on"] if wrong else []


def _same_ids(job: Job, ids: Any, loaded_with: str) -> list[str]:
    """Whether the export's own chat template gives the token ids of training, single-turn and multi-turn."""
    expected = job.expected()
    wrong = []
    for messages, wanted in expected:
        try:
            given = ids(messages)
        except RowError as error:
            given = str(error)
        if given != wanted:
            wrong.append(f"{given[:12]}… instead of {wanted[:12]}…")
    job.found["chat_template"] = {"tokenized_with": loaded_with, "dialogues": len(expected), "same": not wrong}
    if wrong:
        return [f"{loaded_with} makes other tokens of {len(wrong)} of {len(expected)} dialogues ({wrong[0]})"]
    job.context.screen.say(f"  {loaded_with} makes the tokens of training from {len(expected)} dialogues")
    return []


def _ends(job: Job, engine: LlamaCpp) -> list[str]:
    """Whether generation ends where the end token comes: it is made certain and must end the answer."""
    end = Control(job.context.model.template.end)
    part = engine.generate((BOS, "word"), Step(Sampling(0.0, 1.0, 4, bias=((end, 1000.0),))), 0, None)
    job.found["ends"] = part.finish == "end"
    return [] if part.finish == "end" else [f"llama.cpp does not end an answer at {end}"]
