"""Compute log-probabilities of many texts in torch, sharing their prefixes and skipping unneeded logits.

A tree of texts (`prefix_tree`) goes through the model as one sequence: an attention mask lets each token attend to its
ancestors only, and its position is that in its own text. There is no padding. The keys and values of a long prefix
that all texts share are kept between calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from selfalign.generation.scoring.base import Scored, ScoreRequest
from selfalign.generation.scoring.prefix_tree import Layout, Tree, lay_out
from selfalign.system.signals import STOP
from selfalign.training import forward

_CHUNK = 64
"""Positions whose logits are computed at once: 64 x 262,144 floats take 67 MB."""
_TOLERANCE = 1e-3
"""Maximum difference per continuation, relative to its length, between a tree and a plain forward pass."""
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


class TreeScoring:
    """Scores token ids under a loaded model.

    Args:
        model: a causal language model of transformers; its active adapter applies, if it has one.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        inner = forward.causal_lm(model)
        self._body = getattr(inner, inner.base_model_prefix)
        self._head = inner.get_output_embeddings()
        self._config = inner.config.get_text_config()
        self._buffer = torch.empty(0)
        self._prefix: tuple[int, ...] = ()
        self._prefix_of: str | None = None
        self._keys: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.as_trees: bool | None = None
        """Whether trees give the same scores as this model's plain forward pass; None until checked."""
        self.requested = self.computed = 0

    @property
    def max_tokens(self) -> int:
        """The maximum number of tokens of a text."""
        return int(getattr(self._config, "max_position_embeddings", None) or 2**31)

    @torch.no_grad()
    def score(self, requests: Sequence[ScoreRequest], adapter: str | None) -> list[Scored]:
        """Return the score of each request, in their order.

        Args:
            adapter: the active adapter; a kept prefix is valid for one adapter only.

        Raises:
            Interrupted: a signal arrived between two trees.
        """
        if not requests:
            return []
        self._model.eval()
        if self.as_trees is None:
            self.as_trees = self._agrees(requests, adapter)
            self.computed = 0
        self.requested += sum(len(r.ids) - 1 for r in requests)
        if not self.as_trees:
            self.computed += sum(len(r.ids) - 1 for r in requests)
            return [self._plain(r) for r in requests]
        return self._by_trees(requests, adapter)

    def _by_trees(self, requests: Sequence[ScoreRequest], adapter: str | None) -> list[Scored]:
        cached = self._prefix if adapter == self._prefix_of else ()
        layout = lay_out(requests, cached=cached)
        self.computed += layout.computed - (len(cached) if layout.prefix == cached else 0)
        self._compute_prefix(layout, adapter)
        scores: list[Scored] = [Scored(())] * len(requests)
        for tree in layout.trees:
            STOP.check()
            hidden, rows = self._hidden(tree, layout.prefix), tree.rows()
            row_of = {node: row for row, node in enumerate(rows)}
            pairs = [
                (row_of[node], token)
                for i, nodes in tree.targets
                for node, token in zip(nodes, requests[i].continuation, strict=True)
            ]
            values = iter(self._logprobs(hidden[rows], pairs))
            for i, nodes in tree.targets:
                scores[i] = Scored(tuple(next(values) for _ in nodes))
        return scores

    def _compute_prefix(self, layout: Layout, adapter: str | None) -> None:
        """Compute keys and values of the shared prefix, unless the last call did."""
        from transformers import DynamicCache

        if layout.prefix and (layout.prefix, adapter) != (self._prefix, self._prefix_of):
            cache = DynamicCache()
            ids = torch.tensor([layout.prefix], device=self._head.weight.device)
            self._body(input_ids=ids, past_key_values=cache, use_cache=True)
            self._keys = [(layer.keys, layer.values) for layer in cache.layers]
            self._prefix, self._prefix_of = layout.prefix, adapter

    def _hidden(self, tree: Tree, prefix: tuple[int, ...]) -> torch.Tensor:
        """Return the last hidden state of each node, (N, d)."""
        from transformers import DynamicCache

        device = self._head.weight.device
        cache = None
        if prefix:
            cache = DynamicCache()
            for number, (keys, values) in enumerate(self._keys):
                cache.update(keys, values, number)
        out = self._body(
            input_ids=torch.tensor([tree.ids], device=device),
            position_ids=torch.tensor([tree.positions], device=device),
            attention_mask=self._masks(tree, len(prefix)),
            past_key_values=cache,
            use_cache=bool(prefix),
        )
        return out.last_hidden_state[0]

    def _masks(self, tree: Tree, prefix: int) -> Any:
        """Return the attention mask: each node attends to the prefix and its ancestors, within a layer's window.

        Returns:
            A mask to add to attention scores, (1, 1, N, prefix + N); for a model with several types of layers, a mask
            per type.
        """
        number = len(tree.ids)
        ancestors = np.zeros((number, prefix + number), dtype=bool)  # numpy copies rows ten times faster than torch
        ancestors[:, :prefix] = True
        for node, parent in enumerate(tree.parents):
            if parent >= 0:
                ancestors[node] = ancestors[parent]
            ancestors[node, prefix + node] = True
        visible = torch.from_numpy(ancestors)
        positions = torch.tensor([*range(prefix), *tree.positions])
        distance = positions[prefix:, None] - positions[None, :]
        types = list(dict.fromkeys(getattr(self._config, "layer_types", None) or []))
        window = getattr(self._config, "sliding_window", None)
        in_window = visible & (distance < window) if window else visible
        if len(types) > 1:
            return {kind: self._additive(in_window if kind == "sliding_attention" else visible) for kind in types}
        # Without a list of layer types, a window applies to all layers.
        windowed = types == ["sliding_attention"] or not types
        return self._additive(in_window if windowed else visible)

    def _additive(self, visible: torch.Tensor) -> torch.Tensor:
        dtype, device = self._head.weight.dtype, self._head.weight.device
        mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
        return mask[None, None].to(device)

    def _logprobs(self, hidden: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> list[float]:
        """Return the log-probability of each (row of `hidden`, token). Every row occurs."""
        cap = getattr(self._config, "final_logit_softcapping", None)
        rows = torch.tensor([row for row, _ in pairs], device=hidden.device)
        tokens = torch.tensor([token for _, token in pairs], device=hidden.device)
        order = torch.argsort(rows, stable=True)
        values = torch.empty(len(pairs), device=hidden.device)
        for start in range(0, len(hidden), _CHUNK):
            chunk = order[(rows[order] >= start) & (rows[order] < start + _CHUNK)]
            logits = self._logits(hidden[start : start + _CHUNK])
            if cap:
                logits.div_(cap).tanh_().mul_(cap)
            maximum = logits.amax(1, keepdim=True)
            token_logits = logits[rows[chunk] - start, tokens[chunk]]
            log_total = (logits.sub_(maximum).exp_().sum(1).log() + maximum[:, 0])[rows[chunk] - start]
            values[chunk] = (token_logits - log_total).to(values.dtype)
        logprobs: list[float] = values.tolist()
        return logprobs

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits, (n, V), in a buffer shared by all calls: allocating it again costs more than filling it."""
        weight, bias = self._head.weight, getattr(self._head, "bias", None)
        if self._buffer.numel() == 0:
            self._buffer = torch.empty(_CHUNK, len(weight), dtype=weight.dtype, device=weight.device)
        logits = torch.mm(hidden, weight.T, out=self._buffer[: len(hidden)])
        return logits if bias is None else logits.add_(bias)

    def _plain(self, request: ScoreRequest) -> Scored:
        """Score one request by the model's plain forward pass, with nothing shared."""
        STOP.check()
        ids = torch.tensor([request.ids[:-1]], device=self._head.weight.device)
        count = len(request.continuation)
        logits = forward.causal_lm(self._model)(input_ids=ids, use_cache=False, logits_to_keep=count).logits[0, -count:]
        tokens = torch.tensor(request.continuation, device=logits.device)[:, None]
        return Scored(tuple(torch.log_softmax(logits.float(), -1).gather(1, tokens)[:, 0].tolist()))

    def _agrees(self, requests: Sequence[ScoreRequest], adapter: str | None) -> bool:
        """Return whether trees give the same scores as plain forward passes, for the longest request and a few others.

        Trees do not work for an architecture with its own masks, caps or scales; such a model is scored text by text.
        """
        kinds = set(getattr(self._config, "layer_types", None) or [])
        if self._body is None or self._head is None or not kinds <= _KNOWN_LAYERS:
            return False
        longest = max(requests, key=lambda r: len(r.ids))
        sample = [longest, *requests[:3]]
        try:
            # The longest request twice has a shared prefix; with the others it has branches.
            scores = [*self._by_trees([longest, longest], adapter), *self._by_trees(sample, adapter)]
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError):
            return False  # the model does not accept such masks or positions
        plain = self._plain(longest), self._plain(sample[-1])
        pairs = ((scores[0], plain[0]), (scores[2], plain[0]), (scores[-1], plain[1]))
        return all(math.dist(a.logprobs, b.logprobs) <= _TOLERANCE * (1 + len(b.logprobs)) for a, b in pairs)

    def close(self) -> None:
        """Release the model and the kept prefix."""
        self._model = self._body = self._head = None
        self._keys, self._buffer = [], torch.empty(0)
