"""From training pairs to an adapter that both torch and the engine load: what stages 3 and 4 share."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selfalign import costs, environment
from selfalign.context import Context
from selfalign.dialogue import Encoded, encode_example
from selfalign.errors import UserError
from selfalign.journal import Clock, Fate
from selfalign.progress import Bar
from selfalign.recipe import Engrave
from selfalign.records import Example, content_hash, write_jsonl
from selfalign.training import preflight

if TYPE_CHECKING:
    from selfalign.training.checkpoint import Checkpoint
    from selfalign.training.device import Placement
    from selfalign.training.loop import Training

Kind = Literal["engrave", "clone"]

_SHOWN = 3
"""Training rows that are printed with -v."""
_TITLE = {
    "engrave": "Stage 3, principle engraving: the base model's own answers under the constitution, without it.",
    "clone": "Stage 4, verbose cloning: the engraved model's verbose answers, without the verbose prompt.",
}


def train(
    context: Context, kind: Kind, examples: Sequence[Example], config: Engrave, ledger: str, fates: list[Fate]
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
    if context.has_weights:
        context.release_engine()
        kept, encoded = _encode(context, examples, config.max_length, fates)
        write_jsonl(files[0], kept)
        checked = _preflight(context, kept, encoded, config, fates)
        notes = {**_fit(context, kind, kept, encoded, config), "preflight": checked.text()}
        files += [context.run.adapter(kind), context.run.adapter_gguf(kind)]
    else:
        fates += [(e.id, i, "kept", "", e.user) for i, e in enumerate(examples)]
        write_jsonl(files[0], examples)
        notes = {"trained": "nothing: the fake engine has no weights"}
    context.settle(ledger, fates, rows_in, clock, notes)
    context.run.checkpoint(kind).unlink(missing_ok=True)
    return files


def _fit(
    context: Context, kind: Kind, examples: Sequence[Example], encoded: Sequence[Encoded], config: Engrave
) -> dict[str, object]:
    """Train, publish the adapter in both forms, compare them; returns notes for the ledger."""
    from selfalign.training import device, gguf_adapter, loop, lora

    model = context.model
    folder, where = model.folder(context.screen.say), device.choose(config)
    measured = _validation(examples, config.validation)
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
    target = context.run.adapter(kind)
    lora.save_adapter(adapted, target, model, _card(context, kind, len(rows)))
    gguf_adapter.write(target, folder, context.run.adapter_gguf(kind), model.notice)
    parity = _parity(context, kind, adapted)
    del adapted
    gc.collect()
    return {**_notes(done, others), "computed": f"{where.dtype} on {where.device}", "parity": parity}


def _validation(examples: Sequence[Example], share: float) -> set[str]:
    """Ids of the examples that are not trained on: chosen by their content, so that an edit elsewhere changes none."""
    wanted = int(share * len(examples))
    return {e.id for e in sorted(examples, key=lambda e: content_hash("validation", e.id))[:wanted]}


def _checkpoint(
    context: Context,
    kind: Kind,
    rows: Sequence[Encoded],
    others: Sequence[Encoded],
    config: Engrave,
    where: Placement,
) -> Checkpoint:
    """The training's state in the run, good for these rows, settings and weights only."""
    from selfalign.training.checkpoint import Checkpoint

    settings = config.model_dump(mode="json", exclude={"preflight", "checkpoint_seconds", "tokens_at_once"})
    texts = [[(r.ids, sum(r.mask)) for r in part] for part in (rows, others)]
    key = content_hash(context.model.identity, context.recipe.seed, settings, where.dtype, where.device, texts)
    return Checkpoint(context.run.checkpoint(kind), key)


def _shown(context: Context, bar: Bar) -> Callable[[int, int, float, int], None]:
    """Shows each step."""
    seen: int | None = None

    def on_step(step: int, steps: int, loss: float, tokens: int) -> None:
        nonlocal seen
        bar.total(steps)
        # The steps before a stop took no time in this sitting.
        bar.set(step, 0 if seen is None and step > 1 else tokens - (seen or 0))
        seen = tokens
        context.screen.detail(f"  step {step} of {steps}: loss {loss:.3f}")

    return on_step


_POINTS = 1000
"""Of the loss curve that is kept."""


def _notes(done: Training, others: Sequence[Encoded]) -> dict[str, object]:
    """What the ledger keeps of a training."""
    every = -(-len(done.losses) // _POINTS)
    curve = [
        [n + 1, round(loss, 5), rate]
        for n, (loss, rate) in enumerate(zip(done.losses, done.rates, strict=True))
        if n % every == 0 or n + 1 == len(done.losses)
    ]
    notes: dict[str, object] = {
        "steps": len(done.losses),
        "loss_first": round(done.losses[0], 4),
        "loss_last": round(done.losses[-1], 4),
        "training_tokens": done.tokens,
        "training_seconds": round(done.seconds, 1),
        "curve": curve,
    }
    if done.validation:
        notes["heldout"] = [[step, round(loss, 5)] for step, loss in done.validation]
        notes["heldout_rows"] = len(others)
    if done.best_step:
        notes["best_step"] = done.best_step
    return notes


def _encode(
    context: Context, examples: Sequence[Example], max_length: int, fates: list[Fate]
) -> tuple[list[Example], list[Encoded]]:
    tokenizer, template = context.model.tokenizer(context.screen.say), context.model.template
    constitution = context.run.constitution
    max_length = min(max_length, context.model.context_length() or max_length)
    kept, encoded = [], []
    for position, example in enumerate(examples):
        system = constitution.inference_prompt(example.prompt)
        row = encode_example(tokenizer, template, system, example.user, example.assistant, constitution.assistant.name)
        if len(row.ids) > max_length:
            fates.append((example.id, position, "dropped", f"longer than {max_length} tokens", example.user))
        elif template.forged(f"{example.user}\n{example.assistant}", constitution.assistant.name):
            fates.append((example.id, position, "dropped", "contains a turn of its own", example.user))
        else:
            fates.append((example.id, position, "kept", "", example.user))
            kept.append(example)
            encoded.append(row)
    return kept, encoded


def _preflight(
    context: Context, examples: Sequence[Example], encoded: Sequence[Encoded], config: Engrave, fates: Sequence[Fate]
) -> preflight.Preflight:
    """Look at every row before the first step, and show what is trained.

    Raises:
        UserError: rows cannot be learnt as they should, and the recipe does not say `preflight: warn`.
    """
    model, tokenizer = context.model, context.model.tokenizer()
    too_long = sum(fate[3].startswith("longer than") for fate in fates)
    found = preflight.examine(encoded, tokenizer, model.template, context.run.constitution.assistant.name, too_long)
    needed = costs.training_megabytes(sum(f.stat().st_size for f in model.folder().glob("*.safetensors")) / 1e6)
    warning = preflight.memory(needed, environment.free_megabytes())
    text = f"  {found.text()}; about {needed / 1000:.1f} GB"
    measured = context.recipe.engine.slots == "auto" and (speed := context.speed())
    if measured and speed:
        text += f" and {costs.training_seconds(found.tokens * config.epochs, speed) / 60:.0f} min"
    context.screen.say(text, "dim")
    for finding in (*found.findings, *([warning] if warning else [])):
        which = f" (first: {examples[finding.rows[0]].id})" if finding.rows else ""
        context.screen.say(f"  {finding.rule}: {finding.message}{which}", "yellow")
    for row in encoded[:_SHOWN]:
        context.screen.spans(preflight.spans(row, tokenizer))
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
    from selfalign.engines.llama_cpp import LlamaCpp
    from selfalign.training import parity

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
    model, constitution = context.model, context.run.constitution
    rules = "\n".join(f"{p.id}. **{p.name}**: {p.rule}" for p in constitution.principles)
    terms = f"\n## Terms of the base model\n\n{model.notice}\n" if model.notice else ""
    return (
        f"---\nlibrary_name: peft\nbase_model: {model.source}\ntags: [self-align, lora]\n---\n\n"
        f"# {constitution.assistant.name}: adapter of `{model.source}`\n\n{_TITLE[kind]}\n\n"
        f"Trained on {count} single-turn examples that the base model wrote itself (SELF-ALIGN, arXiv 2305.03047); "
        f"turns are written in the `{model.template.name}` form and end with `{model.template.end}`.\n\n"
        f"## Constitution `{constitution.name}`\n\n{rules}\n{terms}"
    )
