"""Read constitutions and seed tasks, with the file and line of each value.

A document may extend another one (`extends: default`, or a path). Its list entries are appended; an entry with the id,
user message, name or question of an inherited entry replaces it. All other values replace the inherited ones.
`{name}` and `{cutoff}` are placeholders for the assistant's name and knowledge cut-off.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from selfalign.constitution.document import Constitution, Layout, SeedTask, inconsistencies
from selfalign.data.records import json_lines
from selfalign.errors import UserError
from selfalign.system.strict_yaml import Place, parse_with_lines, read_text, validate

SHIPPED = ("default", "two-stage")


@dataclass(frozen=True, slots=True)
class Located:
    """A document as a plain value, with the `file:line` of each part."""

    source: str
    value: dict[str, Any]
    places: dict[Place, str]

    def where(self, place: Place) -> str:
        """Return the `file:line` of a part, or of the nearest part that contains it."""
        while place and place not in self.places:
            place = place[:-1]
        return self.places.get(place, self.source)


_LISTS = {"principles": "id", "exemplars": "user", "question_types": "name", "identity": "question"}
"""List -> the key that identifies its entries when a document extends another one."""


def read(source: str, text: str | None = None) -> Located:
    """Read a shipped constitution or a YAML file, merge extensions and fill placeholders. Nothing is validated.

    Args:
        source: a name in `SHIPPED`, or a path.
        text: the content to use instead of the file's.

    Raises:
        UserError: a file cannot be read, is not YAML, or extends itself.
    """
    return filled(merged(source, text))


def merged(source: str, text: str | None = None, seen: tuple[str, ...] = ()) -> Located:
    """Read a constitution as `read` does, but without filling placeholders."""
    if text is None and source in SHIPPED:
        return _shipped(source)
    if text is None:
        text = read_text(Path(source), "constitution")
    value, lines = parse_with_lines(text, source)
    if not isinstance(value, dict):
        raise UserError(f"constitution {source} must be a mapping of keys, not {type(value).__name__}")
    places = {place: f"{source}:{line}" for place, line in lines.items()}
    own = Located(source, value, places)
    if "extends" in value:
        base = value.pop("extends")
        if not isinstance(base, str):
            raise UserError(f"{own.where(('extends',))}: extends is {base!r}, not a name or a path")
        if base not in SHIPPED:
            base = str(Path(source).parent / base)
        if str(Path(base).resolve()) in [str(Path(s).resolve()) for s in (*seen, source)]:
            raise UserError(f"{own.where(('extends',))}: {source} extends itself")
        own = _merge(merged(base, None, (*seen, source)), own)
    return own


@lru_cache
def _shipped(name: str) -> Located:
    return merged(name, (resources.files("selfalign") / f"assets/constitutions/{name}.yaml").read_text("utf-8"))


def _merge(base: Located, own: Located) -> Located:
    value: dict[str, Any] = dict(base.value)
    places = dict(base.places)
    for key, new in own.value.items():
        old = value.get(key)
        if key in _LISTS and isinstance(old, list) and isinstance(new, list):
            value[key] = _joined(key, old, new, own, places)
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            value[key] = {**old, **new}
            dropped: tuple[Place, ...] = tuple((key, str(k)) for k in new)
        else:
            value[key] = new
            dropped = ((key,),)
        for place in [p for p in places if any(p[: len(d)] == d for d in dropped)]:
            del places[place]
        places |= {p: w for p, w in own.places.items() if p[:1] == (key,)}
    return Located(own.source, value, {**places, (): own.where(())})


def _joined(key: str, old: list[Any], new: list[Any], own: Located, places: dict[Place, str]) -> list[Any]:
    """Replace old entries with new ones of the same identifier, append the other new ones, and update `places`."""
    identifier = _LISTS[key]
    joined = list(old)
    known = {
        e[identifier]: at
        for at, e in enumerate(old)
        if isinstance(e, dict) and isinstance(e.get(identifier), str | int)
    }
    for at, entry in enumerate(new):
        key_value = entry.get(identifier) if isinstance(entry, dict) else None
        # An old entry is replaced once; `inconsistencies` reports a second new one with the same identifier.
        same = known.pop(key_value, None) if isinstance(key_value, str | int) else None
        target = len(joined) if same is None else same
        if same is None:
            joined.append(entry)
        else:
            joined[same] = entry
            for place in [p for p in places if p[:2] == (key, same)]:
                del places[place]
        places |= {(key, target, *p[2:]): w for p, w in own.places.items() if p[:2] == (key, at)}
    return joined


def filled(document: Located) -> Located:
    """Fill the placeholders {name} and {cutoff}, and add the defaults of the layout."""
    assistant = document.value.get("assistant")
    values = assistant if isinstance(assistant, dict) else {}
    placeholders = {f"{{{key}}}": str(values.get(key, f"{{{key}}}")) for key in ("name", "cutoff")}

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            for placeholder, text in placeholders.items():
                value = value.replace(placeholder, text)
            return value
        if isinstance(value, list):
            return [fill(v) for v in value]
        return {k: fill(v) for k, v in value.items()} if isinstance(value, dict) else value

    value = {"layout": {}, **document.value}
    if isinstance(value["layout"], dict):
        value["layout"] = {**Layout().model_dump(), **value["layout"]}
    return Located(document.source, {k: fill(v) for k, v in value.items()}, document.places)


def load(source: str, text: str | None = None) -> Constitution:
    """Load a shipped constitution or a YAML file. The arguments are those of `read`.

    Raises:
        UserError: the file cannot be read, or the constitution is invalid or inconsistent.
    """
    document = read(source, text)
    constitution = validate(Constitution, document.value, f"constitution {source}")
    for place, message in inconsistencies(constitution):
        raise UserError(f"{document.where(place)}: {message}")
    return constitution


def load_seeds(source: str) -> list[SeedTask]:
    """Load seed tasks in the published Self-Instruct format (arXiv 2212.10560).

    Raises:
        UserError: the file is missing, empty or malformed.
    """
    return [seed for _, seed in located_seeds(source)]


def located_seeds(source: str) -> list[tuple[str, SeedTask]]:
    """Load seed tasks, each with its `file:line`.

    Raises:
        UserError: as `load_seeds`.
    """
    if source == "default":
        with resources.as_file(resources.files("selfalign") / "assets/seed_tasks.jsonl") as path:
            return [(f"seeds default:{number}", seed) for number, seed in _read_seeds(path)]
    path = Path(source)
    if not path.is_file():
        raise UserError(f"seeds {source!r} does not exist; give a JSONL file in the Self-Instruct format, or 'default'")
    return [(f"{source}:{number}", seed) for number, seed in _read_seeds(path)]


def parse_seed(row: Any) -> SeedTask | None:
    """Return a row of the Self-Instruct format as a seed task, or None if it is malformed."""
    if not isinstance(row, dict) or not isinstance(row.get("instruction"), str) or not row["instruction"].strip():
        return None
    instances = row.get("instances")
    first = instances[0] if isinstance(instances, list) and instances else {}
    if not isinstance(first, dict):
        return None
    text, output = first.get("input", ""), first.get("output", "")
    if not isinstance(text, str):
        return None
    output = output.strip() if isinstance(output, str) else ""
    return SeedTask(instruction=row["instruction"].strip(), input=text.strip(), output=output)


def _read_seeds(path: Path) -> list[tuple[int, SeedTask]]:
    seeds = []
    for number, value in json_lines(path):
        if (seed := parse_seed(value)) is None:
            raise UserError(
                f"{path}:{number}: a seed task needs an 'instruction' (text) and 'instances': [{{'input': text, ...}}]"
            )
        seeds.append((number, seed))
    if not seeds:
        raise UserError(f"{path} has no seed task; stage 1 needs at least one")
    return seeds
