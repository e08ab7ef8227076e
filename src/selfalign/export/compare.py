"""An export, loaded back, against the trained model: the same 200 positions, the same dialogues.

How near it must be depends on what was done to it. Float32 in torch must be the same but for rounding. Where weights
or activations are rounded, the base's own loss by that is the measure: the export may agree with the trained model at
most 4 points less than the base, in the same form, agrees with itself. And it must be nearer to the trained model than
to the base, which a file whose adapter was lost, or merged in a wrong order, is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from selfalign.generation.parity import agreement

_EXACT_DIFFERENCE = 0.01
"""In float32 merged weights may change a log-probability by this much: W + BA is rounded once more than Wx + B(Ax)."""
_EXACT_AGREEMENT = 0.99
"""A near tie or two of 200 may turn over by that."""
_LESS_AGREEMENT = 0.04
"""Two standard errors of the difference of two shares near 95 % at 200 positions; the distance is sharper."""
_NEARER = 0.5
"""Distance to the trained model, at most this share of the distance to the base."""
_NOISE = 1.5
"""... and at most this many times what the form costs the base itself,"""
_ROUNDING = 0.01
"""... and the nats that rounding once more may cost."""
_ASSUMED = 0.9
"""Agreement expected of the base where it has no GGUF to measure."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The trained model and its base in torch: log-probabilities (N, V) at the N positions."""

    trained: torch.Tensor
    base: torch.Tensor

    def tops(self) -> list[int]:
        return [int(i) for i in self.trained.argmax(-1)]

    def changed(self) -> float:
        """Share of the positions at which training changed the most likely token."""
        return 1 - agreement(self.tops(), [int(i) for i in self.base.argmax(-1)])


@dataclass(frozen=True, slots=True)
class Comparison:
    """How an export compares with the trained model."""

    loaded_with: str
    positions: int
    agreement: float
    """Share of the positions, 0 to 1, with the same most likely token as the trained model."""
    at_least: float
    agreement_base: float | None
    """The same of the base in this form with the base; None where that was not measured."""
    changed: float
    """Share of the positions at which training changed the most likely token: what there was to lose."""
    distance: float
    """Mean over the positions of the difference of log-probabilities (nats) of the export's most likely token, from the
    trained model."""
    at_most: float
    distance_base: float
    """The same from the base: what training moved."""
    own_distance: float | None
    """The same of the base in this form from the base: what the form itself costs; None where it was not measured."""
    largest: float | None
    """Largest difference of any token's log-probability at any position; None where only the likeliest is known."""
    faults: tuple[str, ...]
    """What does not hold; empty if the export is good."""

    @property
    def holds(self) -> bool:
        return not self.faults

    def text(self) -> str:
        """One line for people."""
        text = f"{self.loaded_with} agrees with the trained model on {self.agreement:.1%} of {self.positions} tokens"
        if self.agreement_base is not None:
            text += f" (the base in this form with the base: {self.agreement_base:.1%})"
        text += f"; log-probabilities {self.distance:.2g} nats off on average"
        if self.own_distance is not None:
            text += f" (the base's {self.own_distance:.2g})"
        text += f", {self.distance_base:.2g} from the base's"
        if self.largest is not None:
            text += f", at most {self.largest:.2g}"
        return f"{text}; training changed {self.changed:.1%}"


def exact(reading: Reading, export: torch.Tensor, loaded_with: str) -> Comparison:
    """An export that should compute what the trained model does, in float32."""
    tops = export.argmax(-1)
    same = agreement(reading.tops(), [int(i) for i in tops])
    largest = float((export - reading.trained).abs().max())
    faults = []
    if same < _EXACT_AGREEMENT:
        faults.append(f"it has the trained model's token at {same:.1%} of the positions, not at 99 %")
    if not largest <= _EXACT_DIFFERENCE:
        faults.append(f"a log-probability is {largest:.3g} off instead of at most {_EXACT_DIFFERENCE}")
    to_trained, to_base = _distances(reading, tops.tolist(), export.max(-1).values.tolist())
    return Comparison(
        loaded_with, len(tops), same, _EXACT_AGREEMENT, None, reading.changed(), to_trained, _EXACT_DIFFERENCE, to_base,
        None, largest, tuple(faults),
    )  # fmt: skip


def rounded(
    reading: Reading,
    tops: list[int],
    values: list[float],
    loaded_with: str,
    own: tuple[list[int], list[float]] | None,
    largest: float | None = None,
) -> Comparison:
    """An export with rounded weights or activations.

    Args:
        tops: its most likely token at each position.
        values: their log-probabilities; not a number where that is not known.
        own: the same of the base in this form; None where there is no such base.
    """
    same = agreement(reading.tops(), tops)
    to_trained, to_base = _distances(reading, tops, values)
    base = own_distance = None
    if own is not None:
        base = agreement([int(i) for i in reading.base.argmax(-1)], own[0])
        own_distance = _distances(reading, *own)[1]
    least = _ASSUMED if base is None else base - _LESS_AGREEMENT
    most = _NEARER * to_base if own_distance is None else min(_NEARER * to_base, _NOISE * own_distance + _ROUNDING)
    faults = []
    if same < least:
        faults.append(f"it has the trained model's token at {same:.1%} of the positions, not at {least:.1%}")
    if not to_trained <= most:
        faults.append(
            f"its log-probabilities are {to_trained:.3g} off the trained model's, not at most {most:.3g} (and "
            f"{to_base:.3g} off the base's: a lost or wrong adapter looks like that)"
        )
    return Comparison(
        loaded_with, len(tops), same, least, base, reading.changed(), to_trained, most, to_base, own_distance, largest,
        tuple(faults),
    )  # fmt: skip


def _distances(reading: Reading, tops: list[int], values: list[float]) -> tuple[float, float]:
    at, own = torch.tensor(tops)[:, None], torch.tensor(values)
    known = ~own.isnan()  # a part of a character has no probability in llama.cpp's server
    trained = (reading.trained.gather(1, at)[:, 0] - own)[known].abs().mean()
    base = (reading.base.gather(1, at)[:, 0] - own)[known].abs().mean()
    return float(trained), float(base)
