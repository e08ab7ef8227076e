"""Compare two runs: count the rows of their ledgers, and list the rows that differ."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from selfalign.errors import UserError
from selfalign.web.view.index import Index
from selfalign.web.view.query import CITED, MAX_PAGE

Which = Literal["differ", "here", "there"]

_OUTCOME = "(SELECT state || ': ' || reason FROM {0}.kinds WHERE kind = {1}.kind)"
_ANSWER = "(SELECT answer FROM {0}.texts WHERE n = {1}.n)"
_DIFFERS = " OR ".join(f"{part.format('main', 'a')} IS NOT {part.format('other', 'b')}" for part in (_OUTCOME, _ANSWER))
# Ids are hashes of the prompt: responses to the same prompt have the same id in both runs.
_BOTH = "main.rows AS a JOIN other.rows AS b ON b.id = a.id AND b.stage = a.stage WHERE a.stage = ?"
_ONLY = (
    "{0}.rows AS a WHERE a.stage = ? "
    "AND NOT EXISTS (SELECT 1 FROM {1}.rows AS b WHERE b.id = a.id AND b.stage = a.stage)"
)
_ROWS: dict[Which, str] = {
    "differ": f"{_BOTH} AND ({_DIFFERS})",
    "here": _ONLY.format("main", "other"),
    "there": _ONLY.format("other", "main"),
}


class Comparison:
    """A comparison of two runs through their indexes."""

    def __init__(self, run: Index, other: Index) -> None:
        self._run = run
        self._other = other

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._run.reading() as db:
            db.execute("ATTACH ? AS other", (f"{self._other.path.resolve().as_uri()}?mode=ro",))
            yield db

    def counts(self) -> list[dict[str, Any]]:
        """Count, for each ledger, the rows that are equal, that differ, and that are in one run only."""
        ledgers = []
        with self._reading() as db:
            stages = [s for (s,) in db.execute("SELECT stage FROM main.stages UNION SELECT stage FROM other.stages")]
            for stage in stages:
                both = db.execute(f"SELECT COUNT(*), TOTAL({_DIFFERS}) FROM {_BOTH}", (stage,)).fetchone()  # noqa: S608
                here, there = (
                    db.execute(f"SELECT COUNT(*) FROM {_ROWS[which]}", (stage,)).fetchone()[0]  # noqa: S608
                    for which in ("here", "there")
                )
                differ = int(both[1])
                equal = both[0] - differ
                ledgers.append({"stage": stage, "equal": equal, "differ": differ, "here": here, "there": there})
        return ledgers

    def page(
        self, stage: str, which: str, after: tuple[int, int] | None = None, limit: int = 50
    ) -> list[dict[str, Any]]:
        """Return rows of a ledger that differ or that are in one run only.

        Args:
            which: differ, here (in the first run only) or there (in the second run only).
            after: (place, n) of the row before the page.

        Raises:
            UserError: `which` has another value.
        """
        if which not in _ROWS:
            raise UserError("which must be differ, here or there")
        columns = "a.place, a.n, " + ("b.n" if which == "differ" else "NULL")
        edge, values = (" AND (a.place, a.n) > (?, ?)", after) if after else ("", ())
        query = f"SELECT {columns} FROM {_ROWS[which]}{edge} ORDER BY a.place, a.n LIMIT ?"  # noqa: S608
        with self._reading() as db:
            rows = db.execute(query, (stage, *values, max(1, min(limit, MAX_PAGE)))).fetchall()
            own = "other" if which == "there" else "main"
            return [
                {
                    "place": place,
                    "n": n,
                    which if which == "there" else "here": _side(db, own, n),
                    **({"there": _side(db, "other", m)} if m is not None else {}),
                }
                for place, n, m in rows
            ]


def _side(db: sqlite3.Connection, schema: str, n: int) -> dict[str, Any]:
    names = ("id", "stage", "state", "reason", "type", "model", "message", "thoughts", "answer")
    query = (
        f"SELECT id, k.stage, state, reason, type, model, message, thoughts, answer FROM {schema}.rows AS r "  # noqa: S608
        f"JOIN {schema}.kinds AS k USING (kind) JOIN {schema}.texts USING (n) WHERE n = ?"
    )
    side = dict(zip(names, db.execute(query, (n,)).fetchone(), strict=True))
    cited = CITED.replace("FROM rows JOIN sets", f"FROM {schema}.rows JOIN {schema}.sets")
    return {**side, "principles": [p for (p,) in db.execute(cited, (n,))]}
