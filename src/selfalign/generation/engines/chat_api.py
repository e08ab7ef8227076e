"""Generate with a server through `/v1/chat/completions` if it has no raw completions, as most servers of judges.

A prompt becomes one message of the user. A grammar that lists alternatives becomes a JSON schema, and the reply is then
an object with one of them; a server that ignores or refuses schemas replies in plain text. `read_choice` reads both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from selfalign.generation.engines.openai_api import OpenAiApi, Refused, RefusesAll
from selfalign.generation.retries import Transient

CHATS = "/v1/chat/completions"
_KEY = "verdict"
"""The key of the choice in a JSON reply."""
_SHORT_LIMIT = 64
_REASONING_LIMIT = 4096
"""Maximum tokens of a reply, once a reply of `_SHORT_LIMIT` tokens has ended before its text began."""
_STRING = r'"(?:[^"\\]|\\.)*"'
_ALTERNATIVES = re.compile(rf"root ::= {_STRING}(?: \| {_STRING})*")
_FENCE = re.compile(r"```(?:json)?\s*(\{.*\})\s*```", re.DOTALL)
_THOUGHT = re.compile(r"\s*<think>.*?</think>", re.DOTALL)


class ChatApi(OpenAiApi):
    """An engine that calls one server by raw completions or, if it has none, by chats. See `Engine`."""

    _has_completions: bool | None = None
    """None until a request has shown it."""
    _limit = _SHORT_LIMIT
    _limit_field = "max_tokens"

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the server's reply in the form of completions. Raises as `OpenAiApi.complete`."""
        if self._has_completions is not False:
            try:
                reply = super().complete(body)
            except (Refused, RefusesAll) as error:
                if self._has_completions or not _lacks_completions(error):
                    raise
            else:
                self._has_completions = True
                return reply
        reply = self._chat(body)
        with self._checking:
            if self._has_completions is not False:
                self._has_completions = False
                self._say(f"  {self._name} has no raw completions: it is asked through {CHATS}")
        return reply

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        choices = alternatives(body.get("grammar", ""))
        while True:
            limit, field = self._limit, self._limit_field
            try:
                raw = self.post(CHATS, _request(body, choices, {field: limit}))
            except Refused as error:
                if field == "max_tokens" and "max_completion_tokens" in error.reply:
                    self._limit_field = "max_completion_tokens"  # OpenAI's newer models
                elif not ("output limit" in error.reply and self._raise_limit(limit)):
                    raise
                continue
            reply, choice, text = self._read(raw)
            ended_early = choice.get("finish_reason") == "length" and not _THOUGHT.sub("", text).strip()
            is_thought = choice.get("finish_reason") == "length" and text.lstrip().startswith("<think>")
            if not ((ended_early or is_thought) and self._raise_limit(limit)):
                return {**reply, "choices": [{**choice, "text": text}]}

    def _read(self, raw: bytes) -> tuple[dict[str, Any], dict[str, Any], str]:
        """Return a reply, its first choice, and the choice's text, which a model that reasons may leave empty."""
        try:
            reply: dict[str, Any] = json.loads(raw)
            choice: dict[str, Any] = reply["choices"][0]
            text = choice["message"].get("content") or ""
            if isinstance(text, list):  # parts, such as a thought and a text
                text = "".join(part["text"] for part in text if part.get("type") == "text")
            if isinstance(text, str):
                return reply, choice, text
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            pass
        raise Transient(f"{self._name}'s reply is not a chat completion", failure="bad reply")

    def _raise_limit(self, limit: int) -> bool:
        """Return whether another attempt may have more tokens than a reply that ended before its text began."""
        if limit == _REASONING_LIMIT:
            return False
        with self._checking:
            if self._limit != _REASONING_LIMIT:
                self._limit = _REASONING_LIMIT
                self._say(
                    f"  {self._name} reasons before it replies: each reply may have {_REASONING_LIMIT:,} tokens, which "
                    "the estimate does not count"
                )
        return True


def _request(body: dict[str, Any], choices: Sequence[str], limit: dict[str, int]) -> dict[str, Any]:
    """Return the chat request for a request for a completion: standard fields only, and few of them."""
    prompt = body["prompt"].strip()
    if choices:
        prompt += f"\n\nReply with one of these and nothing else: {', '.join(choices)}."
    message = {"role": "user", "content": prompt}
    request = {"model": body["model"], "messages": [message], "temperature": body["temperature"], **limit}
    return {**request, "response_format": _schema(choices)} if choices else request


def _schema(choices: Sequence[str]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {_KEY: {"type": "string", "enum": list(choices)}},
        "required": [_KEY],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": _KEY, "strict": True, "schema": schema}}


def _lacks_completions(error: Refused | RefusesAll) -> bool:
    """Return whether the error may mean that the server has chats only; a missing model looks the same."""
    if error.status in (404, 405):
        return True
    text = str(error).lower()
    return error.status == 400 and ("chat" in text or "completion operation" in text)


def alternatives(grammar: str) -> list[str]:
    """Return the texts among which a grammar chooses, stripped; empty if it is not a list of texts."""
    if not _ALTERNATIVES.fullmatch(grammar):
        return []
    try:
        return [json.loads(text).strip() for text in re.findall(_STRING, grammar)]
    except ValueError:
        return []


def read_choice(text: str) -> str:
    """Return the choice in a reply: the value of a JSON object with one key, or the text after a thought."""
    text = _THOUGHT.sub("", text, count=1).strip()
    if fence := _FENCE.fullmatch(text):
        text = fence[1]
    if not text.startswith("{"):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    choice = value.get(_KEY) if isinstance(value, dict) and len(value) == 1 else None
    return choice if isinstance(choice, str) else text
