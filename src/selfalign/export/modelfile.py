"""Write a Modelfile, from which Ollama loads a GGUF.

Ollama ends a triple-quoted value at the first three quotes at the end of a line, and has no escape for them. So no
value contains three quotes: such a system prompt is only in the template as a literal, and a licence gets other quotes.
"""

from __future__ import annotations

from selfalign.export import chat_template
from selfalign.model.dialogue import Template

NAME = "Modelfile"
_QUOTES = '"""'


def text(gguf: str, template: Template, system: str, label: str, licence: str) -> str:
    """Return the Modelfile for a GGUF in the same folder.

    Args:
        system: the standard system prompt.
        label: the assistant's name.
        licence: the terms of the base; "" if they are unknown.
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
    """Return whether Ollama keeps every character: it drops unprintable ones."""
    return all(c.isprintable() or c in "\n\t " for c in value)


def _quoted(value: str) -> str:
    if _QUOTES in value:
        raise ValueError("three quotes would end the value")
    return f"{_QUOTES}{value}{_QUOTES}"
