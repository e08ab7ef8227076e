"""What would be uploaded: an export's folder, looked at file by file. Nothing that is not in its list leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from selfalign.errors import UserError
from selfalign.export.record import RECORD
from selfalign.system.atomic import file_hash

FORMS = ("adapter", "merged", "gguf-adapter", "gguf", "dataset")
"""Exports that the hub has a place for; a launch folder is none of them."""
CARD = "README.md"
_DOCUMENTS = (CARD, "NOTICE", "constitution.yaml", RECORD)


@dataclass(frozen=True, slots=True)
class Parcel:
    """An export that may leave."""

    folder: Path
    form: str
    made: str
    """When, as export.json says it."""
    files: dict[str, int]
    """Path in the folder -> bytes."""
    notice: str
    """The base's terms; empty where they are not known."""
    notes: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """model or dataset."""
        return "dataset" if self.form == "dataset" else "model"

    @property
    def bytes(self) -> int:
        return sum(self.files.values())


def look(folder: Path) -> Parcel:
    """The export in that folder, if every file is there, as it was exported, and nothing else is.

    Raises:
        UserError: it is not an export of ours, holds other files or links, lacks some, or some were changed; it was
            found not to hold.
    """
    said = read_record(folder)
    form, listed = said.get("form"), said["files"]
    if form not in FORMS:
        raise UserError(f"{folder} is an export of the form {str(form)[:40]!r}; pushed are {', '.join(FORMS)}")
    if said.get("holds") is False:
        raise UserError(f"{folder} does not hold what the trained model says (see {RECORD}): it is not pushed")
    there = dict(_walk(folder))
    wanted = {*listed, RECORD}
    if stray := sorted(set(there) - wanted):
        raise UserError(
            f"{folder} holds files that no export wrote ({_some(stray)}): take them out, or export again. "
            "Nothing was sent"
        )
    if missing := sorted(wanted - set(there)):
        raise UserError(f"{folder} lacks files of the export ({_some(missing)}): export again. Nothing was sent")
    changed = [name for name, about in listed.items() if file_hash(there[name]) != about["sha256"]]
    if wrong := [name for name in changed if name != CARD]:
        raise UserError(
            f"{folder}: {_some(wrong)} changed since the export was made and described: export again. Nothing was sent"
        )
    notice = there["NOTICE"].read_text("utf-8", "replace").strip() if "NOTICE" in listed else ""
    notes = [f"{CARD} was edited since the export; it goes as it stands"] if changed else []
    if not notice:
        notes.append("the base model's licence terms are not known here: look whether you may pass on what was made")
    if form != "dataset" and "\nbase_model:" not in there[CARD].read_text("utf-8", "replace"):
        notes.append(f"the card names no base_model (the base is a local file): add the line to {CARD} if it has one")
    return Parcel(folder, form, str(said.get("made", "")), _in_order(there), notice, notes)


def read_record(folder: Path) -> dict[str, Any]:
    """export.json of that folder.

    Raises:
        UserError: there is none, or it is not what an export writes.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: `selfalign export RUN FORM` makes one to push")
    try:
        said = json.loads((folder / RECORD).read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not an export (it has no {RECORD}): `selfalign export RUN FORM` makes one"
        ) from None
    except (ValueError, RecursionError):
        said = None
    files = said.get("files") if isinstance(said, dict) else None
    if not isinstance(files, dict) or not all(_plain(name, about) for name, about in files.items()):
        raise UserError(f"{folder / RECORD} is not what an export writes: export again")
    return dict(said)


def _plain(name: str, about: object) -> bool:
    """Whether that is a file below the folder, with no hidden part in its path."""
    path = PurePosixPath(name)
    parts = path.parts
    inside = bool(parts) and not path.is_absolute() and str(path) == name and "\\" not in name
    return inside and not any(part.startswith(".") for part in parts) and isinstance(about, dict) and "sha256" in about


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """(path in the folder, file) of every file. Raises UserError at a link, or what is no plain file."""
    for place, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(place) / name
            if path.is_symlink():
                raise UserError(f"{path} is a link, which no export has: take it out. Nothing was sent")
        for name in names:
            path = Path(place) / name
            if not path.is_file():
                raise UserError(f"{path} is no plain file: take it out, or export again. Nothing was sent")
            yield path.relative_to(folder).as_posix(), path


def _in_order(files: dict[str, Path]) -> dict[str, int]:
    """Documents first, then by name."""
    names = sorted(files, key=lambda name: (name not in _DOCUMENTS, name))
    return {name: files[name].stat().st_size for name in names}


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def listing(parcel: Parcel) -> list[str]:
    """The files with their sizes, the terms, and what should be known, a line each."""
    width = max(len(name) for name in parcel.files)
    lines = [f"  {name:<{width}}  {size(number):>9}" for name, number in parcel.files.items()]
    lines.append(f"  {len(parcel.files)} files, {size(parcel.bytes)}, of the form {parcel.form}, made {parcel.made}")
    if parcel.notice:
        lines.append(f"  terms of the base (NOTICE): {' '.join(parcel.notice.split())[:400]}")
    return lines + [f"  note: {note}" for note in parcel.notes]


def size(number: int) -> str:
    """Bytes for people."""
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= of:
            return f"{number / of:,.1f} {unit}"
    return f"{number} B"
