"""Test the shipped constitution and seed tasks, and the errors of invalid ones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfalign.constitution import Constitution, Principle, SeedTask, load, load_seeds
from selfalign.constitution.document import Assistant, Exemplar, SystemPrompts
from selfalign.data.text import CITATION
from selfalign.errors import UserError

PAPER_PRINCIPLES = [
    "ethical",
    "informative",
    "helpful",
    "question assessment",
    "reasoning",
    "multi-aspect",
    "candor",
    "knowledge recitation",
    "static",
    "clarification",
    "numerical sensitivity",
    "dated knowledge",
    "step-by-step",
    "balanced perspectives",
    "creative",
    "operational",
]


@pytest.fixture
def changed(tmp_path: Path, default_constitution: Constitution):
    """Load the default constitution with a change of its plain value."""

    def make(change) -> Constitution:
        value: dict[str, Any] = copy.deepcopy(default_constitution.model_dump(mode="json"))
        change(value)
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(value, allow_unicode=True), "utf-8")
        return load(str(file))

    return make


def test_the_default_has_the_papers_sixteen_principles(default_constitution: Constitution):
    assert [p.name for p in default_constitution.principles] == PAPER_PRINCIPLES
    assert [p.id for p in default_constitution.principles] == list(range(1, 17))


def test_the_defaults_five_exemplars_cite_every_principle(default_constitution: Constitution):
    assert len(default_constitution.exemplars) == 5
    cited = {int(number) for e in default_constitution.exemplars for number, _ in CITATION.findall(e.thoughts)}
    assert cited == set(range(1, 17))


def test_the_default_has_eighteen_question_types_with_different_seeds(default_constitution: Constitution):
    types = default_constitution.question_types
    assert len(types) == 18
    assert len({t.name for t in types}) == len({t.topic for t in types}) == len({t.question for t in types}) == 18


def test_fewer_than_three_hundred_human_written_items(default_constitution: Constitution):
    counts = default_constitution.human_items(len(load_seeds("default")))
    assert counts["seed tasks"] == 175
    assert counts["principles"] == 16
    assert counts["exemplars"] == 5
    further = sum(len(t.more_examples) for t in default_constitution.question_types)
    assert counts["question types"] == 18 + further
    assert counts["exemplars of types"] == 51
    assert counts["total"] == sum(v for k, v in counts.items() if k != "total")
    assert counts["total"] < 300


def test_default_system_prompts_name_the_assistant(default_constitution: Constitution):
    for kind in ("standard", "concise", "verbose"):
        text = default_constitution.system_prompt(kind)
        assert "Alma" in text
        assert "{name}" not in text


def test_the_unchanged_value_is_read_back_with_the_same_digest(changed, default_constitution: Constitution):
    again = changed(lambda value: None)
    assert again == default_constitution
    assert again.digest() == default_constitution.digest()


def test_the_digest_follows_the_content(changed, default_constitution: Constitution):
    other = changed(lambda v: v["principles"][0].update(rule="Be kind."))
    assert other.digest() != default_constitution.digest()


def test_exemplar_with_unknown_principle_is_an_error(changed):
    with pytest.raises(UserError, match=r'exemplar 2 cites "77 \(bold\)", but there is no principle 77'):
        changed(lambda v: v["exemplars"][1].update(thoughts="A question. Principles: 77 (bold)."))


def test_error_for_a_wrong_name_gives_the_right_one(changed):
    with pytest.raises(UserError, match=r"exemplar 1 cites \"3 \(candor\)\", but principle 3 is 'helpful'"):
        changed(lambda v: v["exemplars"][0].update(thoughts="A question. Principles: 3 (candor)."))


def test_an_exemplar_that_cites_nothing_is_refused(changed):
    with pytest.raises(UserError, match="exemplar 1 cites no principle"):
        changed(lambda v: v["exemplars"][0].update(thoughts="A question."))


def test_a_citation_may_differ_in_case(changed):
    assert changed(lambda v: v["exemplars"][0].update(thoughts="A question. Principles: 3 (Helpful)."))


def test_two_principles_with_the_same_id_are_refused(changed):
    with pytest.raises(UserError, match="two principles have the id 1"):
        changed(lambda v: v["principles"][1].update(id=1))


def test_thoughts_of_two_lines_are_refused(changed):
    with pytest.raises(UserError, match=r"exemplars\.0: an exemplar's thoughts must be one line"):
        changed(lambda v: v["exemplars"][0].update(thoughts="A question.\nPrinciples: 3 (helpful)."))


def test_a_hint_at_an_unknown_principle_is_refused(changed):
    with pytest.raises(UserError, match="'harmful requests' has the hint 99"):
        changed(lambda v: v["question_types"][0].update(hints=[99]))


@pytest.mark.parametrize("name", ["", "a" * 41, "Al\nma", "Alma:", "{x}", "<b>"])
def test_assistant_name_with_markup_is_refused(changed, name: str):
    with pytest.raises(UserError, match=r"assistant\.name"):
        changed(lambda v: v["assistant"].update(name=name))


@pytest.mark.parametrize("key", ["principles", "exemplars"])
def test_principles_and_exemplars_cannot_be_empty(changed, key: str):
    with pytest.raises(UserError, match=key):
        changed(lambda v: v.update({key: []}))


def test_a_typo_in_a_principle_gets_a_suggestion(changed):
    with pytest.raises(UserError, match=r"unknown key 'principles\.3\.probe'; did you mean 'probes'"):
        changed(lambda v: v["principles"][3].update(probe=[]))


def test_another_format_is_refused(changed):
    with pytest.raises(UserError, match="format is 2"):
        changed(lambda v: v.update(format=2))


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"constitution .*none\.yaml' does not exist"):
        load(str(tmp_path / "none.yaml"))


def test_the_citation_cue_of_the_default(default_constitution: Constitution):
    assert default_constitution.citation_cue() == " Principles: "


def _with_thoughts(*thoughts: str) -> Constitution:
    return Constitution(
        format=1,
        name="small",
        assistant=Assistant(name="Bo", cutoff="2020"),
        principles=[Principle(id=1, name="kind", rule="Be kind.")],
        exemplars=[Exemplar(user="u", thoughts=t, answer="a") for t in thoughts],
        prompts=SystemPrompts(standard="s", concise="c", verbose="v"),
    )


@pytest.mark.parametrize(
    ("thoughts", "cue"),
    [
        (["A note. Use 1 (kind).", "The sum! Use 1 (kind)."], " Use "),
        (["One. I should follow 1 (kind).", "Two? I should follow 1 (kind)."], " I should follow "),
        (["A note. Use 1 (kind).", "A note. See 1 (kind)."], ""),
        (["A note. Use 1 (kind)."], " Use "),
        (["1 (kind)", "Use 1 (kind)"], ""),
    ],
)
def test_the_citation_cue_is_what_all_exemplars_share(thoughts: list[str], cue: str):
    assert _with_thoughts(*thoughts).citation_cue() == cue


def test_the_default_seeds_are_usable():
    seeds = load_seeds("default")
    assert len(seeds) == 175
    assert all(s.instruction for s in seeds)
    assert len({s.instruction for s in seeds}) == 175


def _seeds(tmp_path: Path, text: str) -> list[SeedTask]:
    file = tmp_path / "seeds.jsonl"
    file.write_text(text, "utf-8")
    return load_seeds(str(file))


def test_seeds_are_read_with_and_without_input(tmp_path: Path):
    seeds = _seeds(
        tmp_path,
        '{"instruction": " Sort. ", "instances": [{"input": "b a", "output": "a b"}]}\n\n'
        '{"instruction": "Greet.", "instances": []}\n{"instruction": "Wave.", "instances": [{"output": "hi"}]}\n',
    )
    assert [(s.instruction, s.input) for s in seeds] == [("Sort.", "b a"), ("Greet.", ""), ("Wave.", "")]


def test_an_empty_seed_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"seeds\.jsonl has no seed task"):
        _seeds(tmp_path, "\n\n")


@pytest.mark.parametrize(
    "line",
    [
        "{not json",
        "[]",
        '"text"',
        "{}",
        '{"instruction": 5, "instances": [{"input": ""}]}',
        '{"instruction": "  ", "instances": [{"input": ""}]}',
        '{"instruction": "Sort.", "instances": [{"input": 5}]}',
        '{"instruction": "Sort.", "instances": ["x"]}',
    ],
)
def test_a_malformed_seed_names_file_and_line(tmp_path: Path, line: str):
    with pytest.raises(UserError, match=r"seeds\.jsonl:2\b"):
        _seeds(tmp_path, f'{{"instruction": "Sort.", "instances": []}}\n{line}\n')


def test_a_missing_seed_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.jsonl' does not exist"):
        load_seeds(str(tmp_path / "none.jsonl"))
