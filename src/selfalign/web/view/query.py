"""Query the index: filter, page and count rows. Every value in the SQL is a parameter."""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

DIMENSIONS = ("stage", "state", "reason", "source", "type", "split", "model")
"""Columns to filter rows by."""
CITED = "SELECT principle FROM rows JOIN sets USING (cites) WHERE n = ? ORDER BY principle"
SNIPPET_CHARS = 320
"""Maximum characters of a text in a list."""
MAX_PAGE = 200
"""Maximum rows of a page."""
MAX_SEARCH = 400
"""Maximum characters of a search."""

_SPACELESS = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)
"""Letters of scripts without spaces between words. The full-text index cannot find such words."""


_CONTAINS = (
    "n IN (SELECT n FROM texts WHERE message LIKE ? ESCAPE '\\' OR thoughts LIKE ? ESCAPE '\\' "
    "OR answer LIKE ? ESCAPE '\\')"
)


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions on rows; None matches every row."""

    stage: str | None = None
    state: str | None = None
    reason: str | None = None
    source: str | None = None
    type: str | None = None
    split: str | None = None
    model: str | None = None
    principle: int | None = None
    mark: str | None = None
    """drop or edit."""
    words: str = ""
    """Words that must all occur. The last one may be a prefix; "quoted words" must be adjacent."""

    def where(self) -> tuple[str, list[object]]:
        """Return the SQL condition on `rows` and its values."""
        parts, values = list[str](), list[object]()
        chosen = [name for name in DIMENSIONS if getattr(self, name) is not None]
        if chosen:
            kinds = " AND ".join(f"{name} = ?" for name in chosen)
            parts.append(f"kind IN (SELECT kind FROM kinds WHERE {kinds})")  # noqa: S608
            values += [getattr(self, name) for name in chosen]
        if self.principle is not None:
            parts.append("n IN (SELECT n FROM cited WHERE principle = ?)")
            values.append(self.principle)
        conditions, row_values = self.row_conditions()
        return " AND ".join([*parts, *conditions]) or "1", [*values, *row_values]

    def row_conditions(self) -> tuple[list[str], list[object]]:
        """Return the conditions that the cube cannot answer, and their values."""
        conditions, values = _search(self.words)
        if self.mark is None:
            return conditions, values
        return [*conditions, "n IN (SELECT n FROM marks WHERE mark = ?)"], [*values, self.mark]


def parse(query: Mapping[str, str]) -> Filter:
    """Parse the filter from a request's query.

    Raises:
        ValueError: the principle is not a number.
    """
    known = {f.name for f in fields(Filter)} - {"principle"}
    values: dict[str, Any] = {name: value for name, value in query.items() if name in known}
    if "words" in values:
        # SQLite ends a search at its first NUL, and limits the number of conditions.
        values["words"] = values["words"][:MAX_SEARCH].replace("\0", " ")
    if "principle" in query:
        values["principle"] = int(query["principle"][:9])
    return Filter(**values)


def phrases(words: str) -> list[str]:
    """Return the words and quoted phrases of a search that contain a letter or a digit."""
    matches = re.findall(r'"([^"]*)"?|([^\s"]+)', words)
    return [text for quoted, bare in matches if (text := quoted or bare) and any(c.isalnum() for c in text)]


def _search(words: str) -> tuple[list[str], list[object]]:
    searched = phrases(words)
    if not searched:
        # The full-text index does not contain punctuation.
        text = words.strip()
        return ([_CONTAINS], [_like(text)] * 3) if text else ([], [])
    substrings = [text for text in searched if _SPACELESS.search(text)]
    indexed = [text for text in searched if text not in substrings]
    conditions, values = [_CONTAINS for _ in substrings], [_like(text) for text in substrings for _ in range(3)]
    if indexed:
        quoted = [f'"{text}"' for text in indexed]
        if not words.rstrip().endswith('"') and indexed[-1] == searched[-1]:
            quoted[-1] += "*"
        conditions.append("n IN (SELECT rowid FROM search WHERE search MATCH ?)")
        values.append(" ".join(quoted))
    return conditions, list(values)


def _like(text: str) -> str:
    return "%" + re.sub(r"([\\%_])", r"\\\1", text) + "%"


def page(
    db: sqlite3.Connection, row_filter: Filter, after: tuple[int, int] | None = None, limit: int = 50,
    back: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return rows in the order of the pipeline, with the beginnings of their texts.

    Args:
        after: (place, n) of the row before the page; with `back`, of the row after it.
        limit: the maximum number of rows.
        back: return the page that ends before `after`.
    """
    condition, values = row_filter.where()
    if after is not None:
        condition += f" AND (place, n) {'<' if back else '>'} (?, ?)"
        values += after
    order = "DESC" if back else "ASC"
    # The SQL index on places contains the kinds, so SQLite reads only the rows of the page.
    query = (
        f"SELECT n, place FROM rows INDEXED BY rows_place WHERE {condition} "  # noqa: S608
        f"ORDER BY place {order}, n {order} LIMIT ?"
    )
    numbers = db.execute(query, (*values, max(1, min(limit, MAX_PAGE)))).fetchall()
    rows = [_row(db, n, place) for n, place in numbers]
    return rows[::-1] if back else rows


def _row(db: sqlite3.Connection, n: int, place: int) -> dict[str, Any]:
    columns = ", ".join(f"kinds.{name}" for name in DIMENSIONS)
    query = (
        f"SELECT topic, message, answer, id, {columns} FROM rows JOIN texts USING (n) "  # noqa: S608
        "JOIN kinds USING (kind) WHERE n = ?"
    )
    topic, message, answer, *values = db.execute(query, (n,)).fetchone()
    cited = [p for (p,) in db.execute(CITED, (n,))]
    mark = db.execute("SELECT mark FROM marks WHERE n = ?", (n,)).fetchone()
    named = dict(zip(("id", *DIMENSIONS), values, strict=True))
    texts = {"topic": topic, "message": _snippet(message), "answer": _snippet(answer)}
    return {"n": n, "place": place, **named, **texts, "principles": cited, "mark": mark and mark[0]}


def _snippet(text: str) -> str:
    # SQL functions end a text at its first NUL.
    return text if len(text) <= SNIPPET_CHARS else f"{text[:SNIPPET_CHARS]}…"


def counts(db: sqlite3.Connection, row_filter: Filter) -> dict[str, Any]:
    """Count the rows in total, and by value of each dimension while ignoring the filter's value of that dimension."""
    names = (*DIMENSIONS, "principle")
    total = 0
    by: dict[str, Counter[Any]] = {name: Counter() for name in names}
    chosen = {name: value for name in DIMENSIONS if (value := getattr(row_filter, name)) is not None}
    for *kind, principle, number in _cube(db, row_filter):
        row = dict(zip(DIMENSIONS, kind, strict=True))
        unmatched = [name for name, value in chosen.items() if row[name] != value]
        if principle and not unmatched:
            by["principle"][principle] += number
        if principle != (row_filter.principle or 0):
            continue
        if not unmatched:
            total += number
        for name in DIMENSIONS:
            if unmatched in ([], [name]):
                by[name][row[name]] += number
    condition, values = replace(row_filter, mark=None).where()
    query = f"SELECT mark, COUNT(*) FROM marks CROSS JOIN rows USING (n) WHERE {condition} GROUP BY mark"  # noqa: S608
    by["mark"] = Counter(dict(db.execute(query, values).fetchall()))
    return {"total": total, "by": {name: _sorted(values) for name, values in by.items()}}


def _sorted(values: Counter[Any]) -> list[list[Any]]:
    return [[value, number] for value, number in sorted(values.items(), key=lambda item: (-item[1], item[0]))]


def _cube(db: sqlite3.Connection, row_filter: Filter) -> Iterable[tuple[Any, ...]]:
    """Return the numbers of rows that match the search and the mark, by kind and principle."""
    conditions, values = row_filter.row_conditions()
    columns = ", ".join(DIMENSIONS)
    if not conditions:
        return db.execute(f"SELECT {columns}, principle, number FROM cube JOIN kinds USING (kind)")  # noqa: S608
    # Group by set of principles first: there are few sets.
    db.execute("CREATE TEMP TABLE IF NOT EXISTS hits(kind INTEGER, cites INTEGER, number INTEGER)")
    db.execute("DELETE FROM hits")
    matches = f"SELECT kind, cites, COUNT(*) FROM rows WHERE {' AND '.join(conditions)} GROUP BY kind, cites"  # noqa: S608
    db.execute(f"INSERT INTO hits {matches}", values)
    return db.execute(
        f"SELECT {columns}, 0, SUM(number) FROM hits JOIN kinds USING (kind) GROUP BY kind UNION ALL "  # noqa: S608
        f"SELECT {columns}, principle, SUM(number) FROM hits JOIN sets USING (cites) JOIN kinds USING (kind) "
        "GROUP BY kind, principle"
    )
