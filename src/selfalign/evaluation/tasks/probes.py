"""Ask behaviour probes: does a response show a principle where it belongs, and not where it does not?

RUN -> 5_evaluation/probes.jsonl (`selfalign constitution test`)

Base, prompted base (the whole constitution in the prompt), engraved and final model answer every probe; rules decide
without a judge (`checks.py`). A model's total has a Wilson interval; the six probes of a principle are only a count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from selfalign.constitution import Constitution, Principle, Probe
from selfalign.data.prompt_text import Turn
from selfalign.data.records import Example, ProbeAnswer, content_hash, read_jsonl, write_jsonl
from selfalign.errors import UserError
from selfalign.evaluation.models import PROMPTED, run_models
from selfalign.evaluation.statistics import Interval, bootstrap_mean, wilson
from selfalign.evaluation.tasks.checks import passes
from selfalign.generation import guided
from selfalign.generation.engines.base import Completion, Request, Step
from selfalign.generation.loop import RowRequest, row_seed
from selfalign.quality.rouge import folded
from selfalign.run.context import Context
from selfalign.run.ledger import RowOutcome
from selfalign.system.clock import Clock

STAGE, ABLATION = "probes", "ablation"
MAX_NEW_TOKENS = 128

Half = Literal["choices", "report"]


@dataclass(frozen=True, slots=True)
class Total:
    """A model's passed probes, and the paired difference of the rate from `vs`.

    A model that answers anything without showing a behaviour passes every contrast: read the parts beside the total.
    """

    model: str
    n: int
    passed: int
    interval: Interval
    shown: tuple[int, int]
    """(passed, asked) of the probes where the behaviour belongs."""
    held_back: tuple[int, int]
    """(passed, asked) of the contrasts."""
    vs: str | None = None
    difference: Interval | None = None


def half_of(probes: Sequence[tuple[Principle, Probe]], half: Half) -> list[tuple[Principle, Probe]]:
    """Return every second probe, both of those where the behaviour belongs and of the contrasts.

    One half serves choices, for example of a wording or a learning rate; the other half measures the result.
    """
    numbers = {False: 0, True: 0}
    chosen = []
    for principle, probe in probes:
        if numbers[probe.contrast] % 2 == (half == "report"):
            chosen.append((principle, probe))
        numbers[probe.contrast] += 1
    return chosen


def seen_messages(context: Context) -> set[str]:
    """Return the run's prompts, folded: those of stage 1 and those that were trained on."""
    seen = {folded(p.message) for p in context.prompts()} if context.run.jsonl("prompts").exists() else set()
    for name in ("engrave_examples", "verbose_cloning_examples"):
        if (path := context.run.jsonl(name)).exists():
            seen |= {folded(e.user) for e in read_jsonl(path, Example)}
    return seen


def run(
    context: Context, texts: Constitution, dropped: int | None = None, half: Half | None = None
) -> list[ProbeAnswer]:
    """Let the models answer the probes of `texts`; write and return the checked answers.

    Args:
        texts: the constitution whose probes are asked. The run's own is the one in the prompts.
        dropped: compare the prompted base with and without this principle, instead of the run's models.
        half: only these probes; nothing is written.

    Raises:
        UserError: there are no probes, or no such principle.
    """
    clock = Clock()
    file, stage = context.run.jsonl(STAGE), STAGE if dropped is None else ABLATION
    publish = dropped is None and half is None
    if publish:
        context.run.check_not_edited([file], context.force)
    probes = _unseen(context, half_of(texts.probes(), half) if half else texts.probes())
    if not probes:
        raise UserError("the constitution has no probes (principles[].probes); --probes default takes the shipped ones")
    works = _prompted_pair(context, probes, dropped) if dropped is not None else _of_models(context, probes)
    answers, outcomes = _answers(context, works, probes, stage)
    failed = [o for o in outcomes if o.state != "kept"]
    if failed:
        count = f"{len(failed)} of {len(outcomes)} probes without an answer"
        context.screen.say(f"  {count} ({failed[0].reason}) are not counted", "yellow")
    if publish:
        # The manifest holds the file's hash: it is removed before the file changes, and written at the end.
        context.run.manifest.unlink(missing_ok=True)
        context.journal.unpublish(STAGE)
        write_jsonl(file, answers)
        counts = context.write_ledger(STAGE, outcomes, len(outcomes), clock)
        write_jsonl(context.run.jsonl("drops"), context.journal.drops())
        context.run.mark_done(STAGE, content_hash([p.model_dump() for _, p in probes]), [file])
        context.check_failures(counts)
    return answers


def _unseen(context: Context, probes: list[tuple[Principle, Probe]]) -> list[tuple[Principle, Probe]]:
    """Return the probes that are not among the run's prompts; report the others."""
    seen = seen_messages(context)
    for _, probe in probes:
        if folded(probe.ask) in seen:
            context.screen.say(f"  skipped, it is one of the run's prompts: {probe.ask}", "yellow")
    return [(principle, probe) for principle, probe in probes if folded(probe.ask) not in seen]


def _answers(
    context: Context, works: dict[str, list[RowRequest]], probes: list[tuple[Principle, Probe]], stage: str
) -> tuple[list[ProbeAnswer], list[RowOutcome]]:
    """Let each model answer its requests, one for each probe."""
    answers: list[ProbeAnswer] = []
    outcomes: list[RowOutcome] = []
    adapters = tuple(a for a in {w.request.adapter: None for g in works.values() for w in g} if a)
    with context.screen.bar("probes", sum(len(g) for g in works.values())) as bar:
        # Model by model: a slot whose adapter or prefix changes must compute its prompt anew.
        for name, group in works.items():
            engine = context.journaled_engine(stage, bar.add, adapters)
            if name.startswith(PROMPTED):
                engine.engine.warm_prefix(group[0].request.prompt[:2], None)
            for (principle, probe), request, result in zip(probes, group, engine.generate(group), strict=True):
                if result.completion is not None:
                    answers.append(_checked(context, name, principle, probe, request.request, result.completion))
                text = f"{name}: {probe.ask}"
                outcomes.append(RowOutcome(result.row_id, len(outcomes), result.state, result.reason, text))
    return answers, outcomes


def _of_models(context: Context, probes: list[tuple[Principle, Probe]]) -> dict[str, list[RowRequest]]:
    constitution = context.run.constitution
    template = context.model.template
    config = context.recipe.evaluate
    sampling = replace(context.sampling(config), repetition=config.repetition, max_new_tokens=MAX_NEW_TOKENS)
    step = Step(sampling, stop=template.stops())
    works: dict[str, list[RowRequest]] = {}
    for name, adapter in run_models(context).items():
        group = []
        for principle, probe in probes:
            pieces = template.prompt(
                constitution.system_prompt("standard"), [Turn("user", probe.ask)], constitution.assistant.name
            )
            request = Request(pieces, (step,), _seed(context, probe), adapter)
            group.append(RowRequest(_row_id(principle, probe, name), request))
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
    """Return requests to the base with the constitution in its prompt, sampled as for the other models."""
    config = context.recipe.evaluate
    form = context.recipe.align.model_copy(update={"repetition": config.repetition, "hints": False})
    # Internal thoughts in the same pass count towards the limit.
    limit = MAX_NEW_TOKENS + (form.max_thought_tokens if form.form == "paper" else 0)
    sampling = replace(context.sampling(config), max_new_tokens=limit)
    stage2 = guided.Form(constitution, form, sampling)
    return [
        RowRequest(_row_id(p, probe, name), stage2.request(probe.ask, _seed(context, probe))) for p, probe in probes
    ]


def _row_id(principle: Principle, probe: Probe, model: str = "") -> str:
    """Return the row's id. One message may probe two principles, or one of them both ways."""
    return content_hash(STAGE, principle.id, probe.ask, probe.expect, probe.contrast, model)


def _seed(context: Context, probe: Probe) -> int:
    return row_seed(context.recipe.seed, STAGE, probe.ask)


def _checked(
    context: Context, name: str, principle: Principle, probe: Probe, request: Request, completion: Completion
) -> ProbeAnswer:
    if name.startswith(PROMPTED):
        _, answer, _ = guided.split(completion, request, context.run.constitution.assistant.name)
    else:
        answer = completion.parts[0].text
    answer = answer.strip()
    return ProbeAnswer(
        _row_id(principle, probe), principle.id, principle.name, probe.ask, probe.expect, probe.contrast, name,
        answer, passes(probe, answer),
    )  # fmt: skip


def totals(answers: Sequence[ProbeAnswer]) -> list[Total]:
    """Return each model's total; all but the first have the paired difference from the first."""
    names = list(dict.fromkeys(a.model for a in answers))
    by_model = {n: [a for a in answers if a.model == n] for n in names}
    result = []
    for name, rows in by_model.items():
        passed = sum(a.passed for a in rows)
        shown, held_back = (
            (sum(a.passed for a in rows if a.contrast == c), sum(a.contrast == c for a in rows)) for c in (False, True)
        )
        total = Total(name, len(rows), passed, wilson(passed, len(rows)), shown, held_back)
        if name != names[0]:
            first = {a.id: a.passed for a in by_model[names[0]]}
            pairs = [float(a.passed) - float(first[a.id]) for a in rows if a.id in first]
            total = replace(total, vs=names[0], difference=bootstrap_mean(pairs))
        result.append(total)
    return result
