"""Behaviour probes: does an answer show a principle where it belongs, and not where it does not?

RUN -> 5_evaluation/probes.jsonl

Base, prompted base (the whole constitution in the prompt), engraved and final model answer every probe; checks without
a judge decide (checks.py). A model's total carries a Wilson interval; the six probes of a principle are a count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from selfalign.constitution import Constitution, Principle, Probe
from selfalign.data.prompt_text import Turn
from selfalign.data.records import Example, ProbeAnswer, content_hash, read_jsonl, write_jsonl
from selfalign.errors import UserError
from selfalign.evaluation.checks import passes
from selfalign.evaluation.heldout import models
from selfalign.evaluation.statistics import Interval, bootstrap_mean, wilson
from selfalign.generation import guided
from selfalign.generation.engines.base import Completion, Request, Step
from selfalign.generation.loop import RowRequest, row_seed
from selfalign.quality.rouge import folded
from selfalign.run.context import Context
from selfalign.run.ledger import RowOutcome
from selfalign.system.clock import Clock

STAGE, ABLATION = "probes", "ablation"
MAX_NEW_TOKENS = 128
PROMPTED = "prompted base"


@dataclass(frozen=True, slots=True)
class Total:
    """A model's passed probes, and the paired difference in the share from `vs`.

    A model that says anything at all but shows no behaviour passes every contrast: read the parts beside the total.
    """

    model: str
    n: int
    passed: int
    interval: Interval
    shown: tuple[int, int]
    """Passed and asked, of the probes where the behaviour belongs."""
    held_back: tuple[int, int]
    """The same of the contrasts."""
    vs: str | None = None
    difference: Interval | None = None


Half = Literal["choices", "report"]


def half_of(probes: Sequence[tuple[Principle, Probe]], half: Half) -> list[tuple[Principle, Probe]]:
    """Every second probe, of those where the behaviour belongs and of the contrasts.

    One half serves choices, such as of a wording or a learning rate, and the other one measures what was chosen.
    """
    numbers = {False: 0, True: 0}
    found = []
    for principle, probe in probes:
        if numbers[probe.contrast] % 2 == (half == "report"):
            found.append((principle, probe))
        numbers[probe.contrast] += 1
    return found


def run(
    context: Context, texts: Constitution, dropped: int | None = None, half: Half | None = None
) -> list[ProbeAnswer]:
    """Let the models answer the probes of `texts`; writes and returns the judged answers.

    Args:
        texts: the constitution whose probes are asked; the run's own stays the one that prompts.
        dropped: compare the prompted base with and without this principle instead of the run's models.
        half: only these probes; nothing is written then.

    Raises:
        UserError: there are no probes, or no such principle.
    """
    clock = Clock()
    file, stage = context.run.jsonl(STAGE), STAGE if dropped is None else ABLATION
    if dropped is None and half is None:
        context.run.check_not_edited([file], context.force)
    probes = _unseen(context, half_of(texts.probes(), half) if half else texts.probes())
    if not probes:
        raise UserError("the constitution has no probes (principles[].probes); --probes default takes the shipped ones")
    works = _prompted_pair(context, probes, dropped) if dropped is not None else _of_models(context, probes)
    # Model by model: a slot whose adapter or prefix changes must compute its prompt anew.
    answers: list[ProbeAnswer] = []
    outcomes: list[RowOutcome] = []
    adapters = tuple(a for a in {w.request.adapter: None for g in works.values() for w in g} if a)
    with context.screen.bar("probes", sum(len(g) for g in works.values())) as bar:
        for name, group in works.items():
            engine = context.journaled_engine(stage, bar.add, adapters)
            if name.startswith(PROMPTED):
                engine.engine.warm_prefix(group[0].request.prompt[:2], None)
            for (principle, probe), request, result in zip(probes, group, engine.generate(group), strict=True):
                if result.completion is not None:
                    answers.append(_judged(context, name, principle, probe, request.request, result.completion))
                text = f"{name}: {probe.ask}"
                outcomes.append(RowOutcome(result.row_id, len(outcomes), result.state, result.reason, text))
    lost = [outcome for outcome in outcomes if outcome.state != "kept"]
    if lost:
        text = f"{len(lost)} of {len(outcomes)} without an answer ({lost[0].reason}): skipped"
        context.screen.say(f"  {text}", "yellow")
    if dropped is None and half is None:
        # The manifest names the file's hash: it goes before the file changes, and comes back at the end.
        context.run.manifest.unlink(missing_ok=True)
        context.journal.unpublish(STAGE)
        write_jsonl(file, answers)
        counts = context.settle(STAGE, outcomes, len(outcomes), clock)
        write_jsonl(context.run.jsonl("drops"), context.journal.drops())
        context.run.mark_done(STAGE, content_hash([p.model_dump() for _, p in probes]), [file])
        context.check_failures(counts)
    return answers


def _unseen(context: Context, probes: list[tuple[Principle, Probe]]) -> list[tuple[Principle, Probe]]:
    """The probes that are no prompt of the run; the others are named and left out."""
    seen: set[str] = set()
    if context.run.jsonl("prompts").exists():
        seen |= {folded(p.message) for p in context.prompts()}
    for name in ("engrave_examples", "verbose_cloning_examples"):
        if (path := context.run.jsonl(name)).exists():
            seen |= {folded(e.user) for e in read_jsonl(path, Example)}
    found = []
    for principle, probe in probes:
        if folded(probe.ask) in seen:
            context.screen.say(f"  left out, it is one of the run's prompts: {probe.ask}", "yellow")
        else:
            found.append((principle, probe))
    return found


def _of_models(context: Context, probes: list[tuple[Principle, Probe]]) -> dict[str, list[RowRequest]]:
    constitution = context.run.constitution
    template = context.model.template
    config = context.recipe.evaluate
    sampling = replace(context.sampling(config), repetition=config.repetition, max_new_tokens=MAX_NEW_TOKENS)
    step = Step(sampling, stop=template.stops())
    works: dict[str, list[RowRequest]] = {}
    for name, adapter in models(context).items():
        group = []
        for principle, probe in probes:
            pieces = template.prompt(
                constitution.system_prompt("standard"), [Turn("user", probe.ask)], constitution.assistant.name
            )
            request = Request(pieces, (step,), _seed(context, probe), adapter)
            group.append(RowRequest(_row(principle, probe, name), request))
        works[name] = group
        if name == "base":
            works[PROMPTED] = _prompted(context, probes, constitution, PROMPTED)
    return works


def _prompted_pair(
    context: Context, probes: list[tuple[Principle, Probe]], dropped: int
) -> dict[str, list[RowRequest]]:
    full = context.run.constitution
    less = full.without(dropped)
    name = f"{PROMPTED} without {dropped}"
    return {PROMPTED: _prompted(context, probes, full, PROMPTED), name: _prompted(context, probes, less, name)}


def _prompted(
    context: Context, probes: list[tuple[Principle, Probe]], constitution: Constitution, name: str
) -> list[RowRequest]:
    """The base with the constitution in its prompt, drawn as the other models are."""
    config = context.recipe.evaluate
    form = context.recipe.align.model_copy(update={"repetition": config.repetition, "hints": False})
    # In one pass the thoughts come out of the same limit.
    limit = MAX_NEW_TOKENS + (form.max_thought_tokens if form.form == "paper" else 0)
    sampling = replace(context.sampling(config), max_new_tokens=limit)
    asked = guided.Form(constitution, form, sampling)
    return [RowRequest(_row(p, probe, name), asked.request(probe.ask, _seed(context, probe))) for p, probe in probes]


def _row(principle: Principle, probe: Probe, model: str = "") -> str:
    """One message may probe two principles, or one of them both ways."""
    return content_hash(STAGE, principle.id, probe.ask, probe.expect, probe.contrast, model)


def _seed(context: Context, probe: Probe) -> int:
    return row_seed(context.recipe.seed, STAGE, probe.ask)


def _judged(
    context: Context, name: str, principle: Principle, probe: Probe, request: Request, completion: Completion
) -> ProbeAnswer:
    if name.startswith(PROMPTED):
        _, answer, _ = guided.split(completion, request, context.run.constitution.assistant.name)
    else:
        answer = completion.parts[0].text
    answer = answer.strip()
    passed = passes(probe, answer)
    return ProbeAnswer(
        _row(principle, probe), principle.id, principle.name, probe.ask, probe.expect, probe.contrast, name,
        answer, passed,
    )  # fmt: skip


def totals(answers: Sequence[ProbeAnswer]) -> list[Total]:
    """Each model's total; all but the first with the paired difference from the first."""
    names = list(dict.fromkeys(a.model for a in answers))
    by_model = {n: [a for a in answers if a.model == n] for n in names}
    found = []
    for name, rows in by_model.items():
        passed = sum(a.passed for a in rows)
        parts = [
            (sum(a.passed for a in rows if a.contrast == c), sum(a.contrast == c for a in rows)) for c in (False, True)
        ]
        total = Total(name, len(rows), passed, wilson(passed, len(rows)), parts[0], parts[1])
        if name != names[0]:
            first = {a.id: a.passed for a in by_model[names[0]]}
            pairs = [float(a.passed) - float(first[a.id]) for a in rows if a.id in first]
            total = replace(total, vs=names[0], difference=bootstrap_mean(pairs))
        found.append(total)
    return found
