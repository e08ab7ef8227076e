"""Whether several servers serve the same model: asked before one gets work, and again when one comes back."""

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
"""Some whose next token any model knows, some where models differ."""
FARTHEST = 0.15
"""Mean distance above which two models are others (see `difference`). Of the embedded model and its two adapters, any
two are 0.29 to 0.6 apart; the same weights computed elsewhere, a few hundredths, and one tie that falls the other way
makes an eighth."""

Answer = tuple[str, float | None]
"""The likeliest next token as text, and its log-probability where the server gives it."""


@dataclass(frozen=True, slots=True)
class Portrait:
    """What a server says of itself."""

    vocabulary: str
    """Why its vocabulary is not the model's; empty where it is, or was not compared."""
    answers: Mapping[str, tuple[Answer, ...]]
    """For each name of the recipe's `served`, an answer to each of `TEXTS`."""


def portrait(api: OpenAiApi, served: Mapping[str, str]) -> Portrait:
    """Ask a server: how it reads the model's token ids, and what it goes on with.

    Raises:
        Transient: it does not answer now.
        RowError: it cannot complete a plain text.
        Resumable: it refuses everybody, or has no model of that name.
        Interrupted: a signal came.
    """
    try:
        why = api.check_token_ids(next(iter(served.values())))
        answers = {name: tuple(_answer(api, model, text) for text in TEXTS) for name, model in served.items()}
    except Resumable as error:
        raise Resumable(f"{error}{_listed(api)}") from None
    return Portrait(why if OTHER_VOCABULARY in why else "", answers)


def _answer(api: OpenAiApi, model: str, text: str) -> Answer:
    STOP.check()
    body: dict[str, Any] = {"model": model, "prompt": text, "max_tokens": 1, "temperature": 0.0, "stream": False}
    try:
        choice = api.complete({**body, "logprobs": 1})["choices"][0]
    except RowError:  # one that knows no log-probabilities
        choice = api.complete(body)["choices"][0]
    return str(choice["text"]), _logprob(choice)


def _logprob(choice: Mapping[str, Any]) -> float | None:
    """Of the first token, in OpenAI's form for completions (vLLM) or for chats (llama.cpp)."""
    try:
        given = choice["logprobs"]
        value = given["content"][0]["logprob"] if "content" in given else given["token_logprobs"][0]
        return float(value) if isinstance(value, int | float) else None
    except (KeyError, IndexError, TypeError, OverflowError):
        return None


def _listed(api: OpenAiApi) -> str:
    """`; it serves a, b`, where the server says what it has."""
    try:
        status, _, raw = api.client.call("GET", "/v1/models")
        ids = [str(row["id"]) for row in json.loads(raw)["data"]] if status == 200 else []
    except (Transient, Resumable, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return f"; it serves {', '.join(ids[:5])[:200]}" if ids else ""


def difference(one: Portrait, other: Portrait) -> str:
    """What two servers differ in, the second one's side first; empty where they serve the same.

    The distance of two answers is that of their log-probabilities where the token is the same, at most 1, and 1 where
    it is another. Quantised otherwise is another model.
    """
    if bool(one.vocabulary) != bool(other.vocabulary):
        return one.vocabulary or other.vocabulary
    for name in one.answers.keys() & other.answers.keys():
        pairs = list(zip(one.answers[name], other.answers[name], strict=True))
        apart = [_distance(a, b) for a, b in pairs]
        if sum(apart) / len(apart) > FARTHEST:
            number = apart.index(max(apart))
            (mine, p), (theirs, q) = pairs[number]
            return f"for {name!r}, after {TEXTS[number]!r}, {_shown(theirs, q)} instead of {_shown(mine, p)}"
    return ""


def _distance(a: Answer, b: Answer) -> float:
    if a[0] != b[0]:
        return 1.0
    return 0.0 if a[1] is None or b[1] is None else min(1.0, abs(a[1] - b[1]))


def _shown(text: str, logprob: float | None) -> str:
    return f"{text[:24]!r}" + (f" ({logprob:.2f})" if logprob is not None else "")
