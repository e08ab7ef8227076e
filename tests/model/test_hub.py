"""Models as they are published: names on the hub, side files, split GGUF files, end tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import fake_hub
from conftest import byte_tokenizer
from fake_hub import FakeHub, Fault
from selfalign.constitution import Constitution
from selfalign.errors import UserError
from selfalign.model import hub, sources
from selfalign.planning.prepare import prepare
from selfalign.run.directory import RunDir

COMMIT = "0123456789" * 4


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A local hub, and an empty cache."""
    yield from fake_hub.connected(monkeypatch, tmp_path)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("owner/name", ("owner/name", None, None, None)),
        (f"owner/name@{COMMIT}", ("owner/name", None, None, COMMIT)),
        ("owner/name@refs/pr/3", ("owner/name", None, None, "refs/pr/3")),
        ("owner/na.me-1:Q4_K_M", ("owner/na.me-1", None, "Q4_K_M", None)),
        (f"owner/name:UD-Q4_K_XL@{COMMIT}", ("owner/name", None, "UD-Q4_K_XL", COMMIT)),
        ("hf:owner/name", ("owner/name", None, None, None)),
        ("hf:owner/name/sub/a file.gguf@main", ("owner/name", "sub/a file.gguf", None, "main")),
    ],
)
def test_name_on_the_hub_has_parts(text: str, parts: tuple[str | None, ...]):
    model = hub.parse(text)
    assert model == hub.HubModel(*parts)  # type: ignore[arg-type]
    assert hub.parse(str(model)) == model


@pytest.mark.parametrize(
    "text", ["name", "owner/name/file.gguf", "a/b/c", "/a/b", "../b", "~/b", "hf:a/b/c.gguf:Q4", "a/b@", ""]
)
def test_other_text_is_no_name_on_the_hub(text: str):
    assert hub.parse(text) is None


def test_commit_of_the_run_is_kept_for_the_same_model():
    frozen = f"owner/name:Q8_0@{COMMIT}"
    assert hub.with_frozen_commit("owner/name:Q8_0", frozen) == frozen
    for other in ("owner/name", "owner/name:Q4_0", "owner/name:Q8_0@main", "embedded"):
        assert hub.with_frozen_commit(other, frozen) == other
    assert hub.with_frozen_commit("owner/name", None) == "owner/name"


FILES = ["config.json", "generation_config.json", "README.md", "model.safetensors", "consolidated.safetensors",
         "onnx/model.onnx", "original/params.json", "pytorch_model.bin", "LICENSE", "training_args.bin"]  # fmt: skip
GGUFS = ["x-Q4_K_M.gguf", "x-Q4_K_S.gguf", "x-Q8_0.gguf", "mmproj-x-f16.gguf", "x.imatrix.gguf",
         "BF16/x-BF16-00001-of-00002.gguf", "BF16/x-BF16-00002-of-00002.gguf"]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "files", "chosen"),
    [
        ("o/n", FILES, ["config.json", "generation_config.json", "LICENSE", "model.safetensors"]),
        ("o/n:q4_k_m", GGUFS, ["x-Q4_K_M.gguf"]),
        ("hf:o/n/x-Q8_0.gguf", GGUFS, ["x-Q8_0.gguf"]),
        ("o/n:BF16", GGUFS, GGUFS[-2:]),
        ("hf:o/n/BF16/x-BF16-00002-of-00002.gguf", GGUFS, GGUFS[-2:]),
        ("o/n", ["a.gguf", "mmproj.gguf", "config.json"], ["config.json", "a.gguf"]),
        ("o/n:Q8_0", [*FILES[:1], *FILES[3:4], *GGUFS], ["config.json", "model.safetensors", "x-Q8_0.gguf"]),
        ("o/n", ["model.safetensors", "x-f16.gguf"], ["model.safetensors", "x-f16.gguf"]),
    ],
)
def test_files_of_the_model_are_chosen(name: str, files: list[str], chosen: list[str]):
    model = hub.parse(name)
    assert model and hub.choose(files, model)[0] == chosen


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("o/n", GGUFS, r"several GGUF files; name one as o/n:QUANT or hf:o/n/FILE: .*x-Q8_0\.gguf"),
        ("o/n:Q4_K", GGUFS, "does not exist; name one as"),
        ("o/n:Q4_0", FILES, "does not exist; it has no GGUF files"),
        ("hf:o/n/mmproj-x-f16.gguf", GGUFS, "no model but a file that accompanies one"),
        ("o/n", ["README.md", "pytorch_model.bin"], "neither safetensors nor GGUF"),
        ("o/n", ["x-00001-of-00002.gguf"], r"lacks x-00002-of-00002\.gguf, one of 2 parts"),
    ],
)
def test_ambiguous_or_incomplete_repository_is_refused(name: str, files: list[str], message: str):
    model = hub.parse(name)
    with pytest.raises(UserError, match=message):
        assert model and hub.choose(files, model)


def test_run_keeps_the_commit_that_it_began_with(server: FakeHub, tmp_path: Path):
    repo = server.add("owner/name", **{"config__json": b"{}", "model__safetensors": b"first", "onnx/big__onnx": b"x"})
    commit, run = repo.sha("main"), tmp_path / "run"
    settings = ["model=owner/name", "engine.kind=openai", "engine.url=http://127.0.0.1:1", "stages=[prompts]"]
    recipe, texts, model = prepare("quick", settings, None, None, run)
    assert recipe.model == f"owner/name@{commit}" and model and (model.hub_id, model.name) == ("owner/name",) * 2
    assert server.count("GET .*onnx") == 0
    RunDir.create(run, recipe, texts).journal.close()
    repo.branches["main"] = {**repo.branches["main"], "model.safetensors": b"second"}
    assert prepare("quick", settings, None, None, tmp_path / "new")[0].model == f"owner/name@{repo.sha('main')}"
    server.faults.append(Fault("/api/", status=503, times=99))  # the old commit is in the cache
    again, _, same = prepare("quick", settings, None, None, run)
    assert again == recipe and same and same.identity == model.identity
    RunDir.create(run, again, texts).journal.close()


def test_run_of_an_older_version_gets_its_commit(tmp_path: Path, default_constitution: Constitution):
    from selfalign.run import recipe as recipes

    old = recipes.load("quick", ["model=owner/name", "engine.kind=openai"])
    RunDir.create(tmp_path / "run", old, default_constitution).journal.close()
    pinned = old.model_copy(update={"model": f"owner/name@{COMMIT}"})
    RunDir.create(tmp_path / "run", pinned, default_constitution).journal.close()
    with pytest.raises(UserError, match="model:"):
        RunDir.create(tmp_path / "run", old.model_copy(update={"model": f"other/name@{COMMIT}"}), default_constitution)


def test_gguf_of_the_hub_is_a_model(server: FakeHub):
    repo = server.add("owner/ggufs", **{name.replace(".", "__"): b"GGUF" + name.encode() for name in GGUFS})
    for name, file in (("owner/ggufs:Q8_0", "x-Q8_0.gguf"), ("hf:owner/ggufs/x-Q4_K_M.gguf", "x-Q4_K_M.gguf")):
        model = sources.resolve(name)
        assert model.gguf.name == file and model.folder_path is None
        assert model.source == f"{name}@{repo.sha('main')}" and model.hub_id == "owner/ggufs"
    split = sources.resolve("owner/ggufs:BF16")
    assert split.gguf.name == "x-BF16-00001-of-00002.gguf"


def test_missing_repository_and_revision_are_one_line(server: FakeHub):
    server.add("owner/name", config__json=b"{}")
    for name, message in (
        ("owner/nothing", "the hub has no model 'owner/nothing', or it needs a login"),
        ("owner/name@v9", "hub model 'owner/name@v9' has no revision 'v9'"),
    ):
        with pytest.raises(UserError, match=message):
            sources.resolve(name)


def test_hub_cache_that_cannot_be_written_names_the_setting(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants

    server.add("owner/name", config__json=b"{}", model__safetensors=b"x")
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file/hub"))
    with pytest.raises(UserError, match=r"hub's cache .* cannot be written .*set HF_HOME"):
        sources.resolve("owner/name")


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_side_files_in_a_folder_are_not_the_model(tmp_path: Path):
    folder = write(tmp_path / "m", config__json="{}", model__safetensors="x")
    (folder / "model-f16.gguf").write_bytes(b"GGUF")
    identity = sources.resolve(str(folder)).identity
    (folder / "mmproj-f16.gguf").write_bytes(b"GGUF")
    (folder / "consolidated.safetensors").write_text("x")
    model = sources.resolve(str(folder))
    assert model.gguf == folder / "model-f16.gguf" and model.identity == identity
    with pytest.raises(UserError, match="accompanies a model"):
        sources.resolve(str(folder / "mmproj-f16.gguf"))


def test_split_gguf_is_loaded_from_its_first_part(tmp_path: Path):
    for number in (1, 2):
        (tmp_path / f"x-{number:05d}-of-00002.gguf").write_bytes(b"GGUF" + bytes([number]))
    models = [sources.resolve(str(path)) for path in (*tmp_path.iterdir(), tmp_path)]
    assert {m.gguf.name for m in models} == {"x-00001-of-00002.gguf"} and len({m.identity for m in models}) == 1
    (tmp_path / "x-00002-of-00002.gguf").unlink()
    with pytest.raises(UserError, match=r"lacks x-00002-of-00002\.gguf"):
        sources.resolve(str(tmp_path / "x-00001-of-00002.gguf"))


def test_incomplete_weights_are_refused(tmp_path: Path):
    folder = write(tmp_path / "m", config__json="{}")
    (folder / "model-00001-of-00002.safetensors").write_text("x")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"lacks model-00002-of-00002\.safetensors"):
        sources.resolve(str(folder))
    (folder / "model-00002-of-00002.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid")
    with pytest.raises(UserError, match="git lfs pull"):
        sources.resolve(str(folder))


EOS = {"eos_token": {"content": "<eos>", "lstrip": False}}


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({"tokenizer_config": {"eos_token": "<eos>"}}, ["<eos>"]),
        ({"tokenizer_config": EOS}, ["<eos>"]),
        ({"special_tokens_map": {"eos_token": "<eos>"}}, ["<eos>"]),
        ({"special_tokens_map": EOS, "tokenizer_config": {"eos_token": None}}, ["<eos>"]),
        ({"tokenizer_config": EOS, "generation_config": {"eos_token_id": [257, 258]}}, ["<eos>", "<eot>"]),
        ({"special_tokens_map": {"pad_token": "<eos>"}, "generation_config": {"eos_token_id": 258}}, ["<eot>"]),
        ({"tokenizer_config": EOS, "config": {"eos_token_id": [258]}}, ["<eos>", "<eot>"]),
        ({"tokenizer_config": {"eos_token": ["<eot>", "<eos>"]}}, ["<eot>", "<eos>"]),
    ],
)  # fmt: skip
def test_end_tokens_are_read_from_every_file(tmp_path: Path, files: dict[str, object], ends: list[str]):
    folder = write(tmp_path / "m", config__json="{}", model__safetensors="x")
    byte_tokenizer(folder, special=("<bos>", "<eos>", "<eot>"))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    assert list(sources.resolve(str(folder)).end_tokens()) == ends
