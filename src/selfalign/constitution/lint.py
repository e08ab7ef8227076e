"""Find errors and likely mistakes in a constitution, each with file and line (`selfalign constitution lint`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from selfalign.constitution.document import (
    Check,
    Constitution,
    SeedTask,
    exemplar_places,
    inconsistencies,
    turn_places,
)
from selfalign.constitution.loading import Located
from selfalign.constitution.rendering import longest
from selfalign.data.text import CITATION
from selfalign.quality.language import LANGUAGES
from selfalign.quality.rouge import normalize, rouge_l, tokens, without_end
from selfalign.system.strict_yaml import Place, explain

HUMAN_LIMIT = 300
"""SELF-ALIGN uses fewer than 300 lines of human-written text (arXiv 2305.03047)."""
_NEAR = 0.7
_ANY_LANGUAGE = ("mentions", "in_order", "language", "verse")
"""Probe checks that do not depend on English words."""
_LEAK_SHARE = 0.5
_MIN_LEAK_WORDS = 2
_NEGATIVE = (
    r"^\W*(?:(?:i|you|we|it|the assistant|NAME)\W+)?"
    r"(?:(?:must|should|will|can|do|does|am|are|is|may)\W+(?:not|never)|never|don't|doesn't|won't|can't|mustn't|shouldn't|"
    r"cannot|avoid|refuse|refrain)\b"
)
_NEGATION = re.compile(
    r"\b(?:not|never|no|don't|doesn't|won't|cannot|can't|avoid|without|refuse|nothing)\b", re.IGNORECASE
)
_OPPOSITES = (
    ("always", "never"), ("brief", "detailed"), ("brief", "thorough"), ("short", "long"), ("short", "detailed"),
    ("concise", "detailed"), ("formal", "casual"), ("formal", "informal"), ("serious", "funny"), ("refuse", "accept"),
    ("only", "also"), ("first", "last"), ("simple", "technical"),
)  # fmt: skip
_STOP = frozenset([
    "about", "above", "after", "again", "also", "always", "answer", "answers", "answered", "answering", "because",
    "been", "before", "being", "between", "both", "could", "does", "doing", "done", "each", "every", "fact", "facts",
    "from", "give", "given", "gives", "giving", "have", "having", "here", "into", "just", "know", "knows", "like",
    "made", "make", "makes", "more", "most", "much", "must", "name", "never", "only", "other", "over", "please",
    "question", "questions", "same", "should", "show", "shows", "some", "such", "than", "that", "their", "them",
    "then", "there", "these", "they", "thing", "things", "this", "those", "through", "user", "users", "using", "very",
    "want", "wants", "well", "were", "what", "when", "where", "which", "while", "will", "with", "without", "word",
    "words", "would", "write", "your", "yours", "tell", "explain", "describe", "short", "long", "many", "good",
    "best", "find", "help", "helps", "need", "needs", "think", "text", "list", "following", "first", "last", "next",
    "people", "person", "sentence", "sentences",
])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """An error or a warning about one part of a constitution."""

    where: str
    """file:line"""
    level: Literal["error", "warning"]
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.level}: {self.message} [{self.rule}]"


@dataclass(frozen=True, slots=True)
class Budget:
    """The token budget of stage 2's prompt."""

    model: str
    count: Callable[[str], int]
    context: int
    """The context length in tokens."""
    answer: int
    """Number of tokens needed for internal thoughts and response."""


Shows = Callable[[Check, str, str], bool]
"""(check, message, response) -> whether the response shows it. `evaluation/tasks/checks.py` implements it."""


def lint(
    document: Located, seeds: list[tuple[str, SeedTask]], budget: Budget | None = None, shows: Shows | None = None
) -> list[Finding]:
    """Return all findings, errors first, in the order of the document.

    Args:
        shows: applies the checks of question types to their exemplars; None skips this rule.
    """
    try:
        constitution = Constitution.model_validate(document.value)
    except ValidationError as error:
        # A typo in a required key gives two errors, one for the missing and one for the unknown key; report both.
        return [
            Finding(document.where(tuple(e["loc"])), "error", "form", explain(Constitution, e)) for e in error.errors()
        ]
    findings = [Finding(document.where(p), "error", "consistency", m) for p, m in inconsistencies(constitution)]
    checks = (_principles, _wordings, _exemplars, _hints, _placeholders, _probes)
    for check in checks:
        findings += [Finding(document.where(place), *rest) for place, *rest in check(constitution)]  # type: ignore[arg-type]
    if shows:
        findings += [Finding(document.where(place), *rest) for place, *rest in _type_checks(constitution, shows)]  # type: ignore[arg-type]
    findings += _leaks(document, constitution, seeds)
    findings += _seeds(seeds)
    findings += _size(document, constitution, len(seeds), budget)
    return sorted(findings, key=lambda f: f.level != "error")


_Row = tuple[Place, Literal["error", "warning"], str, str]


def _principles(constitution: Constitution) -> Iterable[_Row]:
    turns = [t for e in constitution.all_exemplars() for t in e.turns()]
    cited = {int(n) for t in turns for n, _ in CITATION.findall(t.thoughts)}
    ids = [p.id for p in constitution.principles]
    for at, principle in enumerate(constitution.principles):
        if principle.id not in cited:
            message = f"no exemplar cites principle {principle.id} ({principle.name})"
            yield ("principles", at), "warning", "exemplified", message
        expected = at + 1
        if principle.id != expected and principle.id not in ids[:at]:
            message = f"expected principle {expected}, not {principle.id}: number principles 1, 2, 3, … without gaps"
            yield ("principles", at, "id"), "warning", "numbering", message
            break


def _wordings(constitution: Constitution) -> Iterable[_Row]:
    negative = re.compile(_NEGATIVE.replace("NAME", re.escape(constitution.assistant.name)), re.IGNORECASE)
    for at, principle in enumerate(constitution.principles):
        place: Place = ("principles", at, "rule")
        if negative.match(principle.rule.replace("’", "'")):
            message = f"principle {principle.id} describes what not to do: write what to do instead"
            yield place, "warning", "negative", message
        for other in constitution.principles[:at]:
            if principle.name.lower() == other.name.lower():
                message = f"principles {other.id} and {principle.id} are both named {principle.name!r}"
                yield ("principles", at, "name"), "error", "duplicate", message
            if _contradict(principle.rule, other.rule):
                message = f"principles {other.id} and {principle.id} seem to contradict each other"
                yield place, "warning", "contradiction", message
            elif rouge_l(principle.rule, other.rule) > _NEAR:
                message = f"principles {other.id} and {principle.id} are nearly the same"
                yield place, "warning", "duplicate", message


def _contradict(rule: str, other: str) -> bool:
    """Return whether two rules have the same subject, and only one is negated or they require opposites."""
    a, b = set(tokens(rule)), set(tokens(other))
    topic, other_topic = _content_words(rule), _content_words(other)
    shared = topic & other_topic
    opposed = any((x in a and y in b and y not in a and x not in b) or (y in a and x in b and x not in a and y not in b)
                  for x, y in _OPPOSITES)  # fmt: skip
    negated = bool(_NEGATION.search(rule)) != bool(_NEGATION.search(other))
    near = len(shared) >= 2 and len(shared) >= 0.5 * min(len(topic), len(other_topic))
    return near and (opposed or negated)


def _exemplars(constitution: Constitution) -> Iterable[_Row]:
    name = re.escape(constitution.assistant.name)
    role = re.compile(rf"(^|\n)[^\S\n]*(user|{name})[^\S\n]*(\(internal thoughts\))?:", re.IGNORECASE)
    for place, label, turn in turn_places(constitution):
        for key in ("user", "answer"):
            if role.search(getattr(turn, key)):
                message = f"{label} contains a line that looks like another turn ('User:' or the name)"
                yield (*place, key), "error", "turn", message
        if _unfinished(turn.answer):
            message = f"the answer of {label} ends in mid-sentence: {turn.answer.strip()[-30:]!r}"
            yield (*place, "answer"), "warning", "unfinished", message
    yield from _cue(constitution)
    users: list[str] = []
    for place, label, exemplar in exemplar_places(constitution):
        if any(rouge_l(exemplar.user, other) > _NEAR for other in users):
            yield (*place, "user"), "warning", "duplicate", f"{label} is nearly the same as an earlier one"
        users.append(exemplar.user)


def _cue(constitution: Constitution) -> Iterable[_Row]:
    """Check that all exemplars have the same words before their citations, which guided generation inserts."""
    before = [
        (place, label, match and turn.thoughts[: match.start()].split()[-1:])
        for place, label, turn in turn_places(constitution)
        for match in [CITATION.search(turn.thoughts)]
    ]
    if len(before) < 2 or any(words is None for *_, words in before) or constitution.citation_cue():
        return
    place, label, _ = next((b for b in before if b[2] != before[0][2]), before[0])
    message = (
        f"{label} differs from the first in the words before its citations; guided generation needs the same words in "
        "all exemplars, such as 'Principles:'"
    )
    yield (*place, "thoughts"), "warning", "cue", message


def _unfinished(answer: str) -> bool:
    """Return whether the last line is an unfinished sentence. Short lines, list items and code need no full stop."""
    last = answer.strip().split("\n")[-1]
    prose = len(last.split()) >= 6 and not re.match(r"(\d+[.)]|[-*•])\s|\s{4}|`", last)
    return (prose and last[-1:].isalpha()) or last.endswith((",", " and", " or", " the"))


def _hints(constitution: Constitution) -> Iterable[_Row]:
    for at, kind in enumerate(constitution.question_types):
        if not kind.hints:
            message = f"question type {kind.name!r} names no principle (hints)"
            yield ("question_types", at), "warning", "hints", message
        if kind.twin_of and not kind.exemplars:
            message = f"question type {kind.name!r} has a twin but no exemplars that show the difference: add some"
            yield ("question_types", at, "twin_of"), "warning", "twin", message
        if kind.check and not kind.exemplars:
            message = f"question type {kind.name!r} has a check but no exemplars, so that stage 2 does not apply it"
            yield ("question_types", at, "check"), "warning", "check", message
        for number, exemplar in enumerate(kind.exemplars if kind.about else []):
            if not exemplar.topic.strip():
                message = (
                    f"exemplar {number + 1} of question type {kind.name!r} has no topic, so that stage 1b skips it"
                )
                yield ("question_types", at, "exemplars", number), "warning", "topic", message
        if kind.check and constitution.language != "en" and kind.check not in _ANY_LANGUAGE:
            yield ("question_types", at, "check"), "error", "check", _english_only(kind.check, constitution)


def _english_only(check: str, constitution: Constitution) -> str:
    language = LANGUAGES.get(constitution.language, constitution.language)
    return f"the check {check!r} works in English only; in {language}, use one of {', '.join(_ANY_LANGUAGE)}"


def _type_checks(constitution: Constitution, shows: Shows) -> Iterable[_Row]:
    """Check that the answers of a type's exemplars show what the type's check names."""
    if constitution.language != "en":
        return
    for at, kind in enumerate(constitution.question_types):
        if (required := constitution.required_check(kind.name)) is None:
            continue
        check, must_show = required
        for number, exemplar in enumerate(kind.exemplars):
            if shows(check, exemplar.user, exemplar.answer) != must_show:
                what = "does not show" if must_show else "shows"
                message = f"exemplar {number + 1} of question type {kind.name!r} {what} {check!r}"
                yield ("question_types", at, "exemplars", number, "answer"), "warning", "check", message


def _placeholders(constitution: Constitution) -> Iterable[_Row]:
    for place, text in _strings(constitution.model_dump(include={"layout", "principles", "prompts", "identity"})):
        for placeholder in re.findall(r"\{[A-Za-z_]{1,30}\}", text):
            yield (
                place,
                "error",
                "placeholder",
                f"{placeholder} is unknown; the placeholders are {{name}} and {{cutoff}}",
            )


def _strings(value: object, place: Place = ()) -> Iterable[tuple[Place, str]]:
    """Yield every text in a plain value with its place."""
    if isinstance(value, str):
        yield place, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _strings(inner, (*place, key))


def _probes(constitution: Constitution) -> Iterable[_Row]:
    principle_of: dict[str, int] = {}
    for at, principle in enumerate(constitution.principles):
        contrasts = sum(p.contrast for p in principle.probes)
        if principle.probes and contrasts * 2 != len(principle.probes):
            message = (
                f"{contrasts} of the {len(principle.probes)} probes of principle {principle.id} are contrasts; half of "
                "them should be"
            )
            yield ("principles", at, "probes"), "warning", "probes", message
        for probe_at, probe in enumerate(principle.probes):
            if constitution.language != "en" and probe.expect not in _ANY_LANGUAGE:
                message = _english_only(probe.expect, constitution)
                yield ("principles", at, "probes", probe_at), "error", "probes", message
            key = normalize(probe.ask)
            if key in principle_of:
                message = f"the probe {probe.ask!r} is also a probe of principle {principle_of[key]}"
                yield ("principles", at, "probes", probe_at), "warning", "duplicate", message
            principle_of.setdefault(key, principle.id)


def _content_words(text: str) -> set[str]:
    """Return the words of at least four letters that are not stop words, without a final s."""
    return {w.removesuffix("s") for w in tokens(text) if len(w) >= 4 and w not in _STOP}


def _leaks(document: Located, constitution: Constitution, seeds: list[tuple[str, SeedTask]]) -> Iterable[Finding]:
    """Find seeds and probes on the topic of an exemplar, and probes that are trained on."""
    places = [
        (document.where(("principles", at, "probes", number)), "probe", probe.ask)
        for at, principle in enumerate(constitution.principles)
        for number, probe in enumerate(principle.probes)
    ]
    texts = places + [(where, "seed", f"{seed.instruction} {seed.input}") for where, seed in seeds]
    labelled = [(label, e.user) for _, label, e in exemplar_places(constitution)]
    examples = [t.user for _, _, t in turn_places(constitution)] + [t.user for t in constitution.prompts.two_shot]
    questions = [p.question for p in constitution.identity]
    questions += [text for kind in constitution.question_types for _, text in kind.examples()]
    trained = {without_end(t) for t in examples + questions + [s.instruction for _, s in seeds]}
    for where, what, text in texts:
        for label, user in labelled:
            topic = _content_words(user)
            content = _content_words(text)
            shared = topic & content
            # A long text shares words with any topic.
            about = len(shared) >= _LEAK_SHARE * len(topic) and len(shared) * 4 >= len(content)
            if len(shared) >= _MIN_LEAK_WORDS and about:
                message = f"the {what} has the same topic as {label} ({', '.join(sorted(shared))})"
                yield Finding(where, "warning", "leak", message)
        if what == "probe" and without_end(text) in trained:
            message = f"the probe {text!r} is also trained on, as a seed, an exemplar, a red-team or identity question"
            yield Finding(where, "error", "leak", message)


def _seeds(seeds: list[tuple[str, SeedTask]]) -> Iterable[Finding]:
    for at, (where, seed) in enumerate(seeds):
        for other_where, other in seeds[:at]:
            if rouge_l(seed.instruction, other.instruction) > _NEAR:
                yield Finding(where, "warning", "seeds", f"the seed is nearly the same as the one at {other_where}")
                break


def _size(document: Located, constitution: Constitution, seeds: int, budget: Budget | None) -> Iterable[Finding]:
    total = constitution.human_items(seeds)["total"]
    if total >= HUMAN_LIMIT:
        message = f"{total} human-written items; SELF-ALIGN keeps below {HUMAN_LIMIT}"
        yield Finding(document.where(()), "warning", "size", message)
    if budget is None:
        return
    used = longest(constitution, budget.count)
    left = budget.context - used
    if left < budget.answer:
        message = (
            f"the rendered prompt has {used} tokens with {budget.model}, which leaves {max(0, left)} of "
            f"{budget.context}; thoughts and response need {budget.answer}"
        )
        yield Finding(document.where(("principles",)), "error", "budget", message)
