"""Define the settings of all filters (the recipe's `filters`), with the default and the published values."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from selfalign.quality.safety import RULES
from selfalign.system.strict_yaml import Strict, read_asset


class PromptFilter(Strict):
    """The filters of stage 1's prompts."""

    min_words: int = Field(4, ge=1)
    max_words: int = Field(150, ge=1)

    @model_validator(mode="after")
    def _bounds(self) -> PromptFilter:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words is {self.min_words}, more than max_words, {self.max_words}")
        return self

    text_only: bool = True
    """Drop prompts about images, files and other things that a text model cannot read or write."""
    placeholders: bool = False
    """Keep prompts with an unfilled `<noinput>` or `[insert ...]`."""
    red_team: bool = True
    """Apply the rules on words, first characters and `text_only` to red-team prompts, too."""


class ResponseFilter(Strict):
    """The filters of the responses of stages 2 and 4. 0 disables a minimum, and 1 a maximum fraction."""

    truncated: Literal["drop", "trim"] = "drop"
    """What to do with a response that reached the token limit: drop it, or trim its last word and keep it."""
    min_chars: int = Field(0, ge=0)
    """Minimum number of characters of a complete response."""
    min_chars_truncated: int = Field(0, ge=0)
    """Minimum number of characters of a truncated response, after it is trimmed."""
    repeated_clause: Literal["keep", "cut"] = "keep"
    """cut: end the response before its first repeated clause."""
    clause_ends: str = Field("\n.?!;:,", min_length=1)
    """The characters that end a clause."""
    trim_after_cut: bool = True
    """true: trim the last word of a response that is truncated or cut; false: only of one that is truncated, and before
    the cut."""
    sentence_repeats: int = Field(3, ge=0)
    """A response is a loop if a sentence of at least three words occurs this often; code blocks are ignored."""
    loop_words: int = Field(6, ge=2)
    loop_share: float = Field(0.3, ge=0, le=1)
    """A response is a loop if more than this fraction of its n-grams of `loop_words` words are repeats."""
    distinct_trigrams: float = Field(0.65, ge=0, le=1)
    """Minimum fraction of distinct trigrams in a response of at least `judged_words` words; shorter responses repeat
    trigrams by chance."""
    judged_words: int = Field(12, ge=3)
    echo: float = Field(0.8, ge=0, le=1)
    """ROUGE-L F1 with the prompt above which a response is an echo; a response without a new word is one, too."""
    new_words: int = Field(0, ge=0)
    """Minimum number of words of three or more letters, or numbers, that the response adds to the prompt."""
    leak_words: int = Field(8, ge=3)
    """Number of consecutive words from the constitution's texts that is a leak, unless the prompt contains them."""
    thoughts: bool = True
    """Drop responses that contain internal thoughts."""
    sorry: bool = False
    """Drop responses that begin with "I'm sorry"."""
    refusals: float = Field(0.15, ge=0, le=1)
    """Maximum fraction of stock refusals among the responses kept so far. Responses to prompts of a type with a check
    are not counted, and admissions of ignorance only if the prompt has a type."""
    other_language: bool = True
    """Drop responses in another language than their prompt, unless the prompt is about languages."""
    unsafe: list[str] = list(RULES)
    """Names of the rules for unsafe responses to apply; docs/filters.md lists them with their precision."""
    list_items: int = Field(0, ge=0)
    """Maximum number of list items; 0 disables the limit."""
    more_items: Literal["drop", "cut"] = "drop"
    """What to do with a response that has more list items: drop it, or cut it before the line with the next number."""
    encyclopaedia: bool = False
    """Drop responses with the tail of an encyclopaedia article, such as "See also" or references."""

    @model_validator(mode="after")
    def _known_rules(self) -> ResponseFilter:
        if unknown := next((name for name in self.unsafe if name not in RULES), None):
            raise ValueError(f"unsafe has no rule {unknown!r}; the rules are {', '.join(RULES)}")
        return self


class OverlapFilter(Strict):
    """The overlap of prompts and responses with the evaluation's benchmark files and the behaviour probes. Scenarios
    have a fixed threshold of 0.6."""

    words: int = Field(8, ge=0)
    """Number of shared consecutive words that is an overlap; 0 disables the test."""
    rouge: float = Field(0.7, gt=0, le=1)
    """ROUGE-L F1 above which there is an overlap; 1 disables the test."""


@cache
def _bases() -> dict[str, dict[str, Any]]:
    return dict(read_asset("filters.yaml"))


class FilterSettings(Strict):
    """All filters: `filters: default`, `filters: paper`, or one of them with changes, as in
    `filters: {base: default, responses: {echo: 0.9}}`."""

    base: Literal["default", "paper"] = "default"
    """The filters whose values are used for keys that are not set here."""
    prompts: PromptFilter
    responses: ResponseFilter
    """The filters of stage 2's responses."""
    verbose: ResponseFilter
    """The filters of stage 4's responses."""
    overlap: OverlapFilter
    """The overlap of prompts and responses with benchmarks."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        mapping = handler(core)
        mapping.pop("required")  # the base provides the other values
        return {"anyOf": [{"enum": list(_bases())}, mapping]}

    @model_validator(mode="before")
    @classmethod
    def _from_base(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"base": value}
        if not isinstance(value, dict):
            return value
        name = value.get("base", "default")
        base = _bases().get(name, {}) if isinstance(name, str) else {}
        merged = {k: v for k, v in value.items() if k not in base}
        for group, values in base.items():
            changes = value.get(group, {})
            merged[group] = {**values, **changes} if isinstance(changes, dict) else changes
        return merged
