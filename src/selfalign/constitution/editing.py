"""Append a probe to the YAML text of a constitution, and leave the rest of the text unchanged."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import yaml

from selfalign.constitution.document import Probe
from selfalign.constitution.loading import merged
from selfalign.errors import UserError
from selfalign.system import atomic, strict_yaml


def append_probe(source: str, text: str, principle_id: int, probe: Probe) -> str:
    """Return the text of the constitution `source` with an additional probe of a principle.

    A principle that is inherited (`extends`) is copied into the text with its probes. The edited text is read again, to
    verify that its value differs in this probe only.

    Raises:
        UserError: there is no such principle, or this function cannot edit the text.
    """
    expected = copy.deepcopy(merged(source, text).value)
    principle = _find(expected.get("principles"), principle_id)
    if principle is None:
        known = ", ".join(str(p.get("id")) for p in expected.get("principles", []) if isinstance(p, dict))
        raise UserError(f"{source} has no principle {principle_id}; it has {known}")
    entry = probe.model_dump(mode="json", exclude_defaults=True)
    principle["probes"] = [*(principle.get("probes") or []), entry]
    edited = _insert(text, principle, entry)
    try:
        if merged(source, edited).value == expected:
            return edited
    except UserError:
        pass
    raise UserError(f"{source}: a probe cannot be added to the text of principle {principle_id}; add it manually")


def publish(path: Path, data: bytes, before: bytes | None) -> None:
    """Write an edited constitution atomically. If `path` is a link, its target is replaced.

    Args:
        before: the content of the file when it was read; None for a new file.

    Raises:
        UserError: the file has changed since, or cannot be written.
    """
    path = path.resolve()
    try:
        if (path.read_bytes() if path.exists() else None) != before:
            raise UserError(f"{path} has changed since it was read; nothing was written. Run the command again")
        atomic.write_bytes(path, data)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from None


def _find(principles: Any, principle_id: int) -> dict[str, Any] | None:
    entries = principles if isinstance(principles, list) else []
    return next((p for p in entries if isinstance(p, dict) and p.get("id") == principle_id), None)


def _insert(text: str, principle: dict[str, Any], entry: dict[str, Any]) -> str:
    """Append `entry` to the probes of the principle in the text, or append the principle if it is inherited."""
    root = strict_yaml.compose(text)
    node = _principle_node(_child(root, "principles"), principle["id"])
    if node is None:
        lines = strict_yaml.dump({"principles": [principle]}).rstrip("\n").split("\n")[1:]
        parent, key, value = root, "principles", principle
    else:
        lines = [f"- {strict_yaml.dump_inline(entry)}"]
        parent, key, value = node, "probes", entry
    items = _child(parent, key)
    inline = strict_yaml.dump_inline(value)
    if isinstance(items, yaml.SequenceNode):
        if not items.value:
            return _insert_at(text, items.start_mark.index + 1, inline)
        if items.flow_style:
            return _insert_at(text, _end(text, items.value[-1]), f", {inline}")
        return _insert_lines(text, items.value[-1], items.start_mark.column, lines)
    if not isinstance(parent, yaml.MappingNode):
        return text
    if parent.flow_style:
        return _insert_at(text, _end(text, parent.value[-1][1]), f", {key}: [{inline}]")
    return _insert_lines(text, parent, parent.start_mark.column, [f"{key}:", *(f"  {line}" for line in lines)])


def _child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for name, value in pairs if name.value == key), None)


def _principle_node(principles: yaml.Node | None, principle_id: int) -> yaml.Node | None:
    for node in principles.value if isinstance(principles, yaml.SequenceNode) else []:
        identity = _child(node, "id")
        if identity is not None and strict_yaml.parse_yaml(str(identity.value), "") == principle_id:
            return node  # type: ignore[no-any-return]
    return None


def _insert_at(text: str, index: int, addition: str) -> str:
    return text[:index] + addition + text[index:]


def _insert_lines(text: str, node: yaml.Node, column: int, lines: list[str]) -> str:
    """Insert lines after the line in which a node ends; a comment at the end of that line stays."""
    newline = "\r\n" if "\r\n" in text else "\n"
    end = _end(text, node)
    rest_of_line = re.match(r"[^\r\n]*", text[end:])
    end += rest_of_line.end() if rest_of_line else 0
    return _insert_at(text, end, "".join(f"{newline}{' ' * column}{line}".rstrip(" ") for line in lines))


def _end(text: str, node: yaml.Node) -> int:
    """Return the index after a node's last character. PyYAML's own end of a block is where the next token begins."""
    if isinstance(node, yaml.ScalarNode):
        start, end = node.start_mark.index, int(node.end_mark.index)
        return start + len(text[start:end].rstrip()) if node.style in (">", "|") else end
    if not isinstance(node, yaml.CollectionNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(text, last[1] if isinstance(last, tuple) else last)
