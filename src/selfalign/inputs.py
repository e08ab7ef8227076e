"""What a stage reads: the file of the stage before it, as a person may have left it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

from selfalign.journal import Fate, Journal
from selfalign.records import Prompt, Response, stream_jsonl

Row = TypeVar("Row", Prompt, Response)


class Rows(Generic[Row]):
    """A stage's input file: read once to check every line before anything is spent, then row by row.

    A row that stands in it twice counts once. `len` is the number of rows.

    Args:
        path: the file.
        kind: what its lines are.
        journal: knows what the stages before kept.
        sources: their ledgers.

    Raises:
        UserError: a line is not such a record.
    """

    def __init__(self, path: Path, kind: type[Row], journal: Journal, sources: tuple[str, ...]) -> None:
        self._path = path
        self._kind: type[Row] = kind
        self._journal = journal
        self._sources = sources
        self._table = f"present_{kind.__name__.lower()}"
        number, self._twice = journal.note_ids(self._table, (row.id for row in stream_jsonl(path, kind)))
        self._number = number

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[Row]:
        seen: set[str] = set()
        for row in stream_jsonl(self._path, self._kind):
            if row.id in self._twice:
                if row.id in seen:
                    continue
                seen.add(row.id)
            yield row

    def removed(self) -> Iterator[Fate]:
        """The fates of rows that the stages before kept and a hand took out of the file."""
        gone = self._journal.kept_but_not_in(self._table, self._sources)
        for number, (row_id, text) in enumerate(gone):
            yield row_id, 10**9 + number, "dropped", "removed by hand", text

    def number_removed(self) -> int:
        """How many rows `removed` has."""
        return sum(1 for _ in self.removed())
