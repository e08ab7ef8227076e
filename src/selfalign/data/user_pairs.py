"""Read a user's preference pairs: rows with a message, a chosen and a rejected response, in the forms of `formats`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from selfalign.data import files, formats
from selfalign.data.formats import normalize_key
from selfalign.data.records import PreferencePair, content_hash, to_json
from selfalign.data.text import clean_text, remove_control_characters
from selfalign.errors import UserError
from selfalign.system import atomic

_SIDES = ("chosen", "rejected")


def copy(source: Path, target: Path) -> int:
    """Copy the rows of a file, as JSON lines; return their number.

    Raises:
        UserError: the file cannot be read, has no rows, or a row is no pair.
    """
    count = 0
    if not source.is_file():
        raise UserError(f"--pairs {str(source)!r} is not a file")
    with atomic.new_file(target) as file:
        for where, value in files.values(source):
            parse(value, where)
            file.write((to_json(value) + "\n").encode("utf-8"))
            count += 1
        if not count:
            raise UserError(f"{source} has no rows")
    return count


def parse(value: Any, where: str) -> tuple[PreferencePair, str]:
    """Return the pair of a row, and why it cannot be used; "" if it can.

    Args:
        where: file and line, for errors.

    Raises:
        UserError: the row is no pair.
    """
    keys = {normalize_key(key): key for key in value} if isinstance(value, Mapping) else {}
    if missing := next((name for name in _SIDES if name not in keys), ""):
        raise UserError(f"{where}: the key {missing!r} is missing: a pair has prompt, chosen and rejected")
    message, texts, problem = "", dict[str, str](), ""
    shared = {key: item for name, key in keys.items() if name not in _SIDES for item in (value[key],)}
    if "user" in keys:  # the form of a run's own pairs
        shared = {"prompt": value[keys["user"]]}
    for side in _SIDES:
        row = formats.parse_row({**shared, "chosen": value[keys[side]]}, where)
        text = clean_text(row.message)
        if side == "rejected" and text != message:
            problem = problem or "the two responses have different prompts"
        message = message or text
        texts[side] = remove_control_characters(row.answer or "").strip()
        problem = problem or row.problem or ("more than one turn" if row.skipped_turns else "")
        problem = problem or ("" if texts[side] else f"{side}: empty")
    problem = problem or ("" if message else "no prompt")
    pair_id = content_hash("pair", message, texts["chosen"], texts["rejected"])
    return PreferencePair(pair_id, "standard", message, texts["chosen"], texts["rejected"]), problem


def read(rows: Iterable[tuple[int, Any]], name: str) -> Iterator[tuple[PreferencePair, str]]:
    """Yield `parse` of the numbered rows of the file `name`."""
    return (parse(value, f"{name}:{number}") for number, value in rows)
