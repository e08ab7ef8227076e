"""Reduce a list of turns, in any of its published shapes, to the first user message and the response to it.

A turn is an object ({role, content}, {from, value}), a pair ({input, output}, {human, assistant}, [message, response])
or a plain text, where user and assistant alternate. A list may be a JSON string, or an object of lists as Arrow stores
it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from selfalign.data import transcripts
from selfalign.errors import UserError

TOOL_CALL = "has a tool call"
NOT_TEXT = "has an image or another file"
UNKNOWN_ROLE = "has a turn of an unknown role"

_Role = Literal["user", "assistant", "system", "tool", ""]
_ROLES: dict[str, _Role] = {
    **dict.fromkeys(("user", "human", "prompter", "usr", "question"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "model", "chatgpt", "bot", "ai", "chatbot", "bing", "bard", "claude", "answer"),
        "assistant",
    ),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(
        ("tool", "function", "observation", "ipython", "function_call", "function_response", "tool_call",
         "tool_calls", "tool_response", "tool_result"),
        "tool",
    ),
}  # fmt: skip
_CALL_MARK = r"(?:<tool_call>|<functioncall>|<function_call>|<\|python_tag\|>|\[TOOL_CALLS\]|<\|tool_call\|>)"
_CALL = re.compile(
    rf"^[ \t]*(?:{_CALL_MARK}|<function_calls>|```tool_code$)|(?:{_CALL_MARK}|<function=[\w.-]+>)\s*[\[{{]"
    r"|<｜tool▁call|<\|tool_calls_section",
    re.MULTILINE,
)
"""A tool call in a text: at the beginning of a line, or anywhere if JSON follows the mark."""
_PAIR_MESSAGES = ("input", "human", "user", "question", "query", "prompt", "instruction")
_PAIR_RESPONSES = ("output", "assistant", "answer", "response", "bot")
_TEXT_PARTS = ("text", "input_text", "output_text")
_HIDDEN_PARTS = ("thinking", "redacted_thinking", "reasoning")
_TOOL_PARTS = ("tool_use", "tool_result", "tool_call", "function_call", "function")


class Turn(NamedTuple):
    """A turn as it is read."""

    role: _Role
    """Empty for an unknown role."""
    text: str | None
    problem: str = ""
    """What the turn has that a text cannot carry."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """The part of a dialogue that is used."""

    message: str = ""
    """The user turns before the first response. Empty if there is none."""
    answer: str | None = None
    system: str | None = None
    skipped_turns: int = 0
    """Number of turns before the first user turn and after the response to it."""
    problem: str = ""
    """What the used part has that a text cannot carry, or ""."""


def calls_tool(text: str | None) -> bool:
    """Return whether a response calls a tool in its text."""
    return text is not None and bool(_CALL.search(text))


def turn_list(value: object) -> list[Any] | None:
    """Return the value as a list of turns that are objects, also from a JSON string, or None if it is not one."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        value = decode_json(value)
    if isinstance(value, list) and value and all(isinstance(t, dict) and _role_key(t) for t in value if t is not None):
        return value
    return None


def read_dialogue(value: object, name: str, where: str) -> Dialogue:
    """Return the first user message of a list of turns and the response to it.

    Args:
        name: the key of the list, for the error message.
        where: file and line, for the error message.

    Raises:
        UserError: the value is not a list of turns.
    """
    if isinstance(value, str):
        value = _decoded(value)
    value = rows_of_columns(value)
    if not isinstance(value, list):
        raise UserError(f"{where}: {name} is {value!r:.60}, not a list of turns")
    return reduce_turns([turn for turn in _turns(value, where) if turn.text is not None or turn.problem or turn.role])


def reduce_turns(turns: list[Turn]) -> Dialogue:
    """Return the first user message and the response to it. Turns of one role in a row are one turn."""
    systems = [turn.text for turn in turns if turn.role == "system" and turn.text is not None]
    system = "\n\n".join(filter(None, systems)) if systems else None
    exchange = [turn for turn in turns if turn.role != "system"]
    start = next((n for n, turn in enumerate(exchange) if turn.role == "user"), None)
    if start is None:
        return Dialogue(system=system, problem=next((turn.problem for turn in exchange if turn.problem), ""))
    middle = _end_of(exchange, start, "user")
    end = _end_of(exchange, middle, "assistant")
    used = exchange[start:end]
    after = exchange[middle].role if middle < len(exchange) else "assistant"
    problem = next((turn.problem for turn in used if turn.problem), "")
    if not problem and any(turn.role == "tool" for turn in exchange[end : end + 1]):
        problem = TOOL_CALL  # a response that is followed by a tool's result calls it, in whatever notation
    if not problem and not after:
        problem = UNKNOWN_ROLE
    answers = [turn.text for turn in exchange[middle:end] if turn.text is not None]
    message = "\n\n".join(turn.text for turn in exchange[start:middle] if turn.text)
    return Dialogue(message, "\n\n".join(answers) if answers else None, system, len(exchange) - len(used), problem)


def _end_of(turns: list[Turn], start: int, role: str) -> int:
    return next((n for n in range(start, len(turns)) if turns[n].role != role), len(turns))


def _decoded(text: str) -> Any:
    """Return the turns that a text contains, as JSON or as a transcript; the text if it has none."""
    if not text.strip():
        return []
    return decode_json(text) if text.lstrip()[0] in "[{" else transcripts.turns(text) or text


def decode_json(text: str) -> Any:
    """Return the value of a JSON text, or the text if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def rows_of_columns(value: Any) -> Any:
    """Return an object of lists of the same length as a list of objects."""
    if not isinstance(value, dict):
        return value
    columns = {key: column for key, column in value.items() if column is not None}
    lists = [column for column in columns.values() if isinstance(column, list)]
    if not lists or len(lists) != len(columns) or len({len(column) for column in lists}) != 1:
        return value
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*lists, strict=True)]


def _turns(value: list[Any], where: str) -> Iterator[Turn]:
    texts_alone = all(item is None or isinstance(item, str) for item in value)
    for number, item in enumerate(value):
        place = f"{where}: turn {number + 1}"
        if isinstance(item, str) and texts_alone:
            yield Turn("assistant" if number % 2 else "user", item)
        elif isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) for text in item):
            yield from (Turn("user", item[0]), Turn("assistant", item[1]))
        elif isinstance(item, dict) and not _role_key(item) and (pair := _pair_keys(item)):
            yield _turn("user", item[pair[0]], pair[0], place)
            yield _turn("assistant", item[pair[1]], pair[1], place)
        elif item is not None:
            yield _object_turn(item, place)


def _pair_keys(turn: dict[str, Any]) -> tuple[str, str] | None:
    """Return the keys of message and response in an object that has both."""
    first, second = (next((key for key in keys if key in turn), None) for keys in (_PAIR_MESSAGES, _PAIR_RESPONSES))
    return (first, second) if first and second else None


def is_user(turn: dict[str, Any]) -> bool:
    """Return whether a turn is the user's."""
    role = turn.get(_role_key(turn) or "role")
    return isinstance(role, str) and _role(role) == "user"


def _role(name: str) -> _Role:
    return _ROLES.get(name.strip(" \t\r\n:#*<>|").lower().replace("-", "_").replace(" ", "_"), "")


def _role_key(turn: dict[str, Any]) -> str | None:
    """Return the key of the turn's role. Arrow pads a turn with the keys of other turns."""
    return next((key for key in ("from", "role") if turn.get(key) is not None), None)


def _object_turn(turn: object, where: str) -> Turn:
    if not isinstance(turn, dict):
        raise UserError(f"{where} is {turn!r:.60}, not an object with role and content, or from and value")
    role = turn.get(_role_key(turn) or "role")
    if not isinstance(role, str):
        raise UserError(f"{where}: role is {role!r:.60}, not text")
    keys = ("value", "content", "text") if turn.get("from") is not None else ("content", "value", "text")
    key = next((key for key in keys if turn.get(key) is not None), keys[0])
    read = _turn(_role(role), turn.get(key), key, where)
    if any(turn.get(key) for key in ("tool_calls", "function_call")):
        return read._replace(problem=TOOL_CALL)
    # OpenAI's mark of a response that must not be trained on.
    return read._replace(text=None) if read.role == "assistant" and turn.get("weight") == 0 else read


def _turn(role: _Role, content: object, key: str, where: str) -> Turn:
    """Return a turn; its content is text, or a list of parts."""
    problem = ""
    if isinstance(content, list):
        parts = [_part(part, where) for part in content if part is not None]
        problem = next((part.problem for part in parts if part.problem), "")
        content = "".join(part.text or "" for part in parts)
    if content is not None and not isinstance(content, str):
        raise UserError(f"{where}: {key} is {content!r:.60}, not text")
    if not problem and role == "assistant" and calls_tool(content):
        problem = TOOL_CALL
    return Turn(role, content, problem)


def _part(part: object, where: str) -> Turn:
    """Return the text of one part of a content, or what it has instead."""
    if isinstance(part, str):
        return Turn("", part)
    if not isinstance(part, dict):
        raise UserError(f"{where}: a part of content is {part!r:.60}, not text")
    kind = part.get("type") or "text"
    if kind in _TEXT_PARTS:
        if isinstance(text := part.get("text", 0), str | None):
            return Turn("", text or "")
        raise UserError(f"{where}: a part of content is {part!r:.60}, not text")
    if kind in _HIDDEN_PARTS:
        return Turn("", "")
    return Turn("", None, TOOL_CALL if kind in _TOOL_PARTS else NOT_TEXT)
