"""A real server in a thread, for tests: the fake engine at a pace, and what may be asked of it."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from selfalign.data.prompt_text import Pieces
from selfalign.generation.engines.base import Part, Step
from selfalign.generation.engines.fake import Fake
from selfalign.run.context import Context
from selfalign.web import server
from selfalign.web.guard import Policy
from selfalign.web.serve import routes
from selfalign.web.serve.job_queue import Generation
from selfalign.web.serve.models import Served
from selfalign.web.serve.openai_request import Limits


class Paced(Fake):
    """The fake engine, word by word.

    Args:
        pace_s: seconds for each word.
    """

    def __init__(self, pace_s: float = 0.0, **more: Any) -> None:
        super().__init__(**more)
        self.pace_s = pace_s
        self.prompts: deque[tuple[str, str | None, int]] = deque(maxlen=50)
        """(prompt, adapter, seed) of the last calls."""
        self.cut = 0
        """Calls that the reader ended."""
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()

    def generate(
        self, prompt: Pieces, step: Step, seed: int, adapter: str | None, on_text: Callable[[str], bool] | None = None
    ) -> Part:
        with self._lock:
            self.prompts.append(("".join(prompt), adapter, seed))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)

        def show(word: str) -> bool:
            time.sleep(self.pace_s)
            return on_text is None or on_text(word)

        try:
            part = super().generate(prompt, step, seed, adapter, show)
        finally:
            with self._lock:
                self.at_once -= 1
        self.cut += part.finish == "cancelled"
        return part


@dataclass
class Running:
    """A server that runs."""

    url: str
    port: int
    generation: Generation
    engine: Any

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            kind = {} if data is None else {"content-type": "application/json"}
            connection.request(method, path, data, {**kind, **(headers or {})})
            reply = connection.getresponse()
            return reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()
        finally:
            connection.close()

    def chat(self, message: str = "Hello", **more: Any) -> tuple[int, Any]:
        """(status, answer) of a request for an answer."""
        body = {"model": "final", "messages": [{"role": "user", "content": message}], **more}
        status, _, sent = self.ask("POST", "/v1/chat/completions", body)
        return status, json.loads(sent)

    def settle(self, taken: int = 0, limit_s: float = 10.0) -> None:
        """Wait until so many jobs are left."""
        until = time.monotonic() + limit_s
        while self.generation.taken != taken:
            assert time.monotonic() < until, self.generation.taken
            time.sleep(0.005)


@contextmanager
def serving(
    context: Context, engine: Any, slots: int = 2, max_queue: int = 8, policy: Policy | None = None,
    limits: Limits | None = None, deadline_s: float = 600.0,
) -> Iterator[Running]:  # fmt: skip
    """Serve a run on this engine from a thread until the block ends; jobs must be over by then."""
    listening = server.listen("127.0.0.1", 0)
    generation = Generation(engine, slots, max_queue, deadline_s)
    limits = limits or Limits()
    guarded = routes.build(Served(context, max_tokens=limits.tokens), generation, policy or Policy(), limits)
    made = server.make(guarded)
    thread = threading.Thread(target=lambda: asyncio.run(made._serve([listening])), daemon=True)
    thread.start()
    try:
        url = server.address(listening)
        yield Running(url, int(url.rpartition(":")[2]), generation, engine)
    finally:
        made.should_exit = True
        thread.join(15)
        generation.close()
        assert not thread.is_alive()
