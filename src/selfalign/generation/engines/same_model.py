"""Check that several servers serve the same model, before a server gets work and when it comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfalign.errors import Resumable
from selfalign.generation.engines.base import RowError
from selfalign.generation.engines.openai_api import OTHER_VOCABULARY, OpenAiApi
from selfalign.generation.retries import Transient
from selfalign.system.signals import STOP

TEXTS = (
    "The capital of France is the city of",
    "1, 1, 2, 3, 5, 8, 13,",
    "def add(a, b):\n    return a",
    "Once upon a time there was a",
    "She opened the letter, read it twice, and then",
    "Water is made of hydrogen and",
    "How are you today? she asked him, and he said: I",
    "To be polite, one should always say",
)
"""Prompts. Every model knows the next token of some; models differ on others."""
MAX_DISTANCE = 0.15
"""Mean distance above which two models differ (see `difference`). Any two of the embedded model and its two adapters
are 0.29 to 0.6 apart. The same weights on other hardware are a few hundredths apart, plus an eighth for each
prompt whose two best tokens are tied and come out in the other order."""

Answer = tuple[str, float | None]
"""The most likely next token as text, and its log-probability if the server returns it."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The answers by which a server's models are compared."""

    vocabulary: str
    """How its vocabulary differs from the model's; empty if it is the same, or was not compared."""
    answers: Mapping[str, tuple[Answer, ...]]
    """Name in the recipe's `served` -> the answers to `TEXTS`."""


def fingerprint(api: OpenAiApi, served: Mapping[str, str]) -> Fingerprint:
    """Query how a server reads the model's token ids, and how its models continue `TEXTS`.

    Raises:
        Transient: the server does not answer now.
        RowError: it cannot complete a plain text.
        Resumable: it refuses all requests, or lacks a model.
        Interrupted: a signal came.
    """
    try:
        reason = api.check_token_ids(next(iter(served.values())))
        answers = {name: tuple(_answer(api, model, text) for text in TEXTS) for name, model in served.items()}
    except Resumable as error:
        raise Resumable(f"{error}{_model_list(api)}") from None
    return Fingerprint(reason if OTHER_VOCABULARY in reason else "", answers)


def _answer(api: OpenAiApi, model: str, text: str) -> Answer:
    STOP.check()
    body: dict[str, Any] = {"model": model, "prompt": text, "max_tokens": 1, "temperature": 0.0, "stream": False}
    try:
        choice = api.complete({**body, "logprobs": 1})["choices"][0]
    except RowError:  # the server does not support log-probabilities
        choice = api.complete(body)["choices"][0]
    return str(choice["text"]), _logprob(choice)


def _logprob(choice: Mapping[str, Any]) -> float | None:
    """Read the first token's log-probability, in OpenAI's form of completions (vLLM) or of chats (llama.cpp)."""
    try:
        logprobs = choice["logprobs"]
        value = logprobs["content"][0]["logprob"] if "content" in logprobs else logprobs["token_logprobs"][0]
        return float(value) if isinstance(value, int | float) else None
    except (KeyError, IndexError, TypeError, OverflowError):
        return None


def _model_list(api: OpenAiApi) -> str:
    """Return `; it serves a, b` if the server lists its models."""
    try:
        status, _, raw = api.client.call("GET", "/v1/models")
        ids = [str(row["id"]) for row in json.loads(raw)["data"]] if status == 200 else []
    except (Transient, Resumable, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return f"; it serves {', '.join(ids[:5])[:200]}" if ids else ""


def difference(first: Fingerprint, second: Fingerprint) -> str:
    """Return how the models of the second server differ from those of the first; empty if they are the same.

    The distance of two answers is 1 if the tokens differ, else the difference of their log-probabilities, at most 1.
    Another quantisation is another model.
    """
    if bool(first.vocabulary) != bool(second.vocabulary):
        return first.vocabulary or second.vocabulary
    for name in first.answers.keys() & second.answers.keys():
        pairs = list(zip(first.answers[name], second.answers[name], strict=True))
        distances = [_distance(a, b) for a, b in pairs]
        if sum(distances) / len(distances) > MAX_DISTANCE:
            number = distances.index(max(distances))
            a, b = pairs[number]
            return f"for {name!r}, after {TEXTS[number]!r}, {_format(b)} instead of {_format(a)}"
    return ""


def _distance(a: Answer, b: Answer) -> float:
    if a[0] != b[0]:
        return 1.0
    return 0.0 if a[1] is None or b[1] is None else min(1.0, abs(a[1] - b[1]))


def _format(answer: Answer) -> str:
    text, logprob = answer
    return f"{text[:24]!r}" + (f" ({logprob:.2f})" if logprob is not None else "")
