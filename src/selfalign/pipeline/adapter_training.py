"""Train an adapter on the examples of stage 3 or 4, and publish it for torch and for llama.cpp."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from selfalign.data.records import Example, content_hash, read_jsonl, write_jsonl
from selfalign.errors import Resumable, UserError
from selfalign.generation import engines
from selfalign.model.dialogue import Encoded, encode_example, encode_text
from selfalign.planning import costs
from selfalign.report import model_card
from selfalign.run import marks
from selfalign.run.context import Context
from selfalign.run.ledger import RowOutcome
from selfalign.system import environment
from selfalign.system.atomic import file_hash
from selfalign.system.clock import Clock
from selfalign.system.console import Bar
from selfalign.training import adapter_import, preflight
from selfalign.training.batches import PairRow
from selfalign.training.record import thin_curve
from selfalign.training.response_rows import ResponseRow
from selfalign.training.settings import ANCHOR_ROWS, TrainingSettings

if TYPE_CHECKING:
    from peft import PeftModel

    from selfalign.model.base_model import Model
    from selfalign.training.checkpoint import Checkpoint
    from selfalign.training.device import Placement
    from selfalign.training.record import TrainingRecord

Kind = Literal["engrave", "verbose_cloning"]

_DETAIL_ROWS = 3
"""Training rows that -v prints."""
_LAST_STEPS = 50
"""Steps whose mean divergence from the base the ledger keeps."""
_MIN_ANCHOR = 8
"""Tokens of the shortest response that serves as an anchor."""
_PEFT_POSITIONS = 50
_MAX_DIFFERENCE = 0.01
"""Maximum difference, in nats, between the log-probabilities of an imported adapter and those of PEFT."""


def run(
    context: Context,
    kind: Kind,
    examples: Sequence[Example],
    removed: Iterable[RowOutcome] = (),
    adapter: Path | None = None,
    rejected: Mapping[str, str] | None = None,
    rounds: Callable[[Sequence[Example], Train], dict[str, Any]] | None = None,
) -> list[Path]:
    """Apply the user's marks, encode the examples, train an adapter of the base and publish it; return the files.

    Args:
        examples: the candidates; those longer than `max_length` tokens are dropped.
        removed: outcomes of rows that were removed from the input file.
        adapter: an adapter that was trained elsewhere, to publish instead of training.
        rejected: with dpo, id of an example -> the response that it is preferred to.
        rounds: with on_policy, (kept examples, `Train`) -> notes, to train in rounds.
    """
    clock, config = Clock(), context.recipe.training(kind)
    examples, dropped, message = marks.apply(marks.read(context.run), kind, examples)
    if message:
        context.screen.say(f"  {message}", "dim")
    outcomes = [*removed, *dropped]
    rows_in = len(examples) + len(outcomes)
    if rejected is not None and not config.sft_weight:
        reason = "has no rejected response, and engrave.sft_weight is 0"
        outcomes += [
            RowOutcome(e.id, i, "dropped", reason, e.user) for i, e in enumerate(examples) if e.id not in rejected
        ]
        examples = [example for example in examples if example.id in rejected]
    files = [context.run.jsonl(f"{kind}_examples")]
    if context.model.is_fake:
        if adapter:
            context.model.check_weights("this run takes no adapter")
        outcomes += [RowOutcome(e.id, i, "kept", "", e.user) for i, e in enumerate(examples)]
        write_jsonl(files[0], examples)
        notes: dict[str, object] = {"trained": "nothing: the fake engine has no weights"}
    else:
        context.release_engine()
        kept, encoded = _encode(context, examples, config.max_length, outcomes)
        write_jsonl(files[0], kept)
        if adapter:
            notes = _import(context, kind, encoded, config, adapter)
        else:
            if rejected is not None:
                encoded = _paired(context, kept, encoded, rejected)
            report = _preflight(context, kept, encoded, config, outcomes)
            if config.elsewhere:
                if config.anchor:
                    context.screen.say(
                        "  engrave.anchor has no effect, because engrave.elsewhere trains without anchors", "yellow"
                    )
                raise Resumable(adapter_import.next_steps(context.run.path, kind))
            train = _trains(context, kind, kept, encoded, config, clock)
            notes = {**(rounds(kept, train) if rounds else train(kind)), "preflight": report.text()}
        files += [context.run.adapter(kind), context.run.adapter_gguf(kind)]
    context.write_ledger(kind, outcomes, rows_in, clock, notes)
    context.run.checkpoint(kind).unlink(missing_ok=True)
    return files


def _paired(
    context: Context, examples: Sequence[Example], encoded: Sequence[Encoded], rejected: Mapping[str, str]
) -> list[Encoded]:
    """Return the rows with their rejected responses.

    Raises:
        UserError: there is not a single pair.
    """
    tokenizer, template, constitution = context.model.tokenizer(), context.model.template, context.run.constitution
    rows: list[Encoded] = []
    for example, row in zip(examples, encoded, strict=True):
        if text := rejected.get(example.id):
            system = constitution.system_prompt(example.prompt)
            other = encode_example(tokenizer, template, system, example.user, text, constitution.assistant.name)
            row = PairRow(row.ids, row.mask, other)
        rows.append(row)
    if not any(isinstance(row, PairRow) for row in rows):
        raise UserError(
            "no preference pairs: every rejected response was dropped (`selfalign status` lists the reasons); raise "
            "engrave.pair_samples or engrave.length_ratio, or set engrave.method to sft"
        )
    return rows


Train = Callable[..., dict[str, Any]]
"""Trains an adapter, and returns notes for the ledger. Arguments: its name (a stage, or a round of it); the name of the
adapter that it continues; the rows of a round, by default the examples; the number of responses of all rounds."""


def _trains(
    context: Context,
    kind: Kind,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    config: TrainingSettings,
    clock: Clock,
) -> Train:
    """Return a function that trains an adapter on the examples, or on a round's rows, and publishes it."""
    from selfalign.training import batches

    held_out = batches.held_out_ids([e.id for e in examples], config.validation)
    learnt = [row for row, e in zip(encoded, examples, strict=True) if e.id not in held_out]
    validation = [row for row, e in zip(encoded, examples, strict=True) if e.id in held_out]
    anchors = _anchors(context, examples) if config.anchor else []

    def train(
        name: str, start: str | None = None, rows: Sequence[Encoded] | None = None, responses: int = 0
    ) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if rows is not None:
            changes = {"epochs": 1, "learning_rate": config.on_policy.learning_rate}
        elif config.method == "on_policy":
            changes = {"method": "sft"}
        if kind == "verbose_cloning" and context.recipe.verbose_cloning.start == "engraved":
            start = "engrave"
        pairs = sum(isinstance(row, PairRow) for row in learnt)
        warmed_up = rows is None or config.on_policy.warmup == "sft"
        card = _card(context, kind, len(learnt) if warmed_up else 0, pairs, responses)
        texts = learnt if rows is None else rows
        settings = config.model_copy(update=changes)
        return _train(context, name, texts, validation, settings, clock, start, card, anchors)

    return train


def _train(
    context: Context,
    name: str,
    rows: Sequence[Encoded],
    validation: Sequence[Encoded],
    config: TrainingSettings,
    clock: Clock,
    start: str | None,
    card: str,
    anchors: Sequence[Encoded],
) -> dict[str, Any]:
    """Train, publish the adapter in both forms and compare them; return notes for the ledger.

    Args:
        name: a stage, or a round of it, whose adapter is not compared.
        start: the adapter that the training continues; None for a new one.
    """
    from selfalign.model import gguf_adapter
    from selfalign.training import checkpoint, device, distillation, loop, lora, preference

    kinds = {"dpo": preference.PreferenceTrainer, "on_policy": distillation.DistillationTrainer}
    model = context.model
    folder = model.folder(context.screen.say)
    placement = device.choose(config, checkpoint.saved_dtype(context.run.checkpoint(name)))
    base, saved = lora.load_base(folder, placement), context.run.adapter(start) if start else None
    if saved:
        adapted = lora.with_saved_adapter(base, saved, context.recipe.seed)
    else:
        adapted = lora.with_new_adapter(base, config, context.recipe.seed)
    part = "" if config.method == "on_policy" else name  # one of several rounds says little about the whole
    with context.screen.bar(f"train {name}", None, part) as bar:
        record = loop.train(
            adapted,
            rows,
            config,
            context.recipe.seed,
            validation=validation,
            checkpoint=_checkpoint(context, name, (rows, validation, anchors), config, placement, saved),
            anchors=anchors,
            on_step=_step_display(context, bar),
            say=lambda text: context.screen.say(f"  {text}", "yellow"),
            kind=kinds.get(config.method, loop.Trainer),
        )
    clock.add(record.seconds_before)
    target = context.run.adapter(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    lora.save_adapter(adapted, target, model, card)
    gguf_adapter.write(target, folder, context.run.adapter_gguf(name), model.notice, _needs_gguf(context))
    parity = _parity(context, name, adapted) if "-" not in name else {}
    del adapted, base
    device.free_memory()
    notes = {**_notes(record, validation), **_preference_notes(record, rows, config.epochs)}
    return {**notes, "computed": f"{placement.dtype} on {placement.device}", "parity": parity}


def _anchors(context: Context, examples: Sequence[Example]) -> list[Encoded]:
    """Return the responses of all examples but the identity pairs as plain texts, without system prompt and turns.

    They need not be good responses: only their inputs matter, because the base gives the target at each token.
    """
    tokenizer, limit = context.model.tokenizer(), context.recipe.engrave.max_length
    rows = [encode_text(tokenizer, e.assistant) for e in examples if e.source != "identity"]
    return [Encoded(row.ids[:limit], row.mask[:limit]) for row in rows if len(row.ids) >= _MIN_ANCHOR]


def _checkpoint(
    context: Context,
    name: str,
    parts: tuple[Sequence[Encoded], Sequence[Encoded], Sequence[Encoded]],
    config: TrainingSettings,
    placement: Placement,
    start: Path | None,
) -> Checkpoint:
    """Return the training's checkpoint in the run; it is valid for these texts, settings and weights only.

    Args:
        parts: rows, held-out rows and anchors.
    """
    from selfalign.training.checkpoint import Checkpoint

    settings = config.deciding()
    rows, _, anchors = parts
    # Without anchors, the key is that of earlier versions.
    texts: list[Any] = [[(r.ids, sum(r.mask)) for r in part] for part in parts[: 3 if anchors else 2]]
    if config.method == "dpo":
        texts.append([row.rejected.ids if isinstance(row, PairRow) else [] for row in rows])
    if config.method == "on_policy":
        texts.append([row.teacher.ids if isinstance(row, ResponseRow) else [] for row in rows])
    key = content_hash(context.model.identity, context.recipe.seed, settings, placement.dtype, placement.device, texts)
    if start:
        key = content_hash(key, file_hash(start / "adapter_model.safetensors"))
    return Checkpoint(context.run.checkpoint(name), key)


def _step_display(context: Context, bar: Bar) -> Callable[[int, int, float, int], None]:
    """Return a callback that shows each training step."""
    tokens_before: int | None = None

    def on_step(step: int, steps: int, loss: float, tokens: int) -> None:
        nonlocal tokens_before
        if tokens_before is None:
            bar.total(steps)
            bar.begin_at(step - 1)
            tokens_before = 0 if step == 1 else tokens
        bar.set(step, tokens - tokens_before)
        tokens_before = tokens
        context.screen.detail(f"  step {step} of {steps}: loss {loss:.3f}")

    return on_step


def _notes(record: TrainingRecord, validation: Sequence[Encoded]) -> dict[str, object]:
    """Return the ledger's notes about a training."""
    curve = [(n, round(x, 5), rate) for n, (x, rate) in enumerate(zip(record.losses, record.rates, strict=True), 1)]
    notes: dict[str, object] = {
        "steps": len(record.losses),
        "loss_first": round(record.losses[0], 4),
        "loss_last": round(record.losses[-1], 4),
        "training_tokens": record.tokens,
        "training_seconds": round(record.seconds, 1),
        "curve": thin_curve(curve),
    }
    if record.validation:
        notes["heldout"] = [[step, round(loss, 5)] for step, loss in record.validation]
        notes["heldout_rows"] = len(validation)
    if record.divergences:
        notes["divergence"] = round(fmean(record.divergences[-_LAST_STEPS:]), 4)
    if record.best_step:
        notes["best_step"] = record.best_step
    return notes


def _preference_notes(record: TrainingRecord, rows: Sequence[Encoded], epochs: int) -> dict[str, object]:
    """Return the ledger's notes about a training on pairs: means over the steps of the last epoch."""
    if not (pairs := sum(isinstance(row, PairRow) for row in rows)):
        return {}
    notes: dict[str, object] = {"pairs": pairs}
    steps = max(1, len(record.losses) // epochs)
    for name, values in (("margin", record.margins), ("accuracy", record.accuracies)):
        known = [value for value in values[-steps:] if value is not None]
        notes[name] = round(fmean(known), 4) if known else None
    return notes


def _import(
    context: Context, kind: Kind, encoded: Sequence[Encoded], config: TrainingSettings, source: Path
) -> dict[str, object]:
    """Publish an adapter that was trained elsewhere; return notes for the ledger."""
    from selfalign.model import gguf_adapter

    model, target = context.model, context.run.adapter(kind)
    folder = model.folder(context.screen.say)
    adapter = adapter_import.read_adapter(
        source, kind, model, encoded, config, lambda text: context.screen.say(text, "yellow")
    )
    adapted = _load_imported(context, adapter, source, folder) if model.gguf_path is not None else None
    adapter_import.publish(adapter, target, model, _card(context, kind, len(encoded)))
    gguf_adapter.write(target, folder, context.run.adapter_gguf(kind), model.notice, _needs_gguf(context))
    parity = _parity(context, kind, adapted)
    del adapted
    gc.collect()
    return {**adapter.notes, "parity": parity}


def _load_imported(context: Context, adapter: adapter_import.ImportedAdapter, source: Path, folder: Path) -> PeftModel:
    """Return the base in `folder` with an imported adapter, after comparing it with PEFT's own reading of `source`.

    Raises:
        UserError: their next tokens differ.
    """
    from selfalign.generation import parity
    from selfalign.training import lora

    adapted = lora.add_adapter(lora.load_base(folder), source)
    rows = parity.texts(context.run.constitution, context.model.template, context.model.tokenizer())
    positions = parity.spans(rows, _PEFT_POSITIONS)
    expected = parity.torch_reads(adapted, positions)
    lora.add_tensors(adapted, adapter.tensors, adapter.lora)
    difference = float((parity.torch_reads(adapted, positions) - expected).abs().max())
    if not difference <= _MAX_DIFFERENCE:
        raise UserError(
            f"{source} computes something else in PEFT than as a plain LoRA: a log-probability differs by "
            f"{difference:.3g} at {len(expected)} positions; train the adapter without the unusual settings of its "
            "adapter_config.json"
        )
    return adapted


def rows(context: Context, kind: Kind) -> list[Encoded]:
    """Return the encoded training rows of a stage, from its examples file.

    Raises:
        UserError: the stage has not run yet, or an edited row cannot be trained on.
    """
    path, config = context.run.jsonl(f"{kind}_examples"), context.recipe.training(kind)
    outcomes: list[RowOutcome] = []
    _, encoded = _encode(context, read_jsonl(path, Example), config.max_length, outcomes)
    if dropped := next((outcome for outcome in outcomes if outcome.state == "dropped"), None):
        raise UserError(
            f"{path}: the row {dropped.id} {dropped.reason}: run `selfalign {adapter_import.verb_of(kind)} "
            f"{context.run.path}` again"
        )
    return encoded


def _encode(
    context: Context, examples: Sequence[Example], max_length: int, outcomes: list[RowOutcome]
) -> tuple[list[Example], list[Encoded]]:
    """Encode the examples, add an outcome for each, and return the kept examples and their rows."""
    tokenizer, template = context.model.tokenizer(context.screen.say), context.model.template
    constitution, name = context.run.constitution, context.run.constitution.assistant.name
    max_length = min(max_length, context.model.context_length() or max_length)
    kept, encoded = [], []
    for position, example in enumerate(examples):
        system = constitution.system_prompt(example.prompt)
        row = encode_example(tokenizer, template, system, example.user, example.assistant, name)
        reason = ""
        if len(row.ids) > max_length:
            reason = f"longer than {max_length} tokens"
        elif template.forged(f"{example.user}\n{example.assistant}", name):
            reason = "contains a turn of its own"
        outcomes.append(RowOutcome.judged(example.id, position, reason, example.user))
        if not reason:
            kept.append(example)
            encoded.append(row)
    return kept, encoded


def _preflight(
    context: Context,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    config: TrainingSettings,
    outcomes: Sequence[RowOutcome],
) -> preflight.Preflight:
    """Check every row before the first step, and print what will be trained.

    Raises:
        UserError: rows have errors, and the recipe's `preflight` is "refuse".
    """
    model, tokenizer = context.model, context.model.tokenizer()
    too_long = sum(outcome.reason.startswith("longer than") for outcome in outcomes)
    report = preflight.inspect_rows(
        encoded, tokenizer, model.template, context.run.constitution.assistant.name, too_long
    )
    needed = _cpu_megabytes(model, config)
    warning = preflight.check_memory(needed, environment.free_megabytes()) if needed else None
    pairs = [row for row in encoded if isinstance(row, PairRow)]
    rejected = sum(len(row.rejected.ids) for row in pairs)
    reference = rejected + sum(len(row.ids) for row in pairs)
    text = f"  {report.text()}{f', {len(pairs):,} pairs' if pairs else ''}"
    text += f"; about {needed / 1000:.1f} GB" if needed else ""
    if context.recipe.engine.slots == "auto" and (speed := context.speed()):
        anchors = 0
        if config.anchor:
            steps = -(-len(encoded) // config.batch_size)
            anchors = round(steps * ANCHOR_ROWS * report.loss_tokens / max(1, len(encoded)))
        tokens = (report.tokens + rejected + anchors) * config.epochs
        seconds = costs.training_seconds(tokens, speed, reference + anchors * config.epochs)
        text += f" and {seconds / 60:.0f} min"
    context.screen.say(text, "dim")
    for finding in (*report.findings, *([warning] if warning else [])):
        which = f" (first: {examples[finding.rows[0]].id})" if finding.rows else ""
        context.screen.say(f"  {finding.rule}: {finding.message}{which}", "yellow")
    for row in encoded[:_DETAIL_ROWS]:
        context.screen.spans(preflight.loss_spans(row, tokenizer))
    if report.errors and config.preflight == "refuse":
        first = report.errors[0]
        which = f"; the first is {examples[first.rows[0]].id}" if first.rows else ""
        raise UserError(
            f"preflight found errors, {first.rule}: {first.message}{which}. Correct or remove the rows, or set "
            "engrave.preflight=warn"
        )
    return report


def _cpu_megabytes(model: Model, config: TrainingSettings) -> float | None:
    """Return the memory that training on the CPU needs, in MB; None elsewhere (`gpu_fit` checks a GPU's)."""
    from selfalign.training import device

    if not config.elsewhere and device.choose(config).device != "cpu":
        return None
    weights = sum(f.stat().st_size for f in model.folder().glob("*.safetensors")) / 1e6
    return costs.training_megabytes(weights, config.micro_batch_tokens)


def _needs_gguf(context: Context) -> bool:
    return engines.kind(context.recipe.engine) == "llama_cpp"


def _parity(context: Context, kind: str, adapted: object) -> dict[str, float]:
    """Compare the next tokens of torch and llama.cpp; return an empty dict if llama.cpp cannot load the model."""
    if context.model.gguf_path is None or not (_needs_gguf(context) or context.model.has_gguf_adapters):
        return {}
    from selfalign.generation import parity
    from selfalign.generation.engines.llama_cpp import LlamaCpp

    engine = LlamaCpp(
        context.model.gguf,
        {kind: context.run.adapter_gguf(kind)},
        slots=1,
        context=2048,
        threads=context.recipe.engine.threads,
    )
    try:
        rows = parity.texts(context.run.constitution, context.model.template, context.model.tokenizer())
        result = parity.measure(adapted, engine, kind, rows)
    finally:
        engine.close()
    text = (
        f"torch and engine agree on {result.agreement_adapter:.1%} of {result.positions} next tokens with the adapter, "
        f"{result.agreement_base:.1%} without; the adapter changes {result.changed:.1%}"
    )
    context.screen.say(f"  {text}", "" if result.holds else "yellow")
    return {**{k: round(v, 4) for k, v in asdict(result).items()}, "holds": result.holds}


def _card(context: Context, kind: Kind, count: int, pairs: int = 0, responses: int = 0) -> str:
    name = "given" if kind == "engrave" and context.recipe.align.form == "given" else kind
    return model_card.adapter_card(context.model, context.run.constitution, name, count, pairs, responses)
