"""Judges on servers that have chats only: verdicts by a JSON schema or as plain text, limits, keys, the estimate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fault_server import GOOD, FaultServer, Handler, serving
from scripted_judges import last_answers
from selfalign.errors import Resumable
from selfalign.evaluation import judges, models
from selfalign.generation.engines.chat_api import alternatives, read_choice
from selfalign.generation.settings import EngineSettings
from selfalign.run.journal import Journal

pytestmark = pytest.mark.integration

GOOD_ANSWERS = {judges.quoted(good) for _, good, _ in judges.CERTAIN_PAIRS}


class ChatServer(Handler):
    """A server with chats only. Its judge knows the certain pairs."""

    schemas = True
    newest = False
    """Whether it is as strict as OpenAI's reasoning models: another name of the limit, no temperature, many tokens."""

    def do_POST(self) -> None:
        server: FaultServer = self.server  # type: ignore[assignment]
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server.requests.append(({"path": self.path, **body}, {k.lower(): v for k, v in self.headers.items()}))
        if self.path != "/v1/chat/completions" or body["model"] != "m":
            self.reply(404, b'{"error": {"message": "Unknown request URL or model"}}')
        elif problem := self.problem(body):
            self.reply(400, json.dumps({"error": {"message": problem}}).encode())
        else:
            self.reply(200, json.dumps(self.answer(body)).encode())

    def problem(self, body: dict[str, Any]) -> str:
        if self.newest and "max_tokens" in body:
            return "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
        if self.newest and "temperature" in body:
            return "Unsupported value: 'temperature' does not support 0.0 with this model."
        if not self.schemas and "response_format" in body:
            return "This response format type is unavailable now"
        return ""

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        first, _ = last_answers(body["messages"][0]["content"])
        text = "A" if first in GOOD_ANSWERS else "B"
        if "response_format" in body:
            text = json.dumps({"verdict": text})
        cut = self.newest and body["max_completion_tokens"] < 1000
        message = {"role": "assistant", "content": None if cut else text}
        usage = {"prompt_tokens": 400, "completion_tokens": 5}
        return {"choices": [{"message": message, "finish_reason": "length" if cut else "stop"}], "usage": usage}


class PlainServer(ChatServer):
    schemas = False


class ServerOfParts(ChatServer):
    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        reply = super().answer(body)
        message = reply["choices"][0]["message"]
        message["content"] = [{"type": "thinking", "thinking": []}, {"type": "text", "text": message["content"]}]
        return reply


class NewestServer(ChatServer):
    newest = True


def run_trial(server: FaultServer, journal: Journal, model: str = "m") -> tuple[judges.Interval, list[str]]:
    said: list[str] = []
    spec = f"J=http://127.0.0.1:{server.server_address[1]}/v1#{model}"
    with models.open_judge(spec, EngineSettings.model_validate({}), said.append) as judge:
        return judges.pair_trial(judge, journal), said


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.sqlite")


def test_verdicts_come_by_schema_and_are_stored_raw(journal: Journal):
    with serving(lambda _: None, ChatServer) as server:
        trial, said = run_trial(server, journal)
        calls = len(server.requests)
        assert run_trial(server, journal)[0] == trial and len(server.requests) == calls
    chats = [body for body, _ in server.requests if body["path"] == "/v1/chat/completions"]
    assert trial.value == 1 and len(chats) == 2 * len(judges.CERTAIN_PAIRS)
    assert chats[0].keys() == {"path", "model", "messages", "temperature", "max_tokens", "response_format"}
    schema = chats[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["verdict"]["enum"] == ["A", "B", "tie"]
    assert len(said) == 1 and "has no raw completions" in said[0]
    raw = [row[0] for row in journal._db.execute("select raw from work")]
    assert len(raw) == len(chats) and all('verdict\\": \\"' in text for text in raw)


def test_server_without_schemas_is_read_as_plain_text(journal: Journal):
    with serving(lambda _: None, PlainServer) as server:
        trial, said = run_trial(server, journal)
    assert trial.value == 1
    assert [text for text in said if "refuses response_format: without response_format, verdicts are read" in text]
    assert len(said) == 2


def test_reply_in_parts_is_read(journal: Journal):
    with serving(lambda _: None, ServerOfParts) as server:
        assert run_trial(server, journal)[0].value == 1


def test_reasoning_models_get_their_own_limit(journal: Journal):
    with serving(lambda _: None, NewestServer) as server:
        trial, said = run_trial(server, journal)
        last = server.requests[-1][0]
    assert trial.value == 1 and last["max_completion_tokens"] == 4096
    assert "temperature" not in last and "max_tokens" not in last
    assert sum("reasons before it replies" in text for text in said) == 1
    assert sum("refuses temperature" in text for text in said) == 1


def test_server_with_raw_completions_gets_no_chats(journal: Journal):
    with serving(lambda _: None) as server:
        run_trial(server, journal)
        assert all("prompt" in body for body, _ in server.requests)
        assert server.requests[0][0]["grammar"] == 'root ::= " A" | " B" | " tie"' and GOOD


def test_unknown_model_stops_the_judge(journal: Journal):
    with serving(lambda _: None, ChatServer) as server, pytest.raises(Resumable, match="returned 404: Unknown"):
        run_trial(server, journal, "other")


def test_key_of_a_judge_comes_from_the_environment(journal: Journal, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SELFALIGN_API_KEY", "canary-77")
    with serving(lambda _: None, ChatServer) as server:
        _, said = run_trial(server, journal)
    assert {headers["authorization"] for _, headers in server.requests} == {"Bearer canary-77"}
    assert "canary" not in str(said) + str(list(journal._db.iterdump()))


def test_estimate_counts_only_new_requests(journal: Journal):
    with serving(lambda _: None, ChatServer) as server:
        spec = f"J=http://127.0.0.1:{server.server_address[1]}/v1#m"
        with models.open_judge(spec, EngineSettings.model_validate({})) as judge:
            pairs = [*judges.pair_trial_pairs(), judges.AnswerPair("Why?", "So.", "x" * 4000)]
            requests = judges.pair_requests(judge, pairs)
            before = judge.estimate(journal, judges.PAIR_STAGE, requests)
            assert server.requests == []
            judges.pair_trial(judge, journal)
            after = judge.estimate(journal, judges.PAIR_STAGE, requests)
    assert "judge J: 33 new requests, about 10,8" in before and "judge J: 1 new request, about 1,3" in after


@given(st.text(max_size=40))
def test_any_reply_is_read(text: str):
    assert read_choice(json.dumps({"verdict": text})) == text
    assert read_choice(f"<think>\nA or B?</think>\n\n{text}") in (read_choice(text), text.strip())
    assert read_choice('{"verdict": "A", "other": 1}') == '{"verdict": "A", "other": 1}'
    assert isinstance(alternatives(text), list)


VERDICTS = {
    "A": "A", " b.\n": "B", "**Tie**": "tie", "`A`": "A", "(B)": "B", '```json\n{"verdict": "A"}\n```': "A",
    "A is better": "", "neither": "", "": "", "AB": "", '{"verdict": 5}': "", "C": "", "I refuse": "",
}  # fmt: skip


@pytest.mark.parametrize("text", VERDICTS)
def test_verdict_in_plain_text_is_one_of_the_choices(text: str):
    assert judges.parse_letter(text) == VERDICTS[text]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("Yes", True), ("**No**", False), ("no, it is false", False), ("Note that it is", None), ("Yesterday", None),
     ("None of it", None), ("", None), ('{"verdict": "yes"}', True)],
)  # fmt: skip
def test_truth_in_plain_text_is_a_word(text: str, verdict: bool | None):
    assert judges.parse_truth(text) is verdict


def test_alternatives_of_a_grammar_are_listed():
    assert alternatives('root ::= " yes" | " no"') == ["yes", "no"]
    assert alternatives(judges._PAIR_STEP.grammar) == ["A", "B", "tie"]
    assert alternatives('root ::= " " cite\ncite ::= "1" | "2"') == []
