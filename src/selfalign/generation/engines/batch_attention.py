"""Keep the keys and values of a batch of texts, and attend over them and over prefixes that several texts share.

Each text of the batch has a slot. A long prefix, such as a constitution, is kept once and not in every slot: its part
of the attention is one matrix product for all texts that begin with it.

Shapes: N texts, T new tokens of each, P tokens of the longest prefix, L tokens per slot, H heads, K heads of keys, D
the size of a head.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache

NAME = "selfalign_batch"
"""The name of `attend` among transformers' attention functions."""
_ROUND = 128
"""The length of the slots grows in steps of this many tokens."""


@dataclass(eq=False)
class Prefix:
    """The keys and values of a beginning that several texts share."""

    tokens: tuple[int, ...] = ()
    layers: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Keys and values of each layer, (K, len(tokens), D)."""


@dataclass(frozen=True, slots=True)
class Pass:
    """The texts and positions of one forward pass."""

    first: int
    """The slot of the first text; the others follow."""
    prefixes: Sequence[Prefix]
    """The prefix of each text; one without tokens if it has none."""
    places: torch.Tensor
    """Where each new token is written in its slot, (N, T); padding goes to the last place."""

    @property
    def texts(self) -> int:
        """N."""
        return len(self.prefixes)

    @property
    def longest(self) -> int:
        """P."""
        return max(len(prefix.tokens) for prefix in self.prefixes)


class SlotCache(Cache):  # type: ignore[misc]  # transformers has no types
    """The keys and values of all slots, as transformers' models use a cache: `update` writes and returns them."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.slots, self.length = 0, 0
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}
        self.now = Pass(0, (), torch.empty(0, 0))
        """The forward pass that runs, or the last one."""

    def reserve(self, slots: int, length: int) -> None:
        """Make room for this many slots, and for this many tokens and padding in each."""
        slots, length = max(slots, self.slots), max(-(-(length + 1) // _ROUND) * _ROUND, self.length)
        if (slots, length) == (self.slots, self.length):
            return
        for store in (self._keys, self._values):
            for layer, old in store.items():
                # Zeros, because a masked value that is not a number would spoil a sum.
                new = old.new_zeros(slots, old.shape[1], length, old.shape[3])
                new[: self.slots, :, : self.length] = old
                store[layer] = new
        self.slots, self.length = slots, length

    def clear(self) -> None:
        """Free the memory of all slots."""
        self._keys.clear()
        self._values.clear()
        self.slots, self.length = 0, 0

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of one slot to another."""
        for store in (self._keys, self._values):
            for tensor in store.values():
                tensor[target, :, :length] = tensor[source, :, :length]

    def prefix(self, tokens: Sequence[int], start: Prefix) -> Prefix:
        """Return a prefix of these tokens after those of `start`, from the keys and values of the first slot."""
        number, layers = len(tokens), []
        for place, n in enumerate(sorted(self._keys)):
            new = [store[n][0, :, :number] for store in (self._keys, self._values)]
            old = start.layers[place] if start.tokens else None
            keys, values = (torch.cat([old[i], t], 1) if old is not None else t.clone() for i, t in enumerate(new))
            layers.append((keys, values))
        return Prefix((*start.tokens, *tokens), layers)

    def bytes_per_token(self) -> int:
        """Return the memory of a token in all layers; 0 before the first pass."""
        return sum(2 * t.shape[1] * t.shape[3] * t.element_size() for t in self._keys.values())

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of the new tokens, (N, K, T, D); return those of the slots, (N, K, L, D)."""
        first, number = self.now.first, self.now.texts
        found = []
        for store, new in ((self._keys, key_states), (self._values, value_states)):
            if layer_idx not in store:
                store[layer_idx] = new.new_zeros(self.slots, new.shape[1], self.length, new.shape[3])
            slots = store[layer_idx][first : first + number]
            slots.transpose(1, 2)[torch.arange(number)[:, None], self.now.places] = new.transpose(1, 2)
            found.append(slots)
        return found[0], found[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions and masks are given to every pass."""
        return 0


_running = threading.local()
"""The cache of each thread's pass, which models do not give to the attention function."""


def forward(model: Any, cache: SlotCache, now: Pass, **inputs: Any) -> Any:
    """Run a forward pass of a model whose attention function is `attend`."""
    cache.now, _running.cache = now, cache
    try:
        return model(past_key_values=cache, use_cache=True, **inputs)
    finally:
        del _running.cache


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend over each text's prefix and slot, as transformers' attention functions do.

    Args:
        query: (N, H, T, D).
        key: of the slots, (N, K, L, D); so is `value`.
        attention_mask: what to add to the scores, (N, 1, T, P + L).

    Returns:
        (N, T, H, D).
    """
    now: Pass = _running.cache.now
    number, heads, new, size = query.shape
    key_heads, groups = key.shape[1], heads // key.shape[1]
    query = (query * (size**-0.5 if scaling is None else scaling)).reshape(number, key_heads, groups * new, size)
    longest = now.longest
    scores = query.new_zeros(number, key_heads, groups * new, longest + key.shape[2])
    scores[..., longest:] = query @ key.transpose(2, 3)
    shared = _by_prefix(now.prefixes)
    for prefix, rows in shared:
        keys = prefix.layers[module.layer_idx][0]
        part = _flat(query[rows]) @ keys.transpose(1, 2)
        scores[rows, :, :, : keys.shape[1]] = _unflat(part, len(rows))
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores = scores.view(number, key_heads, groups, new, -1) + attention_mask[:, :, None]
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype).view(number, key_heads, groups * new, -1)
    found = weights[..., longest:] @ value
    for prefix, rows in shared:
        values = prefix.layers[module.layer_idx][1]
        found[rows] += _unflat(_flat(weights[rows][..., : values.shape[1]]) @ values, len(rows))
    return found.view(number, heads, new, value.shape[3]).transpose(1, 2).contiguous(), None


def _by_prefix(prefixes: Sequence[Prefix]) -> list[tuple[Prefix, list[int]]]:
    """Return each prefix that has tokens, with the indices of its texts."""
    rows: dict[int, list[int]] = {}
    for index, prefix in enumerate(prefixes):
        if prefix.tokens:
            rows.setdefault(id(prefix), []).append(index)
    return [(prefixes[indices[0]], indices) for indices in rows.values()]


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """Return (n, K, R, D) as (K, n * R, D)."""
    return tensor.transpose(0, 1).reshape(tensor.shape[1], -1, tensor.shape[3])


def _unflat(tensor: torch.Tensor, number: int) -> torch.Tensor:
    """Return (K, n * R, D) as (n, K, R, D)."""
    return tensor.view(tensor.shape[0], number, -1, tensor.shape[2]).transpose(0, 1)


def masks(config: Any, now: Pass, length: int, dtype: torch.dtype) -> Any:
    """Return the mask of a pass: each token sees its prefix and its slot up to itself, within a layer's window.

    Args:
        config: the model's text configuration.
        length: L.

    Returns:
        A mask to add to scores, (N, 1, T, P + L); for a model with several types of layers, a mask per type.
    """
    sizes = torch.tensor([len(prefix.tokens) for prefix in now.prefixes])[:, None, None]
    places = now.places[:, :, None]
    columns = torch.arange(now.longest + length)
    own = columns - now.longest
    visible = torch.where(own < 0, columns < sizes, own <= places)
    # Padding is written to the last place, which only padding sees.
    padding = places == length - 1
    visible = torch.where(own == length - 1, padding, visible & ~(padding & (own >= 0)))
    window = getattr(config, "sliding_window", None)
    types = list(dict.fromkeys(getattr(config, "layer_types", None) or []))
    in_window = visible
    if window:
        positions = torch.where(own < 0, columns, own + sizes)
        in_window = visible & ((places + sizes - positions < window) | padding)
    if len(types) > 1:
        return {kind: _additive(in_window if kind == "sliding_attention" else visible, dtype) for kind in types}
    # Without a list of layer types, a window applies to all layers.
    return _additive(in_window if types == ["sliding_attention"] or not types else visible, dtype)


def _additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
    return mask[:, None]
