"""Decide what becomes of the fields that clients send: pass them on, ignore them, or refuse them by name. Pure.

A field is ignored if it cannot change the response: it has a value that asks for nothing (`tools: []`), or serves the
client's bookkeeping (`user`, `chat_id`). Any other field that the server does not know is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from selfalign.web.guard import RequestError

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "echo": (False,),
    "best_of": (1,),
    "verbosity": ("medium",),
    "reasoning_effort": ("none",),
    # Extensions of vLLM, SGLang, llama.cpp and Ollama.
    "min_p": (0,),
    "typical_p": (1,),
    "repetition_penalty": (1,),
    "repeat_penalty": (1,),
    "length_penalty": (1,),
    "mirostat": (0,),
    "dry_multiplier": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "return_token_ids": (False,),
}
"""Field that this server does not support -> its values that ask for nothing, besides null, "", [] and {}."""

_BOOKKEEPING = frozenset({
    "user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prediction",
    "service_tier", "id", "name", "type", "title", "tags", "timestamp", "created", "timeout", "priority", "keep_alive",
    "num_ctx", "cache", "cache_prompt", "cache_salt", "cache_control", "caching", "usage", "timings_per_token",
    "return_progress", "model_item", "background_tasks", "provider", "extra_headers",
})  # fmt: skip
_IDENTIFIER = re.compile(
    r"(?:(?:call|chat|client|conversation|litellm|message|organization|parent|project|request|response|run|session|span|task"
    r"|tenant|thread|trace|user)_?)+(?:id|name|uuid|metadata)",
    re.IGNORECASE,
)
_CONTENT = frozenset({
    "audio", "attachments", "documents", "files", "function_call", "images", "partial", "prefix", "tool_call_id",
    "tool_calls", "video", "videos",
})  # fmt: skip
"""Fields of a message that may hold content beside `content`, or say how to continue it."""
_MAY_BE_NULL = ("system", "developer", "assistant")
"""Roles whose messages may have the content null, which is read as empty."""


def select(fields: dict[str, Any], known: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the known fields of a request, and the names of those that are ignored although they have a value.

    Args:
        known: the names that the request's kind supports.

    Raises:
        RequestError: fields that may change the response are not supported; the error names all of them.
    """
    kept: dict[str, Any] = {}
    ignored: list[str] = []
    refused: list[str] = []
    for name, value in fields.items():
        if name in known:
            if value is not None:
                kept[name] = value
        elif _asks_for_nothing(name, value):
            continue
        elif name in _BOOKKEEPING or _IDENTIFIER.fullmatch(name):
            ignored.append(name)
        else:
            refused.append(name)
    if refused:
        names = ", ".join(name[:100] for name in refused[:10])
        message = f"{names} {'is' if len(refused) == 1 else 'are'} not supported by this server"
        raise RequestError(400, message, param=refused[0][:100], code="unsupported_parameter")
    return kept, ignored


def select_in_message(message: Any, known: Collection[str]) -> tuple[Any, list[str]]:
    """Return a message with its known fields, and the names of those that are ignored.

    Fields that may hold content stay, so that the message is refused. A value of another type is returned as it is.
    """
    if not isinstance(message, dict):
        return message, []
    kept = {name: value for name, value in message.items() if name in ("role", "content")}
    if kept.get("content", "") is None and kept.get("role") in _MAY_BE_NULL:
        kept["content"] = ""
    present = {name: value for name, value in message.items() if name not in kept and value not in (None, [], "", {})}
    kept |= {name: value for name, value in present.items() if name in known or (name in _CONTENT and value)}
    return kept, [name for name in present if name not in kept]


def _asks_for_nothing(name: str, value: Any) -> bool:
    if value is None or value in ("", [], {}):
        return True
    # In Python, 0 equals False and 1 equals True, but not in a request.
    return any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in NEUTRAL.get(name, ()))
