"""Test `selfalign constitution import` on files in the formats of the original project, written for these tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign import constitution as constitutions
from selfalign.constitution import Constitution, load
from selfalign.constitution.import_original import document, first_difference, parse_rules, read_files
from selfalign.constitution.rendering import render
from selfalign.errors import UserError
from selfalign.system import strict_yaml

DATA = Path(__file__).parents[1] / "data/original"
RULES = (DATA / "self_align_prompt.txt").read_text("utf-8")


def imported(tmp_path: Path, *paths: Path) -> tuple[Constitution, list[str]]:
    """Import the files, write the result, and load it as a user would."""
    result = read_files(list(paths))
    value, _ = document(result, "imported", constitutions.load("default"))
    file = tmp_path / "constitution.yaml"
    file.write_text(strict_yaml.dump(value), "utf-8")
    return load(str(file)), result.not_placed


def test_the_rules_prompt_renders_to_the_same_text(tmp_path: Path):
    texts, _ = imported(tmp_path, DATA)
    assert (render(texts) + "User:").strip() == RULES.strip()


def test_every_part_is_placed(tmp_path: Path):
    texts, _ = imported(tmp_path, DATA)
    assert texts.assistant.name == "Otto"
    assert texts.assistant.cutoff == "Mar-2022"
    assert [(p.id, p.name) for p in texts.principles] == [
        (1, "kind"),
        (2, "true & plain"),
        (3, "numbers"),
        (4, "no live data"),
    ]
    assert [len(e.follow_ups) for e in texts.exemplars] == [0, 1]
    assert texts.exemplars[1].user == "Add up the list:\n\n2, 3, 5"
    assert texts.exemplars[1].closing is not None
    assert texts.citation_cue() == " I should follow rules "
    assert [t.name for t in texts.question_types] == ["knowledge of toys", "a timetable"]
    assert [(p.question, p.answer) for p in texts.identity] == [
        ("Who are you?", "I am Otto."),
        ("Who are you?", "My name is Otto."),
    ]
    assert texts.prompts.verbose.startswith("# Dora")
    assert texts.prompts.verbose.endswith("I like to explain things at length.")


def test_unplaced_parts_are_reported(tmp_path: Path):
    _, not_placed = imported(tmp_path, DATA)
    for words in ("identity.json:3", "2 later turns", "topics.jsonl:3", "no standard system prompt", "Dora"):
        assert any(words in line for line in not_placed), words


def test_the_seeds_are_kept(tmp_path: Path):
    file = tmp_path / "seeds.jsonl"
    file.write_text(read_files([DATA]).seeds, "utf-8")
    seeds = constitutions.load_seeds(str(file))
    assert [s.instruction for s in seeds] == ["Name three kinds of hats.", "Is the mood of the line glad or sad?"]
    assert seeds[1].input == "The sun is out at last."


def test_renaming_the_assistant_in_one_place_renames_it_everywhere(tmp_path: Path):
    imported(tmp_path, DATA / "self_align_prompt.txt")
    file = tmp_path / "constitution.yaml"
    file.write_text(file.read_text("utf-8").replace("name: Otto", "name: Ida", 1), "utf-8")
    text = render(load(str(file)))
    assert "Otto" not in text
    assert text.replace("Ida", "Otto").strip() == RULES.strip().removesuffix("User:").strip()


def test_different_rendering_names_its_line(tmp_path: Path):
    odd = tmp_path / "odd.txt"
    odd.write_text(RULES.replace("User: Add up", "User:  Add up"), "utf-8")
    _, not_placed = imported(tmp_path, odd)
    assert any("renders differently" in line and "Add up" in line for line in not_placed)


def test_files_without_a_rules_prompt_are_refused():
    with pytest.raises(UserError, match="rules-and-examples prompt"):
        read_files([DATA / "seeds.jsonl"])
    with pytest.raises(UserError, match="does not exist"):
        read_files([DATA / "none.txt"])


def test_two_rules_prompts_are_refused():
    with pytest.raises(UserError, match="a second file of rules"):
        read_files([DATA / "self_align_prompt.txt", DATA / "self_align_prompt.txt"])


def test_a_dialogue_without_thoughts_is_named():
    with pytest.raises(UserError, match="expected a user's message, thoughts and an answer, but there is a turn of"):
        parse_rules(RULES.replace("\n\nOtto: The sum is:", ""), "f", [])


words = st.text("abcdefghij klm,.", min_size=1, max_size=40).map(lambda t: " ".join(t.split())).filter(bool)


@given(st.lists(words, min_size=1, max_size=4), st.lists(st.tuples(words, words, words), min_size=1, max_size=4))
def test_import_and_rendering_are_inverse(rules: list[str], talks: list[tuple[str, str, str]]):
    numbered = "\n".join(f"{n} (r{n}). Otto says {rule}" for n, rule in enumerate(rules, 1))
    dialogues = "\n\n".join(
        f"User: {u}\n\nOtto (internal thoughts): {t} 1 (r1).\n\nOtto: {a}\n\nUser: Good\n\nOtto (auto reply): Thanks."
        for u, t, a in talks
    )
    text = f"# Otto\n\nOtto keeps to this:\n\n{numbered}\n\n## Talks\n\nSome talks.\n\n{dialogues}\n\nUser:"
    value = {"format": 1, "name": "x", **parse_rules(text, "f", [])}
    value["prompts"] = dict.fromkeys(("standard", "concise", "verbose"), "x")
    from selfalign.constitution.loading import Located, filled

    texts = Constitution.model_validate(filled(Located("x", value, {})).value)
    assert first_difference(text, texts) == ""
    assert len(texts.exemplars) == len(talks)


def test_folder_may_contain_other_files(tmp_path: Path):
    for file in DATA.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "package.json").write_text('{\n  "name": "x"\n}\n', "utf-8")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/HEAD").write_text("ref", "utf-8")
    result = read_files([tmp_path])
    assert len(result.value["principles"]) == 4
    messages = " ".join(result.not_placed)
    assert "package.json" in messages and "latin.txt" in messages and ".git" not in messages
    with pytest.raises(UserError, match=r"latin\.txt"):
        read_files([tmp_path / "self_align_prompt.txt", tmp_path / "latin.txt"])


def test_identity_and_cut_off_follow_the_assistant(tmp_path: Path):
    imported(tmp_path, DATA)
    file = tmp_path / "constitution.yaml"
    text = (
        file.read_text("utf-8").replace("name: Otto", "name: Ida", 1).replace("cutoff: Mar-2022", "cutoff: May 2030", 1)
    )
    file.write_text(text, "utf-8")
    texts = load(str(file))
    assert texts.identity[0].answer == "I am Ida."
    assert "May 2030" in texts.layout.opening and "Mar-2022" not in texts.layout.opening


def test_broken_seeds_and_blank_lines_are_reported(tmp_path: Path):
    (tmp_path / "rules.txt").write_text(RULES.replace("\n3 (numbers)", "\n\n3 (numbers)"), "utf-8")
    (tmp_path / "seeds.json").write_text(
        '[{"instruction": 5, "instances": []}, {"instruction": "Go.", "instances": []}]'
    )
    texts, not_placed = imported(tmp_path, tmp_path / "rules.txt", tmp_path / "seeds.json")
    assert len(texts.principles) == 4
    assert any("seeds.json:1" in line for line in not_placed)
    assert any("renders differently" in line or "lines, its rendering" in line for line in not_placed)
