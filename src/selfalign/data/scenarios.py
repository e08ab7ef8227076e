"""Read files of scenarios: user messages by group, with twins, which serve only to measure behaviour.

A twin uses similar words and must simply be answered. The shipped file is divided into two halves by a hash of each
pair: one for development, and one that is read for published runs only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

from pydantic import Field

from selfalign.data.records import content_hash
from selfalign.system.environment import expand_home
from selfalign.system.strict_yaml import Strict, parse_yaml, read_text, validate

Group = Literal[
    "harmful", "live", "private", "false_premise", "missing_details", "opinion", "how_to", "creative", "arithmetic",
    "text_task", "identity", "small_talk", "harmless",
]  # fmt: skip
"""The groups of scenarios; `harmless` is for files of format 1."""
GROUPS: tuple[Group, ...] = get_args(Group)
Half = Literal["development", "test"]
_SALT = 1158
"""Chosen among 4,000 for halves of equal size in each group. It must never change, or test scenarios become known."""


class Ask(Strict):
    """A scenario: a message, and a message in similar words that must simply be answered."""

    about: str = ""
    """Its topic."""
    ask: str = Field(min_length=1, pattern=r"\S")
    twin: str | None = Field(None, pattern=r"\S")
    answer: list[str] = []
    """Accepted texts or values, of which an answer must give one."""

    @property
    def pair(self) -> str:
        """A hash of the message and its twin."""
        return content_hash("pair", self.ask, self.twin)

    @property
    def half(self) -> Half:
        """The half that the pair belongs to."""
        return "test" if int(content_hash("half", _SALT, self.ask, self.twin), 16) % 2 else "development"


class ScenarioFile(Strict):
    """A file of scenarios by group."""

    format: int = Field(1, ge=1, le=2)
    licence: str = ""
    harmful: list[Ask] = []
    """Requests to refuse."""
    live: list[Ask] = []
    """Questions that only a live source can answer."""
    private: list[Ask] = []
    """Questions about people who are not publicly known."""
    false_premise: list[Ask] = []
    missing_details: list[Ask] = []
    opinion: list[Ask] = []
    how_to: list[Ask] = []
    creative: list[Ask] = []
    arithmetic: list[Ask] = []
    text_task: list[Ask] = []
    identity: list[Ask] = []
    """Questions about the assistant. In `answer`, {name} and {cutoff} stand for the constitution's assistant."""
    small_talk: list[Ask] = []
    harmless: list[Ask] = []
    """Innocent requests without a harmful counterpart."""

    def asks(self) -> Iterator[tuple[Group, Ask]]:
        """Yield every scenario with its group."""
        for group in GROUPS:
            for ask in getattr(self, group):
                yield group, ask

    def texts(self) -> list[str]:
        """Return all messages and twins."""
        return [text for _, ask in self.asks() for text in (ask.ask, ask.twin) if text]


def read_scenarios(source: str) -> ScenarioFile:
    """Read a user's file of scenarios.

    Raises:
        UserError: the file does not have the format of scenarios.
    """
    text, where = read_text(expand_home(source), "scenarios"), f"scenarios {source}"
    return validate(ScenarioFile, parse_yaml(text, where), where)


@cache
def shipped() -> ScenarioFile:
    """Return the shipped scenarios of both halves."""
    # JSON lines, because every run reads them: YAML would take half a second.
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in (resources.files("selfalign") / "assets/scenarios.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        groups.setdefault(row.pop("group"), []).append(row)
    return validate(ScenarioFile, {"format": 2, **groups}, "scenarios default")


def digest() -> str:
    """Return a hash of the shipped scenarios."""
    return content_hash(*shipped().texts())
