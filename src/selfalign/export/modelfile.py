"""Ollama's Modelfile beside a GGUF: written, read as Ollama reads it, and checked.

A value in three quotes ends at the first three quotes that close a line; nothing can be escaped in it. So a text that
holds three quotes never lands there: the template has its own place for the standard prompt, and a licence is reworked.
"""

from __future__ import annotations

import re
from pathlib import Path

from selfalign.export import chat_template, go_template
from selfalign.export.chat_template import Dialogue
from selfalign.model.dialogue import Template

NAME = "Modelfile"
_QUOTES = '"""'
_INSTRUCTIONS = {"FROM", "TEMPLATE", "SYSTEM", "PARAMETER", "LICENSE", "ADAPTER", "MESSAGE"}
_PARAMETERS = {
    "stop", "temperature", "top_k", "top_p", "min_p", "seed", "num_ctx", "num_predict", "repeat_last_n",
    "repeat_penalty",
}  # fmt: skip


def text(gguf: str, template: Template, system: str, label: str, licence: str) -> str:
    """The Modelfile of the GGUF file of that name beside it.

    Args:
        system: the standard system prompt.
        label: the assistant's name.
        licence: the base's terms; empty if unknown.
    """
    lines = [
        "# Made by selfalign: ollama create NAME -f Modelfile",
        f"FROM ./{gguf}",
        f"TEMPLATE {_quoted(chat_template.go(template, system, label))}",
    ]
    if _QUOTES not in system and _graphic(system):
        lines.append(f"SYSTEM {_quoted(system)}")
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in (*template.stops(), template.end)]
    if licence:
        harmless = "".join(c for c in licence.replace("\r", "") if _graphic(c))
        lines.append(f"LICENSE {_quoted(harmless.replace(_QUOTES, chr(39) * 3))}")
    return "\n".join(lines) + "\n"


def _graphic(value: str) -> bool:
    """Whether Ollama keeps every character: it drops those that show nothing."""
    return all(c.isprintable() or c in "\n\t " for c in value)


def _quoted(value: str) -> str:
    if _QUOTES in value:
        raise ValueError("three quotes would end the value")
    return f"{_QUOTES}{value}{_QUOTES}"


def parse(source: str) -> list[tuple[str, str]]:
    """(instruction, value) in order; a PARAMETER's value is its name, a space and the value.

    Raises:
        ValueError: an instruction has no value, or its quotes do not close.
    """
    found = []
    at = 0
    while at < len(source):
        if source[at].isspace():
            at += 1
        elif source[at] == "#":
            at = _line_end(source, at)
        else:
            words = 2 if re.match(r"(?i)(PARAMETER|MESSAGE)\s", source[at:]) else 1
            match = re.match(r"\S+" + r"[ \t]+\S+" * (words - 1), source[at:])
            head = match[0] if match else source[at : _line_end(source, at)]
            name, *key = head.split()
            value, at = _value(source, at + len(head), head)
            found.append((name.upper(), " ".join([*key, value])))
    return found


def _value(source: str, at: int, name: str) -> tuple[str, int]:
    """The value from here on and where it ends: at the first line end at which its quotes are closed."""
    begin = at
    while True:
        at = _line_end(source, at)
        raw = source[begin:at].strip()
        for quotes in (_QUOTES, '"'):
            if raw.startswith(quotes):
                if len(raw) >= 2 * len(quotes) and raw.endswith(quotes):
                    return raw[len(quotes) : -len(quotes)], at
                break
        else:
            if not raw:
                raise ValueError(f"{name} has no value")
            return raw, at
        if at >= len(source):
            raise ValueError(f"the quotes of {name} are not closed")
        at += 1


def _line_end(source: str, at: int) -> int:
    end = source.find("\n", at)
    return len(source) if end < 0 else end


def check_modelfile(path: Path) -> list[str]:
    """What is wrong with the form of a Modelfile; empty if nothing is.

    Known instructions and parameters, balanced quotes, one FROM whose file stands beside it, one TEMPLATE of known
    actions.
    """
    try:
        found = parse(path.read_text("utf-8"))
    except ValueError as error:
        return [str(error)]
    problems = [f"the instruction {name!r} is not known" for name, _ in found if name not in _INSTRUCTIONS]
    for name, value in found:
        if name == "PARAMETER" and value.split(" ")[0] not in _PARAMETERS:
            problems.append(f"the parameter {value.split(' ')[0]!r} is not known")
    for name in ("FROM", "TEMPLATE"):
        values = [value for instruction, value in found if instruction == name]
        if len(values) != 1:
            problems.append(f"there must be one {name}, and there are {len(values)}")
        elif name == "FROM" and not (path.parent / values[0]).is_file():
            problems.append(f"FROM names {values[0]!r}, which is not there")
        elif name == "TEMPLATE":
            try:
                go_template.parse(values[0])
            except go_template.GoTemplateError as error:
                problems.append(f"TEMPLATE: {error}")
    return problems


def renders(path: Path, template: Template, system: str, label: str, dialogues: list[Dialogue]) -> bool:
    """Whether the Modelfile's TEMPLATE and SYSTEM say what the dialogue template does, for each of the dialogues."""
    found = dict(parse(path.read_text("utf-8")))
    for given, turns in dialogues:
        chosen = given or found.get("SYSTEM", "")
        # Ollama lists the system text among the turns, too.
        listed = chat_template.messages((chosen, turns))
        data = {"System": chosen, "Messages": [{"Role": m["role"], "Content": m["content"]} for m in listed]}
        if go_template.render(found["TEMPLATE"], data) != chat_template.text(template, given or system, turns, label):
            return False
    return True
