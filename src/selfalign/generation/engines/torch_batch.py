"""Compute the next logits of a batch of texts with a model of transformers."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface

from selfalign.errors import UserError
from selfalign.generation.engines import batch_attention
from selfalign.generation.engines.batch_attention import Pass, Prefix, SlotCache, masks
from selfalign.model.dialogue import Tokenizer
from selfalign.system.environment import free_megabytes
from selfalign.training import device, forward, lora
from selfalign.training.device import Placement

AttentionInterface.register(batch_attention.NAME, batch_attention.attend)

_CHUNK = 512
"""Tokens of a prompt that are computed at once."""
_MEMORY = 0.5
"""Fraction of the free memory that slots may take."""
_UNKNOWN_MEGABYTES = 4000.0
_PREFIX_MEMORY = 0.1
"""Fraction of the free memory that kept prefixes may take."""
_SHARED = 48
"""Tokens that two prompts must share, beyond a kept prefix, for their common beginning to be kept."""
_JOINT = 3
"""Tokens at the end of a prompt that may change when the text continues."""
_RECENT = 64
"""Earlier prompts that a new one is compared with."""
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_TRIAL = (
    "The capital of France is the city of",
    "1, 1, 2, 3, 5, 8, 13,",
    "She opened the letter, read it twice, and then put it back into the drawer, because",
)
_TOLERANCE = {torch.float32: 1e-2, torch.float16: 0.3, torch.bfloat16: 0.6}
"""Maximum difference of the likeliest token's log-probability between the batch and the model's own forward pass."""


@dataclass(eq=False)
class Text:
    """A text in the batch."""

    slot: int
    prefix: Prefix
    used: int = 0
    """Tokens in its slot."""


class Batch:
    """The texts that a model continues at once. Only one thread may call it, except `expect` and `fits`.

    Args:
        folder: the base model's Hugging Face folder.
        adapters: name -> PEFT folder.
        where: the device and the type to compute in.

    Raises:
        UserError: torch cannot load the model, or a batch gives other results than the model itself.
    """

    def __init__(self, folder: Path, adapters: Mapping[str, Path], where: Placement, tokenizer: Tokenizer) -> None:
        self._model: Any = lora.load_base(folder, where)
        self._config = self._model.config.get_text_config()
        self._device, self._dtype = torch.device(where.device), getattr(torch, where.dtype)
        self._head = self._model.get_output_embeddings()
        self.vocabulary = int(self._head.weight.shape[0])
        self._cache = SlotCache()
        self._texts: list[Text] = []
        self._adapter: str | None = None
        self._prefixes: dict[tuple[tuple[int, ...], str | None], Prefix | None] = {}
        """(tokens, adapter) -> the prefix; None until it is computed."""
        self._recent: deque[Sequence[int]] = deque(maxlen=_RECENT)
        self._free = _free_bytes(self._device)
        self._check(folder, tokenizer)
        for name, path in adapters.items():
            self._model = lora.add_adapter(self._model, path, name)
        self._adapter = next(iter(adapters), None)
        self._select(None)

    @property
    def max_tokens(self) -> int:
        """The maximum number of tokens of a text."""
        return int(getattr(self._config, "max_position_embeddings", None) or 2**31)

    def fits(self, texts: int, length: int) -> bool:
        """Return whether the memory has room for so many texts of so many tokens."""
        return texts * length * self._cache.bytes_per_token() <= _MEMORY * self._free

    def rest(self, prompt: Sequence[int], adapter: str | None) -> int:
        """Return how many tokens of a prompt its slot holds: those after its prefix."""
        return len(prompt) - len((self._key_of(prompt, adapter) or ((), None))[0])

    def expect(self, tokens: Sequence[int], adapter: str | None) -> None:
        """Keep this prefix, which the first text that begins with it computes."""
        self._prefixes.setdefault((tuple(tokens), adapter), None)

    @torch.inference_mode()
    def begin(self, prompts: Sequence[Sequence[int]], adapter: str | None) -> tuple[list[Text], torch.Tensor]:
        """Add texts to the batch; return them and their next logits, (n, V).

        All texts in the batch must have the same adapter.
        """
        self._select(adapter)
        self._notice(prompts, adapter)
        prefixes = [self._prefix_of(prompt, adapter) for prompt in prompts]
        first = len(self._texts)
        rest = [list(prompt[len(prefix.tokens) :]) for prompt, prefix in zip(prompts, prefixes, strict=True)]
        texts = [Text(first + n, prefix) for n, prefix in enumerate(prefixes)]
        self._texts += texts
        self._cache.reserve(-(-len(self._texts) // 8) * 8, max(map(len, rest)))
        return texts, self._compute(texts, rest)

    @torch.inference_mode()
    def step(self, last: Sequence[tuple[Text, int]]) -> torch.Tensor:
        """Return the next logits of all texts after their last tokens, (N, V), in the order given."""
        self._cache.reserve(len(last), max(text.used for text, _ in last) + 1)
        ordered = sorted(range(len(last)), key=lambda n: last[n][0].slot)
        logits = self._compute([last[n][0] for n in ordered], [[last[n][1]] for n in ordered])
        if ordered == list(range(len(last))):
            return logits
        places = torch.empty(len(last), dtype=torch.long)
        places[torch.tensor(ordered)] = torch.arange(len(last))
        return logits[places.to(logits.device)]

    @torch.inference_mode()
    def end(self, text: Text) -> None:
        """Take a text out of the batch; the last one moves to its slot."""
        last = self._texts.pop()
        if last is not text:
            self._cache.move(last.slot, text.slot, last.used)
            self._texts[text.slot] = last
            last.slot = text.slot
        if not self._texts and self._cache.length > 2 * _CHUNK:
            self._cache.clear()

    def _select(self, adapter: str | None) -> None:
        if adapter == self._adapter:
            return
        self._adapter = adapter
        if adapter is None:
            self._model.base_model.disable_adapter_layers()
        else:
            self._model.base_model.enable_adapter_layers()
            self._model.set_adapter(adapter)

    def _prefix_of(self, prompt: Sequence[int], adapter: str | None) -> Prefix:
        """Return the longest kept prefix of a prompt that leaves at least one token, computed if it is new."""
        key = self._key_of(prompt, adapter)
        if key is None:
            return Prefix()
        prefix = self._prefixes.pop(key) or self._compute_prefix(*key)
        self._prefixes[key] = prefix  # the most recent one stands last
        size = self._cache.bytes_per_token() * sum(len(tokens) for (tokens, _), kept in self._prefixes.items() if kept)
        for old, kept in list(self._prefixes.items()):
            if size <= _PREFIX_MEMORY * self._free or old == key:
                break
            if kept:
                size -= self._cache.bytes_per_token() * len(old[0])
                del self._prefixes[old]
        return prefix

    def _notice(self, prompts: Sequence[Sequence[int]], adapter: str | None) -> None:
        """Keep the beginnings that new prompts share with each other, or with recent prompts."""
        for prompt in prompts:
            known = len(prompt) - self.rest(prompt, adapter)
            # The last token is always computed with its text.
            shared = max((_shared(prompt, other) for other in self._recent), default=0)
            if shared - known >= _SHARED:
                self.expect(prompt[:shared], adapter)
            self._recent.append(prompt)

    def _key_of(self, prompt: Sequence[int], adapter: str | None) -> tuple[tuple[int, ...], str | None] | None:
        """Return the key of the longest prefix of a prompt that leaves at least one token; None if there is none."""
        longest = None
        for key in list(self._prefixes):
            size = len(key[0])
            if key[1] == adapter and size < len(prompt) and (longest is None or size > len(longest[0])):
                longest = key if tuple(prompt[:size]) == key[0] else longest
        return longest

    def _compute_prefix(self, tokens: tuple[int, ...], adapter: str | None) -> Prefix:
        """Compute a prefix, from the longest kept one that it begins with."""
        key = self._key_of(tokens, adapter)
        start = (self._prefixes[key] if key else None) or Prefix()
        rest = tokens[len(start.tokens) :]
        cache, self._cache = self._cache, SlotCache()
        try:
            self._cache.reserve(1, len(rest))
            self._compute([Text(0, start)], [list(rest)])
            return self._cache.prefix(rest, start)
        finally:
            self._cache = cache

    def _compute(self, texts: Sequence[Text], new: Sequence[list[int]]) -> torch.Tensor:
        """Append tokens to neighbouring slots; return the logits after the last token of each text, (n, V)."""
        longest = max(map(len, new))
        # Padding comes first, so that the last column holds every text's last token; so does a first, shorter chunk.
        padded = [[0] * (longest - len(ids)) + ids for ids in new]
        places = torch.full((len(texts), longest), self._cache.length - 1)
        for row, (text, ids) in enumerate(zip(texts, new, strict=True)):
            places[row, longest - len(ids) :] = torch.arange(text.used, text.used + len(ids))
            text.used += len(ids)
        ids, logits = torch.tensor(padded), torch.empty(0)
        for start in range(0, longest, _CHUNK):
            now = Pass(texts[0].slot, [text.prefix for text in texts], places[:, start : start + _CHUNK])
            logits = self._forward(ids[:, start : start + _CHUNK], now)
        return logits

    def _forward(self, ids: torch.Tensor, now: Pass) -> torch.Tensor:
        is_padding = now.places == self._cache.length - 1
        sizes = torch.tensor([len(prefix.tokens) for prefix in now.prefixes])[:, None]
        positions = torch.where(is_padding, 0, now.places + sizes)
        mask = masks(self._config, now, self._cache.length, self._dtype)
        mask = {k: m.to(self._device) for k, m in mask.items()} if isinstance(mask, dict) else mask.to(self._device)
        placed = Pass(now.first, now.prefixes, now.places.to(self._device))
        lm = forward.causal_lm(self._model)
        output = batch_attention.forward(
            getattr(lm, lm.base_model_prefix), self._cache, placed, input_ids=ids.to(self._device),
            position_ids=positions.to(self._device), attention_mask=mask,
        )  # fmt: skip
        return self._logits(output.last_hidden_state[:, -1].contiguous())

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of hidden states, (n, V), in float32.

        The output layer is applied here, because transformers passes it a slice of the hidden states, for which torch
        copies the weights once per text.
        """
        logits: torch.Tensor = self._head(hidden).float()
        if (scale := forward.output_scale(self._config)) != 1:
            logits.mul_(scale)
        if cap := getattr(self._config, "final_logit_softcapping", None):
            logits.div_(cap).tanh_().mul_(cap)
        return logits

    @torch.inference_mode()
    def _check(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Select the batch's attention, and compare a batch that has a shared prefix with the model's own passes."""
        texts = [tokenizer.encode((text,)) for text in _TRIAL]
        own = [self._logprobs(ids) for ids in (*texts, *([*ids, ids[-1]] for ids in texts))]
        where = f"engine torch: {folder} ({self._config.model_type})"
        advice = "use engine.kind llama_cpp or vllm_server"
        try:
            if not set(getattr(self._config, "layer_types", None) or []) <= _KNOWN_LAYERS:
                raise ValueError("it has layers without plain attention")
            self._model.set_attn_implementation(batch_attention.NAME)
            self.expect(texts[2][:4], None)
            placed, logits = self.begin(texts, None)
            after = self.step([(text, ids[-1]) for text, ids in zip(placed, texts, strict=True)])
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, NotImplementedError) as error:
            why = " ".join(str(error).split())[:160]
            raise UserError(f"{where} cannot generate in batches ({why}): {advice}") from None
        finally:
            self._texts, self._prefixes = [], {}
            self._recent.clear()
            self._cache.clear()
        mine = torch.cat([logits, after]).log_softmax(1)
        pairs = zip(mine, own, strict=True)
        difference = max(float((batched - alone)[alone.argmax()].abs()) for batched, alone in pairs)
        if not difference <= _TOLERANCE[self._dtype]:
            raise UserError(
                f"{where} gives other results in batches (a log-probability differs by {difference:.2f}): {advice}"
            )

    def _logprobs(self, ids: Sequence[int]) -> torch.Tensor:
        """Return the model's own log-probabilities after a text, (V,)."""
        logits: torch.Tensor = self._model(torch.tensor([list(ids)], device=self._device)).logits[0, -1]
        return logits.float().log_softmax(0)

    def close(self) -> None:
        """Free the model and the memory of the slots."""
        self._model = self._head = None
        self._cache.clear()
        self._prefixes.clear()
        device.free_memory()


def _shared(prompt: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens a prompt shares with another one; 0 if it continues it, as the next step of a request."""
    shared = _common(prompt[:-1], other)
    continues = len(other) - shared <= _JOINT and len(prompt) > len(other)
    return 0 if continues else shared


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the longest common beginning."""
    shortest = min(len(one), len(other))
    low, high = 0, shortest
    while low < high:  # comparing slices is much faster than comparing tokens
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _free_bytes(where: torch.device) -> int:
    """Return the free memory of a device."""
    if where.type == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return int((free_megabytes() or _UNKNOWN_MEGABYTES) * 1e6)
