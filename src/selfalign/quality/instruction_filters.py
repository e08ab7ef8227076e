"""Filter the prompts of stage 1.

The rules are those of Self-Instruct (arXiv 2212.10560, section 2.2) and SELF-ALIGN (arXiv 2305.03047), with these
changes: they also apply to red-team prompts, unless the recipe exempts them as the original does; for languages other
than English, a check of the language replaces the ASCII rule; prompts with role markers or control characters are
dropped; and prompts with unfilled placeholders are dropped unless the recipe keeps them.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

from selfalign.quality.filter_settings import PromptFilter
from selfalign.quality.language import LANGUAGES, is_english, lapses
from selfalign.quality.rouge import count_words, tokens

_DEFAULT = PromptFilter.model_validate({})
_NOT_TEXT = re.compile(
    r"\b(images?|graphs?|pictures?|files?|maps?|draw|plot|go to|video|audio|music|flowchart|diagram)\b", re.IGNORECASE
)
"""Words of instructions that usually need more than text."""
_ROLE = re.compile(r"(^|\n)[^\S\n]*(user|assistant|human)\s*:", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"<\s*no ?input\s*>|\[(?:insert|your|name)[^\]\n]{0,40}\]", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters other than tab and line breaks, and lone surrogates."""


def reason_to_drop(
    instruction: str, text: str, language: str = "en", filters: PromptFilter = _DEFAULT, red_team: bool = True
) -> str | None:
    """Return the reason for dropping a generated prompt, or None.

    Args:
        text: the prompt's input.
        language: the constitution's language, ISO 639-1.
        red_team: whether the prompt comes from red-teaming, not from Self-Instruct.
    """
    if (filters.red_team or not red_team) and (reason := _form_reason(instruction, text, language, filters)):
        return reason
    if _CONTROL.search(instruction) or _CONTROL.search(text):
        return "contains a control character"
    if lapses(f"{instruction}\n{text}", language):
        return f"not in {LANGUAGES[language]}"
    if _ROLE.search(instruction) or _ROLE.search(text):
        return "contains a role marker"
    if not filters.placeholders and (_PLACEHOLDER.search(instruction) or _PLACEHOLDER.search(text)):
        return "contains a placeholder"
    return None


def not_judged(texts: Iterable[str], filters: PromptFilter = _DEFAULT) -> dict[str, int]:
    """Return the number of these prompts that novelty and the rule on English words (`text_only`) cannot judge."""
    counts = {"novelty": 0, "text only": 0}
    for text in texts:
        counts["novelty"] += not tokens(text)
        counts["text only"] += filters.text_only and not is_english(text)
    return counts


def _form_reason(instruction: str, text: str, language: str, filters: PromptFilter) -> str | None:
    words = count_words(instruction)
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
    return None


def reason_to_drop_user_prompt(message: str, length: int | None = None, bounds: tuple[int, int] = (1, 1)) -> str:
    """Return the reason for dropping a user prompt, or "".

    Args:
        message: the cleaned message.
        length: its number of tokens, if the recipe limits it to `bounds` (inclusive).
    """
    if not message:
        return "empty"
    if _ROLE.search(message):
        return "contains a role marker"
    if length is not None and not bounds[0] <= length <= bounds[1]:
        return f"not {bounds[0]} to {bounds[1]} tokens long"
    return ""
