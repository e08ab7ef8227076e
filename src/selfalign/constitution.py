"""The constitution: the only texts that a human writes. Load, lint, render, count."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from selfalign.errors import UserError
from selfalign.records import content_hash, json_lines
from selfalign.strict import Strict, parse_yaml, read_text, validate

CITATION = re.compile(r"(?<![\w.])(\d{1,3})\s{0,9}\(\s{0,9}([^()\s][^()]{0,38}[^()\s])\s{0,9}\)")
"""A principle cited by number and name, as in "7 (candor)"."""


class Assistant(Strict):
    name: str = Field(min_length=1, max_length=40, pattern=r"^[\w][\w .'-]*$")
    cutoff: str = Field(min_length=1, max_length=60)


class Principle(Strict):
    id: int = Field(ge=1, le=999)
    name: str = Field(min_length=2, max_length=40, pattern=r"^[^()\n]+$")
    rule: str = Field(min_length=1)
    probes: list[str] = []
    """User messages that show whether the principle is kept. They only measure; nothing is trained on them."""


class Exemplar(Strict):
    user: str = Field(min_length=1)
    thoughts: str = Field(min_length=1)
    """One line that ends in the principles it follows, each as `number (name)`."""
    answer: str = Field(min_length=1)

    @model_validator(mode="after")
    def _one_line(self) -> Exemplar:
        if "\n" in self.thoughts.strip():
            raise ValueError("an exemplar's thoughts must be one line: generation stops them at the line's end")
        return self


class QuestionType(Strict):
    name: str = Field(min_length=1)
    topic: str = Field(min_length=1)
    question: str = Field(min_length=1)
    hints: list[int] = []
    """Principles that questions of this type tend to exercise."""


class Turn(Strict):
    user: str
    answer: str


class InferencePrompts(Strict):
    standard: str = Field(min_length=1)
    concise: str = Field(min_length=1)
    verbose: str = Field(min_length=1)
    two_shot: list[Turn] = []


class IdentityPair(Strict):
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)


class Constitution(Strict):
    """Everything human-written that generation or training sees, but for the seed tasks."""

    format: Literal[1]
    name: str
    licence: str = ""
    assistant: Assistant
    principles: list[Principle] = Field(min_length=1)
    exemplars: list[Exemplar] = Field(min_length=1)
    question_types: list[QuestionType] = []
    prompts: InferencePrompts
    identity: list[IdentityPair] = []

    @model_validator(mode="after")
    def _consistent(self) -> Constitution:
        names: dict[int, str] = {}
        for principle in self.principles:
            if principle.id in names:
                raise ValueError(f"two principles have the id {principle.id}")
            names[principle.id] = principle.name
        for what, texts in (
            ("question types are named", [t.name for t in self.question_types]),
            ("identity pairs ask", [p.question for p in self.identity]),
        ):
            if twice := next((t for t in texts if texts.count(t) > 1), None):
                raise ValueError(f"two {what} {twice!r}")
        for number, exemplar in enumerate(self.exemplars, 1):
            cited = CITATION.findall(exemplar.thoughts)
            if not cited:
                raise ValueError(f'exemplar {number} cites no principle; end its thoughts with e.g. "3 (helpful)"')
            for digits, name in cited:
                if names.get(int(digits), "").lower() != name.lower():
                    meant = (
                        f"principle {digits} is {names[int(digits)]!r}"
                        if int(digits) in names
                        else (f"there is no principle {digits}")
                    )
                    raise ValueError(f'exemplar {number} cites "{digits} ({name})", but {meant}')
        for kind in self.question_types:
            for hint in kind.hints:
                if hint not in names:
                    raise ValueError(f"question type {kind.name!r} hints at principle {hint}, which does not exist")
        return self

    def human_lines(self, seeds: int) -> dict[str, int]:
        """How many human-written items there are, by kind, with `seeds` seed tasks; `total` is their sum."""
        counts = {
            "principles": len(self.principles),
            "exemplars": len(self.exemplars),
            "seed tasks": seeds,
            "question types": len(self.question_types),
            "inference prompts": 3 + bool(self.prompts.two_shot),
            "identity pairs": len(self.identity),
        }
        return {**counts, "total": sum(counts.values())}

    def citation_cue(self) -> str:
        """The words that lead from the diagnosis to the first citation in every exemplar, as in " Principles: ".

        Guided generation gives them, so that every thought comes to its principles. Empty if the exemplars differ.
        """
        before = [e.thoughts.strip()[: CITATION.search(e.thoughts.strip()).start()] for e in self.exemplars]  # type: ignore[union-attr]
        common = ""
        for letters in zip(*(b[::-1] for b in before), strict=False):
            if len(set(letters)) > 1:
                break
            common = letters[0] + common
        # Whole words only: the cue begins at a space.
        return common[common.index(" ") :] if len(before) > 1 and " " in common.rstrip() else ""

    def digest(self) -> str:
        """A hash of the content; a run refuses to go on under another constitution."""
        return content_hash(self.model_dump(mode="json"))

    def inference_prompt(self, kind: Literal["standard", "concise", "verbose"]) -> str:
        """The inference prompt with the assistant's name filled in."""
        return str(getattr(self.prompts, kind)).strip().replace("{name}", self.assistant.name)


def load(source: str) -> Constitution:
    """The constitution `default`, or the one in the YAML file `source`.

    Raises:
        UserError: the file cannot be read, or the constitution is not consistent.
    """
    if source == "default":
        text = (resources.files("selfalign") / "assets/constitutions/default.yaml").read_text("utf-8")
    else:
        text = read_text(Path(source), "constitution")
    return validate(Constitution, parse_yaml(text, source), f"constitution {source}")


class SeedTask(Strict):
    """A human-written task; only its instruction and the first instance's input are ever shown to the model."""

    instruction: str
    input: str


def load_seeds(source: str) -> list[SeedTask]:
    """The seed tasks in the published Self-Instruct format (arXiv 2212.10560).

    Raises:
        UserError: the file is missing, empty or malformed.
    """
    if source == "default":
        with resources.as_file(resources.files("selfalign") / "assets/seed_tasks.jsonl") as path:
            return _read_seeds(path)
    path = Path(source)
    if not path.is_file():
        raise UserError(f"seeds {source!r} does not exist; give a JSONL file in the Self-Instruct format, or 'default'")
    return _read_seeds(path)


def _read_seeds(path: Path) -> list[SeedTask]:
    seeds = []
    for number, value in json_lines(path):
        instances = value.get("instances")
        first = instances[0] if isinstance(instances, list) and instances else {}
        text = first.get("input", "") if isinstance(first, dict) else None
        instruction = value.get("instruction")
        if not isinstance(instruction, str) or not instruction.strip() or not isinstance(text, str):
            raise UserError(
                f"{path}:{number}: a seed task needs an 'instruction' (text) and 'instances': [{{'input': text, ...}}]"
            )
        seeds.append(SeedTask(instruction=instruction.strip(), input=text.strip()))
    if not seeds:
        raise UserError(f"{path} holds no seed task; stage 1 needs at least one")
    return seeds
