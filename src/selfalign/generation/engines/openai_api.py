"""Any OpenAI-compatible server, by raw `/v1/completions`: llama.cpp's, vLLM's, Ollama's.

Raw completions, not chat: the dialogue template is ours, the same in training and generation. A server that proves
that it means the same by our token ids gets ids; another gets text, in which content cannot spell a control token. A
server cannot load our adapter; the recipe names the model ids under which the user serves base, engraved and final
model.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from selfalign.data.prompt_text import BOS, Pieces
from selfalign.errors import Resumable
from selfalign.generation.engines import vocabulary
from selfalign.generation.engines.base import Finish, Part, RowError, Step, TooLong
from selfalign.generation.engines.server_calls import Calls
from selfalign.generation.retries import Patience, Policy, Transient, decision, retry_after, trouble
from selfalign.generation.settings import EngineSettings
from selfalign.model.dialogue import Tokenizer, as_text

_REPLY_CHARS = 160
_BUSY = frozenset({408, 425, 429, 502, 503, 504})
"""Replies that say nothing about what a server knows."""
OTHER_VOCABULARY = "its vocabulary is not the model's"


class Unknown(Exception):
    """The server does not answer this question."""


class OpenAiApi:
    """See `Engine`.

    Args:
        config: address, model ids, limits.
        slots: requests at once.
        policy: retries.
        tokenizer: the base model's; without it the server gets text.
        name: what messages call the server.

    Raises:
        UserError: the address, or the variable with the key, is wrong or missing.
    """

    def __init__(
        self,
        config: EngineSettings,
        slots: int,
        policy: Policy | None = None,
        tokenizer: Tokenizer | None = None,
        name: str = "the server",
    ) -> None:
        self.calls = Calls(config, name)
        self._who = name
        self.parallel = slots
        self.note = "" if tokenizer else f"{name} gets text: the model's tokenizer is not here"
        self._tokenizer = tokenizer
        self._controls = tokenizer.control_texts() if tokenizer else frozenset()
        self._takes_ids: bool | None = None if tokenizer else False
        """None until the server was asked."""
        self._asking = threading.Lock()
        self._served = config.served
        self._patience = Patience(policy or Policy(attempts=config.attempts))

    def generate(
        self,
        prompt: Pieces,
        step: Step,
        seed: int,
        adapter: str | None,
        on_text: Callable[[str], bool] | None = None,
    ) -> Part:
        """See `Engine.generate`. Text comes at once, not in stretches."""
        model = self._model(adapter)
        if self._takes_ids is None:
            with self._asking:
                if self._takes_ids is None:
                    self._patience.call(lambda: self.meet(model))
        part = self._patience.call(lambda: self.once(prompt, step, seed, adapter))
        if on_text is not None:
            on_text(part.text)
        return part

    def once(self, prompt: Pieces, step: Step, seed: int, adapter: str | None) -> Part:
        """One try of `generate`, as ids only after `meet`.

        Raises:
            Transient: it failed, another try may not.
            RowError: the server refuses this request.
            Resumable: it refuses all of them.
        """
        body = self._body(step, seed, self._model(adapter))
        broken: tuple[str, ...] = ()
        tokenizer = self._tokenizer
        if tokenizer and self._takes_ids:
            body["prompt"] = tokenizer.encode(prompt)
            if step.sampling.bias:
                body["logit_bias"] = {str(tokenizer.first(text)): bias for text, bias in step.sampling.bias}
        else:
            body["prompt"], broken = as_text(prompt, self._controls)
        part = self._completion(body)
        return replace(part, neutralised=broken) if broken else part

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

    def meet(self, model: str) -> str:
        """Learn whether the server takes our token ids; says why it gets text, where it does. Raises as `once`."""
        if self._tokenizer:
            why = self._why_text(self._tokenizer, model)
            self._takes_ids = not why
            self.note = f"{self._who} gets text: {why}" if why else ""
        return self.note

    def _why_text(self, tokenizer: Tokenizer, model: str) -> str:
        """Why the server cannot be given ids; empty where it reads ours as we do (/detokenize) and goes on from them.

        llama.cpp's server and vLLM's have /detokenize; what another one has under that name must prove itself, too.
        """
        try:
            wrong = vocabulary.difference(tokenizer, lambda ids: self._detokenize(ids, model))
        except Unknown as error:
            return str(error)
        if wrong:
            return f"{OTHER_VOCABULARY} ({wrong})"
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
            self._refused(status, headers, raw)
        try:
            value = json.loads(raw)
            text = value.get("content", value.get("prompt")) if status == 200 else None  # llama.cpp's, vLLM's
        except (ValueError, AttributeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise Unknown(f"it does not say how it reads the model's token ids (/detokenize: {status})")
        return text

    # -- one call ------------------------------------------------------------------------------------------------

    def _completion(self, body: dict[str, Any]) -> Part:
        reply = self.reply(body)
        choice = reply["choices"][0]
        text = choice["text"]
        if not isinstance(text, str):
            raise Transient(f"{self._who}'s reply holds no text", trouble="faulty")
        return _part(text, choice, reply)

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        """What the server says to a completion's request: at least a choice with something as its text.

        Raises:
            Transient, RowError, Resumable: see `once`.
        """
        status, headers, raw = self._post("/v1/completions", json.dumps(body).encode())
        if status != 200:
            self._refused(status, headers, raw)
        try:
            reply: dict[str, Any] = json.loads(raw)
            reply["choices"][0]["text"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise Transient(f"{self._who}'s reply is no completion: {_shown(raw)}", trouble="faulty") from None
        return reply

    def _post(self, path: str, data: bytes) -> tuple[int, dict[str, str], bytes]:
        return self.calls.call("POST", path, data)

    def _refused(self, status: int, headers: dict[str, str], raw: bytes) -> None:
        message = _message(raw)
        if status == 400 and any(w in message.lower() for w in ("context", "maximum length", "too long")):
            raise TooLong
        what = decision(status)
        if what == "retry":
            wait = retry_after(headers)
            raise Transient(f"{self._who} says {status}", wait, trouble(status, wait))
        if what == "fail row":
            raise RowError(f"{self._who} says {status}: {message}")
        hint = {
            401: "; is the key right?",
            403: "; may the key do this?",
            404: "; are the address and engine.served right?",
        }
        raise Resumable(f"{self._who} says {status}: {message}{hint.get(status, '')}")

    def warm_prefix(self, prefix: Pieces, adapter: str | None) -> str:
        """The server keeps its own prefix cache."""
        return "left to the server's cache"

    def close(self) -> None:
        """Close the connections that are kept open."""
        self.calls.close()


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
    # More than a reply can have is no count; and the journal's numbers have an end.
    return value if isinstance(value, int) and 0 < value < 2**31 else 0


def _finish(choice: dict[str, Any]) -> Finish:
    if choice.get("finish_reason") == "length":
        return "length"
    # vLLM names the stop string that ended it; llama.cpp and OpenAI do not tell it from the end token.
    return "stop" if isinstance(choice.get("stop_reason"), str) else "end"
