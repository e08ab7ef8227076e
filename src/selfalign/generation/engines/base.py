"""What an engine is: text in, text out, one request at a time from several threads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, Protocol

from selfalign.data.prompt_text import Control, Pieces, whole_characters

Finish = Literal["end", "stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float
    top_p: float
    max_new_tokens: int
    top_k: int = 0
    """Draw from the k most likely tokens only; 0 is no such limit. Temperature comes first, then top_p."""
    repetition: float = 0.0
    """Penalty on a token that would repeat a run one longer than `repetition_length`, doubled for each token more
    (llama.cpp: DRY); 0 is off."""
    repetition_length: int = 2
    """Runs of so many tokens may repeat."""
    breaks: tuple[str, ...] = ("\n",)
    """No repetition is seen across these: lists may repeat from line to line. Each costs a pass over the vocabulary."""
    bias: tuple[tuple[str, float], ...] = ()
    """(text or control token, bias): added to the logit of its first token."""
    ban_eos: bool = False
    """Never end by itself (the paper's logit bias on the end token in stage 1)."""


@dataclass(frozen=True, slots=True)
class Step:
    """One stretch of generation within a request. `cue` is put before it, after what was generated so far."""

    sampling: Sampling
    cue: str = ""
    stop: tuple[str, ...] = ()
    grammar: str = ""
    """A GBNF grammar that the text must follow; engines that cannot are free to ignore it (the parser still checks)."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and the steps that answer it. Guided generation is two steps: thoughts, then cue and answer."""

    prompt: Pieces
    steps: tuple[Step, ...]
    seed: int
    adapter: str | None = None
    """The adapter to switch on; None is the base model."""

    def identity(self) -> list[Any]:
        """Everything that the output depends on, for the work key."""
        return [
            [_piece(isinstance(p, Control), str(p)) for p in self.prompt],
            _steps(self.steps),
            self.seed,
            self.adapter,
        ]


_LONG = 256
"""Pieces from this length on are known by their hash, which is remembered: all rows of a stage share the first."""


def _piece(control: bool, text: str) -> list[Any]:
    return [control, text] if len(text) < _LONG else [control, _sha256(text)]


@lru_cache(maxsize=256)
def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _steps(steps: tuple[Step, ...]) -> str:
    # A control token and text that spells it are equal strings: which of them is meant belongs to the key.
    return _steps_hash(steps, tuple(isinstance(text, Control) for s in steps for text, _ in s.sampling.bias))


@lru_cache(maxsize=256)
def _steps_hash(steps: tuple[Step, ...], controls: tuple[bool, ...]) -> str:
    return _sha256(json.dumps([[asdict(s) for s in steps], controls], ensure_ascii=False, sort_keys=True))


@dataclass(frozen=True, slots=True)
class Part:
    """What one step gave."""

    text: str
    finish: Finish
    """end: by the model's own end token; stop: by a stop string; length: cut by the limit; cancelled: by the reader."""
    prompt_tokens: int = 0
    """Prompt tokens computed for it."""
    cached_tokens: int = 0
    """Prompt tokens taken from the cache."""
    generated_tokens: int = 0
    neutralised: tuple[str, ...] = ()
    """Control tokens that content spelled and that were broken, since the engine takes nothing but text."""


@dataclass(frozen=True, slots=True)
class Completion:
    """The raw output of a request: one part a step.

    Fewer if a step before the last was cut: what came after it would answer half a thought.
    """

    parts: tuple[Part, ...] = field(default_factory=tuple)

    @property
    def neutralised(self) -> tuple[str, ...]:
        """What was broken for any of its steps."""
        return tuple(dict.fromkeys(token for part in self.parts for token in part.neutralised))

    def to_json(self) -> list[dict[str, Any]]:
        names = Part.__dataclass_fields__
        return [
            {name: getattr(p, name) for name in names if name != "neutralised" or p.neutralised} for p in self.parts
        ]

    @classmethod
    def from_json(cls, value: list[dict[str, Any]]) -> Completion:
        return cls(tuple(Part(**{**p, "neutralised": tuple(p.get("neutralised", ()))}) for p in value))


class RowError(Exception):
    """This request cannot be answered; others can."""


class TooLong(RowError):
    """The prompt does not fit the context: the row is dropped, never cut."""

    def __init__(self) -> None:
        super().__init__(TOO_LONG)


TOO_LONG = "too long for the context"


class Engine(Protocol):
    """`generate` is called from up to `parallel` threads at once."""

    parallel: int

    @property
    def note(self) -> str:
        """What the user should know of how prompts reach the model; of a server it is known after the first request."""
        ...

    def generate(
        self,
        prompt: Pieces,
        step: Step,
        seed: int,
        adapter: str | None,
        on_text: Callable[[str], bool] | None = None,
    ) -> Part:
        """Continue the prompt.

        Args:
            on_text: gets each new stretch of text; generation ends where it returns False.

        Raises:
            RowError: this prompt cannot be answered.
        """
        ...

    def warm_prefix(self, prefix: Pieces, adapter: str | None) -> str:
        """Compute a prefix that the coming requests share, once, for all slots; says how often it is computed."""
        ...

    def close(self) -> None: ...


def answer(engine: Engine, request: Request) -> Completion:
    """Run a request's steps one after the other on the engine."""
    prompt, parts = request.prompt, []
    for step in request.steps:
        prompt = (*prompt, step.cue) if step.cue else prompt
        part = engine.generate(prompt, step, request.seed, request.adapter)
        if not part.text.isascii():
            part = replace(part, text=whole_characters(part.text))
        parts.append(part)
        if part.finish == "length" and len(parts) < len(request.steps):
            break
        prompt = (*prompt, part.text.rstrip())
    return Completion(tuple(parts))
