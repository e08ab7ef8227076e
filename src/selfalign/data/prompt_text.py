"""Represent a prompt: turns of a dialogue, and pieces of plain text and control tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


class Control(str):
    """A piece of a prompt that may become control tokens, such as a role token or the beginning of the text.

    Everything else in a prompt is data: whatever it says, it is encoded as ordinary text.
    """

    __slots__ = ()


Pieces: TypeAlias = tuple[str, ...]
"""A prompt: plain text and `Control` pieces, in order."""


BOS = Control("<bos>")
"""Stands for whatever token begins a text in the model at hand; engines put that token there."""


@dataclass(frozen=True, slots=True)
class Turn:
    role: Literal["user", "assistant"]
    text: str


def whole_characters(text: str) -> str:
    """The text with "?" for half characters, which a server's JSON can spell and no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
