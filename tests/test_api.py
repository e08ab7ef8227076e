"""Use the Python interface on the fake engine; run the examples of docs/python.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import selfalign
from selfalign.system.console import Screen

SMALL = {"engine.kind": "fake", "evaluate.limit": 4, "prompts.self_instruct.count": 8, "prompts.red_team.count": 20}


def test_run_and_read_the_results(tmp_path: Path):
    with selfalign.create("quick", tmp_path / "run", settings=SMALL, limit=20) as run:
        run.run_all()
        prompts, responses = list(run.prompts()), list(run.responses())
        assert {r.id for r in responses} <= {p.id for p in prompts}
        assert len(prompts) == 28
        assert {s.model for s in run.scores()} >= {"base", "engraved", "final"}
        for counts in run.counts():
            assert counts.rows_in == counts.kept + sum(counts.dropped.values()) + sum(counts.failed.values())
        assert len(list(run.drops())) == sum(c.rows_in - c.kept for c in run.counts())
        assert run.status()["finished"]
    assert (tmp_path / "run/manifest.json").exists()


def test_opened_run_continues_stage_by_stage(tmp_path: Path):
    settings = {**SMALL, "stages": ["prompts", "align"]}
    with selfalign.create("quick", tmp_path / "run", settings=settings) as run:
        run.run_stage("prompts")
        with pytest.raises(selfalign.UserError, match="missing"):
            list(run.responses())
    with selfalign.open_run(tmp_path / "run") as run:
        run.run_stage("align")
        assert list(run.responses())
    assert (tmp_path / "run/manifest.json").exists()


def test_run_is_held_until_closed(tmp_path: Path):
    run = selfalign.create("quick", tmp_path / "run", settings=SMALL)
    with pytest.raises(selfalign.UserError, match="in use"):
        selfalign.open_run(tmp_path / "run")
    run.close()
    run.close()
    selfalign.open_run(tmp_path / "run").close()


def test_mistakes_leave_no_lock(tmp_path: Path):
    with pytest.raises(selfalign.UserError, match=r"align\.temperatur"):
        selfalign.create("quick", tmp_path / "run", settings={"align.temperatur": 1.0})
    selfalign.create("quick", tmp_path / "run", settings=SMALL).close()
    for _ in range(2):
        with pytest.raises(selfalign.UserError, match="another recipe"):
            selfalign.create("quick", tmp_path / "run", settings={**SMALL, "align.temperature": 0.9})
    selfalign.create("quick", tmp_path / "run", settings=SMALL).close()
    with pytest.raises(selfalign.UserError, match="not a run"):
        selfalign.open_run(tmp_path / "none")


def test_changed_training_settings_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for number, epochs in enumerate((2, 7, 7)):
        settings = {**SMALL, "engrave.epochs": epochs, "engrave.checkpoint_seconds": 10 * number}
        selfalign.create("quick", tmp_path / "run", settings=settings, screen=Screen(0)).close()
        shown = "have changed (engrave.epochs: 2 -> 7):" in capsys.readouterr().err
        assert shown == (number == 1)


def test_import_loads_nothing_heavy():
    code = "import selfalign, sys; print(sorted(m for m in ('torch', 'pydantic', 'yaml', 'rich') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        selfalign.nothing  # noqa: B018


def test_examples_of_the_documentation_run(tmp_path: Path):
    text = (Path(__file__).parent.parent / "docs/python.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 3
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "kept" in done.stdout


def test_an_unknown_stage_is_named(tmp_path: Path):
    with (
        selfalign.create("quick", tmp_path / "run", settings=SMALL) as run,
        pytest.raises(selfalign.UserError, match="'aling' is not a stage"),
    ):
        run.run_stage("aling")  # type: ignore[arg-type]


def test_benchmarks_run_from_python(tmp_path: Path):
    source = str(Path(__file__).parent / "data/fixture_truthfulqa.csv")
    settings = ["engine.kind=fake", "stages=[prompts]"]
    with selfalign.create("quick", out=tmp_path / "run", settings=settings, limit=4) as run:
        scores = run.run_benchmarks(["truthfulqa-generation"], models=["base"], data={"truthfulqa": source}, limit=3)
        assert [(s.model, s.n, s.value) for s in scores] == [("base", 3, None)]
        with pytest.raises(selfalign.SelfAlignError, match="'mmlu' is not known"):
            run.run_benchmarks(["mmlu"])
