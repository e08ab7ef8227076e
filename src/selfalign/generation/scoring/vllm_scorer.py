"""Scoring by vLLM in process: log-probabilities of prompts, for runs whose engine it is. It generates nothing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from selfalign.errors import Resumable, UserError
from selfalign.generation.engines import vllm_offline
from selfalign.generation.scoring.base import Scored, ScoreRequest, Text, encode_all
from selfalign.model.dialogue import Tokenizer
from selfalign.system.environment import accelerators
from selfalign.system.signals import STOP

_AT_ONCE = {True: 4096, False: 512}
"""Tokens of prompts computed at once, with an accelerator and without: each has a row of logits over the vocabulary."""
_PARALLEL = 16


class VllmScorer:
    """One base model and its adapters.

    vLLM computes the head for every token of a prompt and takes no prefix from its cache where log-probabilities of
    prompts are asked for: on a processor torch is faster.

    Args:
        folder: the base model's Hugging Face folder.
        tokenizer: the base's.
        adapters: name -> PEFT folder.
        context: tokens of a text, at most.
        dtype: auto, float32, bfloat16 or float16.
        tensor_parallel_size: accelerators that the model is tensor_parallel_size over.

    Raises:
        UserError: vLLM is not installed, or cannot load the model.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        adapters: Mapping[str, Path],
        context: int,
        dtype: str,
        tensor_parallel_size: int = 1,
    ) -> None:
        self.name = f"vLLM, {dtype}"
        self._tokenizer, self._context = tokenizer, context
        self._asked = 0
        self._numbers = itertools.count()
        vllm = vllm_offline._import()
        self._params = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        self._loras = {
            name: vllm.lora.request.LoRARequest(name, number, str(path))
            for number, (name, path) in enumerate(adapters.items(), 1)
        }
        settings = vllm_offline._settings(
            folder, list(adapters.values()), _PARALLEL, context + 1, dtype, tensor_parallel_size
        )
        settings["max_num_batched_tokens"] = _AT_ONCE[bool(accelerators())]
        # One thread for all of it: on a processor vLLM binds the thread that starts it, and only that, to its cores.
        self._thread = ThreadPoolExecutor(1, "vllm")
        try:
            self._engine: Any = self._thread.submit(vllm_offline._start, settings).result()
        except (ValueError, OSError, RuntimeError) as error:
            self._thread.shutdown()
            raise UserError(f"vLLM cannot load {folder}: {' '.join(str(error).split())[:300]}") from None

    @property
    def tokens(self) -> tuple[int, int]:
        """(tokens asked for, the same): nothing is shared."""
        return self._asked, self._asked

    def loglikelihoods(self, requests: Sequence[Text], adapter: str | None) -> list[Scored | None]:
        """See `Scorer`.

        Raises:
            Resumable: vLLM has stopped.
            Interrupted: a signal came between two batches.
        """
        encoded = encode_all(self._tokenizer, requests)
        fits = [r for r in encoded if len(r.ids) <= self._context]
        self._asked += sum(len(r.ids) for r in fits)
        try:
            found = iter(self._thread.submit(self._score, fits, adapter).result())
        except (ValueError, RuntimeError) as error:
            raise Resumable(
                f"vLLM stopped ({' '.join(str(error).split())[:200]}): run the same command again"
            ) from None
        return [next(found) if len(r.ids) <= self._context else None for r in encoded]

    def _score(self, requests: Sequence[ScoreRequest], adapter: str | None) -> list[Scored]:
        of: dict[str, int] = {}
        for i, request in enumerate(requests):
            of[key := str(next(self._numbers))] = i
            prompt, lora = {"prompt_token_ids": list(request.ids)}, self._loras[adapter] if adapter else None
            self._engine.add_request(key, prompt, self._params, lora_request=lora)
        found = [Scored(())] * len(requests)
        try:
            while self._engine.has_unfinished_requests():
                STOP.check()
                for output in self._engine.step():
                    if output.finished:
                        request = requests[of[output.request_id]]
                        found[of[output.request_id]] = _read(output.prompt_logprobs, request)
        except BaseException:
            self._engine.abort_request(list(of))
            raise
        return found

    def close(self) -> None:
        """Free the memory."""
        self._engine = None
        self._thread.shutdown()


def _read(logprobs: Sequence[Any], request: ScoreRequest) -> Scored:
    """The log-probability of each token of the continuation, out of those of the whole prompt."""
    start = len(request.context)
    rows = logprobs[start : len(request.ids)]
    return Scored(tuple(float(row[token].logprob) for row, token in zip(rows, request.continuation, strict=True)))
