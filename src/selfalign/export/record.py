"""Write and read export.json, the record in every export, and check the target of an export."""

from __future__ import annotations

import json
import time
from pathlib import Path, PurePosixPath
from typing import Any

from selfalign.errors import UserError
from selfalign.run.context import Context
from selfalign.system import atomic
from selfalign.system.atomic import file_hash
from selfalign.system.version import __version__

RECORD = "export.json"


def write_record(context: Context, folder: Path, details: dict[str, Any]) -> None:
    """Write export.json with the hash and size of every file in the folder, and make all files readable by everyone.

    Args:
        details: the keys that the form of the export adds.
    """
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
