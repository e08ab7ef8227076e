"""Generate with vLLM in process: continuous batching, automatic prefix caching, an adapter per request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfalign.data.prompt_text import Control, Pieces
from selfalign.generation.engines.base import Finish, OnText, Part, Step, TooLong
from selfalign.generation.engines.vllm_driver import VllmDriver
from selfalign.model.dialogue import Tokenizer

_FINISH: dict[str, Finish] = {"length": "length", "abort": "cancelled"}


class VllmOffline:
    """One base model and its adapters.

    vLLM has no penalty on repeated n-grams, so `Sampling.repetition` has no effect.

    Args:
        tokenizer: the base model's tokenizer; vLLM gets token ids, so that text never becomes a control token.
        ends: control tokens that end a response.
    """

    def __init__(self, driver: VllmDriver, tokenizer: Tokenizer, ends: Sequence[str]) -> None:
        self.parallel = driver.max_num_seqs
        self.note = ""
        self._driver, self._tokenizer = driver, tokenizer
        self._ends = [tokenizer.first(Control(end)) for end in ends]

    def generate(self, prompt: Pieces, step: Step, seed: int, adapter: str | None, on_text: OnText = None) -> Part:
        """See `Engine.generate`."""
        ids = self._tokenizer.encode(prompt)
        room = self._driver.max_model_len - len(ids)
        if room < 1:
            raise TooLong
        text = ""

        def on_output(output: Any) -> bool:
            nonlocal text
            new, text = output.outputs[0].text[len(text) :], output.outputs[0].text
            return not (on_text and new) or on_text(new)

        output = self._driver.submit(ids, self._params(step, seed, room), adapter, on_output).result()
        completion, cached = output.outputs[0], output.num_cached_tokens or 0
        # `stop_reason` is the text of a stop string; for an end token it is its id or None.
        ended: Finish = "stop" if isinstance(completion.stop_reason, str) else "end"
        finish = _FINISH.get(completion.finish_reason or "abort", ended)
        return Part(completion.text, finish, len(ids) - cached, cached, len(completion.token_ids))

    def _params(self, step: Step, seed: int, room: int) -> Any:
        """Return vLLM's `SamplingParams` of a step."""
        sampling, vllm = step.sampling, self._driver.vllm
        bias = {self._tokenizer.first(text): value for text, value in sampling.bias}
        if sampling.ban_eos:
            # Not ignore_eos: it lets the model generate the end token and continue after it.
            bias |= dict.fromkeys(self._ends, -100.0)
        grammar = vllm.sampling_params.StructuredOutputsParams(grammar=step.grammar) if step.grammar else None
        return vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k or -1,
            max_tokens=min(sampling.max_new_tokens, room),
            seed=seed % 2**31,
            stop=list(step.stop) or None,
            stop_token_ids=None if sampling.ban_eos else self._ends,
            logit_bias=bias or None,
            structured_outputs=grammar,
        )

    def warm_prefix(self, prefix: Pieces, adapter: str | None) -> str:
        """Do nothing: vLLM keeps the blocks of every prefix and finds them by their hash."""
        return "computed by the first requests, then found by the hash of its blocks"

    def close(self) -> None:
        """Stop vLLM."""
        self._driver.close()
