"""The part of Go's text/template that a Modelfile's TEMPLATE needs: to check one for form, and to see what it renders.

Known: text, string literals, .Field, $variable, := and =, if / else if / else / end, range over a list, and the
functions eq, ne, not, and, or (reference: pkg.go.dev/text/template). What is not known is an error, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_ACTION = re.compile(r'\{\{(- )?((?:[^"}]|"(?:[^"\\\n]|\\.)*"|\}(?!\}))*?)( -)?\}\}', re.DOTALL)
_TOKEN = re.compile(r'\s*("(?:[^"\\\n]|\\.)*"|\$\w*(?:\.\w+)*|\.\w+(?:\.\w+)*|:=|=|[()]|\w+)')
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([nrt\\\"]))")
_SIMPLE = {"n": "\n", "r": "\r", "t": "\t"}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "not": lambda a: not a,
    "and": lambda *values: next((v for v in values if not v), values[-1]),
    "or": lambda *values: next((v for v in values if v), values[-1]),
}
_NUMBER_OF_ARGUMENTS = {"eq": 2, "ne": 2, "not": 1}


class GoTemplateError(ValueError):
    """The template is not of the known form."""


@dataclass
class _Node:
    kind: str
    """text, print, set, if or range."""
    words: list[str] = field(default_factory=list)
    text: str = ""
    body: list[_Node] = field(default_factory=list)
    otherwise: list[_Node] = field(default_factory=list)


def render(source: str, data: dict[str, Any]) -> str:
    """The template's text for this data.

    Raises:
        GoTemplateError: it is not of the known form.
    """
    return _run(parse(source), data, {"$": data})


def parse(source: str) -> list[_Node]:
    """The template as a tree. Raises GoTemplateError."""
    pieces: list[_Node] = []
    at = 0
    for match in _ACTION.finditer(source):
        before = source[at : match.start()]
        pieces += _text(before.rstrip() if match[1] else before)
        pieces.append(_Node("action", _words(match[2])))
        at = match.end()
        if match[3]:
            at += len(source[at:]) - len(source[at:].lstrip())
    pieces += _text(source[at:])
    tree = _block(pieces, inner=False)
    return tree


def _text(text: str) -> list[_Node]:
    if "{{" in text or "}}" in text:
        raise GoTemplateError(f"an action is not closed, or its quotes do not balance, near {text[:40]!r}")
    return [_Node("text", text=text)] if text else []


def _words(action: str) -> list[str]:
    words, at = [], 0
    while at < len(action.rstrip()):
        match = _TOKEN.match(action, at)
        if not match:
            raise GoTemplateError(f"the action {action.strip()[:40]!r} cannot be read")
        words.append(match[1])
        at = match.end()
    if not words:
        raise GoTemplateError("an action is empty")
    return words


def _block(pieces: list[_Node], inner: bool) -> list[_Node]:
    """Nodes up to this block's `end` or `else`, which are left standing in `pieces`."""
    found: list[_Node] = []
    while pieces:
        node = pieces[0]
        first = node.words[0] if node.kind == "action" else ""
        if first in ("end", "else"):
            if not inner:
                raise GoTemplateError(f"{first!r} without an if or range before it")
            return found
        pieces.pop(0)
        if first in ("if", "range"):
            found.append(_branch(pieces, first, node.words[1:]))
        elif first.startswith("$") and node.words[1:2] in ([":="], ["="]):
            _check(node.words[2:])
            found.append(_Node("set", node.words))
        elif first:
            _check(node.words)
            found.append(_Node("print", node.words))
        else:
            found.append(node)
    if inner:
        raise GoTemplateError("an if or range has no end")
    return found


def _branch(pieces: list[_Node], kind: str, words: list[str]) -> _Node:
    _check(words)
    node = _Node(kind, words, body=_block(pieces, inner=True))
    closing = pieces.pop(0).words
    if closing[:2] == ["else", "if"]:
        node.otherwise = [_branch(pieces, "if", closing[2:])]
    elif closing == ["else"]:
        node.otherwise = _block(pieces, inner=True)
        closing = pieces.pop(0).words
        if closing != ["end"]:
            raise GoTemplateError("an else is not followed by its end")
    elif closing != ["end"]:
        raise GoTemplateError(f"{' '.join(closing)!r} is not known")
    return node


def _check(words: list[str]) -> None:
    """Raises GoTemplateError unless the words are one operand, or a known function and its operands."""
    if not words:
        raise GoTemplateError("an action lacks its value")
    name, operands = words[0], words[1:]
    if name in _FUNCTIONS:
        wanted = _NUMBER_OF_ARGUMENTS.get(name, len(operands) or 1)
        if len(operands) != wanted:
            raise GoTemplateError(f"{name} takes {wanted} values, not {len(operands)}")
        words = operands
    elif operands:
        raise GoTemplateError(f"{' '.join(words)[:60]!r} is not known")
    for word in words:
        if not word.startswith(('"', "$", ".")):
            raise GoTemplateError(f"{word!r} is not known")
        if word.startswith('"') and "\\" in _ESCAPE.sub("", word):
            raise GoTemplateError(f"the string {word[:40]} has an escape that is not known")


def _value(words: list[str], here: Any, variables: dict[str, Any]) -> Any:
    if words[0] in _FUNCTIONS:
        return _FUNCTIONS[words[0]](*(_value([w], here, variables) for w in words[1:]))
    word = words[0]
    if word.startswith('"'):
        return _ESCAPE.sub(_unescape, word[1:-1])
    name, *fields = word.split(".")
    if name and name not in variables:
        raise GoTemplateError(f"the variable {name} is not set")
    value = variables[name] if name else here
    for one in fields:
        if not isinstance(value, dict) or one not in value:
            raise GoTemplateError(f"there is no {word}")
        value = value[one]
    return value


def _unescape(match: re.Match[str]) -> str:
    code = match[1] or match[2]
    return chr(int(code, 16)) if code else _SIMPLE.get(match[3], match[3])


def _run(nodes: list[_Node], here: Any, variables: dict[str, Any]) -> str:
    text = ""
    for node in nodes:
        if node.kind == "text":
            text += node.text
        elif node.kind == "print":
            text += str(_value(node.words, here, variables))
        elif node.kind == "set":
            variables[node.words[0]] = _value(node.words[2:], here, variables)
        elif node.kind == "if":
            chosen = node.body if _value(node.words, here, variables) else node.otherwise
            text += _run(chosen, here, variables)
        else:
            for one in _value(node.words, here, variables):
                text += _run(node.body, one, variables)
    return text
