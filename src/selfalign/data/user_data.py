"""Read the user's rows from a file, a folder or a hub data set, one by one.

An invalid row is an error that names file and line. The rows are not held in memory: each stage reads the file again,
and compares its SHA-256 with that of the recipe.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from selfalign.data import files, formats, tables
from selfalign.data.message_trees import join_trees
from selfalign.data.records import prompt_id
from selfalign.data.text import clean_text, remove_control_characters
from selfalign.errors import Resumable, UserError
from selfalign.system.atomic import file_hash
from selfalign.system.environment import expand_home

_UNREAD_SHOWN = 6
_HUB_ADDRESS = re.compile(r"(?:https?:/+huggingface\.co/datasets|hf:/+datasets)/([\w.-]+/[\w.-]+)")


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
    path = expand_home(name)
    if path.is_file() or path.is_dir():
        return str(path.absolute()), _hash(path)
    if data_set := tables.parse_hub_name(name):
        return tables.pin_revision(data_set, frozen), None
    raise UserError(f"prompts file {name!r} {_reason(name, path)}")


def _reason(name: str, path: Path) -> str:
    """Return why a name is no source, and what to do about it."""
    if match := _HUB_ADDRESS.match(name):
        return f"is an address: name the hub data set as {match[1]}"
    if re.match(r"\w+:/", name):
        return "is an address: download the file, and name that"
    if name == "-" or path.exists():
        return "is no regular file: rows are read several times, so save them in one"
    return "does not exist"


def _hash(path: Path) -> str:
    try:
        return file_hash(path)
    except OSError as error:
        raise files.unreadable(path, error) from None


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
        self._unread_files: list[str] = []
        """Files of a folder that are not read."""
        self._shortened = 0
        """Number of dialogues with skipped turns."""
        self._systems = 0
        """Number of rows with a system text."""

    def __iter__(self) -> Iterator[tuple[str, formats.Row]]:
        self._reset()
        for where, value in join_trees(self._values()):
            row = formats.parse_row(value, where)
            self._formats[row.format] += 1
            self._unread.update(row.unread)
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
        if path.is_dir():
            rows, self._unread_files = tables.folder_rows(path, digest)
            return rows
        return files.values(path, allow_surrogates=True)

    def messages(self) -> list[str]:
        """Describe for the screen how the rows were read, one text per line."""
        lines = [f"{self.name}: read as " + ", ".join(f"{name} {n:,}" for name, n in self._formats.most_common())]
        for what, unread in (("files", self._unread_files), ("keys", [key for key, _ in self._unread.most_common()])):
            if unread:
                names = ", ".join(f"{name:.40}" for name in unread[:_UNREAD_SHOWN])
                lines.append(f"{what} that are not read: {names}{', …' if len(unread) > _UNREAD_SHOWN else ''}")
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
    """Return (id, instruction, input) of the row's prompt, as clean text. An input alone is the instruction."""
    instruction, text = clean_text(row.instruction), clean_text(row.input)
    if not instruction:
        instruction, text = text, ""
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
                if row.answer is not None and not row.problem
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
