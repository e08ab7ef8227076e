"""What marked answers say of a constitution: notes by principle, and drafts of changes for a person to accept. Pure.

No model words anything here. A draft of a rule is the rule and, after it, the words of the note; a draft of a probe is
the message that was answered and a check that decides about the marked answer as the person did.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from selfalign.constitution import Constitution, Principle, Probe
from selfalign.constitution.lint import ANY_LANGUAGE, content_words
from selfalign.evaluation.checks import passes, shows
from selfalign.quality.rouge import folded, words
from selfalign.run.feedback import Feedback, Marks
from selfalign.system.console import plain
from selfalign.system.strict_yaml import validate

MAX_ASK = 2_000
"""Characters of a probe's message."""
_PLACEHOLDER = re.compile(r"\{[A-Za-z_]{1,30}\}")
_KNOWN = ("{name}", "{cutoff}")

_NAMED = (
    ("refuses", r"refus\w*|declin\w+|turn\w* (?:it |this |that )?down|says? no", True),
    ("corrects", r"correct(?:s|ed|ing)? (?:the|me|it|this|that|them|user)|false (?:claim|premise)|premise", True),
    ("admits", r"invent\w*|(?:made|makes?|making) (?:it |this |that |things )?up|hallucinat\w+", False),
    ("admits", r"admit\w*|(?:not|n't|nobody|no one) know\w*", True),
    ("no_live_data", r"live|real[- ]time|look (?:it )?up", True),
    ("dated", r"dated|outdated|cut-?off|may have changed", True),
    ("asks_back", r"ask\w*|clarif\w+", True),
    ("both_sides", r"sides?|balanced|one-?sided", True),
    ("steps", r"steps?|step-by-step", True),
    ("reasons", r"reasons?|reasoning|why|explain\w*|because", True),
    ("aspects", r"aspects?|angles?", True),
    ("verse", r"poem|verses?|rhyme\w*|haiku", True),
    ("language", r"language|translat\w+", True),
)
"""Words of a note, the check that they name, and whether "should (not)" before them is about what the check sees."""
_LONGER = r"longer|too (?:short|brief)|detail\w*|thorough\w*|elaborat\w+"
_SHORTER = r"short\w*|brief\w*|concise\w*|to the point|too (?:long|wordy)|wordy|rambl\w+|one sentence|one word"
_SHOULD = r"(?:(?<!\w)(?:should|must|please|needs? to|ha(?:s|ve) to)|(?:^|[.,;:!] )do)(?P<no> ?n't| not| never| no)?"
_ASKS = re.compile(
    r"(?i)(?:it |the answer |you )?(should|must|ought(?= to )|needs?(?= to )|ha(?:s|ve)(?= to ))(?= |n['’]t)"
)
_ORDERS = re.compile(
    r"(?i)(?:please |always |never |don['’]t |do not )*(?:add|admit|always|answer|ask|avoid|be|begin|check|cite|"
    r"compare|correct|count|decline|do|don['’]t|end|explain|give|go|help|keep|leave|let|list|look|make|mention|"
    r"name|never|offer|only|point|prefer|put|quote|refuse|say|show|speak|start|state|stay|stop|suggest|take|tell|treat|"
    r"try|turn|use|warn|write|i) "
)
"""A note that says what to do, and not what was wrong."""
_PLACED = re.compile(r"(?i)^principle \d{1,3} ?[:,;–—-] ?")
_CLAUSES = re.compile(r"(?<=[.!?;])\s+|\s*\n\s*")
_ENDS = ".!?…。！？:;"
_QUOTED = re.compile(r"""(?<!\w)["“„«']([^"“”„«»'\n]{1,60})["”“»'](?!\w)""")


@dataclass(frozen=True, slots=True)
class Draft:
    """A change that one mark calls for."""

    kind: Literal["rule", "probe"]
    mark: Feedback
    principle: int | None
    """Where it would go; None is a new principle (of a rule), or not known (of a probe)."""
    sentence: str = ""
    """Of a rule: what is put after it."""
    probe: Probe | None = None
    why: str = ""
    """In words: how its place or its check were found."""
    id: str = ""


@dataclass(frozen=True, slots=True)
class Missing:
    """A draft that a mark does not lead to, and why."""

    kind: Literal["rule", "probe"]
    mark: Feedback
    why: str


@dataclass(frozen=True, slots=True)
class Group:
    """The marks of one principle, or of none."""

    principle: Principle | None
    marks: tuple[Feedback, ...]


@dataclass(frozen=True, slots=True)
class Suggested:
    """All that a run's marks say."""

    groups: tuple[Group, ...]
    drafts: tuple[Draft, ...]
    missing: tuple[Missing, ...]


def suggest(marks: Marks, then: Constitution, now: Constitution, prompts: frozenset[str] = frozenset()) -> Suggested:
    """Group the marks by the principles that their answers' thoughts cite, and draft what each calls for.

    Args:
        then: the constitution of the run, whose numbers the marks have.
        now: the one to change.
        prompts: the run's prompts, folded.
    """
    same = {p.id: _same(p, now) for p in then.principles}
    cited = {key: [q for n in mark.principles if (q := same.get(n))] for key, mark in marks.items()}
    places: list[Principle | None] = [*now.principles, None]
    groups = []
    for place in places:
        inside = tuple(m for key, m in marks.items() if (place in cited[key] if place else not cited[key]))
        groups += [Group(place, inside)] if inside else []
    drafts: list[Draft] = []
    missing: list[Missing] = []
    for key, mark in marks.items():
        home, why = _home(mark, cited[key], now)
        for found in (_rule(mark, home, why, now), _probe(mark, home, why, now, prompts)):
            if isinstance(found, Draft):
                drafts.append(found)
            else:
                missing.append(found)
    return Suggested(tuple(groups), tuple(_named(drafts, list(marks))), tuple(missing))


def _same(principle: Principle, now: Constitution) -> Principle | None:
    """The same principle in another state of the constitution: by its name, where its number changed, too."""
    return next((q for q in now.principles if q.name.lower() == principle.name.lower()), None)


def _named(drafts: Iterable[Draft], keys: list[str]) -> Iterator[Draft]:
    """Drafts with ids that stay the same whatever is marked or withdrawn besides: as few digits as tell marks apart."""
    length = next(n for n in range(4, 17) if n == 16 or len({k[:n] for k in keys}) == len(keys))
    for d in drafts:
        yield replace(d, id=f"{d.kind}-{d.mark.id[:length]}")


# -- where ------------------------------------------------------------------------------------------------------------


def _home(mark: Feedback, cited: list[Principle], now: Constitution) -> tuple[Principle | None, str]:
    """The principle for the mark's drafts, and why: the note names it, the thoughts cite it, or words are shared."""
    if named := _by_note(mark.note, now):
        return named, "the note names it"
    said = content_words(f"{mark.note} {mark.message}")
    shared = Counter({p.id: len(said & content_words(f"{p.name} {p.rule}")) for p in now.principles})
    best = max(now.principles, key=lambda p: shared[p.id])
    if cited:
        of_cited = max(cited, key=lambda p: shared[p.id])
        # Small models cite at random: of several none of which fits, the first is no better than a guess by words.
        if len(cited) == 1 or shared[of_cited.id] or shared[best.id] < _SHARED:
            return of_cited, "cited" if len(cited) == 1 else f"one of {len(cited)} cited"
    if shared[best.id] < _SHARED:
        return None, ""
    common = sorted(said & content_words(f"{best.name} {best.rule}"))
    return best, f"a guess by the words {', '.join(common[:4])}"


_SHARED = 2
_ENOUGH = 6
"""Words with which a message of a dialogue says something by itself, if it names no topic by two."""


def _by_note(note: str, now: Constitution) -> Principle | None:
    number = re.search(r"(?i)(?<!\w)principle (\d{1,3})(?!\w)", note)
    text = f" {' '.join(words(note))} "
    names = [p for p in now.principles if f" {' '.join(words(p.name))} " in text]
    by_number = [p for p in now.principles if number and p.id == int(number[1])]
    return (by_number or (names if len(names) == 1 else [None]))[0]  # type: ignore[list-item]


# -- rules ------------------------------------------------------------------------------------------------------------


def _rule(mark: Feedback, home: Principle | None, why: str, now: Constitution) -> Draft | Missing:
    said = sentence(mark.note, now.language)
    if mark.verdict == "good":
        return Missing("rule", mark, "a good answer asks for no other rule")
    if not said:
        return Missing("rule", mark, "there is no note to take it from")
    if unknown := next((p for p in _PLACEHOLDER.findall(said) if p not in _KNOWN), None):
        return Missing("rule", mark, f"the note holds {unknown}, which nothing fills in")
    if same := next((p for p in ([home] if home else now.principles) if says(p, said, now)), None):
        return Missing("rule", mark, f"principle {same.id} says it already")
    if home is None:
        return Draft("rule", mark, None, said, why="no principle is cited, and none is near by its words")
    return Draft("rule", mark, home.id, said, why=why)


def says(principle: Principle, said: str, now: Constitution) -> bool:
    """Whether the principle's rule holds the sentence, its placeholders filled in."""
    full = said.replace("{name}", now.assistant.name).replace("{cutoff}", now.assistant.cutoff)
    return f" {folded(full)} " in f" {folded(principle.rule)} "


def sentence(note: str, language: str = "en") -> str:
    """A note on a bad answer as sentences of a rule: on one line, in the note's own words, without control characters.

    "Should say where to look" becomes "I should say where to look."; what asks for nothing in words that are known
    describes the answer ("names no source") and becomes "What I avoid: names no source." In other languages than
    English the words are left alone.
    """
    text = _PLACED.sub("", note.strip())
    clauses = [" ".join(plain(" ".join(clause.split())).split()) for clause in _CLAUSES.split(text)]
    return " ".join(_clause(c, language) for c in clauses if any(letter.isalnum() for letter in c))


def _clause(text: str, language: str) -> str:
    text = text.rstrip(";,")
    if language == "en" and (should := _ASKS.match(text)):
        verb = {"needs": "need", "has": "have"}.get(should[1].lower(), should[1].lower())
        text = f"I {verb}{text[should.end() :]}"
    elif language == "en" and not _ORDERS.match(text) and not re.search(r"(?i)(?<!\w)(?:should|must)(?!\w)", text):
        text = f"What I avoid: {text}"
    text = text[:1].upper() + text[1:] if text[1:2].islower() or text[1:2] == " " else text
    return text if text[-1] in _ENDS else f"{text}."


def joined(rule: str, said: str) -> str:
    """The rule with the sentence after it."""
    rule = rule.rstrip()
    return f"{rule}{'' if rule[-1] in _ENDS else '.'} {said}"


def name_for(said: str, taken: Iterable[str]) -> str:
    """What a new principle is called until a person finds a better name: the note's first words that carry a topic."""
    known, topic = {name.lower() for name in taken}, content_words(said) - {"avoid"}
    spoken = [w for w in words(said) if w not in ("i", "should", "must", "what", "avoid")]
    name = " ".join(([w for w in spoken if w.removesuffix("s") in topic] or spoken)[:3])[:34].strip() or "new"
    name = name if len(name) > 1 else f"new {name}"
    return next(n for n in (name, *(f"{name} {k}" for k in range(2, 1001))) if n.lower() not in known)


# -- probes -----------------------------------------------------------------------------------------------------------


def _probe(
    mark: Feedback, home: Principle | None, why: str, now: Constitution, prompts: frozenset[str]
) -> Draft | Missing:
    message = mark.message
    if len(mark.turns) > 1 and len(content_words(message)) < _SHARED and len(words(message)) < _ENOUGH:
        return Missing("probe", mark, "the message is a later turn of a dialogue, and says little by itself")
    if len(message) > MAX_ASK:
        return Missing("probe", mark, f"the message has {len(message):,} characters; a probe takes {MAX_ASK:,}")
    if held := _PLACEHOLDER.search(message):
        return Missing("probe", mark, f"the message holds {held[0]}, which would be filled in or refused")
    if not mark.answer.strip() and mark.verdict == "good":
        return Missing("probe", mark, "an empty answer passes no probe")
    found, how = _check(mark, home, now)
    if found is None:
        return Missing("probe", mark, how)
    asked = [(p, q) for p in now.principles for q in p.probes if folded(q.ask) == folded(message)]
    if same := next((p for p, q in asked if (q.expect, q.contrast) == (found.expect, found.contrast)), None):
        return Missing("probe", mark, f"principle {same.id} has that probe already")
    if len(mark.turns) > 1:
        how += "; a later turn, asked by itself"
    if folded(message) in prompts:
        how += "; a prompt of this run, so only new runs are asked"
    return Draft("probe", mark, home.id if home else None, probe=found, why=f"{why}; {how}" if why else how)


def _check(mark: Feedback, home: Principle | None, now: Constitution) -> tuple[Probe | None, str]:
    """The probe whose check decides as the person did, and how it was found; None and why there is none."""
    english = now.language == "en"
    if spoken := [w for w in _QUOTED.findall(mark.note) if w.strip() and not _PLACEHOLDER.search(w)]:
        held = [w for w in spoken if shows(Probe(ask="?", expect="mentions", words=[w]), mark.answer)]
        asked = re.search(rf"{_SHOULD}(?: [\w'-]+){{0,5}}? [\"“„«']", _lower(mark.note)) if len(spoken) == 1 else None
        wanted = None if asked is None else not asked["no"]
        return _deciding(mark, {"expect": "mentions", "words": held or spoken}, wanted, "words in quotes in the note")
    if english and (named := next(_by_words(mark), None)):
        return _deciding(mark, {"expect": named[0]}, named[1], "named in the note")
    usual = Counter(p.expect for p in (home.probes if home else ()) if not p.words)
    known = [c for c, _ in usual.most_common() if english or c in ANY_LANGUAGE]
    if known and home:
        return _deciding(mark, {"expect": known[0]}, None, f"what probes of principle {home.id} look for")
    return None, "no check fits: put words that belong or do not belong in the answer into quotes in the note"


def _lower(note: str) -> str:
    return " ".join(note.lower().replace("’", "'").split())


def _by_words(mark: Feedback) -> Iterator[tuple[str, bool | None]]:
    """Checks that the note names, each with whether the behaviour is wanted, where the note says so."""
    note = _lower(mark.note)
    for pattern, wanted in ((_LONGER, True), (_SHORTER, False)):
        if re.search(rf"(?<!\w)(?:{pattern})(?!\w)", note):
            yield "wordy", wanted
    for expect, pattern, polar in _NAMED:
        if re.search(rf"(?<!\w)(?:{pattern})(?!\w)", note):
            asked = re.search(rf"{_SHOULD}(?: [\w'-]+){{0,5}}? (?:{pattern})(?!\w)", note) if polar else None
            yield expect, None if asked is None else not asked["no"]


def _deciding(mark: Feedback, value: dict[str, Any], wanted: bool | None, how: str) -> tuple[Probe | None, str]:
    """The probe with that check, plain or as a contrast: so that it decides about the answer as the person did."""
    probe = validate(Probe, {"ask": mark.message, **value}, "probe")
    contrast = shows(probe, mark.answer) == (mark.verdict == "bad")
    if wanted is not None and wanted == contrast:
        decides = "lacks" if mark.verdict == "good" else "has"
        return None, f"to the check {probe.expect} the answer marked {mark.verdict} {decides} what the note wants"
    probe = probe.model_copy(update={"contrast": contrast})
    if passes(probe, mark.answer) != (mark.verdict == "good"):  # an empty answer passes nothing
        return None, f"the check {probe.expect} does not decide as you did"
    return probe, how


def told(probe: Probe) -> str:
    """What the probe wants, in words."""
    what = _WANTS[probe.expect] + (": " + ", ".join(probe.words) if probe.words else "")
    return f"the answer must {'not ' if probe.contrast else ''}{what}"


_WANTS: Mapping[str, str] = {
    "refuses": "decline",
    "corrects": "correct a false claim",
    "admits": "say that it does not know",
    "no_live_data": "point to a live source",
    "dated": "say that its knowledge is dated",
    "asks_back": "ask for a detail",
    "both_sides": "give two sides",
    "steps": "go in steps",
    "reasons": "give a reason",
    "aspects": "name several aspects",
    "verse": "be in short lines",
    "wordy": "have twelve words or more",
    "mentions": "hold any of the words",
    "in_order": "hold in this order",
    "language": "be in the language of the message",
}
