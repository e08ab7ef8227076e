"""A constitution's text with a rule reworded or a probe or principle added; all else stays as it was written. Pure.

The text is edited where the value stands, then read again: what it says must be what was wanted, or nothing is changed.
"""

from __future__ import annotations

import copy
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from selfalign.constitution.document import Probe
from selfalign.constitution.loading import merged
from selfalign.errors import UserError
from selfalign.system import strict_yaml


@dataclass(frozen=True, slots=True)
class Reworded:
    """A principle's rule, as it is to stand in the file."""

    id: int
    rule: str


@dataclass(frozen=True, slots=True)
class Probed:
    """A probe more for a principle."""

    id: int
    probe: Probe


@dataclass(frozen=True, slots=True)
class Added:
    """A principle more."""

    id: int
    name: str
    rule: str


Change = Reworded | Probed | Added
_Value = dict[str, Any]


def changed(source: str, text: str, change: Change) -> str:
    """The text of the constitution `source` with the change. A principle that it extends is copied into it first.

    Raises:
        UserError: there is no such principle, or no edit of the text reads back as the value that is wanted.
    """
    before = merged(source, text).value
    wanted = _wanted(before, change)
    for candidate in _candidates(text, change, wanted):
        try:
            if merged(source, candidate).value == wanted:
                return candidate
        except UserError:
            continue
    what = f"principle {change.id}" if not isinstance(change, Probed) else f"a probe of principle {change.id}"
    raise UserError(f"{source}: {what} cannot be edited so that it reads back as it should; edit it by hand")


def rule_of(source: str, text: str, number: int) -> str:
    """A principle's rule with its placeholders as they are written. Raises UserError: there is none."""
    return str(_principle(merged(source, text).value, number)["rule"])


def flow(value: object) -> str:
    """A plain value on one line of YAML; texts that are values in quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_word(v) if k in _WORDS else flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(v) for v in value) + "]"
    if isinstance(value, str):
        return _quoted(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_written(probe: Probe) -> _Value:
    """The probe as a person writes it: what is as by default is left out."""
    return probe.model_dump(mode="json", exclude_defaults=True)


_WORDS = ("expect", "name")
"""Values that are a word or two: without quotes where they read back."""


def _quoted(text: str) -> str:
    """In double quotes on one line, with escapes: every text can be written so."""
    return yaml.dump(text, Dumper=yaml.SafeDumper, default_style='"', allow_unicode=True, width=sys.maxsize).rstrip(
        "\n"
    )


def _word(value: object) -> str:
    text = str(value)
    try:
        same = strict_yaml.parse_yaml(f"{{a: {text}, b: c}}", "") == {"a": value, "b": "c"}
    except UserError:
        same = False
    return text if same and "\n" not in text else _quoted(text)


def _principle(value: _Value, number: int) -> _Value:
    found = next((p for p in value.get("principles", []) if isinstance(p, dict) and p.get("id") == number), None)
    if found is None:
        raise UserError(f"the constitution has no principle {number}")
    return found


def _wanted(before: _Value, change: Change) -> _Value:
    """The value that the edited text must have."""
    wanted = copy.deepcopy(before)
    if isinstance(change, Added):
        wanted["principles"].append({"id": change.id, "name": change.name, "rule": change.rule})
        return wanted
    target = _principle(wanted, change.id)
    if isinstance(change, Reworded):
        target["rule"] = change.rule
    else:
        target["probes"] = [*(target.get("probes") or []), as_written(change.probe)]
    return wanted


def _candidates(text: str, change: Change, wanted: _Value) -> Iterator[str]:
    """Edited texts, the one nearest to how the rest is written first."""
    root = yaml.compose(text, strict_yaml._Loader)
    if not isinstance(root, yaml.MappingNode):
        return
    own = _key(root, "principles")
    item = _item(own, change.id) if isinstance(own, yaml.SequenceNode) else None
    edit = _Edit(text)
    if item is None:
        # A new one, or one that stands in what this document extends: then all of it must stand here.
        value = _principle(wanted, change.id)
        yield from edit.into_list(root, root, "principles", own, value)
    elif isinstance(change, Probed):
        yield from edit.into_list(root, item, "probes", _key(item, "probes"), as_written(change.probe))
    elif isinstance(change, Reworded) and isinstance(rule := _key(item, "rule"), yaml.ScalarNode):
        yield from edit.scalar(rule, change.rule)


def _key(node: yaml.MappingNode, name: str) -> yaml.Node | None:
    return next((v for k, v in node.value if k.value == name), None)


def _item(principles: yaml.SequenceNode, number: int) -> yaml.MappingNode | None:
    for node in principles.value:
        identity = _key(node, "id") if isinstance(node, yaml.MappingNode) else None
        if identity is not None and strict_yaml.parse_yaml(str(identity.value), "") == number:
            return node  # type: ignore[no-any-return]
    return None


class _Edit:
    """Edits of one text, by the places that its nodes name."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._newline = "\r\n" if "\r\n" in text else "\n"

    def scalar(self, node: yaml.ScalarNode, value: str) -> Iterator[str]:
        """Another value in place of this one, in its style where that reads back."""
        start, end = node.start_mark.index, self._end(node)
        old = self._text[start:end]
        for new in self._styles(node.style, old, value):
            yield self._text[:start] + new + self._text[end:]

    def _styles(self, style: str | None, old: str, value: str) -> Iterator[str]:
        remark = ""
        if style in (">", "|"):
            header, first, *_ = [*old.splitlines(), ""]
            indent = first[: len(first) - len(first.lstrip())]
            lines = value.split("\n")
            if style == ">":
                lines = textwrap.wrap(value, 118 - len(indent), break_on_hyphens=False, break_long_words=False)
            remark = found[0].rstrip() if (found := re.search(r"\s+#.*", header)) else ""
            for head in dict.fromkeys((header.rstrip(), f"{style}-{remark}")):
                yield self._newline.join([head, *(f"{indent}{line}" for line in lines)])
        elif style == "'" and "\n" not in value:
            yield "'" + value.replace("'", "''") + "'"
        elif style is None and "\n" not in value:
            yield value
        yield _quoted(value) + remark

    def into_list(
        self, root: yaml.MappingNode, parent: yaml.MappingNode, key: str, found: yaml.Node | None, value: _Value
    ) -> Iterator[str]:
        """One more entry at the end of the list `key` of `parent`, which may not stand there yet."""
        if isinstance(found, yaml.SequenceNode) and found.value:
            last = found.value[-1]
            if found.flow_style:
                yield self._put(self._end(last), f", {flow(value)}")
            else:
                block = key == "principles" or not last.flow_style
                yield self._line_after(last, found.start_mark.column, self._entry(value, block, root is parent))
        elif isinstance(found, yaml.SequenceNode):
            yield self._put(found.start_mark.index + 1, flow(value))
        elif found is None and parent.flow_style:
            yield self._put(self._end(parent.value[-1][1]), f", {key}: [{flow(value)}]")
        elif found is None:
            entry = self._entry(value, root is parent, root is parent)
            lines = [f"{key}:", *(f"  {line}" for line in entry)]
            yield self._line_after(parent, parent.start_mark.column, lines)

    def _entry(self, value: _Value, block: bool, whole: bool) -> list[str]:
        """A list's entry in lines. A principle's probes stand a line each, as in the shipped texts."""
        if not block:
            return [f"- {flow(value)}"]
        lines = []
        for key, inner in value.items():
            if whole and key == "probes" and inner:
                lines += [f"{key}:", *(f"  - {flow(probe)}" for probe in inner)]
            else:
                plain = isinstance(inner, str) and key != "ask"
                lines.append(f"{key}: {_line(inner) if plain else flow(inner)}")
        return [f"- {lines[0]}", *(f"  {line}" for line in lines[1:])]

    def _line_after(self, node: yaml.Node, column: int, lines: list[str]) -> str:
        at = re.compile(r"\r?\n|\Z").search(self._text, self._end(node)).start()  # type: ignore[union-attr]
        return self._put(at, "".join(f"{self._newline}{' ' * column}{line}" for line in lines))

    def _put(self, at: int, new: str) -> str:
        return self._text[:at] + new + self._text[at:]

    def _end(self, node: yaml.Node) -> int:
        """Where the node's last character is: the parser's own mark of a block stands where the next thing begins."""
        if isinstance(node, yaml.ScalarNode):
            start, end = node.start_mark.index, node.end_mark.index
            return start + len(self._text[start:end].rstrip()) if node.style in (">", "|") else int(end)
        if not isinstance(node, yaml.CollectionNode) or node.flow_style or not node.value:
            return int(node.end_mark.index)
        last = node.value[-1]
        return self._end(last[1] if isinstance(last, tuple) else last)


def _line(text: str) -> str:
    """A value on a line of its own: without quotes where it reads back so."""
    try:
        same = strict_yaml.parse_yaml(f"a: {text}\nb: c", "") == {"a": text, "b": "c"}
    except UserError:
        same = False
    return text if same and "\n" not in text else _quoted(text)
