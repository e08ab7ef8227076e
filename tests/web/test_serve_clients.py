"""Requests that real clients send are answered.

`client_requests.json` holds requests recorded from these clients, without secrets; those of Open WebUI follow its
source. The official client of OpenAI's API also runs itself, in `test_serve_routes`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from selfalign.run.context import Context
from selfalign.web.serve.models import ServedModels
from web_servers import RunningServer, SlowFake, serving

pytestmark = pytest.mark.integration

RECORDED: list[dict[str, Any]] = json.loads(Path(__file__).with_name("client_requests.json").read_text("utf-8"))


@pytest.fixture
def running(fake_run: Callable[..., Context]) -> Iterator[RunningServer]:
    with serving(fake_run(), SlowFake()) as server:
        yield server


def check_answer(running: RunningServer, sent: dict[str, Any]) -> None:
    """Check the response to a recorded request."""
    status, headers, raw = running.request(sent["method"], sent["path"], sent.get("body"), sent["headers"])
    if "refused" in sent:
        assert status == 400 and json.loads(raw)["error"]["message"].startswith(sent["refused"])
        return
    assert status == 200, (sent, raw)
    if sent.get("body", {}).get("stream"):
        assert headers["content-type"].startswith("text/event-stream") and raw.endswith(b"data: [DONE]\n\n")
    elif "body" in sent:
        choices = json.loads(raw)["choices"]
        assert all(c["message"]["content"] if "messages" in sent["body"] else c["text"] for c in choices)
    else:
        assert "final" in json.dumps(json.loads(raw))


def test_recorded_requests_of_clients_are_answered(running: RunningServer):
    assert len({sent["client"] for sent in RECORDED}) >= 8
    for sent in RECORDED:
        check_answer(running, sent)


def test_superfluous_slashes_are_ignored(running: RunningServer):
    body = {"model": "base", "messages": [{"role": "user", "content": "Hi"}]}
    for path in ("/v1/chat/completions/", "//v1/chat/completions", "/v1//chat/completions//"):
        assert running.request("POST", path, body)[0] == 200
    for path in ("/v1/models/", "/v1/models/base/", "/health", "/health/"):
        assert running.request("GET", path)[0] == running.request("HEAD", path)[0] == 200


def test_a_path_without_version_learns_the_routes(running: RunningServer):
    status, _, raw = running.request("POST", "/chat/completions", {"model": "base"})
    assert status == 404 and "the API has /v1/models, /v1/chat/completions" in json.loads(raw)["error"]["message"]


def test_ignored_fields_are_reported_once(fake_run: Callable[..., Context], capfd: pytest.CaptureFixture[str]):
    context = fake_run()
    context.screen.verbosity = 0
    with serving(context, SlowFake()) as server:
        for _ in range(2):
            assert server.chat(user="canary", chat_id="canary", lora=None)[0] == 200
    said = capfd.readouterr().err
    assert said.count("without effect on responses: user") == said.count("responses: chat_id") == 1
    assert "canary" not in said and "lora" not in said


def test_top_k_of_a_request_reaches_the_engine(fake_run: Callable[..., Context]):
    seen: list[int] = []

    class Spy(SlowFake):
        def generate(self, prompt: Any, step: Any, *more: Any, **named: Any) -> Any:
            seen.append(step.sampling.top_k)
            return super().generate(prompt, step, *more, **named)

    context = fake_run()
    with serving(context, Spy()) as server:
        for value in (None, 7, 0, -1):
            assert server.chat(top_k=value)[0] == 200
    assert seen == [context.recipe.engine.top_k, 7, 0, 0]


def test_run_on_the_fake_engine_starts_an_engine(fake_run: Callable[..., Context]):
    models = ServedModels(fake_run())
    engine = models.start(2)
    assert models.adapters() and engine.parallel == 2
    engine.close()
