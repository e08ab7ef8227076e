"""Read the input file of a stage, which the user may have edited."""

from __future__ import annotations

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
    """The rows of a stage's input file. All lines are checked first; iteration then reads the file row by row.

    `len` is the number of distinct rows.

    Args:
        kind: the type of the records.
        sources: the ledgers of the stages that wrote the file.

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
        self._number, self._repeated = journal.note_ids(self._table, (row.id for row in stream_jsonl(path, kind)))

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[Row]:
        """Yield every row once. Raise Resumable if the file changed since it was checked."""
        seen: set[str] = set()
        try:
            for row in stream_jsonl(self._path, self._kind):
                if row.id in self._repeated:
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
        """Yield the outcomes of rows that iteration does not yield: removed from the file by the user, or repeated."""
        missing = self._journal.kept_but_not_in(self._table, self._sources)
        number = 0
        for number, (row_id, text) in enumerate(missing, 1):
            yield RowOutcome(row_id, 10**9 + number, "dropped", "removed manually", text)
        if not self._repeated:
            return
        seen: set[str] = set()
        for row in stream_jsonl(self._path, self._kind):
            if row.id in seen:
                number += 1
                yield RowOutcome(content_hash(row.id, number), 10**9 + number, "dropped", "duplicate", row.message)
            elif row.id in self._repeated:
                seen.add(row.id)

    @cached_property
    def number_removed(self) -> int:
        """The number of rows that `removed` yields."""
        return sum(1 for _ in self.removed())


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return (0, 0)
    return stat.st_mtime_ns, stat.st_size
