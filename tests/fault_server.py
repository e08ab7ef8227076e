"""An OpenAI-compatible server with faults of every kind."""

from __future__ import annotations

import email.utils
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from selfalign.generation.engines.base import Sampling, Step
from selfalign.generation.engines.openai_api import OpenAiApi
from selfalign.generation.retries import RetryPolicy
from selfalign.generation.settings import EngineSettings
from selfalign.model.dialogue import Tokenizer

STEP = Step(Sampling(0.5, 0.9, 8))


FAST = RetryPolicy(attempts=6, first_wait=0.01, longest_wait=0.05, max_seconds=20, probe_wait=0.01)


GOOD = {"choices": [{"text": " fine", "finish_reason": "stop"}], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}


class Handler(BaseHTTPRequestHandler):
    """Answers with the server's `choose(prompt)`: None is a good answer, else the name of a fault."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        server: FaultServer = self.server  # type: ignore[assignment]
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server.requests.append((body, dict(self.headers)))
        fault = server.choose(body["prompt"])
        server.faults[fault or "good"] += 1
        getattr(self, f"fault_{fault}" if fault else "good")()

    def good(self) -> None:
        self.reply(200, json.dumps(GOOD).encode())

    def fault_429(self) -> None:
        self.reply(429, b"{}")

    def fault_429_seconds(self) -> None:
        self.reply(429, b"{}", {"retry-after": "0"})

    def fault_429_ms(self) -> None:
        self.reply(429, b"{}", {"retry-after-ms": "5"})

    def fault_429_date(self) -> None:
        self.reply(429, b"{}", {"retry-after": email.utils.formatdate(time.time(), usegmt=True)})

    def fault_500(self) -> None:
        self.reply(500, b'{"error": {"message": "oh"}}')

    def fault_502_html(self) -> None:
        self.reply(502, b"<html><body>Bad gateway</body></html>")

    def fault_503(self) -> None:
        self.reply(503, b"")

    def fault_stall(self) -> None:
        time.sleep(0.5)
        self.close_connection = True

    def fault_stall_after_headers(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "100")
        self.end_headers()
        self.wfile.flush()
        time.sleep(0.5)
        self.close_connection = True

    def fault_cut(self) -> None:
        whole = json.dumps(GOOD).encode()
        self.reply(200, whole[: len(whole) // 2], length=len(whole))
        self.close_connection = True

    def fault_endless(self) -> None:
        self.reply(200, b" " * (5 << 20))

    def fault_not_json(self) -> None:
        self.reply(200, b"{'choices': [")

    def fault_no_choices(self) -> None:
        self.reply(200, b'{"choices": []}')

    def fault_no_text(self) -> None:
        self.reply(200, b'{"choices": [{"text": null}]}')

    def fault_redirect(self) -> None:
        self.reply(302, b"", {"location": "http://127.0.0.1:9/v1/completions"})

    def fault_reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def fault_400(self) -> None:
        self.reply(400, b'{"error": {"message": "no such parameter"}}')

    def fault_401(self) -> None:
        self.reply(401, b'{"error": {"message": "wrong key"}}')

    def fault_404(self) -> None:
        self.reply(404, b'{"error": {"message": "no such model"}}')

    def fault_too_long(self) -> None:
        self.reply(400, b'{"error": {"message": "This exceeds the context of 4096 tokens"}}')


class FaultServer(ThreadingHTTPServer):
    daemon_threads = True
    engines: list[OpenAiApi]
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        pass

    def __init__(self, choose: Callable[[str], str | None], handler: type[Handler] = Handler) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.choose = choose
        self.requests: list[tuple[dict[str, object], dict[str, str]]] = []
        self.faults: Counter[str] = Counter()
        self.engines = []


@contextmanager
def serving(choose: Callable[[str], str | None], handler: type[Handler] = Handler) -> Iterator[FaultServer]:
    server = FaultServer(choose, handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        for api in server.engines:
            api.close()
        server.shutdown()
        server.server_close()


def engine(
    server: FaultServer, policy: RetryPolicy = FAST, slots: int = 8, tokenizer: Tokenizer | None = None, **more: object
) -> OpenAiApi:
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    config = {"kind": "openai", "url": url, "served": {"base": "m"}, "timeout": 0.25, **more}
    api = OpenAiApi(EngineSettings.model_validate(config), slots, policy, tokenizer)
    server.engines.append(api)
    return api
