"""Write the Modelfile with which Ollama loads a GGUF.

A value in three quotes ends at the first three quotes that close a line; Ollama has no escape for them. So a text with
three quotes is never written there: the system prompt is also in the template as a literal, and a licence is changed.
"""

from __future__ import annotations

from selfalign.export import chat_template
from selfalign.model.dialogue import Template

NAME = "Modelfile"
_QUOTES = '"""'


def text(gguf: str, template: Template, system: str, label: str, licence: str) -> str:
    """Return the Modelfile for the GGUF file of this name in the same folder.

    Args:
        system: the standard system prompt.
        label: the assistant's name.
        licence: the terms of the base; "" if unknown.
    """
    lines = [
        "# Made by selfalign: ollama create NAME -f Modelfile",
        f"FROM ./{gguf}",
        f"TEMPLATE {_quoted(chat_template.go(template, system, label))}",
    ]
    if _QUOTES not in system and _printable(system):
        lines.append(f"SYSTEM {_quoted(system)}")
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in (*template.stops(), template.end)]
    if licence:
        printable = "".join(c for c in licence.replace("\r", "") if _printable(c))
        lines.append(f"LICENSE {_quoted(printable.replace(_QUOTES, chr(39) * 3))}")
    return "\n".join(lines) + "\n"


def _printable(value: str) -> bool:
    """Return whether Ollama keeps every character; it drops those that are not printable."""
    return all(c.isprintable() or c in "\n\t " for c in value)


def _quoted(value: str) -> str:
    if _QUOTES in value:
        raise ValueError("three quotes would end the value")
    return f"{_QUOTES}{value}{_QUOTES}"
