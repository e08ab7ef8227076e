"""Define the settings of all filters (the recipe's `filters`), with the default and the published values."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from selfalign.quality.safety import RULES
from selfalign.system.strict_yaml import Strict


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
    """Drop prompts that name images, files and other things that a text model cannot read or write."""
    placeholders: bool = False
    """Keep prompts with an unfilled `<noinput>` or `[insert ...]`."""


class ResponseFilter(Strict):
    """The filters of the responses of stages 2 and 4. 0 disables a lower bound, 1 an upper bound on a fraction."""

    truncated: Literal["drop", "trim"] = "drop"
    """What to do with a response that the token limit cut: drop it, or keep it without its last word."""
    min_chars: int = Field(0, ge=0)
    """Least number of characters of a complete response."""
    min_chars_truncated: int = Field(0, ge=0)
    """Least number of characters of a response that was cut and trimmed."""
    repeated_clause: Literal["keep", "cut"] = "keep"
    """cut: the response ends before its first repeated clause."""
    trim_after_cut: bool = True
    """Remove the last word after such a cut, too."""
    sentence_repeats: int = Field(3, ge=0)
    """Number of occurrences of a sentence of at least three words that is a loop; code blocks do not count."""
    loop_words: int = Field(6, ge=2)
    loop_share: float = Field(0.3, ge=0, le=1)
    """Fraction of repeated runs of `loop_words` words above which a response is a loop."""
    distinct_trigrams: float = Field(0.65, ge=0, le=1)
    """Least fraction of different trigrams in a response of at least `judged_words` words; shorter ones repeat trigrams
    by chance."""
    judged_words: int = Field(12, ge=3)
    echo: float = Field(0.8, ge=0, le=1)
    """ROUGE-L F1 above which a response repeats its prompt; a response without a new word does so, too."""
    new_words: int = Field(0, ge=0)
    """Least number of words of three or more letters, or numbers, that the response adds to the prompt."""
    leak_words: int = Field(8, ge=3)
    """Number of words in a row from the constitution's texts that is a leak, unless they are in the prompt."""
    thoughts: bool = True
    """Drop responses that contain internal thoughts."""
    sorry: bool = False
    """Drop responses that begin with "I'm sorry"."""
    refusals: float = Field(0.15, ge=0, le=1)
    """Largest fraction of stock refusals among the responses kept so far."""
    other_language: bool = True
    """Drop responses in another language than their prompt, unless the prompt is about languages."""
    unsafe: list[str] = list(RULES)
    """Names of the rules for unsafe responses to apply; docs/filters.md lists them with their precision."""
    list_items: int = Field(0, ge=0)
    """Largest number of list items; 0 is no limit."""
    encyclopaedia: bool = False
    """Drop responses that end in an encyclopaedia's "See also" or references."""

    @model_validator(mode="after")
    def _known_rules(self) -> ResponseFilter:
        if unknown := next((name for name in self.unsafe if name not in RULES), None):
            raise ValueError(f"unsafe has no rule {unknown!r}; the rules are {', '.join(RULES)}")
        return self


_VERBOSE: dict[str, Any] = {"list_items": 12, "encyclopaedia": True}
_PAPER: dict[str, Any] = {
    "truncated": "trim",
    "repeated_clause": "cut",
    "sentence_repeats": 0,
    "loop_share": 1.0,
    "distinct_trigrams": 0.0,
    "echo": 1.0,
    "thoughts": False,
    "refusals": 1.0,
    "other_language": False,
    "unsafe": [],
}
_BASES: dict[str, dict[str, Any]] = {
    "default": {"prompts": {}, "responses": {}, "verbose": {**_VERBOSE, "new_words": 6}, "overlap": {}},
    "paper": {
        "prompts": {"placeholders": True},
        "responses": {**_PAPER, "min_chars": 149, "sorry": True},
        "verbose": {**_PAPER, **_VERBOSE, "min_chars_truncated": 128, "trim_after_cut": False},
        "overlap": {},
    },
}


class OverlapFilter(Strict):
    """The overlap of prompts and responses with the evaluation's benchmark files and the behaviour probes."""

    words: int = Field(8, ge=0)
    """Number of words in a row from one of their texts that is an overlap; 0 disables the test."""
    rouge: float = Field(0.7, gt=0, le=1)
    """ROUGE-L F1 with one of their texts above which there is an overlap; 1 disables the test."""


class FilterSettings(Strict):
    """All filters: `filters: default`, `filters: paper`, or one of them with changed values, as in
    `filters: {base: default, responses: {echo: 0.9}}`."""

    base: Literal["default", "paper"] = "default"
    """The source of the values that are not set here."""
    prompts: PromptFilter
    responses: ResponseFilter
    """Responses of stage 2."""
    verbose: ResponseFilter
    """Responses of stage 4."""
    overlap: OverlapFilter
    """All prompts and responses."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        mapping = handler(core)
        mapping.pop("required")  # the base has the other values
        return {"anyOf": [{"enum": list(_BASES)}, mapping]}

    @model_validator(mode="before")
    @classmethod
    def _from_base(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"base": value}
        if not isinstance(value, dict):
            return value
        name = value.get("base", "default")
        base = _BASES.get(name, {}) if isinstance(name, str) else {}
        merged = {k: v for k, v in value.items() if k not in base}
        for group, values in base.items():
            changes = value.get(group, {})
            merged[group] = {**values, **changes} if isinstance(changes, dict) else changes
        return merged
