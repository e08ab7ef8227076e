"""Servers get token ids if they read them as the tokenizer does, otherwise text with escaped control tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import byte_tokenizer
from fault_server import GOOD, STEP, FaultServer, Handler, engine, serving
from sample_constitutions import GOOD as SMALL_CONSTITUTION
from selfalign import constitution as constitutions
from selfalign.data.prompt_text import BOS, Control
from selfalign.errors import Resumable
from selfalign.generation.engines.base import Completion, Part, Request, RowError, Sampling, Step
from selfalign.generation.engines.llama_cpp import LlamaCpp
from selfalign.generation.engines.openai_api import OpenAiApi
from selfalign.generation.loop import JournaledEngine, RowRequest
from selfalign.generation.retries import RetryPolicy
from selfalign.generation.settings import EngineSettings
from selfalign.model import sources
from selfalign.model.dialogue import Tokenizer, as_text
from selfalign.pipeline import order
from selfalign.report import terminal
from selfalign.report.status import status
from selfalign.run import recipe as recipes
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.run.journal import Journal
from selfalign.system.console import Screen

pytestmark = pytest.mark.integration

SPECIAL = ["<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
PROMPT = (BOS, Control("<|im_start|>user\n"), "say <|im_end|>, <eos> and </s>", Control("<|im_end|>"))
AS_TEXT = "<|im_start|>user\nsay < |im_end|>, < eos> and < /s><|im_end|>"
BROKEN = ("<|im_end|>", "<eos>", "</s>")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(str(byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), SPECIAL)), "<bos>")


class Tokens(Handler):
    """A server with its own tokenizer; `choose` returns its kind."""

    def do_POST(self) -> None:
        server: FaultServer = self.server  # type: ignore[assignment]
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server.requests.append((body, {"path": self.path}))
        kind = server.choose(self.path) or ""
        if kind.isdigit():
            return self.reply(int(kind), b"{}")
        if self.path.endswith("/detokenize"):
            return self.detokenize(kind, body["tokens"])
        if not isinstance(body["prompt"], str) and kind == "refuses":
            return self.fault_400()
        count = len(body["prompt"]) + (kind == "miscounts")
        self.reply(200, json.dumps({**GOOD, "usage": {"prompt_tokens": count, "completion_tokens": 2}}).encode())

    def detokenize(self, kind: str, ids: list[int]) -> None:
        own: Tokenizer = self.server.tokenizer  # type: ignore[attr-defined]
        if kind in ("html", "list", "null", "nested"):
            raw = {"html": "<html>", "list": "[]", "null": '{"content": null}', "nested": "[" * 100_000}[kind]
            return self.reply(200, raw.encode())
        if kind == "other":
            ids = [(i + 1) % 200 for i in ids]
        if kind == "vllm":
            ids = [i for i in ids if i not in own.controls()]
        self.reply(200, json.dumps({"prompt" if kind == "vllm" else "content": own.text(ids)}).encode())


def tokens(server: FaultServer, tokenizer: Tokenizer) -> FaultServer:
    server.tokenizer = tokenizer  # type: ignore[attr-defined]
    return server


@pytest.mark.parametrize("kind", ["llama", "vllm"])
def test_server_that_reads_the_ids_gets_ids(tokenizer: Tokenizer, kind: str):
    with serving(lambda _: kind, Tokens) as server:
        api = engine(tokens(server, tokenizer), tokenizer=tokenizer)
        biased = Step(Sampling(0.0, 1.0, 4, bias=((" no", -9.0), (Control("<eos>"), 2.0))))
        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(lambda _: api.generate(PROMPT, biased, 0, None), range(20)))
        sent = [body for body, at in server.requests if at["path"].endswith("completions")][1:]
        assert len(server.requests) == 22, "checked once, by /detokenize and one token"
    assert all(body["prompt"] == tokenizer.encode(PROMPT) for body in sent) and len(sent) == 20
    assert all(body["logit_bias"] == {str(tokenizer.ids(" no")[0]): -9.0, "257": 2.0} for body in sent)
    assert tokenizer.first(Control("<eos>")) == 257
    assert not any(part.escaped for part in parts) and api.note == ""


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("404", "/detokenize: 404"),
        ("501", "/detokenize: 501"),
        ("302", "/detokenize: 302"),
        ("html", "/detokenize: 200"),
        ("list", "/detokenize: 200"),
        ("null", "/detokenize: 200"),
        ("nested", "/detokenize: 200"),
        ("other", "its vocabulary is not the model's"),
        ("refuses", "refuses token ids"),
        ("miscounts", "tokens in a prompt of"),
    ],
)
def test_other_servers_get_text_with_escaped_control_tokens(tokenizer: Tokenizer, kind: str, why: str):
    def choose(path: str) -> str | None:
        return kind if not kind.isdigit() or path.endswith("/detokenize") else None

    with serving(choose, Tokens) as server:
        api = engine(tokens(server, tokenizer), tokenizer=tokenizer)
        part = api.generate(PROMPT, STEP, 0, None)
        assert server.requests[-1][0]["prompt"] == AS_TEXT
        calls = len(server.requests)
        api.generate((BOS, "harmless"), STEP, 0, None)
        assert len(server.requests) == calls + 1
    assert (part.text, part.escaped) == (" fine", BROKEN)
    assert api.note.startswith("the server gets text: ") and why in api.note


def test_common_control_tokens_are_escaped_without_a_tokenizer():
    with serving(lambda _: None, Tokens) as server:
        api = engine(server)
        assert api.generate(PROMPT, STEP, 0, None).escaped == BROKEN
        assert [body["prompt"] for body, _ in server.requests] == [AS_TEXT]
    assert "does not have the model's tokenizer" in api.note


def test_busy_or_dead_server_leaves_ids_undecided(tokenizer: Tokenizer):
    replies = iter(["503", "429", "llama", "llama", "llama"])
    with serving(lambda _: next(replies), Tokens) as server:
        api = engine(tokens(server, tokenizer), tokenizer=tokenizer)
        api.generate(PROMPT, STEP, 0, None)
        assert server.requests[-1][0]["prompt"] == tokenizer.encode(PROMPT)
    with serving(lambda _: "503", Tokens) as server:
        api = engine(
            tokens(server, tokenizer),
            RetryPolicy(attempts=2, first_wait=0.001, longest_wait=0.001),
            tokenizer=tokenizer,
        )
        with pytest.raises(RowError, match="503"):
            api.generate(PROMPT, STEP, 0, None)
        server.choose = lambda _: "llama"
        api.generate(PROMPT, STEP, 0, None)
        assert server.requests[-1][0]["prompt"] == tokenizer.encode(PROMPT)


def test_wrong_key_stops_the_run_and_a_path_before_v1_is_kept(tokenizer: Tokenizer):
    with serving(lambda _: "401", Tokens) as server, pytest.raises(Resumable, match="check the key"):
        engine(tokens(server, tokenizer), tokenizer=tokenizer).generate(PROMPT, STEP, 0, None)
    with serving(lambda _: "llama", Tokens) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/models/a/v1/"
        engine(tokens(server, tokenizer), tokenizer=tokenizer, url=url).generate(PROMPT, STEP, 0, None)
        paths = [at["path"] for _, at in server.requests]
    assert paths == ["/models/a/detokenize", "/models/a/v1/completions", "/models/a/v1/completions"]


# -- the flag's way to the user ------------------------------------------------------------------------------------


def test_escaped_tokens_are_stored_only_if_there_are_any():
    plain, flagged = Part("a", "end"), Part("b", "end", escaped=("<eos>", "</s>"))
    done = Completion((plain, flagged, Part("c", "end", escaped=("<eos>",))))
    assert done.escaped == ("<eos>", "</s>")
    assert "neutralised" not in Completion((plain,)).to_json()[0]  # old name
    assert Completion.from_json(json.loads(json.dumps(done.to_json()))) == done


def test_journal_lists_rows_with_escaped_tokens(tmp_path: Path, tokenizer: Tokenizer):
    texts = ["fine", "an <eos> here", "fine too", "<|im_end|><eos>"]
    works = [RowRequest(f"r{n}", Request((BOS, text), (STEP, STEP), n)) for n, text in enumerate(texts)]
    journal = Journal(tmp_path / "j.sqlite")
    with serving(lambda path: "404" if path.endswith("/detokenize") else None, Tokens) as server:
        for _ in range(2):  # the second time from the journal
            api = engine(tokens(server, tokenizer), tokenizer=tokenizer)
            outcomes = JournaledEngine(api, journal, "align", {None: "m"}).generate(works)
            assert all(o.completion for o in outcomes)
            assert journal.escaped("align") == {"r1": ["<eos>"], "r3": ["<|im_end|>", "<eos>"]}
            assert journal.counts("align").as_dict()["neutralised"] == 2  # old name
            assert journal.escaped("verbose_cloning") == {}
    journal.close()


def test_run_reports_rows_with_escaped_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "c.yaml").write_text(SMALL_CONSTITUTION, "utf-8")
    (tmp_path / "mine.txt").write_text(
        "Name three rivers.\nExplain the token </s> to my sister.\nName two lakes.\n", "utf-8"
    )
    with serving(lambda path: "404" if path.endswith("/detokenize") else None, Tokens) as server:
        settings = [
            f"engine.url=http://127.0.0.1:{server.server_address[1]}", "engine.served.base=any",
            f"prompts.file={tmp_path / 'mine.txt'}", "stages=[prompts, align]", "align.samples=1",
        ]  # fmt: skip
        recipe = recipes.located(recipes.load("quick", settings))
        constitution = constitutions.load(str(tmp_path / "c.yaml"))
        context = Context(RunDir.create(tmp_path / "run", recipe, constitution), Screen(0))
        order.run_all(context)
        counts = status(context.run)
        row = next(stage for stage in counts["stages"] if stage["stage"] == "align")
        prompt = next(p for p in context.prompts() if "</s>" in p.message)
        assert row["neutralised_rows"] == {prompt.id: ["</s>"]} and row["neutralised"] == 1  # old name
        output = " ".join(capsys.readouterr().err.split())
        assert f"control tokens in the text were escaped: 1 row (first: {prompt.id};" in output
        assert "the server gets text: it does not show how it reads the model's token ids (/detokenize: 404)" in output
        terminal.show_status(context.run)
        assert "control tokens in the text of 1 row were escaped (--json lists them)" in capsys.readouterr().out
        context.release_engine()
        context.journal.close()
    sent = [body["prompt"] for body, at in server.requests if at["path"].endswith("completions")]
    assert any("Explain the token < /s> to my sister." in prompt for prompt in sent)
    assert not any("</s>" in prompt for prompt in sent)


# -- a real server -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Iterator[LlamaCpp]:
    model = sources.resolve("embedded")
    server = LlamaCpp(model.gguf, {}, slots=2, context=512, threads=0, tokenizer=model.tokenizer())
    yield server
    server.close()


def test_llama_cpp_server_gets_ids_or_escaped_text(real: LlamaCpp, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLAMA_KEY", real._key)
    url = f"{real._server.listening_address}/v1"
    config = {"kind": "openai", "url": url, "served": {"base": "any"}, "key_env": "LLAMA_KEY"}
    embedded = sources.resolve("embedded").tokenizer()
    prompt = (BOS, "User: What do <eos>, </s> and <end_of_turn> mean?\n\n" + " " * 40 + "Alma:", Control("<unused3>"))
    step = Step(Sampling(0.0, 1.0, 8))
    ids = OpenAiApi(EngineSettings.model_validate(config), 8, tokenizer=embedded)
    text = OpenAiApi(EngineSettings.model_validate(config), 8)
    try:
        mine, theirs, plain = (e.generate(prompt, step, 0, None) for e in (real, ids, text))
        biased = Step(Sampling(0.0, 1.0, 8, bias=((mine.text[:4], -100.0),)))
        assert ids.generate(prompt, biased, 0, None).text == real.generate(prompt, biased, 0, None).text != mine.text
    finally:
        ids.close()
        text.close()
    assert ids.note == ""
    assert theirs.text == mine.text
    assert theirs.prompt_tokens + theirs.cached_tokens == len(embedded.encode(prompt))
    assert plain.escaped == ("<eos>", "</s>", "<end_of_turn>")
    sent, _ = as_text(prompt)
    tokens = real._tokenize(sent, special=True, add_bos=True)
    assert [i for i in tokens if i in embedded.controls()] == [tokens[0], embedded.first(Control("<unused3>"))]
    assert plain.prompt_tokens + plain.cached_tokens == len(tokens)
