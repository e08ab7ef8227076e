"""Thin out a curve of losses before it is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Point = TypeVar("Point")


def thinned(points: Sequence[Point], most: int = 1000) -> list[Point]:
    """Evenly spaced points of a curve, the last one among them: what the ledger keeps of a long one."""
    every = -(-len(points) // most)
    return [point for n, point in enumerate(points) if n % every == 0 or n + 1 == len(points)]
