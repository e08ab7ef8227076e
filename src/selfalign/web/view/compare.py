"""Two runs side by side: their ledgers, and the rows about the same prompt that came out differently."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from selfalign.errors import UserError
from selfalign.web.view.index import Index
from selfalign.web.view.query import CITED, MOST

Which = Literal["differ", "here", "there"]

_FATE = "(SELECT state || ': ' || reason FROM {0}.kinds WHERE kind = {1}.kind)"
_ANSWER = "(SELECT answer FROM {0}.texts WHERE n = {1}.n)"
_UNLIKE = " OR ".join(f"{part.format('main', 'a')} IS NOT {part.format('other', 'b')}" for part in (_FATE, _ANSWER))
# Rows are known by the hash of their content, whatever the run: a prompt's answer has its prompt's id in both.
_BOTH = "main.rows AS a JOIN other.rows AS b ON b.id = a.id AND b.stage = a.stage WHERE a.stage = ?"
_ALONE = (
    "{0}.rows AS a WHERE a.stage = ? "
    "AND NOT EXISTS (SELECT 1 FROM {1}.rows AS b WHERE b.id = a.id AND b.stage = a.stage)"
)
_ROWS: dict[Which, str] = {
    "differ": f"{_BOTH} AND ({_UNLIKE})",
    "here": _ALONE.format("main", "other"),
    "there": _ALONE.format("other", "main"),
}


class Pair:
    """A run and another one, by their caches.

    Args:
        one: the run that is looked at.
        other: the one beside it.
    """

    def __init__(self, one: Index, other: Index) -> None:
        self._one = one
        self._other = other

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._one.reading() as db:
            db.execute("ATTACH ? AS other", (f"{self._other.path.resolve().as_uri()}?mode=ro",))
            yield db

    def counts(self) -> list[dict[str, Any]]:
        """Of each ledger: rows about the same that are alike and that differ, and rows of one run only."""
        found = []
        with self._reading() as db:
            stages = [s for (s,) in db.execute("SELECT stage FROM main.stages UNION SELECT stage FROM other.stages")]
            for stage in stages:
                both = db.execute(f"SELECT COUNT(*), TOTAL({_UNLIKE}) FROM {_BOTH}", (stage,)).fetchone()  # noqa: S608
                here, there = (
                    db.execute(f"SELECT COUNT(*) FROM {_ROWS[which]}", (stage,)).fetchone()[0]  # noqa: S608
                    for which in ("here", "there")
                )
                differ = int(both[1])
                found.append(
                    {"stage": stage, "alike": both[0] - differ, "differ": differ, "here": here, "there": there}
                )
        return found

    def page(
        self, stage: str, which: str, after: tuple[int, int] | None = None, limit: int = 50
    ) -> list[dict[str, Any]]:
        """Rows of a ledger that differ, or that one run alone has, in its order.

        Args:
            which: differ, here or there.
            after: (place, n) of the row before the first one.

        Raises:
            UserError: there is no such choice.
        """
        if which not in _ROWS:
            raise UserError("rows differ, or are here, or there")
        columns = "a.place, a.n, " + ("b.n" if which == "differ" else "NULL")
        edge, values = (" AND (a.place, a.n) > (?, ?)", after) if after else ("", ())
        query = f"SELECT {columns} FROM {_ROWS[which]}{edge} ORDER BY a.place, a.n LIMIT ?"  # noqa: S608
        with self._reading() as db:
            rows = db.execute(query, (stage, *values, max(1, min(limit, MOST)))).fetchall()
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
    found = dict(zip(names, db.execute(query, (n,)).fetchone(), strict=True))
    cited = CITED.replace("FROM rows JOIN sets", f"FROM {schema}.rows JOIN {schema}.sets")
    return {**found, "principles": [p for (p,) in db.execute(cited, (n,))]}
