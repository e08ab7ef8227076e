"""Scoring by servers: one that echoes prompts as vLLM does, others, and a real llama.cpp server."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from selfalign.data.prompt_text import BOS
from selfalign.errors import Resumable, UserError
from selfalign.generation.engines.llama_cpp import LlamaCpp
from selfalign.generation.scoring.base import Text
from selfalign.generation.scoring.server_scorer import KEY, ServerScorer
from selfalign.model import sources

pytestmark = pytest.mark.integration

TEXTS: list[Text] = [
    ((BOS, "User: ", "Hi there", "\n\n", "Alma:"), " well hello"),
    ((BOS, "User: ", "Hi there", "\n\n", "Alma:"), " no"),
    ((BOS, "User: ", "Who?", "\n\n", "Alma:"), " me"),
]


def tokens(text: str) -> list[str]:
    return ["<bos>", *re.findall(r"\s*\S+", text)]


def vllm_like(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Echoes the prompt with a log-probability for each token but the first, and the one that it generated."""
    words = tokens(body["prompt"])
    if len(words) > 30:
        return 400, {"error": {"message": "This model's maximum context length is 30 tokens"}}
    choice: dict[str, Any] = {"text": " x", "finish_reason": "length"}
    if body.get("echo"):
        values = [None, *(-float(len(t)) for t in words[1:]), -99.0]
        choice = {"text": body["prompt"] + " x", "logprobs": {"tokens": [*words, " x"], "token_logprobs": values}}
    return 200, {"choices": [choice], "usage": {"prompt_tokens": len(words), "completion_tokens": 1}}


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[dict[str, Any]], tuple[int, Any]]], ServerScorer]]:
    servers: list[ThreadingHTTPServer] = []
    scorers: list[ServerScorer] = []

    def make(reply: Callable[[dict[str, Any]], tuple[int, Any]]) -> ServerScorer:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, value = reply({**body, "authorization": self.headers.get("authorization")})
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        scorers.append(ServerScorer(f"http://127.0.0.1:{server.server_address[1]}/v1", "model"))
        return scorers[-1]

    yield make
    for scorer in scorers:
        scorer.close()
    for server in servers:
        server.shutdown()
        server.server_close()


def test_only_tokens_of_the_continuation_count(serve: Any) -> None:
    scorer = serve(vllm_like)
    scores = scorer.loglikelihoods(TEXTS, None)
    assert [s.logprobs for s in scores] == [(-5.0, -6.0), (-3.0,), (-3.0,)]
    assert scorer.tokens == (7 + 6 + 5, 7 + 6 + 5) and scorer.name == "model at 127.0.0.1"


def test_too_long_texts_are_not_scored(serve: Any) -> None:
    scorer = serve(vllm_like)
    long: Text = ((BOS, "word " * 40), " end")
    just: Text = ((BOS, "word " * 28), " the end")
    scores = scorer.loglikelihoods([TEXTS[0], long, just], None)
    assert scores[0] is not None and scores[1] is None and scores[2] is None


@pytest.mark.parametrize(
    ("logprobs", "match"),
    [
        (None, "returns no log-probabilities of prompts"),
        ({"content": [{"token": " x", "logprob": -1.0}]}, "returns no log-probabilities of prompts"),
        ({"token_logprobs": [-1.0]}, "returns no log-probabilities of prompts"),
        ({"token_logprobs": [None] * 20}, "returns no log-probabilities of some"),
    ],
)
def test_server_without_prompt_logprobs_is_refused(serve: Any, logprobs: Any, match: str) -> None:
    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        status, value = vllm_like(body)
        value["choices"][0]["logprobs"] = logprobs
        return status, value

    with pytest.raises(UserError, match=match):
        serve(reply).loglikelihoods(TEXTS, None)


def test_refused_scoring_can_be_resumed(serve: Any) -> None:
    with pytest.raises(Resumable, match="422"):
        serve(lambda body: (422, {"error": "no"})).loglikelihoods(TEXTS, None)
    with pytest.raises(UserError, match="does not report the tokens"):
        serve(lambda body: (200, {"choices": [{"text": "x"}]})).loglikelihoods(TEXTS, None)


def test_key_comes_from_the_variable(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        keys.append(body["authorization"])
        return vllm_like(body)

    serve(reply).loglikelihoods(TEXTS[:1], None)
    monkeypatch.setenv(KEY, "abc")
    serve(reply).loglikelihoods(TEXTS[:1], None)
    assert keys == [None, None, "Bearer abc", "Bearer abc"]


def test_llama_cpp_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = sources.resolve("embedded").gguf
    server = LlamaCpp(gguf, {}, slots=1, context=512, threads=0)
    monkeypatch.setenv(KEY, server._key)
    scorer = ServerScorer(f"{server._server.listening_address}/v1", "any", parallel=1)
    try:
        with pytest.raises(UserError, match=r"no log-probabilities of prompts .* to score by torch"):
            scorer.loglikelihoods(TEXTS[:1], None)
    finally:
        scorer.close()
        server.close()
