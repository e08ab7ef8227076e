"""Compare an export that was loaded back with the trained model, at 200 positions.

The limits depend on the form. A float32 model in torch must be the same up to rounding. If weights or activations are
rounded, the loss of the base in the same form sets the limit: the export may agree with the trained model at most 4
points less than the base in that form agrees with itself. It must also be closer to the trained model than to the
base, which a file with a lost or wrongly merged adapter is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from selfalign.generation.parity import agreement

_EXACT_DIFFERENCE = 0.01
"""Largest difference of a log-probability in float32: W + BA is rounded once more than Wx + B(Ax)."""
_EXACT_AGREEMENT = 0.99
"""That rounding may flip one or two near ties of 200."""
_LESS_AGREEMENT = 0.04
"""Two standard errors of the difference of two fractions near 95 % at 200 positions; the distance is sharper."""
_MAX_DISTANCE_RATIO = 0.5
"""Limit of the distance to the trained model, as a fraction of the distance to the base."""
_NOISE = 1.5
"""A second limit: this many times the distance of the base in the same form from the base,"""
_ROUNDING = 0.01
"""plus these nats, for one more rounding."""
_DEFAULT_AGREEMENT = 0.9
"""Required if the base has no GGUF to measure the loss of the form."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Log-probabilities of the trained model and its base in torch, each of shape (positions, vocabulary)."""

    trained: torch.Tensor
    base: torch.Tensor

    def changed(self) -> float:
        """Return the fraction of positions at which training changed the most likely token."""
        return 1 - agreement(_top_tokens(self.trained), _top_tokens(self.base))

    def distances(self, tops: list[int], logprobs: list[float]) -> tuple[float, float]:
        """Return the mean differences of these tokens' log-probabilities from the trained model and from the base.

        Args:
            logprobs: nan where llama.cpp's server reports none, as for a part of a character.
        """
        index, values = torch.tensor(tops)[:, None], torch.tensor(logprobs)
        known = ~values.isnan()
        trained, base = (
            float((reference.gather(1, index)[:, 0] - values)[known].abs().mean())
            for reference in (self.trained, self.base)
        )
        return trained, base


@dataclass(frozen=True, slots=True)
class Comparison:
    """How well an export matches the trained model; its fields are keys of export.json."""

    loaded_with: str
    positions: int
    agreement: float
    """Fraction of positions with the same most likely token as the trained model."""
    at_least: float
    agreement_base: float | None
    """The same for the base in this form against the base; None if not measured."""
    changed: float
    """Fraction of positions at which training changed the most likely token."""
    distance: float
    """Mean difference, in nats, of the log-probability of the export's most likely token from the trained model's."""
    at_most: float
    distance_base: float
    """The same difference from the base."""
    own_distance: float | None
    """The same difference between the base in this form and the base; None if not measured."""
    largest: float | None
    """Largest difference of any token's log-probability; None if only the most likely one is known."""
    faults: tuple[str, ...]
    """The limits that are not met."""

    @property
    def holds(self) -> bool:
        return not self.faults

    def text(self) -> str:
        """Return the comparison in one line."""
        text = f"{self.loaded_with} agrees with the trained model on {self.agreement:.1%} of {self.positions} tokens"
        if self.agreement_base is not None:
            text += f" (the base in this form with the base: {self.agreement_base:.1%})"
        text += f"; mean difference of log-probabilities {self.distance:.2g} nats"
        if self.own_distance is not None:
            text += f" (the base in this form: {self.own_distance:.2g})"
        text += f", {self.distance_base:.2g} from the base"
        if self.largest is not None:
            text += f", at most {self.largest:.2g}"
        return f"{text}; training changed {self.changed:.1%} of the tokens"


def exact(reading: Reading, logprobs: torch.Tensor, loaded_with: str) -> Comparison:
    """Compare an export that should compute the same as the trained model, in float32."""
    tops = _top_tokens(logprobs)
    same = agreement(_top_tokens(reading.trained), tops)
    largest = float((logprobs - reading.trained).abs().max())
    faults = []
    if same < _EXACT_AGREEMENT:
        faults.append(f"it agrees with the trained model on {same:.1%} of the tokens, less than 99 %")
    if not largest <= _EXACT_DIFFERENCE:
        faults.append(f"a log-probability differs by {largest:.3g}, more than {_EXACT_DIFFERENCE}")
    distance, distance_base = reading.distances(tops, logprobs.max(-1).values.tolist())
    return Comparison(
        loaded_with, len(tops), same, _EXACT_AGREEMENT, None, reading.changed(), distance, _EXACT_DIFFERENCE,
        distance_base, None, largest, tuple(faults),
    )  # fmt: skip


def rounded(
    reading: Reading,
    tops: list[int],
    logprobs: list[float],
    loaded_with: str,
    base: tuple[list[int], list[float]] | None,
    largest: float | None = None,
) -> Comparison:
    """Compare an export with rounded weights or activations.

    Args:
        tops: the export's most likely token at each position.
        logprobs: their log-probabilities; nan if unknown.
        base: the same of the base in this form; None if there is no such base.
    """
    same = agreement(_top_tokens(reading.trained), tops)
    distance, distance_base = reading.distances(tops, logprobs)
    least, most = _DEFAULT_AGREEMENT, _MAX_DISTANCE_RATIO * distance_base
    agreement_base = own_distance = None
    if base is not None:
        agreement_base = agreement(_top_tokens(reading.base), base[0])
        own_distance = reading.distances(*base)[1]
        least = agreement_base - _LESS_AGREEMENT
        most = min(most, _NOISE * own_distance + _ROUNDING)
    faults = []
    if same < least:
        faults.append(f"it agrees with the trained model on {same:.1%} of the tokens, less than {least:.1%}")
    if not distance <= most:
        faults.append(
            f"its log-probabilities differ by {distance:.3g} from the trained model's, more than {most:.3g} (and by "
            f"{distance_base:.3g} from the base's: the adapter may be lost or merged wrongly)"
        )
    return Comparison(
        loaded_with, len(tops), same, least, agreement_base, reading.changed(), distance, most, distance_base,
        own_distance, largest, tuple(faults),
    )  # fmt: skip


def _top_tokens(logprobs: torch.Tensor) -> list[int]:
    return [int(token) for token in logprobs.argmax(-1)]
