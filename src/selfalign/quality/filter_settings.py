"""Every threshold of the filters, as it stands in the recipe; the published values are a base to start from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from selfalign.quality.safety import RULES
from selfalign.system.strict_yaml import Strict


class PromptFilter(Strict):
    """Stage 1."""

    min_words: int = Field(4, ge=1)
    max_words: int = Field(150, ge=1)

    @model_validator(mode="after")
    def _bounds(self) -> PromptFilter:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words is {self.min_words}, more than max_words, {self.max_words}")
        return self

    text_only: bool = True
    """Drop what names images, files and other things that a text model cannot see or make."""
    placeholders: bool = False
    """Keep prompts with a left-over `<noinput>` or `[insert ...]`."""


class ResponseFilter(Strict):
    """Stages 2 and 4. 0 turns a lower bound off, 1 an upper bound that is a share."""

    truncated: Literal["drop", "trim"] = "drop"
    """An answer that the token limit cut: drop it, or keep it without its last word."""
    min_chars: int = Field(0, ge=0)
    """Fewest characters of a complete answer."""
    min_chars_truncated: int = Field(0, ge=0)
    """Fewest characters of one that was cut and trimmed."""
    repeated_clause: Literal["keep", "cut"] = "keep"
    """cut: everything from the first clause on that already occurred is cut away."""
    trim_after_cut: bool = True
    """Take the last word away after such a cut, too."""
    sentence_repeats: int = Field(3, ge=0)
    """An answer that says a sentence of three words and more so often is a loop; code blocks are spared."""
    loop_words: int = Field(6, ge=2)
    loop_share: float = Field(0.3, ge=0, le=1)
    """An answer of whose runs of `loop_words` words a larger share occurred before in it is a loop."""
    distinct_trigrams: float = Field(0.65, ge=0, le=1)
    """Smallest share of different ones among an answer's runs of three words, from `judged_words` words on: shorter
    answers repeat themselves by chance."""
    judged_words: int = Field(12, ge=3)
    echo: float = Field(0.8, ge=0, le=1)
    """ROUGE-L F1 with the prompt above which an answer only repeats it; so does one without a new word."""
    new_words: int = Field(0, ge=0)
    """Fewest words of three letters and more, or numbers, that the answer adds to the prompt."""
    leak_words: int = Field(8, ge=3)
    """So many words in a row from the constitution's own texts are a leak, where the prompt does not say them."""
    thoughts: bool = True
    """Drop answers in which internal thoughts show."""
    sorry: bool = False
    """Drop answers that begin with "I'm sorry"."""
    refusals: float = Field(0.15, ge=0, le=1)
    """Largest share of stock refusals among the kept answers, at any row."""
    other_language: bool = True
    """Drop an answer in another language than its prompt, unless the prompt is about languages."""
    unsafe: list[str] = list(RULES)
    """Rules for unsafe answers to apply: docs/filters.md has them with their precision."""
    list_items: int = Field(0, ge=0)
    """Most items of a list; 0 is any number."""
    encyclopaedia: bool = False
    """Drop answers that end in an encyclopaedia's "See also" or references."""

    @model_validator(mode="after")
    def _known_rules(self) -> ResponseFilter:
        if wrong := next((name for name in self.unsafe if name not in RULES), None):
            raise ValueError(f"unsafe names the rules {', '.join(RULES)}, not {wrong!r}")
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
    """With the benchmark files of the evaluation and the behaviour probes."""

    words: int = Field(8, ge=0)
    """A prompt or answer that has so many words in a row from one of their texts is dropped. 0 is off."""
    rouge: float = Field(0.7, gt=0, le=1)
    """So is one whose ROUGE-L F1 with one of them is above this. 1 is off."""


class FilterSettings(Strict):
    """`filters: default`, `filters: paper`, or one of them with other values:
    `filters: {base: default, responses: {echo: 0.9}}`."""

    base: Literal["default", "paper"] = "default"
    """Where the values come from that are not given."""
    prompts: PromptFilter
    responses: ResponseFilter
    """Stage 2."""
    verbose: ResponseFilter
    """Stage 4."""
    overlap: OverlapFilter
    """All prompts and answers."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        mapping = handler(core)
        mapping.pop("required")  # what is not given comes from the base
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
        given = {k: v for k, v in value.items() if k not in base}
        for group, values in base.items():
            own = value.get(group, {})
            given[group] = {**values, **own} if isinstance(own, dict) else own
        return given
