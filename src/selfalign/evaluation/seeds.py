"""Compare the stored results of several runs of one recipe with different seeds.

A single run shows how much its items vary, but not how much another seed would change the models. The primary
endpoints get intervals and p values from a bootstrap that resamples runs and then the items within them, with Holm's
correction. All other measures are exploratory: they get the value of each run and the mean, without an interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from selfalign.data.records import read_jsonl
from selfalign.errors import UserError
from selfalign.evaluation.comparison import MIN_CLUSTERS, rivals
from selfalign.evaluation.endpoints import MODEL, RIVALS, counted, is_primary, with_holm
from selfalign.evaluation.records import BehaviourAnswer, Score
from selfalign.evaluation.results import MODELS_KEY, read_scores, read_usage_log
from selfalign.evaluation.statistics import hierarchical_mean
from selfalign.evaluation.tasks.behaviour import NAME
from selfalign.run.directory import RunDir
from selfalign.run.recipe import differences

_MAY_DIFFER = (
    "model:", "seed:", "stages:", "constitution:", "max_failed:", "storage:", "executor.", "engine.", "prompts.file:",
    "evaluate.tasks:", "evaluate.scenarios:", "evaluate.benchmarks:",
)  # fmt: skip
"""Settings that may differ between the runs: they do not change the results, or are compared separately."""


@dataclass(frozen=True, slots=True)
class RunResults:
    """The stored results of a run."""

    name: str
    seed: int
    recipe: dict[str, Any]
    constitution: str
    """The digest of the constitution."""
    usage: dict[str, Any]
    """The usage log of benchmarks."""
    scores: Sequence[Score]
    answers: Sequence[BehaviourAnswer]


@dataclass(frozen=True, slots=True)
class SeedScore(Score):
    """A measure over several runs: `n` is the sum of the runs' n, `value` and `difference` are means over the runs."""

    values: tuple[float | None, ...] = ()
    """The value of each run."""
    differences: tuple[float | None, ...] = ()
    """The paired difference of each run."""


def read(run: RunDir) -> RunResults:
    """Return the stored results of a run.

    Raises:
        UserError: the run has no results of the behaviour task, or a file is invalid.
    """
    file = run.evaluation / f"{NAME}.jsonl"
    if not file.exists():
        raise UserError(f"{run.path} has no results to compare: run {_command(str(run.path))}")
    return RunResults(
        str(run.path),
        run.recipe.seed,
        run.recipe.model_dump(mode="json"),
        run.constitution.digest(),
        read_usage_log(run.evaluation),
        read_scores(run.scores),
        read_jsonl(file, BehaviourAnswer),
    )


def compare(runs: Sequence[RunResults]) -> list[SeedScore]:
    """Return the scores that all runs have; those with a value for `holm` are the primary endpoints.

    Raises:
        UserError: the runs cannot be compared; the error names the difference.
    """
    for other in runs[1:]:
        check_comparable(runs[0], other)
    if len(runs) != len({run.seed for run in runs}):
        seeds = ", ".join(str(run.seed) for run in runs)
        raise UserError(f"two runs have the same seed ({seeds}): run one of them again with another seed")
    tables = [{(s.benchmark, s.measure, s.model, s.prompt, s.vs): s for s in run.scores} for run in runs]
    scores = [_merged([t[key] for t in tables]) for key in tables[0] if all(key in t for t in tables)]
    scores = with_holm([_with_interval(s, runs) if is_primary(s) else s for s in scores])
    for label in (label for label in _labels(runs[0]) if all(label in _labels(run) for run in runs)):
        compared = {_rival(s) for s in scores if s.benchmark == label and is_primary(s)}
        # `quick` never asks the prompted base. A rival that no run has is no endpoint of these runs.
        known = {_rival(s) for table in tables for s in table.values() if s.benchmark == label and is_primary(s)}
        if missing := [rival for rival in RIVALS if rival in known | {RIVALS[0]} and rival not in compared]:
            raise UserError(f"{label}: not every run compares {MODEL} with {missing[0]}: run {_command('RUN')}")
    return scores


def skipped(scores: Sequence[Score], runs: Sequence[RunResults]) -> list[str]:
    """Return the benchmarks that some runs have, but not all."""
    kept = {s.benchmark for s in scores}
    return [b for b in dict.fromkeys(s.benchmark for r in runs for s in r.scores) if b not in kept and "/" not in b]


def _rival(score: Score) -> str:
    """Return the model that a score is compared with, without its prompt."""
    return (score.vs or "").partition(" (")[0]


def _command(run: str) -> str:
    return f"`selfalign evaluate {run} --benchmarks {NAME}`"


# -- comparability -------------------------------------------------------------------------------------------------


def check_comparable(first: RunResults, other: RunResults) -> None:
    """Raise a UserError that names the first difference which makes a comparison of the runs meaningless."""
    if difference := next(_differences(first, other), None):
        raise UserError(f"{first.name} and {other.name} cannot be compared: {difference}")


def _differences(first: RunResults, other: RunResults) -> Iterator[str]:
    for change in differences(first.recipe, other.recipe):
        if not change.startswith(_MAY_DIFFER):
            yield f"the recipe differs in {change}"
    if first.constitution != other.constitution:
        yield "the constitution differs"
    labels = [_labels(run) for run in (first, other)]
    if not set(labels[0]) & set(labels[1]):
        yield f"the scenarios differ: {', '.join(labels[0])} -> {', '.join(labels[1])}"
    for label in (label for label in first.usage if label in other.usage):
        bases = [_base(run, label) for run in (first, other)]
        if bases[0] != bases[1]:
            yield f"the base model differs: {bases[0]} -> {bases[1]}"
        messages = [{(r.kind, r.twin, r.ask) for r in run.answers if r.benchmark == label} for run in (first, other)]
        if messages[0] != messages[1]:
            only = [len(messages[0] - messages[1]), len(messages[1] - messages[0])]
            yield f"the scenarios of {label} differ: {only[0]} are only in the first, {only[1]} only in the second"
        hashes = [run.usage[label]["sha256"] for run in (first, other)]
        if hashes[0] != hashes[1]:
            what = "rules version differs" if messages[0] else "items differ"
            yield f"{label}: the {what}: {hashes[0]} -> {hashes[1]}"


def _base(run: RunResults, label: str) -> str:
    """Return the identity of the base's weights that answered a benchmark."""
    weights = run.usage[label][MODELS_KEY]
    return next((identity for column, identity in weights.items() if column.startswith("base|")), "not measured")


def _labels(run: RunResults) -> list[str]:
    """Return the labels of the halves and files of scenarios that a run was asked."""
    return list(dict.fromkeys(row.benchmark for row in run.answers))


# -- scores --------------------------------------------------------------------------------------------------------


def _merged(scores: Sequence[Score]) -> SeedScore:
    """Merge the scores of the runs into one, without an interval."""
    first, values, gaps = scores[0], tuple(s.value for s in scores), tuple(s.difference for s in scores)
    key = (first.benchmark, first.measure, first.model, first.prompt, sum(s.n for s in scores))
    return SeedScore(*key, _mean(values), vs=first.vs, difference=_mean(gaps), values=values, differences=gaps)


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None if a run has no value."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _with_interval(score: SeedScore, runs: Sequence[RunResults]) -> SeedScore:
    """Return a primary endpoint with its differences, interval and p value from the responses of the runs."""
    pairs = [_pairs(run.answers, score) for run in runs]
    gaps = [[float(bool(mine.appropriate)) - float(bool(theirs.appropriate)) for mine, theirs in p] for p in pairs]
    clusters = [[mine.pair or str(mine.item) for mine, _ in p] for p in pairs]
    if any(len(set(c)) < MIN_CLUSTERS for c in clusters):
        return score
    interval, p = hierarchical_mean(gaps, clusters)
    return replace(
        score,
        difference=interval.value,
        difference_low=interval.low,
        difference_high=interval.high,
        p=p,
        differences=tuple(sum(g) / len(g) for g in gaps),
    )


def _pairs(answers: Sequence[BehaviourAnswer], score: Score) -> list[tuple[BehaviourAnswer, BehaviourAnswer]]:
    """Return the responses of the score's model and its rival to the same scenarios."""
    columns: dict[tuple[str, str], dict[int, BehaviourAnswer]] = {}
    for row in counted(answers):
        if row.benchmark == score.benchmark:
            columns.setdefault((row.model, row.prompt), {})[row.item] = row
    column = (score.model, score.prompt)
    mine = columns.get(column, {})
    theirs = next((columns[c] for c in rivals(column, list(columns)) if c[0] == _rival(score)), {}) if columns else {}
    return [(mine[i], theirs[i]) for i in sorted(mine) if i in theirs]


def as_dict(scores: Sequence[SeedScore], runs: Sequence[RunResults]) -> dict[str, Any]:
    """Return the comparison in the form in which it is stored."""
    return {
        "format": 1,
        "runs": [{"run": run.name, "seed": run.seed} for run in runs],
        "primary": [asdict(s) for s in scores if is_primary(s)],
        "exploratory": [asdict(s) for s in scores if not is_primary(s)],
    }
