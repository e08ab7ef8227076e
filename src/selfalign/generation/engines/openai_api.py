"""Generate with an OpenAI-compatible server through `/v1/completions`: llama.cpp's, vLLM's, Ollama's, selfalign's.

Requests are raw completions, not chats: the dialogue template is selfalign's, the same in training and generation. A
server gets token ids if a test shows that it reads them as the model's tokenizer does; otherwise it gets text, with
control tokens in content escaped. A server cannot load adapters; the recipe names the model ids under which the
user serves the base, engraved and final model. Fields that the server refuses are omitted (`optional_fields`).
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from selfalign.data.prompt_text import BOS, Pieces
from selfalign.errors import Resumable
from selfalign.generation.engines import vocabulary
from selfalign.generation.engines.base import Finish, OnText, Part, RowError, Step, TooLong
from selfalign.generation.engines.optional_fields import OptionalFields
from selfalign.generation.engines.server_client import ServerClient
from selfalign.generation.retries import Retrier, RetryPolicy, Transient, classify_failure, decision, read_retry_after
from selfalign.generation.settings import EngineSettings
from selfalign.model.dialogue import Tokenizer, as_text

_MESSAGE_CHARS = 160
_ERROR_BYTES = 1 << 16
_TAGS = re.compile(r"<(style|script)\b.*?</\1>|<[^<>]*>", re.DOTALL | re.IGNORECASE)
_INVALID = (400, 422)
"""Statuses of requests that the server considers invalid."""
OTHER_VOCABULARY = "its vocabulary is not the model's"
_HINTS = {
    401: "; check the key",
    403: "; check what the key permits",
    404: "; check the address and the model id (engine.served)",
}


class _NotSupported(Exception):
    """The server does not support an endpoint."""


class Refused(RowError):
    """The server refuses a request.

    Args:
        reply: the body of its reply.
    """

    def __init__(self, message: str, status: int, reply: str) -> None:
        super().__init__(message)
        self.status, self.reply = status, reply


class RefusesAll(Resumable):
    """The server refuses all requests to an endpoint, with this status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class OpenAiApi:
    """An engine that calls one server. See `Engine`.

    Args:
        config: address, model ids, limits.
        slots: concurrent requests.
        policy: the retry policy.
        tokenizer: the base model's tokenizer; without it, prompts are sent as text.
        name: the server's name in messages.
        say: receives a message when the server refuses an optional field.
        key: the server's key, instead of the one in the environment.

    Raises:
        UserError: the address, or the variable with the key, is invalid or missing.
    """

    def __init__(
        self,
        config: EngineSettings,
        slots: int,
        policy: RetryPolicy | None = None,
        tokenizer: Tokenizer | None = None,
        name: str = "the server",
        say: Callable[[str], None] = lambda _: None,
        key: str = "",
    ) -> None:
        self.client = ServerClient(config, name, key)
        self._name = name
        self.parallel = slots
        self.note = "" if tokenizer else f"{name} gets text: this machine does not have the model's tokenizer"
        self._tokenizer = tokenizer
        self._controls = tokenizer.control_texts() if tokenizer else frozenset()
        self._takes_ids: bool | None = None if tokenizer else False
        """Whether the server gets token ids; None until `check_token_ids` has tested it."""
        self._checking = threading.Lock()
        self._served = config.served
        self._retrier = Retrier(policy or RetryPolicy(attempts=config.attempts))
        self._say = say
        self._optional = OptionalFields(name, say)

    def generate(self, prompt: Pieces, step: Step, seed: int, adapter: str | None, on_text: OnText = None) -> Part:
        """See `Engine.generate`. The text arrives in one piece."""
        model = self._model(adapter)
        if self._takes_ids is None:
            with self._checking:
                if self._takes_ids is None:
                    self._retrier.call(lambda: self.check_token_ids(model))
        part = self._retrier.call(lambda: self.generate_once(prompt, step, seed, adapter))
        if on_text is not None:
            on_text(part.text)
        return part

    def generate_once(self, prompt: Pieces, step: Step, seed: int, adapter: str | None) -> Part:
        """Generate without retries. The prompt is sent as token ids if `check_token_ids` has shown that this works.

        Raises:
            Transient: the call failed; another attempt may succeed.
            RowError: the server refuses this request.
            Resumable: the server refuses all requests.
        """
        body = self._body(step, seed, self._model(adapter))
        escaped: tuple[str, ...] = ()
        if self._tokenizer and self._takes_ids:
            body["prompt"] = self._tokenizer.encode(prompt)
            if step.sampling.bias:
                biases = {str(self._tokenizer.first(text)): bias for text, bias in step.sampling.bias}
                body["logit_bias"] = biases | body.get("logit_bias", {})
        else:
            body["prompt"], escaped = as_text(prompt, self._controls)
        part = self._complete(body)
        return replace(part, escaped=escaped) if escaped else part

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
        }
        if step.stop:
            # Some servers refuse more than four; the steps order theirs by importance.
            body["stop"] = list(step.stop[:4])
        # The fields below extend OpenAI's interface. llama.cpp's server knows all of them, vLLM's some; others ignore
        # or refuse them.
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if sampling.ban_eos:
            body["ignore_eos"] = True
        if step.grammar:
            body["grammar"] = step.grammar
        return body | sampling.llama_cpp_penalty()

    # -- token ids -----------------------------------------------------------------------------------------------

    def check_token_ids(self, model: str) -> str:
        """Test whether the server reads the model's token ids; return a note with the reason if it gets text.

        Raises:
            Transient, Resumable: see `generate_once`.
        """
        if self._tokenizer:
            reason = self._reason_for_text(self._tokenizer, model)
            self._takes_ids = not reason
            self.note = f"{self._name} gets text: {reason}" if reason else ""
        return self.note

    def _reason_for_text(self, tokenizer: Tokenizer, model: str) -> str:
        """Return why the server cannot get ids; empty if it reads them as the tokenizer does and completes them.

        The servers of llama.cpp and vLLM have `/detokenize`. Another server may have an endpoint of that name, so its
        answer is checked.
        """
        try:
            difference = vocabulary.difference(tokenizer, lambda ids: self._detokenize(ids, model))
        except _NotSupported as error:
            return str(error)
        if difference:
            return f"{OTHER_VOCABULARY} ({difference})"
        ids = tokenizer.encode((BOS, "One, two, three,"))
        try:
            part = self._complete({"model": model, "prompt": ids, "max_tokens": 1, "temperature": 0.0})
        except RowError as error:
            return f"it refuses token ids ({error})"
        count = part.prompt_tokens + part.cached_tokens
        return f"it counts {count} tokens in a prompt of {len(ids)} token ids" if count not in (0, len(ids)) else ""

    def _detokenize(self, ids: Sequence[int], model: str) -> str:
        body = json.dumps({"model": model, "tokens": list(ids)}).encode()
        status, headers, raw = self.client.call("POST", "/detokenize", body)
        if classify_failure(status, None) != "bad reply":  # otherwise the status shows that there is no /detokenize
            self._raise_for_status(status, headers, raw)
        try:
            value = json.loads(raw)
            text = value.get("content", value.get("prompt")) if status == 200 else None  # llama.cpp's, vLLM's
        except (ValueError, AttributeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise _NotSupported(f"it does not show how it reads the model's token ids (/detokenize: {status})")
        return text

    # -- one call ------------------------------------------------------------------------------------------------

    def _complete(self, body: dict[str, Any]) -> Part:
        reply = self.complete(body)
        text = reply["choices"][0]["text"]
        if not isinstance(text, str):
            raise Transient(f"{self._name}'s reply has no text", failure="bad reply")
        return _part(text, reply["choices"][0], reply)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the server's reply to one completion request. Its first choice has a `text` of any type.

        Raises:
            Transient, RowError, Resumable: see `generate_once`.
        """
        raw = self.post("/v1/completions", body)
        try:
            reply: dict[str, Any] = json.loads(raw)
            reply["choices"][0]["text"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise Transient(f"{self._name}'s reply is not a completion: {_excerpt(raw)}", failure="bad reply") from None
        return reply

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        """Return the server's reply to a request, without the optional fields that it refuses.

        Raises:
            Transient, RowError, Resumable: see `generate_once`.
        """
        suspects: frozenset[str] = frozenset()
        first: Refused | None = None
        while True:
            sent = self._optional.without_refused(body, suspects)
            status, headers, raw = self.client.call("POST", path, json.dumps(sent).encode())
            try:
                if status != 200:
                    self._raise_for_status(status, headers, raw)
            except Refused as error:
                more = self._optional.suspects(sent, error.reply) if error.status in _INVALID else frozenset()
                if not more:
                    raise first or error from None
                suspects, first = suspects | more, first or error
                continue
            self._optional.record_success(sent, suspects)
            return raw

    def _raise_for_status(self, status: int, headers: Mapping[str, str], raw: bytes) -> None:
        message = _error_message(raw)
        if status == 400 and any(w in message.lower() for w in ("context", "maximum length", "too long")):
            raise TooLong
        match decision(status):
            case "retry":
                wait = read_retry_after(headers)
                raise Transient(f"{self._name} returned {status}", wait, classify_failure(status, wait))
            case "fail row":
                if 300 <= status < 400 and (target := headers.get("location")):
                    address = target.partition("?")[0][:_MESSAGE_CHARS]
                    message = f"a redirect to {address}: set engine.url to that server's address"
                reply = raw[:_ERROR_BYTES].decode("utf-8", "replace")
                raise Refused(f"{self._name} returned {status}: {message}", status, reply)
            case "fail run":
                raise RefusesAll(f"{self._name} returned {status}: {message}{_HINTS.get(status, '')}", status)

    def warm_prefix(self, prefix: Pieces, adapter: str | None) -> str:
        """Do nothing: the server keeps its own prefix cache."""
        return "left to the server's cache"

    def close(self) -> None:
        """Close the connections."""
        self.client.close()


def _error_message(raw: bytes) -> str:
    try:
        value = json.loads(raw)
        error = value
        if isinstance(value, dict):
            error = next((value[key] for key in ("error", "message", "detail") if value.get(key)), value)
        text = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, RecursionError):
        return _excerpt(raw)
    return " ".join(str(text).split())[:_MESSAGE_CHARS]


def _excerpt(raw: bytes) -> str:
    """Return the beginning of a reply on one line, without the tags of a web page."""
    text = _TAGS.sub(" ", raw[:2000].decode("utf-8", "replace"))
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_MESSAGE_CHARS]


def _part(text: str, choice: dict[str, Any], reply: dict[str, Any]) -> Part:
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    total = _count(usage.get("prompt_tokens"))
    return Part(text, _finish(choice), max(0, total - cached), cached, _count(usage.get("completion_tokens")))


def _count(value: object) -> int:
    # The journal's integers are bounded, and no reply has this many tokens.
    return value if isinstance(value, int) and 0 < value < 2**31 else 0


def _finish(choice: dict[str, Any]) -> Finish:
    if choice.get("finish_reason") == "length":
        return "length"
    # vLLM returns the stop string that ended the text; llama.cpp and OpenAI do not distinguish it from the end token.
    return "stop" if isinstance(choice.get("stop_reason"), str) else "end"
