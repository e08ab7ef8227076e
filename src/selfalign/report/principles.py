"""Count the principles that internal thoughts cite, by source, question type and verb, with an example of each.

The paper has the same figures (SELF-ALIGN, arXiv 2305.03047, section 4 and appendix Q).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from selfalign.data.records import Response, stream_jsonl
from selfalign.quality.rouge import count_words
from selfalign.report.data_quality import VerbObject
from selfalign.run.directory import RunDir

_VERBS = 20
_WORDS = range(15, 91)
"""Preferred lengths of examples, in words."""
_CANDIDATES = 8


def gather(run: RunDir, tagged: dict[str, tuple[str, VerbObject]] | None) -> dict[str, Any]:
    """Return principles, principle_use and examples of the report, from stage 2's responses.

    Args:
        tagged: the result of `data_quality.tag_verbs`.
    """
    sources, types, verbs, examples = _Citations(), _Citations(), _Citations(), _Examples()
    hints = {t.name: frozenset(t.hints) for t in run.constitution.question_types if t.hints}
    hinted: list[tuple[frozenset[int], frozenset[int]]] = []
    path = run.jsonl("responses")
    for position, row in enumerate(stream_jsonl(path, Response) if path.exists() else ()):
        sources.add(row.source, row.principles)
        types.add(row.question_type, row.principles)
        verbs.add(tagged[row.id][1][0] if tagged and row.id in tagged else "", row.principles)
        examples.add(position, row)
        if row.question_type in hints:
            hinted.append((hints[row.question_type], frozenset(row.principles)))
    total: Counter[int] = sum(sources.cited.values(), Counter())
    principles = [
        {
            "id": p.id,
            "name": p.name,
            "used": total[p.id],
            "by_source": {source: counts[p.id] for source, counts in sources.cited.items()},
        }
        for p in run.constitution.principles
    ]
    order = [t.name for t in run.constitution.question_types]
    by_order = sorted(types.rows, key=lambda name: order.index(name) if name in order else len(order))
    by_number = sorted(verbs.rows, key=lambda name: (-verbs.rows[name], name))[:_VERBS]
    return {
        "principles": principles,
        "principle_use": {
            "answers": sources.rows.total(),
            "citations": total.total(),
            "hints": hint_agreement(hinted),
            "by_source": dict(sources.rows),
            "question_types": types.counts(by_order),
            "verbs": verbs.counts(by_number),
        },
        "examples": [
            {"principle": p.id, "name": p.name, **example}
            for p in run.constitution.principles
            if (example := examples.take(p.id))
        ],
    }


def hint_agreement(rows: Sequence[tuple[frozenset[int], frozenset[int]]]) -> dict[str, float]:
    """Return how often responses cite a principle that their question type hints at, and how often by chance.

    Chance is the expectation if the citations are permuted among the rows: for each row, the share of all rows that
    cite a hint of its type.

    Args:
        rows: (hints of the row's type, principles that the row cites).
    """
    by_hints = Counter(hints for hints, _ in rows)
    permuted = sum(n * sum(bool(hints & cited) for _, cited in rows) / len(rows) for hints, n in by_hints.items())
    return {"answers": len(rows), "agree": sum(bool(hints & cited) for hints, cited in rows), "permuted": permuted}


class _Citations:
    """The rows and their citations in groups: the sources, question types or verbs of the prompts."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        """Group -> number of rows."""
        self.cited: dict[str, Counter[int]] = {}
        """Group -> citations of each principle."""

    def add(self, group: str, principles: list[int]) -> None:
        if group:
            self.rows[group] += 1
            self.cited.setdefault(group, Counter()).update(principles)

    def counts(self, groups: Iterable[str]) -> list[dict[str, Any]]:
        return [
            {"name": g, "answers": self.rows[g], "principles": {str(p): n for p, n in self.cited[g].most_common()}}
            for g in groups
        ]


class _Examples:
    """The best examples of each principle: responses that cite it first, cite only it, and have a moderate length.

    A response is an example of two principles only if there is no other.
    """

    def __init__(self) -> None:
        self._best: dict[int, list[tuple[tuple[int, int, bool, int], Response]]] = {}
        self._used: set[str] = set()

    def add(self, position: int, row: Response) -> None:
        unusual_length = count_words(row.response) not in _WORDS
        for rank, number in enumerate(row.principles):
            best = self._best.setdefault(number, [])
            best.append(((rank, len(row.principles), unusual_length, position), row))
            best.sort(key=lambda entry: entry[0])
            del best[_CANDIDATES:]

    def take(self, number: int) -> dict[str, Any] | None:
        """Return an example of that principle; None if no response cites it."""
        if number not in self._best:
            return None
        rows = [row for _, row in self._best[number]]
        row = next((r for r in rows if r.id not in self._used), rows[0])
        self._used.add(row.id)
        return {
            "message": row.message,
            "thoughts": row.thoughts,
            "answer": row.response,
            "principles": row.principles,
            "source": row.source,
            "question_type": row.question_type,
        }
