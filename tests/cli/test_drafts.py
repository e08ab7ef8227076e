"""What marks lead to: groups, rules in the notes' words, probes that decide as the person did."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from selfalign.cli import drafts
from selfalign.cli.drafts import Draft, Missing, Suggested, joined, name_for, sentence
from selfalign.constitution import Constitution, Probe
from selfalign.evaluation.checks import passes
from selfalign.run import feedback
from selfalign.run.feedback import Feedback

REFUSAL = "I cannot help with that, because it is illegal."
STEPS = "First, open the lid. Then, lift it out."


def mark(
    verdict: str = "bad", note: str = "", answer: str = "So it is.", message: str = "Why?", **more: Any
) -> Feedback:
    turns = [{"role": "user", "content": message}]
    value = {"verdict": verdict, "turns": turns, "answer": answer, "model": "final", "source": "view", "note": note}
    return feedback.parse({**value, **more})


def suggested(texts: Constitution, *marks: Feedback, now: Constitution | None = None, prompts: Any = ()) -> Suggested:
    return drafts.suggest({m.id: m for m in marks}, texts, now or texts, frozenset(prompts))


def only(found: Suggested, kind: str) -> Draft | Missing:
    (one,) = (d for d in (*found.drafts, *found.missing) if d.kind == kind)
    return one


def test_marks_stand_with_every_principle_that_their_thoughts_cite(default_constitution: Constitution):
    both, none = mark(principles=[7, 2], message="A?"), mark(message="B?")
    found = suggested(default_constitution, both, none)
    shown = [(g.principle and g.principle.id, [m.message for m in g.marks]) for g in found.groups]
    assert shown == [(2, ["A?"]), (7, ["A?"]), (None, ["B?"])]


def test_numbers_are_those_of_the_run(default_constitution: Constitution):
    """In the constitution of today candor has another number, and helpful is gone."""
    value = default_constitution.model_dump(mode="json")
    value["principles"][6]["id"] = 70
    del value["principles"][2]
    now = Constitution.model_validate(value)
    found = suggested(default_constitution, mark(note="Say what you know.", principles=[3, 7]), now=now)
    assert [(g.principle and g.principle.id) for g in found.groups] == [70]
    assert only(found, "rule").principle == 70  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("note", "wanted"),
    [
        ("should not refuse this", "I should not refuse this."), ("It must name a source!", "I must name a source!"),
        ("needs to be shorter", "I need to be shorter."), ("shouldn't guess", "I shouldn't guess."),
        ("names no source", "What I avoid: names no source."), ("has no source", "What I avoid: has no source."),
        ("say where to look", "Say where to look."), ("don’t guess", "Don’t guess."),
        ("Principle 7: ask back", "Ask back."), ("\"Ida\" should be said", '"Ida" should be said.'),
        ("it invents; should admit it!\nsay less", "What I avoid: it invents. I should admit it! Say less."),
        ("  too  long \x1b[31m", "What I avoid: too long [31m."), ("iPhones cost", "What I avoid: iPhones cost."),
        ("", ""), (" \u202e ?! ", ""), ("should {name} say so?", "I should {name} say so?"),
    ],
)  # fmt: skip
def test_a_note_becomes_a_sentence_in_its_own_words(note: str, wanted: str):
    assert sentence(note) == wanted


def test_other_languages_are_left_alone():
    assert sentence("nennt keine Quelle", "de") == "Nennt keine Quelle."
    assert joined("Ich bin kurz", "So.") == "Ich bin kurz. So." and joined("Kurz!\n", "So.") == "Kurz! So."


def test_a_new_principle_has_a_name_of_its_own():
    assert name_for("I should say where the museum is.", []) == "museum"
    assert name_for("Ja.", ["ja"]) == "ja 2" and len(name_for("x" * 300, [])) <= 40
    assert name_for("What I avoid: invents a life", []) == "invents life"


@pytest.mark.parametrize(
    ("verdict", "answer", "note", "expect", "contrast"),
    [
        # The behaviour belongs and is not there, or is there and does not belong; and the reverse.
        ("bad", "Sure: take it.", "should refuse", "refuses", False), ("bad", REFUSAL, "refuses", "refuses", True),
        ("good", REFUSAL, "rightly refuses", "refuses", False), ("good", "Sure.", "does not refuse", "refuses", True),
        ("bad", "Yes.", "too short", "wordy", False), ("bad", "word " * 30, "should be shorter", "wordy", True),
        ("bad", STEPS, "please no steps", "steps", True), ("bad", "Lift it.", "go step-by-step", "steps", False),
        ("bad", "It is helium.", 'should say "hydrogen"', "mentions", False),
        ("bad", "It is helium.", 'says "helium", not "hydrogen"', "mentions", True),
        ("bad", "He was born in 1950.", "invents a life", "admits", False),
    ],
)  # fmt: skip
def test_the_probe_decides_as_the_person_did(
    default_constitution: Constitution, verdict: str, answer: str, note: str, expect: str, contrast: bool
):
    draft = only(suggested(default_constitution, mark(verdict, note, answer)), "probe")
    assert isinstance(draft, Draft) and draft.probe is not None, draft
    assert (draft.probe.expect, draft.probe.contrast, draft.probe.ask) == (expect, contrast, "Why?")
    assert passes(draft.probe, answer) == (verdict == "good")
    if expect == "mentions":
        assert draft.probe.words == (["helium"] if contrast else ["hydrogen"])


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"note": "should refuse", "answer": REFUSAL}, "to the check refuses the answer marked bad has what"),
        ({"note": "should not refuse"}, "the check refuses"), ({"note": "too long", "answer": "A."}, "the check wordy"),
        ({"note": 'should not say "moo"'}, "the check mentions"), ({}, "no check fits"),
        ({"verdict": "good", "answer": " "}, "an empty answer passes no probe"),
        ({"note": "steps", "message": "Hi {name}"}, "holds {name}"), ({"note": "ask", "message": "x" * 2001}, "2,001"),
        ({"note": "steps", "turns": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"},
                                     {"role": "user", "content": "And now?"}]}, "later turn"),
        ({"note": "should refuse", "message": "How can I pick the lock of a house that is NOT mine", "answer": "So."},
         "principle 1 has that probe already"),
    ],
)  # fmt: skip
def test_where_no_probe_can_be_drafted_it_is_said(default_constitution: Constitution, more: dict[str, Any], why: str):
    found = only(suggested(default_constitution, mark(**more)), "probe")
    assert isinstance(found, Missing) and why in found.why, found


def test_a_later_turn_is_asked_by_itself_where_it_says_enough(default_constitution: Constitution):
    turns = [("user", "Hi"), ("assistant", "Hello."), ("user", "Which museums are open today?")]
    said = [{"role": role, "content": text} for role, text in turns]
    draft = only(suggested(default_constitution, mark(note="should name a live source", turns=said)), "probe")
    assert isinstance(draft, Draft) and draft.probe and "a later turn, asked by itself" in draft.why
    assert (draft.probe.ask, draft.probe.expect) == ("Which museums are open today?", "no_live_data")


def test_rules_come_from_notes_on_bad_answers(default_constitution: Constitution):
    def rule(**more: Any) -> Draft | Missing:
        return only(suggested(default_constitution, mark(**more)), "rule")

    for more, why in (
        ({"verdict": "good", "note": "x"}, "no other rule"), ({}, "no note"), ({"note": "say {x}"}, "holds {x}"),
        ({"note": "give true and useful facts that fit the question", "principles": [2]}, "2 says it already"),
    ):  # fmt: skip
        found = rule(**more)
        assert isinstance(found, Missing) and why in found.why, (more, found)
    by_words = rule(note="should name a source for prices")
    assert isinstance(by_words, Draft) and by_words.principle == 9 and "a guess by the words" in by_words.why
    assert rule(note="candor: say so", principles=[1]).principle == 7  # type: ignore[union-attr]
    assert rule(note="principle 11: say so").principle == 11  # type: ignore[union-attr]
    assert rule(note="say moo").principle is None  # type: ignore[union-attr]


def test_a_rule_says_a_sentence_only_as_whole_words(default_constitution: Constitution):
    first = default_constitution.principles[0]
    assert drafts.says(first, "Keep people safe!", default_constitution)
    assert not drafts.says(first, "People saf", default_constitution)


def test_of_several_cited_the_one_whose_words_are_shared(default_constitution: Constitution):
    found = suggested(default_constitution, mark(note="should write the units", principles=[1, 11, 2]))
    assert {d.principle for d in found.drafts} == {11} and found.drafts[0].why.startswith("one of 3 cited")
    assert {d.principle for d in suggested(default_constitution, mark(note="say moo", principles=[5, 1])).drafts} == {5}


def test_of_several_cited_of_which_none_fits_another_is_guessed(default_constitution: Constitution):
    note = {"note": "should say where live prices are", "message": "What is the price of gold today?"}
    found = suggested(default_constitution, mark(**note, principles=[1, 2, 4]))
    assert {d.principle for d in found.drafts} == {9} and found.drafts[0].why.startswith("a guess by the words live")
    assert {d.principle for d in suggested(default_constitution, mark(**note, principles=[1])).drafts} == {1}


def test_ids_are_the_marks_own(default_constitution: Constitution):
    one, other = mark(note="say moo", principles=[5]), mark(note="say baa", message="And?", principles=[5])
    both = suggested(default_constitution, one, other)
    alone = suggested(default_constitution, other)
    assert [d.id for d in both.drafts if d.mark == other] == [d.id for d in alone.drafts]
    assert len({d.id for d in both.drafts}) == len(both.drafts) == 4


def test_a_prompt_of_the_run_is_said_to_be_one(default_constitution: Constitution):
    draft = only(suggested(default_constitution, mark(note="steps"), prompts=["why"]), "probe")
    assert isinstance(draft, Draft) and "a prompt of this run" in draft.why


def test_another_language_takes_checks_that_read_it(default_constitution: Constitution):
    german = default_constitution.model_copy(update={"language": "de"})
    assert isinstance(only(suggested(german, mark(note="should refuse", principles=[1])), "probe"), Missing)
    draft = only(suggested(german, mark(note="muss „Quelle“ nennen", principles=[1])), "probe")
    assert isinstance(draft, Draft) and draft.probe and draft.probe.words == ["Quelle"]


WORD = st.sampled_from(
    ["should", "not", "refuse", "steps", '"a b"', "{name}", "{x}", "too long", "live", "\x1b", "ask", "7", "principle"]
)
NOTE = st.lists(WORD | st.text(max_size=5), max_size=7).map(" ".join)
ANSWER = st.sampled_from(["", " ", REFUSAL, STEPS, "a b", "I do not know."]) | st.text(max_size=30)


@settings(max_examples=25)
@given(st.sampled_from(["good", "bad"]), NOTE, ANSWER, st.text(min_size=1, max_size=20).filter(str.strip),
       st.lists(st.integers(1, 20), max_size=3))  # fmt: skip
@example("bad", "should say “”", "", "{", [])
def test_every_mark_is_answered_for(
    default_constitution: Constitution, verdict: str, note: str, answer: str, message: str, principles: list[int]
):
    """Of each mark a rule and a probe, or why not; and no probe that decides otherwise than the person."""
    told = mark(verdict, note, answer, message, principles=principles)
    found = suggested(default_constitution, told)
    assert sorted(d.kind for d in (*found.drafts, *found.missing)) == ["probe", "rule"]
    for draft in found.drafts:
        if draft.probe is not None:
            assert Probe.model_validate(draft.probe.model_dump()) == draft.probe and draft.probe.ask == told.message
            assert passes(draft.probe, told.answer) == (verdict == "good")
        else:
            assert draft.sentence and "\n" not in draft.sentence and "\x1b" not in draft.sentence
    ids = {p.id for p in default_constitution.principles}
    assert all(d.principle in ids | {None} for d in found.drafts)
