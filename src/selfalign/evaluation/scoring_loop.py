"""The only loop that talks to a scorer: journal -> scorer -> journal, so that an interrupted evaluation goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from selfalign.data.prompt_text import Control
from selfalign.data.records import ItemScore, content_hash, to_json
from selfalign.evaluation import sanity
from selfalign.evaluation.benchmarks import Benchmark, Item, item_id
from selfalign.evaluation.entrants import Entrant, Team
from selfalign.evaluation.forms import Form, text
from selfalign.generation.loop import RawOutput
from selfalign.generation.scoring.base import Scored, Text
from selfalign.run.journal import Journal
from selfalign.run.ledger import RowOutcome
from selfalign.system.clock import Clock
from selfalign.system.console import Bar, Screen
from selfalign.system.signals import STOP

_VERSION = 1
"""Raise it where the meaning of a saved result changes."""
_AT_ONCE = 24
"""Items between two commits: about half a minute on two cores; on a cluster, so many for each worker."""
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Work:
    """An item to be scored in one form by one entrant."""

    key: str
    item: Item
    texts: tuple[Text, ...]


def score(
    journal: Journal, screen: Screen, benchmark: Benchmark, forms: Sequence[Form], teams: Sequence[Team]
) -> list[ItemScore]:
    """Score every item in every form with every entrant; what the journal has is not computed again.

    An item that is too long for a model is a drop; it is missing for this model.

    Raises:
        UserError: a scorer cannot be started, or is broken.
        Interrupted: a signal came; what was finished is kept.
    """
    clock, stage = Clock(), benchmark.name
    rows: list[ItemScore] = []
    fates: list[RowOutcome] = []
    pairs = [(team, entrant) for team in teams for entrant in team.entrants]
    session = journal.begin_session(stage, 1)
    asked = computed = 0
    with screen.bar(stage, len(pairs) * len(forms) * len(benchmark.items)) as bar:
        for team, entrant in pairs:
            for form in forms:
                works = [_work(item, form, team, entrant) for item in benchmark.items]
                found, tokens = _score_one(journal, bar, stage, works, team, entrant, (session, clock))
                asked, computed = asked + tokens[0], computed + tokens[1]
                for work in works:
                    logprobs = found[work.key]
                    fates.append(_fate(work, form, entrant, len(fates), logprobs is not None))
                    if logprobs is not None:
                        rows.append(_row(benchmark, form, entrant, work.item, logprobs))
    # Scorers stay as they are: the next benchmark goes on with them.
    journal.restart(stage)
    journal.decide(stage, fates)
    notes = {"benchmark": benchmark.source, "sha256": benchmark.sha256}
    journal.finish(stage, len(fates), clock.seconds(), notes)
    text = f"  {benchmark.label}: {len(benchmark.items)} items, {len(pairs)} models, {len(forms)} forms"
    if lost := len(fates) - len(rows):
        text += f"; {lost} too long for their model"
    if asked:
        text += f"; {computed:,} tokens computed of {asked:,} asked for, {clock.seconds():.0f} s"
    screen.say(text)
    return rows


def _work(item: Item, form: Form, team: Team, entrant: Entrant) -> Work:
    texts = tuple(text(team.template(), team.constitution, entrant.prompt, cell) for cell in form.cells(item))
    spelled = [[[isinstance(p, Control), str(p)] for p in context] + [answer] for context, answer in texts]
    return Work(content_hash("score", _VERSION, entrant.identity, spelled), item, texts)


def _score_one(
    journal: Journal,
    bar: Bar,
    stage: str,
    works: Sequence[Work],
    team: Team,
    entrant: Entrant,
    session: tuple[int, Clock],
) -> tuple[dict[str, list[Scored] | None], tuple[int, int]]:
    """({key: results, None for one too long}, (tokens asked, computed)) of one entrant and form."""
    raw = journal.saved(w.key for w in works)
    todo = list({w.key: w for w in works if w.key not in raw}.values())
    bar.add(len(works) - len(todo))
    asked = computed = 0
    if todo:
        scorer = team.scorer()
        journal.begin(stage, ((w.key, content_hash(item_id(w.item), entrant.name)) for w in todo))
        for part in _parts(todo, _AT_ONCE * getattr(scorer, "workers", 1)):
            STOP.check()
            before, clock = scorer.tokens, Clock()
            results = iter(scorer.loglikelihoods([t for w in part for t in w.texts], entrant.adapter))
            found = {w.key: [next(results) for _ in w.texts] for w in part}
            sanity.whole([s for f in found.values() for s in f if s], scorer.name, stage)
            tokens = (scorer.tokens[0] - before[0], scorer.tokens[1] - before[1])
            asked, computed = asked + tokens[0], computed + tokens[1]
            saved = _saved(found, tokens, clock.seconds())
            number, since = session
            journal.progress(saved=saved, session=(number, since.seconds(), since.seconds()))
            raw.update({key: text for key, text, *_ in saved})
            bar.add(len(part), tokens[0])
    return {w.key: _parsed(raw[w.key]) for w in works}, (asked, computed)


def _parts(works: Sequence[Work], size: int) -> Iterator[Sequence[Work]]:
    for start in range(0, len(works), size):
        yield works[start : start + size]


def _saved(found: dict[str, list[Scored | None]], tokens: tuple[int, int], seconds: float) -> list[RawOutput]:
    """Rows of the journal; the tokens and seconds of a part stand with its first one."""
    rows: list[RawOutput] = []
    asked, computed = tokens
    for key, results in found.items():
        value = None if None in results else [[round(v, _DIGITS) for v in s.logprobs] for s in results if s]
        rows.append(RawOutput(key, to_json(value), computed, max(0, asked - computed), 0, seconds))
        asked = computed = 0
        seconds = 0.0
    return rows


def _parsed(raw: str) -> list[Scored] | None:
    value = json.loads(raw)
    return None if value is None else [Scored(tuple(logprobs)) for logprobs in value]


def _fate(work: Work, form: Form, entrant: Entrant, position: int, scored: bool) -> RowOutcome:
    name = content_hash(_row_id(work.item, form, entrant), entrant.name)
    text = f"item {work.item.position} of {work.item.subset}, {form.name}, {entrant.name}"
    return (
        RowOutcome(name, position, "kept", "", text)
        if scored
        else RowOutcome(name, position, "dropped", "too long for the model", text)
    )


def _row_id(item: Item, form: Form, entrant: Entrant) -> str:
    """With the item's place: a benchmark may hold an item twice."""
    return content_hash(item_id(item), item.position, form.name, entrant.prompt)


def _row(benchmark: Benchmark, form: Form, entrant: Entrant, item: Item, found: Sequence[Scored]) -> ItemScore:
    return ItemScore(
        id=_row_id(item, form, entrant),
        benchmark=benchmark.label,
        item=item.position,
        subset=item.subset,
        cluster=content_hash(item.cluster),
        form=form.name,
        prompt=entrant.prompt,
        model=entrant.name,
        labels=[cell.label for cell in form.cells(item)],
        logprobs=[list(s.logprobs) for s in found],
        values=form.read(item, found),
    )
