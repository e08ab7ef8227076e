"""What every export says of itself: export.json with its files, and the parts of a card that come from the run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from selfalign.errors import UserError
from selfalign.report import model_card, scores
from selfalign.run.context import Context
from selfalign.run.ledger import TITLES
from selfalign.system import atomic
from selfalign.system.atomic import file_hash
from selfalign.system.version import __version__

RECORD = "export.json"


def ledger(context: Context) -> str:
    """What each stage was given, kept, dropped and why, as a card has it."""
    journal = context.journal
    return model_card.counts([journal.counts(stage) for stage in journal.stages()], TITLES)


def measured(context: Context) -> str:
    """The scores with their intervals, as a card has them."""
    return model_card.scores(
        [
            (f"{s['benchmark']}: {s['measure']}", str(s["model"]), str(s["n"]), *scores.score_text(s))
            for s in scores.read_scores(context.run)
        ]
    )


def writers(context: Context) -> str:
    """Who wrote prompts and answers, as a sentence."""
    recipe = context.recipe
    return model_card.writers(bool(recipe.prompts.file), recipe.align.form == "given")


def base_name(context: Context) -> str:
    """The model whose run it is, without the folders of this machine."""
    return context.model.name if context.has_weights else "the fake engine"


def write(context: Context, folder: Path, about: dict[str, Any]) -> None:
    """Put export.json beside the folder's files, each with its hash and size.

    Args:
        about: what the form adds.
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
        "base": base_name(context),
        "constitution": context.run.constitution.digest(),
        **about,
        "files": files,
    }
    (folder / RECORD).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


def check_free(target: Path, force: bool) -> None:
    """Whether an export may be made there.

    Raises:
        UserError: something stands there, and it is no export or may not be replaced.
    """
    if not target.exists():
        return
    empty = target.is_dir() and not any(target.iterdir())
    if not force and not empty:
        raise UserError(f"{target} exists: --force replaces it, or name another --out")
    if not empty and not (target.is_dir() and (target / RECORD).is_file()):
        raise UserError(f"{target} is not an export (it has no {RECORD}) and is never replaced: name another --out")


def check_outside(context: Context, out: Path) -> None:
    """Raises UserError where `out` is among the run's own files."""
    ours = context.run.path.resolve()
    if out.resolve().is_relative_to(ours) and not out.resolve().is_relative_to(ours / "export"):
        raise UserError(
            f"--out {str(out)!r} is among the run's own files: name a place outside, or in {ours / 'export'}"
        )


def notice(context: Context) -> str:
    """The terms that the run's folder has, or its model; empty where none are known."""
    kept = context.run.path / "NOTICE"
    if kept.is_file():
        return kept.read_text("utf-8")
    return context.model.notice + "\n" if context.has_weights and context.model.notice else ""


def publish_notice(context: Context, beside: Path) -> None:
    """Put the terms beside a single file; a NOTICE of the user's own stays as it is."""
    if not (text := notice(context)):
        return
    path = beside.with_name("NOTICE")
    if path.exists() and path.read_text("utf-8", "replace") != text:
        path = beside.with_suffix(".NOTICE")
    atomic.write_text(path, text)
