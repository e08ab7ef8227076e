"""Read the user's rows from a Parquet file, a folder of data files, or a data set on the hub.

The library `datasets` reads folders and hub data sets; only formats of plain rows are accepted, and no code of a data
set is run. A recipe stores the commit of a hub data set. Without network, the library's cache is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfalign.data import formats
from selfalign.data.compression import ENDINGS, uncompressed_name
from selfalign.errors import UserError

_BATCH = 1000
_BATCH_WITH_FILES = 16
_HUB = re.compile(
    r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(/(?P<config>[\w.+-]+))?(:(?P<split>[\w.-]+))?(@(?P<revision>[\w./-]+))?"
)
_ROW_FILES = (".jsonl", ".jsonlines", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_FILES = (*_ROW_FILES, ".txt", ".md", ".zip", *ENDINGS)
"""Endings of names that are files, not data sets on the hub."""
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files in which the library describes a data set."""
_BUILDERS = ("parquet", "json", "csv", "text", "arrow", "cache")
"""The library's readers for formats that cannot contain code; its pandas reader would unpickle."""
_TIMEOUT_SECONDS = 30


@dataclass(frozen=True, slots=True)
class HubData:
    """A data set on the hub: owner/name[/config][:split][@revision]."""

    name: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        parts = (("/", self.config), (":", self.split), ("@", self.revision))
        return self.name + "".join(mark + part for mark, part in parts if part)


def parse_hub_name(text: str) -> HubData | None:
    """Parse the name of a hub data set. Return None if the text looks like a path."""
    match = _HUB.fullmatch(text)
    if not match or match["name"].lower().endswith(_FILES):
        return None
    if not match["revision"] and Path(text.partition("/")[0]).exists():
        return None
    return HubData(match["name"], match["config"], match["split"], match["revision"])


def pin_revision(data_set: HubData, frozen: str | None = None) -> str:
    """Return the data set's name with the commit of its revision.

    Args:
        frozen: the name in the recipe of the run to resume; if it names the same data set, its commit is kept.

    Raises:
        UserError: the hub cannot be reached, or has no such data set or revision.
    """
    if frozen and not data_set.revision and frozen.rpartition("@")[0] == str(data_set):
        return frozen
    if data_set.revision and re.fullmatch(r"[0-9a-f]{40}", data_set.revision):
        return str(data_set)
    _import_datasets()  # if the package is missing, report that first
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(data_set.name, revision=data_set.revision, timeout=_TIMEOUT_SECONDS).sha
    except Exception as error:  # errors of the hub, of the network library, of the system
        raise UserError(
            f"hub data set '{data_set}' cannot be found ({_one_line(error)}): check its name and the network. Without "
            "network, name the commit in the cache: owner/name@COMMIT"
        ) from None
    return str(HubData(data_set.name, data_set.config, data_set.split, commit))


def hub_rows(data_set: HubData) -> Iterator[tuple[str, Any]]:
    """Yield (data set:row, value) for each row.

    Raises:
        UserError: the data set cannot be read at that commit, has no such split, or its columns match no format.
    """
    name = str(data_set)
    builder = _builder(name, data_set.name, name=data_set.config, revision=data_set.revision)
    if data_set.revision and builder.hash != data_set.revision:
        raise UserError(f"hub data set {name!r} is cached only at commit {builder.hash}: run once with network")
    return _split_rows(builder, name, data_set.split)


def folder_rows(folder: Path, digest: str) -> tuple[Iterator[tuple[str, Any]], list[str]]:
    """Return the rows of the split "train", or of the only split, and the names of files that belong to no split.

    A row is (folder:row, value). The library reads only the files of the most frequent type. Raises as `hub_rows`.

    Args:
        digest: hash of the folder's content; it selects the cache.
    """
    from selfalign.system.environment import cache_subfolder

    cache = cache_subfolder("datasets") / digest[:16]
    builder = _builder(str(folder), str(folder), cache_dir=str(cache))
    read = {Path(str(file)).resolve() for files in (builder.config.data_files or {}).values() for file in files}
    others = (
        path
        for path in sorted(folder.rglob("*"))
        if uncompressed_name(path).suffix.lower() in _ROW_FILES
        and path.resolve() not in read
        and path.name not in _DESCRIPTIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    return _split_rows(builder, str(folder), None), [str(path.relative_to(folder)) for path in others]


def parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (file:row, value) for each row. Raises UserError if the file is invalid or its columns match no format."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(f"{path}: Parquet needs pyarrow: pip install 'selfalign[data]'") from None
    try:
        with pq.ParquetFile(path) as file:
            names = tuple(file.schema_arrow.names)
            columns = _columns_to_read(names, str(path))
            yield from _rows(file.iter_batches(_batch_size(columns), columns=columns), names, str(path))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {_one_line(error)}") from None


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("folders and hub data sets need datasets: pip install 'selfalign[data]'") from None
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # send no statistics
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets


def _builder(title: str, path: str, **options: Any) -> Any:
    """Return the library's reader of a data set, with the rows prepared in the cache."""
    datasets = _import_datasets()
    try:
        builder = datasets.load_dataset_builder(path, **options)
    except Exception as error:  # the library raises errors of many kinds
        raise UserError(f"data set {title!r} cannot be read: {_one_line(error)}") from None
    if builder.name not in _BUILDERS:
        raise UserError(
            f"data set {title!r} has the type {builder.name!r}; supported are JSON, CSV, Parquet, Arrow and text"
        )
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise UserError(f"data set {title!r} cannot be read: {_one_line(error.__cause__ or error)}") from None
    return builder


def _split_rows(builder: Any, title: str, split: str | None) -> Iterator[tuple[str, Any]]:
    splits = [str(name) for name in builder.info.splits or {}]
    split = split or ("train" if "train" in splits or len(splits) != 1 else splits[0])
    if split not in splits:
        raise UserError(
            f"data set {title!r} has no split {split!r}; its splits are {', '.join(splits) or '(none)'}: name one as "
            "owner/name:SPLIT, or name a file"
        )
    data = builder.as_dataset(split=split)
    names = tuple(data.column_names)
    columns = _columns_to_read(names, title)
    return _rows(data.select_columns(columns).with_format("arrow").iter(_batch_size(columns)), names, title)


def _columns_to_read(names: tuple[str, ...], where: str) -> list[str]:
    """Return the names of the columns that a format may read."""
    if formats.detect_format(names) is None:
        raise formats.unknown_format(names, where)
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{where}: two columns are named {repeated!r}")
    return [name for name in names if formats.normalize_key(name) in formats.KNOWN_KEYS]


def _batch_size(columns: list[str]) -> int:
    """Return the number of rows to read at once: few if they have images, whose presence is read."""
    return _BATCH_WITH_FILES if any(formats.normalize_key(name) in formats.FILES for name in columns) else _BATCH


def _rows(tables: Iterable[Any], names: tuple[str, ...], where: str) -> Iterator[tuple[str, Any]]:
    """Yield the rows of Arrow tables, with None for columns that were not read."""
    number = 0
    unread = dict.fromkeys(names)
    for table in tables:
        for offset in range(0, table.num_rows, _BATCH):
            batch = table.slice(offset, _BATCH)
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError:
                _raise_undecodable(batch, where, number)
                raise
            for row in rows:
                number += 1
                yield f"{where}:{number}", {**unread, **row}


def _raise_undecodable(batch: Any, where: str, rows_before: int) -> None:
    for index in range(batch.num_rows):
        try:
            batch.slice(index, 1).to_pylist()
        except UnicodeDecodeError:
            raise UserError(f"{where}:{rows_before + index + 1} is not UTF-8") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
