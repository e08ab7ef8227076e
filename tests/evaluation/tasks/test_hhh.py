"""HHH alignment: the texts of a comparison, and the measures of its log-probabilities."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from selfalign.constitution import Constitution
from selfalign.data.prompt_text import BOS, Control, Turn
from selfalign.evaluation.benchmarks import load
from selfalign.evaluation.prompting import PROMPTS, Cell, best, cell_text
from selfalign.evaluation.tasks import hhh
from selfalign.evaluation.tasks.hhh import ORIGIN, Comparison
from selfalign.generation.scoring.base import Scored
from selfalign.model.dialogue import PLAIN, ROLES

ITEM = Comparison(0, "honest", "Who is there?", ("Only me.", "Nobody is here at all."), 0)


def scored(*totals: float) -> list[Scored]:
    return [Scored((t,)) for t in totals]


def test_letters_are_scored_in_both_orders():
    cells = hhh.letter_cells(ITEM)
    assert [(c.label, c.answer) for c in cells] == [
        ("A of 0|1", "A"), ("B of 0|1", "B"), ("A of 1|0", "A"), ("B of 1|0", "B")
    ]  # fmt: skip
    first, second = cells[0].turns[0].text, cells[2].turns[0].text
    assert "A) Only me.\nB) Nobody is here at all." in first and "A) Nobody is here at all.\nB) Only me." in second
    assert first.startswith("Human: Who is there?\n\nAssistant:\n")
    assert {c.begin for c in cells} == {cells[0].begin} and cells[0].begin


@pytest.mark.parametrize("like_a", [-5.0, 0.0, 5.0])
def test_preference_for_a_letter_has_no_effect(like_a: float):
    # The model knows the good reply by 1 nat and likes the letter A by `like_a`.
    result = scored(-2 + like_a, -3, -3 + like_a, -2)
    assert hhh.read_letters(ITEM, result) == {hhh.LETTERS: 1.0}
    assert hhh.read_letters(replace(ITEM, good=1), result) == {hhh.LETTERS: 0.0}


def test_uninformed_scorer_is_at_chance_on_hhh():
    items = [replace(ITEM, input=f"Question {i}?") for i in range(400)]
    right = sum(hhh.read_letters(i, scored(-1, -1, -1, -1))[hhh.LETTERS] for i in items)
    assert 160 < right < 240
    assert best(items[0], [1.0, 2.0]) == 1 and best(items[0], [2.0, 1.0]) == 0


def test_baselines_need_no_model():
    values = {"longest answer": 0.0, "shortest answer": 1.0, "random guess": 0.5}
    assert hhh.FORMS[0].baselines(ITEM) == {hhh.LETTERS: values}
    assert set(hhh.FORMS[1].baselines(ITEM)) == {hhh.SUM, hhh.PER_TOKEN}


def test_sum_and_mean_may_disagree():
    short, long = Scored((-3.0,)), Scored((-1.0, -1.0, -1.0, -1.0))
    assert hhh.read_replies(ITEM, [short, long]) == {hhh.SUM: 1.0, hhh.PER_TOKEN: 0.0}


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("Who are you?", ["Who are you?"]),
        ("Hi.\n\nAssistant: Hello!\n\nHuman: Who are you?", ["Hi.", "Hello!", "Who are you?"]),
        ("Human: Hi.\n\nAssistant: Hello!\n\nHuman: Who?", ["Hi.", "Hello!", "Who?"]),
        ("Hi.\n\nAssistant: Hello!", ["Hi.\n\nAssistant: Hello!"]),  # no turn of the user's is left to answer
        ("A.\n\nHuman: B.", ["A.\n\nHuman: B."]),
        ("The word Assistant: what is it?", ["The word Assistant: what is it?"]),
    ],
)
def test_dialogue_input_becomes_turns(text: str, turns: list[str]):
    result = hhh.dialogue(text)
    assert [t.text for t in result] == turns
    assert [t.role for t in result] == ["user", "assistant", "user"][: len(turns)]


def test_three_replies_are_compared_in_pairs():
    item = Comparison(0, "other", "?", ("a", "b", "c"), 2)
    cells = hhh.letter_cells(item)
    assert len(cells) == 12
    good = [-1.0 if f"{c.answer} of" in c.label and _named(c) == 2 else -4.0 for c in cells]
    assert hhh.read_letters(item, scored(*good)) == {hhh.LETTERS: 1.0}


def _named(cell: Cell) -> int:
    first, second = cell.label.split(" of ")[1].split("|")
    return int(first if cell.answer == "A" else second)


def test_every_prompt_precedes_the_same_cell(default_constitution: Constitution):
    cell = hhh.letter_cells(ITEM)[0]
    for template in (PLAIN, *ROLES):
        for prompt in PROMPTS:
            context, continuation = cell_text(template, default_constitution, prompt, cell)
            assert continuation == " A" and context[-1].endswith(cell.begin)
            assert cell.turns[0].text in "".join(context)
            assert all(isinstance(p, Control) for p in context if p in (BOS, template.end))
    plain = "".join(cell_text(PLAIN, default_constitution, "standard", cell)[0])
    assert plain.endswith(f"\n\nAlma: {cell.begin}")
    whole = cell_text(PLAIN, default_constitution, "constitution", cell)[0]
    assert "1 (ethical)." in "".join(whole) and "".join(whole).endswith(f"\n\nAlma: {cell.begin}")
    assert sum(str(p).count("Alma:") for p in cell_text(PLAIN, default_constitution, "two-shot", cell)[0]) == 3


def test_reply_is_scored_in_the_training_format(default_constitution: Constitution):
    cell = hhh.reply_cells(ITEM)[0]
    gemma = next(t for t in ROLES if t.name == "gemma")
    assert cell_text(PLAIN, default_constitution, "standard", cell)[1] == " Only me."
    assert cell_text(gemma, default_constitution, "standard", cell)[1] == "Only me."
    turns = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))
    context, _ = cell_text(PLAIN, default_constitution, "constitution", Cell(turns, "d"))
    assert "".join(context).endswith("User: a\n\nAlma: b\n\nUser: c\n\nAlma:")


def test_every_fixture_item_has_cells():
    data = Path(__file__).parents[2] / "data/fixture_hhh.json"
    for item in load(ORIGIN, str(data)).items:
        assert isinstance(item, Comparison)
        assert len(hhh.letter_cells(item)) == 4 and len(hhh.reply_cells(item)) == 2
