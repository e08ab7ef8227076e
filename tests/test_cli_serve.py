"""The verb `serve` as a process: it says where it is, answers, ends by a signal, and refuses in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from selfalign.context import Context

COMMAND = [sys.executable, "-m", "selfalign.cli", "serve"]


@contextmanager
def serve(run: Path, *options: str, token: str = "") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """(process, address) of a server on a free port."""
    environment = {**os.environ, "SELFALIGN_TOKEN": token}
    process = subprocess.Popen(
        [*COMMAND, str(run), "--port", "0", *options], stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stderr is not None
        said = ""
        while not (found := re.search(r"chat page\s+(http://\S+)/", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture
def run(fake_run: Callable[..., Context]) -> Path:
    return fake_run().run.path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_even_with_a_client_connected(run: Path, number: signal.Signals):
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


def refused(run: Path, *options: str, token: str = "") -> str:
    done = subprocess.run(
        [*COMMAND, str(run), *options], capture_output=True, text=True, timeout=60,
        env={**os.environ, "SELFALIGN_TOKEN": token},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_what_cannot_be_served_is_said_in_one_line(run: Path, tmp_path: Path):
    assert "SELFALIGN_TOKEN=" in refused(run, "--host", "0.0.0.0", "--port", "0")
    assert "at least 16" in refused(run, "--port", "0", token="short")
    assert "--style 'loud' is not known" in refused(run, "--style", "loud", "--port", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "is taken: name another with --port" in refused(run, "--port", str(taken.getsockname()[1]))
    assert "cannot listen" in refused(run, "--host", "203.0.113.9", "--port", "0", token="x" * 20)
    assert str(tmp_path / "none") in refused(tmp_path / "none")


def test_beyond_loopback_it_answers_with_the_token_only(run: Path):
    with serve(run, "--host", "0.0.0.0", token="x" * 20) as (_, url):
        request = urllib.request.Request(f"{url}/v1/models", headers={"authorization": f"Bearer {'x' * 20}"})
        with urllib.request.urlopen(request, timeout=10) as reply:
            assert reply.status == 200
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{url}/v1/models", timeout=10)
