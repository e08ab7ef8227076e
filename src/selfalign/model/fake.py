"""Stand in for the base model of a run on the fake engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NoReturn

from selfalign.errors import UserError
from selfalign.model.base_model import Model
from selfalign.model.dialogue import PLAIN, Template, Tokenizer


@dataclass(frozen=True)
class FakeModel(Model):
    """A model without weights, with plain-text turns, words as tokens, and every adapter."""

    source: str = "the fake engine"
    identity: str = "fake"
    gguf_path: Path | None = None
    folder_path: Path | None = None
    notice: str = ""

    is_fake = True

    def check_weights(self, consequence: str) -> NoReturn:
        """Raise UserError: there are no weights."""
        raise UserError(f"the fake engine runs no model: {consequence}")

    @property
    def gguf(self) -> Path:
        """Raise UserError: there are no weights."""
        self.check_weights("there is no GGUF")

    def folder(self, say: Callable[[str], None] = lambda _: None) -> Path:
        """Raise UserError: there are no weights."""
        self.check_weights("there are no torch weights")

    def tokenizer(self, say: Callable[[str], None] = lambda _: None) -> Tokenizer:
        """Raise UserError: there is no tokenizer."""
        self.check_weights("there is no tokenizer")

    def token_counter(self) -> Callable[[str], int]:
        """Return a function that counts words."""
        return lambda text: len(text.split())

    def check_trainable(self, with_gguf: bool = True) -> None:
        """Do nothing: stages 3 and 4 write their examples and train no adapter."""

    def has_adapter(self, gguf: Path) -> bool:
        """Return True: the fake engine accepts every adapter."""
        return True

    def check_adapter(self, folder: Path) -> None:
        """Do nothing: stages on the fake engine train no adapter."""

    def identities(self, adapters: Mapping[str, Path]) -> dict[str | None, str]:
        """Return the same identity for the base and all adapters."""
        names: Iterable[str | None] = (None, *adapters)
        return dict.fromkeys(names, self.identity)

    @cached_property
    def template(self) -> Template:
        """Plain-text turns."""
        return PLAIN
