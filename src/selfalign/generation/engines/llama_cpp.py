"""Generate with llama.cpp in process (xllamacpp): slots, a shared prefix computed once, adapters per request."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from selfalign.data.prompt_text import BOS, Pieces
from selfalign.errors import Resumable, UserError
from selfalign.generation.engines import vocabulary
from selfalign.generation.engines.base import Finish, OnText, Part, RowError, Step, TooLong
from selfalign.generation.engines.slot_cache import SavedPrefix, SavedPrefixes, Slot, Slots
from selfalign.model.dialogue import Tokenizer, encode_pieces
from selfalign.system.environment import usable_cores


class LlamaCpp:
    """One base model and its adapters.

    xllamacpp runs llama.cpp's server in this process. Streams use its Python binding; everything else uses the server's
    loopback port, protected by a random key, because its responses have details that the binding lacks: how a
    generation ended, its tokens, a slot's cache.

    Args:
        gguf: the base model.
        adapters: name -> GGUF adapter; a request applies at most one.
        slots: number of concurrent requests.
        context: tokens of context per slot.
        threads: 0 for all cores.
        tokenizer: the tokenizer used in training, whose ids llama.cpp gets. Without it, llama.cpp encodes the text
            itself, with rare differences (such as runs of 32 or more spaces under Gemma 3).

    Raises:
        UserError: llama.cpp cannot load a file, or its vocabulary differs from the tokenizer's.
    """

    def __init__(
        self,
        gguf: Path,
        adapters: dict[str, Path],
        slots: int,
        context: int,
        threads: int,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        import xllamacpp

        self.parallel = slots
        self.note = ""
        self._tokenizer = tokenizer
        self._adapters = {name: number for number, name in enumerate(adapters)}
        self._folder = Path(tempfile.mkdtemp(prefix="selfalign-slots-"))
        self._key = secrets.token_urlsafe(24)
        self._slots = Slots(slots)
        self._prefixes = SavedPrefixes(_PREFIX_BYTES)
        self._warm_lock = threading.Lock()
        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.n_parallel = slots
        params.n_ctx = slots * context
        params.n_batch = 2048
        # A cache per slot: in a unified cache, every token attends over the cells of all slots.
        params.kv_unified = False
        # Otherwise a sliding-window model drops its cached prefix.
        params.swa_full = True
        params.cache_ram_mib = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads or usable_cores()
        params.verbosity = -1
        params.hostnames = ["127.0.0.1"]
        params.api_keys = [self._key]
        params.slot_save_path = f"{self._folder}/"
        loras = []
        for path in adapters.values():
            info = xllamacpp.CommonAdapterLoraInfo()
            info.path, info.scale = str(path), 0.0
            loras.append(info)
        if loras:
            params.lora_adapters = loras
        try:
            with _silent_stderr():
                self._server = xllamacpp.Server(params)
        except (RuntimeError, ValueError) as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise UserError(
                f"llama.cpp cannot load {gguf}{' with its adapters' if adapters else ''}: {error or 'unknown reason'}"
            ) from error
        self._bos = self._tokenize("", special=True, add_bos=True)
        if tokenizer:
            self._check_vocabulary(tokenizer, gguf)

    def generate(self, prompt: Pieces, step: Step, seed: int, adapter: str | None, on_text: OnText = None) -> Part:
        """See `Engine.generate`."""
        sampling, ids = step.sampling, self.encode(prompt)
        body: dict[str, Any] = {
            "prompt": ids,
            "n_predict": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "samplers": ["dry", "top_k", "temperature", "top_p"],
            "seed": seed % 2**32,
            "stop": list(step.stop),
            "cache_prompt": True,
            "ignore_eos": sampling.ban_eos,
            "lora": self._lora(adapter),
            **sampling.llama_cpp_penalty(),
        }
        if sampling.bias:
            body["logit_bias"] = [[self.encode((text,))[0], bias] for text, bias in sampling.bias]
        if step.grammar:
            body["grammar"] = step.grammar
        with self._slots.use(ids, adapter) as slot:
            body["id_slot"] = slot.number
            self._restore(slot, ids, adapter)
            slot.tokens, slot.adapter = ids, adapter
            if on_text is not None:
                return self._stream(body, on_text)
            reply = self._checked(self._http("/completion", body))
        finish: Finish = _FINISH.get(reply["stop_type"], "cancelled")
        return _part(reply["content"], finish, reply["timings"])

    def _stream(self, body: dict[str, Any], on_text: Callable[[str], bool]) -> Part:
        pieces: list[str] = []
        last: dict[str, Any] = {}

        def receive(chunk: dict[str, Any]) -> bool:
            """Collect a chunk; True ends the stream."""
            nonlocal last
            last = chunk
            if "error" in chunk or not chunk.get("choices"):
                return False
            text = chunk["choices"][0]["text"]
            pieces.append(text)
            return bool(text) and not on_text(text)

        self._server.handle_completions({**body, "stream": True}, receive)
        reply = self._checked(last)
        # A streamed response does not distinguish the end token from a stop string.
        reason = (reply.get("choices") or [{}])[0].get("finish_reason")
        finish: Finish = reason if reason in ("stop", "length") else "cancelled"
        return _part("".join(pieces), finish, reply.get("timings", {}))

    @staticmethod
    def _checked(reply: Any) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(reply) if isinstance(reply, str | bytes) else reply
        if "error" in value:
            error = value["error"]
            if error.get("type") == "exceed_context_size_error":
                raise TooLong
            raise RowError(f"engine error: {error.get('message', error)}")
        return value

    # -- tokens --------------------------------------------------------------------------------------------------

    def encode(self, prompt: Pieces) -> list[int]:
        """Return the token ids of a prompt; only `Control` pieces become control tokens."""
        if self._tokenizer:
            return self._tokenizer.encode(prompt)
        return encode_pieces(prompt, self._bos, self._tokenize)

    def _tokenize(self, text: str, special: bool, add_bos: bool = False) -> list[int]:
        body = {"content": text, "add_special": add_bos, "parse_special": special}
        reply = self._checked(self._http("/tokenize", body))
        return list(reply["tokens"])

    def _check_vocabulary(self, tokenizer: Tokenizer, gguf: Path) -> None:
        try:
            difference = vocabulary.difference(tokenizer, self._detokenize)
        except RowError as error:
            difference = f"llama.cpp rejects its ids: {error}"
        if difference:
            self.close()
            raise UserError(
                f"{gguf} has another vocabulary than the model's tokenizer ({difference}): convert the GGUF from the "
                "folder that is trained"
            )
        if self._bos != (start := tokenizer.encode((BOS,))):
            self.note = f"texts begin with the tokens {start}, as in the tokenizer; the GGUF has {self._bos}"
        elif self._tokenize(vocabulary.TEXT, special=False) != tokenizer.ids(vocabulary.TEXT):
            self.note = (
                "llama.cpp splits some texts differently from the model's tokenizer, so it gets token ids: if the "
                "tokenizer was read from the GGUF, set `model` to the Hugging Face folder instead"
            )

    def _lora(self, adapter: str | None) -> list[dict[str, Any]]:
        """Return the request's scales of all adapters: 1 for `adapter`, 0 for the others."""
        return [{"id": number, "scale": float(name == adapter)} for name, number in self._adapters.items()]

    def _detokenize(self, ids: Sequence[int]) -> str:
        return str(self._checked(self._http("/detokenize", {"tokens": list(ids)}))["content"])

    def _http(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310  (our own loopback address)
            self._server.listening_address + path,
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json", "authorization": f"Bearer {self._key}"},
        )
        try:
            # No timeout: a long prompt on a slow CPU is not an error.
            with _OPENER.open(request) as reply:
                value: dict[str, Any] = json.load(reply)
        except urllib.error.HTTPError as error:
            value = json.load(error)
        except (urllib.error.URLError, ConnectionError) as error:
            raise Resumable(f"llama.cpp stopped answering ({error}): run the same command again") from error
        return value

    def most_likely_token(self, ids: list[int], adapter: str | None) -> tuple[int, float]:
        """Return the most likely next token after these ids, and its log-probability.

        The log-probability is NaN for a token that is only a part of a character: the server returns none.
        """
        body = {
            "prompt": ids,
            "n_predict": 1,
            "temperature": 0.0,
            "n_probs": 1,
            "cache_prompt": True,
            "return_tokens": True,
            "lora": self._lora(adapter),
        }
        with self._slots.use(ids, adapter) as slot:
            slot.tokens, slot.adapter = ids, adapter
            reply = self._checked(self._http("/completion", {**body, "id_slot": slot.number}))
        probabilities = reply.get("completion_probabilities") or [{"logprob": math.nan}]
        return int(reply["tokens"][0]), float(probabilities[0]["logprob"])

    def chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the token ids of a dialogue under the chat template in the GGUF, as the chat API renders it.

        Raises:
            RowError: the template rejects the dialogue.
        """
        text = str(self._checked(self._http("/apply-template", {"messages": messages}))["prompt"])
        return self._tokenize(text, special=True, add_bos=True)

    # -- prefix --------------------------------------------------------------------------------------------------

    def warm_prefix(self, prefix: Pieces, adapter: str | None) -> str:
        """Compute the prefix in one slot and save its cache, which the other slots read in a few milliseconds."""
        ids = self.encode(prefix)
        with self._warm_lock, self._slots.use(ids, adapter) as slot:
            saved, _ = self._prefixes.find(ids, adapter)
            if saved and saved.tokens == ids:
                return _COPIED
            body = {
                "prompt": ids,
                "n_predict": 0,
                "id_slot": slot.number,
                "cache_prompt": True,
                "lora": self._lora(adapter),
            }
            file = self._folder / f"{secrets.token_hex(8)}.bin"
            slot.tokens, slot.adapter = ids, adapter
            try:
                self._checked(self._server.handle_completions(body))
                self._checked(self._http(f"/slots/{slot.number}?action=save", {"filename": file.name}))
            except (RowError, OSError) as error:
                file.unlink(missing_ok=True)
                return f"computed once per slot (it could not be saved: {error})"
            self._prefixes.add(SavedPrefix(ids, adapter, file))
            return _COPIED

    def _restore(self, slot: Slot, ids: list[int], adapter: str | None) -> None:
        """Read a saved prefix of the prompt into the slot, unless the slot's cache has at least as much of it."""
        saved, length = self._prefixes.find(ids, adapter)
        if saved is None or self._slots.cached(slot, ids, adapter) >= length:
            return
        with contextlib.suppress(RowError):  # the slot computes the prefix again
            self._checked(self._http(f"/slots/{slot.number}?action=restore", {"filename": saved.file.name}))

    def close(self) -> None:
        """Stop the server and free its memory."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._server = None


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Without proxies, because the address is on this machine."""
_COPIED = "computed once, copied to the other slots"
_PREFIX_BYTES = 2**30
"""Space for saved prefixes."""
_FINISH: dict[str, Finish] = {"eos": "end", "word": "stop", "limit": "length"}
"""llama.cpp's stop_type -> `Finish`."""


def _part(text: str, finish: Finish, timings: dict[str, Any]) -> Part:
    return Part(
        text=text,
        finish=finish,
        prompt_tokens=int(timings.get("prompt_n", 0)),
        cached_tokens=int(timings.get("cache_n", 0)),
        generated_tokens=int(timings.get("predicted_n", 0)),
    )


@contextlib.contextmanager
def _silent_stderr() -> Any:
    """Discard llama.cpp's log while a model loads."""
    stderr = os.dup(2)
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)
