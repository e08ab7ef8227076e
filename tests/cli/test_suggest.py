"""List marks with `constitution suggest`, and turn one into a probe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from selfalign import constitution as constitutions
from selfalign.cli.main import app
from selfalign.constitution import Probe
from selfalign.data.records import Response, read_jsonl
from selfalign.errors import UserError
from selfalign.pipeline import order
from selfalign.run import feedback
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.system.atomic import file_hash

Run = Callable[..., Context]
OWN = """\
# mine
format: 1
name: mine
assistant: {name: Ida, cutoff: May 2024}
prompts: {standard: "{name} helps.", concise: "{name} is brief.", verbose: "{name} says a lot."}
exemplars:
  - {user: Hi, thoughts: "A greeting. Principles: 1 (kind), 2 (calm).", answer: "Hello."}
identity:
  - {question: "Who are you?", answer: "I am {name}."}
principles:
  - id: 1
    name: kind
    rule: I am kind.   # to everybody
  # calm
  - {id: 2, name: calm, rule: 'I stay calm.'}
""".replace("\n", "\r\n")


STEPS = "First, open the lid. Then, lift it out."


def mark(run: RunDir, note: str = "", verdict: str = "bad", message: str = "Why is it?", **fields: Any) -> str:
    """Mark an answer; return the mark's id."""
    turns = [{"role": "user", "content": message}]
    value = {"verdict": verdict, "turns": turns, "answer": "So.", "model": "final", "source": "chat", "note": note}
    return feedback.mark(run, {**value, **fields}).id


def suggest(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["constitution", "suggest", *map(str, arguments)], env={"COLUMNS": "120"})


def error_of(*arguments: object) -> str:
    error = suggest(*arguments).exception
    assert isinstance(error, UserError) and "\n" not in str(error), error
    return str(error)


def few_seeds(folder: Path) -> Path:
    """Write seed tasks that lint compares quickly."""
    file = folder / "seeds.jsonl"
    file.write_text('{"instruction": "Sing.", "instances": [{"input": ""}]}\n', "utf-8")
    return file


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's own constitution, with comments and CRLF."""
    path = tmp_path / "mine.yaml"
    path.write_bytes(OWN.encode())
    return path


@pytest.fixture
def run(fake_run: Run, mine: Path) -> RunDir:
    sets = [f"constitution={mine}", f"seeds={few_seeds(mine.parent)}"]
    return fake_run(*sets, texts=constitutions.load(str(mine))).run


def files(folder: Path) -> dict[str, str]:
    return {str(f): file_hash(f) for f in sorted(folder.rglob("*")) if f.is_file() and "journal" not in f.name}


def test_listing_groups_marks_and_changes_nothing(run: RunDir, tmp_path: Path):
    assert "no response of" in suggest(run.path).stdout
    key = mark(run, "should stay calm", principles=[2])
    mark(run, "\x1b[31mnames no source\u202e", message="Price?\nNow")
    mark(run, "", "good", message="Both?", principles=[1, 2])
    before = files(tmp_path)
    for arguments in ([], ["--json"], ["--probe", key, "--expect", "steps", "--principle", "2"]):
        result = suggest(run.path, *arguments)
        assert result.exit_code == 0 and "\x1b" not in result.stdout and "\u202e" not in result.stdout, result
    assert files(tmp_path) == before
    text = suggest(run.path).stdout
    assert "3 marked responses, 1 good and 2 bad" in text and "2 (calm). I stay calm." in text
    assert f"  {key[:4]}  bad  final: Why is it? | should stay calm" in text
    assert "no principle cited" in text and "final: Price? Now | [31mnames no source" in text
    groups = json.loads(suggest(run.path, "--json").stdout)["groups"]
    assert [(g["principle"] and g["principle"]["id"], len(g["marks"])) for g in groups] == [(1, 1), (2, 2), (None, 1)]
    assert groups[1]["marks"][0]["note"] == "should stay calm" and groups[1]["marks"][0]["id"] == key


def test_listing_uses_citations_of_the_run(fake_run: Run):
    context = fake_run("prompts.self_instruct.count=6", "prompts.red_team.count=6")
    for stage in ("prompts", "align"):
        order.run_stage(context, stage)  # type: ignore[arg-type]
    row = next(iter(read_jsonl(context.run.jsonl("responses"), Response)))
    mark(context.run, message=row.message, answer=row.response, principles=row.principles)
    groups = json.loads(suggest(context.run.path, "--json").stdout)["groups"]
    assert [g["principle"]["id"] for g in groups] == sorted(row.principles)


@pytest.mark.parametrize(
    ("verdict", "answer", "contrast"),
    [("bad", "So.", False), ("bad", STEPS, True), ("good", STEPS, False), ("good", "So.", True), ("bad", "", False)],
)
def test_probe_decides_as_the_person_did(run: RunDir, mine: Path, verdict: str, answer: str, contrast: bool):
    key = mark(run, verdict=verdict, answer=answer, principles=[2])
    result = suggest(run.path, "--probe", key[:5], "--expect", "steps", "--write")
    assert result.exit_code == 0, result
    assert constitutions.load(str(mine)).principles[1].probes == [
        Probe(ask="Why is it?", expect="steps", contrast=contrast)
    ]


def test_write_keeps_the_rest_of_the_text(run: RunDir, mine: Path):
    key = mark(run, principles=[2])
    words = ["--expect", "mentions", "--word", "calm", "--word", "peace"]
    result = suggest(run.path, "--probe", key, *words, "--write")
    assert result.exit_code == 0 and f"constitution test {run.path} --probes {mine}" in result.stdout, result
    text = mine.read_bytes().decode()
    end = "'I stay calm.'"
    assert text == OWN.replace(end, f"{end}, probes: [{{ask: 'Why is it?', expect: mentions, words: [calm, peace]}}]")
    assert RunDir.load(run.path).constitution == run.constitution, "the run keeps its own constitution"


def test_out_extends_a_shipped_constitution(fake_run: Run, tmp_path: Path):
    run = fake_run(f"seeds={few_seeds(tmp_path)}").run
    key = mark(run, principles=[7])
    target = tmp_path / "new/mine.yaml"
    command = ["--probe", key, "--expect", "steps"]
    assert "ships with selfalign" in error_of(run.path, *command, "--write")
    assert suggest(run.path, *command).stdout.endswith("nothing was written; add --out FILE\n")
    assert suggest(run.path, *command, "--out", target).exit_code == 0
    changed = constitutions.load(str(target))
    assert changed.digest() == run.constitution.digest()
    assert changed.principles[6].probes == [
        *run.constitution.principles[6].probes,
        Probe(ask="Why is it?", expect="steps"),
    ]
    assert target.read_text("utf-8").startswith("extends: default\nprinciples:\n  - id: 7\n")
    assert "exists; name another file" in error_of(run.path, *command, "--out", target)


def test_mistakes_are_one_line_and_change_nothing(run: RunDir, mine: Path, tmp_path: Path):
    key = mark(run, principles=[2])
    both = mark(run, message="Both?", principles=[1, 2])
    empty = mark(run, verdict="good", message="Nothing?", answer="", principles=[2])
    held = mark(run, message="Who is {name}?", principles=[2])
    identity = mark(run, message=run.constitution.identity[0].question, principles=[1])
    copy = run.path / "constitution.yaml"
    before = files(tmp_path)
    steps = ["--expect", "steps", "--write"]
    for arguments, why in (
        (["--write"], "name the mark"), (["--expect", "steps"], "name the mark"),
        (["--probe", "nothing", *steps], "no marks; the marks are"), (["--probe", "", *steps], "name the mark"),
        (["--probe", key, "--write"], "'' is not a check; the checks are refuses"),
        (["--probe", key, *steps, "--out", "x"], "either --write"),
        (["--probe", key, *steps, "--word", "x"], "takes no words"),
        (["--probe", both, *steps], "cites 2 principles; choose the probe's principle with --principle N, one of 1, 2"),
        (["--probe", both, *steps, "--principle", "9"], "there is no principle 9"),
        (["--probe", empty, *steps], "an empty response passes no probe"),
        (["--probe", held, *steps], "contains {name}, which is a placeholder"),
        (["--probe", identity, *steps], "the probe is not added: the probe 'Who are you?' is also"),
        (["--probe", key, *steps, "--constitution", copy], "the run's own copy"),
        (["--probe", key, *steps, "--constitution", "none.yaml"], "cannot be read"),
        (["--probe", key, "--expect", "steps", "--out", mine / "x.yaml"], "cannot be written"),
    ):  # fmt: skip
        assert why in error_of(run.path, *arguments), arguments
    assert files(tmp_path) == before


def test_links_byte_order_marks_and_relative_bases(run: RunDir, mine: Path, tmp_path: Path):
    (tmp_path / "sub").mkdir()
    real, link = tmp_path / "sub/real.yaml", tmp_path / "link.yaml"
    real.write_bytes(b"\xef\xbb\xbfextends: ../mine.yaml\n")
    link.symlink_to(real)
    command = [run.path, "--probe", mark(run, principles=[2]), "--expect", "steps", "--constitution"]
    assert "does not exist" in error_of(*command, real, "--out", tmp_path / "x.yaml")
    assert suggest(*command, real, "--write").exit_code == 0
    assert real.read_bytes().startswith(b"\xef\xbb\xbfextends: ../mine.yaml\nprinciples:")
    assert [p.expect for _, p in constitutions.load(str(real)).probes()] == ["steps"]
    link.unlink()
    link.symlink_to(mine)
    assert suggest(*command, link, "--write").exit_code == 0
    assert link.is_symlink() and b"steps" in mine.read_bytes()
