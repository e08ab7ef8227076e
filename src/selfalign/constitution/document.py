"""What a constitution holds, strict and typed, and where its parts contradict each other."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from selfalign.data.records import content_hash
from selfalign.data.text import CITATION
from selfalign.errors import UserError
from selfalign.quality.language import LANGUAGES
from selfalign.system.strict_yaml import Place, Strict, validate

Check = Literal[
    "refuses", "corrects", "admits", "no_live_data", "dated", "asks_back", "both_sides", "steps", "reasons", "aspects",
    "verse", "wordy", "mentions", "in_order", "language",
]  # fmt: skip
"""What an answer can be seen to do without a judge model (evaluation/checks.py)."""

_NEED_WORDS = ("mentions", "in_order")


Text = Field(pattern=r"\S")
"""Not blank."""


class Assistant(Strict):
    name: str = Field(min_length=1, max_length=40, pattern=r"^[\w][\w .'-]*$")
    cutoff: str = Field(min_length=1, max_length=60)


class Probe(Strict):
    """A user message that shows whether a principle is kept. It only measures; nothing is trained on it."""

    ask: str = Text
    expect: Check
    words: list[str] = []
    """For mentions: any of these; for in_order: all of these, in this order."""
    contrast: bool = False
    """The behaviour must *not* appear: a harmless question that sounds harmful must be answered."""

    @model_validator(mode="after")
    def _words(self) -> Probe:
        if (self.expect in _NEED_WORDS) != bool(self.words):
            needs = "needs" if self.expect in _NEED_WORDS else "takes no"
            raise ValueError(f"the check {self.expect!r} {needs} words")
        return self


class Principle(Strict):
    id: int = Field(ge=1, le=999)
    name: str = Field(min_length=2, max_length=40, pattern=r"^[^()\n]+$")
    rule: str = Text
    probes: list[Probe] = []


class DialogueTurn(Strict):
    """What a user says, what the assistant thinks of it, and what it answers."""

    user: str = Text
    thoughts: str = Text
    """One line that ends in the principles it follows, each as `number (name)`."""
    answer: str = Text

    @model_validator(mode="after")
    def _one_line(self) -> Self:
        if "\n" in self.thoughts.strip():
            raise ValueError("an exemplar's thoughts must be one line: generation stops them at the line's end")
        return self


class Closing(Strict):
    """An exchange that closes an exemplar's dialogue, without thoughts; the original project ends each one so."""

    user: str = Text
    reply: str = Text


class Exemplar(DialogueTurn):
    follow_ups: list[DialogueTurn] = []
    closing: Closing | None = None

    def turns(self) -> list[DialogueTurn]:
        return [self, *self.follow_ups]


class QuestionType(Strict):
    name: str = Text
    topic: str = Text
    question: str = Text
    hints: list[int] = []
    """Principles that questions of this type tend to exercise."""


class Turn(Strict):
    user: str
    answer: str


class SystemPrompts(Strict):
    standard: str = Text
    concise: str = Text
    verbose: str = Text
    two_shot: list[Turn] = []


class IdentityPair(Strict):
    question: str = Text
    answer: str = Text


class SeedTask(Strict):
    """A human-written task; only its instruction and the first instance's input are ever shown to the model."""

    instruction: str
    input: str


class Layout(Strict):
    """The words around principles and exemplars in stage 2's prompt."""

    opening: str = (
        "# {name}\n\n{name} is an assistant. Its knowledge ends in {cutoff}. {name} follows these principles:"
    )
    examples: str = (
        "# Conversations\n\n"
        "Before each answer, {name} thinks in one line about the question and about the principles to follow."
    )


class Constitution(Strict):
    """Everything human-written that generation or training sees, but for the seed tasks."""

    format: Literal[1]
    name: str
    licence: str = ""
    language: str = "en"
    """ISO 639-1: the language that prompts and answers are in. It takes the place of the paper's ASCII rule."""
    assistant: Assistant
    layout: Layout = Layout()
    principles: list[Principle] = Field(min_length=1)
    exemplars: list[Exemplar] = Field(min_length=1)
    question_types: list[QuestionType] = []
    prompts: SystemPrompts
    identity: list[IdentityPair] = []

    def human_lines(self, seeds: int) -> dict[str, int]:
        """How many human-written items there are, by kind, with `seeds` seed tasks; `total` is their sum.

        Probes are not among them: they only measure. `Constitution.probes` counts them.
        """
        counts = {
            "principles": len(self.principles),
            "exemplars": len(self.exemplars),
            "seed tasks": seeds,
            "question types": len(self.question_types),
            "system prompts": 3 + bool(self.prompts.two_shot),
            "identity pairs": len(self.identity),
        }
        return {**counts, "total": sum(counts.values())}

    def probes(self) -> list[tuple[Principle, Probe]]:
        return [(principle, probe) for principle in self.principles for probe in principle.probes]

    def citation_cue(self) -> str:
        """The words that lead from the diagnosis to the first citation in every exemplar, as in " Principles: ".

        Guided generation gives them, so that every thought comes to its principles. Empty if the exemplars differ.
        """
        thoughts = [t.thoughts.strip() for e in self.exemplars for t in e.turns()]
        before = [t[: CITATION.search(t).start()] for t in thoughts]  # type: ignore[union-attr]
        if len(before) == 1:
            # One exemplar: its last sentence's beginning.
            return before[0][before[0].rfind(". ") + 1 :] if ". " in before[0] else ""
        common = ""
        for letters in zip(*(b[::-1] for b in before), strict=False):
            if len(set(letters)) > 1:
                break
            common = letters[0] + common
        # Whole words only: the cue begins at a space.
        return common[common.index(" ") :] if " " in common.rstrip() else ""

    def citation_close(self) -> str:
        """The words that follow the last citation in every exemplar, as in ", so the answer is:"."""
        thoughts = [t.thoughts.strip() for e in self.exemplars for t in e.turns()]
        after = [t[[m.end() for m in CITATION.finditer(t)][-1] :] for t in thoughts]
        return after[0] if len(set(after)) == 1 else "."

    def digest(self) -> str:
        """A hash of what generation and training see; a run refuses to go on under another constitution."""
        value = self.model_dump(mode="json")
        for principle in value["principles"]:
            del principle["probes"]
        return content_hash(value)

    def system_prompt(self, kind: Literal["standard", "concise", "verbose"]) -> str:
        return str(getattr(self.prompts, kind)).strip()

    def without(self, number: int) -> Constitution:
        """The same constitution without a principle and the exemplars' citations of it.

        Raises:
            UserError: there is no such principle, or an exemplar cites nothing else.
        """
        if number not in [p.id for p in self.principles]:
            raise UserError(
                f"there is no principle {number}; there are {', '.join(str(p.id) for p in self.principles)}"
            )
        value = self.model_dump(mode="json")
        value["principles"] = [p for p in value["principles"] if p["id"] != number]
        for exemplar in value["exemplars"]:
            for turn in (exemplar, *exemplar["follow_ups"]):
                turn["thoughts"] = _uncite(turn["thoughts"], number)
        for kind in value["question_types"]:
            kind["hints"] = [h for h in kind["hints"] if h != number]
        changed = validate(Constitution, value, f"constitution without principle {number}")
        for _, message in inconsistencies(changed):
            raise UserError(f"constitution without principle {number}: {message}")
        return changed


def _uncite(thoughts: str, number: int) -> str:
    kept = [m[0] for m in CITATION.finditer(thoughts) if int(m[1]) != number]
    first, last = None, None
    for match in CITATION.finditer(thoughts):
        first, last = (match.start() if first is None else first), match.end()
    return thoughts if first is None else thoughts[:first] + ", ".join(kept) + thoughts[last:]


def inconsistencies(constitution: Constitution) -> list[tuple[Place, str]]:
    """Where parts of a constitution contradict each other: each place, and what is wrong there."""
    found: list[tuple[Place, str]] = []
    names: dict[int, str] = {}
    if constitution.language not in LANGUAGES:
        known = ", ".join(f"{c} ({n})" for c, n in LANGUAGES.items())
        found.append((("language",), f"language {constitution.language!r} is not known; known are {known}"))
    for at, principle in enumerate(constitution.principles):
        if principle.id in names:
            found.append((("principles", at, "id"), f"two principles have the id {principle.id}"))
        names.setdefault(principle.id, principle.name)
    for at, exemplar in enumerate(constitution.exemplars):
        for turn_at, turn in enumerate(exemplar.turns()):
            inner: Place = () if turn_at == 0 else ("follow_ups", turn_at - 1)
            found += [
                (("exemplars", at, *inner, "thoughts"), f"exemplar {at + 1} {message}")
                for message in _wrong_citations(turn.thoughts, names)
            ]
    kinds = [t.name for t in constitution.question_types]
    for at, kind in enumerate(constitution.question_types):
        if kind.name in kinds[:at]:
            found.append((("question_types", at, "name"), f"two question types are named {kind.name!r}"))
        for hint_at, hint in enumerate(kind.hints):
            if hint not in names:
                message = f"question type {kind.name!r} hints at principle {hint}, which does not exist"
                found.append((("question_types", at, "hints", hint_at), message))
    pairs = [(p.question, p.answer) for p in constitution.identity]
    for at, pair in enumerate(pairs):
        if pair in pairs[:at]:
            found.append((("identity", at, "question"), f"two identity pairs ask {pair[0]!r} and answer alike"))
    return found


def _wrong_citations(thoughts: str, names: dict[int, str]) -> list[str]:
    cited = CITATION.findall(thoughts)
    right = [names.get(int(digits), "").lower() == name.lower() for digits, name in cited]
    if any(right):
        # "A meal for 4 (or 5) people" before the first true citation is none.
        cited = cited[right.index(True) :]
    if not cited:
        return ['cites no principle; end its thoughts with e.g. "3 (helpful)"']
    found = []
    for digits, name in cited:
        if int(digits) not in names:
            found.append(f'cites "{digits} ({name})", but there is no principle {digits}')
        elif names[int(digits)].lower() != name.lower():
            found.append(f'cites "{digits} ({name})", but principle {digits} is {names[int(digits)]!r}')
    return found
