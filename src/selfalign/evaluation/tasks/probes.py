"""Ask behaviour probes, which check that a response follows a principle where it applies, and only there.

RUN -> 5_evaluation/probes.jsonl (`selfalign constitution test`)

The base, the prompted base (with the constitution in its prompt), the engraved and the final model answer every probe,
and rules check the answers (`checks.py`). A model's total has a Wilson interval; a principle has six probes, which is
too few for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from selfalign.constitution import Constitution, Principle, Probe
from selfalign.data.records import Example, content_hash, read_jsonl, write_jsonl
from selfalign.errors import UserError
from selfalign.evaluation.asking import Message, ModelResponse, ask
from selfalign.evaluation.models import PROMPTED, ComparedModel, EngineGroup, engines_of_run
from selfalign.evaluation.records import ProbeAnswer
from selfalign.evaluation.statistics import Interval, bootstrap_mean, wilson
from selfalign.evaluation.tasks.checks import passes
from selfalign.quality.rouge import without_end
from selfalign.run.context import Context
from selfalign.run.ledger import RowOutcome
from selfalign.system.clock import Clock

STAGE, ABLATION = "probes", "ablation"
MAX_NEW_TOKENS = 128

Half = Literal["choices", "report"]


@dataclass(frozen=True, slots=True)
class Total:
    """A model's passed probes, and the paired difference of its rate from that of `vs`.

    A model that never shows a behaviour passes every contrast, so the total is to be read with its two parts.
    """

    model: str
    n: int
    passed: int
    interval: Interval
    shown: tuple[int, int]
    """(passed, all) of the probes that ask for a behaviour."""
    held_back: tuple[int, int]
    """(passed, all) of the contrasts."""
    vs: str | None = None
    difference: Interval | None = None


def half_of(probes: Sequence[tuple[Principle, Probe]], half: Half) -> list[tuple[Principle, Probe]]:
    """Return every second probe that asks for a behaviour, and every second contrast.

    One half is for choices, such as a wording or a learning rate; the other half is for the report.
    """
    numbers = {False: 0, True: 0}
    chosen = []
    for principle, probe in probes:
        if numbers[probe.contrast] % 2 == (half == "report"):
            chosen.append((principle, probe))
        numbers[probe.contrast] += 1
    return chosen


def seen_messages(context: Context) -> set[str]:
    """Return the run's prompts (`rouge.without_end`): those of stage 1 and those of the training examples."""
    seen = {without_end(p.message) for p in context.prompts()} if context.run.jsonl("prompts").exists() else set()
    for name in ("engrave_examples", "verbose_cloning_examples"):
        if (path := context.run.jsonl(name)).exists():
            seen |= {without_end(e.user) for e in read_jsonl(path, Example)}
    return seen


def run(
    context: Context, texts: Constitution, dropped: int | None = None, half: Half | None = None
) -> list[ProbeAnswer]:
    """Let the models answer the probes of `texts`; write and return the checked answers.

    Args:
        texts: the constitution with the probes. The prompts contain the run's own constitution.
        dropped: the id of a principle: compare the prompted base with and without it, instead of the run's models, and
            write nothing.
        half: ask only this half of the probes, and write nothing.

    Raises:
        UserError: there are no probes, or no such principle.
    """
    clock = Clock()
    file, publish = context.run.jsonl(STAGE), dropped is None and half is None
    stage = STAGE if dropped is None else ABLATION
    if publish:
        context.run.check_not_edited([file], context.force)
    probes = _unseen(context, half_of(texts.probes(), half) if half else texts.probes())
    if not probes:
        raise UserError(
            "the constitution has no probes (principles[].probes); use --probes default for the shipped ones"
        )
    full = context.run.constitution
    if dropped is None:
        comparisons = [(engines_of_run(context, (), (), "standard"), full)]
    else:
        comparisons = [(_prompted(context, PROMPTED), full)]
        comparisons.append((_prompted(context, f"{PROMPTED} without {dropped}"), full.without(dropped)))
    messages = [Message(_row_id(principle, probe), probe.ask) for principle, probe in probes]
    answers: list[ProbeAnswer] = []
    outcomes: list[RowOutcome] = []
    for groups, constitution in comparisons:
        responses, rows = ask(
            stage, context.journal, context.screen, groups, messages, context.recipe, constitution,
            max_new_tokens=MAX_NEW_TOKENS, seed_stage=STAGE,
        )  # fmt: skip
        answers += [_checked(*probes[r.position], r) for r in responses]
        outcomes += rows
    if publish:
        # The manifest holds the file's hash, so it is removed before the file changes and written again at the end.
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
        if without_end(probe.ask) in seen:
            context.screen.say(f"  skipped, it is one of the run's prompts: {probe.ask}", "yellow")
    return [(principle, probe) for principle, probe in probes if without_end(probe.ask) not in seen]


def _prompted(context: Context, name: str) -> list[EngineGroup]:
    """Return the run's base model with a constitution in its prompt."""
    model = ComparedModel(name, "constitution", None, context.identities()[None])
    return [EngineGroup([model], lambda: context.model.template, context.engine, owned=False)]


def _row_id(principle: Principle, probe: Probe) -> str:
    """Return the row's id. A message may be a probe of several principles, or a probe and a contrast of one."""
    return content_hash(STAGE, principle.id, probe.ask, probe.expect, probe.contrast, "")


def _checked(principle: Principle, probe: Probe, response: ModelResponse) -> ProbeAnswer:
    return ProbeAnswer(
        _row_id(principle, probe), principle.id, principle.name, probe.ask, probe.expect, probe.contrast,
        response.model.name, response.text, passes(probe, response.text),
    )  # fmt: skip


def totals(answers: Sequence[ProbeAnswer]) -> list[Total]:
    """Return each model's total, with its paired difference from the first model."""
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
