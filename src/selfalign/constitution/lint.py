"""`constitution lint`: everything that is wrong or doubtful in a constitution, each with file and line. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from selfalign.constitution.document import Constitution, SeedTask, inconsistencies
from selfalign.constitution.loading import Located
from selfalign.constitution.rendering import query, render
from selfalign.data.text import CITATION
from selfalign.quality.language import LANGUAGES
from selfalign.quality.rouge import folded, rouge_l, tokens
from selfalign.system.strict_yaml import Place, explain

HUMAN_LIMIT = 300
"""SELF-ALIGN's promise: fewer than 300 lines of human text (arXiv 2305.03047)."""
_NEAR = 0.7
ANY_LANGUAGE = ("mentions", "in_order", "language", "verse")
"""Checks that need no English words."""
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
    """One thing that lint found."""

    where: str
    """file:line"""
    level: Literal["error", "warning"]
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.level}: {self.message} [{self.rule}]"


@dataclass(frozen=True, slots=True)
class Budget:
    """How long stage 2's prompt may be, and how to count it."""

    model: str
    count: Callable[[str], int]
    context: int
    answer: int
    """Tokens that thoughts and answer need."""


def lint(document: Located, seeds: list[tuple[str, SeedTask]], budget: Budget | None = None) -> list[Finding]:
    """All findings, errors first, each kind in the order of the document."""
    try:
        constitution = Constitution.model_validate(document.value)
    except ValidationError as error:
        # A typo in a required key is both missing and unknown; both lines help.
        return [
            Finding(document.where(tuple(e["loc"])), "error", "form", explain(Constitution, e)) for e in error.errors()
        ]
    found = [Finding(document.where(p), "error", "consistency", m) for p, m in inconsistencies(constitution)]
    checks = (_principles, _wordings, _exemplars, _hints, _placeholders, _probes)
    for check in checks:
        found += [Finding(document.where(place), *rest) for place, *rest in check(constitution)]  # type: ignore[arg-type]
    found += _leaks(document, constitution, seeds)
    found += _seeds(seeds)
    found += _size(document, constitution, len(seeds), budget)
    return sorted(found, key=lambda f: f.level != "error")


_Row = tuple[Place, Literal["error", "warning"], str, str]


def _principles(constitution: Constitution) -> Iterable[_Row]:
    cited = {int(n) for e in constitution.exemplars for t in e.turns() for n, _ in CITATION.findall(t.thoughts)}
    ids = [p.id for p in constitution.principles]
    for at, principle in enumerate(constitution.principles):
        if principle.id not in cited:
            message = f"no exemplar shows principle {principle.id} ({principle.name})"
            yield ("principles", at), "warning", "exemplified", message
        expected = at + 1
        if principle.id != expected and principle.id not in ids[:at]:
            message = f"principle {principle.id} stands where {expected} is due: number them 1, 2, 3 without holes"
            yield ("principles", at, "id"), "warning", "numbering", message
            break


def _wordings(constitution: Constitution) -> Iterable[_Row]:
    negative = re.compile(_NEGATIVE.replace("NAME", re.escape(constitution.assistant.name)), re.IGNORECASE)
    for at, principle in enumerate(constitution.principles):
        place: Place = ("principles", at, "rule")
        if negative.match(principle.rule.replace("’", "'")):
            message = f"principle {principle.id} says what not to do; say what to do instead"
            yield place, "warning", "negative", message
        for other in constitution.principles[:at]:
            if principle.name.lower() == other.name.lower():
                message = f"principles {other.id} and {principle.id} are both named {principle.name!r}"
                yield ("principles", at, "name"), "error", "duplicate", message
            if _contradict(principle.rule, other.rule):
                message = f"principles {other.id} and {principle.id} seem to contradict each other"
                yield place, "warning", "contradiction", message
            elif rouge_l(principle.rule, other.rule) > _NEAR:
                message = f"principles {other.id} and {principle.id} say nearly the same"
                yield place, "warning", "duplicate", message


def _contradict(one: str, other: str) -> bool:
    """Whether two rules speak of the same and one of them negates it, or they want opposites."""
    a, b = set(tokens(one)), set(tokens(other))
    shared = content_words(one) & content_words(other)
    opposed = any((x in a and y in b and y not in a and x not in b) or (y in a and x in b and x not in a and y not in b)
                  for x, y in _OPPOSITES)  # fmt: skip
    negated = bool(_NEGATION.search(one)) != bool(_NEGATION.search(other))
    near = len(shared) >= 2 and len(shared) >= 0.5 * min(len(content_words(one)), len(content_words(other)))
    return near and (opposed or negated)


def _exemplars(constitution: Constitution) -> Iterable[_Row]:
    name = re.escape(constitution.assistant.name)
    role = re.compile(rf"(^|\n)[^\S\n]*(user|{name})[^\S\n]*(\(internal thoughts\))?:", re.IGNORECASE)
    for at, exemplar in enumerate(constitution.exemplars):
        for turn_at, turn in enumerate(exemplar.turns()):
            inner: Place = () if turn_at == 0 else ("follow_ups", turn_at - 1)
            for key in ("user", "answer"):
                if role.search(getattr(turn, key)):
                    message = f"exemplar {at + 1} contains what reads as a turn of its own ('User:' or the name)"
                    yield ("exemplars", at, *inner, key), "error", "turn", message
            if _unfinished(turn.answer):
                message = f"exemplar {at + 1}'s answer stops in mid-sentence: {turn.answer.strip()[-30:]!r}"
                yield ("exemplars", at, *inner, "answer"), "warning", "unfinished", message
    yield from _cue(constitution)
    users = [e.user for e in constitution.exemplars]
    for at, user in enumerate(users):
        if any(rouge_l(user, other) > _NEAR for other in users[:at]):
            yield ("exemplars", at, "user"), "warning", "duplicate", f"exemplar {at + 1} asks what an earlier one asks"


def _cue(constitution: Constitution) -> Iterable[_Row]:
    """Guided generation leads each thought to its citations by the words that all exemplars have before theirs."""
    thoughts = [(at, t.thoughts) for at, e in enumerate(constitution.exemplars) for t in e.turns()]
    before = [(at, m and t[: m.start()].split()[-1:]) for at, t in thoughts for m in [CITATION.search(t)]]
    if len(before) < 2 or any(words is None for _, words in before) or constitution.citation_cue():
        return
    odd = next((at for at, words in before if words != before[0][1]), 0)
    message = (
        f"exemplar {odd + 1} leads to its principles by other words than the first; with the same words in all "
        "(as 'Principles:') guided generation brings each thought to its citations"
    )
    yield ("exemplars", odd, "thoughts"), "warning", "cue", message


def _unfinished(answer: str) -> bool:
    """Whether the last line is a sentence without its end; short lines, list items and code need none."""
    last = answer.strip().split("\n")[-1]
    prose = len(last.split()) >= 6 and not re.match(r"(\d+[.)]|[-*•])\s|\s{4}|`", last)
    return (prose and last[-1:].isalpha()) or last.endswith((",", " and", " or", " the"))


def _hints(constitution: Constitution) -> Iterable[_Row]:
    for at, kind in enumerate(constitution.question_types):
        if not kind.hints:
            message = f"question type {kind.name!r} names no principle that it exercises (hints)"
            yield ("question_types", at), "warning", "hints", message


def _placeholders(constitution: Constitution) -> Iterable[_Row]:
    for place, text in _strings(constitution.model_dump(include={"layout", "principles", "prompts", "identity"})):
        for placeholder in re.findall(r"\{[A-Za-z_]{1,30}\}", text):
            yield place, "error", "placeholder", f"{placeholder} is not filled; known are {{name}} and {{cutoff}}"


def _strings(value: object, place: Place = ()) -> Iterable[tuple[Place, str]]:
    """Every text in a plain value, with its place."""
    if isinstance(value, str):
        yield place, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _strings(inner, (*place, key))


def _probes(constitution: Constitution) -> Iterable[_Row]:
    asked: dict[str, int] = {}
    language = LANGUAGES.get(constitution.language, constitution.language)
    for at, principle in enumerate(constitution.principles):
        contrasts = sum(p.contrast for p in principle.probes)
        if principle.probes and contrasts * 2 != len(principle.probes):
            message = (
                f"principle {principle.id} has {contrasts} contrast probes of {len(principle.probes)}; half of them "
                "should show where the behaviour does not belong"
            )
            yield ("principles", at, "probes"), "warning", "probes", message
        for probe_at, probe in enumerate(principle.probes):
            if constitution.language != "en" and probe.expect not in ANY_LANGUAGE:
                message = (
                    f"the check {probe.expect!r} reads English only; in {language} take one of "
                    f"{', '.join(ANY_LANGUAGE)}"
                )
                yield ("principles", at, "probes", probe_at), "error", "probes", message
            key = folded(probe.ask)
            if key in asked:
                message = f"the probe {probe.ask!r} is also one of principle {asked[key]}"
                yield ("principles", at, "probes", probe_at), "warning", "duplicate", message
            asked.setdefault(key, principle.id)


def content_words(text: str) -> set[str]:
    """Words that carry a topic: four letters and more, no stop words, plural and singular as one."""
    return {w.removesuffix("s") for w in tokens(text) if len(w) >= 4 and w not in _STOP}


def _leaks(document: Located, constitution: Constitution, seeds: list[tuple[str, SeedTask]]) -> Iterable[Finding]:
    """What the model sees as an example must not be asked again: not in a seed, never in a probe."""
    places = [
        (document.where(("principles", at, "probes", number)), "probe", probe.ask)
        for at, principle in enumerate(constitution.principles)
        for number, probe in enumerate(principle.probes)
    ]
    texts = places + [(where, "seed", f"{seed.instruction} {seed.input}") for where, seed in seeds]
    shown = [(f"exemplar {n}", e.user) for n, e in enumerate(constitution.exemplars, 1)]
    examples = [t.user for e in constitution.exemplars for t in e.turns()] + [
        t.user for t in constitution.prompts.two_shot
    ]
    asked = [p.question for p in constitution.identity] + [q.question for q in constitution.question_types]
    trained = {folded(t) for t in examples + asked + [s.instruction for _, s in seeds]}
    for where, what, text in texts:
        for label, user in shown:
            topic = content_words(user)
            content = content_words(text)
            shared = topic & content
            # A long seed shares words with anything.
            about = len(shared) >= _LEAK_SHARE * len(topic) and len(shared) * 4 >= len(content)
            if len(shared) >= _MIN_LEAK_WORDS and about:
                message = f"the {what} names the topic of {label} ({', '.join(sorted(shared))})"
                yield Finding(where, "warning", "leak", message)
        if what == "probe" and folded(text) in trained:
            message = f"the probe {text!r} is also a seed, an exemplar, a question type's or an identity question"
            yield Finding(where, "error", "leak", message)


def _seeds(seeds: list[tuple[str, SeedTask]]) -> Iterable[Finding]:
    for at, (where, seed) in enumerate(seeds):
        for other_where, other in seeds[:at]:
            if rouge_l(seed.instruction, other.instruction) > _NEAR:
                yield Finding(where, "warning", "seeds", f"the seed is too near to the one at {other_where}")
                break


def _size(document: Located, constitution: Constitution, seeds: int, budget: Budget | None) -> Iterable[Finding]:
    total = constitution.human_items(seeds)["total"]
    if total >= HUMAN_LIMIT:
        message = f"{total} human-written items; SELF-ALIGN keeps below {HUMAN_LIMIT}"
        yield Finding(document.where(()), "warning", "size", message)
    if budget is None:
        return
    used = budget.count(render(constitution) + query(constitution, ""))
    left = budget.context - used
    if left < budget.answer:
        message = (
            f"the rendered prompt has {used} tokens under {budget.model}; of {budget.context} {max(0, left)} are left, "
            f"and thoughts and answer need {budget.answer}"
        )
        yield Finding(document.where(("principles",)), "error", "budget", message)
