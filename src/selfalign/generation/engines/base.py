"""Define the engine interface: text in, text out, one request at a time from each of several threads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, Protocol

from selfalign.data.prompt_text import Control, Pieces, replace_surrogates

Finish = Literal["end", "stop", "length", "cancelled"]
OnText = Callable[[str], bool] | None
"""Receives each new piece of generated text; generation ends when it returns False."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """The parameters of sampling."""

    temperature: float
    top_p: float
    max_new_tokens: int
    top_k: int = 0
    """Draw only from the k most likely tokens, after temperature and before top_p; 0 means no limit."""
    repetition: float = 0.0
    """Penalty on a token that would extend a repeated sequence beyond `repetition_length` tokens, doubled for each
    further token (llama.cpp's DRY); 0 is off."""
    repetition_length: int = 2
    """Sequences of up to this many tokens may repeat."""
    breaks: tuple[str, ...] = ("\n",)
    """Texts that end a repeated sequence, so that a list may repeat a word on each line. Each costs a pass over the
    vocabulary."""
    bias: tuple[tuple[str, float], ...] = ()
    """(text or control token, bias); the bias is added to the logit of the text's first token."""
    ban_eos: bool = False
    """Never draw the end token (the paper's logit bias in stage 1)."""

    def llama_cpp_penalty(self) -> dict[str, Any]:
        """Return the penalty on repetition as fields of a request to llama.cpp; none if it is off."""
        if not self.repetition:
            return {}
        return {
            "dry_multiplier": self.repetition,
            "dry_allowed_length": self.repetition_length,
            "dry_base": 2.0,
            "dry_penalty_last_n": self.max_new_tokens,
            "dry_sequence_breakers": list(self.breaks),
        }


@dataclass(frozen=True, slots=True)
class Step:
    """One continuation within a request. Its `cue` is appended to the prompt and the text generated before."""

    sampling: Sampling
    cue: str = ""
    stop: tuple[str, ...] = ()
    grammar: str = ""
    """A GBNF grammar that the text must follow; engines without grammars ignore it (the parser checks)."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and the steps that answer it. Guided generation has two: internal thoughts, then cue and response."""

    prompt: Pieces
    steps: tuple[Step, ...]
    seed: int
    adapter: str | None = None
    """The adapter to apply; None is the base model."""

    def identity(self) -> list[Any]:
        """Return everything that the output depends on, for the work key."""
        return [
            [_piece(isinstance(p, Control), str(p)) for p in self.prompt],
            _steps(self.steps),
            self.seed,
            self.adapter,
        ]


_LONG = 256
"""Pieces of at least this many characters are replaced by their hash, which is cached: all rows of a stage share the
first piece."""


def _piece(control: bool, text: str) -> list[Any]:
    return [control, text] if len(text) < _LONG else [control, _sha256(text)]


@lru_cache(maxsize=256)
def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _steps(steps: tuple[Step, ...]) -> str:
    # A control token equals the text that spells it, so the key also records which texts are control tokens.
    return _steps_hash(steps, tuple(isinstance(text, Control) for s in steps for text, _ in s.sampling.bias))


@lru_cache(maxsize=256)
def _steps_hash(steps: tuple[Step, ...], controls: tuple[bool, ...]) -> str:
    return _sha256(json.dumps([[asdict(s) for s in steps], controls], ensure_ascii=False, sort_keys=True))


@dataclass(frozen=True, slots=True)
class Part:
    """The output of one step."""

    text: str
    finish: Finish
    """end: the model's end token; stop: a stop string; length: the token limit; cancelled: `on_text` returned False."""
    prompt_tokens: int = 0
    """Prompt tokens that were computed."""
    cached_tokens: int = 0
    """Prompt tokens taken from the cache."""
    generated_tokens: int = 0
    escaped: tuple[str, ...] = ()
    """Control tokens that appeared in content and were escaped, because the engine accepts only text."""


_STORED_ESCAPED = "neutralised"  # old name
"""The key of `Part.escaped` in the journal."""


@dataclass(frozen=True, slots=True)
class Completion:
    """The raw output of a request: one part per step.

    There are fewer parts if a step before the last reached its token limit, because the next step would continue an
    unfinished thought.
    """

    parts: tuple[Part, ...] = field(default_factory=tuple)

    @property
    def escaped(self) -> tuple[str, ...]:
        """The control tokens that were escaped for any step."""
        return tuple(dict.fromkeys(token for part in self.parts for token in part.escaped))

    def to_json(self) -> list[dict[str, Any]]:
        """Return the parts as the journal stores them."""
        names = [name for name in Part.__dataclass_fields__ if name != "escaped"]
        return [
            {name: getattr(part, name) for name in names} | ({_STORED_ESCAPED: part.escaped} if part.escaped else {})
            for part in self.parts
        ]

    @classmethod
    def from_json(cls, value: list[dict[str, Any]]) -> Completion:
        """Read the parts as the journal stores them."""
        parts = [dict(part) for part in value]
        return cls(tuple(Part(escaped=tuple(part.pop(_STORED_ESCAPED, ())), **part) for part in parts))


class RowError(Exception):
    """An error that concerns one request only: its row fails, others continue."""


class TooLong(RowError):
    """A prompt that exceeds the context. Its row is dropped; a prompt is never truncated."""

    def __init__(self) -> None:
        super().__init__(TOO_LONG)


TOO_LONG = "too long for the context"


class Engine(Protocol):
    """A model that continues prompts."""

    parallel: int
    """Threads that may call `generate` at once."""

    @property
    def note(self) -> str:
        """A message for the user about how prompts reach the model; a server's is complete after its first request."""
        ...

    def generate(self, prompt: Pieces, step: Step, seed: int, adapter: str | None, on_text: OnText = None) -> Part:
        """Continue the prompt. Raises RowError if this prompt cannot be continued."""
        ...

    def warm_prefix(self, prefix: Pieces, adapter: str | None) -> str:
        """Compute the prefix of the next requests once for all slots; return a message that says how it is shared."""
        ...

    def close(self) -> None:
        """Free the model and its connections."""
        ...


def answer(engine: Engine, request: Request) -> Completion:
    """Run the steps of a request one after the other."""
    prompt, parts = request.prompt, []
    for step in request.steps:
        prompt = (*prompt, step.cue) if step.cue else prompt
        part = engine.generate(prompt, step, request.seed, request.adapter)
        if not part.text.isascii():
            part = replace(part, text=replace_surrogates(part.text))
        parts.append(part)
        if part.finish == "length" and len(parts) < len(request.steps):
            break
        prompt = (*prompt, part.text.rstrip())
    return Completion(tuple(parts))
