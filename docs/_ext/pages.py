"""Fill the pages whose text comes from elsewhere: the settings from the recipe's schema, and files of the project."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FILES = {"contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
"""Page -> the file at the project's root that it shows."""


def filled(page: str, text: str) -> str:
    """Return the text of a page, with the part that comes from elsewhere."""
    if page == "settings":
        return text.replace("% settings\n", settings())
    return from_root(FILES[page]) if page in FILES else text


def from_root(name: str) -> str:
    """Return a file of the project's root, with links as they are from a page of the site."""
    text = (ROOT / name).read_text("utf-8").replace("](docs/", "](")
    return re.sub(r"\[([^]]+)\]\((?:README|LICENSE|SECURITY)[^)]*\)", r"\1", text)


def settings() -> str:
    """Return a section with a table of settings for each part of the recipe."""
    from selfalign.run.recipe import Recipe

    schema = Recipe.model_json_schema()
    return "\n\n".join(_sections("", schema, schema["$defs"]))


def _sections(prefix: str, model: dict[str, Any], models: dict[str, Any]) -> Iterator[str]:
    model = next(form for form in (model, *model.get("anyOf", [])) if "properties" in form)
    rows, inner = [], []
    for name, setting in model["properties"].items():
        parts = _parts(setting)
        if len(parts) == 1:
            inner.append((f"{prefix}{name}.", models[parts[0]]))
        else:
            rows.append(f"| `{prefix}{name}` | {_values(setting)} | {_cell(setting.get('description', ''))} |")
    if rows:
        heading = f"## `{prefix[:-1]}`" if prefix else "## The recipe"
        table = ["| setting | values | meaning |", "|---|---|---|", *rows]
        yield "\n".join([heading, "", model.get("description", ""), "", *table])
    for child, part in inner:
        yield from _sections(child, part, models)


def _parts(setting: dict[str, Any]) -> list[str]:
    """Return the models that the setting consists of, without lists of models."""
    choices = [setting, *setting.get("anyOf", []), *setting.get("allOf", [])]
    return [choice["$ref"].rpartition("/")[2] for choice in choices if "$ref" in choice]


def _values(setting: dict[str, Any]) -> str:
    """Return what the setting may be, with its default."""
    kinds = [_kind(choice) for choice in setting.get("anyOf", [setting])]
    text = " or ".join(kind for kind in kinds if kind)
    if "default" not in setting:
        return text
    value = setting["default"]
    return text if isinstance(value, list | dict) or value == "" else f"{text}; default `{_yaml(value)}`"


def _yaml(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _kind(choice: dict[str, Any]) -> str:
    if "enum" in choice or "const" in choice:
        return ", ".join(f"`{value}`" for value in choice.get("enum", [choice.get("const")]))
    kind = {"integer": "whole number", "null": "null", "string": "text", "array": "list", "object": "mapping"}.get(
        choice.get("type", ""), choice.get("type", "")
    )
    low, high = choice.get("minimum", choice.get("exclusiveMinimum")), choice.get("maximum")
    if low is None and high is None:
        return kind
    above = "above" if "exclusiveMinimum" in choice else "at least"
    limits = f"{low} to {high}" if high is not None and low is not None else f"{above} {low}"
    return f"{kind}, {limits}" if low is not None else f"{kind}, at most {high}"


def _cell(text: str) -> str:
    text = re.sub(r"docs/([\w-]+\.md)", r"[\1](\1)", " ".join(text.split()))
    return text.replace("|", "\\|")


def with_titles(text: str) -> str:
    """Return the text with links that show the title of their page instead of its file's name."""
    return re.sub(r"\[[\w-]+\.md\]\(([\w-]+\.md(?:#[\w-]+)?)\)", r"[](\1)", text)


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""

    def on_read(_app: Any, page: str, source: list[str]) -> None:
        source[0] = with_titles(filled(page, source[0]))

    app.connect("source-read", on_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
