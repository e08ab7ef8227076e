"""Count the principles that internal thoughts cite, by source, question type and verb, with an example of each.

The paper has the same figures (SELF-ALIGN, arXiv 2305.03047, section 4 and appendix Q).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from selfalign.data.records import Response, stream_jsonl
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
    use, examples = _Citations(), _Examples()
    path = run.jsonl("responses")
    for position, row in enumerate(stream_jsonl(path, Response) if path.exists() else ()):
        use.add(row, tagged[row.id][1][0] if tagged and row.id in tagged else "")
        examples.add(position, row)
    principles = [
        {
            "id": p.id,
            "name": p.name,
            "used": use.all[p.id],
            "by_source": {source: counts[p.id] for source, counts in use.sources.items()},
        }
        for p in run.constitution.principles
    ]
    order = [t.name for t in run.constitution.question_types]
    types = sorted(use.types.items(), key=lambda entry: order.index(entry[0]) if entry[0] in order else len(order))
    verbs = sorted(use.verbs.items(), key=lambda entry: (-use.rows_by_verb[entry[0]], entry[0]))[:_VERBS]
    return {
        "principles": principles,
        "principle_use": {
            "answers": use.rows.total(),
            "citations": use.all.total(),
            "by_source": dict(use.rows),
            "question_types": [_citation_counts(name, use.rows_by_type[name], counts) for name, counts in types],
            "verbs": [_citation_counts(name, use.rows_by_verb[name], counts) for name, counts in verbs],
        },
        "examples": [
            {"principle": p.id, "name": p.name, **example}
            for p in run.constitution.principles
            if (example := examples.take(p.id))
        ],
    }


def _citation_counts(name: str, rows: int, counts: Counter[int]) -> dict[str, Any]:
    return {"name": name, "answers": rows, "principles": {str(p): n for p, n in counts.most_common()}}


class _Citations:
    """Counts of citations."""

    def __init__(self) -> None:
        self.all: Counter[int] = Counter()
        self.rows: Counter[str] = Counter()
        self.rows_by_type: Counter[str] = Counter()
        self.rows_by_verb: Counter[str] = Counter()
        self.sources: dict[str, Counter[int]] = {}
        self.types: dict[str, Counter[int]] = {}
        self.verbs: dict[str, Counter[int]] = {}

    def add(self, row: Response, verb: str) -> None:
        self.all.update(row.principles)
        self.rows[row.source] += 1
        self.sources.setdefault(row.source, Counter()).update(row.principles)
        if row.question_type:
            self.rows_by_type[row.question_type] += 1
            self.types.setdefault(row.question_type, Counter()).update(row.principles)
        if verb:
            self.rows_by_verb[verb] += 1
            self.verbs.setdefault(verb, Counter()).update(row.principles)


class _Examples:
    """The best examples of each principle: responses that cite it first, cite only it, and have a moderate length.

    A response is an example of two principles only if there is no other.
    """

    def __init__(self) -> None:
        self._best: dict[int, list[tuple[tuple[int, int, bool, int], Response]]] = {}
        self._used: set[str] = set()

    def add(self, position: int, row: Response) -> None:
        unusual_length = len(row.response.split()) not in _WORDS
        for rank, number in enumerate(row.principles):
            best = self._best.setdefault(number, [])
            key = (rank, len(row.principles), unusual_length, position)
            if len(best) == _CANDIDATES and key > best[-1][0]:
                continue
            best.append((key, row))
            best.sort(key=lambda entry: entry[0])
            del best[_CANDIDATES:]

    def take(self, number: int) -> dict[str, Any] | None:
        """Return an example of that principle; None if no response cites it."""
        rows = [row for _, row in self._best.get(number, [])]
        if not rows:
            return None
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
