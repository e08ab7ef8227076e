"""Filters, pages and counts over the viewer's cache: SQL with every value a parameter."""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

DIMENSIONS = ("stage", "state", "reason", "source", "type", "split", "model")
"""Columns that rows are filtered by, in the order of the cube."""
CITED = "SELECT principle FROM rows JOIN sets USING (cites) WHERE n = ? ORDER BY principle"
SHOWN = 320
"""Characters of a text in a list."""
MOST = 200
"""Rows of a page, at most."""
LONGEST = 400
"""Characters of a search, at most."""

_TOGETHER = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
"""Letters of scripts that put no spaces between words: the index of words cannot find what stands inside of them."""


_CONTAINS = (
    "n IN (SELECT n FROM texts WHERE message LIKE ? ESCAPE '\\' OR thoughts LIKE ? ESCAPE '\\' "
    "OR answer LIKE ? ESCAPE '\\')"
)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows; None is any."""

    stage: str | None = None
    state: str | None = None
    reason: str | None = None
    source: str | None = None
    type: str | None = None
    split: str | None = None
    model: str | None = None
    principle: int | None = None
    mark: str | None = None
    """drop or edit: what a hand decided."""
    words: str = ""
    """All of these words occur; the last may be the beginning of one; "words in quotes" stand side by side."""

    def where(self) -> tuple[str, list[object]]:
        """The SQL condition on `rows` and its values."""
        parts, values = list[str](), list[object]()
        chosen = [name for name in DIMENSIONS if getattr(self, name) is not None]
        if chosen:
            kinds = " AND ".join(f"{name} = ?" for name in chosen)
            parts.append(f"kind IN (SELECT kind FROM kinds WHERE {kinds})")  # noqa: S608
            values += [getattr(self, name) for name in chosen]
        if self.principle is not None:
            parts.append("n IN (SELECT n FROM cited WHERE principle = ?)")
            values.append(self.principle)
        condition, more = self._special()
        return " AND ".join([*parts, *condition]) or "1", [*values, *more]

    def _special(self) -> tuple[list[str], list[object]]:
        """The conditions that the cube cannot answer."""
        condition, values = _search(self.words)
        if self.mark is None:
            return condition, values
        return [*condition, "n IN (SELECT n FROM marks WHERE mark = ?)"], [*values, self.mark]


def parse(query: Mapping[str, str]) -> Filter:
    """The filter that a request's query names.

    Raises:
        ValueError: the principle is not a number.
    """
    known = {f.name for f in fields(Filter)} - {"principle"}
    found: dict[str, Any] = {name: value for name, value in query.items() if name in known}
    if "words" in found:
        # SQLite would read a search to its first NUL only, and has bounds on conditions.
        found["words"] = found["words"][:LONGEST].replace("\0", " ")
    if "principle" in query:
        found["principle"] = int(query["principle"][:9])
    return Filter(**found)


def phrases(words: str) -> list[str]:
    """The words and quoted phrases of a search that hold a letter or a digit."""
    found = re.findall(r'"([^"]*)"?|([^\s"]+)', words)
    return [text for quoted, bare in found if (text := quoted or bare) and any(c.isalnum() for c in text)]


def _search(words: str) -> tuple[list[str], list[object]]:
    wanted = phrases(words)
    if not wanted:
        # Marks alone are in no index of words.
        text = words.strip()
        return ([_CONTAINS], [_like(text)] * 3) if text else ([], [])
    inside = [text for text in wanted if _TOGETHER.search(text)]
    apart = [text for text in wanted if text not in inside]
    conditions, values = [_CONTAINS for _ in inside], [_like(text) for text in inside for _ in range(3)]
    if apart:
        quoted = [f'"{text}"' for text in apart]
        if not words.rstrip().endswith('"') and apart[-1] == wanted[-1]:
            quoted[-1] += "*"
        conditions.append("n IN (SELECT rowid FROM found WHERE found MATCH ?)")
        values.append(" ".join(quoted))
    return conditions, list(values)


def _like(text: str) -> str:
    return "%" + re.sub(r"([\\%_])", r"\\\1", text) + "%"


def page(
    db: sqlite3.Connection, wanted: Filter, after: tuple[int, int] | None = None, limit: int = 50, back: bool = False
) -> list[dict[str, Any]]:
    """Rows in the order of the pipeline, with the beginnings of their texts.

    Args:
        after: (place, n) of the row before the first one; of the row behind the last one with `back`.
        limit: so many rows at most.
        back: the page that ends before `after`.
    """
    condition, values = wanted.where()
    if after is not None:
        condition += f" AND (place, n) {'<' if back else '>'} (?, ?)"
        values += after
    order = "DESC" if back else "ASC"
    # The index of places holds the kinds, too: it is walked, and no row is touched that is not shown.
    query = (
        f"SELECT n, place FROM rows INDEXED BY rows_place WHERE {condition} "  # noqa: S608
        f"ORDER BY place {order}, n {order} LIMIT ?"
    )
    found = db.execute(query, (*values, max(1, min(limit, MOST)))).fetchall()
    rows = [_row(db, n, place) for n, place in found]
    return rows[::-1] if back else rows


def _row(db: sqlite3.Connection, n: int, place: int) -> dict[str, Any]:
    columns = ", ".join(f"kinds.{name}" for name in DIMENSIONS)
    query = (
        f"SELECT topic, message, answer, id, {columns} FROM rows JOIN texts USING (n) "  # noqa: S608
        "JOIN kinds USING (kind) WHERE n = ?"
    )
    topic, message, answer, *said = db.execute(query, (n,)).fetchone()
    cited = [p for (p,) in db.execute(CITED, (n,))]
    mark = db.execute("SELECT mark FROM marks WHERE n = ?", (n,)).fetchone()
    named = dict(zip(("id", *DIMENSIONS), said, strict=True))
    texts = {"topic": topic, "message": _short(message), "answer": _short(answer)}
    return {"n": n, "place": place, **named, **texts, "principles": cited, "mark": mark and mark[0]}


def _short(text: str) -> str:
    # In SQL a text would end at its first NUL.
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def counts(db: sqlite3.Connection, wanted: Filter) -> dict[str, Any]:
    """How many rows there are; and how many of each value, were the condition on that value's dimension left out."""
    cube = _cube(db, wanted)
    names = (*DIMENSIONS, "principle")
    total = 0
    found: dict[str, Counter[Any]] = {name: Counter() for name in names}
    chosen = {name: getattr(wanted, name) for name in DIMENSIONS if getattr(wanted, name) is not None}
    for *kind, principle, number in cube:
        row = dict(zip(DIMENSIONS, kind, strict=True))
        missed = [name for name, value in chosen.items() if row[name] != value]
        if principle and not missed:
            found["principle"][principle] += number
        if principle != (wanted.principle or 0):
            continue
        if not missed:
            total += number
        for name in DIMENSIONS:
            if missed in ([], [name]):
                found[name][row[name]] += number
    found["mark"] = _marks(db, wanted)
    return {"total": total, "by": {name: _sorted(values) for name, values in found.items()}}


def _marks(db: sqlite3.Connection, wanted: Filter) -> Counter[Any]:
    condition, values = replace(wanted, mark=None).where()
    query = f"SELECT mark, COUNT(*) FROM marks CROSS JOIN rows USING (n) WHERE {condition} GROUP BY mark"  # noqa: S608
    return Counter(dict(db.execute(query, values).fetchall()))


def _sorted(values: Counter[Any]) -> list[list[Any]]:
    return [[value, number] for value, number in sorted(values.items(), key=lambda one: (-one[1], one[0]))]


def _cube(db: sqlite3.Connection, wanted: Filter) -> Iterable[tuple[Any, ...]]:
    """Numbers by kind and principle, of the rows that a search finds."""
    condition, values = wanted._special()
    columns = ", ".join(DIMENSIONS)
    if not condition:
        return db.execute(f"SELECT {columns}, principle, number FROM cube JOIN kinds USING (kind)")  # noqa: S608
    where = " AND ".join(condition)
    # Every row that is found is looked up once; what it cites is counted by sets of principles, of which there are few.
    db.execute("CREATE TEMP TABLE IF NOT EXISTS hits(kind INTEGER, cites INTEGER, number INTEGER)")
    db.execute("DELETE FROM hits")
    every = f"SELECT kind, cites, COUNT(*) FROM rows WHERE {where} GROUP BY kind, cites"  # noqa: S608
    db.execute(f"INSERT INTO hits {every}", values)
    return db.execute(
        f"SELECT {columns}, 0, SUM(number) FROM hits JOIN kinds USING (kind) GROUP BY kind UNION ALL "  # noqa: S608
        f"SELECT {columns}, principle, SUM(number) FROM hits JOIN sets USING (cites) JOIN kinds USING (kind) "
        "GROUP BY kind, principle"
    )
