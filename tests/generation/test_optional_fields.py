"""Fields that a server refuses are omitted, and what is lost is reported once."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fault_server import GOOD, FaultServer, Handler, serving
from selfalign.data.prompt_text import BOS
from selfalign.generation.engines.base import RowError, Sampling, Step
from selfalign.generation.engines.openai_api import OpenAiApi
from selfalign.generation.engines.optional_fields import OptionalFields
from selfalign.generation.settings import EngineSettings
from selfalign.run.context import Context
from web_servers import SlowFake
from web_servers import serving as serving_a_run

pytestmark = pytest.mark.integration

FULL = Step(Sampling(0.7, 0.8, 9, top_k=40, repetition=1.0, ban_eos=True), stop=("\n",), grammar="root ::= .")
EXTENSIONS = {"top_k", "ignore_eos", "grammar"}
Errors = Callable[[list[str], dict[str, Any]], tuple[int, Any]]


def openai_error(refused: list[str], body: dict[str, Any]) -> tuple[int, Any]:
    message = f"Unrecognized request argument supplied: {refused[0]}"
    return 400, {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


def pydantic_error(refused: list[str], body: dict[str, Any]) -> tuple[int, Any]:
    detail = [{"type": "extra_forbidden", "loc": ["body", f], "msg": "Extra inputs", "input": body} for f in refused]
    return 422, {"detail": detail}


def groq_error(refused: list[str], body: dict[str, Any]) -> tuple[int, Any]:
    return 400, {"error": {"message": f"property '{refused[0]}' is unsupported", "type": "invalid_request_error"}}


def rust_error(refused: list[str], body: dict[str, Any]) -> tuple[int, Any]:
    return 422, f"unknown field `{refused[0]}`, expected one of `model`, `seed`, `temperature`, `top_p` at line 1"


def error_with_accepted_names(refused: list[str], body: dict[str, Any]) -> tuple[int, Any]:
    return 400, {"error": f"Unknown parameters: {', '.join(refused)}. Supported parameters: model, seed, top_p"}


def error_that_says_not_allowed(refused: list[str], body: dict[str, Any]) -> tuple[int, Any]:
    return 400, {"message": f"not allowed: {', '.join(refused)}"}


def error_without_names(refused: list[str], body: dict[str, Any]) -> tuple[int, Any]:
    return 400, {"error": {"message": "the request is not valid"}}


def strict(fields: set[str], errors: Errors) -> type[Handler]:
    """Return a handler that refuses these fields and all that begin with dry_."""

    class Strict(Handler):
        def do_POST(self) -> None:
            server: FaultServer = self.server  # type: ignore[assignment]
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.requests.append((body, {}))
            refused = [name for name in body if name in fields or name.startswith("dry_")]
            bad = "bad" in body["prompt"]
            status, reply = errors(refused, body) if refused else error_without_names([], body) if bad else (200, GOOD)
            self.reply(status, json.dumps(reply).encode())

    return Strict


def heard(server: FaultServer) -> tuple[OpenAiApi, list[str]]:
    said: list[str] = []
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    api = OpenAiApi(EngineSettings.model_validate({"url": url, "served": {"base": "m"}}), 8, say=said.append)
    server.engines.append(api)
    return api, said


ERRORS = [
    openai_error, pydantic_error, groq_error, rust_error, error_with_accepted_names, error_that_says_not_allowed,
    error_without_names,
]  # fmt: skip


@pytest.mark.parametrize("errors", ERRORS)
def test_refused_fields_are_omitted_and_reported_once(errors: Errors):
    with serving(lambda _: None, strict(EXTENSIONS, errors)) as server:
        api, said = heard(server)
        assert api.generate((BOS, "x"), FULL, 3, None).text == " fine"
        learned = len(server.requests)
        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(lambda n: api.generate((BOS, "y"), FULL, n, None), range(20)))
    assert all(part.text == " fine" for part in parts) and len(server.requests) == learned + 20
    body = server.requests[-1][0]
    assert body["stop"] == ["\n"] and "seed" in body and not EXTENSIONS & body.keys()
    assert len(said) == 1 and "refuses top_k, dry_*, grammar, ignore_eos: without top_k, tokens are drawn" in said[0]


def test_fields_that_the_server_takes_are_kept():
    with serving(lambda _: None, strict({"grammar"}, openai_error)) as server:
        api, said = heard(server)
        api.generate((BOS, "x"), FULL, 3, None)
        body = server.requests[-1][0]
    assert body["top_k"] == 40 and body["ignore_eos"] and "grammar" not in body and "dry_base" not in body
    assert len(said) == 1 and "refuses dry_*, grammar:" in said[0]


def test_top_p_is_omitted_only_where_it_has_no_effect():
    error = {"error": "Input validation error: `top_p` must be > 0.0 and < 1.0"}
    with serving(lambda _: None, strict({"top_p"}, lambda refused, body: (422, error))) as server:
        api, said = heard(server)
        api.generate((BOS, "x"), Step(Sampling(0.0, 1.0, 4)), 0, None)
        assert "top_p" in server.requests[0][0] and "top_p" not in server.requests[-1][0]
        with pytest.raises(RowError, match="top_p"):
            api.generate((BOS, "x"), Step(Sampling(0.7, 0.9, 4)), 0, None)
        other, silent = heard(server)
        with pytest.raises(RowError, match="top_p"):
            other.generate((BOS, "x"), Step(Sampling(0.7, 0.9, 4)), 0, None)
    assert len(said) == 1 and "refuses top_p: without top_p, the server's own top_p" in said[0] and silent == []


def test_invalid_request_teaches_nothing():
    with serving(lambda _: None, strict(set(), error_without_names)) as server:
        api, said = heard(server)
        step = Step(Sampling(0.7, 0.8, 9, top_k=40))
        for _ in range(2):
            with pytest.raises(RowError, match="the request is not valid"):
                api.generate((BOS, "bad"), step, 0, None)
        api.generate((BOS, "x"), step, 0, None)
        accepted = len(server.requests)
        with pytest.raises(RowError, match="the request is not valid"):
            api.generate((BOS, "bad"), step, 0, None)
    assert said == [] and "top_k" in server.requests[-1][0]
    assert len(server.requests) == accepted + 1, "fields that were accepted once are not the cause"


def test_quoted_input_of_an_error_names_no_field():
    fields = OptionalFields("the server", lambda _: None)
    body = {"prompt": "x", "seed": 1, "temperature": 0.0}
    error = {"detail": [{"loc": ["body", "prompt"], "msg": "too short", "input": body, "ctx": {"temperature": 1}}]}
    assert fields.suspects(body, json.dumps(error)) == frozenset()
    assert fields.suspects(body, "Unsupported value: 'temperature' does not support 0") == {"temperature"}
    assert fields.suspects({**body, "temperature": 0.7}, "'temperature' does not support 0.7") == frozenset()


@given(st.text() | st.dictionaries(st.text(max_size=9), st.text(max_size=9)).map(json.dumps), st.booleans())
def test_suspects_are_fields_of_the_request(error: str, full: bool):
    body = {"prompt": "x", "top_k": 4, "dry_base": 2.0, "dry_multiplier": 1.0} if full else {"prompt": "x"}
    assert OptionalFields("s", lambda _: None).suspects(body, error) <= ({"top_k", "dry_*"} if full else set())


def test_our_own_server_answers_our_client(fake_run: Callable[..., Context]):
    with serving_a_run(fake_run(), SlowFake()) as running:
        said: list[str] = []
        config = EngineSettings.model_validate({"url": running.url, "served": {"base": "base"}})
        api = OpenAiApi(config, 2, say=said.append)
        for _ in range(2):
            assert api.generate((BOS, "Name a river."), FULL, 3, None).text
        api.close()
    assert len(said) == 1 and "refuses dry_*, grammar, ignore_eos:" in said[0]
