"""Requests are parsed, and responses built, in the format of OpenAI's API."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.data.prompt_text import Turn
from selfalign.web.guard import RequestError
from selfalign.web.serve import openai_api, request_fields
from selfalign.web.serve.openai_api import ChatRequest, Choice, CompletionRequest, ResponseBuilder, Usage, parse

MAX_TOKENS = 100
USER = {"role": "user", "content": "Hello"}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "final", "messages": [USER], **fields}).encode()


def chat(**fields: Any) -> ChatRequest:
    return parse(ChatRequest, body(**fields), MAX_TOKENS)


def completion(**fields: Any) -> CompletionRequest:
    return parse(CompletionRequest, json.dumps({"model": "base", **fields}).encode(), MAX_TOKENS)


def refusal(sent: bytes, kind: Any = ChatRequest) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(kind, sent, MAX_TOKENS)
    assert caught.value.status == 400
    assert json.loads(caught.value.body())["error"]["message"]
    return caught.value


def test_minimal_request_leaves_options_to_the_server():
    request = chat()
    assert request.turns == [Turn("user", "Hello")]
    assert (request.system, request.style, request.n, request.stream, request.include_usage) == (
        None, None, 1, False, False,
    )  # fmt: skip
    assert (request.stop, request.seed, request.temperature, request.top_p, request.max_tokens) == (
        [], None, None, None, None,
    )  # fmt: skip


def test_byte_order_mark_before_the_body_is_ignored():
    assert openai_api.parse(ChatRequest, b"\xef\xbb\xbf" + body(), 100).model == "final"


def test_every_option_is_parsed():
    request = chat(
        stream=True, stream_options={"include_usage": True}, stop=["a", "b"], n=2, seed=-3, temperature=0, top_p=1,
        max_completion_tokens=9, max_tokens=9, style="concise",
    )  # fmt: skip
    assert (request.model, request.n, request.stream, request.include_usage) == ("final", 2, True, True)
    assert (request.stop, request.seed, request.temperature, request.top_p) == (["a", "b"], -3, 0.0, 1.0)
    assert (request.max_tokens, request.style) == (9, "concise")
    assert chat(stop="###").stop == ["###"]
    assert chat(max_tokens=5).max_tokens == chat(max_completion_tokens=5).max_tokens == 5
    assert chat(stop=None, n=None, seed=None, tools=None).n == 1


def test_messages_become_turns_and_a_system_prompt():
    messages = [
        {"role": "system", "content": " Be brief. "},
        {"role": "developer", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "kind."}]},
        USER,
        {"role": "assistant", "content": "Hi", "refusal": None, "tool_calls": [], "reasoning_content": "Hm."},
        {"role": "user", "content": "half \ud800 <eos>"},
    ]
    request = chat(messages=messages)
    assert request.system == "Be brief. \n\nAnd kind."
    assert request.turns == [Turn("user", "Hello"), Turn("assistant", "Hi"), Turn("user", "half ? <eos>")]
    assert chat(messages=[{"role": "system", "content": " \n"}, USER]).system is None


NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0, "presence_penalty": 0.0, "logprobs": False, "top_logprobs": 0, "logit_bias": {},
    "tools": [],
    "tool_choice": "auto", "parallel_tool_calls": True, "response_format": {"type": "text"}, "store": False,
    "user": "me", "metadata": {"a": "b"}, "litellm_call_id": "1", "service_tier": "auto",
    "min_p": 0.0, "repetition_penalty": 1.0,
    "ignore_eos": False, "grammar": "", "lora": None, "stream_options": {"include_usage": True},
}  # fmt: skip
ASKING: dict[str, Any] = {
    "frequency_penalty": 0.5, "presence_penalty": -1, "logprobs": True, "top_logprobs": 3, "logit_bias": {"5": 1},
    "tools": [{"type": "function"}], "tool_choice": "required", "functions": [{}], "store": True,
    "response_format": {"type": "json_object"}, "modalities": ["audio"], "echo": True, "best_of": 2, "suffix": "x",
    "min_p": 0.1, "repetition_penalty": True, "ignore_eos": 0, "grammar": "root ::= .", "reasoning_effort": "low",
    "adapter_id": 1, "chat_template_kwargs": {"enable_thinking": False}, "do_sample": False,
}  # fmt: skip


@pytest.mark.parametrize("name", NEUTRAL)
def test_field_without_effect_is_accepted(name: str):
    assert chat(**{name: NEUTRAL[name]}).model == "final"


@pytest.mark.parametrize("name", ASKING)
def test_unsupported_field_is_refused_by_name(name: str):
    error = refusal(body(**{name: ASKING[name]}))
    assert (error.param, error.code) == (name, "unsupported_parameter")


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("model", {"model": None}), ("model", {"model": 3}), ("model", {"model": ["final"]}),
    ("n", {"n": 0}), ("n", {"n": 9}), ("n", {"n": True}), ("n", {"n": 1.0}), ("n", {"n": "1"}),
    ("stream", {"stream": 1}), ("top_k", {"top_k": -2}), ("top_k", {"top_k": 1.5}),
    ("stream_options.include_usage", {"stream": True, "stream_options": {"include_usage": 1}}),
    ("stop[0]", {"stop": ""}), ("stop[0]", {"stop": [""]}), ("stop", {"stop": ["a"] * 5}), ("stop", {"stop": 3}),
    ("stop", {"stop": {"a": 1}}), ("stop[0]", {"stop": "x" * 257}), ("seed", {"seed": 2**63}), ("seed", {"seed": 0.5}),
    ("temperature", {"temperature": -0.1}), ("temperature", {"temperature": 2.1}),
    ("temperature", {"temperature": "1"}), ("temperature", {"temperature": 10**400}), ("top_p", {"top_p": -(10**400)}),
    ("temperature", {"temperature": False}), ("top_p", {"top_p": 1.01}), ("max_tokens", {"max_tokens": 0}),
    ("max_tokens", {"max_tokens": 101}), ("max_tokens", {"max_tokens": 1, "max_completion_tokens": 2}),
    ("messages", {"messages": []}), ("messages", {"messages": "Hello"}), ("messages", {"messages": None}),
    ("messages", {"messages": [USER] * 257}), ("messages", {"messages": [{"role": "system", "content": "x"}]}),
    ("messages", {"messages": [USER, {"role": "assistant", "content": "x"}]}),
    ("messages[1]", {"messages": [USER, {"role": "system", "content": "x"}, USER]}),
    ("messages[0]", {"messages": ["Hello"]}), ("messages[0].role", {"messages": [{"content": "x"}]}),
    ("messages[0].role", {"messages": [{"role": "tool", "content": "x"}]}),
    ("messages[0].role", {"messages": [{"role": ["user"], "content": "x"}]}),
    ("messages[0].content", {"messages": [{"role": "user"}]}),
    ("messages[0].content", {"messages": [{"role": "user", "content": 3}]}),
    ("messages[0].content[0].type", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
    ("messages[0].content[1]", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, 3]}]}),
    ("messages[0].content", {"messages": [{"role": "user", "content": None}]}),
    ("messages[0].images", {"messages": [{**USER, "images": ["x"]}]}),
    ("messages[1].prefix", {"messages": [USER, {"role": "assistant", "content": "x", "prefix": True}]}),
    ("messages[0].reasoning_content", {"messages": [{**USER, "reasoning_content": "x"}]}),
    ("messages[0].tool_calls", {"messages": [{**USER, "tool_calls": [{}]}]}),
    ("style", {"style": "loud"}), ("style", {"style": ["standard"]}),
    ("style", {"style": "concise", "messages": [{"role": "system", "content": "x"}, USER]}),
    ("lora", {"lora": [{"id": 0}]}), ("adapter_path", {"adapter_path": "/etc/passwd"}),
    ("chat_template", {"chat_template": "x"}),
    ("prompt", {"prompt": "x"}),
]  # fmt: skip


def test_error_names_all_unsupported_fields():
    error = refusal(body(grammar="root ::= .", top_k=5, dry_multiplier=1.0, ignore_eos=True))
    assert error.message == "grammar, dry_multiplier, ignore_eos are not supported by this server"


def test_bookkeeping_is_ignored_and_named():
    ignored: list[str] = []
    assistant = {"role": "assistant", "content": None, "id": "x", "tool_calls": None}
    messages = [
        {"role": "system", "content": None}, {**USER, "name": "bob", "type": "text"}, assistant, {**USER, "opts": {}},
    ]  # fmt: skip
    sent = body(messages=messages, chat_id="a", sessionId="b", user={"id": 1}, keep_alive="5m", seed=3)
    request = parse(ChatRequest, sent, MAX_TOKENS, ignored.append)
    assert (request.system, request.seed) == (None, 3)
    assert request.turns == [Turn("user", "Hello"), Turn("assistant", ""), Turn("user", "Hello")]
    assert ignored == [
        "chat_id", "sessionId", "user", "keep_alive", "messages.name", "messages.type", "messages.id",
    ]  # fmt: skip


@pytest.mark.parametrize("value", [0, -1, 20])
def test_top_k_is_a_setting_of_the_request(value: int):
    assert chat(top_k=value).top_k == completion(prompt="x", top_k=value).top_k == value


@pytest.mark.parametrize(("param", "fields"), WRONG)
def test_error_names_the_wrong_field(param: str, fields: dict[str, Any]):
    assert refusal(body(**fields)).param == param


@pytest.mark.parametrize(
    "sent",
    [b"", b"{", b"[]", b"3", b"null", b'"x"', b"\xff\xfe", b"NaN", b'{"model": Infinity}', b"[" * 100_000,
     b'{"seed": ' + b"9" * 5000 + b"}", b'{"a":' * 50_000, b'{"model": "final", "temperature": 1e999}'],
)  # fmt: skip
def test_body_that_is_not_a_json_object_is_refused(sent: bytes):
    refusal(sent)
    refusal(sent, CompletionRequest)


def test_completion_prompts_are_parsed():
    assert completion(prompt="Once").prompt == ["Once"]
    assert completion(prompt=["a", "b"], n=4, best_of=1, echo=False).prompt == ["a", "b"]
    assert completion(prompt="").prompt == [""]
    assert completion(prompt=["half \ud800"]).prompt == ["half ?"]
    assert "token ids" in refusal(json.dumps({"model": "base", "prompt": [[1]]}).encode(), CompletionRequest).message
    for wrong in ({}, {"prompt": []}, {"prompt": [1, 2]}, {"prompt": [[1]]}, {"prompt": ["a", "b"], "n": 5}):
        with pytest.raises(RequestError):
            completion(**wrong)
    with pytest.raises(RequestError):
        completion(prompt="a", messages=[USER])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = {*ChatRequest.model_fields, *request_fields.NEUTRAL, "prompt", "max_completion_tokens"}
FIELDS = st.sampled_from(sorted(NAMES))


@given(st.dictionaries(FIELDS, JSON, max_size=6), st.booleans())
def test_any_request_is_parsed_or_refused(value: dict[str, Any], sensible: bool):
    value = {"model": "final", "messages": [USER], "prompt": "x", **value} if sensible else value
    for kind, other in ((ChatRequest, "prompt"), (CompletionRequest, "messages")):
        try:
            sent = json.dumps({k: v for k, v in value.items() if k != other}).encode()
            request: Any = parse(kind, sent, MAX_TOKENS)  # type: ignore[type-var]
        except RequestError as error:
            assert error.status == 400
            assert json.loads(error.body())["error"]["message"]
        else:
            assert 1 <= request.n <= openai_api.MAX_CHOICES
            assert request.max_tokens is None or 1 <= request.max_tokens <= MAX_TOKENS


# -- responses ---------------------------------------------------------------------------------------------------------

BUILDER = ResponseBuilder("chatcmpl-1", 5, "final", True)


def test_response_counts_the_prompt_once_for_all_choices():
    choices = [Choice("A", "stop", Usage(10, 8, 3, 0)), Choice("B", "length", Usage(10, 9, 4, 2), thoughts="Hm.")]
    response = BUILDER.response(choices)
    assert [c["message"]["content"] for c in response["choices"]] == ["A", "B"]
    assert [c["finish_reason"] for c in response["choices"]] == ["stop", "length"]
    assert "reasoning_content" not in response["choices"][0]["message"]
    assert response["choices"][1]["message"]["reasoning_content"] == "Hm."
    assert response["usage"] == {
        "prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17, "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }  # fmt: skip
    assert "selfalign" not in response
    assert ResponseBuilder("cmpl-1", 5, "base", False).response(choices * 2, prompts=2)["usage"]["prompt_tokens"] == 20


def test_response_reports_escaped_tokens_and_forged_turns():
    choices = [
        Choice("", "stop", Usage(), escaped=("</s>",), forged=True),
        Choice("", "stop", Usage(), escaped=("</s>",)),
    ]
    assert BUILDER.response(choices)["selfalign"] == {"escaped": ["</s>"], "reads_as_turns": True}
    assert BUILDER.usage_chunk(choices)["selfalign"] == BUILDER.response(choices)["selfalign"]


def test_stream_chunks_follow_the_openai_format():
    assert BUILDER.chunk(1, None)["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert BUILDER.chunk(0, "Hi")["choices"][0]["delta"] == {"content": "Hi"}
    assert BUILDER.chunk(0, "Hm", is_thought=True)["choices"][0]["delta"] == {"reasoning_content": "Hm"}
    assert BUILDER.chunk(0, None, "stop")["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert ResponseBuilder("cmpl-1", 5, "base", False).chunk(0, "Hi")["choices"][0]["text"] == "Hi"
    assert BUILDER.usage_chunk([])["choices"] == []


@given(st.text())
def test_text_cannot_break_out_of_its_event(text: str):
    sent = openai_api.event(BUILDER.chunk(0, text))
    assert sent.startswith(b"data: ")
    assert sent.count(b"\n") == 2
    assert b"\r" not in sent
    assert json.loads(sent[6:])["choices"][0]["delta"]["content"] == text


def test_lone_surrogates_become_question_marks():
    assert openai_api.to_json({"a": "x\ud800y"}) == b'{"a":"x?y"}'
    RequestError(400, "x\ud800y").body()
