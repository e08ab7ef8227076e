"""Log-probabilities of many texts by torch, each shared beginning computed once and the head only where it is needed.

A tree of texts (scoring.py) goes through the model as one sequence, in which a mask lets each token see its own
ancestors only and its position is the one in its own text. Nothing is padded, so that texts need not be sorted by their
length. Keys and values of a long beginning that all texts share are kept from call to call.
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
"""Positions at once under the head: 64 x 262,144 floats are 67 MB."""
_TOLERANCE = 1e-3
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


class TreeScoring:
    """Scores token ids under a model that is in memory.

    Args:
        model: a causal_lm language model of transformers, with adapters or without; the one that is switched on counts.
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
        """Whether trees give this model's own numbers; None before it was tried."""
        self.asked = self.computed = 0

    @property
    def longest(self) -> int:
        """Tokens that the model can take."""
        return int(getattr(self._config, "max_position_embeddings", None) or 2**31)

    @torch.no_grad()
    def score(self, requests: Sequence[ScoreRequest], adapter: str | None, shared: bool = True) -> list[Scored]:
        """The log-probabilities of each request's continuation, in their order.

        Args:
            adapter: which one is switched on: a kept prefix is that of a model.

        Raises:
            Interrupted: a signal came between two trees.
        """
        if not requests:
            return []
        self._model.eval()
        if self.as_trees is None:
            self.as_trees = self._agrees(requests, adapter)
            self.computed = 0
        self.asked += sum(len(r.ids) - 1 for r in requests)
        if not self.as_trees:
            self.computed += sum(len(r.ids) - 1 for r in requests)
            return [self._whole(r) for r in requests]
        return self._by_trees(requests, adapter, shared)

    def _by_trees(self, requests: Sequence[ScoreRequest], adapter: str | None, shared: bool) -> list[Scored]:
        kept = self._prefix if adapter == self._prefix_of else ()
        layout = lay_out(requests, cached=kept, shared=shared)
        self.computed += layout.computed - (len(kept) if layout.prefix == kept else 0)
        self._keep(layout, adapter)
        found: list[Scored] = [Scored(())] * len(requests)
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
                found[i] = Scored(tuple(next(values) for _ in nodes))
        return found

    def _keep(self, layout: Layout, adapter: str | None) -> None:
        """Compute keys and values of the common prefix, unless they are those of the last call."""
        from transformers import DynamicCache

        if layout.prefix and (layout.prefix, adapter) != (self._prefix, self._prefix_of):
            cache = DynamicCache()
            ids = torch.tensor([layout.prefix], device=self._head.weight.device)
            self._body(input_ids=ids, past_key_values=cache, use_cache=True)
            self._keys = [(layer.keys, layer.values) for layer in cache.layers]
            self._prefix, self._prefix_of = layout.prefix, adapter

    def _hidden(self, tree: Tree, prefix: tuple[int, ...]) -> torch.Tensor:
        """(N, d): the last hidden state of each node."""
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
        """What each node sees: the prefix and its own ancestors, through the window where a layer has one.

        Added to the scores of attention: of shape (1, 1, N, prefix + N), one for each kind of layer that the model has.
        """
        number = len(tree.ids)
        ancestors = np.zeros((number, prefix + number), dtype=bool)  # rows are copied ten times faster than torch's
        ancestors[:, :prefix] = True
        for node, parent in enumerate(tree.parents):
            if parent >= 0:
                ancestors[node] = ancestors[parent]
            ancestors[node, prefix + node] = True
        sees = torch.from_numpy(ancestors)
        positions = torch.tensor([*range(prefix), *tree.positions])
        far = positions[prefix:, None] - positions[None, :]
        types = list(dict.fromkeys(getattr(self._config, "layer_types", None) or []))
        window = getattr(self._config, "sliding_window", None)
        near = sees & (far < window) if window else sees
        if len(types) > 1:
            return {kind: self._added(near if kind == "sliding_attention" else sees) for kind in types}
        # Without a list of layers, a window is that of all layers.
        windowed = types == ["sliding_attention"] or not types
        return self._added(near if windowed else sees)

    def _added(self, sees: torch.Tensor) -> torch.Tensor:
        dtype, device = self._head.weight.dtype, self._head.weight.device
        mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)
        return mask[None, None].to(device)

    def _logprobs(self, hidden: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> list[float]:
        """Log-probability of each (row of `hidden`, token); the rows come in order."""
        found: list[float] = []
        cap = getattr(self._config, "final_logit_softcapping", None)
        rows = torch.tensor([row for row, _ in pairs], device=hidden.device)
        tokens = torch.tensor([token for _, token in pairs], device=hidden.device)
        order = torch.argsort(rows, stable=True)
        values = torch.empty(len(pairs), device=hidden.device)
        for at in range(0, len(hidden), _CHUNK):
            mine = order[(rows[order] >= at) & (rows[order] < at + _CHUNK)]
            logits = self._logits(hidden[at : at + _CHUNK])
            if cap:
                logits.div_(cap).tanh_().mul_(cap)
            top = logits.amax(1, keepdim=True)
            picked = logits[rows[mine] - at, tokens[mine]]
            total = (logits.sub_(top).exp_().sum(1).log() + top[:, 0])[rows[mine] - at]
            values[mine] = (picked - total).to(values.dtype)
        found += values.tolist()
        return found

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, V), in one buffer for all calls: asking for so much memory again costs more than filling it."""
        weight, bias = self._head.weight, getattr(self._head, "bias", None)
        if self._buffer.numel() == 0:
            self._buffer = torch.empty(_CHUNK, len(weight), dtype=weight.dtype, device=weight.device)
        logits = torch.mm(hidden, weight.T, out=self._buffer[: len(hidden)])
        return logits if bias is None else logits.add_(bias)

    def _whole(self, request: ScoreRequest) -> Scored:
        """One request by the model's own forward pass and its own logits, nothing shared."""
        STOP.check()
        ids = torch.tensor([request.ids[:-1]], device=self._head.weight.device)
        number = len(request.continuation)
        logits = forward.causal_lm(self._model)(input_ids=ids, use_cache=False, logits_to_keep=number).logits[
            0, -number:
        ]
        chosen = torch.tensor(request.continuation, device=logits.device)[:, None]
        return Scored(tuple(torch.log_softmax(logits.float(), -1).gather(1, chosen)[:, 0].tolist()))

    def _agrees(self, requests: Sequence[ScoreRequest], adapter: str | None) -> bool:
        """Whether trees give what the model's own forward pass gives, on the longest request and a few others.

        An architecture may mask, cap or scale in a way that is not known here; it is then scored text by text.
        """
        kinds = set(getattr(self._config, "layer_types", None) or [])
        if self._body is None or self._head is None or not kinds <= _KNOWN_LAYERS:
            return False
        longest = max(requests, key=lambda r: len(r.ids))
        some = [longest, *requests[:3]]
        try:
            # The longest twice over has a prefix to keep; with others it has branches.
            found = [*self._by_trees([longest, longest], adapter, True), *self._by_trees(some, adapter, True)]
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError):
            return False  # the model takes no such masks or positions
        whole = self._whole(longest), self._whole(some[-1])
        pairs = ((found[0], whole[0]), (found[2], whole[0]), (found[-1], whole[1]))
        return all(math.dist(a.logprobs, b.logprobs) <= _TOLERANCE * (1 + len(b.logprobs)) for a, b in pairs)

    def close(self) -> None:
        """Let go of the model and of what is kept."""
        self._model = self._body = self._head = None
        self._keys, self._buffer = [], torch.empty(0)
