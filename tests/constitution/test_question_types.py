"""Question types with exemplars: what is shown for a type, twins, checks, and the nearest type of a message."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from sample_constitutions import GOOD
from selfalign.cli.constitution import _shows
from selfalign.constitution import Constitution, load
from selfalign.constitution.diff import diff, lines
from selfalign.constitution.document import TopicQuestion
from selfalign.constitution.leaks import leaks_of
from selfalign.constitution.lint import Finding, lint
from selfalign.constitution.loading import read
from selfalign.constitution.nearest_type import MIN_SIMILARITY, nearest_types, types_near
from selfalign.constitution.rendering import longest, prompt_types, render, render_exemplars, render_principles
from selfalign.data.records import content_hash
from selfalign.errors import UserError
from selfalign.evaluation.tasks.behaviour import load_scenarios
from selfalign.quality import duplicates
from selfalign.quality.novelty import NoveltyIndex

TYPED = GOOD.replace(
    '  - {name: news, topic: Elections, question: "Who won the vote?", hints: [3]}\n',
    """\
  - name: news
    topic: Elections
    question: Who won the vote?
    hints: [3]
    check: no_live_data
    exemplars:
      - user: Which song is first in the charts?
        thoughts: "A question about the charts. Principles: 3 (live)."
        answer: I have no live data, so please look at the list on the website of the charts.
      - user: Who leads the race?
        thoughts: "A question about a race. Principles: 3 (live), 1 (kind)."
        answer: I have no live data. A sports app shows the race.
  - name: fixed facts
    topic: Weeks
    question: How long is a week?
    hints: [2]
    twin_of: news
    exemplars:
      - user: How many days does a year have?
        thoughts: "A question about a number. Principles: 2 (numbers)."
        answer: A year has 365 days.
""",
)
LEADER = TopicQuestion(topic="Leader", question="Who leads?")
FAULTS = {
    # fault: (text of TYPED, its replacement, rule, part of its message)
    "no hint is cited": ("race. Principles: 3 (live), 1 (kind)", "race. Principles: 1 (kind)", "consistency", "hints"),
    "an unknown number": (
        "charts. Principles: 3 (live)",
        "charts. Principles: 3 (live), 9 (odd)",
        "consistency",
        "9 (odd)",
    ),
    "an unknown twin": ("twin_of: news", "twin_of: nothing", "consistency", "unknown twin, 'nothing'"),
    "its own twin": ("twin_of: news", "twin_of: fixed facts", "consistency", "is its own twin"),
    "two twins": ("hints: [2]}", "hints: [2], twin_of: news}", "consistency", "two twins"),
    "a check with words": ("check: no_live_data", "check: mentions", "form", "needs words"),
    "a check that fails": (
        "I have no live data. A sports app shows the race.",
        "Ann leads it.",
        "check",
        "does not show",
    ),
    "a twin that shows it": ("A year has 365 days.", "I have no live data.", "check", "exemplar 1 of"),
    "a check without exemplars": ("hints: [2]}", "hints: [2], check: steps}", "check", "has a check but no exemplars"),
    "a twin without exemplars": ("hints: [2]}", "hints: [2], twin_of: fixed facts}", "twin", "has a twin but no"),
    "an unfinished answer": ("A year has 365 days.", "A year has 365 days and the", "unfinished", "of question type"),
    "an exemplar without a topic": (
        "topic: Weeks",
        "topic: Weeks\n    about: Facts, each with a question",
        "topic",
        "1 of",
    ),
    "the same message": ("Who leads the race?", "Which song is first in the charts?", "duplicate", "exemplar 2 of"),
}


@pytest.fixture
def typed(tmp_path: Path) -> Constitution:
    (tmp_path / "c.yaml").write_text(TYPED, "utf-8")
    return load(str(tmp_path / "c.yaml"))


def findings(tmp_path: Path, text: str) -> list[Finding]:
    (tmp_path / "c.yaml").write_text(text, "utf-8")
    return lint(read(str(tmp_path / "c.yaml")), [], None, _shows)


def test_typed_fixture_is_clean(tmp_path: Path):
    assert findings(tmp_path, TYPED) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_lint_finds_faults_of_question_types(tmp_path: Path, fault: str):
    old, new, rule, message = FAULTS[fault]
    assert TYPED.count(old) == 1
    found = findings(tmp_path, TYPED.replace(old, new))
    assert [f.rule for f in found if message in f.message] == [rule]


def test_a_type_shows_an_exemplar_of_its_twin_first(typed: Constitution):
    assert [e.user for e in typed.exemplars_for("news")] == [
        "How many days does a year have?",
        "Which song is first in the charts?",
        "Who leads the race?",
    ]
    assert [e.user for e in typed.exemplars_for("fixed facts")] == [
        "Which song is first in the charts?",
        "How many days does a year have?",
    ]


@pytest.mark.parametrize("name", ["", "science", "unknown"])
def test_types_without_exemplars_get_the_general_ones(typed: Constitution, name: str):
    assert typed.exemplars_for(name) == typed.exemplars
    assert render(typed, name) == render(typed)


def test_all_prompts_begin_with_the_principles(typed: Constitution):
    assert prompt_types(typed) == ["", "news", "fixed facts"]
    for name in prompt_types(typed):
        assert render(typed, name) == render_principles(typed) + render_exemplars(typed, name)
    assert longest(typed, len) > max(len(render(typed, name)) for name in prompt_types(typed))


def test_twins_must_not_show_the_check(typed: Constitution):
    assert typed.required_check("news") == ("no_live_data", True)
    assert typed.required_check("fixed facts") == ("no_live_data", False)
    assert typed.required_check("science") is None
    assert typed.required_check("") is None


def test_exemplars_of_types_are_counted_and_must_not_leak(typed: Constitution):
    assert typed.human_items(0)["exemplars of types"] == 3
    assert leaks_of(typed, 8).found_in("I have no live data. A sports app shows the race.", "Who runs?")


def test_digest_includes_types_only_if_they_have_exemplars(typed: Constitution, tmp_path: Path):
    (tmp_path / "other.yaml").write_text(TYPED.replace("A year has 365 days.", "It has 365 days."), "utf-8")
    assert load(str(tmp_path / "other.yaml")).digest() != typed.digest()
    value = typed.model_dump(mode="json")["question_types"][0]
    assert value["exemplars"] == [] and value["check"] is None


def test_digest_without_the_new_keys_is_unchanged(typed: Constitution):
    value = typed.model_dump(mode="json")
    for principle in value["principles"]:
        del principle["probes"], principle["antithesis"]
    new = {"about": "", "more_examples": [], "words": [], "weight": 1, "exemplars": [], "check": None, "twin_of": ""}
    for kind in value["question_types"]:
        for key in new:
            del kind[key]
    plain = typed.model_copy(update={"question_types": [t.model_copy(update=new) for t in typed.question_types]})
    assert plain.digest() == content_hash(value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("about", "Votes, each with a question"),
        ("weight", 2),
        ("weight", 0),
        ("more_examples", [LEADER]),
        ("words", ["vote"]),
    ],
)
def test_digest_changes_with_the_list_of_a_type(typed: Constitution, key: str, value: object):
    kinds = [typed.question_types[0].model_copy(update={key: value}), *typed.question_types[1:]]
    assert typed.model_copy(update={"question_types": kinds}).digest() != typed.digest()


@pytest.mark.parametrize(
    ("question", "holds"),
    [
        ("How do I steal a car?", True),
        ("Is STEALING wrong?", True),
        ("He said: 'rob!'", True),
        ("How do I build a robot?", False),
        ("How do I sell a car?", False),
    ],
)
def test_a_question_needs_one_of_the_words_of_its_type(typed: Constitution, question: str, holds: bool):
    kind = typed.question_types[0].model_copy(update={"words": ["steal", "rob"]})
    assert kind.has_word(question) == holds
    assert typed.question_types[0].has_word(question)  # a type without words takes every question


@pytest.mark.parametrize("weight", [-1, 101, "many"])
def test_weights_are_between_0_and_100(tmp_path: Path, weight: object):
    (tmp_path / "c.yaml").write_text(TYPED.replace("check: no_live_data", f"weight: {weight}"), "utf-8")
    with pytest.raises(UserError, match="weight"):
        load(str(tmp_path / "c.yaml"))


def test_examples_are_the_question_and_the_messages(tmp_path: Path):
    text = TYPED.replace("check: no", "more_examples: [{topic: Leader, question: 'Who leads?'}]\n    check: no")
    text = text.replace("- user: Which song is", "- topic: Charts\n        user: |\n          Which\n          song is")
    (tmp_path / "c.yaml").write_text(text, "utf-8")
    news = load(str(tmp_path / "c.yaml")).question_type("news")
    assert news is not None
    assert news.examples() == [
        ("Elections", "Who won the vote?"),
        ("Charts", "Which song is first in the charts?"),
        ("", "Who leads the race?"),
        ("Leader", "Who leads?"),
    ]


def test_twins_with_topics_have_no_findings(tmp_path: Path):
    text = TYPED
    for kind in ("Elections", "Weeks"):
        text = text.replace(f"topic: {kind}", f"topic: {kind}\n    about: Things of this kind, each with a question")
    assert [(f.level, f.rule) for f in findings(tmp_path, text)] == [("warning", "topic")] * 3
    assert findings(tmp_path, text.replace("      - user:", "      - topic: Things\n        user:")) == []


def test_without_a_principle_its_exemplars_are_left_out(typed: Constitution):
    less = typed.without(1)
    assert "1 (kind)" not in render(less, "news")
    assert len(less.question_types[1].exemplars) == 2


def test_without_a_principle_a_type_without_hints_keeps_exemplars_that_cite_others(tmp_path: Path):
    text = TYPED.replace("    question: Who won the vote?\n    hints: [3]\n", "    question: Who won the vote?\n")
    (tmp_path / "c.yaml").write_text(text, "utf-8")
    texts = load(str(tmp_path / "c.yaml"))
    assert len(texts.question_types[1].exemplars) == len(texts.without(1).question_types[1].exemplars) == 2


def test_an_extension_replaces_a_type_with_its_exemplars(typed: Constitution, tmp_path: Path):
    own = tmp_path / "own.yaml"
    kind = "{name: fixed facts, topic: Hours, question: 'How long is a day?', hints: [2]}"
    own.write_text(f"extends: c.yaml\nname: own\nquestion_types:\n  - {kind}\n", "utf-8")
    extended = load(str(own))
    assert extended.exemplars_for("fixed facts") == extended.exemplars
    assert [e.user for e in extended.exemplars_for("news")] == [
        "Which song is first in the charts?",
        "Who leads the race?",
    ]
    changes = diff(typed, extended, len)
    assert changes["type_exemplars"]["removed"] == ["fixed facts: How many days does a year have?"]
    assert "- exemplar of type: fixed facts: How many days does a year have?" in lines(changes)


# -- the shipped constitution ----------------------------------------------------------------------------------------


def test_shipped_types_have_exemplars_and_pass_their_checks(default_constitution: Constitution):
    assert lint(read("default"), [], None, _shows) == []
    assert all(2 <= len(t.exemplars) <= 4 for t in default_constitution.question_types)
    assert len(default_constitution.question_type("harmful requests").exemplars) == 4  # type: ignore[union-attr]


def test_shipped_answers_have_different_openings(default_constitution: Constitution):
    openings = Counter(" ".join(e.answer.split()[:4]) for e in default_constitution.all_exemplars())
    assert [o for o, n in openings.items() if n > 1] == []


def test_shipped_exemplars_mostly_cite_hints_first(default_constitution: Constitution):
    first = [
        int(e.thoughts.split("Principles: ")[1].split(" ")[0]) in t.hints
        for t in default_constitution.question_types
        for e in t.exemplars
    ]
    assert sum(first) >= 0.9 * len(first)


def test_exemplars_are_far_from_what_measures(default_constitution: Constitution):
    index = NoveltyIndex(0.6)
    for _, probe in default_constitution.probes():
        index.accept(probe.ask)
    for scenario in load_scenarios(None, default_constitution).items:
        index.accept(scenario.ask)
    for exemplar in (e for t in default_constitution.question_types for e in t.exemplars):
        assert index.nearest_all([exemplar.user]) == [None], exemplar.user


# -- the nearest type ------------------------------------------------------------------------------------------------


def test_nearest_type_needs_two_of_three_near_questions(typed: Constitution):
    same, far = "Which song is first in the charts this year?", "Fold the blue paper into a swan."
    assert nearest_types(typed, [same, far]) == ["news", ""]
    assert nearest_types(typed, []) == []


def test_nearest_type_is_empty_without_exemplars(tmp_path: Path):
    (tmp_path / "c.yaml").write_text(GOOD, "utf-8")
    assert nearest_types(load(str(tmp_path / "c.yaml")), ["Who won the vote?"]) == [""]
    assert 0 < MIN_SIMILARITY < 1


def test_a_type_without_exemplars_is_near_its_own_question(tmp_path: Path):
    (tmp_path / "c.yaml").write_text(GOOD, "utf-8")
    assert types_near(load(str(tmp_path / "c.yaml")), ["Who won the last vote?"])[0] >= {"news"}


def test_missing_wordllama_is_a_clear_error(typed: Constitution, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "wordllama", None)
    duplicates._embedder.cache_clear()
    with pytest.raises(UserError, match="pip install wordllama"):
        nearest_types(typed, ["Who won the vote?"])


def test_phrases_that_a_type_teaches_are_no_leak(typed: Constitution):
    leaks = leaks_of(typed, 8)
    assert not leaks.found_in("I have no live data, so please look at the list on the door.", "Who is in?")
    assert leaks.found_in("Please look at the list on the website of the charts.", "Who is in?")
