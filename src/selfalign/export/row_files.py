"""Write rows as JSON lines or Parquet, with the columns of a row format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, BinaryIO

from selfalign.data.records import to_json
from selfalign.errors import UserError

FILE_TYPES = ("jsonl", "parquet")
"""Types of files, which are also their suffixes."""
_ROW_GROUP = 1000
"""Rows in a row group, the unit in which readers load a Parquet file."""
_MESSAGES = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt-completion": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
}
_STRINGS = {"alpaca": ("instruction", "input", "output", "system"), "prompt-completion-text": ("prompt", "completion")}
_RESPONSES = ("output", "completion")


def columns(row_format: str, has_responses: bool) -> list[str]:
    """Return the columns of rows in that format."""
    names = _MESSAGES.get(row_format) or _STRINGS[row_format]
    return [name for name in names if has_responses or name not in _RESPONSES]


def trl_type(row_format: str, has_responses: bool) -> str:
    """Return TRL's name for such a data set; "" if TRL cannot read it."""
    if row_format == "messages":
        return "conversational language modeling" if has_responses else ""
    if row_format in ("alpaca", "sharegpt"):
        return ""
    if row_format == "preference":
        return "conversational preference"
    style = "standard" if row_format == "prompt-completion-text" else "conversational"
    return f"{style} {'prompt-completion' if has_responses else 'prompt-only'}"


def check_file_type(file_type: str) -> None:
    """Raise UserError if the type is unknown, or its library is not installed."""
    if file_type not in FILE_TYPES:
        raise UserError(f"--type {file_type!r}: a data set can have the type {' or '.join(FILE_TYPES)}")
    if file_type == "parquet":
        _pyarrow()


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError("Parquet needs pyarrow: pip install 'selfalign[data]', or use --type jsonl") from None
    return pyarrow


def write_rows(
    file: BinaryIO, file_type: str, row_format: str, has_responses: bool, rows: Iterable[dict[str, Any]]
) -> int:
    """Write the rows and return their number."""
    if file_type == "parquet":
        return _write_parquet(file, row_format, has_responses, iter(rows))
    count = 0
    for row in rows:
        file.write((to_json(row) + "\n").encode("utf-8"))
        count += 1
    return count


def _write_parquet(file: BinaryIO, row_format: str, has_responses: bool, rows: Iterator[dict[str, Any]]) -> int:
    pa, count = _pyarrow(), 0
    keys = ("from", "value") if row_format == "sharegpt" else ("role", "content")
    messages = pa.list_(pa.struct([(key, pa.string()) for key in keys]))
    column_type = messages if row_format in _MESSAGES else pa.string()
    schema = pa.schema([(name, column_type) for name in columns(row_format, has_responses)])
    with pa.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := list(islice(rows, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))
            count += len(group)
    return count
