"""Run `selfalign serve` as a process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from selfalign.cli import web
from selfalign.errors import UserError
from selfalign.run.context import Context
from serve_process import COMMAND, serve

pytestmark = pytest.mark.integration


@pytest.fixture
def run(fake_run: Callable[..., Context]) -> Path:
    return fake_run().run.path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_server_with_a_client_connected(run: Path, number: signal.Signals):
    with serve(run) as (process, url):
        with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as reply:
            assert [m["id"] for m in json.load(reply)["data"]] == ["base", "prompted-base", "engraved", "final"]
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as idle:
            idle.sendall(b"GET / HTTP/1.1\r\nhost: loc")
            process.send_signal(number)
            assert process.wait(15) == 128 + number
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_listening_beyond_loopback_needs_a_token(run: Path):
    done = subprocess.run(
        [*COMMAND, str(run), "--host", "0.0.0.0"], capture_output=True, text=True, timeout=60,
        env={**os.environ, "SELFALIGN_TOKEN": ""},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "SELFALIGN_TOKEN=" in done.stderr


def test_mistakes_are_user_errors(fake_run: Callable[..., Context], monkeypatch: pytest.MonkeyPatch):
    path = fake_run().run.path

    def start(host: str = "127.0.0.1", port: int = 0, system_prompt: str = "standard", token: str = "") -> None:
        monkeypatch.setenv("SELFALIGN_TOKEN", token)
        web.serve(path, host, port, 2, 2, None, system_prompt)

    with pytest.raises(UserError, match="at least 16"):
        start(token="short")
    with pytest.raises(UserError, match="system prompt 'loud' is not known"):
        start(system_prompt="loud")
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, pytest.raises(UserError, match="is in use: choose another with --port"):
        start(port=taken.getsockname()[1])
    with pytest.raises(UserError, match="cannot listen"):
        start(host="203.0.113.9", token="x" * 20)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'selfalign\[serve\]'"):
        start()


def test_requests_beyond_loopback_need_the_token(run: Path):
    with serve(run, "--host", "0.0.0.0", token="x" * 20) as (_, url):
        request = urllib.request.Request(f"{url}/v1/models", headers={"authorization": f"Bearer {'x' * 20}"})
        with urllib.request.urlopen(request, timeout=10) as reply:
            assert reply.status == 200
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{url}/v1/models", timeout=10)
