"""Read the user's rows from a file, a folder or a hub data set, one by one.

Files are JSON lines, a JSON array, CSV or TSV with a header, Parquet, or text with a prompt per line. An invalid row is
an error that names file and line. The rows are not held in memory: each stage reads the file again, and compares its
SHA-256 with that of the recipe.
"""

from __future__ import annotations

import codecs
import csv
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from selfalign.data import formats, json_array, tables
from selfalign.data.records import json_lines, prompt_id
from selfalign.data.text import clean_text, remove_control_characters, text_lines
from selfalign.errors import Resumable, UserError
from selfalign.system.atomic import file_hash

_CHUNK = 1 << 20
_LONGEST_CELL = 1 << 28
_UNREAD_KEYS_SHOWN = 6


class UserDataSettings(Protocol):
    """The settings of the recipe (`prompts`) that name the user's rows."""

    @property
    def file(self) -> str | None: ...
    @property
    def file_sha256(self) -> str | None: ...
    @property
    def rows(self) -> int | None: ...


def pin_source(name: str, frozen: str | None = None) -> tuple[str, str | None]:
    """Return what a recipe stores of its source: the full name (with a hub data set's commit) and a file's SHA-256.

    Args:
        name: a file, a folder or a hub data set.
        frozen: the name in the recipe of the run to resume; a hub data set keeps its commit.

    Raises:
        UserError: the file does not exist, or the hub cannot be reached.
    """
    path = Path(name)
    if path.is_file() or path.is_dir():
        return str(path.absolute()), _hash(path)
    if data_set := tables.parse_hub_name(name):
        return tables.pin_revision(data_set, frozen), None
    raise UserError(f"prompts file {name!r} does not exist")


def _hash(path: Path) -> str:
    try:
        return file_hash(path)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"prompts file {str(path)!r} cannot be read: {error.strerror}")


class UserData:
    """The rows of a recipe's `prompts.file`.

    Each iteration reads the source again and yields (file:line, row), or (file:row, row) for tables. It collects the
    counts that `messages` and `notes` report.

    Raises:
        UserError: the recipe names no file; while iterating: the file cannot be read, has changed since the run was
            started, or a row has an unknown format.
    """

    def __init__(self, prompts: UserDataSettings) -> None:
        if not prompts.file:
            raise UserError("the recipe has no prompts.file: name one with --prompts")
        self._source = prompts.file
        self._sha256 = prompts.file_sha256
        self.name = Path(prompts.file).name
        """The source's name for messages and the ledger."""
        self._reset()

    def _reset(self) -> None:
        self._formats: Counter[str] = Counter()
        self._unread: Counter[str] = Counter()
        """Keys of rows that are not read."""
        self._shortened = 0
        """Number of dialogues with skipped turns."""
        self._systems = 0
        """Number of rows with a system text."""

    def __iter__(self) -> Iterator[tuple[str, formats.Row]]:
        self._reset()
        for where, value in self._values():
            row = formats.parse_row(value, where)
            self._formats[row.format] += 1
            self._unread.update(formats.unread_keys(value, row.format))
            self._shortened += bool(row.skipped_turns)
            self._systems += bool(row.system)
            yield where, row

    def _values(self) -> Iterator[tuple[str, Any]]:
        path = Path(self._source)
        if not path.is_absolute() and not path.exists() and (data_set := tables.parse_hub_name(self._source)):
            return tables.hub_rows(data_set)
        if not path.exists():
            raise UserError(
                f"prompts file {self._source!r} does not exist: if it was moved, name it again with `selfalign run "
                "--prompts FILE` and the options of the first time"
            )
        digest = _hash(path)
        if self._sha256 and digest != self._sha256:
            raise UserError(f"{path} has changed since the run was started: restore it, or start again with --new")
        return tables.folder_rows(path, digest) if path.is_dir() else values(path)

    def messages(self) -> list[str]:
        """Describe for the screen how the rows were read, one text per line."""
        lines = [f"{self.name}: read as " + ", ".join(f"{name} {n:,}" for name, n in self._formats.most_common())]
        if self._unread:
            names = [f"{key:.40}" for key, _ in self._unread.most_common()]
            ellipsis = ", …" if len(names) > _UNREAD_KEYS_SHOWN else ""
            lines.append(f"keys that are not read: {', '.join(names[:_UNREAD_KEYS_SHOWN])}{ellipsis}")
        if self._shortened:
            lines.append(f"dialogues read only up to the response to the first user turn: {self._shortened:,}")
        if self._systems:
            lines.append(f"system texts replaced by the system prompts: {self._systems:,}")
        return lines

    def notes(self) -> dict[str, object]:
        """Return the same counts for the ledger."""
        counts = {
            "read as": dict(self._formats),
            "dialogues shortened": self._shortened,
            "system texts left": self._systems,
        }
        return {"from": self.name, **{key: value for key, value in counts.items() if value}}


def count_prompts(prompts: UserDataSettings) -> int:
    """Count the prompts that a run reads, before the filters. Raises as `UserData`, or if there are none."""
    data = UserData(prompts)
    number = sum(1 for _ in data)
    if not number:
        raise UserError(f"{data.name} contains no prompt")
    return min(number, prompts.rows) if prompts.rows else number


def prompt_fields(row: formats.Row) -> tuple[str, str, str]:
    """Return (id, instruction, input) of the row's prompt, clean_text."""
    instruction, text = clean_text(row.instruction), clean_text(row.input)
    return prompt_id(instruction, text), instruction, text


class UserResponses:
    """The responses of a recipe's `prompts.file` by prompt id, in a temporary database. Close it after use.

    If a prompt occurs several times, its first response is stored. Raises as `UserData`.
    """

    def __init__(self, prompts: UserDataSettings) -> None:
        # With an empty name, SQLite uses a temporary file that it deletes on closing.
        self._db = sqlite3.connect("", isolation_level=None)
        try:
            self._db.execute("CREATE TABLE answers(id TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID")
            self._db.execute("BEGIN")
            rows = (
                (prompt_fields(row)[0], remove_control_characters(row.answer))
                for _, row in UserData(prompts)
                if row.answer is not None
            )
            self._db.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            self._db.close()
            raise Resumable(
                f"no space for temporary files ({error}): free some space, then run the same command again"
            ) from None
        except BaseException:
            self._db.close()
            raise

    def get(self, prompt: str) -> str | None:
        """Return the response to the prompt with that id, or None."""
        row = self._db.execute("SELECT text FROM answers WHERE id = ?", (prompt,)).fetchone()
        return str(row[0]) if row else None

    def close(self) -> None:
        """Delete the temporary database."""
        self._db.close()


# -- files -----------------------------------------------------------------------------------------------------------


def values(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (file:line, value) for each row of a file. The suffix of its name determines its type.

    Raises:
        UserError: the file cannot be read, or a row is malformed.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            yield from tables.parquet_rows(path)
        elif suffix in (".csv", ".tsv"):
            yield from _csv_rows(path, suffix)
        elif suffix not in (".jsonl", ".ndjson", ".json"):
            lines = ((number, line.strip()) for number, line in text_lines(path))
            yield from ((f"{path}:{number}", {"prompt": line}) for number, line in lines if line)
        elif _is_array(path):
            yield from json_array.elements(path)
        else:
            yield from ((f"{path}:{number}", value) for number, value in json_lines(path))
    except OSError as error:
        raise _unreadable(path, error) from None


def _is_array(path: Path) -> bool:
    """Return whether the first character that is not white space begins a JSON array."""
    with path.open("rb") as file:
        text = file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
        while not text.strip():
            if not (text := file.read(_CHUNK)):
                return False
    return text.lstrip().startswith(b"[")


def _csv_rows(path: Path, suffix: str) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a CSV or TSV file as objects; the first line names the keys."""
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    header = next((line for _, line in text_lines(path)), "")
    delimiter = (
        "\t" if suffix == ".tsv" else max(",;\t", key=lambda d: _has_known_format(header, d) and header.count(d))
    )
    # Without `strict`, an unclosed quote would include the rest of the file.
    reader = csv.reader((line for _, line in text_lines(path)), delimiter=delimiter, strict=True)
    names: list[str] = []
    start = 1
    try:
        for cells in reader:
            where, start = f"{path}:{start}", reader.line_num + 1
            if not names:
                names = [cell.strip().lower() for cell in cells]
                if formats.detect_format(tuple(names)) is None:
                    raise formats.unknown_format(tuple(names), f"{where}: the header")
                if repeated := next((n for n in names if names.count(n) > 1), None):
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
