"""Represent a prompt: turns of a dialogue, and pieces of plain text and control tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


class Control(str):
    """A piece of a prompt that may become control tokens, such as a role token or the beginning of the text.

    All other text of a prompt is data and is encoded as ordinary text, even if it spells a control token.
    """

    __slots__ = ()


Pieces: TypeAlias = tuple[str, ...]
"""A prompt: plain text and `Control` pieces, in order."""

BOS = Control("<bos>")
"""A placeholder for the token that begins a text; engines replace it by that of their model."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of a dialogue."""

    role: Literal["user", "assistant"]
    text: str


def whole_characters(text: str) -> str:
    """Replace half characters, which a server's JSON can spell and UTF-8 cannot, by "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")
