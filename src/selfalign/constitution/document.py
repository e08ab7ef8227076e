"""Define the parts of a constitution, and find inconsistencies between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from selfalign.constitution.citations import citation_errors, remove_citation
from selfalign.data.records import content_hash
from selfalign.data.text import CITATION
from selfalign.errors import UserError
from selfalign.quality.language import LANGUAGES
from selfalign.quality.rouge import words
from selfalign.system.strict_yaml import Place, Strict, validate

Check = Literal[
    "refuses", "corrects", "admits", "no_live_data", "dated", "asks_back", "both_sides", "steps", "reasons", "aspects",
    "verse", "wordy", "mentions", "in_order", "language",
]  # fmt: skip
"""Behaviours of a response that can be checked without a judge model (evaluation/tasks/checks.py)."""

_NEED_WORDS = ("mentions", "in_order")
MAX_TYPE_EXEMPLARS = 4
_MIN_STEM = 4
"""Shorter words of a question type match whole words only: "rob" is not the beginning of "robot"."""
Text = Field(pattern=r"\S")
"""Text that is not blank."""


class Assistant(Strict):
    name: str = Field(min_length=1, max_length=40, pattern=r"^[\w][\w .'-]*$")
    cutoff: str = Field(min_length=1, max_length=60)


class Probe(Strict):
    """A user message that tests whether a model follows a principle. Probes are never trained on."""

    ask: str = Text
    expect: Check
    words: list[str] = []
    """For `mentions`, the response must contain any of these words; for `in_order`, all of them in this order."""
    contrast: bool = False
    """The behaviour must *not* appear. For example, a harmless question that sounds harmful must be answered."""

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
    antithesis: str = ""
    """The opposite of the rule, as an instruction. With `engrave.method: dpo`, rejected responses are written under the
    antitheses of the principles that the chosen response cites."""
    probes: list[Probe] = []


class DialogueTurn(Strict):
    """A user's message, the assistant's internal thoughts, and its response."""

    user: str = Text
    thoughts: str = Text
    """One line that ends with citations of the principles to follow, each as `number (name)`."""
    answer: str = Text

    @model_validator(mode="after")
    def _one_line(self) -> Self:
        if "\n" in self.thoughts.strip():
            raise ValueError("an exemplar's thoughts must be one line: generation ends thoughts at the end of a line")
        return self


class Closing(Strict):
    """An exchange without thoughts that closes an exemplar's dialogue, as in the original project."""

    user: str = Text
    reply: str = Text


class Exemplar(DialogueTurn):
    follow_ups: list[DialogueTurn] = []
    closing: Closing | None = None

    def turns(self) -> list[DialogueTurn]:
        """Return the first turn and its follow-ups."""
        return [self, *self.follow_ups]


class TypeExemplar(Exemplar):
    """An exemplar of a question type."""

    topic: str = ""
    """What the user's message is about, in a few words of the message. Stage 1b shows both as an example."""


class TopicQuestion(Strict):
    """A question of a type, and its topic in a few words of the question."""

    topic: str = Text
    question: str = Text


class QuestionType(Strict):
    name: str = Text
    about: str = ""
    """What the topics and questions of this type are, as the heading of a list of them. Without it, stage 1b asks for
    questions without topics (`prompts.red_team.form: by_type`)."""
    topic: str = Text
    question: str = Text
    more_examples: list[TopicQuestion] = []
    """Further questions for the list that stage 1b shows."""
    words: list[str] = []
    """Words of which a generated question has at least one. A word of four or more letters also matches longer words
    that begin with it. Empty: no condition."""
    weight: int = Field(1, ge=0, le=100)
    """The type's share of the prompts, relative to the other types (`prompts.red_team.form: by_type`); 0: none."""
    hints: list[int] = []
    """Ids of the principles that apply to questions of this type; its exemplars cite them first."""
    exemplars: list[TypeExemplar] = Field([], max_length=MAX_TYPE_EXEMPLARS)
    """Exemplars that stage 2 shows for questions of this type, instead of the general ones."""
    check: Check | None = None
    """What an acceptable response to such a question shows. It selects among candidates and is no measure."""
    twin_of: str = ""
    """The type with similar questions that need another response. One exemplar of each type is shown to the other."""

    @model_validator(mode="after")
    def _check_without_words(self) -> QuestionType:
        if self.check in _NEED_WORDS:
            raise ValueError(f"the check {self.check!r} needs words, which a question type does not have")
        return self

    def has_word(self, question: str) -> bool:
        """Return whether a question has one of the type's words, or the type has none."""
        wanted = [word.casefold() for word in self.words]
        return not wanted or any(
            word == other or (len(other) >= _MIN_STEM and word.startswith(other))
            for word in words(question)
            for other in wanted
        )

    def examples(self) -> list[tuple[str, str]]:
        """Return (topic, question) of the type, its exemplars and its further examples; "" for a missing topic."""
        pairs = [(self.topic, self.question), *((e.topic, e.user) for e in self.exemplars)]
        pairs += [(e.topic, e.question) for e in self.more_examples]
        return [(topic, " ".join(question.split())) for topic, question in pairs]


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
    """A human-written task. Stage 1 shows its instruction and the first instance's input; `engrave.seed_repeats` also
    trains on that instance's output."""

    instruction: str
    input: str
    output: str = ""


class Layout(Strict):
    """The texts that introduce the principles and the exemplars in the prompt of stage 2."""

    opening: str = (
        "# {name}\n\n{name} is an assistant. Its knowledge ends in {cutoff}. {name} follows these principles:"
    )
    examples: str = (
        "# Conversations\n\n"
        "Before each answer, {name} thinks in one line about the question and about the principles to follow."
    )


class Constitution(Strict):
    """All human-written text that is used in generation or training, except the seed tasks."""

    format: Literal[1]
    name: str
    licence: str = ""
    language: str = "en"
    """ISO 639-1 code of the language of prompts and responses. Except for English, a check of the language replaces the
    paper's ASCII rule."""
    assistant: Assistant
    layout: Layout = Layout()
    principles: list[Principle] = Field(min_length=1)
    exemplars: list[Exemplar] = Field(min_length=1)
    question_types: list[QuestionType] = []
    prompts: SystemPrompts
    identity: list[IdentityPair] = []

    def human_items(self, seeds: int) -> dict[str, int]:
        """Count the human-written items by kind, with `seeds` seed tasks; `total` is their sum.

        Probes are not counted, because they are not trained on.
        """
        antitheses = sum(bool(p.antithesis.strip()) for p in self.principles)
        counts = {
            "principles": len(self.principles),
            **({"antitheses": antitheses} if antitheses else {}),
            "exemplars": len(self.exemplars),
            "seed tasks": seeds,
            "question types": sum(1 + len(t.more_examples) for t in self.question_types),
            "exemplars of types": sum(len(t.exemplars) for t in self.question_types),
            "system prompts": 3 + bool(self.prompts.two_shot),
            "identity pairs": len(self.identity),
        }
        return {**counts, "total": sum(counts.values())}

    def principle_names(self) -> dict[int, str]:
        """Return the principles' names by id."""
        return {principle.id: principle.name for principle in self.principles}

    def probes(self) -> list[tuple[Principle, Probe]]:
        """Return every probe with its principle."""
        return [(principle, probe) for principle in self.principles for probe in principle.probes]

    def all_exemplars(self) -> list[Exemplar]:
        """Return the general exemplars, then those of the question types."""
        return [*self.exemplars, *(e for t in self.question_types for e in t.exemplars)]

    def question_type(self, name: str) -> QuestionType | None:
        """Return the question type of that name."""
        return next((t for t in self.question_types if t.name == name), None)

    def twin(self, kind: QuestionType) -> QuestionType | None:
        """Return the type that `kind` names as its twin, or the first that names `kind`; None if there is neither."""
        if kind.twin_of:
            return self.question_type(kind.twin_of)
        return next((t for t in self.question_types if t.twin_of == kind.name), None)

    def exemplars_for(self, name: str) -> list[Exemplar]:
        """Return the exemplars to show for a question of this type: one of its twin first, as a contrast, then its own.

        A question without a type, or of a type without exemplars, gets the general exemplars.
        """
        kind = self.question_type(name)
        if kind is None or not kind.exemplars:
            return self.exemplars
        twin = self.twin(kind)
        return [*(twin.exemplars[:1] if twin else []), *kind.exemplars]

    def required_check(self, name: str) -> tuple[Check, bool] | None:
        """Return (check, whether a response must show it) for questions of this type; None without a check.

        A type without a check of its own must not show the check of its twin.
        """
        kind = self.question_type(name)
        if kind is None:
            return None
        if kind.check:
            return kind.check, True
        twin = self.twin(kind)
        return (twin.check, False) if twin and twin.check else None

    def citation_cue(self) -> str:
        """Return the words before the first citation, if they are the same in all exemplars, such as " Principles: ".

        Guided generation inserts them, so that all thoughts cite principles. Empty if the exemplars differ.
        """
        thoughts = [t.thoughts.strip() for e in self.all_exemplars() for t in e.turns()]
        before = [t[: CITATION.search(t).start()] for t in thoughts]  # type: ignore[union-attr]
        if len(before) == 1:
            # With a single exemplar, the cue is the beginning of its last sentence.
            return before[0][before[0].rfind(". ") + 1 :] if ". " in before[0] else ""
        common = ""
        for letters in zip(*(b[::-1] for b in before), strict=False):
            if len(set(letters)) > 1:
                break
            common = letters[0] + common
        # The cue begins at a space, so that it has whole words only.
        return common[common.index(" ") :] if " " in common.rstrip() else ""

    def citation_close(self) -> str:
        """Return the words after the last citation, such as ", so the answer is:"; "." if the exemplars differ."""
        thoughts = [t.thoughts.strip() for e in self.all_exemplars() for t in e.turns()]
        after = [t[[m.end() for m in CITATION.finditer(t)][-1] :] for t in thoughts]
        return after[0] if len(set(after)) == 1 else "."

    def digest(self) -> str:
        """Return a hash of all parts but the probes. A run can only be resumed with a constitution of the same hash."""
        value = self.model_dump(mode="json")
        for principle in value["principles"]:
            del principle["probes"]
            if not principle["antithesis"]:  # constitutions without antitheses keep their hash
                del principle["antithesis"]
        for kind in value["question_types"]:
            # Constitutions of earlier versions, without these keys, keep their hash.
            for key in ("about", "more_examples", "words", "exemplars", "check", "twin_of"):
                if not kind[key]:
                    del kind[key]
            if kind["weight"] == 1:
                del kind["weight"]
        return content_hash(value)

    def system_prompt(self, kind: Literal["standard", "concise", "verbose"]) -> str:
        """Return the system prompt of that name."""
        return str(getattr(self.prompts, kind)).strip()

    def without(self, number: int) -> Constitution:
        """Return the constitution without one principle and without the exemplars' citations of it.

        Raises:
            UserError: there is no such principle, or it is the only one that an exemplar cites.
        """
        if number not in (names := self.principle_names()):
            raise UserError(f"there is no principle {number}; the principles are {', '.join(map(str, names))}")
        value = self.model_dump(mode="json")
        value["principles"] = [p for p in value["principles"] if p["id"] != number]
        for kind in value["question_types"]:
            # An exemplar that cites no other hint of its type, if it has hints, no longer belongs to the type.
            belongs = [n for n in kind["hints"] or names if n != number]
            kind["hints"] = [h for h in kind["hints"] if h != number]
            kind["exemplars"] = [e for e in kind["exemplars"] if _cites_any(e["thoughts"], belongs)]
        exemplars = [*value["exemplars"], *(e for kind in value["question_types"] for e in kind["exemplars"])]
        for turn in (turn for e in exemplars for turn in (e, *e["follow_ups"])):
            turn["thoughts"] = remove_citation(turn["thoughts"], number)
        changed = validate(Constitution, value, f"constitution without principle {number}")
        for _, message in inconsistencies(changed):
            raise UserError(f"constitution without principle {number}: {message}")
        return changed


def _cites_any(thoughts: str, principles: list[int]) -> bool:
    return any(int(number) in principles for number, _ in CITATION.findall(thoughts))


def exemplar_places(constitution: Constitution) -> Iterator[tuple[Place, str, Exemplar]]:
    """Yield each exemplar with its place and a label for messages, the general ones first."""
    for at, exemplar in enumerate(constitution.exemplars):
        yield ("exemplars", at), f"exemplar {at + 1}", exemplar
    for type_at, kind in enumerate(constitution.question_types):
        for at, exemplar in enumerate(kind.exemplars):
            place: Place = ("question_types", type_at, "exemplars", at)
            yield place, f"exemplar {at + 1} of question type {kind.name!r}", exemplar


def turn_places(constitution: Constitution) -> Iterator[tuple[Place, str, DialogueTurn]]:
    """Yield each turn of each exemplar with its place and the exemplar's label."""
    for place, label, exemplar in exemplar_places(constitution):
        for at, turn in enumerate(exemplar.turns()):
            yield (place if at == 0 else (*place, "follow_ups", at - 1)), label, turn


def inconsistencies(constitution: Constitution) -> list[tuple[Place, str]]:
    """Return the inconsistencies between parts of a constitution, each as a place and a message."""
    errors: list[tuple[Place, str]] = []
    names: dict[int, str] = {}
    if constitution.language not in LANGUAGES:
        known = ", ".join(f"{c} ({n})" for c, n in LANGUAGES.items())
        errors.append((("language",), f"language {constitution.language!r} is unknown; known languages are {known}"))
    for at, principle in enumerate(constitution.principles):
        if principle.id in names:
            errors.append((("principles", at, "id"), f"two principles have the id {principle.id}"))
        names.setdefault(principle.id, principle.name)
    for place, label, turn in turn_places(constitution):
        errors += [((*place, "thoughts"), f"{label} {message}") for message in citation_errors(turn.thoughts, names)]
    errors += _type_errors(constitution, names)
    pairs = [(p.question, p.answer) for p in constitution.identity]
    for at, pair in enumerate(pairs):
        if pair in pairs[:at]:
            errors.append(
                (("identity", at, "question"), f"two identity pairs have the question {pair[0]!r} and the same answer")
            )
    return errors


def _type_errors(constitution: Constitution, names: dict[int, str]) -> Iterator[tuple[Place, str]]:
    kinds = [t.name for t in constitution.question_types]
    for at, kind in enumerate(constitution.question_types):
        place: Place = ("question_types", at)
        if kind.name in kinds[:at]:
            yield (*place, "name"), f"two question types are named {kind.name!r}"
        for hint_at, hint in enumerate(kind.hints):
            if hint not in names:
                message = f"question type {kind.name!r} has the hint {hint}, but there is no such principle"
                yield (*place, "hints", hint_at), message
        for number, exemplar in enumerate(kind.exemplars):
            if kind.hints and not _cites_any(exemplar.thoughts, kind.hints):
                message = f"exemplar {number + 1} of question type {kind.name!r} cites none of the type's hints"
                yield (*place, "exemplars", number, "thoughts"), message
        if kind.twin_of == kind.name:
            yield (*place, "twin_of"), f"question type {kind.name!r} is its own twin"
        elif kind.twin_of and kind.twin_of not in kinds:
            yield (
                (*place, "twin_of"),
                f"question type {kind.name!r} has an unknown twin, {kind.twin_of!r}",
            )
        elif kind.twin_of and [t.twin_of for t in constitution.question_types].index(kind.twin_of) < at:
            yield (*place, "twin_of"), f"question type {kind.twin_of!r} has two twins"
