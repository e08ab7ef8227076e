"""A program that behaves like vLLM's server, with scripted text; `python` returns a Python whose vLLM it is.

The environment variable FAKE_VLLM sets its faults: exit, silent (never answers), port (the first start finds its port
taken), die:N and mute:N (ends, or answers no more, from the Nth completion on). FAKE_VLLM_STARTS names a file that
receives a line of JSON at each start: the arguments, the ids of both processes, the variables of the environment.
FAKE_VLLM_SCRIPT=1 takes the texts from selfalign's fake engine instead of one text for all.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

VERSION = "0.32.0"


def python(folder: Path, version: str = VERSION) -> Path:
    """Write an executable that takes the place of Python in vLLM's environment."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nFAKE_VLLM_VERSION={version} exec {sys.executable} {Path(__file__)} "$@"\n')
    path.chmod(0o755)
    return path


def starts(file: Path) -> list[dict[str, Any]]:
    """What each start wrote: `arguments` and `pids`."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def running(file: Path, seconds: float = 20.0) -> list[int]:
    """The processes of all starts that still run after so many seconds, or as soon as none does."""
    deadline = time.monotonic() + seconds
    while True:
        found = [pid for start in starts(file) for pid in start["pids"] if _runs(pid)]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def option(arguments: list[str], name: str) -> str:
    """The value of an option on the command line; empty without it."""
    return arguments[arguments.index(name) + 1] if name in arguments else ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    names: list[str]
    """Ids of the served models."""
    generate: Callable[[dict[str, Any]], dict[str, Any]]
    detokenize: Callable[[list[int]], str]
    fault: tuple[str, int]
    number = 0
    lock = threading.Lock()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _send(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(200, {})
        elif self.headers["authorization"] != f"Bearer {os.environ['VLLM_API_KEY']}":
            self._send(401, {"error": "Unauthorized"})
        else:
            self._send(200, {"data": [{"id": name} for name in self.names]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/detokenize":
            return self._send(200, {"prompt": type(self).detokenize(body["tokens"])})
        if body["model"] not in self.names:
            return self._send(404, {"error": {"message": f"The model {body['model']} does not exist."}})
        with self.lock:
            _Handler.number += 1
            number = _Handler.number
        kind, after = self.fault
        if kind == "die" and number >= after:
            print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", flush=True)
            os._exit(1)
        if kind == "mute" and number >= after:
            time.sleep(3600)
        return self._send(200, type(self).generate(body))


def _generator(folder: Path) -> tuple[Callable[[dict[str, Any]], dict[str, Any]], Callable[[list[int]], str]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def detokenize(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False))

    def say_tea(body: dict[str, Any]) -> dict[str, Any]:
        stop = body.get("stop", [None])[0]
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 3}
        return {"choices": [{"text": " Tea.", "finish_reason": "stop", "stop_reason": stop}], "usage": usage}

    if "FAKE_VLLM_SCRIPT" not in os.environ:
        return say_tea, detokenize
    sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
    from selfalign.generation.engines.base import Sampling, Step
    from selfalign.generation.engines.fake import Fake

    fake = Fake()

    def generate(body: dict[str, Any]) -> dict[str, Any]:
        ids, adapter = body["prompt"], body["model"].partition("-")[0]
        step = Step(Sampling(body["temperature"], 1.0, body["max_tokens"]), stop=tuple(body.get("stop", ())))
        part = fake.generate((detokenize(ids),), step, body.get("seed", 0), adapter)
        reason = next((stop for stop in step.stop if part.finish == "stop"), None)
        choice = {"text": part.text, "finish_reason": "length" if part.finish == "length" else "stop"}
        usage = {"prompt_tokens": len(ids), "completion_tokens": part.generated_tokens}
        return {"choices": [choice | {"stop_reason": reason}], "usage": usage}

    return generate, detokenize


def main(arguments: list[str]) -> None:
    if "-c" in arguments:  # which version is installed
        return print(os.environ["FAKE_VLLM_VERSION"])
    kind, _, number = os.environ.get("FAKE_VLLM", "").partition(":")
    # Like vLLM's, a second process does the work: it has a session of its own and outlives the first one.
    core = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
    file = Path(os.environ["FAKE_VLLM_STARTS"])
    earlier = len(starts(file))
    with file.open("a") as stream:
        stream.write(
            json.dumps({"arguments": arguments, "pids": [os.getpid(), core.pid], "environment": [*os.environ]}) + "\n"
        )
    if kind == "exit":
        print("ValueError: Free memory on device (3.1/79.1 GiB) is less than desired GPU memory utilization")
        return sys.exit(1)
    if kind == "port" and not earlier:
        print("OSError: [Errno 98] Address already in use")
        return sys.exit(1)
    if kind == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if kind == "silent":
        time.sleep(3600)
    modules = arguments[arguments.index("--lora-modules") + 1 :] if "--lora-modules" in arguments else []
    _Handler.names = [option(arguments, "--served-model-name"), *(json.loads(text)["name"] for text in modules)]
    _Handler.fault = kind, int(number or 0)
    _Handler.generate, _Handler.detokenize = map(staticmethod, _generator(Path(option(arguments, "--model"))))  # type: ignore[assignment]
    print("INFO: Application startup complete.", flush=True)
    ThreadingHTTPServer(("127.0.0.1", int(option(arguments, "--port"))), _Handler).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
