"""Convert rows of instruction data between common formats and one small record, `Row`.

It reads this project's rows ({instruction, input} and optionally response) and training pairs ({user, assistant}),
prompts alone ({prompt}), TRL's prompt–completion (text or lists of messages), `messages` of TRL and OpenAI, Alpaca and
ShareGPT. A dialogue is reduced to its first user turn and the response to it; the other turns are counted. This module
neither reads nor writes files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from selfalign.data.records import join_input
from selfalign.errors import UserError

OutputFormat = Literal["prompt-completion", "prompt-completion-text", "messages", "alpaca", "sharegpt"]
OUTPUT_FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)
"""The formats that `selfalign export dataset` writes. `format_row` returns all but prompt-completion-text, which needs
the model's dialogue template."""

KEYS = {
    "messages": ("messages",),
    "ShareGPT": ("conversations", "system"),
    "selfalign pairs": ("user", "assistant"),
    "Alpaca": ("instruction", "input", "output", "system", "history"),
    "selfalign": ("instruction", "input", "response", "system"),
    "prompt–completion": ("prompt", "completion"),
    "prompts": ("prompt",),
}
"""Format -> the keys that are read. A row may have other keys."""

_KNOWN = "messages; conversations; user, assistant; instruction (input, output or response); prompt (completion)"
_USER, _ASSISTANT = ("user", "human"), ("assistant", "gpt", "model", "chatgpt")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of instruction data, independent of its format."""

    format: str
    """A key of `KEYS`."""
    instruction: str
    """The user's message, or its first part. Empty if a dialogue has no user turn."""
    input: str = ""
    """The rest of the message, in formats that store it separately."""
    answer: str | None = None
    system: str | None = None
    skipped_turns: int = 0
    """Number of turns of a dialogue before the first user turn and after the response to it."""

    @property
    def message(self) -> str:
        """The user's message."""
        return join_input(self.instruction, self.input)


def detect_format(keys: Mapping[str, Any] | tuple[str, ...]) -> str | None:
    """Return the format of a row with these keys, or None. If several match, the one with the most information."""
    if "messages" in keys:
        return "messages"
    if "conversations" in keys:
        return "ShareGPT"
    if "user" in keys and "assistant" in keys:
        return "selfalign pairs"
    if "instruction" in keys:
        return "Alpaca" if "output" in keys else "selfalign"
    if "prompt" in keys:
        return "prompt–completion" if "completion" in keys else "prompts"
    return None


def parse_row(value: object, where: str) -> Row:
    """Return a decoded JSON value as a `Row`.

    Args:
        where: file and line, for the error message.

    Raises:
        UserError: the row has an unknown format, or a value of the wrong type.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where}: a row must be an object of keys and values, not {value!r:.60}")
    row_format = detect_format(value)
    if row_format is None:
        raise unknown_format(tuple(value), where)
    if row_format in ("messages", "ShareGPT"):
        return _parse_dialogue(row_format, value[KEYS[row_format][0]], value.get("system"), where)
    if row_format in ("prompt–completion", "prompts"):
        return _parse_prompt(row_format, value, where)
    if row_format == "selfalign pairs":
        return Row(row_format, _text(value, "user", where) or "", "", _text(value, "assistant", where))
    if row_format == "Alpaca" and value.get("history"):
        return _parse_history(value, where)
    instruction, text, system = (_text(value, key, where) for key in ("instruction", "input", "system"))
    answer = _text(value, "output" if row_format == "Alpaca" else "response", where)
    return Row(row_format, instruction or "", text or "", answer, system)


def unknown_format(keys: tuple[str, ...], where: str) -> UserError:
    """Return the error for a row or a table whose keys match no format."""
    shown = ", ".join(f"{key!r:.40}" for key in keys[:8]) + (", …" if len(keys) > 8 else "")
    return UserError(f"{where}: unknown row format: the keys are {shown or '(none)'}; known are {_KNOWN}")


def unread_keys(value: Mapping[str, Any], row_format: str) -> list[str]:
    """Return the keys of the row that are not read in this format."""
    return [key for key in value if key not in KEYS[row_format]]


def _text(value: Mapping[str, Any], key: str, where: str) -> str | None:
    text = value.get(key)
    if text is None or isinstance(text, str):
        return text
    raise UserError(f"{where}: {key} is {text!r:.60}, not text")


def _parse_prompt(row_format: str, value: Mapping[str, Any], where: str) -> Row:
    """Parse TRL's prompt, alone or with its completion: both text, or both lists of messages."""
    prompt, completion = value["prompt"], value.get("completion")
    if not isinstance(prompt, list):
        return Row(row_format, _text(value, "prompt", where) or "", "", _text(value, "completion", where))
    if completion is not None and not isinstance(completion, list):
        raise UserError(f"{where}: prompt is a list of messages, so completion must be one, not {completion!r:.60}")
    return _parse_dialogue(row_format, [*prompt, *(completion or [])], None, where)


def _parse_history(value: Mapping[str, Any], where: str) -> Row:
    """Parse an Alpaca row with a history, a list of [message, response]; the first pair becomes the row."""
    history = value["history"]
    valid = isinstance(history, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in history
    )
    if not valid:
        raise UserError(f"{where}: history is {history!r:.60}, not a list of [message, response]")
    return Row("Alpaca", history[0][0], "", history[0][1], _text(value, "system", where), 2 * len(history))


def _parse_dialogue(row_format: str, value: object, system: object, where: str) -> Row:
    """Return the first user turn, the response if it directly follows, and the system text before it."""
    if not isinstance(value, list):
        raise UserError(f"{where}: {KEYS[row_format][0]} is {value!r:.60}, not a list of turns")
    turns = [_parse_turn(turn, f"{where}: turn {number}") for number, turn in enumerate(value, 1)]
    if system is not None and not isinstance(system, str):
        raise UserError(f"{where}: system is {system!r:.60}, not text")
    first = next((n for n, (role, _) in enumerate(turns) if role in _USER), None)
    system_turns = [text for role, text in turns[:first] if role in ("system", "developer")]
    system = system_turns[0] if system_turns else system
    if first is None:
        return Row(row_format, "", "", None, system)
    message, rest = turns[first][1] or "", turns[first + 1 :]
    answered = bool(rest) and rest[0][0] in _ASSISTANT
    skipped_turns = len(turns) - len(system_turns[:1]) - 1 - answered
    return Row(row_format, message, "", rest[0][1] if answered else None, system, skipped_turns)


def _parse_turn(turn: object, where: str) -> tuple[str, str | None]:
    """Return (role, text) of a turn, {role, content} or {from, value}."""
    if not isinstance(turn, dict):
        raise UserError(f"{where} is {turn!r:.60}, not an object with role and content, or from and value")
    role_key, text_key = ("from", "value") if "from" in turn else ("role", "content")
    role, content = turn.get(role_key), turn.get(text_key)
    if not isinstance(role, str):
        raise UserError(f"{where}: {role_key} is {role!r:.60}, not text")
    if isinstance(content, list):
        content = "".join(_parse_part(part, where) for part in content)
    if content is not None and not isinstance(content, str):
        raise UserError(f"{where}: {text_key} is {content!r:.60}, not text")
    return role.lower(), content


def _parse_part(part: object, where: str) -> str:
    """Return the text of one part of a message's content."""
    text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else None
    if not isinstance(text, str):
        raise UserError(f"{where}: a part of content is {part!r:.60}, not text")
    return text


def format_row(row: Row, output_format: OutputFormat) -> dict[str, Any]:
    """Return the row in an output format.

    Alpaca has separate keys for instruction, input and system text. The other formats have one text for the message,
    and the system text as the first turn. A row without a response has no key or turn for it.
    """
    if output_format == "alpaca":
        value = {"instruction": row.instruction, "input": row.input, "output": row.answer, "system": row.system}
        return {key: text for key, text in value.items() if text is not None}
    roles = ("system", "human", "gpt") if output_format == "sharegpt" else ("system", "user", "assistant")
    keys = ("from", "value") if output_format == "sharegpt" else ("role", "content")
    texts = zip(roles, (row.system, row.message, row.answer), strict=True)
    turns = [dict(zip(keys, turn, strict=True)) for turn in texts if turn[1] is not None]
    if output_format == "sharegpt":
        return {"conversations": turns}
    if output_format == "messages":
        return {"messages": turns}
    if row.answer is None:
        return {"prompt": turns}
    return {"prompt": turns[:-1], "completion": turns[-1:]}
