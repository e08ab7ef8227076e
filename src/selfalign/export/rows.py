"""Files of rows: JSON lines or Parquet, with the columns that a form has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, BinaryIO

from selfalign.data.records import to_json
from selfalign.errors import UserError

KINDS = ("jsonl", "parquet")
"""Types of files; each is its suffix, too."""
_GROUP = 1000
"""Rows of a Parquet row group: readers take one at a time."""
_TURNS = {"messages": ("messages",), "sharegpt": ("conversations",), "prompt-completion": ("prompt", "completion")}
_TEXTS = {"alpaca": ("instruction", "input", "output", "system"), "prompt-completion-text": ("prompt", "completion")}
_ANSWERS = ("output", "completion")


def columns(form: str, answered: bool) -> list[str]:
    """The columns of rows in that form."""
    names = _TURNS.get(form) or _TEXTS[form]
    return [name for name in names if answered or name not in _ANSWERS]


def trl_type(form: str, answered: bool) -> str:
    """What TRL calls rows like these; empty for what it does not take."""
    if form == "messages":
        return "conversational language modeling" if answered else ""
    if form in ("alpaca", "sharegpt"):
        return ""
    style = "standard" if form == "prompt-completion-text" else "conversational"
    return f"{style} {'prompt-completion' if answered else 'prompt-only'}"


def check(kind: str) -> None:
    """Raises UserError where files of that type are not known, or cannot be written here."""
    if kind not in KINDS:
        raise UserError(f"--type {kind!r}: a data set is written as {' or '.join(KINDS)}")
    if kind == "parquet":
        _arrow()


def _arrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError("Parquet needs pyarrow: pip install 'selfalign[data]', or take --type jsonl") from None
    return pyarrow


def write(file: BinaryIO, kind: str, form: str, answered: bool, values: Iterable[dict[str, Any]]) -> int:
    """Write the rows; returns how many there are.

    Args:
        answered: whether the rows have answers: then a column for them.
    """
    number = 0
    if kind == "jsonl":
        for value in values:
            file.write((to_json(value) + "\n").encode("utf-8"))
            number += 1
        return number
    rest = iter(values)
    with _parquet(file, form, answered) as add:
        while group := list(islice(rest, _GROUP)):
            add(group)
            number += len(group)
    return number


@contextmanager
def _parquet(file: BinaryIO, form: str, answered: bool) -> Iterator[Any]:
    pa = _arrow()
    keys = ("from", "value") if form == "sharegpt" else ("role", "content")
    turns = pa.list_(pa.struct([(key, pa.string()) for key in keys]))
    schema = pa.schema([(n, turns if form in _TURNS else pa.string()) for n in columns(form, answered)])
    with pa.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        yield lambda group: writer.write_table(pa.Table.from_pylist(group, schema))
