"""Restrict generated tokens to a grammar, with llguidance."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

MISSING = "grammars are ignored, because llguidance is not installed: pip install llguidance"


class Grammars:
    """The compiled grammars of one vocabulary.

    Args:
        tokenizer: tokenizer.json.
        size: number of logits.
        ends: ids of the tokens that end a response.
    """

    def __init__(self, tokenizer: Path, size: int, ends: Sequence[int]) -> None:
        self._file, self._size, self._ends = tokenizer, size, list(ends)
        self._vocabulary: Any = None
        self.available = find_spec("llguidance") is not None

    def start(self, grammar: str) -> Matcher | None:
        """Return the state at the beginning of a text under a GBNF grammar; None if llguidance is not installed.

        Raises:
            ValueError: the grammar is invalid.
        """
        if not self.available:
            return None
        import llguidance
        from llguidance.gbnf_to_lark import gbnf_to_lark

        if self._vocabulary is None:
            self._vocabulary = llguidance.LLTokenizer(
                self._file.read_text("utf-8"), n_vocab=self._size, eos_token=self._ends
            )
        matcher = llguidance.LLMatcher(
            self._vocabulary, llguidance.LLMatcher.grammar_from_lark(gbnf_to_lark(grammar)), log_level=0
        )
        if matcher.is_error():
            raise ValueError(f"the grammar cannot be read: {matcher.get_error()}")
        return Matcher(matcher)


class Matcher:
    """A text that follows a grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allowed(self) -> np.ndarray:
        """Return the ids of the tokens that may come next."""
        return np.flatnonzero(np.frombuffer(self._matcher.compute_logit_bias(), np.uint8))

    def add(self, token: int) -> None:
        """Append a token to the text."""
        self._matcher.consume_token(token)

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end may follow."""
        return bool(self._matcher.is_stopped())
