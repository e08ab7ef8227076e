"""Several servers as one engine: shares of the requests, failover, outages, health checks; on 127.0.0.1."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sample_constitutions import GOOD as SMALL_CONSTITUTION
from selfalign import constitution as constitutions
from selfalign.data.prompt_text import BOS
from selfalign.errors import Interrupted, Resumable, UserError
from selfalign.generation.engines.base import Request, Sampling, Step
from selfalign.generation.engines.llama_cpp import LlamaCpp
from selfalign.generation.engines.many_servers import ManyServers
from selfalign.generation.engines.same_model import TEXTS
from selfalign.generation.loop import GenerationResult, JournaledEngine, RowRequest
from selfalign.generation.retries import RetryPolicy
from selfalign.generation.settings import EngineSettings
from selfalign.model import sources
from selfalign.pipeline import order
from selfalign.run import recipe as recipes
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.run.journal import Journal
from selfalign.system.console import Screen
from selfalign.system.signals import STOP

pytestmark = pytest.mark.integration

STEP = Step(Sampling(0.5, 0.9, 8))
FAST = RetryPolicy(
    attempts=6, first_wait=0.01, longest_wait=0.05, max_seconds=20, probe_wait=0.02, breaker_failures=12, probes=3
)


def words(*parts: object) -> str:
    """Return a text that depends only on the parts."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return " " + " ".join(TEXTS[0].split()[b % 8] for b in digest[:8])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which adds 40 ms per reply

    def log_message(self, *_: object) -> None: ...

    def reply(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.reply(200, {"data": [{"id": "m"}, {"id": "another"}]})

    def do_POST(self) -> None:
        server: Fake = self.server  # type: ignore[assignment]
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server.keys.add(self.headers.get("authorization", ""))
        if not self.path.endswith("completions"):
            return self.reply(404, {})
        prompt = body["prompt"]
        if prompt in TEXTS:
            logprobs = {"token_logprobs": [-float(len(prompt) % 7) - server.off], "tokens": ["x"]}
            fault = server.choose("probe")
            text = words(prompt) if body["model"] == "m" else " other"
            choice = {"text": text, "finish_reason": "length", "logprobs": logprobs}
        else:
            server.prompts.append((prompt, time.monotonic()))
            fault = server.choose(prompt)
            with server.slots:
                time.sleep(server.latency if not fault else 0)
            choice = {"text": words(prompt, body["seed"]), "finish_reason": "stop"}
        if fault == "hang":
            server.released.wait(5)
            self.close_connection = True
            return None
        if fault == "drop":
            self.close_connection = True
            return None
        if fault:
            status, _, wait = fault.partition(":")
            return self.reply(int(status), {}, {"retry-after-ms": wait} if wait else {})
        self.reply(200, {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 8}})


class Fake(ThreadingHTTPServer):
    """Answers up to `slots` requests concurrently after `latency` seconds, unless `choose(prompt)` names a fault."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None: ...

    def __init__(self, latency: float, slots: int, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.latency, self.slots = latency, threading.Semaphore(slots)
        self.choose: Callable[[str], str | None] = lambda _: None
        self.prompts: list[tuple[str, float]] = []
        self.keys: set[str] = set()
        self.off = 0.0
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()


@contextmanager
def fleet(*latencies: float, slots: int = 2) -> Iterator[list[Fake]]:
    servers = [Fake(latency, slots) for latency in latencies]
    try:
        yield servers
    finally:
        for server in servers:
            server.stop()


@contextmanager
def engine(*servers: Fake, slots: int = 2, policy: RetryPolicy = FAST, **more: Any) -> Iterator[ManyServers]:
    config = {"urls": [s.url for s in servers], "served": {"base": "m"}, "timeout": 0.3, **more}
    messages: list[str] = []
    many = ManyServers(EngineSettings.model_validate(config), slots, policy, say=messages.append)
    try:
        yield many
    finally:
        many.close()


def works(count: int, steps: int = 1) -> list[RowRequest]:
    return [RowRequest(f"r{n}", Request((BOS, f"question {n}"), (STEP,) * steps, n)) for n in range(count)]


def run(many: ManyServers, journal: Journal, count: int, steps: int = 1) -> list[GenerationResult]:
    return JournaledEngine(many, journal, "s", {None: "m"}).generate(works(count, steps))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


def test_faster_servers_get_more_requests(journal: Journal):
    with fleet(0.08, 0.04, 0.02) as servers, engine(*servers, timeout=5) as many:
        assert many.parallel == 6
        outcomes = run(many, journal, 210)
        shares = [len(s.prompts) / 210 for s in servers]
        assert f"{servers[2].url}: {(n := len(servers[2].prompts))} requests, {8 * n:,} tokens" in many.note
    assert all(o.completion for o in outcomes) and sum(shares) == 1
    assert all(abs(share - ideal / 7) < 0.07 for share, ideal in zip(shares, (1, 2, 4), strict=True)), shares


def test_retry_after_rests_a_server_and_no_row_fails(journal: Journal):
    with fleet(0.01, 0.01) as (well, busy), engine(well, busy, policy=RetryPolicy(first_wait=0.01)) as many:
        replies = iter(["429:400"])
        busy.choose = lambda _: next(replies, None)
        outcomes = run(many, journal, 150)
        assert "1 error" in many.note and "out of service" not in many.note
    assert all(o.completion for o in outcomes)
    begun = busy.prompts[0][1]
    assert len(busy.prompts) > 10 and not [at for _, at in busy.prompts if begun + 0.1 < at < begun + 0.4]


def test_requests_of_a_hanging_server_fail_over(journal: Journal):
    with fleet(0.01, 0.01, slots=8) as (well, hanging), engine(well, hanging) as many:
        hanging.choose = lambda _: "hang"
        begun = time.monotonic()
        outcomes = run(many, journal, 80)
        assert time.monotonic() - begun < 2
        assert f"{hanging.url}: 0 requests, 0 tokens, " in many.note and "no reply from" in many.note
    assert all(o.completion for o in outcomes)
    assert len(hanging.prompts) <= 4


def test_restarted_server_gets_requests_again(journal: Journal):
    with fleet(0.01, 0.01) as (well, mortal), engine(well, mortal) as many:
        assert all(o.completion for o in run(many, journal, 20))
        port = mortal.server_address[1]
        mortal.choose = lambda _: "drop"
        mortal.stop()
        assert all(o.completion for o in JournaledEngine(many, journal, "s", {None: "m"}).generate(works(60)[20:]))
        assert "(now: no connection" in many.note
        reborn = Fake(0.01, 2, port)
        try:
            until = time.monotonic() + 3
            while "(now:" in many.note and time.monotonic() < until:
                time.sleep(0.01)
            outcomes = run(many, journal, 140)
            assert len(reborn.prompts) > 10
        finally:
            reborn.stop()
    assert all(o.completion for o in outcomes)
    assert len({o.row_id for o in outcomes}) == 140


def test_server_of_another_model_is_refused_by_name():
    with fleet(0, 0) as (one, other):
        other.off = 0.4
        with pytest.raises(UserError, match=f"{other.url} serves another model than {one.url}: for 'base', after"):
            engine(one, other).__enter__()
        other.off = 0.05
        with engine(one, other) as many:
            assert many.note == "the servers get text: this machine does not have the model's tokenizer"
        mapping = [one.url, {"url": other.url, "served": {"base": "another"}}]
        with pytest.raises(UserError, match=r"after 'The capital.*' other' \(-\d.\d\d\) instead of"):
            engine(urls=mapping).__enter__()


def test_server_that_returns_with_another_model_stays_out(journal: Journal):
    with fleet(0.01, 0.01) as (well, changed), engine(well, changed) as many:
        changed.off, changed.choose = 0.5, lambda prompt: None if prompt == "probe" else "503"
        outcomes = run(many, journal, 40)
        until = time.monotonic() + 3
        while "serves another model than" not in many.note and time.monotonic() < until:
            time.sleep(0.01)
        assert f"(now: {changed.url} serves another model than {well.url}" in many.note
        changed.choose = lambda _: None
        count = len(changed.prompts)
        assert all(o.completion for o in run(many, journal, 80) + outcomes)
        assert len(changed.prompts) == count


def test_run_resumes_after_all_servers_failed(journal: Journal):
    with fleet(0.005, 0.005) as servers:
        with engine(*servers) as many:
            for server in servers:
                server.choose = lambda p: None if p[9:].isdigit() and int(p[9:]) < 50 else "503"
            with pytest.raises(Resumable, match=r"calls in a row .*no server is in service: http.*503"):
                run(many, journal, 200)
        before = Counter(p for s in servers for p, _ in s.prompts)
        done = {prompt for prompt in before if int(prompt.split()[1]) < 50}
        for server in servers:
            server.prompts.clear()
            server.choose = lambda _: None
        with engine(*servers) as many:
            outcomes = run(many, journal, 200)
        after = Counter(p for s in servers for p, _ in s.prompts)
    assert [o.row_id for o in outcomes] == [f"r{n}" for n in range(200)] and all(o.completion for o in outcomes)
    assert len(done) == 50 and not done & after.keys(), "answered requests are not sent again"
    assert set(after.values()) == {1} and len(after) == 150


def test_run_starts_with_the_servers_that_answer(journal: Journal):
    with fleet(0.005, 0.005) as (well, down):
        down.choose = lambda prompt: "503" if prompt == "probe" else None
        with engine(well, down) as many:
            assert f"{down.url}: 0 requests" in many.note and "returned 503" in many.note
            assert all(o.completion for o in run(many, journal, 20))
            assert not down.prompts
            down.choose = lambda _: None
            until = time.monotonic() + 3
            while "(now:" in many.note and time.monotonic() < until:
                time.sleep(0.01)
            run(many, journal, 100)
            assert down.prompts
        well.choose = lambda _: "401"
        with pytest.raises(Resumable, match=f"{well.url} returned 401: .*check the key"):
            engine(well, down).__enter__()
        well.choose = lambda _: "404"
        with pytest.raises(Resumable, match=r"returned 404.*; it serves m, another"):
            engine(well, down).__enter__()


def test_expired_key_takes_out_one_server_only(journal: Journal):
    with fleet(0.005, 0.005) as (well, locked), engine(well, locked) as many:
        locked.choose = lambda _: "401"
        assert all(o.completion for o in run(many, journal, 40))
        assert "check the key" in many.note
        well.choose = lambda _: "401"
        with pytest.raises(Resumable, match="check the key"):
            run(many, journal, 80)


def test_poison_request_fails_alone(journal: Journal):
    with fleet(0.002, 0.002, 0.002) as servers, engine(*servers) as many:
        for server in servers:
            server.choose = lambda prompt: {"question 5": "500", "question 9": "400"}.get(prompt)
        outcomes = run(many, journal, 60)
        tries = Counter(p for s in servers for p, _ in s.prompts)
    assert [n for n, o in enumerate(outcomes) if not o.completion] == [5, 9]
    assert outcomes[5].reason.endswith("returned 500 (6 tries)") and tries["question 5"] == 6
    assert "returned 400" in outcomes[9].reason and tries["question 9"] == 1


def test_steps_of_a_request_stay_with_one_server(journal: Journal):
    with fleet(0.002, 0.004) as servers, engine(*servers) as many:
        outcomes = run(many, journal, 40, steps=3)
        prompts = [{p.split()[1] for p, _ in s.prompts} for s in servers]
    assert all(o.completion and len(o.completion.parts) == 3 for o in outcomes)
    assert not prompts[0] & prompts[1] and len(prompts[0] | prompts[1]) == 40


def test_signal_ends_waiting_requests_and_loses_nothing(journal: Journal, monkeypatch: pytest.MonkeyPatch):
    with fleet(0.15, 0.15, slots=8) as servers, engine(*servers, slots=8) as many:
        for server in servers:
            server.choose = lambda prompt: monkeypatch.setattr(STOP, "_signum", 2)
        with pytest.raises(Interrupted):
            run(many, journal, 60, steps=2)
        begun = {p.split()[1] for s in servers for p, _ in s.prompts}
        assert 0 < len(begun) <= 4 and sum(len(s.prompts) for s in servers) == 2 * len(begun)
        monkeypatch.setattr(STOP, "_signum", None)
        for server in servers:
            server.latency, server.choose = 0.005, lambda _: None
        outcomes = run(many, journal, 60, steps=2)
        tries = Counter(p.split()[1] for s in servers for p, _ in s.prompts)
    assert all(o.completion for o in outcomes) and set(tries.values()) == {2}


def test_signal_ends_the_comparison_of_servers(monkeypatch: pytest.MonkeyPatch):
    with fleet(0.0, 0.0) as servers:

        def choose(prompt: str) -> None:
            monkeypatch.setattr(STOP, "_signum", 2)

        servers[0].choose = choose
        with pytest.raises(Interrupted):
            engine(*servers).__enter__()


def test_each_server_gets_its_own_key_and_no_key_leaks(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("ONE_KEY", "canary-1111")
    monkeypatch.setenv("TWO_KEY", "canary-2222")
    with fleet(0.002, 0.002) as (one, two):
        urls = [one.url, {"url": two.url + "/v1", "key_env": "TWO_KEY", "slots": 3}]
        with engine(urls=urls, key_env="ONE_KEY") as many:
            assert many.parallel == 5
            two.choose = lambda prompt: "401" if prompt == "question 3" else None
            run(many, journal, 30)
            text = (
                many.note
                + repr(many)
                + repr(vars(many))
                + json.dumps(EngineSettings.model_validate({"urls": urls}).model_dump())
            )
        assert (one.keys, two.keys) == ({"Bearer canary-1111"}, {"Bearer canary-2222"})
    assert "canary" not in text
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and b"canary" in f.read_bytes()]
    monkeypatch.delenv("TWO_KEY")
    with pytest.raises(UserError, match="TWO_KEY"):
        engine(urls=urls, key_env="ONE_KEY").__enter__()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["engine.urls=[]"], "urls is an empty list"),
        (["engine.urls=[http://a, http://b]", "engine.url=http://c"], "url and urls are both set"),
        (["engine.urls=[http://a, 'HTTP://A/v1/']"], "urls.1 is the same server as engine.urls.0"),
        (["engine.urls=[http://a, b]"], r"urls.1 must begin with http:// or https:// and name a host"),
        (["engine.urls=[http://a, '']"], r"urls.1 must begin with"),
        (["engine.urls=[http://a, 'http://b:port']"], r"urls.1 must begin with"),
        (["engine.urls=[http://a, 'http://user:pass@b']"], r"urls.1 contains a user or password"),
        (["engine.urls=[http://a, 'http://a:80/v1/']"], "urls.1 is the same server as engine.urls.0"),
        (["engine.urls=[http://a, 'http://b..c:80']"], r"urls.1 must begin with"),
        (["engine.urls=[http://a, 'http://b c:80']"], r"urls.1 must begin with"),
        (["engine.urls=[http://a, 'http://b/\u00e9']"], r"urls.1 must begin with"),
        (["engine.urls=[http://a, 'http://b/v1?x=1']"], r"urls.1 has a query \(\?\) or a fragment \(#\)"),
        (["engine.urls=[http://a, 7]"], r"urls.1 is 7"),
        (["engine.urls=[{ulr: 'http://a'}]"], "unknown key 'engine.urls.0.ulr'; did you mean 'url'"),
        (["engine.urls=[{url: 'http://a', served: {bass: x}}]"], "served has an entry .bass."),
        (["engine.urls=[{url: 'http://a', slots: 0}]"], r"urls.0.slots is 0"),
    ],
)  # fmt: skip
def test_invalid_addresses_are_refused_before_the_run_is_created(settings: list[str], message: str, tmp_path: Path):
    import selfalign

    with pytest.raises(UserError, match=message) as caught:
        selfalign.create("quick", tmp_path / "run", settings=settings)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_many_servers_write_the_same_files_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "c.yaml").write_text(SMALL_CONSTITUTION, "utf-8")
    (tmp_path / "mine.txt").write_text("".join(f"Name {n} rivers.\n" for n in range(2, 26)), "utf-8")
    outputs: list[dict[str, bytes]] = []
    with fleet(0.001, 0.003, 0.002) as servers:
        urls = "[" + ", ".join(s.url for s in servers) + "]"
        for name, where in (("one", f"engine.url={servers[0].url}"), ("many", f"engine.urls={urls}")):
            settings = [
                where,
                "engine.served.base=m",
                f"prompts.file={tmp_path / 'mine.txt'}",
                "stages=[prompts, align]",
            ]
            recipe = recipes.located(recipes.load("quick", settings))
            run_dir = RunDir.create(tmp_path / name, recipe, constitutions.load(str(tmp_path / "c.yaml")))
            context = Context(run_dir, Screen(0))
            order.run_all(context)
            context.release_engine()
            raw = context.journal._read("SELECT key, raw FROM work ORDER BY key")
            context.journal.close()
            outputs.append(
                {"raw": json.dumps(raw).encode()}
                | {f: (tmp_path / name / f).read_bytes() for f in ("2_self_align/responses.jsonl", "drops.jsonl")}
            )
        assert all(s.prompts for s in servers)
    assert outputs[0] == outputs[1] and outputs[0]["drops.jsonl"]


@pytest.mark.slow
def test_stage_two_on_two_real_llama_cpp_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "c.yaml").write_text(SMALL_CONSTITUTION, "utf-8")
    (tmp_path / "mine.txt").write_text("".join(f"Name {n} rivers.\n" for n in range(2, 8)), "utf-8")
    gguf = sources.resolve("embedded").gguf
    assert gguf is not None
    one, two = (LlamaCpp(gguf, {}, slots=2, context=2048, threads=1) for _ in range(2))
    try:
        monkeypatch.setenv("ONE_KEY", one._key)
        monkeypatch.setenv("TWO_KEY", two._key)
        urls = (
            f"[{{url: '{one._server.listening_address}', key_env: ONE_KEY}}, "
            f"{{url: '{two._server.listening_address}', key_env: TWO_KEY}}]"
        )
        settings = [
            f"engine.urls={urls}", "engine.served.base=any", "engine.slots=2", "stages=[prompts, align]",
            f"prompts.file={tmp_path / 'mine.txt'}", "align.max_new_tokens=24",
        ]  # fmt: skip
        recipe = recipes.located(recipes.load("quick", settings))
        run_dir = RunDir.create(tmp_path / "run", recipe, constitutions.load(str(tmp_path / "c.yaml")))
        context = Context(run_dir, Screen(0))
        order.run_all(context)
        counts = context.journal.counts("align")
        note = context.engine().note
        context.release_engine()
        context.journal.close()
    finally:
        one.close()
        two.close()
    assert counts.rows_in == 6 and counts.generation.requests == 6 and counts.generation.generated_tokens > 60
    lines = [line.split(": ", 1)[1] for line in note.splitlines()]
    assert len(lines) == 2 and all(int(line.split()[0]) >= 3 and "error" not in line for line in lines), note
    output = " ".join(capsys.readouterr().err.split())
    assert "engine openai (engine.urls is set), 4 requests at once" in output and lines[0] in output
    secrets = one._key.encode(), two._key.encode()
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and any(s in f.read_bytes() for s in secrets)]
