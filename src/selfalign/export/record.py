"""Write and read export.json, the record in every export; check the target of an export, and the files of an upload."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from selfalign.errors import UserError
from selfalign.run.context import Context
from selfalign.system import atomic
from selfalign.system.atomic import file_hash
from selfalign.system.format import file_size
from selfalign.system.version import __version__

RECORD = "export.json"
FORMS = ("adapter", "merged", "gguf-adapter", "gguf", "dataset")
"""Forms of an export that can be pushed."""
CARD = "README.md"
_DOCUMENTS = (CARD, "NOTICE", "constitution.yaml", RECORD)


def write_record(context: Context, folder: Path, details: dict[str, Any]) -> None:
    """Write export.json with the hash and size of every file in the folder, and make all files readable by everyone."""
    files = {
        f.relative_to(folder).as_posix(): {"sha256": file_hash(f), "bytes": f.stat().st_size}
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }
    value = {
        "format": 1,
        "selfalign": __version__,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "run": context.run.path.resolve().name,
        "base": context.model.name,
        "constitution": context.run.constitution.digest(),
        **details,
        "files": files,
    }
    (folder / RECORD).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def read_record(folder: Path) -> dict[str, Any]:
    """Read export.json of an export.

    Raises:
        UserError: the folder has none, or it is malformed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: `selfalign export RUN FORM` writes one to push")
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not an export (it has no {RECORD}): `selfalign export RUN FORM` writes one"
        ) from None
    except (ValueError, RecursionError):
        record = None
    files = record.get("files") if isinstance(record, dict) else None
    if not isinstance(files, dict) or not all(is_file_entry(name, entry) for name, entry in files.items()):
        raise UserError(f"{folder / RECORD} is not a valid record of an export: export again")
    return dict(record)


def is_file_entry(name: str, entry: object) -> bool:
    """Return whether an entry has a hash, and names a file below the folder without hidden parts in its path."""
    path = PurePosixPath(name)
    inside = bool(path.parts) and not path.is_absolute() and str(path) == name and "\\" not in name
    visible = not any(part.startswith(".") for part in path.parts)
    return inside and visible and isinstance(entry, dict) and "sha256" in entry


def check_free(target: Path, force: bool) -> None:
    """Check that an export may be written to `target`.

    Raises:
        UserError: the target exists, and `force` is not set or it is not an export.
    """
    if not target.exists():
        return
    empty = target.is_dir() and not any(target.iterdir())
    if not force and not empty:
        raise UserError(f"{target} exists: --force replaces it, or choose another --out")
    if not empty and not (target.is_dir() and (target / RECORD).is_file()):
        raise UserError(f"{target} is not an export (it has no {RECORD}) and is never replaced: choose another --out")


def check_outside_run(context: Context, out: Path) -> None:
    """Raise UserError if `out` is in the run's folder, outside its exports."""
    run = context.run.path.resolve()
    if out.resolve().is_relative_to(run) and not out.resolve().is_relative_to(run / "export"):
        raise UserError(f"--out {str(out)!r} is in the run's folder: choose a path outside it, or in {run}/export")


def base_terms(context: Context) -> str:
    """Return the licence terms of the base model; "" if they are unknown."""
    notice = context.run.path / "NOTICE"
    if notice.is_file():
        return notice.read_text("utf-8")
    return f"{context.model.notice}\n" if context.model.notice else ""


def write_notice_beside(context: Context, file: Path) -> None:
    """Write the licence terms next to a single file. A different NOTICE that exists is not replaced."""
    if not (text := base_terms(context)):
        return
    path = file.with_name("NOTICE")
    if path.exists() and path.read_text("utf-8", "replace") != text:
        path = file.with_suffix(".NOTICE")
    atomic.write_text(path, text)


# -- the files of an upload --------------------------------------------------------------------------------------------


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
