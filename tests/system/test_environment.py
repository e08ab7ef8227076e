"""The cache and the home folder where there are none, or none that can be written."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from selfalign.errors import UserError
from selfalign.system import environment


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unknown user of a container, without HOME."""

    def unknown(_: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "SELFALIGN_CACHE"):
        monkeypatch.delenv(name, raising=False)


def test_unknown_user_in_a_path_is_no_error():
    assert environment.expand_home("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")


def test_missing_home_names_the_setting(no_home: None):
    with pytest.raises(UserError, match=r"no home folder.*set SELFALIGN_CACHE"):
        environment.cache_folder()


def test_missing_home_is_replaced_for_libraries(no_home: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("HOME")  # restored after the test
    environment.provide_home()
    assert Path.home() == Path(os.devnull)
    with pytest.raises(UserError, match=r"cannot be created.*set SELFALIGN_CACHE"):
        environment.cache_subfolder("torch")
    monkeypatch.delenv("HOME")
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path))
    environment.provide_home()
    assert Path.home() == tmp_path


def test_home_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    environment.provide_home()
    assert os.environ["HOME"] == str(tmp_path)


def test_cache_that_cannot_be_written_names_the_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(UserError, match=r"file/cache/gguf cannot be created.*set SELFALIGN_CACHE"):
        environment.cache_subfolder("gguf")
    environment.save_cached("templates/x.json", "1")  # only costs time
    assert environment.read_cached("templates/x.json") is None
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"cache .*gguf cannot be written: set SELFALIGN_CACHE"):
        environment.cache_subfolder("gguf")


def test_saved_text_is_read_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path))
    environment.save_cached("templates/x.json", "é")
    assert environment.read_cached("templates/x.json") == "é"
