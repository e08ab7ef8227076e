"""List the files of an export that a push would upload. A folder that changed since the export is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from selfalign.errors import UserError
from selfalign.export.record import RECORD, read_record
from selfalign.system.atomic import file_hash
from selfalign.system.format import file_size

FORMS = ("adapter", "merged", "gguf-adapter", "gguf", "dataset")
"""Forms of an export that can be pushed."""
CARD = "README.md"
_DOCUMENTS = (CARD, "NOTICE", "constitution.yaml", RECORD)


@dataclass(frozen=True, slots=True)
class Upload:
    """The files of an export that may be uploaded."""

    folder: Path
    form: str
    exported_at: str
    files: dict[str, int]
    """Path in the folder -> bytes; documents first."""
    notice: str
    """The licence terms of the base; "" if they are unknown."""
    notes: list[str] = field(default_factory=list)

    @property
    def repo_type(self) -> str:
        return "dataset" if self.form == "dataset" else "model"

    def listing(self) -> list[str]:
        """Return one line for each file, then the total, the terms and the notes."""
        width = max(len(name) for name in self.files)
        lines = [f"  {name:<{width}}  {file_size(size):>9}" for name, size in self.files.items()]
        total = file_size(sum(self.files.values()))
        lines.append(f"  {len(self.files)} files, {total}, form {self.form}, exported at {self.exported_at}")
        if self.notice:
            lines.append(f"  terms of the base (NOTICE): {' '.join(self.notice.split())[:400]}")
        return lines + [f"  note: {note}" for note in self.notes]


def check_export(folder: Path) -> Upload:
    """Return the files of an export, after checking that none was added, removed or changed.

    Raises:
        UserError: the folder is not an export, its export does not match the trained model, or files were added,
            removed, changed or replaced by links.
    """
    record = read_record(folder)
    form, entries = record.get("form"), record["files"]
    if form not in FORMS:
        raise UserError(f"{folder} is an export of the form {str(form)[:40]!r}; only {', '.join(FORMS)} can be pushed")
    if record.get("holds") is False:
        raise UserError(f"{folder} does not match the trained model (see {RECORD}): it cannot be pushed")
    paths = dict(_walk(folder))
    expected = {*entries, RECORD}
    if stray := sorted(set(paths) - expected):
        raise UserError(
            f"{folder} contains files that are not part of the export ({_first(stray)}): remove them, or export again. "
            "Nothing was sent"
        )
    if missing := sorted(expected - set(paths)):
        raise UserError(f"{folder} lacks files of the export ({_first(missing)}): export again. Nothing was sent")
    changed = [name for name, entry in entries.items() if file_hash(paths[name]) != entry["sha256"]]
    if changed_files := [name for name in changed if name != CARD]:
        raise UserError(f"{folder}: {_first(changed_files)} changed since the export: export again. Nothing was sent")
    notice = paths["NOTICE"].read_text("utf-8", "replace").strip() if "NOTICE" in entries else ""
    notes = [f"{CARD} was edited since the export and is uploaded as it is"] if changed else []
    if not notice:
        notes.append("the licence terms of the base model are unknown: check that you may publish this")
    if form != "dataset" and "\nbase_model:" not in paths[CARD].read_text("utf-8", "replace"):
        notes.append(f"the card names no base_model, since the base is a local file: you can add it to {CARD}")
    names = sorted(paths, key=lambda name: (name not in _DOCUMENTS, name))
    sizes = {name: paths[name].stat().st_size for name in names}
    return Upload(folder, form, str(record.get("made", "")), sizes, notice, notes)


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (path in the folder, path) of every file. Raises UserError for a link or a special file."""
    for parent, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(parent) / name
            if path.is_symlink():
                raise UserError(f"{path} is a link, which an export never contains: remove it. Nothing was sent")
            if path.is_dir():
                continue
            if not path.is_file():
                raise UserError(f"{path} is not a regular file: remove it, or export again. Nothing was sent")
            yield path.relative_to(folder).as_posix(), path


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
