"""Represent a prompt as turns of a dialogue, or as pieces of plain text and control tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


class Control(str):
    """A piece of a prompt that is encoded as control tokens, such as a role token or BOS.

    All other text of a prompt is data, and is encoded as ordinary text even if it spells a control token.
    """

    __slots__ = ()


Pieces: TypeAlias = tuple[str, ...]
"""A prompt: plain text and `Control` pieces, in order."""

BOS = Control("<bos>")
"""A placeholder for the token that begins a text; engines replace it with the token of their model."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of a dialogue."""

    role: Literal["user", "assistant"]
    text: str


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON can encode but UTF-8 cannot, with "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")
