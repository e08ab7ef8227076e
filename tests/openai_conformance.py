"""Check a server of selfalign with the official client of OpenAI's API, whatever its engine."""

from __future__ import annotations

from typing import Any

import openai
import pytest

MESSAGES = [{"role": "user", "content": "What is a river?"}]


def client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)


def check(url: str, models: list[str], listed: list[str] | None = None) -> None:
    """Check chat, streams, stop, n, seed, usage, completions and errors for these models."""
    with client(url) as api:
        assert [m.id for m in api.models.list()] == (listed or models)
        for name in models:
            assert api.models.retrieve(name).id == name
            _chat(api, name)
        _text(api, models[0])
        _errors(api, models[-1])


def check_an_answer(url: str, model: str) -> None:
    """Check that the model exists and responds; `check` covers the rest with another model."""
    with client(url) as api:
        whole = api.chat.completions.create(model=model, messages=MESSAGES, temperature=0, max_tokens=12)
        assert whole.model == api.models.retrieve(model).id == model
        assert whole.choices[0].message.content


def _chat(api: openai.OpenAI, model: str) -> None:
    fixed: Any = {"model": model, "messages": MESSAGES, "temperature": 0, "max_tokens": 40, "seed": 3}
    whole = api.chat.completions.create(**fixed)
    choice, usage = whole.choices[0], whole.usage
    assert usage is not None
    text = choice.message.content
    assert (whole.object, whole.model, choice.message.role) == ("chat.completion", model, "assistant")
    assert text and text == text.strip()
    assert choice.finish_reason in ("stop", "length")
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens > 10
    assert (choice.finish_reason == "length") <= (usage.completion_tokens >= 40)

    pieces, finish, counted = [], None, None
    with api.chat.completions.create(**fixed, stream=True, stream_options={"include_usage": True}) as stream:
        for event in stream:
            counted = event.usage or counted
            for part in event.choices:
                pieces.append(part.delta.content or "")
                finish = part.finish_reason or finish
    # The numbers of a batch differ in their last digits, so later tokens may differ.
    assert "".join(pieces)[:8] == text[:8]
    assert finish in ("stop", "length")
    assert counted is not None
    assert counted.prompt_tokens == usage.prompt_tokens

    cut = api.chat.completions.create(**fixed, stop=[text[3:6], "never said"]).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.message.content == text[: text.find(text[3:6])].strip()

    several = api.chat.completions.create(model=model, messages=MESSAGES, n=3, temperature=1.5, max_tokens=12, seed=1)
    assert [c.index for c in several.choices] == [0, 1, 2]
    assert len({c.message.content for c in several.choices}) > 1
    assert several.usage is not None
    assert several.usage.completion_tokens <= 3 * 12 + 3 * 200  # the prompted base thinks first


def _text(api: openai.OpenAI, model: str) -> None:
    completion = api.completions.create(model=model, prompt="One, two, three,", max_tokens=5, temperature=0, seed=3)
    assert completion.object == "text_completion"
    assert completion.choices[0].text
    assert completion.usage is not None
    assert completion.usage.completion_tokens <= 6
    with api.completions.create(
        model=model, prompt="One, two, three,", max_tokens=5, temperature=0, seed=3, stream=True
    ) as stream:
        assert "".join(event.choices[0].text for event in stream)[:2] == completion.choices[0].text[:2]


def _errors(api: openai.OpenAI, model: str) -> None:
    fine: dict[str, Any] = {"model": model, "messages": MESSAGES, "max_tokens": 4}
    wrong: list[tuple[dict[str, Any], type[openai.APIStatusError], str | None]] = [
        ({"model": "other"}, openai.NotFoundError, "model"),
        ({"temperature": 9}, openai.BadRequestError, "temperature"),
        ({"n": 99}, openai.BadRequestError, "n"),
        ({"logprobs": True}, openai.BadRequestError, "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"extra_body": {"lora": [{"id": 0, "scale": 1}]}}, openai.BadRequestError, "lora"),
    ]
    for more, kind, param in wrong:
        with pytest.raises(kind) as caught:
            api.chat.completions.create(**{**fine, **more})
        assert caught.value.param == param
        assert caught.value.type == "invalid_request_error"
    for stream in (False, True):  # streams get the same status and format
        with pytest.raises(openai.BadRequestError):
            api.chat.completions.create(**{**fine, "max_tokens": 10**6, "stream": stream})


def check_length(url: str, model: str) -> None:
    """Check that a dialogue beyond the context is an error with the code context_length_exceeded."""
    with client(url) as api, pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(model=model, messages=[{"role": "user", "content": "word " * 20_000}])
    assert caught.value.code == "context_length_exceeded"
