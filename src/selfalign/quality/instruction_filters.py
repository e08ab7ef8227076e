"""Filters of stage 1: is a written instruction usable? Pure: instruction, input -> reason or None.

The rules are the paper's (Self-Instruct's, arXiv 2212.10560, section 2.2; SELF-ALIGN, arXiv 2305.03047).
"""

from __future__ import annotations

import re
import string

_NOT_TEXT = re.compile(
    r"\b(images?|graphs?|pictures?|files?|maps?|draw|plot|go to|video|audio|music|flowchart|diagram)\b", re.IGNORECASE
)
"""Words that mostly ask for what a text model cannot see or make."""

_ROLE = re.compile(r"(^|\n)[^\S\n]*(user|assistant|human)\s*:", re.IGNORECASE)


def reason_to_drop(instruction: str, text: str, min_words: int = 4, max_words: int = 150) -> str | None:
    """Why the instruction is not usable, or None."""
    words = len(instruction.split())
    if words < min_words:
        return "too short"
    if words > max_words:
        return "too long"
    if _NOT_TEXT.search(instruction) or _NOT_TEXT.search(text):
        return "needs more than text"
    if instruction[0] in string.punctuation:
        return "begins with punctuation"
    if not instruction[0].isascii():
        return "begins with a non-ASCII character"
    if _ROLE.search(instruction) or _ROLE.search(text):
        return "contains a role marker"
    return None
