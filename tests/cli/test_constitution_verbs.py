"""Run `selfalign constitution ...` and `init` (command_line.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import selfalign

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_lint_of_the_shipped_and_the_example_constitutions(tmp_path: Path) -> None:
    for arguments in (
        [],
        ["two-stage"],
        [str(EXAMPLES / "health_adviser/constitution.yaml")],
        [str(EXAMPLES / "german/constitution.yaml"), "--seeds", str(EXAMPLES / "german/seed_tasks.jsonl")],
    ):
        done = selfalign("constitution", "lint", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "consistent" in done.stdout


def test_lint_exit_codes(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: default\nprinciples:\n  - {id: 17, name: calm, rule: Stay calm.}\n", "utf-8")
    done = selfalign("constitution", "lint", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 0
    assert "mine.yaml:3: warning: no exemplar cites principle 17 (calm) [exemplified]" in done.stdout
    assert selfalign("constitution", "lint", "mine.yaml", "--strict", cwd=tmp_path).returncode == 1
    mine.write_text("extends: default\nprincipals: []\n", "utf-8")
    done = selfalign("constitution", "lint", "mine.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 1
    findings = json.loads(done.stdout)
    assert findings[0]["where"] == "mine.yaml:2" and "did you mean 'principles'" in findings[0]["message"]


def test_show_counts_and_resolves(tmp_path: Path) -> None:
    counts = json.loads(selfalign("constitution", "show", "--count", "--json", cwd=tmp_path).stdout)
    assert counts["total"] == sum(v for k, v in counts.items() if k not in ("total", "not counted")) < 300
    (tmp_path / "mine.yaml").write_text("extends: default\nassistant: {name: Ida}\n", "utf-8")
    whole = selfalign("constitution", "show", "mine.yaml", "--yaml", cwd=tmp_path).stdout
    (tmp_path / "whole.yaml").write_text(whole, "utf-8")
    assert "Alma" not in whole
    outputs = [selfalign("constitution", "show", f, cwd=tmp_path).stdout for f in ("mine.yaml", "whole.yaml")]
    assert outputs[0] == outputs[1] and "# Ida" in outputs[0]


def test_diff_prints_text_and_json(tmp_path: Path) -> None:
    done = selfalign("constitution", "diff", "default", "two-stage", cwd=tmp_path)
    assert done.returncode == 0 and "+ principle 17 (user's language)" in done.stdout
    value = json.loads(selfalign("constitution", "diff", "default", "two-stage", "--json", cwd=tmp_path).stdout)
    assert [p["id"] for p in value["principles"]["added"]] == [17] and value["tokens"]["change"] > 0
    assert "no difference" in selfalign("constitution", "diff", "default", "default", cwd=tmp_path).stdout


def test_import_writes_a_constitution_once(tmp_path: Path) -> None:
    source = str(Path(__file__).parents[1] / "data/original")
    done = selfalign("constitution", "import", source, "--out", "o", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "renders to the same text" in done.stdout and "not placed:" in done.stdout
    lint = selfalign("constitution", "lint", "o/constitution.yaml", "--seeds", "o/seed_tasks.jsonl", cwd=tmp_path)
    assert lint.returncode == 0
    again = selfalign("constitution", "import", source, "--out", "o", cwd=tmp_path)
    assert again.returncode == 1 and "exists" in again.stderr and again.stderr.count("\n") == 1


def test_init_writes_a_folder_that_lints_and_runs(tmp_path: Path) -> None:
    done = selfalign("init", "mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lint = selfalign("constitution", "lint", "mine/constitution.yaml", "--seeds", "mine/seed_tasks.jsonl", cwd=tmp_path)
    assert lint.returncode == 0 and "warning" not in lint.stdout
    small = ["--set", "engine.kind=fake", "--limit", "4"]
    run = selfalign("run", "mine/recipe.yaml", *small, "--out", "r", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "name: mine" in (tmp_path / "r/constitution.yaml").read_text("utf-8")
    again = selfalign("init", "mine", cwd=tmp_path)
    assert again.returncode == 1 and "exists" in again.stderr


def test_probes_on_a_run_of_the_fake_engine(tmp_path: Path) -> None:
    stages = ["--set", "stages=[prompts, align, engrave, verbose_cloning, evaluate]"]
    run = selfalign("run", "--set", "engine.kind=fake", *stages, "--limit", "4", "--out", "r", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    done = selfalign("constitution", "test", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "16 operational" in done.stdout and "95 % interval" in done.stdout
    assert "Made with the fake engine" in done.stdout
    value = json.loads(selfalign("constitution", "test", "r", "--json", cwd=tmp_path).stdout)
    assert [t["n"] for t in value["totals"]] == [96] * 4
    manifest = json.loads((tmp_path / "r/manifest.json").read_text("utf-8"))
    assert manifest["files"]["5_evaluation/probes.jsonl"]["rows"] == 4 * 96
    dropped = selfalign("constitution", "test", "r", "--drop", "9", cwd=tmp_path)
    assert dropped.returncode == 0 and "without 9" in dropped.stdout


def test_two_stage_recipe_needs_user_prompts(tmp_path: Path) -> None:
    done = selfalign("run", "two-stage", "--set", "engine.kind=fake", cwd=tmp_path)
    assert done.returncode == 1 and "--prompts FILE" in done.stderr and done.stderr.count("\n") == 1
    lines = [f"Please explain the word number {n} to me." for n in range(9)]
    (tmp_path / "mine.txt").write_text("\n".join(lines), "utf-8")
    command = ["run", "two-stage", "--set", "engine.kind=fake", "--prompts", "mine.txt", "--out", "r"]
    done = selfalign(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "r/4_verbose_clone").exists()


def test_init_folder_is_never_taken_for_a_run(tmp_path: Path) -> None:
    assert selfalign("init", "mine", cwd=tmp_path).returncode == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "mine").iterdir()}
    fake = ["--set", "engine.kind=fake", "--limit", "4"]
    for command in (
        ["run", "mine/recipe.yaml", *fake, "--out", "mine"],
        ["run", "mine/recipe.yaml", *fake, "--out", "mine", "--new"],
        ["status", "mine"],
        ["report", "mine"],
        ["constitution", "test", "mine"],
    ):
        done = selfalign(*command, cwd=tmp_path)
        assert done.returncode == 1 and "no run" in done.stderr, command
    assert {p.name: p.read_bytes() for p in (tmp_path / "mine").iterdir()} == before


def test_unknown_language_and_bad_folder_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: default\nlanguage: xx\n", "utf-8")
    done = selfalign("constitution", "lint", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 1 and "language 'xx' is unknown" in done.stdout and not done.stderr
    done = selfalign("init", "/proc/nothing", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1


def test_folder_with_other_files_is_not_overwritten(tmp_path: Path) -> None:
    fake = ["--set", "engine.kind=fake"]
    (tmp_path / "mine").mkdir()
    recipe = selfalign("recipe", "quick", *fake, cwd=tmp_path).stdout
    (tmp_path / "mine/recipe.yaml").write_text(recipe, "utf-8")
    (tmp_path / "mine/notes.txt").write_text("keep me", "utf-8")
    done = selfalign("run", "mine/recipe.yaml", "--out", "mine", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert (tmp_path / "mine/recipe.yaml").read_text("utf-8") == recipe
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["notes.txt", "recipe.yaml"]


def test_show_prints_the_prompt_of_a_type(tmp_path: Path) -> None:
    general = selfalign("constitution", "show", cwd=tmp_path).stdout
    opinions = selfalign("constitution", "show", "--type", "opinions", cwd=tmp_path).stdout
    assert "Should supermarkets be open at night?" in opinions
    assert "Should supermarkets be open at night?" not in general
    assert opinions.split("# Conversations")[0] == general.split("# Conversations")[0]
    everything = selfalign("constitution", "show", "--type", "all", cwd=tmp_path).stdout
    assert "──── questions without a type ────" in everything and "──── opinions ────" in everything
    unknown = selfalign("constitution", "show", "--type", "nothing", cwd=tmp_path)
    assert unknown.returncode == 1 and "the types are harmful requests" in unknown.stderr
