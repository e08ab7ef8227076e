"""Test Parquet files, folders and hub data sets with the real library, without network."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import selfalign
from selfalign.data import tables
from selfalign.data.records import Prompt, read_jsonl
from selfalign.data.tables import HubData, parse_hub_name, pin_revision
from selfalign.data.user_data import UserData
from selfalign.errors import UserError
from selfalign.pipeline.order import run_stage
from selfalign.run import recipe as recipes
from selfalign.run.context import Context
from selfalign.run.recipe import PromptsSettings

Runs = Callable[..., Context]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = [
    {"messages": [{"role": "user", "content": f"Name river {n}."}, {"role": "assistant", "content": f"River {n}."}]}
    for n in range(2500)
]
READ = [(f"Name river {n}.", f"River {n}.") for n in range(2500)]


def prompts(file: Path | str) -> PromptsSettings:
    return recipes.load("quick").prompts.model_copy(update={"file": str(file)})


def read(file: Path | str) -> list[tuple[str, str | None]]:
    return [(row.message, row.answer) for _, row in UserData(prompts(file))]


# -- Parquet ---------------------------------------------------------------------------------------------------------


def parquet(file: Path, rows: list[dict[str, Any]] | Any) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist(rows) if isinstance(rows, list) else rows, file, row_group_size=700)
    return file


def test_parquet_is_read_row_by_row(tmp_path: Path):
    file = parquet(tmp_path / "mine.parquet", [{**row, "score": 0.5} for row in ROWS])
    data = UserData(prompts(file))
    assert [(row.message, row.answer) for _, row in data] == READ
    assert data.messages()[1] == "keys that are not read: score"
    assert [place for place, _ in data][-1] == f"{file}:2500"


def test_missing_table_values_are_empty(tmp_path: Path):
    rows = [{"instruction": "a", "input": None, "output": None}, {"instruction": None, "input": "b", "output": "c"}]
    results = [row for _, row in UserData(prompts(parquet(tmp_path / "a.parquet", rows)))]
    assert [(r.instruction, r.input, r.answer) for r in results] == [("a", "", None), ("", "b", "c")]


def test_rows_with_images_are_dropped_with_a_reason(tmp_path: Path):
    image = {"bytes": b"\x89PNG" * 1000, "path": None}
    rows = [{**ROWS[n], "image": image if n % 2 else None} for n in range(100)]
    results = [row.problem for _, row in UserData(prompts(parquet(tmp_path / "a.parquet", rows)))]
    assert results == ["", "has an image or another file"] * 50


def test_invalid_parquet_is_an_error_with_its_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"a\.parquet:1: unknown row format: the keys are 'text'; known are messages"):
        read(parquet(tmp_path / "a.parquet", [{"text": "a"}]))
    with pytest.raises(UserError, match=r"b\.parquet:2: prompt is 7, not text"):
        read(parquet(tmp_path / "b.parquet", [{"prompt": None}, {"prompt": 7}]))
    pa = pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match=r"c\.parquet: two columns are named 'prompt'"):
        read(parquet(tmp_path / "c.parquet", pa.table([["a"], ["b"]], ["prompt", "prompt"])))
    (tmp_path / "d.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"d\.parquet cannot be read as Parquet: .*[Pp]arquet"):
        read(tmp_path / "d.parquet")
    (tmp_path / "e.parquet").write_bytes(parquet(tmp_path / "f.parquet", ROWS).read_bytes()[:-5000])
    with pytest.raises(UserError, match=r"e\.parquet cannot be read as Parquet"):
        read(tmp_path / "e.parquet")


def test_undecodable_parquet_text_names_its_row(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    raw = pa.array([b"good"] * 1500 + [b"\xff\xfe", b"good"], pa.binary())
    cells = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    with pytest.raises(UserError, match=r"a\.parquet:1501 is not UTF-8"):
        read(parquet(tmp_path / "a.parquet", pa.table({"prompt": cells})))


def test_missing_pyarrow_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"Parquet needs pyarrow: pip install 'selfalign\[data\]'"):
        read(tmp_path / "a.parquet")


# -- names -----------------------------------------------------------------------------------------------------------


def test_hub_names_are_parsed():
    assert parse_hub_name("owner/name") == HubData("owner/name")
    assert parse_hub_name("a-b/c.d_e") == HubData("a-b/c.d_e")
    assert parse_hub_name("owner/name/2023.en:test@v1.0") == HubData("owner/name", "2023.en", "test", "v1.0")
    assert parse_hub_name("owner/name@refs/pr/3") == HubData("owner/name", None, None, "refs/pr/3")
    for text in ("owner/name", "owner/name/config", "owner/name:split", "owner/name/config:split@abc"):
        assert str(parse_hub_name(text)) == text


@pytest.mark.parametrize(
    "text",
    ["name", "/owner/name", "./owner/name", "../owner", "owner/", "a/b/c/d", "a/mine.jsonl", "a/b:c:d", "a b/c", ""],
)
def test_paths_are_not_hub_names(text: str):
    assert parse_hub_name(text) is None


def test_existing_folder_is_a_path_not_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    assert parse_hub_name("owner/name") is None and parse_hub_name(f"owner/name@{COMMIT}")
    with pytest.raises(UserError, match="prompts file 'owner/name' does not exist"):
        recipes.located(recipes.load("quick"), Path("owner/name"))


# -- the library -----------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Disable the network, use temporary caches, and return the library's cache."""
    datasets = pytest.importorskip("datasets")
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path / "ours"))
    return cache


def folder(path: Path, **splits: list[dict[str, Any]]) -> Path:
    path.mkdir(parents=True)
    for split, rows in splits.items():
        (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def in_cache(path: Path, cache: Path, commit: str) -> None:
    """Put a hub data set into the library's cache, as if it had been downloaded."""
    import datasets

    builder = datasets.load_dataset_builder(str(path), cache_dir=str(cache / "made"))
    builder.download_and_prepare()
    target = cache / "owner___name/default/0.0.0" / commit
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(builder.cache_dir, target)


def test_folder_is_pinned_by_its_content(offline: Path, tmp_path: Path):
    path = folder(tmp_path / "mine", train=ROWS, test=ROWS[:1])
    results = recipes.located(recipes.load("quick"), path).prompts
    assert results.file == str(path) and len(results.file_sha256 or "") == 64
    assert [(row.message, row.answer) for _, row in UserData(results)] == READ
    changed = [*ROWS[:-1], {"messages": [{"role": "user", "content": "Name river X."}, ROWS[-1]["messages"][1]]}]
    before = (path / "train.jsonl").stat()
    (path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    os.utime(path / "train.jsonl", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match="has changed since the run was started"):
        list(UserData(results))
    again = recipes.located(recipes.load("quick"), path).prompts
    assert [row.message for _, row in UserData(again)][-1] == "Name river X."


def test_files_of_a_folder_that_no_split_has_are_reported(offline: Path, tmp_path: Path):
    path = folder(tmp_path / "mine", train=ROWS[:2], test=ROWS[:1])
    (path / "more.csv").write_text("prompt\na\n")
    (path / "dataset_info.json").write_text("{}")
    (path / ".hidden.csv").write_text("prompt\na\n")
    data = UserData(prompts(path))
    assert len(list(data)) == 2 and "files that are not read: more.csv" in data.messages()


def test_only_split_of_a_parquet_folder_is_read(offline: Path, tmp_path: Path):
    path = tmp_path / "mine"
    path.mkdir()
    parquet(path / "test.parquet", ROWS[:3])
    assert read(path) == READ[:3]


def test_unreadable_folder_is_an_error(offline: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"data set '.*empty' cannot be read: .*doesn't contain any data files"):
        read(folder(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"data set '.*broken' cannot be read"):
        (folder(tmp_path / "broken") / "train.jsonl").write_text('{"prompt": "a"}\n{"prompt": [1]\n')
        read(tmp_path / "broken")
    with pytest.raises(
        UserError, match=r"data set '.*splits' has no split 'train'; its splits are validation, test: name"
    ):
        read(folder(tmp_path / "splits", test=[{"prompt": "a"}], validation=[{"prompt": "b"}]))
    with pytest.raises(UserError, match="unknown row format: the keys are 'label'"):
        read(folder(tmp_path / "other", train=[{"label": "a"}]))
    images = folder(tmp_path / "images")
    (images / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match="has the type 'imagefolder'; supported are JSON, CSV, Parquet, Arrow and text"):
        read(images)


def test_code_in_a_folder_is_never_run(offline: Path, tmp_path: Path):
    path = folder(tmp_path / "mine", train=[{"prompt": "a"}])
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    (path / "other.py").write_text(code)
    assert read(path) == [("a", None)]
    (path / "mine.py").write_text(code)
    with pytest.raises(UserError, match="scripts are no longer supported"):
        read(path)
    assert not (tmp_path / "ran").exists()


def test_a_hub_data_set_is_read_at_its_commit(offline: Path, tmp_path: Path, fake_run: Runs):
    in_cache(folder(tmp_path / "name", train=ROWS[:4], test=ROWS[:1]), offline, COMMIT)
    name = f"owner/name@{COMMIT}"
    assert pin_revision(parse_hub_name(name) or HubData("")) == name
    assert read(name) == READ[:4]
    context = fake_run(f"prompts.file={name}", "stages=[prompts]", "evaluate.heldout_prompts=1")
    run_stage(context, "prompts")
    assert len(read_jsonl(context.run.jsonl("prompts"), Prompt)) == 4
    assert context.journal.counts("self_instruct").notes["from"] == f"name@{COMMIT}"
    with pytest.raises(UserError, match=f"is cached only at commit {COMMIT}: run once with network"):
        read(f"owner/name@{'f' * 40}")
    with pytest.raises(UserError, match="has no split 'nope'; its splits are train, test"):
        read(f"owner/name:nope@{COMMIT}")


def test_hub_without_network_is_a_one_line_error(offline: Path):
    for name in ("owner/name", "owner/name:test@v1"):
        with pytest.raises(UserError, match=rf"^hub data set '{name}' cannot be found .*@COMMIT$"):
            recipes.located(recipes.load("quick"), Path(name))
    with pytest.raises(UserError, match=rf"data set 'owner/none@{COMMIT}' cannot be read: Couldn't reach"):
        read(f"owner/none@{COMMIT}")


def test_resumed_run_keeps_its_commit(offline: Path):
    pinned = f"owner/name:test@{COMMIT}"
    assert recipes.located(recipes.load("quick"), Path("owner/name:test"), frozen=pinned).prompts.file == pinned
    with pytest.raises(UserError, match="cannot be found"):
        recipes.located(recipes.load("quick"), Path("owner/name"), frozen=pinned)


def test_run_resumes_offline_at_its_commit(offline: Path, tmp_path: Path):
    in_cache(folder(tmp_path / "name", train=ROWS[:4]), offline, COMMIT)
    settings = {"engine.kind": "fake", "stages": ["prompts"], "evaluate.heldout_prompts": 1}
    for name in (f"owner/name@{COMMIT}", "owner/name"):
        with selfalign.create("quick", tmp_path / "run", settings=settings, prompts=name) as run:
            run.run_all()
            assert (run.recipe.prompts.file, len(list(run.prompts()))) == (f"owner/name@{COMMIT}", 4)
    with pytest.raises(UserError, match="cannot be found"):
        selfalign.create("quick", tmp_path / "other", settings=settings, prompts="owner/name")


def test_current_commit_is_pinned(offline: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import DatasetInfo

    requests: list[Any] = []

    def answer(api: HfApi, name: str, *, revision: str | None, timeout: float) -> DatasetInfo:
        requests.append((name, revision))
        return DatasetInfo(id=name, sha=COMMIT, tags=[], private=False, disabled=False, downloads=0, likes=0)

    monkeypatch.setattr(HfApi, "dataset_info", answer)
    results = recipes.located(recipes.load("quick"), Path("owner/name/en:test@v1")).prompts
    assert (results.file, results.file_sha256) == (f"owner/name/en:test@{COMMIT}", None)
    assert requests == [("owner/name", "v1")]


def test_missing_datasets_library_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in (folder(tmp_path / "mine", train=ROWS[:1]), f"owner/name@{COMMIT}"):
        with pytest.raises(UserError, match=r"need datasets: pip install 'selfalign\[data\]'"):
            read(name)
    with pytest.raises(UserError, match=r"need datasets: pip install 'selfalign\[data\]'"):
        tables.pin_revision(HubData("owner/name"))
