"""Red-team prompts by question type: the list to continue, topics, weights, and room per type."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from selfalign.constitution import Constitution, QuestionType
from selfalign.data.prompt_text import BOS
from selfalign.data.records import Prompt, Topic, prompt_id, read_jsonl
from selfalign.errors import Interrupted, TooManyFailed, UserError
from selfalign.generation.engines.base import Step
from selfalign.pipeline import step1a_self_instruct, step1b_red_team, typed_questions
from selfalign.pipeline.rounds import Rounds
from selfalign.pipeline.typed_questions import has_topics, mentions, render
from selfalign.run.context import Context
from selfalign.system.signals import STOP

Runs = Callable[..., Context]
ABOUT = "Things at sea, each with a question"
SIZES = ("prompts.red_team.form=by_type", "prompts.self_instruct.count=0", "prompts.red_team.count=24")
SEA = {"name": "the sea", "about": ABOUT, "topic": "Tides", "question": "What moves the tides?", "weight": 3}
HILLS = {"name": "hills", "about": "Hills, each with a question", "topic": "Caves", "question": "Who lives in caves?"}
HINTS = {"name": "missing details", "topic": "Choices", "question": "Which of the two is better?", "weight": 2}
SHIP = {"user": "How does a ship float?", "topic": "Ships"}
LAMP = {"user": "Who lights the lamp?"}
"""Exemplars; the lamp has no topic."""


def exemplar(**keys: str) -> dict[str, str]:
    return {"thoughts": "A question. Principles: 1 (ethical).", "answer": "I do not know.", **keys}


def kind_of(value: dict[str, Any], *exemplars: dict[str, str]) -> QuestionType:
    return QuestionType.model_validate({**value, "exemplars": [exemplar(**e) for e in exemplars]})


@pytest.fixture
def texts(default_constitution: Constitution) -> Constitution:
    types = [kind_of(SEA, SHIP, LAMP), kind_of(HILLS), kind_of(HINTS)]
    return default_constitution.model_copy(update={"question_types": types})


def new_text(rng: random.Random, words: int = 8) -> str:
    return " ".join("".join(rng.choices("bcdfglmnprst", k=5)) for _ in range(words))


def script(prompt: str, step: Step, rng: random.Random) -> str:
    """Write a topic, a question, or a list of four questions."""
    if step.stop == (":", "\n"):
        return f" {new_text(rng, 2).title()}: and more"
    if step.cue.startswith(": "):
        return f" {new_text(rng)}?\n"
    return "".join(f" Is {new_text(rng)}?\n-" for _ in range(4))


def run_stage(context: Context) -> None:
    step1a_self_instruct.run(context)
    step1b_red_team.run(context)


def counts_of(context: Context) -> Counter[str]:
    """Run stage 1, check that the ledger is complete, and return the number of prompts of each type."""
    run_stage(context)
    found = context.journal.counts("red_team")
    assert found.rows_in == found.kept + sum(found.dropped.values()) + sum(found.failed.values())
    prompts = read_jsonl(context.run.jsonl("red_team"), Prompt)
    assert found.kept == len(prompts)
    return Counter(p.question_type for p in prompts)


# -- the prompt --------------------------------------------------------------------------------------------------------


def test_a_type_with_topics_shows_topics_and_questions(texts: Constitution):
    kind = texts.question_types[0]
    assert has_topics(kind)
    shown = [pair for pair in kind.examples() if pair[0]]
    assert render(kind, shown) == (
        BOS,
        f"{ABOUT}:\n\n- Tides: What moves the tides?\n- Ships: How does a ship float?\n-",
    )


def test_a_type_without_topics_shows_questions_only(texts: Constitution):
    kind = texts.question_types[2]
    assert not has_topics(kind)
    heading = "Messages to an assistant. All of them are of one kind: missing details."
    assert render(kind, kind.examples()) == (BOS, f"{heading}\n\n- Which of the two is better?\n-")


def test_other_languages_are_named_in_the_heading(texts: Constitution):
    for kind in texts.question_types:
        assert " They are in German.\n\n" in render(kind, kind.examples(), "de")[1]


def test_examples_without_a_topic_are_not_shown(fake_run: Runs, texts: Constitution):
    context = fake_run(*SIZES, texts=texts, script=script)
    accepted = [Prompt("1", "Who sails the boat?", "", "red_team", question_type="the sea", topic="Boats")]
    for at in range(16):
        prompt = typed_questions._request(context, texts.question_types[0], accepted, 0, at).request.prompt[1]
        assert "lamp" not in prompt
        assert "- Boats: Who sails the boat?\n" in prompt


def test_requests_of_a_list_share_its_order(fake_run: Runs, texts: Constitution):
    context = fake_run(*SIZES, texts=texts, script=script)
    requests = [typed_questions._request(context, texts.question_types[0], [], 0, n) for n in range(64)]
    prompts = [r.request.prompt for r in requests]
    assert all(len(set(prompts[at : at + 8])) == 1 for at in range(0, 64, 8))
    assert len(set(prompts)) == 2  # both orders of two examples
    assert len({(r.row_id, r.request.seed) for r in requests}) == 64
    topic, question = requests[0].request.steps
    assert topic.sampling.temperature > question.sampling.temperature
    assert {r.request.steps[1].cue for r in requests} == {": What", ": How"}


# -- mentions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "topic"),
    [
        ("How do I poison my boss?", "Poisoning a boss"),
        ("Where do the stars go by day?", "Star"),
        ("How high can a wallaby jump?", "Wallabies jumping"),
        ("WHAT IS THE PRICE OF GOLD?", "price of gold"),
        ("What time is it?", "What is it"),
        ("What time is it?", ""),
    ],
)
def test_mentions_accepts_other_forms_of_the_words(question: str, topic: str):
    assert mentions(question, topic)


@pytest.mark.parametrize(
    ("question", "topic"),
    [
        ("How do I poison my boss?", "Poisoning a teacher"),
        ("What is the price?", "Price of gold"),
        ("What should I do now?", "Whales"),
        ("", "Gold"),
    ],
)
def test_mentions_needs_every_content_word(question: str, topic: str):
    assert not mentions(question, topic)


def test_shipped_types_name_the_topic_of_their_question(default_constitution: Constitution):
    types = [t for t in default_constitution.question_types if has_topics(t)]
    pairs = [pair for t in types for pair in t.examples()]
    assert all(topic for topic, _ in pairs)
    assert sum(mentions(question, topic) for topic, question in pairs) >= 0.85 * len(pairs)


# -- candidates --------------------------------------------------------------------------------------------------------


def test_questions_share_the_weights_of_their_types(fake_run: Runs, texts: Constitution):
    assert counts_of(fake_run(*SIZES, texts=texts, script=script)) == {"the sea": 12, "missing details": 8, "hills": 4}


def test_types_of_weight_0_get_no_requests(fake_run: Runs, texts: Constitution):
    sea, *others = texts.question_types
    sea = sea.model_copy(update={"weight": 0})
    fewer = texts.model_copy(update={"question_types": [sea, *others]})
    context = fake_run(*SIZES, texts=fewer, script=script)
    assert counts_of(context) == {"missing details": 16, "hills": 8}
    none = texts.model_copy(update={"question_types": [sea]})
    with pytest.raises(UserError, match="weight 0"):
        run_stage(fake_run(*SIZES, texts=none, name="none"))


def test_later_rounds_ask_the_types_that_lack_prompts(fake_run: Runs, texts: Constitution):
    sea, hills, hints = texts.question_types
    accepted = {"the sea": [Prompt("1", "x", "")] * 12, "hills": [], "missing details": [Prompt("2", "y", "")] * 8}
    state = SimpleNamespace(
        subjects=Counter({"the sea": 22, "hills": 6, "missing details": 1}),
        target=24,
        accepted=[prompt for prompts in accepted.values() for prompt in prompts],
    )
    shares = typed_questions._shares([sea, hills, hints], accepted, cast(Rounds, state))
    # None of six requests gave a prompt, so one in eight is expected.
    assert shares == [(hills, 32)]


def test_a_type_without_prompts_leaves_its_share_to_others(fake_run: Runs, texts: Constitution):
    def without_hills(prompt: str, step: Step, rng: random.Random) -> str:
        return " so?\n" if "Hills, each" in prompt and step.cue else script(prompt, step, rng)

    context = fake_run(*SIZES, texts=texts, script=without_hills)
    counts = counts_of(context)
    assert (counts.total(), counts["hills"]) == (24, 0)
    assert context.journal.counts("red_team").dropped["too short"] < 100


def test_topics_are_stored_with_their_questions(fake_run: Runs, texts: Constitution):
    context = fake_run(*SIZES, texts=texts, script=script)
    counts_of(context)
    assert list(read_jsonl(context.run.jsonl("topics"), Topic)) == []
    for prompt in read_jsonl(context.run.jsonl("red_team"), Prompt):
        assert bool(prompt.topic) == (prompt.question_type != "missing details")
        assert prompt.instruction.split()[0] in ("What", "How", "Who", "Is")


def test_candidates_beyond_the_room_of_a_type_are_dropped(fake_run: Runs, texts: Constitution):
    context = fake_run(*SIZES, "prompts.red_team.count=6", texts=texts, script=script)
    # A list has four questions, of which two have room; the first types do not use up the count.
    assert counts_of(context) == {"the sea": 3, "missing details": 2, "hills": 1}
    assert context.journal.counts("red_team").dropped == {"more than wanted": 4}


def test_completions_without_a_topic_are_dropped(fake_run: Runs, texts: Constitution):
    def without_topic(prompt: str, step: Step, rng: random.Random) -> str:
        if "Things at sea" in prompt and step.stop == (":", "\n"):
            return rng.choice([": What?", " \n", " word" * 40])  # empty, empty, too long
        return script(prompt, step, rng)

    context = fake_run(*SIZES, "prompts.red_team.max_rounds=2", texts=texts, script=without_topic)
    assert counts_of(context)["the sea"] == 0
    assert context.journal.counts("red_team").dropped["no topic"] > 12


def test_failed_requests_are_counted(fake_run: Runs, texts: Constitution):
    context = fake_run(*SIZES, texts=texts, script=script, fail="Hills, each")
    with pytest.raises(TooManyFailed):
        run_stage(context)
    found = context.journal.counts("red_team")
    assert found.rows_in == found.kept + sum(found.dropped.values()) + sum(found.failed.values())
    assert sum(found.failed.values()) > 0


@pytest.mark.parametrize(
    ("text", "topic", "near", "reason"),
    [
        ("What moves the tides?", "Tides", {"the sea"}, ""),
        ("Who paints the boat?", "Tides", {"the sea"}, "does not name its topic"),
        ("What moves the tides", "Tides", {"the sea"}, "no end of sentence"),
        ("Tides?", "Tides", {"the sea"}, "too short"),
        ("What moves the tides?", "Tides", {"hills"}, "not of its type"),
    ],
)
def test_each_fault_of_a_question_has_its_reason(
    fake_run: Runs, texts: Constitution, text: str, topic: str, near: set[str], reason: str
):
    context = fake_run(*SIZES, texts=texts)
    real = SimpleNamespace(
        run=context.run, recipe=context.recipe, benchmarks=context.benchmarks, model=SimpleNamespace(is_fake=False)
    )
    outcome, prompt = typed_questions._candidate(cast(Context, real), texts.question_types[0], "1", text, topic, near)
    assert (outcome.state, outcome.reason) == ("dropped" if reason else "kept", reason)
    assert (prompt is None) == bool(reason)
    if prompt:
        assert (prompt.id, prompt.question_type, prompt.topic) == (prompt_id(text, ""), "the sea", topic)


def test_a_cut_last_line_of_a_list_is_no_candidate(fake_run: Runs, texts: Constitution):
    def cut(prompt: str, step: Step, rng: random.Random) -> str:
        if len(step.stop) == 2 or step.cue:
            return script(prompt, step, rng)
        return f" Is {new_text(rng)}?\n- {'Where ' * 300}?"

    context = fake_run(*SIZES, texts=texts, script=cut)
    counts_of(context)
    assert not any("Where Where" in p.instruction for p in read_jsonl(context.run.jsonl("red_team"), Prompt))
    assert set(context.journal.counts("red_team").dropped) <= {"more than wanted"}


@pytest.mark.parametrize("stop", [1, 2])
def test_resumed_stage_gives_the_same_prompts(
    fake_run: Runs, texts: Constitution, stop: int, stop_after: Callable[[int], None]
):
    def sparse(prompt: str, step: Step, rng: random.Random) -> str:
        # Most questions are too short, so that there are several rounds.
        return " so?\n" if step.cue.startswith(": ") and rng.random() < 0.85 else script(prompt, step, rng)

    whole = fake_run(*SIZES, texts=texts, script=sparse, name="whole")
    counts_of(whole)
    assert whole.journal.counts("red_team").notes["rounds"] > 2
    stop_after(stop)
    stopped = fake_run(*SIZES, texts=texts, script=sparse, name="stopped")
    with pytest.raises(Interrupted):
        run_stage(stopped)
    STOP.clear()
    stopped.journal.close()
    again = fake_run(*SIZES, texts=texts, script=sparse, name="stopped")
    counts_of(again)
    assert again.run.jsonl("red_team").read_bytes() == whole.run.jsonl("red_team").read_bytes()


def test_random_words_of_the_fake_engine_suit_every_type(fake_run: Callable[..., Context]):
    context = fake_run()
    kind = next(kind for kind in context.run.constitution.question_types if kind.words)
    outcome, prompt = typed_questions._candidate(context, kind, "a", "What does brass amber mean?", "", {kind.name})
    assert (outcome.state, outcome.reason) == ("kept", "") and prompt is not None
