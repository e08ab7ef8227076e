"""Requests in the form of OpenAI's API, parsed and checked. Pure.

What a server of one small model cannot do (tools, images, log-probabilities) is refused by name; a field that asks for
nothing (`logprobs: false`, `tools: []`) passes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfalign.data.prompt_text import Turn, whole_characters
from selfalign.web.guard import Refused

STYLES = ("standard", "concise", "verbose", "two-shot")


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one request may ask for."""

    n: int = 8
    tokens: int = 4096
    messages: int = 256
    stops: int = 4
    stop_chars: int = 256


@dataclass(frozen=True, slots=True)
class Options:
    """What both kinds of requests have. None stands for the server's default."""

    model: str
    n: int
    stream: bool
    include_usage: bool
    stop: tuple[str, ...]
    seed: int | None
    temperature: float | None
    top_p: float | None
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class Chat:
    """A request to /v1/chat/completions."""

    options: Options
    turns: tuple[Turn, ...]
    system: str | None
    """Replaces the system prompt, as in the exported chat templates; None where it is blank."""
    style: str | None
    """Which system prompt of the constitution; an addition of ours."""


@dataclass(frozen=True, slots=True)
class Text:
    """A request to /v1/completions."""

    options: Options
    prompts: tuple[str, ...]


_COMMON = (
    "model", "stream", "stream_options", "stop", "n", "seed", "temperature", "top_p", "max_tokens",
)  # fmt: skip
_ANY = object()
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "user": (_ANY,),
    "metadata": (_ANY,),
    "safety_identifier": (_ANY,),
    "prompt_cache_key": (_ANY,),
}
"""Fields of OpenAI's that may be there, with the values under which they ask for nothing."""


def chat(body: bytes, limits: Limits) -> Chat:
    """Raises Refused where the request is malformed, over a limit, or asks for what is not done here."""
    value = _object(body)
    _check_fields(value, (*_COMMON, "messages", "max_completion_tokens", "style"))
    system, turns = _messages(value.get("messages"), limits)
    style = _one_of(value, "style", STYLES)
    if style is not None and system is not None:
        raise _bad("a system message replaces the system prompt: give it, or style, not both", "style")
    return Chat(_options(value, limits), turns, system, style)


def text(body: bytes, limits: Limits) -> Text:
    """Raises Refused as `chat`."""
    value = _object(body)
    _check_fields(value, (*_COMMON, "prompt"))
    prompt = value.get("prompt")
    prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt) if isinstance(prompt, list) else ()
    if not prompts or not all(isinstance(p, str) for p in prompts):
        raise _bad("prompt must be a string or a list of strings (token ids are not taken)", "prompt")
    options = _options(value, limits)
    if len(prompts) * options.n > limits.n:
        raise _bad(f"prompts times n may be {limits.n} at most", "prompt")
    return Text(options, tuple(whole_characters(p) for p in prompts))


# -- fields ------------------------------------------------------------------------------------------------------------


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise _bad(f"the body is no JSON: {what}") from None
    if not isinstance(value, dict):
        raise _bad("the body must be a JSON object")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _check_fields(value: Mapping[str, Any], known: Sequence[str]) -> None:
    for name, given in value.items():
        if name in known or given is None:
            continue
        if name not in _NEUTRAL:
            raise _bad(f"the field {_quoted(name)} is not known here", name[:100])
        if not any(_equal(given, fine) for fine in _NEUTRAL[name]):
            raise _bad(f"{name} is not supported by this server", name, "unsupported_parameter")


def _equal(given: Any, fine: Any) -> bool:
    return fine is _ANY or (given == fine and isinstance(given, bool) == isinstance(fine, bool))


def _options(value: Mapping[str, Any], limits: Limits) -> Options:
    model = value.get("model")
    if not isinstance(model, str):
        raise _bad("model must be a string; GET /v1/models lists them", "model")
    stream = _boolean(value, "stream")
    return Options(
        model=model,
        n=_integer(value, "n", 1, limits.n) or 1,
        stream=stream,
        include_usage=_include_usage(value.get("stream_options"), stream),
        stop=_stop(value.get("stop"), limits),
        seed=_integer(value, "seed", -(2**63), 2**63 - 1),
        temperature=_number(value, "temperature", 0.0, 2.0),
        top_p=_number(value, "top_p", 0.0, 1.0),
        max_tokens=_max_tokens(value, limits),
    )


def _max_tokens(value: Mapping[str, Any], limits: Limits) -> int | None:
    new, old = (_integer(value, name, 1, limits.tokens) for name in ("max_completion_tokens", "max_tokens"))
    if new is not None and old is not None and new != old:
        raise _bad("max_tokens and max_completion_tokens differ: give one of them", "max_tokens")
    return old if new is None else new


def _include_usage(given: Any, stream: bool) -> bool:
    if given is None:
        return False
    if not stream:
        raise _bad("stream_options is for streams only", "stream_options")
    if not isinstance(given, dict) or not set(given) <= {"include_usage", "include_obfuscation"}:
        raise _bad("stream_options may hold include_usage", "stream_options")
    if given.get("include_obfuscation"):
        raise _bad("stream_options.include_obfuscation is not supported", "stream_options", "unsupported_parameter")
    return _boolean(given, "include_usage")


def _stop(given: Any, limits: Limits) -> tuple[str, ...]:
    stops = (given,) if isinstance(given, str) else given if given is not None else ()
    if not isinstance(stops, list | tuple) or not all(isinstance(s, str) for s in stops):
        raise _bad("stop must be a string or a list of strings", "stop")
    if len(stops) > limits.stops or any(not 0 < len(s) <= limits.stop_chars for s in stops):
        raise _bad(f"stop takes up to {limits.stops} strings of 1 to {limits.stop_chars} characters", "stop")
    return tuple(dict.fromkeys(whole_characters(s) for s in stops))


def _messages(given: Any, limits: Limits) -> tuple[str | None, tuple[Turn, ...]]:
    """(system message, turns)."""
    if not isinstance(given, list) or not given:
        raise _bad("messages must be a list of at least one message", "messages")
    if len(given) > limits.messages:
        raise _bad(f"{len(given):,} messages; {limits.messages} at most", "messages")
    system: list[str] = []
    turns: list[Turn] = []
    for number, message in enumerate(given):
        role, content = _message(message, f"messages[{number}]")
        if role in ("system", "developer"):
            if turns:
                raise _bad("system messages must come first", f"messages[{number}]")
            system.append(content)
        else:
            turns.append(Turn(role, content))  # type: ignore[arg-type]
    if not turns or turns[-1].role != "user":
        raise _bad("the last message must be the user's", "messages")
    return "\n\n".join(system).strip() or None, tuple(turns)


def _message(given: Any, where: str) -> tuple[str, str]:
    if not isinstance(given, dict):
        raise _bad("a message must be an object with role and content", where)
    role = given.get("role")
    if role not in ("system", "developer", "user", "assistant"):
        raise _bad("role must be system, developer, user or assistant; tools are not supported", f"{where}.role")
    for name, more in given.items():
        # What we sent comes back in the next request: thoughts are no part of a dialogue.
        ours = name == "reasoning_content" and role == "assistant" and isinstance(more, str)
        if name not in ("role", "content") and more not in (None, [], "") and not ours:
            raise _bad(f"{_quoted(name)} is not supported in messages", f"{where}.{name[:100]}")
    content = given.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, f"{where}.content[{number}]") for number, part in enumerate(content))
    if not isinstance(content, str):
        raise _bad("content must be a string, or a list of text parts", f"{where}.content")
    return role, whole_characters(content)


def _part(given: Any, where: str) -> str:
    if not isinstance(given, dict) or given.get("type") != "text" or not isinstance(given.get("text"), str):
        raise _bad("only text parts are supported: images, audio and files are not", where)
    return str(given["text"])


def _boolean(value: Mapping[str, Any], name: str) -> bool:
    given = value.get(name)
    if given is not None and not isinstance(given, bool):
        raise _bad(f"{name} must be true or false", name)
    return bool(given)


def _integer(value: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    given = value.get(name)
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or not least <= given <= most:
        raise _bad(f"{name} must be a whole number from {least} to {most}", name)
    return given


def _number(value: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    given = value.get(name)
    if given is None:
        return None
    # An inequality, not isfinite: a whole number may be too long to become a float. None holds for what is no number.
    if not isinstance(given, int | float) or isinstance(given, bool) or not least <= given <= most:
        raise _bad(f"{name} must be a number from {least:g} to {most:g}", name)
    return float(given)


def _one_of(value: Mapping[str, Any], name: str, known: Sequence[str]) -> str | None:
    given = value.get(name)
    if given is not None and given not in known:
        raise _bad(f"{name} must be one of {', '.join(known)}", name)
    return given


def _quoted(name: str) -> str:
    return repr(whole_characters(name[:100]))


def _bad(message: str, param: str | None = None, code: str | None = None) -> Refused:
    return Refused(400, message, param=param, code=code)
