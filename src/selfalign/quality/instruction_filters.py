"""Filters of stage 1: is a written instruction usable? Pure: instruction, input -> reason or None.

The rules are the paper's (Self-Instruct's, arXiv 2212.10560, section 2.2; SELF-ALIGN, arXiv 2305.03047), but for three:
in another language than English a rule about that language takes the place of the one about ASCII, role markers are not
taken, and left-over placeholders neither unless the recipe says so.
"""

from __future__ import annotations

import re
import string

from selfalign.quality.filter_settings import PromptFilter
from selfalign.quality.language import LANGUAGES, lapses

_DEFAULT = PromptFilter.model_validate({})
_NOT_TEXT = re.compile(
    r"\b(images?|graphs?|pictures?|files?|maps?|draw|plot|go to|video|audio|music|flowchart|diagram)\b", re.IGNORECASE
)
"""Words that mostly ask for what a text model cannot see or make."""

_ROLE = re.compile(r"(^|\n)[^\S\n]*(user|assistant|human)\s*:", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"<\s*no ?input\s*>|\[(?:insert|your|name)[^\]\n]{0,40}\]", re.IGNORECASE)


def reason_to_drop(
    instruction: str,
    text: str,
    language: str = "en",
    filters: PromptFilter = _DEFAULT,
) -> str | None:
    """Why the instruction is not usable, or None.

    Args:
        language: ISO 639-1, the constitution's.
    """
    words = len(instruction.split())
    if words < filters.min_words:
        return "too short"
    if words > filters.max_words:
        return "too long"
    if filters.text_only and (_NOT_TEXT.search(instruction) or _NOT_TEXT.search(text)):
        return "needs more than text"
    if instruction[0] in string.punctuation:
        return "begins with punctuation"
    if language == "en" and not instruction[0].isascii():
        return "begins with a non-ASCII character"
    if lapses(f"{instruction}\n{text}", language):
        return f"not in {LANGUAGES[language]}"
    if _ROLE.search(instruction) or _ROLE.search(text):
        return "contains a role marker"
    if not filters.placeholders and (_PLACEHOLDER.search(instruction) or _PLACEHOLDER.search(text)):
        return "contains a placeholder"
    return None


def reason_to_drop_user_prompt(message: str, length: int | None = None, bounds: tuple[int, int] = (1, 1)) -> str:
    """Why a prompt that the user brought is not taken; empty where it is.

    Args:
        message: the cleaned message.
        length: its tokens, where the recipe sets `bounds` for them (inclusive).
    """
    if not message:
        return "empty"
    if _ROLE.search(message):
        return "contains a role marker"
    if length is not None and not bounds[0] <= length <= bounds[1]:
        return f"not {bounds[0]} to {bounds[1]} tokens long"
    return ""
