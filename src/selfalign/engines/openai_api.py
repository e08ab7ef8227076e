"""Any OpenAI-compatible server, by raw `/v1/completions`: llama.cpp's, vLLM's, Ollama's.

Raw completions, not chat: the dialogue template is ours, the same in training and generation. A server cannot load our
adapter; the recipe names the model ids under which the user serves base, engraved and final model.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import socket
import ssl
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

from selfalign.engines.base import Control, Finish, Part, Pieces, RowError, Step, TooLong
from selfalign.errors import Resumable, UserError
from selfalign.recipe import Engine as EngineConfig
from selfalign.retries import Patience, Policy, Transient, decision, retry_after

_MAX_BODY = 4 << 20
"""Bytes of a reply that are read at most."""
_REPLY_CHARS = 160


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


class OpenAiApi:
    """See `Engine`.

    Args:
        config: address, model ids, limits.
        slots: requests at once.
        policy: retries.

    Raises:
        UserError: the address, or the variable with the key, is wrong or missing.
    """

    def __init__(self, config: EngineConfig, slots: int, policy: Policy | None = None) -> None:
        parts = address(config)
        self.parallel = slots
        self._parts, self._path = parts, parts.path.rstrip("/").removesuffix("/v1") + "/v1/completions"
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
        body = self._body(prompt, step, seed, self._model(adapter))
        part = self._patience.call(lambda: self._completion(body))
        if on_text is not None:
            on_text(part.text)
        return part

    def _model(self, adapter: str | None) -> str:
        name = adapter or "base"
        if name not in self._served:
            raise Resumable(f"engine.served names no model for {name!r}: see docs/engines.md")
        return self._served[name]

    def _body(self, prompt: Pieces, step: Step, seed: int, model: str) -> dict[str, Any]:
        sampling = step.sampling
        body: dict[str, Any] = {
            "model": model,
            "prompt": _text(prompt),
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

    # -- one call ------------------------------------------------------------------------------------------------

    def _completion(self, body: dict[str, Any]) -> Part:
        status, headers, raw = self._post(json.dumps(body).encode())
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

    def _post(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = self._connect()
        try:
            connection.request("POST", self._path, data, headers)
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


def _text(prompt: Pieces) -> str:
    """The prompt as text. The server puts the beginning-of-text token itself.

    Raises:
        RowError: content holds what the server would take for a control token.
    """
    controls = {str(p).strip() for p in prompt if isinstance(p, Control) and str(p).strip()}
    for piece in prompt:
        if not isinstance(piece, Control) and any(c in piece for c in controls):
            raise RowError("the text contains a control token")
    return "".join(str(p) for p in prompt if p != "<bos>")


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
