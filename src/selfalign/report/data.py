"""What the report says about the data: how long and diverse, how often the same, what overlapped with a benchmark.

Files are read row by row; where a figure needs many texts at once, it is of an even sample, and says so.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from selfalign.data.records import Drop, Prompt, Response, stream_jsonl
from selfalign.errors import UserError
from selfalign.quality import diversity, duplicates
from selfalign.run.directory import RunDir

T = TypeVar("T")

_SHOWN = 5
"""Clusters that stand in the report, with at most `_ROWS` rows of each."""
_ROWS = 20
_LOOKED_AT = 50_000
"""Rows among which the report looks for copies; `selfalign duplicates` looks at all."""
_PAIRS = 20
_HITS = 100
"""Rows that overlapped with a benchmark and stand in report.json; all are in drops.jsonl."""
_VERBS, _OBJECTS = 20, 4
"""Verbs, and objects of each, of the sunburst, as in the paper's."""
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Where the bins of the histogram of lengths begin, in words; the last is open."""

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """A text of a run."""

    run: str
    stage: str
    id: str
    text: str


def sample(items: Iterable[T], most: int, seed: int = 0) -> tuple[list[T], int]:
    """At most `most` of the items, evenly drawn, in their order; and how many there were (Vitter's algorithm R)."""
    rng = random.Random(seed)  # noqa: S311
    kept: list[tuple[int, T]] = []
    number = 0
    for number, item in enumerate(items, 1):
        if number <= most:
            kept.append((number, item))
        elif (at := rng.randrange(number)) < most:
            kept[at] = (number, item)
    return [item for _, item in sorted(kept, key=lambda one: one[0])], number


def tag(run: RunDir) -> dict[str, tuple[str, Pair]] | None:
    """Prompt id -> (source, (verb, object)), of at most 20,000 prompts; None where textblob is not installed."""
    if diversity.verb_objects([]) is None:
        return None
    path = run.jsonl("prompts")
    some, _ = sample(stream_jsonl(path, Prompt), diversity.MOST) if path.exists() else ([], 0)
    return {p.id: (p.source, pair) for p in some if (pair := diversity.verb_object(p.instruction))}


def gather(run: RunDir, tagged: dict[str, tuple[str, Pair]] | None) -> dict[str, Any]:
    """Everything about the run's data, as plain values.

    Args:
        tagged: what `tag` found.
    """
    return {
        "diversity": _diversity(run, tagged),
        "lengths": _lengths(run),
        "duplicates": _duplicates(run),
        "contamination": _contamination(run),
    }


def rows(run: RunDir, kind: str) -> list[Row]:
    """The run's texts of that kind: `prompts`, or `answers` of stages 2 and 4."""
    return list(_rows(run, kind))


def _rows(run: RunDir, kind: str) -> Iterator[Row]:
    for name in {"prompts": ["prompts"], "answers": ["responses", "verbose_responses"]}[kind]:
        path = run.jsonl(name)
        if path.exists() and kind == "prompts":
            yield from (Row(run.path.name, name, p.id, p.message) for p in stream_jsonl(path, Prompt))
        elif path.exists():
            yield from (Row(run.path.name, name, r.id, r.response) for r in stream_jsonl(path, Response))


def clusters(found: list[Row], method: str, **options: float) -> list[list[Row]]:
    """The rows that say the same, largest cluster first. Raises as `duplicates.semantic`."""
    return [[found[i] for i in one] for one in duplicates.METHODS[method]([row.text for row in found], **options)]


def _diversity(run: RunDir, tagged: dict[str, tuple[str, Pair]] | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    path = run.jsonl("prompts")
    if path.exists():
        found["prompts"] = _described(p.instruction for p in stream_jsonl(path, Prompt))
        found["prompts"] |= _counted(run)
        if tagged is not None:
            found["prompts"]["verb_objects"] = verb_objects(tagged.values())
    for title, name in (("answers", "responses"), ("verbose", "verbose_responses")):
        if run.jsonl(name).exists():
            found[title] = _described(r.response for r in stream_jsonl(run.jsonl(name), Response))
    return found


def _described(texts: Iterable[str]) -> dict[str, Any]:
    some, number = sample(texts, diversity.MOST)
    return {**diversity.describe(some), "texts": number}


def _counted(run: RunDir) -> dict[str, Any]:
    sources: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    types: Counter[str] = Counter()
    for prompt in stream_jsonl(run.jsonl("prompts"), Prompt):
        sources[prompt.source] += 1
        splits[prompt.split] += 1
        if prompt.question_type:
            types[prompt.question_type] += 1
    known = {t.name: 0 for t in run.constitution.question_types} if types else {}
    return {"sources": dict(sources), "splits": dict(splits), "question_types": known | dict(types)}


def verb_objects(tagged: Iterable[tuple[str, Pair]]) -> dict[str, Any]:
    """The commonest pairs of verb and object, and the commonest verbs each with its commonest objects.

    Of Self-Instruct where it wrote any, as in the paper's picture; red-teaming's prompts are questions.

    Args:
        tagged: (source, (verb, object)) of each prompt.
    """
    everything = list(tagged)
    own = [pair for source, pair in everything if source == "self_instruct"]
    pairs = Counter(own or (pair for _, pair in everything))
    objects: dict[str, Counter[str]] = {}
    for (verb, noun), number in pairs.items():
        if noun:
            objects.setdefault(verb, Counter())[noun] += number
    shown = sorted(objects.items(), key=lambda one: (-one[1].total(), one[0]))[:_VERBS]
    return {
        "of": "self_instruct" if own else "all",
        "texts": pairs.total(),
        "different": len(pairs),
        "commonest": [[verb, noun, number] for (verb, noun), number in pairs.most_common(_PAIRS)],
        "verbs": [
            {"verb": verb, "objects": [[noun, n] for noun, n in counts.most_common(_OBJECTS)]} for verb, counts in shown
        ],
    }


def _lengths(run: RunDir) -> dict[str, Any]:
    found: dict[str, Any] = {}
    path = run.jsonl("prompts")
    if path.exists():
        found["prompts"] = lengths(p.message for p in stream_jsonl(path, Prompt))
    for title, name in (("answers", "responses"), ("verbose", "verbose_responses")):
        if run.jsonl(name).exists():
            found[title] = lengths(r.response for r in stream_jsonl(run.jsonl(name), Response))
    return found


def lengths(texts: Iterable[str]) -> dict[str, Any]:
    """Words of the texts: how many texts, tenth percentile, median, ninetieth, longest, and a histogram (`LENGTHS`)."""
    counts = Counter(len(text.split()) for text in texts)
    number = counts.total()
    histogram = [0] * len(LENGTHS)
    for words, n in counts.items():
        histogram[max(0, sum(words >= start for start in LENGTHS) - 1)] += n
    ordered = sorted(counts.items())

    def quantile(share: float) -> int:
        seen = 0
        for words, n in ordered:
            seen += n
            if seen >= share * number:
                return words
        return 0

    return {
        "texts": number,
        "low": quantile(0.1),
        "median": quantile(0.5),
        "high": quantile(0.9),
        "longest": ordered[-1][0] if ordered else 0,
        "histogram": histogram,
    }


def _duplicates(run: RunDir) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in ("prompts", "answers"):
        some, number = sample(_rows(run, kind), _LOOKED_AT)
        found[kind] = {"rows": number, "looked_at": len(some)}
        found[kind] |= {method: summary(clusters(some, method), _SHOWN, _ROWS) for method in ("exact", "near")}
    return found


def summary(found: list[list[Row]], shown: int | None = None, most: int | None = None) -> dict[str, Any]:
    """How many clusters and rows in them; the largest ones, all of them and in full unless limited."""
    return {
        "clusters": len(found),
        "rows": sum(map(len, found)),
        "largest": [{"size": len(one), "rows": [asdict(row) for row in one[:most]]} for one in found[:shown]],
    }


def _contamination(run: RunDir) -> dict[str, Any]:
    overlaps: Counter[str] = Counter()
    for stage in run.journal.stages():
        overlaps.update({r: n for r, n in run.journal.counts(stage).dropped.items() if r.startswith("overlaps with ")})
    hits = (_hit(d) for d in run.journal.drops() if d.reason in overlaps) if overlaps else iter(())
    return {
        "against": ["probes", *(Path(name).name for name in run.recipe.evaluate.benchmarks)],
        "number": overlaps.total(),
        "hits": list(islice(hits, _HITS)),
    }


def _hit(drop: Drop) -> dict[str, str]:
    text, _, item = drop.text.rpartition("\n~ ")
    return {"stage": drop.stage, "reason": drop.reason, "text": text, "item": item}


def across(runs: Sequence[RunDir], kind: str, method: str, **options: float) -> list[list[Row]]:
    """Clusters of rows of several runs, which are called by their paths.

    Raises:
        UserError: a run has no such rows, or see `duplicates.semantic`.
    """
    found: list[Row] = []
    for run in runs:
        texts = [replace(row, run=str(run.path)) for row in _rows(run, kind)]
        if not texts:
            raise UserError(f"{run.path} has no {kind} yet")
        found += texts
    return clusters(found, method, **options)
