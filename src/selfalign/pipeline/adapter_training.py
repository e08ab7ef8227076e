"""From training pairs to an adapter that both torch and the engine load: what stages 3 and 4 share."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selfalign.data.records import Example, content_hash, read_jsonl, write_jsonl
from selfalign.errors import Resumable, UserError
from selfalign.model.dialogue import Encoded, encode_example
from selfalign.planning import costs
from selfalign.report import model_card
from selfalign.run.context import Context
from selfalign.run.ledger import RowOutcome
from selfalign.system import environment
from selfalign.system.clock import Clock
from selfalign.system.console import Bar
from selfalign.training import adapter_import, preflight
from selfalign.training.record import thin_curve
from selfalign.training.settings import TrainingSettings

if TYPE_CHECKING:
    from selfalign.training.checkpoint import Checkpoint
    from selfalign.training.device import Placement
    from selfalign.training.record import TrainingRecord

Kind = Literal["engrave", "verbose_cloning"]

_SHOWN = 3
"""Training rows that are printed with -v."""


def train(
    context: Context,
    kind: Kind,
    examples: Sequence[Example],
    config: TrainingSettings,
    ledger: str,
    fates: list[RowOutcome],
) -> list[Path]:
    """Encode, train a fresh adapter on the base, publish it in both forms and compare them; returns the files.

    Args:
        examples: the candidates; those longer than `max_length` tokens become drops.
        ledger: the journal's name of the stage.
        fates: fates that are already known (rows a hand took out).
    """
    clock = Clock()
    rows_in = len(examples) + len(fates)
    files = [context.run.jsonl(f"{kind}_examples")]
    if not context.model.is_fake:
        context.release_engine()
        kept, encoded = _encode(context, examples, config.max_length, fates)
        write_jsonl(files[0], kept)
        if context.given_adapter:
            notes = _take(context, kind, encoded, config, context.given_adapter)
        else:
            checked = _preflight(context, kept, encoded, config, fates)
            if config.elsewhere:
                raise Resumable(adapter_import.next_steps(context.run.path, kind))
            notes = {**_fit(context, kind, kept, encoded, config, clock), "preflight": checked.text()}
        files += [context.run.adapter(kind), context.run.adapter_gguf(kind)]
    elif context.given_adapter:
        context.model.check_weights("this run takes no adapter")
    else:
        fates += [RowOutcome(e.id, i, "kept", "", e.user) for i, e in enumerate(examples)]
        write_jsonl(files[0], examples)
        notes = {"trained": "nothing: the fake engine has no weights"}
    context.settle(ledger, fates, rows_in, clock, notes)
    context.run.checkpoint(kind).unlink(missing_ok=True)
    return files


def _fit(
    context: Context,
    kind: Kind,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    config: TrainingSettings,
    clock: Clock,
) -> dict[str, object]:
    """Train, publish the adapter in both forms, compare them; returns notes for the ledger."""
    from selfalign.model import gguf_adapter
    from selfalign.training import batches, checkpoint, device, loop, lora

    model = context.model
    folder = model.folder(context.screen.say)
    where = device.choose(config, checkpoint.saved_dtype(context.run.checkpoint(kind)))
    measured = batches.held_out_ids([e.id for e in examples], config.validation)
    rows = [row for row, e in zip(encoded, examples, strict=True) if e.id not in measured]
    others = [row for row, e in zip(encoded, examples, strict=True) if e.id in measured]
    adapted = lora.with_new_adapter(lora.load_base(folder, where), config, context.recipe.seed)
    with context.screen.bar(f"train {kind}", None) as bar:
        done = loop.train(
            adapted,
            rows,
            config,
            context.recipe.seed,
            validation=others,
            checkpoint=_checkpoint(context, kind, rows, others, config, where),
            on_step=_shown(context, bar),
            say=lambda text: context.screen.say(f"  {text}", "yellow"),
        )
    clock.add(done.seconds_before)
    target = context.run.adapter(kind)
    lora.save_adapter(adapted, target, model, _card(context, kind, len(rows)))
    gguf_adapter.write(target, folder, context.run.adapter_gguf(kind), model.notice)
    parity = _parity(context, kind, adapted)
    del adapted
    gc.collect()
    return {**_notes(done, others), "computed": f"{where.dtype} on {where.device}", "parity": parity}


def _checkpoint(
    context: Context,
    kind: Kind,
    rows: Sequence[Encoded],
    others: Sequence[Encoded],
    config: TrainingSettings,
    where: Placement,
) -> Checkpoint:
    """The training's state in the run, good for these rows, settings and weights only."""
    from selfalign.training.checkpoint import Checkpoint

    settings = config.deciding()
    texts = [[(r.ids, sum(r.mask)) for r in part] for part in (rows, others)]
    key = content_hash(context.model.identity, context.recipe.seed, settings, where.dtype, where.device, texts)
    return Checkpoint(context.run.checkpoint(kind), key)


def _shown(context: Context, bar: Bar) -> Callable[[int, int, float, int], None]:
    """Shows each step."""
    seen: int | None = None

    def on_step(step: int, steps: int, loss: float, tokens: int) -> None:
        nonlocal seen
        if seen is None:
            bar.total(steps)
            bar.begin_at(step - 1)
            seen = 0 if step == 1 else tokens
        bar.set(step, tokens - seen)
        seen = tokens
        context.screen.detail(f"  step {step} of {steps}: loss {loss:.3f}")

    return on_step


def _notes(done: TrainingRecord, others: Sequence[Encoded]) -> dict[str, object]:
    """What the ledger keeps of a training."""
    curve = [(n, round(x, 5), rate) for n, (x, rate) in enumerate(zip(done.losses, done.rates, strict=True), 1)]
    notes: dict[str, object] = {
        "steps": len(done.losses),
        "loss_first": round(done.losses[0], 4),
        "loss_last": round(done.losses[-1], 4),
        "training_tokens": done.tokens,
        "training_seconds": round(done.seconds, 1),
        "curve": thin_curve(curve),
    }
    if done.validation:
        notes["heldout"] = [[step, round(loss, 5)] for step, loss in done.validation]
        notes["heldout_rows"] = len(others)
    if done.best_step:
        notes["best_step"] = done.best_step
    return notes


def _take(
    context: Context, kind: Kind, encoded: Sequence[Encoded], config: TrainingSettings, given: Path
) -> dict[str, object]:
    """Publish an adapter that was trained elsewhere as `_fit` does its own; returns notes for the ledger."""
    from selfalign.model import gguf_adapter
    from selfalign.training import lora

    model, target = context.model, context.run.adapter(kind)
    folder = model.folder(context.screen.say)
    found = adapter_import.read_adapter(
        given, kind, model, encoded, config, lambda text: context.screen.say(text, "yellow")
    )
    adapter_import.publish(found, target, model, _card(context, kind, len(encoded)))
    gguf_adapter.write(target, folder, context.run.adapter_gguf(kind), model.notice)
    parity: dict[str, float] = {}
    if model.gguf_path is not None:
        parity = _parity(context, kind, lora.add_adapter(lora.load_base(folder), target))
        gc.collect()
    return {**found.notes, "parity": parity}


def rows(context: Context, kind: Kind) -> list[Encoded]:
    """The training rows of a stage, from the examples that it wrote.

    Raises:
        UserError: it wrote none yet, or they were edited into something that cannot be trained on.
    """
    path, config = context.run.jsonl(f"{kind}_examples"), context.recipe.training(kind)
    fates: list[RowOutcome] = []
    _, encoded = _encode(context, read_jsonl(path, Example), config.max_length, fates)
    if wrong := next((fate for fate in fates if fate.state == "dropped"), None):
        raise UserError(
            f"{path}: the row {wrong.id} is {wrong.reason}: run `selfalign {kind} {context.run.path}` again"
        )
    return encoded


def _encode(
    context: Context, examples: Sequence[Example], max_length: int, fates: list[RowOutcome]
) -> tuple[list[Example], list[Encoded]]:
    tokenizer, template = context.model.tokenizer(context.screen.say), context.model.template
    constitution = context.run.constitution
    max_length = min(max_length, context.model.context_length() or max_length)
    kept, encoded = [], []
    for position, example in enumerate(examples):
        system = constitution.system_prompt(example.prompt)
        row = encode_example(tokenizer, template, system, example.user, example.assistant, constitution.assistant.name)
        if len(row.ids) > max_length:
            fates.append(RowOutcome(example.id, position, "dropped", f"longer than {max_length} tokens", example.user))
        elif template.forged(f"{example.user}\n{example.assistant}", constitution.assistant.name):
            fates.append(RowOutcome(example.id, position, "dropped", "contains a turn of its own", example.user))
        else:
            fates.append(RowOutcome(example.id, position, "kept", "", example.user))
            kept.append(example)
            encoded.append(row)
    return kept, encoded


def _preflight(
    context: Context,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    config: TrainingSettings,
    fates: Sequence[RowOutcome],
) -> preflight.Preflight:
    """Look at every row before the first step, and show what is trained.

    Raises:
        UserError: rows cannot be learnt as they should, and the recipe does not say `preflight: warn`.
    """
    model, tokenizer = context.model, context.model.tokenizer()
    too_long = sum(fate.reason.startswith("longer than") for fate in fates)
    found = preflight.inspect_rows(
        encoded, tokenizer, model.template, context.run.constitution.assistant.name, too_long
    )
    weights = sum(f.stat().st_size for f in model.folder().glob("*.safetensors")) / 1e6
    needed = costs.training_megabytes(weights, config.micro_batch_tokens)
    warning = preflight.check_memory(needed, environment.free_megabytes())
    text = f"  {found.text()}; about {needed / 1000:.1f} GB"
    measured = context.recipe.engine.slots == "auto" and (speed := context.speed())
    if measured and speed:
        text += f" and {costs.training_seconds(found.tokens * config.epochs, speed) / 60:.0f} min"
    context.screen.say(text, "dim")
    for finding in (*found.findings, *([warning] if warning else [])):
        which = f" (first: {examples[finding.rows[0]].id})" if finding.rows else ""
        context.screen.say(f"  {finding.rule}: {finding.message}{which}", "yellow")
    for row in encoded[:_SHOWN]:
        context.screen.spans(preflight.loss_spans(row, tokenizer))
    if found.errors and config.preflight == "refuse":
        first = found.errors[0]
        which = f"; the first is {examples[first.rows[0]].id}" if first.rows else ""
        raise UserError(
            f"training is refused, {first.rule}: {first.message}{which}. Mend or remove them, or set engrave.preflight "
            "to warn"
        )
    return found


def _parity(context: Context, kind: Kind, adapted: object) -> dict[str, float]:
    """Whether llama.cpp computes what torch does; nothing where the model has no GGUF."""
    if context.model.gguf_path is None:
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
        found = parity.measure(adapted, engine, kind, rows)
    finally:
        engine.close()
    text = (
        f"torch and engine agree on {found.agreement_adapter:.1%} of {found.positions} next tokens with the adapter, "
        f"{found.agreement_base:.1%} without; the adapter changes {found.changed:.1%}"
    )
    context.screen.say(f"  {text}", "" if found.holds else "yellow")
    return {**{k: round(v, 4) for k, v in asdict(found).items()}, "holds": found.holds}


def _card(context: Context, kind: Kind, count: int) -> str:
    given = kind == "engrave" and context.recipe.align.form == "given"
    return model_card.adapter_card(context.model, context.run.constitution, "given" if given else kind, count)
