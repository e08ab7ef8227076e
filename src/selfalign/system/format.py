"""Format durations, counts, file sizes and hints."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def duration(seconds: float | None) -> str:
    """Format a duration, such as 40 s, 12 min or 2.5 h; a dash stands for None."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def count(number: int) -> str:
    """Format a number with at most seven characters, such as 95,000 or 1.2 M."""
    if number < 100_000:
        return f"{number:,}"
    return f"{number / 1e3:,.0f} k" if number < 1_000_000 else f"{number / 1e6:,.1f} M"


def file_size(size: int) -> str:
    """Format a number of bytes, such as 7.2 kB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size} B"


def did_you_mean(word: str, known: Collection[str], otherwise: str = "known: {}") -> str:
    """Return a hint with the known word nearest to `word`; if none is near, `otherwise` with all of them."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else otherwise.format(", ".join(known))
