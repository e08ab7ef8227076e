"""The user's own rows, from a file, a folder or a hub data set, one after the other.

JSON lines, a JSON array, CSV and TSV with a header, Parquet, or any other file with a prompt a line. A row is accepted
or refused with file and line, never left out in silence. Nothing is held: a file is read again by each stage that needs
it, and is the same one each time by its sha256.
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
from selfalign.data.text import cleaned, without_controls
from selfalign.errors import Resumable, UserError
from selfalign.system.atomic import file_hash

_CHUNK = 1 << 20
_LONGEST_CELL = 1 << 28
_SHOWN = 6
"""Unread keys that are named."""


class UserDataSettings(Protocol):
    """The part of the recipe that names the user's rows (`prompts`)."""

    @property
    def file(self) -> str | None: ...
    @property
    def file_sha256(self) -> str | None: ...
    @property
    def rows(self) -> int | None: ...


def pin_source(name: str, kept: str | None = None) -> tuple[str, str | None]:
    """What a recipe freezes of a file, folder or hub data set: its full name, and the sha256 of what lies here.

    Args:
        kept: the frozen name of a run that goes on: of a hub data set it holds the revision.

    Raises:
        UserError: there is no such file, or the hub cannot be asked.
    """
    path = Path(name)
    if path.is_file() or path.is_dir():
        return str(path.absolute()), _hash(path)
    if found := tables.parse_hub_name(name):
        return tables.pin_revision(found, kept), None
    raise UserError(f"prompts file {name!r} does not exist")


def _hash(path: Path) -> str:
    try:
        return file_hash(path)
    except OSError as error:
        raise UserError(f"prompts file {str(path)!r} cannot be read: {error.strerror}") from None


class UserData:
    """The rows of a recipe's `prompts.file`, with what was noticed on the way.

    Iterating gives (place, row); a place is file:line, or file:row of a table. Each time it begins anew.

    Raises:
        UserError: the recipe names no file; and from iterating: it cannot be read, it is not the one that the run was
            begun with, or a row is in no known form.
    """

    def __init__(self, prompts: UserDataSettings) -> None:
        if not prompts.file:
            raise UserError("the recipe names no prompts.file: give one with --prompts")
        self._source = prompts.file
        self._sha256 = prompts.file_sha256
        self.name = Path(prompts.file).name
        """As it is called on the screen and in the ledger."""
        self._begin()

    def _begin(self) -> None:
        self.forms: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        """Keys that stood beside those of the form."""
        self.shortened = 0
        """Dialogues of which turns were left out."""
        self.systems = 0
        """Rows with a system text of their own."""

    def __iter__(self) -> Iterator[tuple[str, formats.Row]]:
        self._begin()
        for place, value in self._values():
            row = formats.parse_row(value, place)
            self.forms[row.form] += 1
            self.unread.update(formats.unread_keys(value, row.form))
            self.shortened += bool(row.skipped_turns)
            self.systems += bool(row.system)
            yield place, row

    def _values(self) -> Iterator[tuple[str, Any]]:
        path = Path(self._source)
        if not path.is_absolute() and not path.exists() and (found := tables.parse_hub_name(self._source)):
            return tables.hub_rows(found)
        if not path.exists():
            raise UserError(f"prompts file {self._source!r} does not exist")
        digest = _hash(path)
        if self._sha256 and digest != self._sha256:
            raise UserError(f"{path} was changed since the run was begun: restore it, or begin again with --new")
        return tables.folder_rows(path, digest) if path.is_dir() else values(path)

    def messages(self) -> list[str]:
        """What the user should know about how the rows were read."""
        found = [f"{self.name}: read as " + ", ".join(f"{form} {n:,}" for form, n in self.forms.most_common())]
        if self.unread:
            names = [f"{key:.40}" for key, _ in self.unread.most_common()]
            more = ", …" if len(names) > _SHOWN else ""
            found.append(f"keys that are not read: {', '.join(names[:_SHOWN])}{more}")
        if self.shortened:
            found.append(
                f"dialogues of which only the first user turn and the answer to it are taken: {self.shortened:,}"
            )
        if self.systems:
            found.append(f"system texts that are not taken (the system prompts take their place): {self.systems:,}")
        return found

    def notes(self) -> dict[str, object]:
        """The same for the ledger."""
        found = {"read as": dict(self.forms), "dialogues shortened": self.shortened, "system texts left": self.systems}
        return {"from": self.name, **{key: value for key, value in found.items() if value}}


def count_prompts(prompts: UserDataSettings) -> int:
    """How many prompts a run takes from its file, before the filters. Raises as `UserData`, or if there is none."""
    data = UserData(prompts)
    number = sum(1 for _ in data)
    if not number:
        raise UserError(f"{data.name} holds no prompt")
    return min(number, prompts.rows) if prompts.rows else number


def prompt_fields(row: formats.Row) -> tuple[str, str, str]:
    """(id, instruction, input) of the prompt that a row becomes, cleaned."""
    instruction, text = cleaned(row.instruction), cleaned(row.input)
    return prompt_id(instruction, text), instruction, text


class UserResponses:
    """The answers of a recipe's `prompts.file` by their prompts' ids, on disk. Close it.

    Of a prompt that stands there more than once, the first answer. Raises as `UserData`.
    """

    def __init__(self, prompts: UserDataSettings) -> None:
        # An empty name is a file of SQLite's own, which is gone when it is closed.
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
                f"no space for temporary files ({error}): make room, then run the same command again"
            ) from None
        except BaseException:
            self._db.close()
            raise

    def get(self, prompt: str) -> str | None:
        """The answer to the prompt with that id."""
        found = self._db.execute("SELECT text FROM answers WHERE id = ?", (prompt,)).fetchone()
        return str(found[0]) if found else None

    def close(self) -> None:
        self._db.close()


# -- files -----------------------------------------------------------------------------------------------------------


def values(path: Path) -> Iterator[tuple[str, Any]]:
    """(file:line, value) of each row of a file, in the way that its ending says.

    Raises:
        UserError: the file cannot be read, or a row is not whole.
    """
    kind = path.suffix.lower()
    if kind in (".jsonl", ".ndjson", ".json"):
        return _array(path) if _is_array(path) else ((f"{path}:{n}", value) for n, value in json_lines(path))
    if kind in (".csv", ".tsv"):
        return _table(path, kind)
    if kind == ".parquet":
        return tables.parquet_rows(path)
    stripped = ((number, line.strip()) for number, line in _lines(path))
    return ((f"{path}:{number}", {"prompt": line}) for number, line in stripped if line)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of a text file; lines end at "\\n" only and keep it."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                yield number, _decoded(raw, f"{path}:{number}", number == 1)
    except OSError as error:
        raise UserError(f"prompts file {str(path)!r} cannot be read: {error.strerror}") from None


def _decoded(raw: bytes, where: str, first: bool) -> str:
    try:
        return raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 (byte {error.start}): save it as UTF-8") from None


def _is_array(path: Path) -> bool:
    """Whether the first character that is no space opens a JSON array."""
    with path.open("rb") as file:
        text = file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
        while not text.strip():
            if not (text := file.read(_CHUNK)):
                return False
    return text.lstrip().startswith(b"[")


def _array(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        yield from json_array.elements(path)
    except OSError as error:
        raise UserError(f"prompts file {str(path)!r} cannot be read: {error.strerror}") from None


def _table(path: Path, kind: str) -> Iterator[tuple[str, Any]]:
    """Rows of CSV or TSV under the names in its first line."""
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    first = next((line for _, line in _lines(path)), "")
    commas = "\t" if kind == ".tsv" else max(",;\t", key=lambda c: _names(first, c) != [] and first.count(c))
    # strict: a quote that is never closed would swallow the rest of the file.
    reader = csv.reader((line for _, line in _lines(path)), delimiter=commas, strict=True)
    names: list[str] = []
    start = 1
    try:
        for cells in reader:
            where, start = f"{path}:{start}", reader.line_num + 1
            if not names:
                names = [cell.strip().lower() for cell in cells]
                if formats.detect_form(tuple(names)) is None:
                    raise formats.unknown_form(tuple(names), f"{where}: the header")
                if twice := next((n for n in names if names.count(n) > 1), None):
                    raise UserError(f"{where}: the header names {twice!r} twice")
            elif cells:  # a blank line has none
                if len(cells) != len(names):
                    raise UserError(f"{where}: {len(cells)} cells, but the header names {len(names)}")
                yield where, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}:{start} is no {kind[1:].upper()} ({error}): mend the row that begins there") from None


def _names(line: str, comma: str) -> list[str]:
    try:
        names = next(csv.reader([line], delimiter=comma), [])
    except csv.Error:  # reading the table says which, and where
        return []
    return names if formats.detect_form(tuple(name.strip().lower() for name in names)) else []
