"""Read rows from a file: JSON lines, a JSON array, CSV or TSV, Parquet, or text with a prompt per line.

The content decides, not only the ending: JSON is JSON under any name, and a compressed file is decompressed. What may
be two things is refused. Rows are read one by one.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfalign.data import compression, formats, json_array, tables
from selfalign.data.records import json_lines
from selfalign.data.text import text_lines
from selfalign.errors import UserError

_CHUNK = 1 << 16
_LONGEST_CELL = 1 << 28
_DELIMITERS = ",;\t|"
_OBJECT = re.compile(r'\s*\{\s*["}]')
_JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
_JSON = re.compile(r'\{\s*["}]|\[\s*[{"]')
_OTHER_LANGUAGES = (".yaml", ".yml", ".toml", ".xml", ".html", ".htm")
_SEPARATOR_LINE = re.compile(r'\s*"?sep=(.)"?\s*')
"""The line in which Excel names the delimiter."""


def values(path: Path, allow_surrogates: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield (file:line, value) for each row of a file.

    Args:
        allow_surrogates: whether texts in JSON may have lone surrogates.

    Raises:
        UserError: the file cannot be read, or a row is malformed.
    """
    suffix = compression.uncompressed_name(path).suffix.lower()
    try:
        start = _first_text(path)
        if start.startswith(b"PAR1") or suffix == ".parquet":
            yield from tables.parquet_rows(path)
        elif start.startswith(b"[") and (suffix in _JSON_ENDINGS or is_json(start.decode("utf-8", "ignore"))):
            for where, value in json_array.elements(path, allow_surrogates):
                yield where, {"prompt": value} if isinstance(value, str) else value
        elif suffix in _JSON_ENDINGS or is_json(start.decode("utf-8", "ignore")):
            yield from ((f"{path}:{n}", value) for n, value in json_lines(path, allow_surrogates))
        elif suffix in (".csv", ".tsv"):
            yield from _csv_rows(path, suffix)
        elif suffix in _OTHER_LANGUAGES or b"\0" in start:
            what = f"a {suffix} file" if suffix in _OTHER_LANGUAGES else "a binary file, or UTF-16"
            raise UserError(f"{path} is {what}, not a prompt per line: save its rows as JSON lines or CSV, in UTF-8")
        else:
            yield from _prompt_lines(path)
    except compression.DAMAGED as error:
        raise UserError(f"{path} is damaged: it cannot be decompressed ({error})") from None
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> UserError:
    """Return the error for a file that the system cannot read."""
    return UserError(f"prompts file {str(path)!r} cannot be read: {error.strerror or error}")


def _first_text(path: Path) -> bytes:
    """Return the beginning of a file's content, from the first character that is not white space."""
    with compression.open_data(path) as file:
        text = file.read(_CHUNK)
        compression.check_start(path, text, decompressed=True)
        text = text.removeprefix(codecs.BOM_UTF8)
        while not text.strip():
            if not (text := file.read(_CHUNK)):
                return b""
        text = text.lstrip()
        return text if len(text) > len(b"[ {") else text + file.read(_CHUNK)


def is_json(text: str) -> bool:
    """Return whether a file of any name that begins so is JSON: no text follows its first value in the same line."""
    if not _JSON.match(text):
        return False
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):  # a value that is longer than the text, or invalid
        return True
    return text[end:].partition("\n")[0].strip() in ("", ",")


def _prompt_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each line that is not blank as a prompt. A line that is a row of another file type is an error."""
    header_is_possible = True
    for number, line in text_lines(path):
        text = line.strip()
        if not text:
            continue
        if "\r" in text:
            raise UserError(f"{path}:{number} has line ends of carriage returns alone: save the file with LF or CRLF")
        if header_is_possible and any(_names_columns(text, delimiter) for delimiter in _DELIMITERS):
            raise UserError(
                f"{path}:{number} names the columns of a table: save the file as .csv or .tsv, or delete the line"
            )
        header_is_possible = False
        if _OBJECT.match(text) and _is_row(text):
            raise UserError(
                f"{path}:{number} is a JSON object between lines of text: save JSON lines as .jsonl, or delete the line"
            )
        yield f"{path}:{number}", {"prompt": text}


def _is_row(text: str) -> bool:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and formats.detect_format(value) is not None


def _names_columns(line: str, delimiter: str) -> bool:
    """Return whether a line of text is the header of a table: several names, and all are known keys."""
    names = [formats.normalize_key(cell.strip(' "')) for cell in line.split(delimiter)]
    return len(names) > 1 and formats.KNOWN_KEYS.issuperset(names) and formats.detect_format(names) is not None


def _csv_rows(path: Path, suffix: str) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a CSV or TSV file as objects; the first line names the keys."""
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    lines = text_lines(path)
    _, header = next(lines, (1, ""))
    skipped = 0
    if separator := _SEPARATOR_LINE.fullmatch(header):
        skipped, (_, header) = 1, next(lines, (2, ""))
    if suffix == ".tsv":
        delimiter = "\t"
    else:
        delimiter = max(_DELIMITERS, key=lambda d: _has_known_format(header, d) and header.count(d))
    if separator:
        delimiter = separator[1]
    # A quote after a space would be a part of the cell.
    spaced = delimiter != "\t" and f"{delimiter} " in header
    texts = (line for number, line in text_lines(path) if number > skipped)
    # Without `strict`, an unclosed quote would include the rest of the file.
    reader = csv.reader(texts, delimiter=delimiter, strict=True, skipinitialspace=spaced)
    names: list[str] = []
    start = 1 + skipped
    try:
        for cells in reader:
            where, start = f"{path}:{start}", reader.line_num + 1 + skipped
            if not names:
                names = [cell.strip().lower() for cell in cells]
                if formats.detect_format(tuple(names)) is None:
                    raise formats.unknown_format(tuple(names), f"{where}: the header")
                if repeated := next((n for n in names if n and names.count(n) > 1), None):
                    raise UserError(f"{where}: the header names {repeated!r} twice")
            elif cells:  # a blank line has no cells
                if len(cells) != len(names):
                    raise UserError(f"{where}: {len(cells)} cells, but the header names {len(names)}")
                yield where, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{path}:{start} is not valid {suffix[1:].upper()} ({error}): correct the row that begins in this line"
        ) from None


def _has_known_format(header: str, delimiter: str) -> bool:
    """Return whether the header, split at the delimiter, names the keys of a known format."""
    try:
        names = next(csv.reader([header], delimiter=delimiter), [])
    except csv.Error:  # raised again, with the line, when the file is read
        return False
    return formats.detect_format(tuple(name.strip().lower() for name in names)) is not None
