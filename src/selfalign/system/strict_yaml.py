"""Read and write the YAML documents that users edit, with safe parsing, strict validation and helpful errors."""

from __future__ import annotations

import re
import sys
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from selfalign.errors import UserError
from selfalign.system.format import did_you_mean

_MAX_BYTES = 1_000_000


class Strict(BaseModel):
    """The base class of the parts of a document: unknown keys and wrong types are errors."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid", frozen=True, strict=True)


Document = TypeVar("Document", bound=Strict)


Place = tuple[int | str, ...]
"""The place of a value in a document: the keys and list positions that lead to it."""


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses duplicate keys, which PyYAML would silently overwrite.

    It also refuses aliases, because they can expand exponentially.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()  # type: ignore[no-untyped-call]
            problem = f"aliases (*{alias.anchor}) are not allowed"
            raise yaml.composer.ComposerError(None, None, problem, alias.start_mark)
        return super().compose_node(parent, index)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise yaml.constructor.ConstructorError(None, None, "expected a mapping of keys", node.start_mark)
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool | None):
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} cannot be a key", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} occurs twice", key_node.start_mark)
        seen.add(key)
    loader.flatten_mapping(node)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


_EXPONENT = ("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d[\d_]*[eE][-+]?\d+$"), list("-+0123456789"))
"""Read 1e-4 as a number; YAML 1.1 reads it as text."""
_Loader.add_implicit_resolver(*_EXPONENT)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str, where: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        UserError: the text is too large, is not YAML, or contains an alias.
    """
    return parse_with_lines(text, where)[0]


def parse_with_lines(text: str, where: str) -> tuple[Any, dict[Place, int]]:
    """Return the value of a YAML text, and the line of every key and list item; `()` is the document.

    Raises:
        UserError: the text is too large, is not YAML, or contains an alias.
    """
    if len(text) > _MAX_BYTES:
        raise UserError(f"{where} has {len(text):,} characters; the limit is {_MAX_BYTES:,}")
    try:
        loader = _Loader(text)
        if (root := loader.get_single_node()) is None:
            return None, {(): 1}
        lines = _lines_of(root)  # first, because the constructor resolves merge keys in place
        return loader.construct_document(root), lines
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{where}:{line}: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, TypeError) as error:
        # PyYAML's constructors raise these errors if a value does not match its tag, as in `!!bool maybe`.
        raise UserError(f"{where} is not YAML: {' '.join(str(error).split())[:120]}") from None


def read_asset(name: str) -> Any:
    """Return the value of a YAML file in the package's assets."""
    return parse_yaml((resources.files("selfalign") / "assets" / name).read_text("utf-8"), name)


def compose(text: str) -> yaml.Node | None:
    """Return the root node of a YAML text that `parse_yaml` accepts; None if the text is empty."""
    return yaml.compose(text, _Loader)


def _lines_of(root: yaml.Node) -> dict[Place, int]:
    lines: dict[Place, int] = {(): 1}

    def walk(node: yaml.Node, path: Place) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here = (*path, str(key.value))
                lines[here] = key.start_mark.line + 1
                walk(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                lines[(*path, number)] = value.start_mark.line + 1
                walk(value, (*path, number))

    walk(root, ())
    return lines


def read_text(path: Path, what: str) -> str:
    """Return the text of a file, without a byte order mark.

    Args:
        what: the name of the document in error messages.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return path.read_text("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{what} {str(path)!r} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{what} {str(path)!r} is a folder, not a file") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{what} {str(path)!r} cannot be read: {error}") from None


def validate(kind: type[Document], value: Any, where: str) -> Document:
    """Validate a plain value as a document of this kind.

    Args:
        where: the name of the document in error messages.

    Raises:
        UserError: the value is invalid. The message has the place, the problem and the nearest known key.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a mapping of keys, not {type(value).__name__}")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        # A typo in a required key gives a missing and an unknown key; the error for the unknown key is more helpful.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise UserError(f"{where}: {explain(kind, first)}") from None


def explain(kind: type[BaseModel], first: Any) -> str:
    """Describe a pydantic error: the place in the document and the problem."""
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known_keys(kind, first["loc"][:-1])
        return f"unknown key {path!r}; {did_you_mean(str(first['loc'][-1]), known, 'known keys: {}')}"
    if first["type"] == "missing":
        return f"the key {path!r} is missing"
    if first["type"] == "value_error":
        message = str(first["msg"]).removeprefix("Value error, ")
        return f"{path}: {message}" if path else message
    if isinstance(first["input"], bool) and first["type"] == "string_type":
        return f"{path} is {first['input']}; YAML reads yes, no, on and off as booleans: write it in quotes"
    if first["type"] == "string_pattern_mismatch" and not str(first["input"]).strip():
        return f"{path} is blank"
    try:
        value = f"{first['input']!r:.60}"
    except ValueError:  # an integer of thousands of digits
        value = "too large a number"
    return f"{path} is {value}; {first['msg'][0].lower()}{first['msg'][1:]}"


def _known_keys(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    current: Any = kind
    for part in path:
        if isinstance(part, int):
            continue
        annotation = current.model_fields[part].annotation if part in getattr(current, "model_fields", {}) else None
        inner = [annotation, *getattr(annotation, "__args__", ())]
        inner += [deeper for part in inner[1:] for deeper in getattr(part, "__args__", ())]
        current = next((a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)), None)
        if current is None:
            return []
    return list(current.model_fields)


class _Dumper(yaml.SafeDumper):
    """A safe dumper that writes multi-line texts as literal blocks."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # A literal block cannot hold a line that ends in a space.
    style = "|" if "\n" in text and not re.search(r"[ \t]\n|^\s|[^\S\n]$|[^\n\x20-\x7e\u00a0-\ud7ff]", text) else None
    if any(letter in text for letter in "\x85\u2028\u2029"):  # line ends in YAML 1.1: escape them
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
_Dumper.add_implicit_resolver(*_EXPONENT)


class _InlineDumper(_Dumper):
    """A dumper for values on one line."""


def _inline_text(dumper: _InlineDumper, text: str) -> yaml.ScalarNode:
    # Other quoting styles would break a text with line ends into lines.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_InlineDumper.add_representer(str, _inline_text)


def dump_inline(value: object) -> str:
    """Return a plain value as YAML on one line, which fits into a list or mapping of any style."""
    text: str = yaml.dump(
        value, Dumper=_InlineDumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=sys.maxsize
    )
    return text.rstrip("\n")


def dump(document: BaseModel | dict[str, Any]) -> str:
    """Return a document as YAML, with the keys in their order and long lines folded."""
    value = document if isinstance(document, dict) else document.model_dump(mode="json")
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
