"""Generate with a vLLM server that this process owns: the client of `openai_api`, with vLLM's own fields."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfalign.data.prompt_text import Control, Pieces
from selfalign.errors import Resumable
from selfalign.generation.engines.base import Part, Step, TooLong
from selfalign.generation.engines.openai_api import OpenAiApi
from selfalign.generation.engines.vllm_process import VllmProcess
from selfalign.generation.retries import Transient
from selfalign.generation.settings import EngineSettings
from selfalign.model.dialogue import Tokenizer
from selfalign.system import gpu

REPLY_SECONDS = 600.0
"""Seconds without any reply after which vLLM counts as hung. A reply arrives in one piece, at its end."""
_MEMORY, _MARGIN = 0.9, 0.03
"""The greatest fraction of a GPU's memory for vLLM, and what must remain of its free memory."""


class VllmServer(OpenAiApi):
    """The base model and its adapters, served by a child process. See `Engine`.

    Like the engine vllm, it has no penalty on repeated n-grams.

    Args:
        process: the server; `close` ends it.
        adapters: names of its adapters.
        context: maximum tokens of a request.
        ends: control tokens that end a response.
        timeout: seconds without any reply after which it counts as hung.
    """

    def __init__(
        self,
        process: VllmProcess,
        adapters: Sequence[str],
        slots: int,
        context: int,
        tokenizer: Tokenizer,
        ends: Sequence[str],
        say: Callable[[str], None] = lambda _: None,
        timeout: float = REPLY_SECONDS,
    ) -> None:
        served = {"base": process.model_id, **{name: name for name in adapters}}
        config = EngineSettings.model_validate({"url": process.url, "served": served, "timeout": timeout})
        super().__init__(config, slots, tokenizer=tokenizer, name="vLLM", say=say, key=process.key)
        self._process, self._context, self._timeout = process, context, timeout
        self._encode = tokenizer.encode
        self._ends = [tokenizer.first(Control(end)) for end in ends]
        self._last_reply = time.monotonic()

    def generate_once(self, prompt: Pieces, step: Step, seed: int, adapter: str | None) -> Part:
        """See `OpenAiApi.generate_once`. The limit of new tokens is lowered to what the context has room for.

        Raises:
            Resumable: also if vLLM has ended or hangs.
        """
        room = self._context - len(self._encode(prompt))
        if room < 1:
            raise TooLong
        if step.sampling.max_new_tokens > room:
            step = replace(step, sampling=replace(step.sampling, max_new_tokens=room))
        with self._watched():
            return super().generate_once(prompt, step, seed, adapter)

    def check_token_ids(self, model: str) -> str:
        """See `OpenAiApi.check_token_ids`."""
        with self._watched():
            return super().check_token_ids(model)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Raise Resumable instead of Transient if vLLM has ended, or has answered no request for the timeout."""
        try:
            yield
        except Transient as error:
            self._process.check()
            if error.failure == "no reply" and time.monotonic() - self._last_reply > self._timeout:
                raise self._process.kill(f"vLLM answered nothing for {self._timeout:.0f} s") from None
            raise
        self._last_reply = time.monotonic()

    def _body(self, step: Step, seed: int, model: str) -> dict[str, Any]:
        """Return the request, as the engine vllm would pose it."""
        sampling = replace(step.sampling, repetition=0.0, ban_eos=False)
        body = super()._body(replace(step, sampling=sampling, grammar=""), seed, model)
        if step.stop:
            body["stop"] = list(step.stop)
        if step.sampling.ban_eos:
            # Not ignore_eos: it lets the model generate the end token and continue after it.
            body["logit_bias"] = {str(end): -100.0 for end in self._ends}
        else:
            body["stop_token_ids"] = self._ends
        if step.grammar:
            body["structured_outputs"] = {"grammar": step.grammar}
        return body

    def close(self) -> None:
        """Close the connections and end vLLM."""
        super().close()
        self._process.close()


def start(
    python: Path,
    folder: Path,
    adapters: Mapping[str, Path],
    config: EngineSettings,
    slots: int,
    tokenizer: Tokenizer,
    ends: Sequence[str],
    log: Path | None,
    say: Callable[[str], None],
) -> VllmServer:
    """Start vLLM and return an engine that owns it. Raises as `VllmProcess`."""
    from selfalign.generation.engines.vllm_driver import engine_args

    fraction = memory_fraction(gpu.visible()[: config.tensor_parallel_size])
    arguments = engine_args(
        folder, list(adapters.values()), slots, config.context, config.vllm_dtype(), config.tensor_parallel_size
    )
    if fraction is not None:
        arguments["gpu_memory_utilization"] = fraction
    say(f"  starting vLLM{f' (its log is {log})' if log else ''}")
    began = time.monotonic()
    process = VllmProcess(python, arguments, adapters, log, config.start_seconds, say)
    say(f"  vLLM answers after {time.monotonic() - began:.0f} s")
    timeout = max(config.timeout, REPLY_SECONDS)
    return VllmServer(process, list(adapters), slots, config.context, tokenizer, ends, say, timeout)


def memory_fraction(gpus: Sequence[gpu.GpuMemory]) -> float | None:
    """Return the fraction of each GPU's memory that vLLM may use; None if it is unknown.

    Raises:
        Resumable: other processes use the memory.
    """
    if not gpus:
        return None
    least = min(gpus, key=lambda one: one.free_mb / one.total_mb)
    fraction = min(_MEMORY, least.free_mb / least.total_mb - _MARGIN)
    if fraction < _MEMORY / 2:
        raise Resumable(
            f"{least.name}: only {least.free_mb / 1000:.1f} of {least.total_mb / 1000:.1f} GB are free: end the "
            "processes that use it (nvidia-smi lists them), then run the same command again"
        )
    return round(fraction, 3)
