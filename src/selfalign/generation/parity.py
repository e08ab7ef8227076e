"""Compare a model in torch and in llama.cpp: next tokens and their log-probabilities at fixed positions.

Training compares its adapter in both; an export is compared with the trained model (export/compare.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from selfalign.constitution import Constitution
from selfalign.data.prompt_text import Turn
from selfalign.generation.engines.llama_cpp import LlamaCpp
from selfalign.model.dialogue import Template, Tokenizer
from selfalign.system.signals import STOP
from selfalign.training.forward import causal_lm, output_scale

POSITIONS = 200
_MAX_LOSS_OF_AGREEMENT = 0.02
"""Maximum loss of agreement by the adapter, beyond the loss by quantisation without it."""
_MIN_CHANGED = 0.10
"""Minimum fraction of next tokens that a trained adapter changes."""

Span = tuple[list[int], range]
"""(token ids of a text, positions whose tokens are predicted)."""


@dataclass(frozen=True, slots=True)
class Parity:
    """Fractions of the compared positions, 0 to 1."""

    positions: int
    """Number of compared positions."""
    agreement_base: float
    """Torch and engine have the same most likely token without the adapter."""
    agreement_adapter: float
    """Torch and engine have the same most likely token with the adapter."""
    changed: float
    """The adapter changes the engine's most likely token."""

    @property
    def holds(self) -> bool:
        """Whether agreement falls by at most 2 points with the adapter, and at least 10 % of the tokens change."""
        return self.agreement_adapter >= self.agreement_base - _MAX_LOSS_OF_AGREEMENT and self.changed >= _MIN_CHANGED


def texts(constitution: Constitution, template: Template, tokenizer: Tokenizer) -> list[list[int]]:
    """Return the token ids of the dialogues to compare: the exemplars as rows, which are never trained on."""
    system, label = constitution.system_prompt("standard"), constitution.assistant.name
    rows = []
    for exemplar in constitution.exemplars:
        prompt = template.prompt(system, [Turn("user", exemplar.user)], label)
        rows.append(tokenizer.encode((*prompt, template.space + exemplar.answer.strip())))
    return rows


def spans(rows: list[list[int]], positions: int = POSITIONS) -> list[Span]:
    """Return the last positions of each row: equally many per row, `positions` in total if the rows are long enough."""
    counts = [0] * len(rows)
    remaining = positions
    while remaining and (open_rows := [i for i, row in enumerate(rows) if counts[i] < len(row) - 1]):
        share = max(1, remaining // len(open_rows))
        for i in open_rows:
            added = min(share, remaining, len(rows[i]) - 1 - counts[i])
            counts[i] += added
            remaining -= added
    return [(row, range(len(row) - n, len(row))) for row, n in zip(rows, counts, strict=True) if n]


def measure(model: Any, engine: LlamaCpp, adapter: str, rows: list[list[int]]) -> Parity:
    """Compare a PEFT model with the engine's adapter `adapter` at the last positions of each row."""
    positions = spans(rows)
    adapted = _most_likely_tokens(model, positions)
    with model.disable_adapter():
        base = _most_likely_tokens(model, positions)
    engine_base, _ = engine_reads(engine, None, positions)
    engine_adapted, _ = engine_reads(engine, adapter, positions)
    return Parity(
        len(base),
        agreement(base, engine_base),
        agreement(adapted, engine_adapted),
        1 - agreement(engine_base, engine_adapted),
    )


def agreement(first: list[int], second: list[int]) -> float:
    """Return the fraction of positions, 0 to 1, at which both have the same token."""
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


@torch.no_grad()
def torch_reads(model: Any, positions: list[Span]) -> torch.Tensor:
    """Return the log-probability of every token at N positions, (N, V), float32. Sets the model to eval mode."""
    return torch.cat([torch.log_softmax(logits, -1) for logits in _logits(model, positions)])


def _most_likely_tokens(model: Any, positions: list[Span]) -> list[int]:
    return [int(i) for logits in _logits(model, positions) for i in logits.argmax(-1)]


@torch.no_grad()
def _logits(model: Any, positions: list[Span]) -> list[torch.Tensor]:
    """Return the logits of each text's n positions, (n, V), float32, on the CPU."""
    model.eval()
    inner = causal_lm(model)
    cap = getattr(inner.config, "final_logit_softcapping", None)
    results = []
    for row, span in positions:
        STOP.check()
        ids = torch.tensor([row], device=inner.lm_head.weight.device)
        hidden = inner.model(input_ids=ids, use_cache=False).last_hidden_state[0]
        logits = inner.lm_head(hidden[[i - 1 for i in span]]).float().cpu() * output_scale(inner.config)
        results.append(torch.tanh(logits / cap) * cap if cap else logits)
    return results


def engine_reads(engine: LlamaCpp, adapter: str | None, positions: list[Span]) -> tuple[list[int], list[float]]:
    """Return the most likely token at each position, and its log-probability."""
    tokens, logprobs = [], []
    for row, span in positions:
        for i in span:
            STOP.check()
            token, logprob = engine.most_likely_token(row[:i], adapter)
            tokens.append(token)
            logprobs.append(logprob)
    return tokens, logprobs
