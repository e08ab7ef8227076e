"""Run a real server in a thread, with a fake engine whose speed tests can set."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from selfalign.data.prompt_text import Pieces
from selfalign.generation.engines.base import OnText, Part, Step
from selfalign.generation.engines.fake import Fake
from selfalign.run.context import Context
from selfalign.web import server
from selfalign.web.guard import Policy
from selfalign.web.serve import routes
from selfalign.web.serve.job_queue import JobQueue
from selfalign.web.serve.models import ServedModels


class SlowFake(Fake):
    """A fake engine that generates word by word.

    Args:
        word_s: seconds for each word.
    """

    def __init__(self, word_s: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.word_s = word_s
        self.prompts: deque[tuple[str, str | None, int]] = deque(maxlen=50)
        """(prompt, adapter, seed) of the last calls."""
        self.cancelled = 0
        """Calls that the server cancelled."""
        self.running = 0
        self.max_running = 0
        self._lock = threading.Lock()

    def generate(self, prompt: Pieces, step: Step, seed: int, adapter: str | None, on_text: OnText = None) -> Part:
        with self._lock:
            self.prompts.append(("".join(prompt), adapter, seed))
            self.running += 1
            self.max_running = max(self.max_running, self.running)

        def show(word: str) -> bool:
            time.sleep(self.word_s)
            return on_text is None or on_text(word)

        try:
            part = super().generate(prompt, step, seed, adapter, show)
        finally:
            with self._lock:
                self.running -= 1
        self.cancelled += part.finish == "cancelled"
        return part


@dataclass
class RunningServer:
    """A running server."""

    url: str
    port: int
    queue: JobQueue
    engine: Any

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Return (status, headers, body) of a request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            kind = {} if data is None else {"content-type": "application/json"}
            connection.request(method, path, data, {**kind, **(headers or {})})
            reply = connection.getresponse()
            return reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()
        finally:
            connection.close()

    def chat(self, message: str = "Hello", **fields: Any) -> tuple[int, Any]:
        """Return (status, response) of a chat request."""
        body = {"model": "final", "messages": [{"role": "user", "content": message}], **fields}
        status, _, sent = self.request("POST", "/v1/chat/completions", body)
        return status, json.loads(sent)

    def wait_for_jobs(self, active: int = 0, timeout_s: float = 10.0) -> None:
        """Wait until that many jobs run or wait."""
        deadline = time.monotonic() + timeout_s
        while self.queue.active != active:
            assert time.monotonic() < deadline, self.queue.active
            time.sleep(0.005)


@contextmanager
def serving(
    context: Context, engine: Any, slots: int = 2, max_queue: int = 8, policy: Policy | None = None,
    max_tokens: int = 4096, deadline_s: float = 600.0,
) -> Iterator[RunningServer]:  # fmt: skip
    """Serve a run on this engine from a thread until the block ends; all jobs must be done by then."""
    listening = server.listen("127.0.0.1", 0)
    queue = JobQueue(engine, slots, max_queue, deadline_s)
    app = routes.build(ServedModels(context, max_tokens=max_tokens), queue, policy or Policy(), max_tokens)
    uvicorn_server = server.build(app)
    thread = threading.Thread(target=lambda: asyncio.run(uvicorn_server._serve([listening])), daemon=True)
    thread.start()
    try:
        url = server.address(listening)
        yield RunningServer(url, int(url.rpartition(":")[2]), queue, engine)
    finally:
        uvicorn_server.should_exit = True
        thread.join(15)
        queue.close()
        assert not thread.is_alive()
