"""What a stage reads: the file of the stage before it, as a person may have left it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from selfalign.data.records import Prompt, Response, content_hash, stream_jsonl
from selfalign.errors import Resumable, UserError
from selfalign.run.journal import Journal
from selfalign.run.ledger import RowOutcome

Row = TypeVar("Row", Prompt, Response)


class Rows(Generic[Row]):
    """A stage's input file: read once to check every line before anything is spent, then row by row.

    `len` is the number of different rows.

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
        self._stamp = _stamp(path)
        number, self._twice = journal.note_ids(self._table, (row.id for row in stream_jsonl(path, kind)))
        self._number = number

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[Row]:
        """Raises Resumable where the file is no longer the one that was checked."""
        seen: set[str] = set()
        try:
            for row in stream_jsonl(self._path, self._kind):
                if row.id in self._twice:
                    if row.id in seen:
                        continue
                    seen.add(row.id)
                yield row
        except UserError:
            self._check_unchanged()
            raise
        self._check_unchanged()

    def _check_unchanged(self) -> None:
        if _stamp(self._path) != self._stamp:
            raise Resumable(f"{self._path} was changed while it was read: run the same command again")

    def removed(self) -> Iterator[RowOutcome]:
        """The fates of rows that never come: taken out of the file by hand, or standing in it once more."""
        gone = self._journal.kept_but_not_in(self._table, self._sources)
        number = 0
        for number, (row_id, text) in enumerate(gone, 1):
            yield RowOutcome(row_id, 10**9 + number, "dropped", "removed by hand", text)
        if not self._twice:
            return
        seen: set[str] = set()
        for row in stream_jsonl(self._path, self._kind):
            if row.id in seen:
                number += 1
                yield RowOutcome(content_hash(row.id, number), 10**9 + number, "dropped", "duplicate", row.message)
            elif row.id in self._twice:
                seen.add(row.id)

    @cached_property
    def number_removed(self) -> int:
        """How many rows `removed` has."""
        return sum(1 for _ in self.removed())


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116  (one call for both)
    except OSError:
        return (0, 0)
    return found.st_mtime_ns, found.st_size
