"""Answers in the form of OpenAI's API: objects, events of a stream, token counts. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one choice."""

    prompt: int = 0
    cached: int = 0
    """Of the prompt's, those that were in the cache."""
    completion: int = 0
    thoughts: int = 0
    """Of the completion's, those before the answer."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One finished choice."""

    text: str
    finish: Literal["stop", "length"]
    usage: Usage
    thoughts: str = ""
    """What the prompted base wrote before its answer."""
    neutralised: tuple[str, ...] = ()
    forged: bool = False
    """Whether a message held what reads as a turn of its own."""


def usage(choices: Sequence[Usage], prompts: int = 1) -> dict[str, Any]:
    """The tokens of all choices; a prompt counts once, however many choices it has."""
    each = max(1, len(choices) // prompts)
    first = choices[::each]
    prompt, completion = sum(u.prompt for u in first), sum(u.completion for u in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(u.cached for u in first)},
        "completion_tokens_details": {"reasoning_tokens": sum(u.thoughts for u in choices)},
    }


@dataclass(frozen=True, slots=True)
class Head:
    """What every answer to one request begins with."""

    id: str
    created: int
    """Seconds since 1970."""
    model: str
    is_chat: bool

    def _object(self, name: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self.id, "object": name, "created": self.created, "model": self.model, "choices": choices, **more,
        }  # fmt: skip

    def whole(self, choices: Sequence[Choice], prompts: int = 1) -> dict[str, Any]:
        """The answer without a stream."""
        build = self._chat_choice if self.is_chat else _text_choice
        listed = [build(number, choice) for number, choice in enumerate(choices)]
        name = "chat.completion" if self.is_chat else "text_completion"
        found = self._object(name, listed, usage=usage([c.usage for c in choices], prompts))
        return {**found, **_noted(choices)}

    @staticmethod
    def _chat_choice(number: int, choice: Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.thoughts:
            message["reasoning_content"] = choice.thoughts
        return {"index": number, "message": message, "logprobs": None, "finish_reason": choice.finish}

    def chunk(
        self, number: int, stretch: str | None, finish: str | None = None, thought: bool = False
    ) -> dict[str, Any]:
        """One event of a stream: the beginning (stretch None), a stretch of text, or the end of a choice."""
        if not self.is_chat:
            choice = {"index": number, "text": stretch or "", "logprobs": None, "finish_reason": finish}
            return self._object("text_completion", [choice])
        delta: dict[str, Any] = {}
        if finish is None:
            field = "reasoning_content" if thought else "content"
            delta = {"role": "assistant", "content": ""} if stretch is None else {field: stretch}
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._object("chat.completion.chunk", [choice])

    def last(self, choices: Sequence[Choice], prompts: int = 1) -> dict[str, Any]:
        """The event of a stream that says the usage."""
        name = "chat.completion.chunk" if self.is_chat else "text_completion"
        return {**self._object(name, [], usage=usage([c.usage for c in choices], prompts)), **_noted(choices)}


def _text_choice(number: int, choice: Choice) -> dict[str, Any]:
    return {"index": number, "text": choice.text, "logprobs": None, "finish_reason": choice.finish}


def _noted(choices: Sequence[Choice]) -> dict[str, Any]:
    """What became of the messages' text, where there is something to say; an addition of ours."""
    broken = list(dict.fromkeys(token for choice in choices for token in choice.neutralised))
    notes: dict[str, Any] = {"neutralised": broken} if broken else {}
    if any(choice.forged for choice in choices):
        notes["reads_as_turns"] = True
    return {"selfalign": notes} if notes else {}


def model(name: str, created: int) -> dict[str, Any]:
    """One entry of /v1/models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "selfalign"}


def models(entries: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """The answer of /v1/models."""
    return {"object": "list", "data": [model(*entry) for entry in entries]}


def as_json(value: Any) -> bytes:
    """UTF-8; half characters, which it cannot hold, become "?"."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def event(value: Any, dump: Callable[[Any], bytes] = as_json) -> bytes:
    """One server-sent event."""
    return b"data: " + dump(value) + b"\n\n"


END = b"data: [DONE]\n\n"
