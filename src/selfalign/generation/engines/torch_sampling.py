"""Draw tokens from the logits of a batch: bias, penalty, temperature, top_k and top_p of each text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from selfalign.generation.engines.base import Sampling

_GROUP = 64
"""Neighbouring tokens of which only the likeliest is compared at first, because sorting a vocabulary is slow."""


@dataclass(slots=True)
class Draw:
    """How to draw the next token of a text."""

    sampling: Sampling
    generator: np.random.Generator
    changes: Mapping[int, float] = field(default_factory=dict)
    """Token -> what to add to its logit."""
    allowed: np.ndarray | None = None
    """The tokens that a grammar allows; None for all."""


@torch.inference_mode()
def draw(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """Return the next token of each text.

    Args:
        logits: (N, V), which may be changed.
    """
    for row, spec in zip(logits, draws, strict=True):
        if spec.changes:
            tokens = torch.tensor(list(spec.changes), device=logits.device)
            row[tokens] += torch.tensor(list(spec.changes.values()), dtype=row.dtype, device=logits.device)
        if spec.allowed is not None:
            allowed = torch.from_numpy(spec.allowed).to(logits.device)
            kept = row[allowed].clone()
            row.fill_(float("-inf"))
            row[allowed] = kept
    result: list[int] = logits.argmax(1).tolist()
    drawn = [n for n, spec in enumerate(draws) if spec.sampling.temperature > 0]
    if drawn:
        most = max(draws[n].sampling.top_k or logits.shape[1] for n in drawn)
        values, tokens = largest(logits if len(drawn) == len(draws) else logits[drawn], most)
        likely = values.float().cpu().numpy().astype(np.float64), tokens.cpu().numpy()
        for place, n in enumerate(drawn):
            result[n] = _draw(likely[0][place], likely[1][place], draws[n])
    return result


def largest(logits: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (the largest logits of each row in descending order, their tokens), each (N, at most `number`).

    The largest values lie in the groups with the largest maxima, so that only these groups are sorted.
    """
    rows, size = logits.shape
    number = min(number, size)
    groups = size // _GROUP
    if number * 4 > groups:
        values, tokens = torch.topk(logits, number)
        return values, tokens
    tail = logits[:, groups * _GROUP :]
    grouped = logits[:, : groups * _GROUP].view(rows, groups, _GROUP)
    best = torch.topk(grouped.amax(2), number, sorted=False).indices
    values = torch.cat([grouped.gather(1, best[:, :, None].expand(-1, -1, _GROUP)).flatten(1), tail], 1)
    tokens = best[:, :, None] * _GROUP + torch.arange(_GROUP, device=logits.device)
    rest = torch.arange(groups * _GROUP, size, device=logits.device).expand(rows, -1)
    tokens = torch.cat([tokens.flatten(1), rest], 1)
    chosen = torch.topk(values, number)
    return chosen.values, tokens.gather(1, chosen.indices)


def _draw(logits: np.ndarray, tokens: np.ndarray, spec: Draw) -> int:
    """Return a token. `logits` are in descending order."""
    sampling = spec.sampling
    kept = logits[: sampling.top_k or None]
    weights = np.exp((kept - kept[0]) / sampling.temperature)
    total = np.cumsum(weights)
    number = int(np.searchsorted(total, sampling.top_p * total[-1])) + 1
    place = int(np.searchsorted(total[:number], spec.generator.random() * total[min(number, len(total)) - 1], "right"))
    return int(tokens[min(place, len(kept) - 1)])
