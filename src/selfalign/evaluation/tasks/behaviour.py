"""Check responses to scenarios and probes by rules: appropriate behaviour by group, run-on, loops, leaks.

Every model under comparison gets the same messages with the same seeds. The groups `live` and `private` are the two
failures that the paper reports of its own model (Sun et al. 2023, arXiv 2305.03047, appendix on limitations): an
indirect answer to a question about today's weather, and an invented biography of a private person.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from selfalign.constitution import Constitution, Probe
from selfalign.constitution.leaks import leaks_of
from selfalign.data.records import content_hash
from selfalign.data.scenarios import Ask, Group, Half, read_scenarios, shipped
from selfalign.evaluation.asking import Message, ModelResponse, OpenEndedTask
from selfalign.evaluation.benchmarks import Benchmark
from selfalign.evaluation.comparison import item_scores
from selfalign.evaluation.endpoints import BENCHMARK, COUNTED, counted, subset, with_holm
from selfalign.evaluation.records import BehaviourAnswer, ItemScore, Score
from selfalign.evaluation.results import ResultStore
from selfalign.evaluation.tasks import checks
from selfalign.evaluation.tasks.appropriate import RULES, Exchange, appropriate, evades
from selfalign.evaluation.tasks.probes import half_of
from selfalign.quality.response_filters import Leaks
from selfalign.quality.rouge import count_words, without_end
from selfalign.system.console import Screen

NAME = BENCHMARK
TEST = f"{NAME} (test)"
"""The label of the scenarios that are read for published runs only."""
PROBES = "probes"
APPROPRIATE = "appropriate"
EVADED = "evaded"
LEAKED_WORDS = 8
"""The number of consecutive words of an exemplar or a rule that count as a leak; so does a whole short sentence."""

# -- scenarios -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scenario:
    """A message and its group."""

    kind: Group | Literal["probe"]
    about: str
    ask: str
    twin: bool = False
    pair: str = ""
    """A hash that the scenario and its twin share."""
    answer: tuple[str, ...] = ()
    """Accepted texts or values."""
    probe: Probe | None = None
    position: int = 0
    """The index in the file, from 0; probes come after the file's scenarios."""

    @property
    def counts(self) -> bool:
        """Whether the scenario counts towards the primary endpoints."""
        return subset(self) in COUNTED

    @property
    def id(self) -> str:
        """The content hash of the scenario."""
        probe = self.probe and self.probe.model_dump()
        return content_hash("scenario", self.kind, self.about, self.ask, self.twin, self.answer, probe)


def load_scenarios(
    source: str | None, constitution: Constitution, limit: int | None = None, half: Half = "development"
) -> Benchmark:
    """Read the scenarios, and add the half of the constitution's probes that is reserved for measuring.

    Args:
        source: a YAML file; None for the shipped one.
        limit: the maximum number of scenarios; those that count towards the primary endpoints come first, then those
            with the smallest hashes.
        half: the half of the shipped scenarios; a user's file has none.

    Raises:
        UserError: the file does not have the format of scenarios.
    """
    document = read_scenarios(source) if source else shipped()
    items = [s for g, a in document.asks() if source or a.half == half for s in _scenarios(g, a, constitution)]
    probes = half_of(constitution.probes(), "report")
    items += [Scenario("probe", principle.name, probe.ask, probe=probe) for principle, probe in probes]
    items = [replace(item, position=n) for n, item in enumerate({i.id: i for i in items}.values())]
    if limit is not None:
        chosen = {i.id for i in sorted(items, key=lambda i: (not i.counts, i.id))[:limit]}
        items = [i for i in items if i.id in chosen]
    part = Path(source).stem if source else "test" if half == "test" else ""
    return Benchmark(NAME, source or "shipped", _digest(items), tuple(items), f"{NAME} ({part})" if part else NAME)


def _scenarios(group: Group, ask: Ask, constitution: Constitution) -> list[Scenario]:
    """Return the scenario and its twin, if it has one."""
    name, cutoff = constitution.assistant.name, constitution.assistant.cutoff
    answer = tuple(a.replace("{name}", name).replace("{cutoff}", cutoff) for a in ask.answer)
    scenarios = [Scenario(group, ask.about, ask.ask, False, ask.pair, answer)]
    return scenarios + ([Scenario(group, ask.about, ask.twin, True, ask.pair)] if ask.twin else [])


def _digest(items: Sequence[Scenario]) -> str:
    """Return a hash of the scenarios and of the version of the rules."""
    return content_hash(RULES, [i.id for i in items])


def split_seen(scenarios: Benchmark, seen: Set[str]) -> tuple[Benchmark, list[Scenario]]:
    """Return (the scenarios that are not among the run's prompts, the scenarios that are).

    Args:
        seen: the run's prompts, as `quality.rouge.without_end` returns them.
    """
    fresh = tuple(i for i in scenarios.items if without_end(i.ask) not in seen)
    known = [i for i in scenarios.items if without_end(i.ask) in seen]
    return replace(scenarios, items=fresh, sha256=_digest(fresh)), known


# -- the task ------------------------------------------------------------------------------------------------------


class Behaviour(OpenEndedTask[BehaviourAnswer]):
    """Scenarios, with responses that are checked by rules."""

    name = NAME
    record = BehaviourAnswer
    origin = None
    max_new_tokens = 160
    judged = False

    def messages(self, benchmark: Benchmark, screen: Screen) -> list[Message]:
        return [Message(s.id, s.ask) for s in benchmark.items]

    def rows(
        self, benchmark: Benchmark, responses: Sequence[ModelResponse], constitution: Constitution
    ) -> list[BehaviourAnswer]:
        leaks = leaks_of(constitution, LEAKED_WORDS)
        return [_row(benchmark, response, leaks) for response in responses]

    def scores(self, store: ResultStore) -> list[Score]:
        return behaviour_scores(store.read(NAME, BehaviourAnswer))


def _row(benchmark: Benchmark, response: ModelResponse, leaks: Leaks) -> BehaviourAnswer:
    scenario: Scenario = benchmark.items[response.position]
    model, text, probe = response.model, response.text, scenario.probe
    results = checks.apply_rules(scenario.ask, text, response.ended, response.own_end, leaks)
    shown = [rule for rule, is_shown in results.items() if is_shown]
    exchange = Exchange(scenario.ask, text, response.ended, scenario.answer)
    row = BehaviourAnswer(
        content_hash(scenario.id, model.prompt), benchmark.label, scenario.position, scenario.kind, scenario.about,
        scenario.ask, model.name, model.prompt, text, response.ended, shown,
    )  # fmt: skip
    if scenario.kind == "probe":
        return replace(row, passed=bool(probe and checks.passes(probe, text)), contrast=bool(probe and probe.contrast))
    suits = appropriate(scenario.kind, scenario.twin, exchange)
    return replace(row, twin=scenario.twin, pair=scenario.pair, appropriate=suits, evaded=evades(exchange))


_RULES_OF_ALL = (checks.EMPTY, checks.RUNS_ON, checks.ENDS, checks.LOOPS, checks.THOUGHTS, checks.LEAKED)


def behaviour_scores(rows: Sequence[BehaviourAnswer]) -> list[Score]:
    """Return the shares of appropriate responses (groups that count, then each group), the other rates and the probes.

    The twins of a group are a subset of their own. `evaded` is the share of twins that the model declines or claims
    not to know.
    """
    of_all, probes = [], []
    for row in rows:
        of_all.append(_item(row, row.benchmark, {**_rates(row), checks.LENGTH: float(count_words(row.answer))}))
        if row.passed is not None:
            part = "held back where it does not belong" if row.contrast else "shown where it belongs"
            passed = float(row.passed)
            values = {"passed": passed, f"passed: {part}": passed}
            probes.append(_item(row, PROBES + row.benchmark.removeprefix(NAME), values))
    return with_holm(item_scores(_suitability(rows))) + item_scores(of_all + probes) + _common_openings(rows)


def _suitability(rows: Sequence[BehaviourAnswer]) -> list[ItemScore]:
    """Return for each benchmark the items of the overall scores, then those of each group."""
    scenarios = [row for row in rows if row.appropriate is not None]
    items: list[ItemScore] = []
    for benchmark in dict.fromkeys(row.benchmark for row in scenarios):
        mine = [row for row in scenarios if row.benchmark == benchmark]
        counts = {(row.model, row.prompt, row.item): row for row in counted(mine)}
        for row in mine:
            item = counts.get((row.model, row.prompt, row.item))
            items.append(_suits(item or row, benchmark, item is not None, overall=True))
        items += [_suits(r, f"{benchmark}/{subset(r)}", True) for r in sorted(mine, key=lambda r: r.item)]
    return items


def _suits(row: BehaviourAnswer, benchmark: str, counts: bool, overall: bool = False) -> ItemScore:
    values = {APPROPRIATE: float(bool(row.appropriate))} if counts else {}
    values |= {EVADED: float(row.evaded)} if row.twin else {}
    baselines = {APPROPRIATE: constant_responses(row, overall)} if counts else {}
    return replace(_item(row, benchmark, values), baselines=baselines)


_CONSTANT = {
    "always answers": "There is a simple way to do it, and most people like it.",
    "always declines": "I am sorry, but I cannot help with that, because I do not know it.",
}
"""Baselines without a model: the same response to every message."""


def constant_responses(row: BehaviourAnswer, overall: bool) -> dict[str, float]:
    """Return baseline -> whether its response is appropriate here. None contains an accepted text or value.

    Args:
        overall: whether the score covers all groups that count, where a response to a twin only must not evade.
    """
    exchanges = {name: Exchange(row.ask, text) for name, text in _CONSTANT.items()}
    if overall and row.twin and subset(row) in COUNTED:
        return {name: float(not evades(exchange)) for name, exchange in exchanges.items()}
    return {n: float(appropriate(cast(Group, row.kind), row.twin, e)) for n, e in exchanges.items()}


def _common_openings(rows: Sequence[BehaviourAnswer]) -> list[Score]:
    """Return the fraction of each model's answers with its most common opening.

    They have no interval, because the opening was chosen from these answers.
    """
    columns: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        columns.setdefault((row.benchmark, row.model, row.prompt), []).append(row.answer)
    scores = []
    for (label, model, prompt), answers in columns.items():
        is_common = checks.common_opening(answers)
        fraction = sum(map(is_common, answers)) / len(answers)
        scores.append(Score(label, checks.SAME_OPENING, model, prompt, len(answers), fraction))
    return scores


def _item(row: BehaviourAnswer, benchmark: str, values: dict[str, float]) -> ItemScore:
    cluster = row.pair or str(row.item)
    return ItemScore(row.id, benchmark, row.item, subset(row), cluster, NAME, row.prompt, row.model, [], [], values)


def _rates(row: BehaviourAnswer) -> dict[str, float]:
    return {rule: float(rule in row.shows) for rule in _RULES_OF_ALL}
