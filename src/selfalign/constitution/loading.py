"""Reading a constitution and its seed tasks from files, with the line of every value known.

A document may begin with `extends: default` (or another file): its lists are added to that one's (an entry with the
same id, user message, name or question replaces the old one), its other values replace the old ones. `{name}` and
`{cutoff}` stand for the assistant's name and knowledge cut-off anywhere.
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
from selfalign.system.strict_yaml import Place, lines_of, parse_yaml, read_text, validate

SHIPPED = ("default", "two-stage")


@dataclass(frozen=True, slots=True)
class Located:
    """A document's plain value, and where each of its parts was written, as `file:line`."""

    source: str
    value: dict[str, Any]
    places: dict[Place, str]

    def where(self, place: Place) -> str:
        """`file:line` of a part, or of the nearest part around it."""
        while place and place not in self.places:
            place = place[:-1]
        return self.places.get(place, self.source)


_LISTS = {"principles": "id", "exemplars": "user", "question_types": "name", "identity": "question"}
"""Lists that an extending document adds to, and the key that makes two entries the same."""


def read(source: str, text: str | None = None) -> Located:
    """A shipped constitution or the YAML file `source`, extensions merged and placeholders filled, not yet checked.

    Args:
        text: what is to stand in the file, in place of what stands there.

    Raises:
        UserError: a file cannot be read or is not YAML, or extends itself.
    """
    return filled(merged(source, text))


def merged(source: str, text: str | None = None, seen: tuple[str, ...] = ()) -> Located:
    """As `read`, with the placeholders as they are written."""
    if text is None and source in SHIPPED:
        return _shipped(source)
    if text is None:
        text = read_text(Path(source), "constitution")
    value = parse_yaml(text, source)
    if not isinstance(value, dict):
        raise UserError(f"constitution {source} must be a mapping of keys, not {type(value).__name__}")
    places = {place: f"{source}:{line}" for place, line in lines_of(text).items()}
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
    """Old entries, each replaced by a new one that is the same, then the other new ones; `places` follows."""
    name = _LISTS[key]
    joined = list(old)
    known = {e[name]: at for at, e in enumerate(old) if isinstance(e, dict) and isinstance(e.get(name), str | int)}
    for at, entry in enumerate(new):
        key_value = entry.get(name) if isinstance(entry, dict) else None
        # Each old entry is replaced once: a second new one that is the same is a contradiction to be named.
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
    """The document with {name} and {cutoff} filled in, and the layout's defaults in place."""
    assistant = document.value.get("assistant")
    given = assistant if isinstance(assistant, dict) else {}
    names = {"{name}": str(given.get("name", "{name}")), "{cutoff}": str(given.get("cutoff", "{cutoff}"))}

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            for placeholder, text in names.items():
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
    """The shipped constitution of that name, or the one in the YAML file `source`. Arguments as of `read`.

    Raises:
        UserError: the file cannot be read, or the constitution is not consistent.
    """
    document = read(source, text)
    constitution = validate(Constitution, document.value, f"constitution {source}")
    for place, message in inconsistencies(constitution):
        raise UserError(f"{document.where(place)}: {message}")
    return constitution


def load_seeds(source: str) -> list[SeedTask]:
    """The seed tasks in the published Self-Instruct format (arXiv 2212.10560).

    Raises:
        UserError: the file is missing, empty or malformed.
    """
    return [seed for _, seed in located_seeds(source)]


def located_seeds(source: str) -> list[tuple[str, SeedTask]]:
    """The seed tasks, each with its `file:line`.

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


def _read_seeds(path: Path) -> list[tuple[int, SeedTask]]:
    seeds = []
    for number, value in json_lines(path):
        instances = value.get("instances")
        first = instances[0] if isinstance(instances, list) and instances else {}
        text = first.get("input", "") if isinstance(first, dict) else None
        instruction = value.get("instruction")
        if not isinstance(instruction, str) or not instruction.strip() or not isinstance(text, str):
            raise UserError(
                f"{path}:{number}: a seed task needs an 'instruction' (text) and 'instances': [{{'input': text, ...}}]"
            )
        seeds.append((number, SeedTask(instruction=instruction.strip(), input=text.strip())))
    if not seeds:
        raise UserError(f"{path} holds no seed task; stage 1 needs at least one")
    return seeds
