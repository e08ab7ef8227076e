"""The engine of an OpenAI-compatible server: faults, retries, keys, proxies, and a real llama.cpp server."""

from __future__ import annotations

import email.utils
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fault_server import FAST, STEP, Handler, engine, serving
from sample_constitutions import GOOD as SMALL_CONSTITUTION
from selfalign import constitution as constitutions
from selfalign.data.prompt_text import BOS
from selfalign.errors import Resumable, UserError
from selfalign.generation.engines import openai_api
from selfalign.generation.engines.base import Request, RowError, Sampling, Step, TooLong
from selfalign.generation.engines.llama_cpp import LlamaCpp
from selfalign.generation.engines.openai_api import OpenAiApi, _part
from selfalign.generation.engines.server_client import is_local
from selfalign.generation.loop import JournaledEngine, RowRequest
from selfalign.generation.retries import Retrier, RetryPolicy, Transient, read_retry_after
from selfalign.generation.settings import EngineSettings
from selfalign.model import sources
from selfalign.pipeline import order
from selfalign.run import recipe as recipes
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.run.journal import Journal
from selfalign.system.console import Screen

pytestmark = pytest.mark.integration

ROW_FAULTS = ("400", "redirect")
RETRIED = (
    "429", "429_seconds", "429_ms", "429_date", "500", "502_html", "503", "stall", "stall_after_headers", "cut",
    "not_json", "no_choices", "no_text", "reset",
)  # fmt: skip


@pytest.mark.slow
def test_thousand_requests_survive_sixteen_kinds_of_faults(tmp_path: Path):
    assert len(ROW_FAULTS + RETRIED) == 16
    rng, lock = random.Random(1), threading.Lock()

    def choose(prompt: str) -> str | None:
        with lock:
            return rng.choice(ROW_FAULTS + RETRIED) if rng.random() < 0.3 else None

    with serving(choose) as server:
        works = [RowRequest(f"r{n}", Request((BOS, f"question {n}"), (STEP,), n)) for n in range(1000)]
        journal = Journal(tmp_path / "journal.sqlite")
        begun = time.monotonic()
        outcomes = JournaledEngine(engine(server), journal, "s", {None: "m"}).generate(works)
        assert time.monotonic() - begun < 120
    assert [o.row_id for o in outcomes] == [w.row_id for w in works]
    answered = sum(o.completion is not None for o in outcomes)
    reasons = Counter(o.reason.split(" (")[0] for o in outcomes if o.completion is None)
    assert answered + sum(reasons.values()) == 1000
    assert all(o.completion.parts[0].text == " fine" for o in outcomes if o.completion)
    # Errors that the request causes are not retried, all others are.
    refused = server.faults["400"] + server.faults["redirect"]
    assert sum(n for r, n in reasons.items() if "returned 400" in r or "returned 302" in r) == refused
    assert all(server.faults[fault] for fault in ROW_FAULTS + RETRIED)
    assert answered > 900
    assert journal.open_work("s") == 0
    journal.close()


@pytest.mark.parametrize("fault", ["401", "404"])
def test_errors_of_every_row_stop_the_run_at_once(fault: str):
    with serving(lambda _: fault) as server:
        with pytest.raises(Resumable, match=f"returned {fault}"):
            engine(server).generate((BOS, "x"), STEP, 0, None)
        assert len(server.requests) == 1


def test_refused_requests_are_not_repeated_and_long_ones_are_dropped():
    with serving(lambda prompt: "too_long" if "long" in prompt else "400") as server:
        with pytest.raises(RowError, match="no such parameter"):
            engine(server).generate((BOS, "x"), STEP, 0, None)
        with pytest.raises(TooLong):
            engine(server).generate((BOS, "long"), STEP, 0, None)
        assert len(server.requests) == 2


ERRORS = {
    b'{"error": {"message": "no such\\nparameter"}}': "no such parameter",
    b'{"error": "no such parameter", "error_type": "validation"}': "no such parameter",
    b'{"object": "error", "message": "no such parameter"}': "no such parameter",
    b'{"error": null, "detail": "Not Found"}': "Not Found",
    b"<!DOCTYPE html><html><head><style>b {}</style><title>403 Forbidden</title></head></html>": "403 Forbidden",
    b"\x1b[31mBad\x00 \xff": "[31mBad \ufffd",
    b"[1]": "[1]",
    b"": "",
}


@pytest.mark.parametrize("raw", ERRORS)
def test_message_of_an_error_is_read_from_every_form(raw: bytes):
    assert openai_api._error_message(raw) == ERRORS[raw]


def test_a_redirect_is_not_followed_and_names_its_target():
    with serving(lambda _: "redirect") as server:
        with pytest.raises(RowError, match=r"returned 302: a redirect to http://127.0.0.1:9/v1/completions: set"):
            engine(server).generate((BOS, "x"), STEP, 0, None)
        assert len(server.requests) == 1


def test_poison_request_fails_alone(tmp_path: Path):
    with serving(lambda prompt: "500" if "poison" in prompt else None) as server:
        works = [RowRequest(f"r{n}", Request((BOS, "poison" if n == 5 else f"q{n}"), (STEP,), n)) for n in range(20)]
        journal = Journal(tmp_path / "j.sqlite")
        outcomes = JournaledEngine(engine(server), journal, "s", {None: "m"}).generate(works)
        journal.close()
    assert [n for n, o in enumerate(outcomes) if o.completion is None] == [5]
    assert outcomes[5].reason == "the server returned 500 (6 tries)"


def test_dead_server_opens_the_breaker_and_the_run_resumes(tmp_path: Path):
    policy = RetryPolicy(
        attempts=4, first_wait=0.001, longest_wait=0.002, breaker_failures=6, probes=2, probe_wait=0.01
    )
    with serving(lambda _: "503") as server:
        works = [RowRequest(f"r{n}", Request((BOS, f"q{n}"), (STEP,), n)) for n in range(500)]
        journal = Journal(tmp_path / "j.sqlite")
        with pytest.raises(Resumable, match=r"failed \d+ calls in a row"):
            JournaledEngine(engine(server, policy), journal, "s", {None: "m"}).generate(works)
        assert len(server.requests) < 60
        server.choose = lambda _: None
        outcomes = JournaledEngine(engine(server, policy), journal, "s", {None: "m"}).generate(works)
        journal.close()
    assert all(o.completion for o in outcomes)


def test_request_body_holds_the_sampling_settings():
    with serving(lambda _: None) as server:
        api = engine(server, slots=3)
        step = Step(
            Sampling(0.7, 0.8, 9, top_k=40, repetition=1.0, ban_eos=True), stop=("\n\nUser:",), grammar="root ::= ."
        )
        part = api.generate((BOS, "Hi", " there"), step, 2**40 + 3, None)
        body = server.requests[0][0]
    assert api.parallel == 3
    assert (part.text, part.finish, part.prompt_tokens, part.generated_tokens) == (" fine", "end", 7, 2)
    expected = {
        "model": "m",
        "prompt": "Hi there",
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 40,
        "seed": 3,
    }
    assert expected.items() <= body.items()
    assert body["stop"] == ["\n\nUser:"] and body["ignore_eos"] and body["grammar"] and body["dry_multiplier"] == 1.0


def test_key_comes_from_its_variable_and_appears_in_no_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MY_SERVER_KEY", "canary-8c1f")
    with serving(lambda _: "401") as server:
        api = engine(server, key_env="MY_SERVER_KEY")
        with pytest.raises(Resumable) as caught:
            api.generate((BOS, "x"), STEP, 0, None)
        assert server.requests[0][1]["authorization"] == "Bearer canary-8c1f"
    assert "canary" not in str(caught.value) + repr(api) + json.dumps(
        EngineSettings(key_env="MY_SERVER_KEY").model_dump()
    )
    monkeypatch.delenv("MY_SERVER_KEY")
    with serving(lambda _: None) as server, pytest.raises(UserError, match="MY_SERVER_KEY"):
        engine(server, key_env="MY_SERVER_KEY")


@pytest.mark.parametrize("url", [None, "", "127.0.0.1:80", "ftp://x/v1", "http://user:pass@host/v1", "http:///v1"])
def test_invalid_address_is_a_user_error(url: str | None):
    with pytest.raises(UserError, match=r"engine\.url"):
        OpenAiApi(EngineSettings.model_validate({"kind": "openai", "url": url}), 8)


@pytest.mark.parametrize(
    ("base", "path"),
    [("", "/v1/completions"), ("/", "/v1/completions"), ("/v1", "/v1/completions"), ("/v1/", "/v1/completions"),
     ("/api", "/api/v1/completions"), ("/openai/v1", "/openai/v1/completions"),
     ("/api/paas/v4", "/api/paas/v4/completions"), ("/v1beta/openai/", "/v1beta/openai/completions")],
)  # fmt: skip
def test_version_in_the_address_is_kept(base: str, path: str):
    seen = []

    class Recorder(Handler):
        def do_POST(self) -> None:
            seen.append(self.path)
            super().do_POST()

    with serving(lambda _: None, Recorder) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}{base}"
        api = OpenAiApi(EngineSettings.model_validate({"url": url, "served": {"base": "m"}}), 1, FAST)
        api.generate((BOS, "x"), STEP, 0, None)
        api.close()
    assert seen == [path]


def test_unknown_host_stops_the_run():
    config = EngineSettings.model_validate(
        {"kind": "openai", "url": "http://no-such-host.invalid/v1", "served": {"base": "m"}}
    )
    with pytest.raises(Resumable, match="cannot be resolved"):
        OpenAiApi(config, 8, FAST).generate((BOS, "x"), STEP, 0, None)


def test_reply_over_the_size_limit_fails_the_row():
    with serving(lambda _: "endless") as server, pytest.raises(RowError, match=r"reply does not end \(2 tries\)"):
        engine(server, RetryPolicy(attempts=2, first_wait=0.01)).generate((BOS, "x"), STEP, 0, None)


def test_loopback_servers_bypass_the_proxy(monkeypatch: pytest.MonkeyPatch):
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with serving(lambda _: None) as server:
        assert engine(server).generate((BOS, "x"), STEP, 0, None).text == " fine"


@pytest.mark.parametrize("no_proxy", [None, "", "*", "[::1", "example.org,,", "http://[bad", "127.0.0.1/99"])
def test_loopback_servers_bypass_every_form_of_proxy(monkeypatch: pytest.MonkeyPatch, no_proxy: str | None):
    for name, value in [("HTTP_PROXY", "gopher://x"), ("ALL_PROXY", "socks5://127.0.0.1:1"), ("HTTPS_PROXY", "::")]:
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.lower(), value)
    if no_proxy is not None:
        monkeypatch.setenv("NO_PROXY", no_proxy)
        monkeypatch.setenv("no_proxy", no_proxy)
    with serving(lambda _: None) as server:
        for host in ("127.0.0.1", "localhost", "127.1", "0.0.0.0"):
            config = EngineSettings.model_validate(
                {"url": f"http://{host}:{server.server_address[1]}", "served": {"base": "m"}}
            )
            api = OpenAiApi(config, 1, FAST)
            assert api.generate((BOS, "x"), STEP, 0, None).text == " fine"
            api.close()


@pytest.mark.parametrize(
    ("host", "local"),
    [("::1", True), ("::ffff:127.0.0.1", True), ("::", True), ("127.8.9.1", True), ("ip6-localhost", True),
     ("a.localhost", True), ("LocalHost", True), ("localhost.example.org", False), ("10.0.0.1", False), ("", False),
     ("::ffff:10.0.0.1", False), ("example.org", False), ("127.0.0.1.example.org", False), ("\udc80", False)],
)  # fmt: skip
def test_names_of_this_machine_are_known(host: str, local: bool):
    assert is_local(host) is local


def test_unusable_proxy_does_not_matter_to_an_exempt_host(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALL_PROXY", "gopher://proxy")
    monkeypatch.setenv("NO_PROXY", "server.invalid")
    OpenAiApi(EngineSettings.model_validate({"url": "http://server.invalid"}), 1).close()


def test_other_servers_are_reached_through_the_proxy(monkeypatch: pytest.MonkeyPatch):
    with serving(lambda _: None) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.server_address[1]}")
        config = EngineSettings.model_validate({"url": "http://no-such-host.invalid", "served": {"base": "m"}})
        api = OpenAiApi(config, 1, FAST)
        assert api.generate((BOS, "x"), STEP, 0, None).text == " fine"
        api.close()


def test_unusable_proxy_is_reported_without_its_password(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTP_PROXY", "gopher://user:canary@proxy")
    with pytest.raises(UserError, match="HTTP_PROXY") as caught:
        OpenAiApi(EngineSettings.model_validate({"url": "http://server.invalid"}), 1)
    assert "canary" not in str(caught.value)


def test_retry_after_in_every_form():
    now = 1_700_000_000.0
    assert read_retry_after({}) is None
    assert read_retry_after({"retry-after": "7"}) == 7
    assert read_retry_after({"retry-after-ms": "1500"}) == 1.5
    assert read_retry_after({"retry-after": email.utils.formatdate(now + 30, usegmt=True)}, now) == 30
    assert read_retry_after({"retry-after": email.utils.formatdate(now - 30, usegmt=True)}, now) == 0
    for nonsense in ("soon", "-3", "1e999", "Mon, 99 Foo 2026", "\x00"):
        assert read_retry_after({"retry-after": nonsense}, now) in (None, 0.0)


def test_waits_have_full_jitter_and_a_limit():
    retrier = Retrier(RetryPolicy(first_wait=1.0, longest_wait=60.0, probe_wait=0.01), seed=1)
    waits = [retrier.pause(4, None) for _ in range(10_000)]
    assert 0 <= min(waits) < 0.1 and 7.9 < max(waits) <= 8
    assert abs(sum(waits) / len(waits) - 4) < 0.2
    assert all(retrier.pause(30, None) <= 60 for _ in range(100))
    assert retrier.pause(1, 86_400.0) <= 61


def test_call_keeps_its_time_budget():
    now = [0.0]
    retrier = Retrier(
        RetryPolicy(attempts=100, max_seconds=10, first_wait=4, longest_wait=4, probe_wait=0.01),
        lambda s: now.__setitem__(0, now[0] + s),
    )
    tries = []

    def fails() -> None:
        tries.append(now[0])
        raise Transient("the server returned 503")

    with pytest.raises(RowError, match=r"503 \(\d+ tries\)"):
        retrier.call(fails, lambda: now[0])
    assert now[0] <= 10
    assert len(tries) > 2


@pytest.fixture(scope="module")
def real() -> Iterator[LlamaCpp]:
    """A real llama.cpp server with the embedded model."""
    gguf = sources.resolve("embedded").gguf
    assert gguf is not None
    server = LlamaCpp(gguf, {}, slots=2, context=2048, threads=0)
    yield server
    server.close()


def test_llama_cpp_server_answers_as_the_engine_in_process(real: LlamaCpp, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLAMA_KEY", real._key)
    url = f"{real._server.listening_address}/v1"
    config = {"kind": "openai", "url": url, "served": {"base": "any"}, "key_env": "LLAMA_KEY"}
    remote = OpenAiApi(EngineSettings.model_validate(config), 8)
    step = Step(Sampling(0.0, 1.0, 12), stop=("\n",))
    prompt = (BOS, "User: Name the capital of France.\n\nAssistant:")
    mine, theirs = real.generate(prompt, step, 0, None), remote.generate(prompt, step, 0, None)
    cut = remote.generate(prompt, Step(Sampling(0.0, 1.0, 3)), 0, None)
    remote.close()
    assert theirs.text == mine.text != ""
    assert theirs.generated_tokens == mine.generated_tokens
    assert theirs.prompt_tokens + theirs.cached_tokens == len(real.encode(prompt))
    assert cut.finish == "length"


def test_stage_two_runs_on_a_server_and_stage_four_explains_adapters(
    real: LlamaCpp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("LLAMA_KEY", real._key)
    (tmp_path / "c.yaml").write_text(SMALL_CONSTITUTION, "utf-8")
    (tmp_path / "mine.txt").write_text("Name three rivers of Europe.\nWhy is the sky blue?\n", "utf-8")
    settings = [
        f"engine.url={real._server.listening_address}", "engine.served.base=any", "engine.key_env=LLAMA_KEY",
        f"prompts.file={tmp_path / 'mine.txt'}", "stages=[prompts, align]", "align.max_new_tokens=24",
        "align.samples=1",  # with more, a row whose response is dropped has several requests
    ]  # fmt: skip
    recipe = recipes.located(recipes.load("quick", settings))
    context = Context(RunDir.create(tmp_path / "run", recipe, constitutions.load(str(tmp_path / "c.yaml"))), Screen(-1))
    order.run_all(context)
    counts = context.journal.counts("align")
    assert counts.rows_in == 2 and counts.generation.requests == 2 and counts.generation.generated_tokens > 20
    assert context.engine().note == "" and counts.generation.escaped_rows == 0
    with pytest.raises(
        Resumable, match=r"llama-server -m BASE\.gguf --lora .*--set engine\.served\.engrave=ID"
    ) as caught:
        context.engine(("engrave",))
    assert caught.value.exit_code == 75
    context.release_engine()
    context.journal.close()
    secret = real._key.encode()
    assert not [f for f in (tmp_path / "run").rglob("*") if f.is_file() and secret in f.read_bytes()]


def test_impossible_token_counts_are_ignored():
    """SQLite refuses integers over 63 bits."""
    usage = {"prompt_tokens": 10**30, "completion_tokens": -(10**30), "prompt_tokens_details": {"cached_tokens": 2**63}}
    part = _part("text", {}, {"usage": usage})
    assert (part.prompt_tokens, part.cached_tokens, part.generated_tokens) == (0, 0, 0)
