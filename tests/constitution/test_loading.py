"""Test reading constitutions: extension, placeholders, line numbers, and the copy in a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from selfalign.constitution import Constitution, load
from selfalign.constitution.loading import read
from selfalign.errors import UserError
from selfalign.pipeline import order
from selfalign.run.context import Context
from selfalign.run.directory import RunDir

Runs = Callable[..., Context]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    def file(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
        return str(path)

    return file


def test_extension_replaces_and_appends_entries(write: Callable[[str, str], str]):
    mine = write(
        "mine.yaml",
        "extends: default\nprinciples:\n  - {id: 3, name: helpful, rule: Be of use.}\n"
        "  - {id: 17, name: calm, rule: Stay calm.}\nassistant: {name: Ida}\n",
    )
    texts = load(mine)
    assert [p.id for p in texts.principles] == list(range(1, 18))
    assert texts.principles[2].rule == "Be of use."
    assert texts.assistant.name == "Ida" and texts.assistant.cutoff == "August 2024"
    places = read(mine)
    assert places.where(("principles", 2, "rule")) == f"{mine}:3"
    assert places.where(("principles", 16)) == f"{mine}:4"
    assert places.where(("principles", 3, "rule")).startswith("default:")


def test_repeated_new_entries_are_an_error(write: Callable[[str, str], str]):
    twice = (
        "extends: default\nprinciples:\n  - {id: 3, name: helpful, rule: One.}\n  - {id: 3, name: other, rule: Two.}\n"
    )
    with pytest.raises(UserError, match=r"mine\.yaml:4: two principles have the id 3"):
        load(write("mine.yaml", twice))


def test_extension_by_relative_path_and_in_a_cycle(write: Callable[[str, str], str]):
    write("base.yaml", "extends: default\nname: base\n")
    assert load(write("sub/mine.yaml", "extends: ../base.yaml\nassistant: {name: Ida}\n")).name == "base"
    with pytest.raises(UserError, match="extends itself"):
        load(write("circle.yaml", "extends: sub/../circle.yaml\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: [default]\n", "not a name or a path"),
        ("extends: none.yaml\n", "does not exist"),
        ("extends: default\nprinciples: 3\n", "principles is 3"),
        ("extends: default\nprinciples: [{id: [17], name: x, rule: y}]\n", r"principles\.16\.id"),
        ("extends: default\nexemplars: [{user: [a, b], thoughts: t, answer: a}]\n", r"exemplars\.5\.user"),
        ("extends: default\nlanguage: no\n", "write it in quotes"),
        ("extends: default\nlanguage: xx\n", "language 'xx' is unknown"),
        ("extends: default\nprinciples: [{id: 1, name: ethical, rule: ' '}]\n", "is blank"),
        ("- a\n", "must be a mapping"),
        ("", "must be a mapping"),
    ],
)
def test_errors_are_one_line(write: Callable[[str, str], str], text: str, message: str):
    with pytest.raises(UserError, match=message) as caught:
        load(write("mine.yaml", text))
    assert "\n" not in str(caught.value)


def test_placeholders_are_filled_everywhere(write: Callable[[str, str], str]):
    texts = load(write("mine.yaml", "extends: default\nassistant: {name: Ida, cutoff: May 2031}\n"))
    whole = texts.model_dump_json()
    assert "{name}" not in whole and "{cutoff}" not in whole
    assert "Alma" not in whole and "August 2024" not in whole


def test_copy_in_a_run_is_validated(fake_run: Runs):
    context = fake_run("stages=[prompts]")
    file = context.run.path / "constitution.yaml"
    file.write_text(file.read_text("utf-8").replace("9 (static)", "99 (static)"), "utf-8")
    with pytest.raises(UserError, match=r"constitution\.yaml:\d+: exemplar \d cites \"99 \(static\)\""):
        RunDir.open(context.run.path)


def test_prose_in_brackets_is_not_a_citation(default_constitution: Constitution):
    value = default_constitution.model_dump(mode="json")
    value["exemplars"][2]["thoughts"] = (
        "A meal for 4 (or 5) people. Principles: 5 (reasoning), 11 (numerical sensitivity)."
    )
    from selfalign.constitution.document import inconsistencies

    assert inconsistencies(Constitution.model_validate(value)) == []
    value["exemplars"][2]["thoughts"] = "A meal. Principles: 5 (reasoning), 11 (sums)."
    assert len(inconsistencies(Constitution.model_validate(value))) == 1


def test_question_with_two_responses_is_trained_twice_and_asked_once(
    fake_run: Runs, default_constitution: Constitution
):
    value = default_constitution.model_dump(mode="json")
    value["identity"].append({"question": "Who are you?", "answer": "I am {name}, a model."})
    texts = Constitution.model_validate(value)
    context = fake_run("prompts.self_instruct.count=4", "prompts.red_team.count=0", texts=texts)
    order.run_all(context)
    assert context.journal.counts("engrave").kept >= len(texts.identity)
    counts = context.journal.counts("verbose_responses")
    assert counts.rows_in == counts.kept + sum(counts.dropped.values())
