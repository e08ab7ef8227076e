"""Parse requests and build responses in the format of OpenAI's API.

A request for something that the server does not support (tools, images, log-probabilities) gets an error that names
the field; `request_fields` decides about fields that the server does not know.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from selfalign.data.prompt_text import Turn
from selfalign.web.guard import RequestError
from selfalign.web.responses import to_json
from selfalign.web.serve import request_fields

Style = Literal["standard", "concise", "verbose", "two-shot"]
STYLES: tuple[Style, ...] = get_args(Style)
MAX_CHOICES = 8
"""Maximum choices of one request: `n`, or the number of prompts times `n`."""
MAX_MESSAGES = 256


def bad_request(message: str, param: str | None = None, code: str | None = None) -> RequestError:
    """Return the error for a request that is malformed or not supported."""
    return RequestError(400, message, param=param, code=code)


# -- requests ----------------------------------------------------------------------------------------------------------


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class TextPart(_Strict):
    """A part of a message. Other types (images, audio, files) are refused."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text"]
    text: str


_AS_LIST = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
_AS_PART = BeforeValidator(lambda value: [{"type": "text", "text": value}] if isinstance(value, str) else value)


class Message(_Strict):
    """A message of a dialogue."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], _AS_PART]
    reasoning_content: str = ""
    """Ignored. Clients may send back a response with its internal thoughts."""

    @field_validator("reasoning_content")
    @classmethod
    def _check_role(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("role") != "assistant":
            raise ValueError("only assistant messages may have reasoning_content")
        return value

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content)


class StreamOptions(_Strict):
    """Options of a stream. Others (obfuscation, more frequent counts) cannot change the text and are ignored."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class GenerationRequest(_Strict):
    """The fields that chat requests and completion requests share. None means the server's default."""

    model: str
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], _AS_LIST] = Field([], max_length=4)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    """An addition to OpenAI's API, as in the servers of vLLM and llama.cpp: 0 and -1 mean no limit."""
    max_tokens: int | None = Field(None, ge=1)

    @property
    def include_usage(self) -> bool:
        return self.stream and self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(GenerationRequest):
    """A request to /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    style: Style | None = None
    """Which of the constitution's system prompts to use; an addition to OpenAI's API."""

    @model_validator(mode="after")
    def _check_dialogue(self) -> ChatRequest:
        roles = [message.role in ("system", "developer") for message in self.messages]
        if roles != sorted(roles, reverse=True):
            late = roles.index(True, roles.index(False))
            raise bad_request("system messages must come before all other messages", f"messages[{late}]")
        if self.messages[-1].role != "user":
            raise bad_request("the last message must have the role user", "messages")
        if self.style is not None and self.system is not None:
            raise bad_request("style and a system message both set the system prompt: send only one of them", "style")
        return self

    @property
    def system(self) -> str | None:
        """The system messages, joined as exported chat templates need them; None if missing or blank."""
        texts = [message.text for message in self.messages if message.role in ("system", "developer")]
        return "\n\n".join(texts).strip() or None

    @property
    def turns(self) -> list[Turn]:
        """The messages of the user and the assistant."""
        return [Turn(m.role, m.text) for m in self.messages if m.role == "user" or m.role == "assistant"]


class CompletionRequest(GenerationRequest):
    """A request to /v1/completions."""

    prompt: Annotated[list[str], _AS_LIST] = Field(min_length=1)

    @field_validator("prompt", mode="before")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        if isinstance(value, list) and any(isinstance(item, int | list) for item in value):
            raise bad_request("prompt: token ids are not supported: send text", "prompt")
        return value

    @model_validator(mode="after")
    def _check_choices(self) -> CompletionRequest:
        if len(self.prompt) * self.n > MAX_CHOICES:
            raise bad_request(f"{len(self.prompt)} prompts times n = {self.n}: at most {MAX_CHOICES} choices", "prompt")
        return self


_Request = TypeVar("_Request", ChatRequest, CompletionRequest)


def parse(
    kind: type[_Request], body: bytes, max_tokens: int, on_ignored: Callable[[str], None] = lambda name: None
) -> _Request:
    """Parse a request's body; lone surrogates in its texts become "?".

    Args:
        on_ignored: receives the name of each field that is ignored although it has a value.

    Raises:
        RequestError: the request is malformed, exceeds a limit, or needs something that the server does not support.
    """
    try:
        value = json.loads(body.decode("utf-8-sig"))
        if isinstance(value, dict):
            value = _select_fields(kind, value, on_ignored)
        text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise bad_request(f"the body is not valid JSON: {reason}") from None
    try:
        request = kind.model_validate_json(text)
    except ValidationError as error:
        raise _explain(error) from None
    if request.max_tokens is not None and request.max_tokens > max_tokens:
        raise bad_request(f"max_tokens: {request.max_tokens} exceeds the server's limit of {max_tokens}", "max_tokens")
    return request


def _select_fields(
    kind: type[GenerationRequest], value: dict[str, Any], on_ignored: Callable[[str], None]
) -> dict[str, Any]:
    """Return the fields that the request's kind supports. Raises RequestError if others may change the response."""
    known = {*kind.model_fields, *(("max_completion_tokens",) if kind is ChatRequest else ())}
    fields, ignored = request_fields.select(value, known)
    limit = fields.pop("max_completion_tokens", None)
    if limit is not None and fields.setdefault("max_tokens", limit) != limit:
        raise bad_request("max_tokens and max_completion_tokens differ: send only one of them", "max_tokens")
    if isinstance(fields.get("messages"), list):
        selected = [request_fields.select_in_message(m, Message.model_fields) for m in fields["messages"]]
        fields["messages"] = [message for message, _ in selected]
        ignored += [f"messages.{name}" for _, names in selected for name in names]
    for name in ignored:
        on_ignored(name)
    return fields


def _explain(error: ValidationError) -> RequestError:
    """Return the first error, with its location in OpenAI's notation: messages[0].content."""
    first = error.errors(include_url=False)[0]
    param = "".join(f"[{key}]" if isinstance(key, int) else f".{key[:100]}" for key in first["loc"]).lstrip(".")
    message = f"{param or 'the body'}: {first['msg']}"
    if isinstance(first["input"], str | int | float):
        message += f", got {first['input']!r:.60}"
    return bad_request(message, param or None)


# -- responses ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Usage:
    """The token counts of one choice."""

    prompt: int = 0
    cached: int = 0
    """Prompt tokens that were in the prefix cache."""
    completion: int = 0
    thoughts: int = 0
    """Completion tokens that are internal thoughts."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A finished choice."""

    text: str
    finish: Literal["stop", "length"]
    usage: Usage
    thoughts: str = ""
    """The internal thoughts of prompted-base."""
    escaped: tuple[str, ...] = ()
    """Control tokens that were escaped in the messages."""
    forged: bool = False
    """Whether a message contains text that reads like a turn of the dialogue."""


def usage(choices: Sequence[Usage], prompts: int = 1) -> dict[str, Any]:
    """Sum the tokens of all choices; the tokens of a prompt count once, however many choices it has."""
    per_prompt = choices[:: max(1, len(choices) // prompts)]
    prompt, completion = sum(u.prompt for u in per_prompt), sum(u.completion for u in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(u.cached for u in per_prompt)},
        "completion_tokens_details": {"reasoning_tokens": sum(u.thoughts for u in choices)},
    }


@dataclass(frozen=True, slots=True)
class ResponseBuilder:
    """Builds the objects of the response to one request."""

    id: str
    created: int
    """Seconds since 1970."""
    model: str
    is_chat: bool

    def response(self, choices: Sequence[Choice], prompts: int = 1) -> dict[str, Any]:
        """Build the whole response, for requests without `stream`."""
        listed = []
        for index, choice in enumerate(choices):
            content: dict[str, Any] = {"text": choice.text}
            if self.is_chat:
                message = {"role": "assistant", "content": choice.text, "refusal": None}
                thoughts = {"reasoning_content": choice.thoughts} if choice.thoughts else {}
                content = {"message": {**message, **thoughts}}
            listed.append({"index": index, **content, "logprobs": None, "finish_reason": choice.finish})
        counts = usage([c.usage for c in choices], prompts)
        return {**self._object("", listed), "usage": counts, **_warnings(choices)}

    def chunk(
        self, index: int, text: str | None, finish: str | None = None, is_thought: bool = False
    ) -> dict[str, Any]:
        """Build one event of a stream.

        Args:
            text: new text; None at the beginning of a choice, and at its end (with `finish`).
        """
        content: dict[str, Any] = {"text": text or ""}
        if self.is_chat:
            field = "reasoning_content" if is_thought else "content"
            delta = {"role": "assistant", "content": ""} if text is None else {field: text}
            content = {"delta": delta if finish is None else {}}
        return self._object("chunk", [{"index": index, **content, "logprobs": None, "finish_reason": finish}])

    def usage_chunk(self, choices: Sequence[Choice], prompts: int = 1) -> dict[str, Any]:
        """Build the last event of a stream with `include_usage`."""
        return {**self._object("chunk", []), "usage": usage([c.usage for c in choices], prompts), **_warnings(choices)}

    def _object(self, part: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        name = ".".join(filter(None, ("chat.completion", part))) if self.is_chat else "text_completion"
        return {"id": self.id, "object": name, "created": self.created, "model": self.model, "choices": choices}


def _warnings(choices: Sequence[Choice]) -> dict[str, Any]:
    """Report escaped control tokens and text that reads like turns; an addition to OpenAI's API."""
    escaped = list(dict.fromkeys(token for choice in choices for token in choice.escaped))
    warnings: dict[str, Any] = {"escaped": escaped} if escaped else {}
    if any(choice.forged for choice in choices):
        warnings["reads_as_turns"] = True
    return {"selfalign": warnings} if warnings else {}


def model(name: str, created: int) -> dict[str, Any]:
    """Build an entry of /v1/models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "selfalign"}


def event(value: Any) -> bytes:
    """Encode a server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


END = b"data: [DONE]\n\n"
