"""Read the user's rows from a file, a folder or a hub data set, one by one.

Files are JSON lines, a JSON array, CSV or TSV with a header, Parquet, or text with a prompt per line. Each row is read
or refused with file and line. No rows are held in memory: each stage reads the file again, and its SHA-256 shows that
it has not changed.
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
from selfalign.data.text import cleaned, text_lines, without_controls
from selfalign.errors import Resumable, UserError
from selfalign.system.atomic import file_hash

_CHUNK = 1 << 20
_LONGEST_CELL = 1 << 28
_UNREAD_KEYS_SHOWN = 6


class UserDataSettings(Protocol):
    """The part of the recipe that names the user's rows (`prompts`)."""

    @property
    def file(self) -> str | None: ...
    @property
    def file_sha256(self) -> str | None: ...
    @property
    def rows(self) -> int | None: ...


def pin_source(name: str, frozen: str | None = None) -> tuple[str, str | None]:
    """Return what a recipe stores of its source: the full name, with a hub data set's commit, and a file's SHA-256.

    Args:
        name: a file, a folder or a hub data set.
        frozen: the name in the recipe of a run to resume; a hub data set keeps the commit that it names.

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

    Each iteration reads the source anew, yields (file:line, row), or (file:row, row) of a table, and counts what
    `messages` and `notes` report.

    Raises:
        UserError: the recipe names no file; while iterating: the file cannot be read, has changed since the run was
            started, or a row has no known form.
    """

    def __init__(self, prompts: UserDataSettings) -> None:
        if not prompts.file:
            raise UserError("the recipe names no prompts.file: give one with --prompts")
        self._source = prompts.file
        self._sha256 = prompts.file_sha256
        self.name = Path(prompts.file).name
        """The source's name on the screen and in the ledger."""
        self._reset()

    def _reset(self) -> None:
        self._forms: Counter[str] = Counter()
        self._unread: Counter[str] = Counter()
        """Keys that the rows' forms do not read."""
        self._shortened = 0
        """Number of dialogues with skipped turns."""
        self._systems = 0
        """Number of rows with a system text."""

    def __iter__(self) -> Iterator[tuple[str, formats.Row]]:
        self._reset()
        for where, value in self._values():
            row = formats.parse_row(value, where)
            self._forms[row.form] += 1
            self._unread.update(formats.unread_keys(value, row.form))
            self._shortened += bool(row.skipped_turns)
            self._systems += bool(row.system)
            yield where, row

    def _values(self) -> Iterator[tuple[str, Any]]:
        path = Path(self._source)
        if not path.is_absolute() and not path.exists() and (data_set := tables.parse_hub_name(self._source)):
            return tables.hub_rows(data_set)
        if not path.exists():
            raise UserError(f"prompts file {self._source!r} does not exist")
        digest = _hash(path)
        if self._sha256 and digest != self._sha256:
            raise UserError(f"{path} was changed since the run was started: restore it, or start again with --new")
        return tables.folder_rows(path, digest) if path.is_dir() else values(path)

    def messages(self) -> list[str]:
        """Return lines for the screen about how the rows were read."""
        lines = [f"{self.name}: read as " + ", ".join(f"{form} {n:,}" for form, n in self._forms.most_common())]
        if self._unread:
            names = [f"{key:.40}" for key, _ in self._unread.most_common()]
            ellipsis = ", …" if len(names) > _UNREAD_KEYS_SHOWN else ""
            lines.append(f"keys that are not read: {', '.join(names[:_UNREAD_KEYS_SHOWN])}{ellipsis}")
        if self._shortened:
            lines.append(f"dialogues read only up to the answer to the first user turn: {self._shortened:,}")
        if self._systems:
            lines.append(f"system texts replaced by the system prompts: {self._systems:,}")
        return lines

    def notes(self) -> dict[str, object]:
        """Return the same for the ledger."""
        counts = {
            "read as": dict(self._forms),
            "dialogues shortened": self._shortened,
            "system texts left": self._systems,
        }
        return {"from": self.name, **{key: value for key, value in counts.items() if value}}


def count_prompts(prompts: UserDataSettings) -> int:
    """Count the prompts that a run takes from its file, before the filters. Raises as `UserData`, or if it is empty."""
    data = UserData(prompts)
    number = sum(1 for _ in data)
    if not number:
        raise UserError(f"{data.name} holds no prompt")
    return min(number, prompts.rows) if prompts.rows else number


def prompt_fields(row: formats.Row) -> tuple[str, str, str]:
    """Return (id, instruction, input) of the row's prompt, cleaned."""
    instruction, text = cleaned(row.instruction), cleaned(row.input)
    return prompt_id(instruction, text), instruction, text


class UserResponses:
    """The responses of a recipe's `prompts.file` by prompt id, in a temporary database. Close it after use.

    Of a prompt that occurs several times, the first response is stored. Raises as `UserData`.
    """

    def __init__(self, prompts: UserDataSettings) -> None:
        # With an empty name, SQLite uses a temporary file that it deletes on closing.
        self._db = sqlite3.connect("", isolation_level=None)
        try:
            self._db.execute("CREATE TABLE answers(id TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID")
            self._db.execute("BEGIN")
            rows = (
                (prompt_fields(row)[0], without_controls(row.answer))
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
    """Yield (file:line, value) for each row of a file, whose suffix names its type.

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
    """Return whether the first character that is not white space opens a JSON array."""
    with path.open("rb") as file:
        text = file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
        while not text.strip():
            if not (text := file.read(_CHUNK)):
                return False
    return text.lstrip().startswith(b"[")


def _csv_rows(path: Path, suffix: str) -> Iterator[tuple[str, Any]]:
    """Yield the rows of CSV or TSV as objects; the first line names the keys."""
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    header = next((line for _, line in text_lines(path)), "")
    delimiter = "\t" if suffix == ".tsv" else max(",;\t", key=lambda d: _has_form(header, d) and header.count(d))
    # strict: a quote that is never closed would swallow the rest of the file.
    reader = csv.reader((line for _, line in text_lines(path)), delimiter=delimiter, strict=True)
    names: list[str] = []
    start = 1
    try:
        for cells in reader:
            where, start = f"{path}:{start}", reader.line_num + 1
            if not names:
                names = [cell.strip().lower() for cell in cells]
                if formats.detect_form(tuple(names)) is None:
                    raise formats.unknown_form(tuple(names), f"{where}: the header")
                if repeated := next((n for n in names if names.count(n) > 1), None):
                    raise UserError(f"{where}: the header names {repeated!r} twice")
            elif cells:  # a blank line has none
                if len(cells) != len(names):
                    raise UserError(f"{where}: {len(cells)} cells, but the header names {len(names)}")
                yield where, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{path}:{start} is not valid {suffix[1:].upper()} ({error}): correct the row that begins there"
        ) from None


def _has_form(header: str, delimiter: str) -> bool:
    """Return whether the header, split at that delimiter, names the keys of a known form."""
    try:
        names = next(csv.reader([header], delimiter=delimiter), [])
    except csv.Error:  # reading the whole file raises it again, with its line
        return False
    return formats.detect_form(tuple(name.strip().lower() for name in names)) is not None
