"""Learn which optional fields a server refuses, and omit them from its later requests.

The fields extend OpenAI's API, or are refused by some servers of it. A server that refuses one answers with status 400
or 422, and most name the field. What it refuses is only learned from a request that succeeds without it: an error may
quote the whole request, or have another cause.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

_DRY = "dry_*"
_LOSSES = {
    "top_k": "tokens are drawn from all that top_p allows",
    _DRY: "repeated sequences get no penalty",
    "grammar": "no grammar restricts citations and verdicts, which are checked afterwards",
    "ignore_eos": "requests may end before their stop string",
    "logit_bias": "no token is banned",
    "seed": "the same request may get another text",
    "response_format": "verdicts are read from plain text",
    "temperature": "the server's own temperature applies",
    "top_p": "the server's own top_p applies",
}
"""Optional field -> what is lost without it."""
_NAMED_ONLY = frozenset({"logit_bias", "seed", "temperature", "top_p"})
"""Fields of OpenAI's API that nearly all servers know: they are omitted only if the error names them."""
_ONLY_AT = {"temperature": 0, "top_p": 1}
"""Field -> the only value at which it is optional: some servers refuse these (TGI, OpenAI's reasoning models). With
another value, responses would differ."""


_LIST_OF_ACCEPTED = re.compile(
    r"(?<!not )\b(?:accepted|allowed|expected|known|permitted|supported|valid)\b"
    r"[^:.\n]{0,24}?(?:\bone of\b|\bare\b|:).*",
    re.IGNORECASE | re.DOTALL,
)
"""The part of an error that lists the fields that the server accepts, as Rust's servers do."""


class OptionalFields:
    """The optional fields of one server's requests. Threads may share it.

    Args:
        name: the server's name in messages.
        report: receives a message when the server has refused a field.
    """

    def __init__(self, name: str, report: Callable[[str], None]) -> None:
        self._name, self._report = name, report
        self._lock = threading.Lock()
        self._refused: frozenset[str] = frozenset()
        self._accepted: frozenset[str] = frozenset()
        """Fields of requests that succeeded: an error that names one of these has another cause."""

    def without_refused(self, body: dict[str, Any], suspects: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Return the request without the fields that the server refuses, or is suspected to refuse."""
        dropped = (self._refused | suspects) & _fields(body) if self._refused or suspects else frozenset()
        return {name: value for name, value in body.items() if _field(name) not in dropped} if dropped else body

    def suspects(self, body: dict[str, Any], error: str) -> frozenset[str]:
        """Return the fields of a refused request that may be the cause; empty if it has another cause.

        Args:
            error: the body of the server's reply.
        """
        unproven = _fields(body) - self._accepted
        text = _without_quoted_input(error)
        named = frozenset(field for field in unproven if _pattern(field).search(text))
        return named or unproven - _NAMED_ONLY

    def record_success(self, body: dict[str, Any], suspects: frozenset[str]) -> None:
        """Record that the server accepted a request, after it had refused the same one with the suspects."""
        fields = _fields(body)
        if fields <= self._accepted and suspects <= self._refused:
            return
        with self._lock:
            new = suspects - self._refused
            self._accepted |= fields
            self._refused |= suspects
        if new:
            losses = "; ".join(f"without {field}, {_LOSSES[field]}" for field in _LOSSES if field in new)
            self._report(f"  {self._name} refuses {', '.join(f for f in _LOSSES if f in new)}: {losses}")


def _field(name: str) -> str:
    return _DRY if name.startswith("dry_") else name


def _fields(body: dict[str, Any]) -> frozenset[str]:
    fields = (_field(name) for name, value in body.items() if _ONLY_AT.get(name, value) == value)
    return frozenset(field for field in fields if field in _LOSSES)


def _pattern(field: str) -> re.Pattern[str]:
    """Return a pattern for the field in a message: top_k, top k or topK."""
    words = field.removesuffix("*").split("_")
    end = "" if field == _DRY else r"(?![a-z0-9_])"
    return re.compile(r"(?<![a-z0-9_])" + "[_ ]?".join(words) + end, re.IGNORECASE)


def _without_quoted_input(error: str) -> str:
    """Return the texts of an error without the parts that quote the request or list the accepted fields."""
    try:
        texts = _texts(json.loads(error))
    except (ValueError, RecursionError):
        texts = [error]
    return "\n".join(_LIST_OF_ACCEPTED.sub("", text) for text in texts)


def _texts(value: Any, depth: int = 0) -> list[str]:
    if isinstance(value, str):
        return [value]
    if depth > 8 or not isinstance(value, dict | list):
        return []
    inner = [v for k, v in value.items() if k not in ("input", "ctx")] if isinstance(value, dict) else value
    return [text for item in inner for text in _texts(item, depth + 1)]
