"""Score a benchmark's items by log-likelihood, through the journal: an interrupted evaluation resumes.

A scorer may be broken without any error: a server that has no log-probabilities of prompts may return 0.0 for each of
them, which puts every accuracy at chance (ggml-org/llama.cpp, issue 27174). Each scorer is therefore checked on trivial
items first, and all its numbers are checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selfalign.constitution import Constitution
from selfalign.data.prompt_text import BOS, Control
from selfalign.data.records import content_hash, to_json
from selfalign.errors import UserError
from selfalign.evaluation import comparison
from selfalign.evaluation.benchmarks import Benchmark, Item, Origin, item_id
from selfalign.evaluation.models import ComparedModel, ScorerGroup
from selfalign.evaluation.prompting import Form, cell_text
from selfalign.evaluation.records import ItemScore, Score
from selfalign.evaluation.results import ResultStore, Task
from selfalign.generation.loop import RawOutput
from selfalign.generation.scoring.base import Scored, Scorer, Text
from selfalign.run.journal import Journal
from selfalign.run.ledger import RowOutcome
from selfalign.system.clock import Clock
from selfalign.system.console import Screen
from selfalign.system.signals import STOP

_VERSION = 1
"""Raise it if the meaning of a saved result changes."""
_BATCH = 24
"""Items of each worker between two commits: about half a minute on two cores."""
_DIGITS = 6


class ScoredTask(Task[ItemScore]):
    """A task whose items are scored by the log-likelihoods of texts, in one or more forms."""

    record = ItemScore

    def __init__(self, origin: Origin, forms: tuple[Form, ...], by_subset: bool = False) -> None:
        """Create the task of a benchmark; `by_subset` adds the scores of each subset."""
        self.name, self.origin = origin.name, origin
        self.forms, self.by_subset = forms, by_subset

    def scores(self, store: ResultStore) -> list[Score]:
        return comparison.item_scores(store.read(self.name, ItemScore), self.by_subset)


@dataclass(frozen=True, slots=True)
class Work:
    """Texts that a model scores together, and whose results the journal stores together."""

    key: str
    row_id: str
    texts: tuple[Text, ...]


def score(
    task: ScoredTask,
    benchmark: Benchmark,
    groups: Sequence[ScorerGroup],
    constitution: Constitution,
    journal: Journal,
    screen: Screen,
) -> list[ItemScore]:
    """Score every item in every form with every model. Results in the journal are not computed again.

    An item that is too long for a model is dropped for this model.

    Raises:
        UserError: a scorer cannot be started, or is broken.
        Interrupted: a signal arrived; finished results are saved.
    """
    clock = Clock()
    rows: list[ItemScore] = []
    outcomes: list[RowOutcome] = []
    pairs = [(group, model) for group in groups for model in group.models]
    session = journal.begin_session(task.name, 1)
    requested = computed = 0
    with screen.bar(task.name, len(pairs) * len(task.forms) * len(benchmark.items)) as bar:
        for group, model in pairs:
            for form in task.forms:
                works = [_item_work(item, form, group, model, constitution) for item in benchmark.items]
                results, tokens = score_works(journal, bar.add, task.name, works, group, model, (session, clock))
                requested, computed = requested + tokens[0], computed + tokens[1]
                for item, work in zip(benchmark.items, works, strict=True):
                    result = results[work.key]
                    outcomes.append(_outcome(item, form, model, len(outcomes), result is not None))
                    if result is not None:
                        rows.append(_row(benchmark, form, model, item, result))
    # The scorers stay open for the next benchmark.
    journal.restart(task.name)
    journal.record(task.name, outcomes)
    notes = {"benchmark": benchmark.source, "sha256": benchmark.sha256}
    journal.finish(task.name, len(outcomes), clock.seconds(), notes)
    text = f"  {benchmark.label}: {len(benchmark.items)} items, {len(pairs)} models, {len(task.forms)} forms"
    if dropped := len(outcomes) - len(rows):
        text += f"; {dropped} too long for their model"
    if requested:
        text += f"; {computed:,} tokens computed of {requested:,} requested, {clock.seconds():.0f} s"
    screen.say(text)
    return rows


def _item_work(item: Item, form: Form, group: ScorerGroup, model: ComparedModel, constitution: Constitution) -> Work:
    template = group.template()
    texts = tuple(cell_text(template, constitution, model.prompt, cell) for cell in form.cells(item))
    return work(content_hash(item_id(item), model.name), model, texts)


def work(row_id: str, model: ComparedModel, texts: tuple[Text, ...]) -> Work:
    """Return the work of scoring these texts by the model, with its key in the journal."""
    spelled = [[[isinstance(p, Control), str(p)] for p in context] + [answer] for context, answer in texts]
    return Work(content_hash("score", _VERSION, model.identity, spelled), row_id, texts)


def score_works(
    journal: Journal,
    on_done: Callable[[int, int], None],
    stage: str,
    works: Sequence[Work],
    group: ScorerGroup,
    model: ComparedModel,
    session: tuple[int, Clock],
) -> tuple[dict[str, list[Scored] | None], tuple[int, int]]:
    """Score the works that the journal has no results of, and save them.

    Args:
        on_done: receives (works, tokens) as they are scored.
        stage: the stage of the works in the journal.
        session: the journal's session and the time since it began.

    Returns:
        ({key: results, None if too long}, (tokens requested, tokens computed)).
    """
    raw = journal.saved(w.key for w in works)
    todo = list({w.key: w for w in works if w.key not in raw}.values())
    on_done(len(works) - len(todo), 0)
    requested = computed = 0
    if todo:
        scorer = _checked_scorer(group)
        journal.begin(stage, ((w.key, w.row_id) for w in todo))
        size = _BATCH * getattr(scorer, "workers", 1)
        for part in (todo[start : start + size] for start in range(0, len(todo), size)):
            STOP.check()
            before, clock = scorer.tokens, Clock()
            results = iter(scorer.loglikelihoods([t for w in part for t in w.texts], model.adapter))
            scored = {w.key: [next(results) for _ in w.texts] for w in part}
            check_numbers([s for scores in scored.values() for s in scores if s], scorer.name, stage)
            tokens = (scorer.tokens[0] - before[0], scorer.tokens[1] - before[1])
            requested, computed = requested + tokens[0], computed + tokens[1]
            saved = _raw_outputs(scored, tokens, clock.seconds())
            number, since = session
            journal.progress(saved=saved, session=(number, since.seconds(), since.seconds()))
            raw.update({key: text for key, text, *_ in saved})
            on_done(len(part), tokens[0])
    return {w.key: parse_scores(raw[w.key]) for w in works}, (requested, computed)


def _checked_scorer(group: ScorerGroup) -> Scorer:
    """Return the group's scorer, which is checked when it starts."""
    if group.running:
        return group.backend()
    scorer = group.backend()
    check_scorer(scorer)
    return scorer


def _raw_outputs(scored: dict[str, list[Scored | None]], tokens: tuple[int, int], seconds: float) -> list[RawOutput]:
    """Return the rows of the journal. The first one holds the tokens and seconds of all."""
    rows: list[RawOutput] = []
    requested, computed = tokens
    for key, results in scored.items():
        value = None if None in results else [[round(v, _DIGITS) for v in s.logprobs] for s in results if s]
        rows.append(RawOutput(key, to_json(value), computed, max(0, requested - computed), 0, seconds))
        requested = computed = 0
        seconds = 0.0
    return rows


def parse_scores(raw: str) -> list[Scored] | None:
    """Parse the results of a work as the journal stores them; None if a text is too long for the model."""
    value = json.loads(raw)
    return None if value is None else [Scored(tuple(logprobs)) for logprobs in value]


def _outcome(item: Item, form: Form, model: ComparedModel, position: int, scored: bool) -> RowOutcome:
    name = content_hash(_row_id(item, form, model), model.name)
    text = f"item {item.position} of {item.subset}, {form.name}, {model.name}"
    if scored:
        return RowOutcome(name, position, "kept", "", text)
    return RowOutcome(name, position, "dropped", "too long for the model", text)


def _row_id(item: Item, form: Form, model: ComparedModel) -> str:
    """Return the row's id. It includes the position: a benchmark may hold an item twice."""
    return content_hash(item_id(item), item.position, form.name, model.prompt)


def _row(benchmark: Benchmark, form: Form, model: ComparedModel, item: Item, results: Sequence[Scored]) -> ItemScore:
    return ItemScore(
        id=_row_id(item, form, model),
        benchmark=benchmark.label,
        item=item.position,
        subset=item.subset,
        cluster=content_hash(item.cluster),
        form=form.name,
        prompt=model.prompt,
        model=model.name,
        labels=[cell.label for cell in form.cells(item)],
        logprobs=[list(s.logprobs) for s in results],
        values=form.read(item, results),
        baselines=form.baselines(item),
    )


# -- checks of a scorer --------------------------------------------------------------------------------------------

_TRIVIAL = (
    ("One, two, three, four, five, six,", " seven", " carpet"),
    ("Monday, Tuesday, Wednesday, Thursday,", " Friday", " potato"),
    ("red blue red blue red blue red blue red", " blue", " window"),
    ("A, B, C, D, E, F,", " G", " Q"),
    ("January, February, March, April,", " May", " shoe"),
    ("The cat sat on the mat. The cat sat on the mat. The cat sat on the", " mat", " justice"),
    ("apple pear apple pear apple pear apple", " pear", " seven"),
    ("10, 20, 30, 40, 50,", " 60", " Tuesday"),
    ("Hello, hello, hello, hello, hello,", " hello", " tax"),
    ("The capital of France is", " Paris", " seventeen"),
    ("He opened the door with the key, and then he closed the", " door", " however"),
    ("up down up down up down up down up", " down", " lemon"),
)
"""(beginning, likely continuation, unlikely continuation), easy for any language model trained on English."""
_NEEDED = 10
"""The fewest right answers of the twelve. Random guesses reach it in 2 % of trials."""


def check_scorer(scorer: Scorer, adapter: str | None = None) -> None:
    """Check that a scorer is right on trivial items.

    Raises:
        UserError: it is at chance, or its numbers are not log-probabilities.
    """
    texts: list[Text] = [((BOS, begin), end) for begin, likely, unlikely in _TRIVIAL for end in (likely, unlikely)]
    results = scorer.loglikelihoods(texts, adapter)
    if any(s is None for s in results):
        raise UserError(f"the scorer ({scorer.name}) rejects texts of twenty tokens: nothing can be scored with it")
    scored = [s for s in results if s is not None]
    check_numbers(scored, scorer.name, "trivial items")
    right = sum(likely.total > unlikely.total for likely, unlikely in zip(scored[0::2], scored[1::2], strict=True))
    if right < _NEEDED:
        raise UserError(
            f"the scorer ({scorer.name}) is at chance on trivial items: {right} of {len(_TRIVIAL)} are right. Any "
            "language model gets nearly all. The model is not trained, or its tokenizer or the scorer is broken"
        )


def check_numbers(results: Sequence[Scored], scorer: str, what: str) -> None:
    """Check that a scorer's numbers can be log-probabilities.

    Raises:
        UserError: they are all zero, all equal, above zero or not finite.
    """
    values = [v for s in results for v in s.logprobs]
    wrong = next((v for v in values if not math.isfinite(v) or v > 1e-6), None)
    if wrong is not None:
        raise UserError(f"the scorer ({scorer}) gave {wrong} as a log-probability on {what}: it is broken")
    if len(values) > 1 and max(values) == min(values):
        how = "0 for every token" if values[0] == 0 else f"{values[0]:.4f} for every token"
        raise UserError(
            f"the scorer ({scorer}) gave {how} on {what}: it gives no log-probabilities of prompts, or is broken"
        )
