"""Tables of the user's own rows: a Parquet file, a folder of data files, a data set on the hub.

Folders and hub data sets are read by the library `datasets`, without any code of theirs: rows of text formats only. A
hub data set is known by its commit, which the recipe freezes; offline, the copy in the library's cache serves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfalign.data import formats
from selfalign.errors import UserError

_BATCH = 1000
_HUB = re.compile(
    r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(/(?P<config>[\w.+-]+))?(:(?P<split>[\w.-]+))?(@(?P<revision>[\w./-]+))?"
)
_FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
_BUILDERS = ("parquet", "json", "csv", "text", "arrow", "cache")
"""What may read a data set: formats that hold rows and nothing to run. (pandas would unpickle.)"""
_SECONDS = 30


@dataclass(frozen=True, slots=True)
class HubData:
    """owner/name[/config][:split][@revision]."""

    name: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        marks = (("/", self.config), (":", self.split), ("@", self.revision))
        return self.name + "".join(mark + part for mark, part in marks if part)


def parse_hub_name(text: str) -> HubData | None:
    """The hub data set that the text names, or None where it looks like a path."""
    found = _HUB.fullmatch(text)
    if not found or found["name"].lower().endswith(_FILES):
        return None
    if not found["revision"] and Path(text.partition("/")[0]).exists():
        return None
    return HubData(found["name"], found["config"], found["split"], found["revision"])


def pin_revision(wanted: HubData, kept: str | None = None) -> str:
    """The data set with the commit that its revision is now.

    Args:
        kept: what a run that goes on has frozen: if it is the same data set, its commit stays.

    Raises:
        UserError: the hub cannot be reached, or has no such data set or revision.
    """
    if kept and not wanted.revision and kept.rpartition("@")[0] == str(wanted):
        return kept
    if wanted.revision and re.fullmatch(r"[0-9a-f]{40}", wanted.revision):
        return str(wanted)
    _datasets()  # or the error would be one about the hub
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(wanted.name, revision=wanted.revision, timeout=_SECONDS).sha
    except Exception as error:  # its errors, the network library's, the system's
        raise UserError(
            f"hub data set '{wanted}' cannot be looked up ({_short(error)}): is it owner/name, is there network? "
            "Offline name the commit that is in the cache: owner/name@COMMIT"
        ) from None
    return str(HubData(wanted.name, wanted.config, wanted.split, commit))


def hub_rows(wanted: HubData) -> Iterator[tuple[str, Any]]:
    """(data set:row, value) of each row.

    Raises:
        UserError: it cannot be read, is not that commit, or has no such split; its columns are no known form's.
    """
    name = str(wanted)
    builder = _builder(name, wanted.name, wanted.config, wanted.revision)
    if wanted.revision and builder.hash != wanted.revision:
        raise UserError(f"hub data set {name!r} is in the cache as commit {builder.hash} only: run once with network")
    return _split_rows(builder, name, wanted.split)


def folder_rows(folder: Path, digest: str) -> Iterator[tuple[str, Any]]:
    """(folder:row, value) of each row of its split "train", or of its only one.

    Args:
        digest: of its content; what was made of another content is never read. Raises as `hub_rows`.
    """
    from selfalign.system.environment import cache_folder

    cache = cache_folder() / "datasets" / digest[:16]
    return _split_rows(_builder(str(folder), str(folder), cache_dir=str(cache)), str(folder), None)


def parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(file:row, value) of each row. Raises UserError where it cannot be read, or its columns are no known form's."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(f"{path}: Parquet needs pyarrow: pip install 'selfalign[data]'") from None
    try:
        with pq.ParquetFile(path) as file:
            names = tuple(file.schema_arrow.names)
            wanted = _wanted(names, str(path))
            yield from _records(file.iter_batches(_BATCH, columns=wanted), names, str(path))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {_short(error)}") from None


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("folders and hub data sets need datasets: pip install 'selfalign[data]'") from None
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # nothing is told to anybody
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets


def _builder(shown: str, name: str, config: str | None = None, revision: str | None = None, **more: Any) -> Any:
    """What reads the data set, its rows prepared in the library's cache."""
    datasets = _datasets()
    try:
        builder = datasets.load_dataset_builder(name, config, revision=revision, **more)
    except Exception as error:  # the library raises errors of many kinds
        raise UserError(f"data set {shown!r} cannot be read: {_short(error)}") from None
    if builder.name not in _BUILDERS:
        raise UserError(
            f"data set {shown!r} is of the kind {builder.name!r}; JSON, CSV, Parquet, Arrow and text are read"
        )
    try:
        builder.download_and_prepare()
    except Exception as error:
        cause = error.__cause__ or error
        raise UserError(f"data set {shown!r} cannot be read: {_short(cause)}") from None
    return builder


def _split_rows(builder: Any, shown: str, split: str | None) -> Iterator[tuple[str, Any]]:
    splits = [str(name) for name in builder.info.splits or {}]
    chosen = split or ("train" if "train" in splits or len(splits) != 1 else splits[0])
    if chosen not in splits:
        there = ", ".join(splits) or "none"
        raise UserError(
            f"data set {shown!r} has no split {chosen!r} but {there}: name one, as owner/name:SPLIT, or a file"
        )
    data = builder.as_dataset(split=chosen)
    names = tuple(data.column_names)
    wanted = _wanted(names, shown)
    tables = data.select_columns(wanted).with_format("arrow").iter(_BATCH)
    return _records(tables, names, shown)


def _wanted(names: tuple[str, ...], where: str) -> list[str]:
    """The columns that the table's form has."""
    form = formats.detect_form(names)
    if form is None:
        raise formats.unknown_form(names, where)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{where}: there are two columns {twice!r}")
    return [name for name in names if name in formats.KEYS[form]]


def _records(tables: Iterable[Any], names: tuple[str, ...], where: str) -> Iterator[tuple[str, Any]]:
    """The rows of Arrow tables; columns that were not read stand there without a value."""
    number = 0
    others = dict.fromkeys(names)
    for table in tables:
        for offset in range(0, table.num_rows, _BATCH):
            part = table.slice(offset, _BATCH)
            try:
                rows = part.to_pylist()
            except UnicodeDecodeError:
                _refuse_undecodable(part, where, number)
                raise
            for row in rows:
                number += 1
                yield f"{where}:{number}", {**others, **row}


def _refuse_undecodable(part: Any, where: str, before: int) -> None:
    for place in range(part.num_rows):
        try:
            part.slice(place, 1).to_pylist()
        except UnicodeDecodeError:
            raise UserError(f"{where}:{before + place + 1} is not UTF-8") from None


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
