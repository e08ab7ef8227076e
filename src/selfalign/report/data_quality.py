"""Measure the data of a run: diversity, lengths, duplicates, and overlap with benchmarks.

Files are read row by row. Measures that need many texts at once use an even sample, and record its size.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any, TypeVar

from selfalign.data.records import Prompt, Response, stream_jsonl
from selfalign.errors import UserError
from selfalign.quality import diversity, duplicates
from selfalign.quality.rouge import count_words
from selfalign.run.directory import RunDir

T = TypeVar("T")

_MAX_CLUSTERS, _MAX_CLUSTER_ROWS = 5, 20
"""Largest clusters in the report, and rows of each."""
_DUPLICATE_SAMPLE = 50_000
"""Rows that the report searches for duplicates; `selfalign duplicates` searches all."""
_MAX_PAIRS = 20
_MAX_OVERLAPS = 100
"""Overlaps with benchmarks in report.json; drops.jsonl has all."""
_VERBS, _OBJECTS = 20, 4
"""Verbs, and objects of each, of the sunburst, as in the paper's figure."""
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Lower edges of the bins of the histogram of lengths, in words; the last bin is open."""
_RESPONSE_FILES = {"answers": "responses", "verbose": "verbose_responses"}
"""Name in the report -> the run's file."""

VerbObject = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """A text of a run."""

    run: str
    stage: str
    id: str
    text: str


def sample(items: Iterable[T], most: int, seed: int = 0) -> tuple[list[T], int]:
    """Return an even sample of at most `most` items in their order, and the number of all (Vitter's algorithm R)."""
    rng = random.Random(seed)  # noqa: S311
    reservoir: list[tuple[int, T]] = []
    number = 0
    for number, item in enumerate(items, 1):
        if number <= most:
            reservoir.append((number, item))
        elif (at := rng.randrange(number)) < most:
            reservoir[at] = (number, item)
    return [item for _, item in sorted(reservoir, key=lambda entry: entry[0])], number


def tag_verbs(run: RunDir) -> dict[str, tuple[str, VerbObject]] | None:
    """Return prompt id -> (source, (verb, object)) of a sample of the prompts; None if textblob is not installed."""
    if not diversity.can_tag():
        return None
    path = run.jsonl("prompts")
    prompts, _ = sample(stream_jsonl(path, Prompt), diversity.MAX_TEXTS) if path.exists() else ([], 0)
    return {p.id: (p.source, pair) for p in prompts if (pair := diversity.verb_object(p.instruction))}


def gather(run: RunDir, tagged: dict[str, tuple[str, VerbObject]] | None) -> dict[str, Any]:
    """Return diversity, lengths, duplicates and contamination of the report.

    Args:
        tagged: the result of `tag_verbs`.
    """
    described: dict[str, Any] = {}
    word_counts: dict[str, Any] = {}
    path = run.jsonl("prompts")
    if path.exists():
        described["prompts"] = _describe(p.instruction for p in stream_jsonl(path, Prompt)) | _count_prompts(run)
        word_counts["prompts"] = lengths(p.message for p in stream_jsonl(path, Prompt))
        if tagged is not None:
            described["prompts"]["verb_objects"] = verb_objects(tagged.values())
    for name, file in _RESPONSE_FILES.items():
        if (path := run.jsonl(file)).exists():
            described[name] = _describe(r.response for r in stream_jsonl(path, Response))
            word_counts[name] = lengths(r.response for r in stream_jsonl(path, Response))
    return {
        "diversity": described,
        "lengths": word_counts,
        "duplicates": _duplicates(run),
        "contamination": _contamination(run),
    }


def _describe(texts: Iterable[str]) -> dict[str, Any]:
    sampled, number = sample(texts, diversity.MAX_TEXTS)
    return {**diversity.describe(sampled), "texts": number}


def _count_prompts(run: RunDir) -> dict[str, Any]:
    sources, splits, types = Counter[str](), Counter[str](), Counter[str]()
    for prompt in stream_jsonl(run.jsonl("prompts"), Prompt):
        sources[prompt.source] += 1
        splits[prompt.split] += 1
        types[prompt.question_type] += 1
    del types[""]  # prompts without a type
    known = {t.name: 0 for t in run.constitution.question_types} if types else {}
    return {"sources": dict(sources), "splits": dict(splits), "question_types": known | dict(types)}


def verb_objects(tagged: Iterable[tuple[str, VerbObject]]) -> dict[str, Any]:
    """Return the most frequent pairs of verb and object, and the most frequent verbs with their objects.

    Only Self-Instruct's prompts count if there are any, as in the paper's figure: red-team prompts are questions.

    Args:
        tagged: (source, (verb, object)) of each prompt.
    """
    entries = list(tagged)
    self_instruct = [pair for source, pair in entries if source == "self_instruct"]
    pairs = Counter(self_instruct or (pair for _, pair in entries))
    objects: dict[str, Counter[str]] = {}
    for (verb, noun), number in pairs.items():
        if noun:
            objects.setdefault(verb, Counter())[noun] += number
    top = sorted(objects.items(), key=lambda entry: (-entry[1].total(), entry[0]))[:_VERBS]
    return {
        "of": "self_instruct" if self_instruct else "all",
        "texts": pairs.total(),
        "different": len(pairs),
        "commonest": [[verb, noun, number] for (verb, noun), number in pairs.most_common(_MAX_PAIRS)],
        "verbs": [
            {"verb": verb, "objects": [[noun, n] for noun, n in counts.most_common(_OBJECTS)]} for verb, counts in top
        ],
    }


def lengths(texts: Iterable[str]) -> dict[str, Any]:
    """Return number, 10th percentile, median, 90th percentile, maximum and histogram (`LENGTHS`) of words per text."""
    counts = sorted(map(count_words, texts))
    bins = Counter(max(0, bisect(LENGTHS, words) - 1) for words in counts)
    low, median, high = (counts[ceil(fraction * len(counts)) - 1] if counts else 0 for fraction in (0.1, 0.5, 0.9))
    return {
        "texts": len(counts),
        "low": low,
        "median": median,
        "high": high,
        "longest": counts[-1] if counts else 0,
        "histogram": [bins[at] for at in range(len(LENGTHS))],
    }


# -- duplicates ------------------------------------------------------------------------------------------------------


def rows(run: RunDir, kind: str) -> Iterator[Row]:
    """Yield the run's texts of that kind: `prompts`, or `answers` (the responses of stages 2 and 4)."""
    files = {"prompts": ["prompts"], "answers": list(_RESPONSE_FILES.values())}[kind]
    for name in files:
        path = run.jsonl(name)
        if path.exists() and kind == "prompts":
            yield from (Row(run.path.name, name, p.id, p.message) for p in stream_jsonl(path, Prompt))
        elif path.exists():
            yield from (Row(run.path.name, name, r.id, r.response) for r in stream_jsonl(path, Response))


def clusters(texts: list[Row], method: str, **options: float) -> list[list[Row]]:
    """Return the clusters of duplicate rows, largest first. Raises as `duplicates.semantic`."""
    indices = duplicates.METHODS[method]([row.text for row in texts], **options)
    return [[texts[i] for i in cluster] for cluster in indices]


def clusters_across(runs: Sequence[RunDir], kind: str, method: str, **options: float) -> list[list[Row]]:
    """Return the clusters of duplicate rows of several runs; each row's run is its path.

    Raises:
        UserError: a run has no such rows, or as `duplicates.semantic`.
    """
    texts: list[Row] = []
    for run in runs:
        of_run = [replace(row, run=str(run.path)) for row in rows(run, kind)]
        if not of_run:
            raise UserError(f"{run.path} has no {kind} yet")
        texts += of_run
    return clusters(texts, method, **options)


def summary(groups: list[list[Row]], most: int | None = None, most_rows: int | None = None) -> dict[str, Any]:
    """Return the numbers of clusters and rows, and the largest clusters; all of them unless limited."""
    return {
        "clusters": len(groups),
        "rows": sum(map(len, groups)),
        "largest": [{"size": len(c), "rows": [asdict(row) for row in c[:most_rows]]} for c in groups[:most]],
    }


def _duplicates(run: RunDir) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for kind in ("prompts", "answers"):
        sampled, number = sample(rows(run, kind), _DUPLICATE_SAMPLE)
        result[kind] = {"rows": number, "looked_at": len(sampled)}
        for method in ("exact", "near"):
            result[kind][method] = summary(clusters(sampled, method), _MAX_CLUSTERS, _MAX_CLUSTER_ROWS)
    return result


def _contamination(run: RunDir) -> dict[str, Any]:
    overlaps: Counter[str] = Counter()
    for stage in run.journal.stages():
        overlaps.update({r: n for r, n in run.journal.counts(stage).dropped.items() if r.startswith("overlaps with ")})
    hits = []
    for drop in islice((d for d in run.journal.drops() if d.reason in overlaps) if overlaps else (), _MAX_OVERLAPS):
        text, _, item = drop.text.rpartition("\n~ ")
        hits.append({"stage": drop.stage, "reason": drop.reason, "text": text, "item": item})
    return {
        "against": ["probes", "scenarios", *(Path(name).name for name in run.recipe.evaluate.benchmarks)],
        "number": overlaps.total(),
        "hits": hits,
    }
