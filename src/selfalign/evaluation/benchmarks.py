"""Load the items of a benchmark from a file, a folder or the Hugging Face hub.

A task's own module knows the formats in which its authors publish it (`tasks/hhh.py` is the shortest example); this
module finds the source and reads JSON, JSONL and the hub. No benchmark is shipped. The SHA-256 of the content is
recorded with the scores.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from selfalign.data.records import content_hash, json_lines
from selfalign.errors import UserError
from selfalign.system.environment import expand_home

FOLDER = "SELFALIGN_BENCHMARKS"
"""The environment variable that names the folder with benchmark files."""
FIXTURE = "fixture_"
"""The beginning of the name of a file with a few items for tests, whose scores are labelled `(fixture)`."""


class Item(Protocol):
    """One item of a benchmark, a frozen dataclass."""

    KIND: ClassVar[str]
    """The name of the item's class in its hash. It must never change: the ids of published rows depend on it."""
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def position(self) -> int:
        """The position in the benchmark, from 0."""
        ...

    @property
    def subset(self) -> str:
        """The authors' category; empty if there is none."""
        ...

    @property
    def cluster(self) -> str:
        """A text that dependent items share: their values are resampled together."""
        ...


def item_id(item: Item) -> str:
    """Return the content hash of an item. It does not depend on the item's position."""
    value = [getattr(item, f.name) for f in fields(item) if f.name != "position"]
    return content_hash(item.KIND, *value)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The items of a benchmark."""

    name: str
    source: str
    """A file, a folder, a hub id, or `shipped`."""
    sha256: str
    """The hash of the file; for several files, a data set of the hub or scenarios, of their content."""
    items: tuple[Any, ...]
    label: str
    """The name in scores."""

    def first(self, limit: int | None) -> Benchmark:
        """Return the `limit` items with the smallest hashes: always the same sample, drawn from all subsets."""
        if limit is None or limit >= len(self.items):
            return self
        chosen = sorted(self.items, key=item_id)[:limit]
        return replace(self, items=tuple(sorted(chosen, key=lambda i: i.position)))


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a benchmark is looked for, and how it is read."""

    name: str
    files: tuple[str, ...]
    """Its usual file names, in the folder of SELFALIGN_BENCHMARKS and among the recipe's benchmark files."""
    read: Callable[[Path], tuple[Sequence[Item], str]]
    """file or folder -> (items, SHA-256 of the content)."""
    hub: str = ""
    """The id of the data set on the hub."""
    read_hub: Callable[[str], Sequence[Item]] | None = None
    """hub id -> items."""
    own_files: bool = False
    """Whether the items are the user's own: the label then names the file."""

    @property
    def remedy(self) -> str:
        """The end of an error message: how to name a source."""
        return f"give --data {self.name}=FILE, or set {FOLDER} to the folder that holds {self.files[0]}"

    def label(self, source: str) -> str:
        """Return the name in scores of items from this source."""
        path = Path(source)
        if self.own_files:
            return f"{self.name} ({path.stem})"
        return f"{self.name} (fixture)" if path.name.startswith(FIXTURE) else self.name

    def find(self, recipe_files: Sequence[str]) -> str | None:
        """Return the source to read if the user names none."""
        for file in recipe_files:
            if Path(file).name in self.files and Path(file).exists():
                return file
        folder = os.environ.get(FOLDER)
        candidates = [Path(folder) / name for name in self.files] if folder else []
        return next((str(p) for p in candidates if p.exists()), self.hub or None)


def load(origin: Origin, source: str | None = None, recipe_files: Sequence[str] = ()) -> Benchmark:
    """Read a benchmark.

    Args:
        source: a file, a folder or a hub id. By default, the first that exists of: a file among `recipe_files`, a file
            in the folder that SELFALIGN_BENCHMARKS names, the hub.
        recipe_files: the recipe's `evaluate.benchmarks`.

    Raises:
        UserError: no source is named or found, or its content is not the benchmark.
    """
    name = origin.name
    source = source or origin.find(recipe_files)
    if source is None:
        raise UserError(f"{name}: no benchmark file was found; {origin.remedy}")
    path = expand_home(source)
    if path.exists():
        items, sha256 = origin.read(path)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not path.parent.exists():
        items = _from_hub(origin, source)
        sha256 = content_hash(*(item_id(i) for i in items))
    else:
        raise UserError(f"{name}: {source!r} is not a file, a folder or a hub id (owner/name)")
    if not items:
        raise UserError(f"{name}: {source!r} has no items")
    return Benchmark(name, source, sha256, tuple(items), origin.label(source))


def _from_hub(origin: Origin, source: str) -> Sequence[Item]:
    name = origin.name
    if origin.read_hub is None:
        raise UserError(f"{name}: this benchmark cannot be read from the hub; {origin.remedy}")
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise UserError(f"{name}: {source!r} needs `pip install datasets`; or {origin.remedy}") from None
    try:
        return origin.read_hub(source)
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())[:120]
        raise UserError(f"{name}: {source!r} cannot be fetched ({why}); {origin.remedy}") from None


# -- helpers for readers -------------------------------------------------------------------------------------------


def read_json(path: Path) -> tuple[Any, str]:
    """Return (the value of a JSON file, the file's SHA-256)."""
    data = path.read_bytes()
    try:
        return json.loads(data.decode("utf-8-sig")), hashlib.sha256(data).hexdigest()
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON in UTF-8 ({error})") from None


def read_lines(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Return (the objects of a JSONL file, the file's SHA-256)."""
    return [row for _, row in json_lines(path)], hashlib.sha256(path.read_bytes()).hexdigest()


def item_error(where: object, position: int, why: str) -> UserError:
    """Return the error for an item that cannot be read."""
    return UserError(f"{where}, item {position + 1}: {why}")


def unique_texts(value: object) -> tuple[str, ...]:
    """Return the texts of a list, stripped, without empty ones and duplicates."""
    texts = [str(v).strip() for v in value] if isinstance(value, list | tuple) else []
    return tuple(dict.fromkeys(t for t in texts if t))


def labelled_choices(value: Any) -> dict[str, Any] | None:
    """Return {choice: label} of a mapping, or of the hub's form of one (`choices` and `labels`)."""
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("choices"), list):
        return dict(zip(value["choices"], value.get("labels", []), strict=False))
    return value
