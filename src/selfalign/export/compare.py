"""Compare an export, loaded back, with the trained model at 200 positions.

The limits depend on the form. In float32, the export must equal the trained model up to rounding. If weights or
activations are rounded, the limits follow from how much the same form changes the base: the export's agreement with the
trained model may be at most 4 points lower than the agreement of the base in that form with the base. The export must
also be closer to the trained model than to the base, which detects a lost or wrongly merged adapter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from selfalign.generation.parity import agreement

_EXACT_DIFFERENCE = 0.01
"""Largest difference of a log-probability in float32, because W + BA is rounded once more than Wx + B(Ax)."""
_EXACT_AGREEMENT = 0.99
"""Lowest agreement in float32: that rounding may flip one or two near-ties among 200 positions."""
_LESS_AGREEMENT = 0.04
"""Allowed loss of agreement: two standard errors of the difference of two fractions near 95 % at 200 positions."""
_MAX_DISTANCE_RATIO = 0.5
"""Largest distance from the trained model, as a fraction of the distance from the base."""
_NOISE = 1.5
"""Largest distance from the trained model, as a multiple of the distance of the base in this form from the base."""
_ROUNDING = 0.01
"""Nats added to that limit, for one more rounding."""
_DEFAULT_AGREEMENT = 0.9
"""Lowest agreement if the base has no GGUF to compare with."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Log-probabilities of the trained model and its base in torch, each of shape (positions, vocabulary)."""

    trained: torch.Tensor
    base: torch.Tensor

    def changed(self) -> float:
        """Return the fraction of positions at which training changed the most likely token."""
        return 1 - agreement(most_likely(self.trained)[0], most_likely(self.base)[0])

    def distances(self, tops: list[int], logprobs: list[float]) -> tuple[float, float]:
        """Return the mean differences of the tokens' log-probabilities from the trained model's and from the base's.

        Args:
            logprobs: nan if unknown, because llama.cpp's server does not report it for a part of a character.
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
    """How well an export matches the trained model. The fields are keys in export.json."""

    loaded_with: str
    positions: int
    agreement: float
    """Fraction of positions with the same most likely token as the trained model."""
    at_least: float
    agreement_base: float | None
    """The same fraction for the base in this form and the base; None if not measured."""
    changed: float
    """Fraction of positions at which training changed the most likely token."""
    distance: float
    """Mean difference, in nats, of the log-probability of the export's most likely token from the trained model's."""
    at_most: float
    distance_base: float
    """The same difference from the base."""
    own_distance: float | None
    """The same difference of the base in this form from the base; None if not measured."""
    largest: float | None
    """Largest difference of any token's log-probability; None if only that of the most likely token is known."""
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


def most_likely(logprobs: torch.Tensor) -> tuple[list[int], list[float]]:
    """Return the most likely token at each position, and its log-probability."""
    values, tops = logprobs.max(-1)
    return tops.tolist(), values.tolist()


def exact(reading: Reading, logprobs: torch.Tensor, loaded_with: str) -> Comparison:
    """Compare an export in float32, which should compute the same as the trained model."""
    largest = float((logprobs - reading.trained).abs().max())
    comparison = rounded(reading, *most_likely(logprobs), loaded_with, None, largest)
    faults = []
    if (same := comparison.agreement) < _EXACT_AGREEMENT:
        faults.append(f"it agrees with the trained model on {same:.1%} of the tokens, less than 99 %")
    if not largest <= _EXACT_DIFFERENCE:
        faults.append(f"a log-probability differs by {largest:.3g}, more than {_EXACT_DIFFERENCE}")
    return replace(comparison, at_least=_EXACT_AGREEMENT, at_most=_EXACT_DIFFERENCE, faults=tuple(faults))


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
        base: the same two lists for the base in this form; None if there is no such base.
    """
    same = agreement(most_likely(reading.trained)[0], tops)
    distance, distance_base = reading.distances(tops, logprobs)
    least, most = _DEFAULT_AGREEMENT, _MAX_DISTANCE_RATIO * distance_base
    agreement_base = own_distance = None
    if base is not None:
        agreement_base = agreement(most_likely(reading.base)[0], base[0])
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
