"""Requests and answers in OpenAI's form: what passes, what is refused by name, what an answer holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.data.prompt_text import Turn
from selfalign.web.guard import Refused
from selfalign.web.serve import openai_answer as answers
from selfalign.web.serve import openai_request as requests
from selfalign.web.serve.openai_answer import Choice, Head, Usage
from selfalign.web.serve.openai_request import Limits

LIMITS = Limits(tokens=100)
USER = {"role": "user", "content": "Hello"}


def body(**more: Any) -> bytes:
    return json.dumps({"model": "final", "messages": [USER], **more}).encode()


def refusal(sent: bytes, parse: Any = requests.chat) -> Refused:
    with pytest.raises(Refused) as caught:
        parse(sent, LIMITS)
    assert caught.value.status == 400
    json.loads(caught.value.body())
    return caught.value


def test_a_plain_request_leaves_everything_to_the_server():
    found = requests.chat(body(), LIMITS)
    assert found.turns == (Turn("user", "Hello"),)
    assert (found.system, found.style) == (None, None)
    assert found.options == requests.Options("final", 1, False, False, (), None, None, None, None)


def test_every_option_is_read():
    found = requests.chat(
        body(
            stream=True,
            stream_options={"include_usage": True},
            stop=["a", "b", "a"],
            n=2,
            seed=-3,
            temperature=0,
            top_p=1,
            max_completion_tokens=9,
            max_tokens=9,
            style="concise",
        ),
        LIMITS,
    )
    assert found.options == requests.Options("final", 2, True, True, ("a", "b"), -3, 0.0, 1.0, 9)
    assert found.style == "concise"
    assert requests.chat(body(stop="###"), LIMITS).options.stop == ("###",)
    assert requests.chat(body(max_tokens=5), LIMITS).options.max_tokens == 5
    assert requests.chat(body(stop=None, n=None, seed=None, tools=None), LIMITS).options.n == 1


def test_messages_become_turns_and_a_system_text():
    messages = [
        {"role": "system", "content": " Be brief. "},
        {"role": "developer", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "kind."}]},
        USER,
        {"role": "assistant", "content": "Hi", "refusal": None, "tool_calls": [], "reasoning_content": "Hm."},
        {"role": "user", "content": "half \ud800 <eos>"},
    ]
    found = requests.chat(body(messages=messages), LIMITS)
    assert found.system == "Be brief. \n\nAnd kind."
    assert found.turns == (Turn("user", "Hello"), Turn("assistant", "Hi"), Turn("user", "half ? <eos>"))
    assert requests.chat(body(messages=[{"role": "system", "content": " \n"}, USER]), LIMITS).system is None


NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0, "presence_penalty": 0.0, "logprobs": False, "top_logprobs": 0, "logit_bias": {},
    "tools": [],
    "tool_choice": "auto", "parallel_tool_calls": True, "response_format": {"type": "text"}, "store": False,
    "user": "me", "metadata": {"a": "b"}, "service_tier": "auto",
}  # fmt: skip
ASKING: dict[str, Any] = {
    "frequency_penalty": 0.5, "presence_penalty": -1, "logprobs": True, "top_logprobs": 3, "logit_bias": {"5": 1},
    "tools": [{"type": "function"}], "tool_choice": "required", "functions": [{}], "store": True,
    "response_format": {"type": "json_object"}, "modalities": ["audio"], "echo": True, "best_of": 2, "suffix": "x",
}  # fmt: skip


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_field_that_asks_for_nothing_passes(name: str):
    assert requests.chat(body(**{name: NEUTRAL[name]}), LIMITS).options.model == "final"


@pytest.mark.parametrize("name", ASKING)
def test_what_is_not_supported_is_refused_by_name(name: str):
    error = refusal(body(**{name: ASKING[name]}))
    assert (error.param, error.code) == (name, "unsupported_parameter")


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("model", {"model": None}), ("model", {"model": 3}), ("model", {"model": ["final"]}),
    ("n", {"n": 0}), ("n", {"n": 9}), ("n", {"n": True}), ("n", {"n": 1.0}), ("n", {"n": "1"}),
    ("stream", {"stream": 1}), ("stream_options", {"stream_options": {}}),
    ("stream_options", {"stream": True, "stream_options": {"x": 1}}),
    ("stream_options", {"stream": True, "stream_options": {"include_obfuscation": True}}),
    ("include_usage", {"stream": True, "stream_options": {"include_usage": 1}}),
    ("stop", {"stop": ""}), ("stop", {"stop": [""]}), ("stop", {"stop": ["a"] * 5}), ("stop", {"stop": 3}),
    ("stop", {"stop": {"a": 1}}), ("stop", {"stop": "x" * 257}), ("seed", {"seed": 2**63}), ("seed", {"seed": 0.5}),
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
    ("messages[0].content[0]", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
    ("messages[0].content[1]", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, 3]}]}),
    ("messages[0].name", {"messages": [{**USER, "name": "me"}]}),
    ("messages[0].reasoning_content", {"messages": [{**USER, "reasoning_content": "x"}]}),
    ("messages[0].tool_calls", {"messages": [{**USER, "tool_calls": [{}]}]}),
    ("style", {"style": "loud"}), ("style", {"style": ["standard"]}),
    ("style", {"style": "concise", "messages": [{"role": "system", "content": "x"}, USER]}),
    ("lora", {"lora": [{"id": 0}]}), ("adapter_path", {"adapter_path": "/etc/passwd"}),
    ("chat_template", {"chat_template": "x"}),
    ("prompt", {"prompt": "x"}),
]  # fmt: skip


@pytest.mark.parametrize(("param", "more"), WRONG)
def test_a_wrong_value_is_named(param: str, more: dict[str, Any]):
    assert refusal(body(**more)).param == param


@pytest.mark.parametrize(
    "sent",
    [b"", b"{", b"[]", b"3", b"null", b'"x"', b"\xff\xfe", b"NaN", b'{"model": Infinity}', b"[" * 100_000,
     b'{"seed": ' + b"9" * 5000 + b"}", b'{"a":' * 50_000, b'{"model": "final", "temperature": 1e999}'],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(sent: bytes):
    refusal(sent)
    refusal(sent, requests.text)


def test_plain_prompts():
    def ask(**more: Any) -> requests.Text:
        return requests.text(json.dumps({"model": "base", **more}).encode(), LIMITS)

    assert ask(prompt="Once").prompts == ("Once",)
    assert ask(prompt=["a", "b"], n=4, best_of=1, echo=False).prompts == ("a", "b")
    assert ask(prompt="").prompts == ("",)
    assert ask(prompt=["half \ud800"]).prompts == ("half ?",)
    for wrong in ({}, {"prompt": []}, {"prompt": [1, 2]}, {"prompt": [[1]]}, {"prompt": ["a", "b"], "n": 5}):
        with pytest.raises(Refused):
            ask(**wrong)
    with pytest.raises(Refused):
        ask(prompt="a", messages=[USER])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [*requests._COMMON, *requests._NEUTRAL, "messages", "prompt", "style", "max_completion_tokens"]
)


@given(st.dictionaries(FIELDS, JSON, max_size=6), st.booleans())
def test_whatever_comes_is_parsed_or_refused(value: dict[str, Any], sensible: bool):
    value = {"model": "final", "messages": [USER], "prompt": "x", **value} if sensible else value
    for parse, other in ((requests.chat, "prompt"), (requests.text, "messages")):
        try:
            found = parse(json.dumps({k: v for k, v in value.items() if k != other}).encode(), LIMITS)
        except Refused as refused:
            assert refused.status == 400
            assert json.loads(refused.body())["error"]["message"]
        else:
            assert 1 <= found.options.n <= LIMITS.n
            assert found.options.max_tokens is None or 1 <= found.options.max_tokens <= LIMITS.tokens


# -- answers -----------------------------------------------------------------------------------------------------------

HEAD = Head("chatcmpl-1", 5, "final", True)


def test_an_answer_holds_its_choices_and_counts_the_prompt_once():
    made = [Choice("A", "stop", Usage(10, 8, 3, 0)), Choice("B", "length", Usage(10, 9, 4, 2), thoughts="Hm.")]
    found = HEAD.whole(made)
    assert [c["message"]["content"] for c in found["choices"]] == ["A", "B"]
    assert [c["finish_reason"] for c in found["choices"]] == ["stop", "length"]
    assert "reasoning_content" not in found["choices"][0]["message"]
    assert found["choices"][1]["message"]["reasoning_content"] == "Hm."
    assert found["usage"] == {
        "prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17, "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }  # fmt: skip
    assert "selfalign" not in found
    assert Head("cmpl-1", 5, "base", False).whole(made * 2, prompts=2)["usage"]["prompt_tokens"] == 20


def test_what_became_of_the_text_is_said():
    made = [
        Choice("", "stop", Usage(), neutralised=("</s>",), forged=True),
        Choice("", "stop", Usage(), neutralised=("</s>",)),
    ]
    assert HEAD.whole(made)["selfalign"] == {"neutralised": ["</s>"], "reads_as_turns": True}
    assert HEAD.last(made)["selfalign"] == HEAD.whole(made)["selfalign"]


def test_the_events_of_a_stream():
    assert HEAD.chunk(1, None)["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert HEAD.chunk(0, "Hi")["choices"][0]["delta"] == {"content": "Hi"}
    assert HEAD.chunk(0, "Hm", thought=True)["choices"][0]["delta"] == {"reasoning_content": "Hm"}
    assert HEAD.chunk(0, None, "stop")["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert Head("cmpl-1", 5, "base", False).chunk(0, "Hi")["choices"][0]["text"] == "Hi"
    assert HEAD.last([])["choices"] == []


@given(st.text())
def test_no_text_breaks_out_of_its_event(text: str):
    sent = answers.event(HEAD.chunk(0, text))
    assert sent.startswith(b"data: ")
    assert sent.count(b"\n") == 2
    assert b"\r" not in sent
    assert json.loads(sent[6:])["choices"][0]["delta"]["content"] == text


def test_half_characters_do_not_stop_an_answer():
    assert answers.as_json({"a": "x\ud800y"}) == b'{"a":"x?y"}'
    Refused(400, "x\ud800y").body()
