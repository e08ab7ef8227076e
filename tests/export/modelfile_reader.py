"""Read a Modelfile as Ollama's parser does."""

from __future__ import annotations

import re

QUOTES = '"""'


def parse(source: str) -> list[tuple[str, str]]:
    """Return (instruction, value) in order; the value of a PARAMETER is its name, a space and its value.

    Raises:
        ValueError: an instruction has no value, or its quotes do not close.
    """
    instructions, position = [], 0
    while position < len(source):
        if source[position].isspace():
            position += 1
        elif source[position] == "#":
            position = line_end(source, position)
        else:
            words = 2 if re.match(r"(?i)(PARAMETER|MESSAGE)\s", source[position:]) else 1
            match = re.match(r"\S+" + r"[ \t]+\S+" * (words - 1), source[position:])
            assert match
            name, *key = match[0].split()
            value, position = read_value(source, position + match.end(), name)
            instructions.append((name.upper(), " ".join([*key, value])))
    return instructions


def read_value(source: str, start: int, name: str) -> tuple[str, int]:
    """Return the value and its end: the first line end at which its quotes are closed."""
    position = start
    while True:
        position = line_end(source, position)
        raw = source[start:position].strip()
        quotes = next((q for q in (QUOTES, '"') if raw.startswith(q)), None)
        if quotes is None:
            if not raw:
                raise ValueError(f"{name} has no value")
            return raw, position
        if len(raw) >= 2 * len(quotes) and raw.endswith(quotes):
            return raw[len(quotes) : -len(quotes)], position
        if position >= len(source):
            raise ValueError(f"the quotes of {name} are not closed")
        position += 1


def line_end(source: str, position: int) -> int:
    end = source.find("\n", position)
    return len(source) if end < 0 else end
