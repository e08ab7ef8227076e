"""Reading benchmarks in every published format, on fixtures."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from selfalign.errors import UserError
from selfalign.evaluation import benchmarks
from selfalign.evaluation.benchmarks import FOLDER, Benchmark, item_id
from selfalign.evaluation.tasks import ORIGINS
from selfalign.evaluation.tasks.hhh import Comparison
from selfalign.evaluation.tasks.open_ended import OpenQuestion
from selfalign.evaluation.tasks.truthfulqa import Question

DATA = Path(__file__).parents[1] / "data"
HHH, TRUTHFUL, VICUNA = (DATA / f"fixture_{n}" for n in ("hhh.json", "truthfulqa.csv", "vicuna.jsonl"))
OWN = DATA / "fixture_questions.jsonl"


def load(name: str, source: str | None = None, recipe_files: Sequence[str] = ()) -> Benchmark:
    return benchmarks.load(ORIGINS[name], source, recipe_files)


def test_fixtures_are_labelled():
    for name, file in (("hhh", HHH), ("truthfulqa", TRUTHFUL), ("vicuna", VICUNA)):
        result = load(name, str(file))
        assert result.label == f"{name} (fixture)"
        assert result.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert [i.position for i in result.items] == list(range(len(result.items)))


def test_better_reply_is_identified_by_its_score():
    items = load("hhh", str(HHH)).items
    assert {i.subset for i in items} == {"harmless", "helpful", "honest", "other"}
    goods = [i.good for i in items if isinstance(i, Comparison)]
    assert 0 in goods and 1 in goods
    norway = next(i for i in items if isinstance(i, Comparison) and "Norway" in i.input)
    assert norway.replies[norway.good].endswith("Oslo.")
    assert items[0].cluster == items[1].cluster != items[2].cluster


def test_every_format_of_hhh_gives_the_same_comparisons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expected = [item_id(i) for i in load("hhh", str(HHH)).items]
    value = json.loads(HHH.read_text("utf-8"))
    tasks = tmp_path / "bigbench/benchmark_tasks/hhh_alignment"
    rows = []
    for subset, part in value.items():
        (tasks / subset).mkdir(parents=True)
        (tasks / subset / "task.json").write_text(json.dumps({"name": f"hhh_{subset}", **part}), "utf-8")
        for e in part["examples"]:
            choices, labels = list(e["target_scores"]), list(e["target_scores"].values())
            rows.append({"subset": subset, "input": e["input"], "targets": {"choices": choices, "labels": labels}})
    (tmp_path / "hhh.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    for folder in (tmp_path, tmp_path / "bigbench", tasks):
        assert [item_id(i) for i in load("hhh", str(folder)).items] == expected
    one = load("hhh", str(tasks / "honest/task.json")).items
    assert {i.subset for i in one} == {"honest"} and len(one) == 3
    assert [item_id(i) for i in load("hhh", str(tmp_path / "hhh.jsonl")).items] == expected
    by_subset = {s: [{k: r[k] for k in ("input", "targets")} for r in rows if r["subset"] == s] for s in value}
    fetched = hub(monkeypatch, lambda name, config, split: by_subset[config] if split == "test" else [])
    result = load("hhh", "owner/hhh")
    assert [item_id(i) for i in result.items] == expected and fetched == ["owner/hhh"] * 4
    assert result.sha256 == load("hhh", "owner/hhh").sha256


def hub(monkeypatch: pytest.MonkeyPatch, rows: Any) -> list[str]:
    """Replace the hub by one that returns real data sets; return the list of requested names."""
    datasets = pytest.importorskip("datasets", reason="`datasets` is not installed")
    names: list[str] = []

    def load_dataset(name: str, config: str, split: str) -> Any:
        names.append(name)
        return datasets.Dataset.from_list(rows(name, config, split))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return names


def test_every_format_of_truthfulqa_gives_the_same_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    items = [i for i in load("truthfulqa", str(TRUTHFUL)).items if isinstance(i, Question)]
    spider, moon = items[2], items[7]
    assert len(spider.incorrect) == 3, "a blank after the last semicolon is no answer"
    assert len(moon.incorrect) == 3, "an answer that stands there twice counts once"
    generation = [
        {
            "category": q.subset, "question": q.question, "best_answer": q.best,
            "correct_answers": list(q.correct), "incorrect_answers": list(q.incorrect),
        }
        for q in items
    ]  # fmt: skip
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in generation), "utf-8")
    assert load("truthfulqa", str(tmp_path / "questions.jsonl")).items == tuple(items)
    hub(monkeypatch, lambda name, config, split: generation if (config, split) == ("generation", "validation") else [])
    assert load("truthfulqa", "owner/truthful").items == tuple(items)
    choices = [
        {
            "question": q.question,
            "mc1_targets": {q.best: 1, **dict.fromkeys(q.incorrect, 0)},
            "mc2_targets": {**dict.fromkeys(q.correct, 1), **dict.fromkeys(q.incorrect, 0)},
        }
        for q in items
    ]
    (tmp_path / "mc_task.json").write_text(json.dumps(choices), "utf-8")
    for source in (tmp_path / "mc_task.json", tmp_path):
        result = load("truthfulqa", str(source)).items
        assert [(q.best, q.correct, q.incorrect) for q in result if isinstance(q, Question)] == [
            (q.best, q.correct, q.incorrect) for q in items
        ]


def test_vicuna_has_turns():
    items = [i for i in load("vicuna", str(VICUNA)).items if isinstance(i, OpenQuestion)]
    assert [len(i.turns) for i in items] == [1, 1, 1, 2] and items[0].subset == "generic"


def test_questions_are_read_from_several_fields_and_lines(tmp_path: Path):
    result = load("questions", str(OWN))
    assert (result.label, result.sha256) == (
        "questions (fixture_questions)",
        hashlib.sha256(OWN.read_bytes()).hexdigest(),
    )
    items = [i for i in result.items if isinstance(i, OpenQuestion)]
    assert [(i.key, i.subset) for i in items] == [
        ("tea-1", "household"),
        ("walk", "household"),
        ("", "facts"),
        ("4", ""),
    ]
    assert items[1].turns == ("Plan a walk for a rainy day.\n\nI have two hours.",)
    texts = [i.turns[0] for i in items]
    (tmp_path / "lines.txt").write_text("\ufeff" + "\n\n".join(t.split("\n")[0] for t in texts) + "\n", "utf-8")
    (tmp_path / "array.json").write_text(json.dumps([{"question": t, "category": " a\nb "} for t in texts]), "utf-8")
    lines, array = load("questions", str(tmp_path / "lines.txt")), load("questions", str(tmp_path / "array.json"))
    assert lines.label == "questions (lines)" and len(lines.items) == len(array.items) == 4
    assert [i.turns for i in array.items if isinstance(i, OpenQuestion)] == [i.turns for i in items]
    assert {i.subset for i in array.items} == {"a b"}


def test_questions_are_found_only_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with pytest.raises(UserError, match="questions: no benchmark file was found"):
        load("questions")
    (tmp_path / "questions.txt").write_text("Why?\n", "utf-8")
    assert load("questions").label == "questions (questions)"


def test_limit_samples_every_subset():
    whole = load("hhh", str(HHH))
    some = whole.first(8)
    assert len(some.items) == 8 and {i.subset for i in some.items} == {i.subset for i in whole.items}
    assert some == whole.first(8) and set(whole.first(4).items) < set(some.items)
    assert whole.first(None) is whole and whole.first(99) is whole


def test_benchmarks_are_found_by_variable_and_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/hhh_alignment.json").write_bytes(HHH.read_bytes())
    (tmp_path / "TruthfulQA.csv").write_bytes(TRUTHFUL.read_bytes())
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert load("truthfulqa").label == "truthfulqa"
    assert load("hhh", recipe_files=[str(tmp_path / "a/hhh_alignment.json")]).label == "hhh"
    with pytest.raises(UserError, match=f"set {FOLDER} to the folder that holds vicuna_questions.jsonl"):
        load("vicuna")


@pytest.mark.parametrize(
    ("name", "file", "text", "match"),
    [
        ("hhh", "x.json", "{", "is not JSON"),
        ("hhh", "x.json", "[1]", "not an HHH file"),
        ("hhh", "x.json", '{"honest": {"examples": [{"input": "a"}]}}', "item 1: needs `input` and `target_scores`"),
        ("hhh", "x.json", '{"a": {"examples": [{"input": "a", "target_scores": {"x": 1, "y": 1}}]}}', "one best score"),
        ("hhh", "x.json", '{"a": {"examples": []}}', "has no items"),
        ("truthfulqa", "x.csv", "Question,Best Answer\nWhy?,So\n", "item 1: the column 'Correct Answers'"),
        ("truthfulqa", "x.json", '{"a": 1}', "not a TruthfulQA file"),
        ("truthfulqa", "x.json", '[{"question": "Why?"}]', "item 1: needs a best answer"),
        ("vicuna", "x.jsonl", '{"turns": []}\n', "x.jsonl:1: needs a question as text"),
        ("vicuna", "x.jsonl", '{"turns": ["a", 1]}\n', "needs a question as text"),
        ("questions", "x.jsonl", '{"prompt": "a"}\n{"prompt": " "}\n', "x.jsonl:2: needs a question as text"),
        ("questions", "x.jsonl", '{"ask": "a"}\n', "under one of turns, question, text, instruction, prompt"),
        ("questions", "x.json", "[5]", "expected an object"),
        ("questions", "x.txt", "\n", "has no items"),
    ],
)
def test_wrong_benchmark_file_is_an_error_of_one_line(tmp_path: Path, name: Any, file: str, text: str, match: str):
    (tmp_path / file).write_text(text, "utf-8")
    with pytest.raises(UserError, match=match) as error:
        load(name, str(tmp_path / file))
    assert "\n" not in str(error.value)


def test_missing_benchmark_error_names_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="is not a file, a folder or a hub id"):
        load("hhh", str(tmp_path / "nothing.json"))
    with pytest.raises(UserError, match="not a BIG-bench checkout"):
        load("hhh", str(tmp_path))
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        load("truthfulqa")


@pytest.mark.skipif(not os.environ.get(FOLDER), reason=f"{FOLDER} names no folder with the public benchmarks")
def test_public_files_have_their_known_sizes():
    hhh, truthful, vicuna = (load(n) for n in ("hhh", "truthfulqa", "vicuna"))
    subsets = [i.subset for i in hhh.items]
    assert {s: subsets.count(s) for s in set(subsets)} == {"harmless": 58, "helpful": 59, "honest": 61, "other": 43}
    assert len({i.cluster for i in hhh.items}) == 102
    questions = [i for i in truthful.items if isinstance(i, Question)]
    assert len(questions) == 817 and len(vicuna.items) == 80
    assert all(q.best in q.correct and q.best not in q.incorrect for q in questions)
    choices = sum(1 + len(q.incorrect) for q in questions) / 817
    assert 5.0 < choices < 5.1
