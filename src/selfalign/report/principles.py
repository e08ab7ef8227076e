"""Which principles the thoughts of kept answers cite: by source, question type and verb; a real answer for each.

After the paper's pictures of the same (SELF-ALIGN, arXiv 2305.03047, section 4 and appendix Q).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from selfalign.data.records import Response, stream_jsonl
from selfalign.report.data import Pair
from selfalign.run.directory import RunDir

_VERBS = 20
_WORDS = range(15, 91)
"""Lengths of the answers that stand for a principle, where there are such."""
_CANDIDATES = 8


def gather(run: RunDir, tagged: dict[str, tuple[str, Pair]] | None) -> dict[str, Any]:
    """`principles`, `principle_use` and `examples`, as plain values, of stage 2's file as it stands.

    Args:
        tagged: prompt id -> (source, (verb, object)), of the prompts whose verb is known.
    """
    use, examples = _Use(), _Examples()
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
    types = sorted(use.types.items(), key=lambda one: order.index(one[0]) if one[0] in order else len(order))
    verbs = sorted(use.verbs.items(), key=lambda one: (-use.rows_by_verb[one[0]], one[0]))[:_VERBS]
    return {
        "principles": principles,
        "principle_use": {
            "answers": use.rows.total(),
            "citations": use.all.total(),
            "by_source": dict(use.rows),
            "question_types": [_crossed(name, use.rows_by_type[name], counts) for name, counts in types],
            "verbs": [_crossed(name, use.rows_by_verb[name], counts) for name, counts in verbs],
        },
        "examples": [
            {"principle": p.id, "name": p.name, **found}
            for p in run.constitution.principles
            if (found := examples.take(p.id))
        ],
    }


def _crossed(name: str, rows: int, counts: Counter[int]) -> dict[str, Any]:
    return {"name": name, "answers": rows, "principles": {str(p): n for p, n in counts.most_common()}}


class _Use:
    """Citations counted, one answer after the other."""

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
    """For each principle the few answers that show it best by their form: cited first, alone, of moderate length.

    Nobody picks them by hand, and no answer stands for two principles while there is another.
    """

    def __init__(self) -> None:
        self._best: dict[int, list[tuple[tuple[int, int, bool, int], Response]]] = {}
        self._taken: set[str] = set()

    def add(self, position: int, row: Response) -> None:
        odd = len(row.response.split()) not in _WORDS
        for at, number in enumerate(row.principles):
            best = self._best.setdefault(number, [])
            key = (at, len(row.principles), odd, position)
            if len(best) == _CANDIDATES and key > best[-1][0]:
                continue
            best.append((key, row))
            best.sort(key=lambda one: one[0])
            del best[_CANDIDATES:]

    def take(self, number: int) -> dict[str, Any] | None:
        """The example of that principle; None where no kept answer cites it."""
        rows = [row for _, row in self._best.get(number, [])]
        if not rows:
            return None
        row = next((r for r in rows if r.id not in self._taken), rows[0])
        self._taken.add(row.id)
        return {
            "message": row.message,
            "thoughts": row.thoughts,
            "answer": row.response,
            "principles": row.principles,
            "source": row.source,
            "question_type": row.question_type,
        }
