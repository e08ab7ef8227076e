"""Do torch and the engine agree on an adapter? Next-token top-1 at fixed positions, with it and without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from selfalign.constitution import Constitution
from selfalign.dialogue import Template, Tokenizer, Turn
from selfalign.engines.llama_cpp import LlamaCpp
from selfalign.signals import STOP
from selfalign.training.forward import causal

POSITIONS = 200
_MAX_LOSS_OF_AGREEMENT = 0.02
_MIN_CHANGED = 0.10


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
    system, label = constitution.inference_prompt("standard"), constitution.assistant.name
    found = []
    for exemplar in constitution.exemplars:
        prompt = template.prompt(system, [Turn("user", exemplar.user)], label)
        found.append(tokenizer.encode((*prompt, template.space + exemplar.answer.strip())))
    return found


def measure(model: Any, engine: LlamaCpp, adapter: str, rows: list[list[int]]) -> Parity:
    """Compare the PEFT model with the engine's adapter of that name at the last positions of each row."""
    each = POSITIONS // len(rows)
    spans = [(row, range(max(1, len(row) - each), len(row))) for row in rows]
    adapted = _torch_top1(model, spans)
    with model.disable_adapter():
        base = _torch_top1(model, spans)
    STOP.check()
    engine_base = [engine.top_token(row[:at], None) for row, span in spans for at in span]
    STOP.check()
    engine_adapted = [engine.top_token(row[:at], adapter) for row, span in spans for at in span]
    n = len(base)
    return Parity(
        n,
        sum(a == b for a, b in zip(base, engine_base, strict=True)) / n,
        sum(a == b for a, b in zip(adapted, engine_adapted, strict=True)) / n,
        sum(a != b for a, b in zip(engine_base, engine_adapted, strict=True)) / n,
    )


@torch.no_grad()
def _torch_top1(model: Any, spans: list[tuple[list[int], range]]) -> list[int]:
    model.eval()
    inner = causal(model)
    device = inner.lm_head.weight.device
    found: list[int] = []
    for row, span in spans:
        hidden = inner.model(input_ids=torch.tensor([row], device=device), use_cache=False).last_hidden_state[0]
        wanted = hidden[[at - 1 for at in span]]
        found += (wanted @ inner.lm_head.weight.T).argmax(-1).tolist()
    return found
