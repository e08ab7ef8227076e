"""Score with vLLM in process: log-probabilities of prompts, for runs whose engine is vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from selfalign.errors import Resumable
from selfalign.generation.engines.base import RowError
from selfalign.generation.engines.vllm_driver import VllmDriver
from selfalign.generation.scoring.base import Scored, ScoreRequest, Text, encode_all
from selfalign.model.dialogue import Tokenizer
from selfalign.system.environment import accelerators
from selfalign.system.signals import STOP

_BATCHED_TOKENS = {True: 4096, False: 512}
"""Prompt tokens computed at once, with an accelerator and without: each has a row of logits over the vocabulary."""
_PARALLEL = 16
_SIGNAL_SECONDS = 0.5


class VllmScorer:
    """One base model and its adapters.

    vLLM computes the output layer for every token of a prompt, and does not use its prefix cache when log-probabilities
    of prompts are requested: on a CPU, torch is faster.

    Args:
        context: maximum tokens of a text.

    The other arguments and the errors are those of `VllmDriver`.
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
        self._requested = 0
        # One token more than a text: vLLM generates at least one.
        self._driver = VllmDriver(
            folder, adapters, _PARALLEL, context + 1, dtype, tensor_parallel_size,
            max_num_batched_tokens=_BATCHED_TOKENS[bool(accelerators())],
        )  # fmt: skip

    @property
    def tokens(self) -> tuple[int, int]:
        """(tokens requested, the same number): nothing is shared."""
        return self._requested, self._requested

    def loglikelihoods(self, requests: Sequence[Text], adapter: str | None) -> list[Scored | None]:
        """See `Scorer`.

        Raises:
            Resumable: vLLM has stopped.
            Interrupted: a signal arrived.
        """
        encoded = encode_all(self._tokenizer, requests)
        fitting = [r for r in encoded if len(r.ids) <= self._context]
        self._requested += sum(len(r.ids) for r in fitting)
        params = self._driver.vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        futures = [self._driver.submit(r.ids, params, adapter) for r in fitting]
        try:
            outputs = [_result(future) for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        scores = (_score(output.prompt_logprobs, r) for output, r in zip(outputs, fitting, strict=True))
        return [next(scores) if len(r.ids) <= self._context else None for r in encoded]

    def close(self) -> None:
        """Free the memory."""
        self._driver.close()


def _result(future: Future[Any]) -> Any:
    """Wait for a request's output. Raises as `loglikelihoods`."""
    while True:
        STOP.check()
        try:
            return future.result(_SIGNAL_SECONDS)
        except TimeoutError:
            continue
        except RowError as error:
            raise Resumable(f"{error}: run the same command again") from None


def _score(logprobs: Sequence[Any], request: ScoreRequest) -> Scored:
    """Pick the log-probability of each continuation token from those of the whole prompt."""
    start = len(request.context)
    rows = logprobs[start : len(request.ids)]
    return Scored(tuple(float(row[token].logprob) for row, token in zip(rows, request.continuation, strict=True)))
