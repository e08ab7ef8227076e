"""Estimate the time that remains of a whole run from a plan, corrected by the parts that are finished."""

from __future__ import annotations

from collections.abc import Mapping

_MOST = 4.0
"""The largest correction of the plan, in both directions: one short part says little about the others."""


class Schedule:
    """The planned seconds of the parts of a run, in order.

    Args:
        planned: part -> seconds.
    """

    def __init__(self, planned: Mapping[str, float]) -> None:
        self._planned = dict(planned)
        self._measured: dict[str, float] = {}

    def finish(self, part: str, seconds: float) -> None:
        """Record how long a whole part took."""
        if self._planned.get(part):
            self._measured[part] = seconds

    def left(self, part: str, own: float | None = None, spent: float = 0.0) -> float | None:
        """Return the seconds until the run ends; None if the part is not planned.

        Args:
            part: the current part.
            own: the seconds until it ends, if known; otherwise they follow from the plan.
            spent: the seconds that it has taken so far.
        """
        if part not in self._planned:
            return None
        names = list(self._planned)
        later = sum(self._planned[name] for name in names[names.index(part) + 1 :])
        if own is None:
            own = max(0.0, self._planned[part] * self._factor - spent)
        return own + later * self._factor

    @property
    def _factor(self) -> float:
        planned = sum(self._planned[part] for part in self._measured)
        return min(_MOST, max(1 / _MOST, sum(self._measured.values()) / planned)) if planned else 1.0
