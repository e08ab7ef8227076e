"""Rows of instruction data in the forms that people have them in: read into one small record, and written from it.

Read: our own ({instruction, input}, with `response` where it is a row of ours), a training pair of ours ({user,
assistant}), a prompt alone ({prompt}), TRL's prompt–completion (text or lists of messages), TRL's and OpenAI's
`messages`, Alpaca, ShareGPT. Of a dialogue the first user turn and the answer to it are taken; other turns are counted.
Pure: nothing here touches a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from selfalign.data.records import join_input
from selfalign.errors import UserError

OutputFormat = Literal["prompt-completion", "prompt-completion-text", "messages", "alpaca", "sharegpt"]
OUTPUT_FORMATS: tuple[OutputFormat, ...] = (
    "prompt-completion",
    "prompt-completion-text",
    "messages",
    "alpaca",
    "sharegpt",
)
"""The forms that rows are written in. prompt-completion-text is `rendered`, the others are `written`."""

KEYS = {
    "messages": ("messages",),
    "ShareGPT": ("conversations", "system"),
    "our pairs": ("user", "assistant"),
    "Alpaca": ("instruction", "input", "output", "system", "history"),
    "our own": ("instruction", "input", "response", "system"),
    "prompt–completion": ("prompt", "completion"),
    "prompts": ("prompt",),
}
"""The forms that are read, and the keys of each that are. Others may stand beside them."""

_KNOWN = "messages; conversations; user, assistant; instruction (input, output or response); prompt (completion)"
_USER, _ASSISTANT = ("user", "human"), ("assistant", "gpt", "model", "chatgpt")


@dataclass(frozen=True, slots=True)
class Row:
    """What a row says, whatever its form."""

    form: str
    """A key of `KEYS`."""
    instruction: str
    """Of the user's message. Empty where a dialogue has no user turn."""
    input: str = ""
    """The rest of the message, where the form keeps it apart."""
    answer: str | None = None
    system: str | None = None
    skipped_turns: int = 0
    """Turns of a dialogue that are not taken: those before the first user turn and after the answer to it."""

    @property
    def message(self) -> str:
        """What the user says."""
        return join_input(self.instruction, self.input)


def detect_form(keys: Mapping[str, Any] | tuple[str, ...]) -> str | None:
    """The form of a row with these keys, or None. Where several fit, the one that says the most."""
    if "messages" in keys:
        return "messages"
    if "conversations" in keys:
        return "ShareGPT"
    if "user" in keys and "assistant" in keys:
        return "our pairs"
    if "instruction" in keys:
        return "Alpaca" if "output" in keys else "our own"
    if "prompt" in keys:
        return "prompt–completion" if "completion" in keys else "prompts"
    return None


def parse_row(value: object, where: str) -> Row:
    """The row as a record.

    Args:
        value: as JSON has it.
        where: file and line, for the error.

    Raises:
        UserError: the row is in no known form, or a value in it is not what the form has there.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where}: a row must be an object of keys and values, not {value!r:.60}")
    form = detect_form(value)
    if form is None:
        raise unknown_form(tuple(value), where)
    if form in ("messages", "ShareGPT"):
        return _dialogue(form, value[KEYS[form][0]], value.get("system"), where)
    if form in ("prompt–completion", "prompts"):
        return _prompt(form, value, where)
    if form == "our pairs":
        return Row(form, _text(value, "user", where) or "", "", _text(value, "assistant", where))
    if form == "Alpaca" and value.get("history"):
        return _with_history(value, where)
    instruction, text, system = (_text(value, key, where) for key in ("instruction", "input", "system"))
    answer = _text(value, "output" if form == "Alpaca" else "response", where)
    return Row(form, instruction or "", text or "", answer, system)


def unknown_form(keys: tuple[str, ...], where: str) -> UserError:
    """The error for a row (or a table) with these keys, which are no known form's."""
    seen = ", ".join(f"{key!r:.40}" for key in keys[:8]) + (", …" if len(keys) > 8 else "")
    return UserError(f"{where}: no known form: it has the keys {seen or '(none)'}; known are {_KNOWN}")


def unread_keys(value: Mapping[str, Any], form: str) -> list[str]:
    """Keys of the row that say nothing in its form."""
    return [key for key in value if key not in KEYS[form]]


def _text(value: Mapping[str, Any], key: str, where: str) -> str | None:
    found = value.get(key)
    if found is None or isinstance(found, str):
        return found
    raise UserError(f"{where}: {key} is {found!r:.60}, not text")


def _prompt(form: str, value: Mapping[str, Any], where: str) -> Row:
    """TRL's prompt, alone or with its completion: both text, or both lists of messages."""
    prompt, completion = value["prompt"], value.get("completion")
    if not isinstance(prompt, list):
        return Row(form, _text(value, "prompt", where) or "", "", _text(value, "completion", where))
    if completion is not None and not isinstance(completion, list):
        raise UserError(f"{where}: prompt is a list of messages, so completion must be one, not {completion!r:.60}")
    return _dialogue(form, [*prompt, *(completion or [])], None, where)


def _with_history(value: Mapping[str, Any], where: str) -> Row:
    """Alpaca with the dialogue before it, a list of [message, answer]: its first turn is the row's."""
    history = value["history"]
    whole = isinstance(history, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in history
    )
    if not whole:
        raise UserError(f"{where}: history is {history!r:.60}, not a list of [message, answer]")
    return Row("Alpaca", history[0][0], "", history[0][1], _text(value, "system", where), 2 * len(history))


def _dialogue(form: str, turns: object, system: object, where: str) -> Row:
    """The first user turn of a list of turns, the answer where it comes next, and a system text before them."""
    if not isinstance(turns, list):
        raise UserError(f"{where}: {KEYS[form][0]} is {turns!r:.60}, not a list of turns")
    said = [_turn(turn, f"{where}: turn {number}") for number, turn in enumerate(turns, 1)]
    if system is not None and not isinstance(system, str):
        raise UserError(f"{where}: system is {system!r:.60}, not text")
    first = next((n for n, (role, _) in enumerate(said) if role in _USER), None)
    given = [text for role, text in said[:first] if role in ("system", "developer")]
    system = given[0] if given else system
    if first is None:
        return Row(form, "", "", None, system)
    message, rest = said[first][1] or "", said[first + 1 :]
    answered = bool(rest) and rest[0][0] in _ASSISTANT
    skipped_turns = len(said) - len(given[:1]) - 1 - answered
    return Row(form, message, "", rest[0][1] if answered else None, system, skipped_turns)


def _turn(turn: object, where: str) -> tuple[str, str | None]:
    """(role, text) of a turn: {role, content} or {from, value}."""
    if not isinstance(turn, dict):
        raise UserError(f"{where} is {turn!r:.60}, not an object with role and content, or from and value")
    role_key, text_key = ("from", "value") if "from" in turn else ("role", "content")
    role, content = turn.get(role_key), turn.get(text_key)
    if not isinstance(role, str):
        raise UserError(f"{where}: {role_key} is {role!r:.60}, not text")
    if isinstance(content, list):
        content = _parts(content, where)
    if content is not None and not isinstance(content, str):
        raise UserError(f"{where}: {text_key} is {content!r:.60}, not text")
    return role.lower(), content


def _parts(parts: list[object], where: str) -> str:
    """OpenAI's content in parts, where all are text."""
    found = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else None
        if not isinstance(text, str):
            raise UserError(f"{where}: a part of content is {part!r:.60}, not text")
        found.append(text)
    return "".join(found)


def format_row(row: Row, form: OutputFormat) -> dict[str, Any]:
    """The row in a form that is read with roles: the system text is a turn of its own before the user's.

    Alpaca keeps instruction and input apart and has a key `system`; elsewhere the message is one text. A row without an
    answer has no turn (key) for it.
    """
    if form == "alpaca":
        value = {"instruction": row.instruction, "input": row.input, "output": row.answer, "system": row.system}
        return {key: text for key, text in value.items() if text is not None}
    roles = ("system", "human", "gpt") if form == "sharegpt" else ("system", "user", "assistant")
    keys = ("from", "value") if form == "sharegpt" else ("role", "content")
    said = zip(roles, (row.system, row.message, row.answer), strict=True)
    turns = [dict(zip(keys, turn, strict=True)) for turn in said if turn[1] is not None]
    if form == "sharegpt":
        return {"conversations": turns}
    if form == "messages":
        return {"messages": turns}
    if row.answer is None:
        return {"prompt": turns}
    return {"prompt": turns[:-1], "completion": turns[-1:]}
