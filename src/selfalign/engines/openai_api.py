"""Any OpenAI-compatible server, by raw `/v1/completions`: llama.cpp's, vLLM's, Ollama's.

Raw completions, not chat: the dialogue template is ours, the same in training and generation. A server that proves
that it means the same by our token ids gets ids; another gets text, in which content cannot spell a control token. A
server cannot load our adapter; the recipe names the model ids under which the user serves base, engraved and final
model.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from selfalign.dialogue import Tokenizer, as_text
from selfalign.engines import vocabulary
from selfalign.engines.base import BOS, Finish, Part, Pieces, RowError, Step, TooLong
from selfalign.errors import Resumable, UserError
from selfalign.recipe import Engine as EngineConfig
from selfalign.retries import Patience, Policy, Transient, decision, retry_after

_MAX_BODY = 4 << 20
"""Bytes of a reply that are read at most."""
_REPLY_CHARS = 160
_BUSY = frozenset({408, 425, 429, 502, 503, 504})
"""Replies that say nothing about what a server knows."""


def address(config: EngineConfig) -> urllib.parse.SplitResult:
    """The server's address, taken apart.

    Raises:
        UserError: there is none, or it is not an http address, or it holds a password.
    """
    if not config.url:
        raise UserError("engine.kind openai needs engine.url, for example http://127.0.0.1:8080/v1")
    parts = urllib.parse.urlsplit(config.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError("engine.url must begin with http:// or https:// and name a host")
    if parts.username or parts.password:
        raise UserError("engine.url holds a user or password: put the key into a variable, named by engine.key_env")
    return parts


class _Unknown(Exception):
    """The server does not answer this question."""


class OpenAiApi:
    """See `Engine`.

    Args:
        config: address, model ids, limits.
        slots: requests at once.
        policy: retries.
        tokenizer: the base model's; without it the server gets text.

    Raises:
        UserError: the address, or the variable with the key, is wrong or missing.
    """

    def __init__(
        self, config: EngineConfig, slots: int, policy: Policy | None = None, tokenizer: Tokenizer | None = None
    ) -> None:
        parts = address(config)
        self.parallel = slots
        self.note = "" if tokenizer else "the server gets text: the model's tokenizer is not here"
        self._tokenizer = tokenizer
        self._controls = tokenizer.control_texts() if tokenizer else frozenset()
        self._takes_ids: bool | None = None if tokenizer else False
        """None until the server was asked."""
        self._asking = threading.Lock()
        self._parts, self._path = parts, parts.path.rstrip("/").removesuffix("/v1")
        self._served = config.served
        self._key = _key(config.key_env)
        self._read_timeout, self._connect_timeout = config.timeout, min(10.0, config.timeout)
        self._patience = Patience(policy or Policy(attempts=config.attempts))
        self._idle: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue()

    def generate(
        self,
        prompt: Pieces,
        step: Step,
        seed: int,
        adapter: str | None,
        on_text: Callable[[str], bool] | None = None,
    ) -> Part:
        """See `Engine.generate`. Text comes at once, not in stretches."""
        body = self._body(step, seed, self._model(adapter))
        broken: tuple[str, ...] = ()
        tokenizer = self._tokenizer
        if tokenizer and self._accepts_ids(tokenizer, body["model"]):
            body["prompt"] = tokenizer.encode(prompt)
            if step.sampling.bias:
                body["logit_bias"] = {str(tokenizer.first(text)): bias for text, bias in step.sampling.bias}
        else:
            body["prompt"], broken = as_text(prompt, self._controls)
        part = self._patience.call(lambda: self._completion(body))
        if broken:
            part = replace(part, neutralised=broken)
        if on_text is not None:
            on_text(part.text)
        return part

    def _model(self, adapter: str | None) -> str:
        name = adapter or "base"
        if name not in self._served:
            raise Resumable(f"engine.served names no model for {name!r}: see docs/engines.md")
        return self._served[name]

    def _body(self, step: Step, seed: int, model: str) -> dict[str, Any]:
        sampling = step.sampling
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed % 2**31,
            "stream": False,
            "n": 1,
        }
        if step.stop:
            # More than four is an error at some servers; ours are ordered by what matters.
            body["stop"] = list(step.stop[:4])
        # What follows is no part of OpenAI's interface; llama.cpp's and vLLM's servers know it, others ignore it.
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if sampling.ban_eos:
            body["ignore_eos"] = True
        if step.grammar:
            body["grammar"] = step.grammar
        if sampling.repetition:
            body |= {
                "dry_multiplier": sampling.repetition,
                "dry_base": 2.0,
                "dry_allowed_length": sampling.repetition_length,
                "dry_penalty_last_n": sampling.max_new_tokens,
                "dry_sequence_breakers": list(sampling.breaks),
            }
        return body

    # -- token ids -----------------------------------------------------------------------------------------------

    def _accepts_ids(self, tokenizer: Tokenizer, model: str) -> bool:
        """Whether the server takes our token ids; asked with the first request. Raises as `generate`."""
        with self._asking:
            if self._takes_ids is None:
                why = self._patience.call(lambda: self._why_text(tokenizer, model))
                self._takes_ids = not why
                self.note = f"the server gets text: {why}" if why else ""
            return self._takes_ids

    def _why_text(self, tokenizer: Tokenizer, model: str) -> str:
        """Why the server cannot be given ids; empty where it reads ours as we do (/detokenize) and goes on from them.

        llama.cpp's server and vLLM's have /detokenize; what another one has under that name must prove itself, too.
        """
        try:
            wrong = vocabulary.difference(tokenizer, lambda ids: self._detokenize(ids, model))
        except _Unknown as error:
            return str(error)
        if wrong:
            return f"its vocabulary is not the model's ({wrong})"
        ids = tokenizer.encode((BOS, "One, two, three,"))
        try:
            part = self._completion({"model": model, "prompt": ids, "max_tokens": 1, "temperature": 0.0})
        except RowError as error:
            return f"it refuses token ids ({error})"
        count = part.prompt_tokens + part.cached_tokens
        return f"it takes {len(ids)} token ids for {count} tokens" if count not in (0, len(ids)) else ""

    def _detokenize(self, ids: Sequence[int], model: str) -> str:
        body = json.dumps({"model": model, "tokens": list(ids)}).encode()
        status, headers, raw = self._post("/detokenize", body)
        if status in _BUSY:
            raise Transient(f"the server says {status}", retry_after(headers))
        try:
            value = json.loads(raw)
            text = value.get("content", value.get("prompt")) if status == 200 else None  # llama.cpp's, vLLM's
        except (ValueError, AttributeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise _Unknown(f"it does not say how it reads the model's token ids (/detokenize: {status})")
        return text

    # -- one call ------------------------------------------------------------------------------------------------

    def _completion(self, body: dict[str, Any]) -> Part:
        status, headers, raw = self._post("/v1/completions", json.dumps(body).encode())
        if status != 200:
            self._refused(status, headers, raw)
        try:
            reply = json.loads(raw)
            choice = reply["choices"][0]
            text = choice["text"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise Transient(f"the server's reply is no completion: {_shown(raw)}") from None
        if not isinstance(text, str):
            raise Transient("the server's reply holds no text")
        return _part(text, choice, reply)

    def _post(self, path: str, data: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = self._connect()
        try:
            connection.request("POST", self._path + path, data, headers)
            reply = connection.getresponse()
            raw = _bounded(reply, self._read_timeout)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            # Not str(error): it may quote what the server sent.
            raise Transient(f"no reply from the server ({type(error).__name__})") from None
        except BaseException:
            connection.close()
            raise
        if reply.will_close:
            connection.close()
        else:
            self._idle.put(connection)
        return reply.status, {k.lower(): v for k, v in reply.getheaders()}, raw

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        host, port = str(self._parts.hostname), self._parts.port
        made = kind(host, port, timeout=self._connect_timeout)
        try:
            made.connect()
        except socket.gaierror:
            raise Resumable(f"the host {host!r} of engine.url is not known: see to it, then run again") from None
        except ssl.SSLCertVerificationError:
            raise UserError(f"the certificate of {host!r} is not trusted") from None
        except OSError as error:
            raise Transient(f"no connection to {host}:{port or ''} ({type(error).__name__})") from None
        made.sock.settimeout(self._read_timeout)
        return made

    def _refused(self, status: int, headers: dict[str, str], raw: bytes) -> None:
        message = _message(raw)
        if status == 400 and any(w in message.lower() for w in ("context", "maximum length", "too long")):
            raise TooLong
        what = decision(status)
        if what == "retry":
            raise Transient(f"the server says {status}", retry_after(headers))
        if what == "fail row":
            raise RowError(f"the server says {status}: {message}")
        hint = {
            401: "; is the key right?",
            403: "; may the key do this?",
            404: "; are engine.url and engine.served right?",
        }
        raise Resumable(f"the server says {status}: {message}{hint.get(status, '')}")

    def prime(self, prefix: Pieces, adapter: str | None) -> str:
        """The server keeps its own prefix cache."""
        return "left to the server's cache"

    def close(self) -> None:
        """Close the connections that are kept open."""
        while not self._idle.empty():
            self._idle.get_nowait().close()


def _key(variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"the variable {variable} (engine.key_env) is empty: export the server's key in it")
    if not key.isascii() or not key.isprintable():
        raise UserError(f"the variable {variable} (engine.key_env) holds characters that no key has")
    return key


def _bounded(reply: http.client.HTTPResponse, seconds: float) -> bytes:
    """The body, up to a limit in bytes and in time: a server may send for ever."""
    chunks, size, end = [], 0, time.monotonic() + max(seconds, 1.0) * 10
    while chunk := reply.read1(1 << 16):
        chunks.append(chunk)
        size += len(chunk)
        if size > _MAX_BODY or time.monotonic() > end:
            raise Transient("the server's reply does not end")
    if reply.length:
        raise Transient("the server's reply was cut off")
    # Or the connection takes the reply for unfinished and cannot be used again.
    reply.close()
    return b"".join(chunks)


def _message(raw: bytes) -> str:
    try:
        value = json.loads(raw)
        error = value.get("error", value.get("message", value)) if isinstance(value, dict) else value
        text = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, RecursionError):
        return _shown(raw)
    return " ".join(str(text).split())[:_REPLY_CHARS]


def _shown(raw: bytes) -> str:
    return " ".join(raw[:400].decode("utf-8", "replace").split())[:_REPLY_CHARS]


def _part(text: str, choice: dict[str, Any], reply: dict[str, Any]) -> Part:
    given = reply.get("usage")
    usage: dict[str, Any] = given if isinstance(given, dict) else {}
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    total, cached = _count(usage.get("prompt_tokens")), _count(cached)
    return Part(text, _finish(choice), max(0, total - cached), cached, _count(usage.get("completion_tokens")))


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _finish(choice: dict[str, Any]) -> Finish:
    if choice.get("finish_reason") == "length":
        return "length"
    # vLLM names the stop string that ended it; llama.cpp and OpenAI do not tell it from the end token.
    return "stop" if isinstance(choice.get("stop_reason"), str) else "end"
