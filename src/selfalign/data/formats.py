"""Convert rows of instruction data between published formats and one small record, `Row`.

Rows are read by the names of their keys, in any case: a list of turns (`dialogues`), a transcript (`transcripts`), a
message tree (`message_trees`), or separate texts for message, passage, response and system text. A dialogue is reduced
to its first user message and the response to it; the other turns are counted. What a row has that text cannot carry is
its `problem`. docs/formats.md lists the formats. This module neither reads nor writes files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, get_args

from selfalign.data import message_trees, transcripts
from selfalign.data.dialogues import (
    NOT_TEXT,
    TOOL_CALL,
    Dialogue,
    calls_tool,
    decode_json,
    is_user,
    read_dialogue,
    rows_of_columns,
    turn_list,
)
from selfalign.data.prompt_text import replace_surrogates
from selfalign.data.records import join_input
from selfalign.errors import UserError

OutputFormat = Literal["prompt-completion", "prompt-completion-text", "messages", "alpaca", "sharegpt", "preference"]
OUTPUT_FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)
"""The formats that `selfalign export dataset` writes. `format_row` returns all but prompt-completion-text, which needs
the model's dialogue template."""

_DIALOGUES = {"messages": "messages", "conversations": "ShareGPT", "conversation": "dialogue", "items": "dialogue",
              "dialogue": "dialogue", "dialog": "dialogue", "data": "dialogue"}  # fmt: skip
"""Key of a list of turns -> the format's name."""
_TRANSCRIPTS = ("text", "chat")
_MESSAGES = ("instruction", "prompt", "question", "query", "problem", "message_1")
"""Keys of the user's message; the first one with a value is read. Others count beside certain keys: `_message_keys`."""
_PASSAGES = ("input", "inputs", "context", "contexts", "passage", "passages", "paragraph", "paragraphs", "article",
             "document", "documents", "excerpt", "story", "background", "knowledge", "evidence", "facts",
             "snippet", "snippets", "abstract", "sentence", "premise",
             "hypothesis", "source_text", "source_document", "reference_text", "choices", "options")  # fmt: skip
"""Keys of a text that the message is about. It becomes the row's input."""
_CHOICES = ("choices", "options")
_BODIES = ("text", "content", "body")
"""Keys that may be a passage, the response, or the whole row rendered as one text."""
_QUESTIONS = ("question", "query", "problem")
"""Keys that are the row's input if the message has another key and does not contain them."""
_ANSWERS = ("output", "outputs", "response", "completion", "assistant", "solution", "generated_solution", "answer",
            "chosen", "target", "targets", "demonstration", "message_2", "answers", "completions")  # fmt: skip
_SEVERAL_ANSWERS = ("answers", "completions")
_ANSWER_TEXTS = ("response", "answer", "text", "content")
"""Keys of the text of one response of several."""
_SCORES = {"overall_score": 1, "pm_score": 1, "rank": -1}
"""Key of the mark of one response of several -> whether the best one is the highest (1) or lowest."""
_NO_INPUT = ("<noinput>", "<no input>")
_SYSTEMS = ("system", "system_prompt", "system_message")
_TOOLS = ("tools", "functions")
FILES = ("image", "images", "audio", "audios", "video", "videos")
"""Keys of what a text cannot carry."""

KNOWN_KEYS = frozenset(
    {
        *_DIALOGUES,
        *_TRANSCRIPTS,
        *_MESSAGES,
        *_PASSAGES,
        *_BODIES,
        *_ANSWERS,
        *_SYSTEMS,
        *_TOOLS,
        *FILES,
        *message_trees.READ,
    }
    | {"user", "definition", "history", "instances", "rejected", "kto_tag", "label"}
)
"""All keys that some format reads, as `normalize_key` returns them."""

_KNOWN = (
    "messages or conversations (lists of turns); instruction, prompt or question, with input or context, and output, "
    "response or answer; prompt, chosen; text (a transcript)"
)
_SURROGATE = "has a lone surrogate"
_TOOLS_OFFERED = "offers tools"
_FRAGMENT = "belongs to no message tree that begins before it"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of instruction data, independent of its format."""

    format: str
    """The format's name for messages."""
    instruction: str
    """The user's message, or its first part. Empty if a dialogue has no user turn."""
    input: str = ""
    """The rest of the message: a passage or another text in a key of its own."""
    answer: str | None = None
    system: str | None = None
    skipped_turns: int = 0
    """Number of turns of a dialogue before the first user turn and after the response to it."""
    problem: str = ""
    """Why the row cannot be used: what it has that a text cannot carry. Empty for most rows."""
    rejected: str | None = None
    """A worse response, for the output format `preference`; never read from data."""
    unread: tuple[str, ...] = field(default=(), compare=False)
    """The keys of the row that are not read."""

    @property
    def message(self) -> str:
        """The user's message."""
        return join_input(self.instruction, self.input)


@lru_cache(512)
def normalize_key(key: str) -> str:
    """Return the key in the spelling of this module's lists."""
    return key.strip().lower().replace(" ", "_").replace("-", "_")


def detect_format(keys: Iterable[str]) -> str | None:
    """Return the format of a row with these keys, or None. If several match, the one with the most information."""
    return _format_of(frozenset(normalize_key(key) for key in keys))


@lru_cache(512)
def _format_of(known: frozenset[str]) -> str | None:
    if _is_tree(known):
        return "message tree"
    if dialogue := next((key for key in _DIALOGUES if key in known), None):
        return _DIALOGUES[dialogue]
    if {"user", "assistant"} <= known:
        return "selfalign pairs"
    if "instruction" in known:
        return "Alpaca" if "output" in known else "Dolly" if "context" in known else "selfalign"
    if "chosen" in known:
        return "preferences"
    if "prompt" in known and not known & {*_QUESTIONS, *_ANSWERS} - {"completion"}:
        return "prompt–completion" if "completion" in known else "prompts"
    if not known.isdisjoint(_message_keys(known)):
        return "question–answer"
    return "transcript" if known & {*_TRANSCRIPTS} else None


def _is_tree(names: Set[str]) -> bool:
    return "message_tree_id" in names and (names >= {*message_trees.MESSAGE_KEYS} or "prompt" in names)


@lru_cache(512)
def _message_keys(names: frozenset[str]) -> tuple[str, ...]:
    """Return the keys of the user's message in their order, for a row with the given keys."""
    user = ["user"] if "assistant" in names else []
    definition = ["definition"] if names & {"input", "inputs", "instances"} else []
    context = ["context"] if names & {*_ANSWERS} else []
    return (*user, *definition, *_MESSAGES, "inputs", "input", *context)


def parse_row(value: object, where: str) -> Row:
    """Return a decoded JSON value as a `Row`.

    Args:
        where: file and line, for the error message.

    Raises:
        UserError: the row has an unknown format, or a value of the wrong type.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where}: a row must be an object of keys and values, not {value!r:.60}")
    fields = Fields(value, where)
    row = _parse(fields)
    if row is None:
        raise unknown_format(tuple(value), where)
    if _is_undesirable(fields):
        row = replace(row, answer=None)
    problem = row.problem or (TOOL_CALL if calls_tool(row.answer) else "")
    problem = problem or (_TOOLS_OFFERED if fields.any_filled(_TOOLS) else "")
    problem = problem or (NOT_TEXT if fields.any_filled(FILES) else "")
    if any(map(_has_surrogate, (row.instruction, row.input, row.answer or "", row.system or ""))):
        row = replace(
            row,
            instruction=replace_surrogates(row.instruction),
            input=replace_surrogates(row.input),
            answer=row.answer and replace_surrogates(row.answer),
            system=row.system and replace_surrogates(row.system),
        )
        problem = problem or _SURROGATE
    return replace(row, problem=problem, unread=fields.unread())


def _is_undesirable(fields: Fields) -> bool:
    """Return whether the row's response is an example of a bad one, in the forms of KTO's data."""
    names = ["kto_tag", *(["label"] if {"prompt", "completion"} <= fields.names else [])]
    return "false" in [str(fields.read(name)).lower() for name in names if fields.filled(name)]


def _has_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def unknown_format(keys: tuple[str, ...], where: str) -> UserError:
    """Return the error for a row or a table whose keys match no format."""
    shown = ", ".join(f"{key!r:.40}" for key in keys[:8]) + (", …" if len(keys) > 8 else "")
    return UserError(f"{where}: unknown row format: the keys are {shown or '(none)'}; known are {_KNOWN}")


def not_text(where: str, name: str, value: object) -> UserError:
    """Return the error for a value of a key that must be a text."""
    return UserError(f"{where}: {name} is {value!r:.60}, not text: make it a text, or rename or remove the key")


class Fields:
    """The values of a row by their normalized keys. It remembers which keys were read."""

    def __init__(self, value: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._keys = {key: normalize_key(key) for key in value}
        self._values: dict[str, Any] = {}
        for key, name in self._keys.items():
            if name not in self._values or _is_filled(value[key]):
                # pandas writes NaN for a missing text.
                self._values[name] = None if value[key] != value[key] else value[key]
        self._read: set[str] = set()
        self.names = frozenset(self._values)

    def peek(self, name: str) -> Any:
        """Return the value of a key, or None, without reading it."""
        return self._values.get(name)

    def read(self, name: str) -> Any:
        """Return the value of a key, or None."""
        self._read.add(name)
        return self._values.get(name)

    def filled(self, name: str) -> bool:
        """Return whether a key has a value. Arrow pads rows with nulls and empty lists."""
        return _is_filled(self._values.get(name))

    def any_filled(self, names: Iterable[str]) -> bool:
        """Return whether any of the keys has a value."""
        return any(self.filled(name) for name in names)

    def first(self, names: Iterable[str]) -> str | None:
        """Return the first of the keys that has a value, or else the first that the row has."""
        present = [name for name in names if name in self._values]
        return next((name for name in present if self.filled(name)), present[0] if present else None)

    def text(self, name: str) -> str | None:
        """Return the text of a key; several texts are joined.

        Raises:
            UserError: the value is no text.
        """
        value = _labelled(self.read(name)) if name in _CHOICES else self.read(name)
        if (text := _joined(value)) is None and value is not None:
            raise not_text(self.where, name, value)
        return text

    def unread(self) -> tuple[str, ...]:
        """Return the keys that were not read, without known ones that are empty."""
        return tuple(
            key
            for key, name in self._keys.items()
            if name and name not in self._read and (name not in KNOWN_KEYS or _is_filled(self._values[name]))
        )


def _is_filled(value: object) -> bool:
    return value is not None and value not in ("", "[]", "{}", [], {}, [None])


def _labelled(choices: Any) -> Any:
    """Return choices with labels, {label: text} or {label: [...], text: [...]}, as a list of texts."""
    if not isinstance(choices, dict):
        return choices
    if isinstance(choices.get("text"), list) and isinstance(choices.get("label"), list):
        pairs = list(zip(choices["label"], choices["text"], strict=False))
    else:
        pairs = [(label, text) for label, text in choices.items() if text is not None]
    return [f"{label}. {text}" for label, text in pairs] if all(isinstance(text, str) for _, text in pairs) else choices


def _joined(value: object) -> str | None:
    """Return a text, or a list of texts as one text; None for another value."""
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return "\n".join(value)
    return value if isinstance(value, str) else None


# -- formats ---------------------------------------------------------------------------------------------------------


def _parse(fields: Fields) -> Row | None:
    """Return the row in the format of the keys that have values; if none has, of all keys."""
    if _is_tree(fields.names):
        return _parse_tree(fields)
    texts = {*_message_keys(fields.names), "chosen"}
    dialogue = fields.first(_DIALOGUES)
    if dialogue and (fields.filled(dialogue) or not fields.any_filled(texts)):
        return _parse_turns(fields, dialogue)
    if "chosen" in fields.names or any(name in fields.names for name in texts):
        transcript = fields.first(_TRANSCRIPTS)
        if transcript is None or not fields.filled(transcript) or fields.any_filled(texts):
            return _parse_texts(fields)
    name = fields.first(_TRANSCRIPTS)
    return _parse_transcript(fields, name) if name else None


def _parse_turns(fields: Fields, name: str) -> Row | None:
    turns = fields.read(name) or []
    if name == "data" and isinstance(turns, list) and any(isinstance(turn, dict) for turn in turns):
        return None  # not a dialogue, but a data set in one object
    dialogue = read_dialogue(turns, name, fields.where)
    if dialogue.message and dialogue.answer is None and not dialogue.problem and not dialogue.skipped_turns:
        answers = fields.first(_ANSWERS)
        if answers and _joined(fields.peek(answers)):
            answer = _answer(fields)
            dialogue = replace(dialogue, answer=answer if isinstance(answer, str) else None)
    return _with_passages(_dialogue_row(_DIALOGUES[name], dialogue, fields), fields, required=False)


def _parse_transcript(fields: Fields, name: str) -> Row | None:
    text = fields.read(name)
    turns = transcripts.turns(text) if isinstance(text, str) else None
    if turns is None and _is_filled(text):
        return None
    return _dialogue_row("transcript", read_dialogue(turns or [], name, fields.where), fields)


def _dialogue_row(row_format: str, dialogue: Dialogue, fields: Fields) -> Row:
    system = _system(fields) if dialogue.system is None else dialogue.system
    return Row(row_format, dialogue.message, "", dialogue.answer, system, dialogue.skipped_turns, dialogue.problem)


def _system(fields: Fields) -> str | None:
    name = fields.first(_SYSTEMS)
    return fields.text(name) if name else None


def _parse_tree(fields: Fields) -> Row:
    """Parse a message tree: its prompt, and the reply that was ranked first."""
    prompt = fields.read("prompt")
    for name in message_trees.READ:
        fields.read(name)
    if not isinstance(prompt, dict) or not isinstance(prompt.get("text"), str):
        return Row("message tree", "", problem=_FRAGMENT)
    reply, others = message_trees.best_reply(prompt)
    problem = "deleted" if prompt.get("deleted") else ""
    return Row("message tree", prompt["text"], "", reply["text"] if reply else None, None, others, problem)


def _parse_texts(fields: Fields) -> Row | None:
    """Parse a row that has message, passage and response in keys of their own."""
    if fields.filled("history"):
        return _parse_history(fields)
    keys = _message_keys(fields.names)
    primary = [key for key in keys if key not in _PASSAGES]
    lead = fields.first(primary) or fields.first(keys)
    names = fields.names if lead == "instruction" else frozenset((lead or "", *filter(fields.filled, fields.names)))
    row_format = _format_of(frozenset(names - _DIALOGUES.keys())) or "question–answer"
    answer = _answer(fields)
    if (turns := _turns_of(fields, lead, answer)) is not None:
        row = _dialogue_row(row_format, read_dialogue(turns, lead or "chosen", fields.where), fields)
        return _with_passages(row, fields, required=False)
    if lead is None or isinstance(answer, list):
        return None
    message, skipped = _message(fields, lead)
    row = Row(row_format, message, "", answer, _system(fields), skipped)
    if fields.filled("instances"):
        return _with_instance(row, fields)
    return _with_passages(row, fields, skipped=lead)


def _message(fields: Fields, name: str) -> tuple[str, int]:
    """Return the user's message, and the number of its later messages, as in the list of MT-Bench's prompts.

    Raises:
        UserError: the row is a table, an object of columns.
    """
    value = fields.peek(name)
    if name not in _MESSAGES or not isinstance(value, list) or len(value) < 2 or _joined(value) is None:
        return fields.text(name) or "", 0
    answers = fields.first(_ANSWERS)
    if answers and isinstance(column := fields.peek(answers), list) and len(column) == len(value):
        raise UserError(
            f"{fields.where}: {name} and {answers} are lists of {len(value)}: write a row per line, not a list per key"
        )
    return str(fields.read(name)[0]), len(value) - 1


def _parse_history(fields: Fields) -> Row:
    """Parse an Alpaca row with a history, a list of [message, response]; the first pair becomes the row."""
    history = fields.read("history")
    for name in (*_MESSAGES, "input", *_ANSWERS):
        fields.read(name)
    dialogue = read_dialogue(history, "history", fields.where)
    return replace(_dialogue_row("Alpaca", dialogue, fields), skipped_turns=dialogue.skipped_turns + 2)


def _answer(fields: Fields) -> str | list[Any] | None:
    """Return the response: a text, or a list of turns. Of several responses, the one with the highest score."""
    name = fields.first(_ANSWERS)
    if name is None:
        return None
    value = fields.read(name)
    if (turns := turn_list(value)) is not None:
        return turns
    several = decode_json(value) if name in _SEVERAL_ANSWERS and isinstance(value, str) else value
    if isinstance(several, dict):
        several = several.get("text")
    if isinstance(several, list):
        best = max(several, key=_score, default=None)
        if isinstance(best, dict) and (key := next((key for key in _ANSWER_TEXTS if key in best), None)):
            best = best[key]
        value = best if isinstance(best, str) or not isinstance(value, str) else value
    if value is None or isinstance(value, str):
        return value
    raise not_text(fields.where, name, fields.read(name))


def _score(response: object) -> float:
    if isinstance(response, dict):
        for key, sign in _SCORES.items():
            if isinstance(score := response.get(key), int | float):
                return sign * float(score)
    return 0.0


def _turns_of(fields: Fields, lead: str | None, answer: str | list[Any] | None) -> list[Any] | None:
    """Return the turns of a row whose message or response is a list of turns or a transcript; None for other rows."""
    message = fields.read(lead) if lead else None
    turns = turn_list(message)
    response: list[Any] = answer if isinstance(answer, list) else []
    if turns is None and isinstance(message, str) and not response:
        if answer is None:
            turns = transcripts.turns(message, preamble=lead == "input")
        elif transcripts.ends_open(message):
            turns = (transcripts.turns(message) or [])[:-1]
    elif lead is None and isinstance(answer, str):
        return transcripts.turns(answer)
    if turns is None and not response:
        return None
    if isinstance(answer, str):
        response = [{"role": "assistant", "content": answer}]
    if any(turn and is_user(turn) for turn in response):  # a preference with the whole dialogue
        return response
    return [*([{"role": "user", "content": message}] if turns is None else turns), *response]


def _with_instance(row: Row, fields: Fields) -> Row:
    """Return a row with the first of its instances, {input, output}."""
    instances = rows_of_columns(fields.read("instances"))
    first = instances[0] if isinstance(instances, list) else None
    if not isinstance(first, dict):
        raise UserError(f"{fields.where}: instances is {instances!r:.60}, not a list of input and output")
    inner = Fields(first, f"{fields.where}: instances")
    answer = inner.text("output") if row.answer is None else row.answer
    return replace(row, input=inner.text("input") or "", answer=answer, skipped_turns=2 * (len(instances) - 1))


def _with_passages(row: Row, fields: Fields, skipped: str = "", required: bool = True) -> Row:
    """Return the row with the passages beside its message as its input.

    Args:
        skipped: the key of the message.
        required: whether a passage that is no text is an error.
    """
    names = [name for name in _PASSAGES if name != skipped and (required or name not in ("input", "inputs"))]
    if skipped in ("instruction", "prompt", "definition"):
        names += _QUESTIONS
    texts = []
    for name in names:
        if name in fields.names and (required or _joined(_labelled(fields.peek(name))) is not None):
            text = fields.text(name)
            if (
                text
                and text.strip().lower() not in _NO_INPUT
                and (name == "input" or not _contains(row.instruction, text))
            ):
                texts.append(text)
    if required and not fields.names & {*_PASSAGES}:
        texts += filter(None, (_body(name, row, fields) for name in _BODIES))
    return replace(row, input="\n\n".join(texts))


def _body(name: str, row: Row, fields: Fields) -> str:
    """Return the passage in a key such as `text`, which in other data sets is the row rendered as one text.

    Raises:
        UserError: it is neither, so that it may also be the response.
    """
    text = fields.peek(name)
    if not isinstance(text, str) or not text.strip() or not row.instruction or _contains(text, row.instruction):
        return ""
    if row.answer is None:
        raise UserError(f"{fields.where}: {name!r} may be a passage or the response: rename it to input or output")
    return fields.text(name) or ""


def _contains(text: str, part: str) -> bool:
    """Return whether a text contains another one, except for white space."""
    return " ".join(part.split()) in " ".join(text.split())


def format_row(row: Row, output_format: OutputFormat) -> dict[str, Any]:
    """Return the row in an output format.

    Alpaca has separate keys for instruction, input and system text. The other formats have one text for the message,
    and the system text as the first turn. A row without a response has no key or turn for it. `preference` needs a
    rejected response.
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
    if output_format == "preference":
        rejected = {"role": "assistant", "content": row.rejected}
        return {"prompt": turns[:-1], "chosen": turns[-1:], "rejected": [rejected]}
    return {"prompt": turns[:-1], "completion": turns[-1:]}
