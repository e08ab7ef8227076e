"""Runs whose project folder was moved or mounted elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from selfalign.constitution import Constitution
from selfalign.errors import UserError
from selfalign.run import recipe as recipes
from selfalign.run.directory import RunDir
from selfalign.run.moved import relocate
from selfalign.run.recipe import Recipe

FAKE = ["engine.kind=fake", "stages=[prompts]"]


def project(folder: Path) -> Path:
    """A project with prompts, a model and seed tasks."""
    for name in ("data/rows.jsonl", "models/tiny/config.json", "seeds.jsonl", "bench.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"prompt": "Name a river of Asia."}\n')
    return folder


def recipe(folder: Path) -> Recipe:
    sets = [f"model={folder}/models/tiny", f"seeds={folder}/seeds.jsonl", f"evaluate.benchmarks=[{folder}/bench.jsonl]"]
    return recipes.located(recipes.load("quick", [*FAKE, *sets]), folder / "data/rows.jsonl")


def test_moved_project_finds_its_files(tmp_path: Path):
    old = recipe(project(tmp_path / "old place"))
    new = (tmp_path / "old place").rename(tmp_path / "new Übung")
    for run in ("runs/quick", "r1", "deep/er/r1"):
        moved = relocate(old, new / run)
        assert moved.model == str(new / "models/tiny") and moved.seeds == str(new / "seeds.jsonl")
        assert moved.prompts.file == str(new / "data/rows.jsonl")
        assert moved.evaluate.benchmarks == [str(new / "bench.jsonl")]


def test_prompts_with_other_content_are_not_taken(tmp_path: Path):
    old = recipe(project(tmp_path / "old"))
    new = (tmp_path / "old").rename(tmp_path / "new")
    (new / "data/rows.jsonl").write_text('{"prompt": "Another."}\n')
    assert relocate(old, new / "r1").prompts.file == old.prompts.file


def test_model_deleted_from_its_folder_is_not_replaced(tmp_path: Path):
    old = recipe(project(tmp_path / "old"))
    new = Path(shutil.copytree(tmp_path / "old", tmp_path / "new"))
    shutil.rmtree(tmp_path / "old/models/tiny")
    assert relocate(old, new / "r1") == old


def test_run_opens_and_resumes_after_the_move(tmp_path: Path, default_constitution: Constitution):
    folder = project(tmp_path / "a")
    RunDir.create(folder / "r1", recipe(folder), default_constitution).journal.close()
    folder = folder.rename(tmp_path / "b")
    run = RunDir.open(folder / "r1")
    assert run.recipe == recipe(folder)
    run.journal.close()
    RunDir.create(folder / "r1", recipe(folder), default_constitution).journal.close()
    assert str(tmp_path / "b") in (folder / "r1/recipe.yaml").read_text()


def test_model_moved_out_of_the_project_can_be_named_again(tmp_path: Path, default_constitution: Constitution):
    first = recipe(project(tmp_path / "a"))
    RunDir.create(tmp_path / "r1", first, default_constitution).journal.close()
    (tmp_path / "a/models/tiny").rename(tmp_path / "tiny")
    renamed = first.model_copy(update={"model": str(tmp_path / "tiny")})
    RunDir.create(tmp_path / "r1", renamed, default_constitution).journal.close()
    other = first.model_copy(update={"model": str(tmp_path / "a")})
    with pytest.raises(UserError, match="model:"):
        RunDir.create(tmp_path / "r1", other, default_constitution)
