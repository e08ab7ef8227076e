"""Do two forms of a model agree? Next tokens and their log-probabilities at fixed positions, in torch and llama.cpp.

After training the adapter is compared in llama.cpp; an export is compared with the trained model (export/compare.py).
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
from selfalign.training.forward import causal_lm

POSITIONS = 200
_MAX_LOSS_OF_AGREEMENT = 0.02
"""Quantised weights and activations disagree with float32 already without an adapter; with it by this much more."""
_MIN_CHANGED = 0.10

Span = tuple[list[int], range]
"""Token ids of a text, and the positions in it whose token is predicted from those before it."""


@dataclass(frozen=True, slots=True)
class Parity:
    """Shares of the positions, 0 to 1."""

    positions: int
    agreement_base: float
    """torch and engine have the same top-1 token without the adapter."""
    agreement_adapter: float
    """The same with the adapter."""
    changed: float
    """The adapter changes the engine's top-1 token."""

    @property
    def holds(self) -> bool:
        """At most 2 points less agreement with the adapter than without, and at least 10 % of the tokens changed."""
        return self.agreement_adapter >= self.agreement_base - _MAX_LOSS_OF_AGREEMENT and self.changed >= _MIN_CHANGED


def texts(constitution: Constitution, template: Template, tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of the dialogues that are compared: the exemplars in the training form, none of which is trained on."""
    system, label = constitution.system_prompt("standard"), constitution.assistant.name
    found = []
    for exemplar in constitution.exemplars:
        prompt = template.prompt(system, [Turn("user", exemplar.user)], label)
        found.append(tokenizer.encode((*prompt, template.space + exemplar.answer.strip())))
    return found


def spans(rows: list[list[int]]) -> list[Span]:
    """The last positions of each row, `POSITIONS` in all where the rows are long enough: the same number of each."""
    taken = [0] * len(rows)
    left = POSITIONS
    while left and (open_rows := [i for i, row in enumerate(rows) if taken[i] < len(row) - 1]):
        share = max(1, left // len(open_rows))
        for i in open_rows:
            more = min(share, left, len(rows[i]) - 1 - taken[i])
            taken[i] += more
            left -= more
    return [(row, range(len(row) - n, len(row))) for row, n in zip(rows, taken, strict=True) if n]


def measure(model: Any, engine: LlamaCpp, adapter: str, rows: list[list[int]]) -> Parity:
    """Compare the PEFT model with the engine's adapter of that name at the last positions of each row."""
    at = spans(rows)
    adapted = _tops(model, at)
    with model.disable_adapter():
        base = _tops(model, at)
    engine_base, _ = engine_reads(engine, None, at)
    engine_adapted, _ = engine_reads(engine, adapter, at)
    return Parity(
        len(base),
        agreement(base, engine_base),
        agreement(adapted, engine_adapted),
        1 - agreement(engine_base, engine_adapted),
    )


def agreement(one: list[int], other: list[int]) -> float:
    """Share of the positions, 0 to 1, at which both have the same token."""
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


@torch.no_grad()
def torch_reads(model: Any, at: list[Span]) -> torch.Tensor:
    """Log-probabilities (N, V), float32, of every token at the N positions; the model's mode is set to eval."""
    return torch.cat([torch.log_softmax(logits, -1) for logits in _logits(model, at)])


def _tops(model: Any, at: list[Span]) -> list[int]:
    return [int(i) for logits in _logits(model, at) for i in logits.argmax(-1)]


@torch.no_grad()
def _logits(model: Any, at: list[Span]) -> list[torch.Tensor]:
    """The logits (n, V), float32, of each text's positions, in the processor's memory."""
    model.eval()
    inner = causal_lm(model)
    cap = getattr(inner.config, "final_logit_softcapping", None)
    found = []
    for row, span in at:
        STOP.check()
        ids = torch.tensor([row], device=inner.lm_head.weight.device)
        hidden = inner.model(input_ids=ids, use_cache=False).last_hidden_state[0]
        logits = inner.lm_head(hidden[[i - 1 for i in span]]).float().cpu()
        found.append(torch.tanh(logits / cap) * cap if cap else logits)
    return found


def engine_reads(engine: LlamaCpp, adapter: str | None, at: list[Span]) -> tuple[list[int], list[float]]:
    """The most likely token at each position, and its log-probability."""
    found = []
    for row, span in at:
        for i in span:
            STOP.check()
            found.append(engine.top(row[:i], adapter))
    return [token for token, _ in found], [value for _, value in found]
