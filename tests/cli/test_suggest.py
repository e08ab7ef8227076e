"""`constitution suggest`: from marks on a run to a changed constitution; nothing changes that was not accepted."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from selfalign import api
from selfalign import constitution as constitutions
from selfalign.cli import suggest_changes
from selfalign.cli.main import app
from selfalign.constitution import Constitution
from selfalign.data.records import Response, read_jsonl
from selfalign.errors import UserError
from selfalign.pipeline import order
from selfalign.run import feedback
from selfalign.run import recipe as recipes
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


def say(
    run: RunDir, note: str = "", verdict: str = "bad", message: str = "Why is it?", **more: Any
) -> feedback.Feedback:
    turns = [{"role": "user", "content": message}]
    value = {"verdict": verdict, "turns": turns, "answer": "So.", "model": "final", "source": "chat", "note": note}
    return feedback.mark(run, {**value, **more})


def tool(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["constitution", "suggest", *map(str, arguments)], env={"COLUMNS": "120"})


def refused(*arguments: object) -> str:
    error = tool(*arguments).exception
    assert isinstance(error, UserError) and "\n" not in str(error)
    return str(error)


def few(folder: Path) -> Path:
    """Seed tasks that lint compares quickly."""
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
    sets = [f"constitution={mine}", f"seeds={few(mine.parent)}"]
    return fake_run(*sets, texts=constitutions.load(str(mine))).run


def files(folder: Path) -> dict[str, str]:
    return {str(f): file_hash(f) for f in sorted(folder.rglob("*")) if f.is_file() and "journal" not in f.name}


def test_without_being_asked_nothing_is_changed(run: RunDir, tmp_path: Path):
    assert "no answer of" in tool(run.path).stdout
    say(run, "should stay calm", principles=[2])
    say(run, "\x1b[31mnames no source\u202e", message="Price?\nNow")
    before = files(tmp_path)
    for arguments in ([], ["--json"], ["--accept", "all"], ["--accept", "all", "--json"]):
        done = tool(run.path, *arguments)
        assert done.exit_code == 0 and "\x1b" not in done.stdout and "\u202e" not in done.stdout, done
    assert files(tmp_path) == before
    shown = tool(run.path).stdout
    assert (
        "2 (calm). I stay calm." in shown and "no principle" in shown and "2 answers marked, 0 good and 2 bad" in shown
    )
    assert "+ I should stay calm." in shown and "bad  final: Price? Now | [31mnames no source" in shown
    value = json.loads(tool(run.path, "--json").stdout)
    assert [g["principle"] and g["principle"]["id"] for g in value["groups"]] == [2, None]
    rule = next(d for d in value["drafts"] if d["principle"] == 2)
    assert rule["sentence"] == "I should stay calm." and rule["id"] in value["groups"][0]["marks"][0]["drafts"]


def test_accepted_drafts_are_written_and_all_else_stays(run: RunDir, mine: Path):
    one = say(run, "should stay calm, in steps", principles=[2])
    say(run, "never mind", message="And?")
    done = tool(run.path, "--accept", f"probe-{one.id[:4]},rule-{one.id[:4]}", "--write")
    assert done.exit_code == 0, done
    text = mine.read_bytes().decode()
    assert text.startswith(OWN[: OWN.index("'I stay")]) and "\n" not in text.replace("\r\n", "")
    found = constitutions.load(str(mine))
    assert found.principles[-1].rule == "I stay calm. I should stay calm, in steps."
    assert [p.model_dump(exclude_defaults=True) for p in found.principles[-1].probes] == [
        {"ask": "Why is it?", "expect": "steps"}
    ]
    expected = run.constitution.model_dump()
    expected["principles"][-1] = found.principles[-1].model_dump()
    assert found == Constitution.model_validate(expected)
    assert "2 (calm)" in done.stdout and "+ Why is it? [steps]" in done.stdout and "written, with 2 of 3" in done.stdout
    assert "warning: principle 2 has 0 contrast probes of 1" in done.stdout
    # The run has what it had, and the list says that its constitution is another one now.
    assert RunDir.look(run.path).constitution == run.constitution
    again = tool(run.path).stdout
    assert "is not as it was in the run" in again and "principle 2 says it already" in again
    assert "has that probe already" in again


def test_of_a_shipped_constitution_a_new_file_is_made(fake_run: Run, tmp_path: Path):
    run = fake_run(f"seeds={few(tmp_path)}").run
    note = say(run, 'should say "moo"', message="What do cows say?")
    assert "--out FILE" in refused(run.path, "--write")
    target = tmp_path / "new/mine.yaml"
    done = tool(run.path, "--accept", "all", "--out", target, "--json")
    assert done.exit_code == 0, done
    value = json.loads(done.stdout)
    assert [a["principle"] for a in value["accepted"]] == [17, 17] and value["written"] == str(target)
    assert value["diff"]["principles"]["added"] == [{"id": 17, "name": "say moo", "rule": 'I should say "moo".'}]
    assert {f["rule"] for f in value["lint"]} == {"exemplified", "probes"}
    found = constitutions.load(str(target))
    assert found.principles[:-1] == run.constitution.principles and found.principles[-1].probes[0].words == ["moo"]
    assert target.read_text("utf-8").startswith("extends: default\nprinciples:\n  - id: 17\n")
    looked = suggest_changes.look(run)
    with pytest.raises(UserError, match=r"exists: name another --out$"):
        suggest_changes.begin(looked, target)
    work = suggest_changes.begin(looked, tmp_path / "placed.yaml")
    for draft, place in suggest_changes.chosen(looked, f"probe-{note.id[:4]},rule-{note.id[:4]}:7"):
        work.take(draft, place)
    candor = constitutions.load(str(work.publish())).principles[6]
    assert candor.rule.endswith(' I should say "moo".') and candor.probes[-1].ask == "What do cows say?"


def test_mistakes_are_one_line_and_change_nothing(run: RunDir, mine: Path, tmp_path: Path):
    key = say(run, 'should say "moo"').id[:4]
    copy = run.path / "constitution.yaml"
    before = files(tmp_path)
    for arguments, why in (
        (["--write"], "say which drafts"), (["--write", "--out", "x"], "one of them"),
        (["--constitution", copy, "--write", "--accept", "all"], "the run's own copy"),
        (["--out", mine / "x.yaml", "--accept", "all"], "cannot be made"),
    ):  # fmt: skip
        assert why in refused(run.path, *arguments), arguments
    looked = suggest_changes.look(run)
    for accept, why in (
        ("rule-0", f"there are rule-{key}, probe-{key}"), (f"rule-{key}:x", "a principle's number"), (",", "needs ids"),
        (f"rule-{key}:99", "there is no principle 99"), (f"probe-{key}", "a probe needs a principle"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=why):
            for draft, place in suggest_changes.chosen(looked, accept):
                suggest_changes.begin(looked, None).take(draft, place)
    for source, why in (("none.yaml", "does not exist"), ("", "is gone")):
        if not source:
            mine.rename(tmp_path / "gone.yaml")
        with pytest.raises(UserError, match=why):
            suggest_changes.look(run, source)
    mine.with_name("gone.yaml").rename(mine)
    assert files(tmp_path) == before
    target = tmp_path / "again.yaml"
    assert tool(run.path, "--constitution", copy, "--accept", "all", "--out", target).exit_code == 0
    assert constitutions.load(str(target)).principles[-1].name == "say moo"


def test_a_draft_that_lint_finds_wrong_is_not_taken(run: RunDir, mine: Path):
    ask = run.constitution.identity[0].question
    key = say(run, "should go in steps", message=ask, principles=[1]).id[:4]
    line = refused(run.path, "--accept", f"probe-{key}", "--write")
    assert f"probe-{key} is not taken: the probe {ask!r} is also" in line
    done = tool(run.path, "--accept", "all", "--write")
    assert done.exit_code == 0 and f"probe-{key} is not taken" in done.stdout and "1 of 2 drafts" in done.stdout
    assert all(p.ask != ask for _, p in constitutions.load(str(mine)).probes())


def test_a_file_that_changed_meanwhile_is_left_alone(run: RunDir, mine: Path, tmp_path: Path):
    say(run, "say moo", principles=[2])
    looked = suggest_changes.look(run)
    work = suggest_changes.begin(looked, None)
    work.take(looked.found.drafts[0])
    mine.write_text("extends: default\nname: other\n", "utf-8")
    with pytest.raises(UserError, match="changed meanwhile"):
        work.publish()
    assert mine.read_text("utf-8") == "extends: default\nname: other\n"


def test_links_marks_of_order_and_relative_bases(run: RunDir, mine: Path, tmp_path: Path):
    (tmp_path / "sub").mkdir()
    real = tmp_path / "sub/real.yaml"
    real.write_bytes(b"\xef\xbb\xbfextends: ../mine.yaml\n")
    link = tmp_path / "link.yaml"
    link.symlink_to(real)
    say(run, "say moo", principles=[2])
    line = refused(run.path, "--constitution", real, "--accept", "all", "--out", tmp_path / "x.yaml")
    assert f"write beside it, --out {tmp_path / 'sub/x.yaml'}" in line
    assert tool(run.path, "--constitution", real, "--accept", "all", "--write").exit_code == 0
    assert real.read_bytes().startswith(b"\xef\xbb\xbfextends: ../mine.yaml\nprinciples:")
    assert constitutions.load(str(real)).principles[-1].rule == "I stay calm. Say moo."
    link.unlink()
    link.symlink_to(mine)
    assert tool(run.path, "--constitution", link, "--accept", "all", "--write").exit_code == 0
    assert link.is_symlink() and b"Say moo." in mine.read_bytes()


@settings(max_examples=8)
@given(st.text(st.characters(), max_size=60), st.text(st.characters(), min_size=1, max_size=40).filter(str.strip))
@example("say {name}: 'x' \"y\" # z\r\n- a\x1b[2J", "{ask: *x}\n---\n\u2028 \t%")
@example("should not {cutoff}\x00\ud800", "'")
def test_any_note_reads_back_as_it_is_meant(tmp_path_factory: pytest.TempPathFactory, note: str, message: str):
    folder = tmp_path_factory.mktemp("s")
    mine = folder / "mine.yaml"
    mine.write_bytes(OWN.encode())
    before = constitutions.load(str(mine))
    recipe = recipes.load("quick", ["engine.kind=fake", f"constitution={mine}", f"seeds={few(folder)}"])
    run = RunDir(folder / "run", recipe, before)
    run.path.mkdir()
    say(run, f"{note} steps", message=message, principles=[2])
    looked = suggest_changes.look(run)
    work = suggest_changes.begin(looked, None)
    rule, probes = before.principles[-1].rule, []
    for draft in looked.found.drafts:
        try:
            work.take(draft)
        except UserError as error:
            assert "is not taken" in str(error) or "cites" in str(error)
            continue
        if draft.probe is not None:
            probes.append(draft.probe)
        else:
            filled = draft.sentence.replace("{name}", "Ida").replace("{cutoff}", "May 2024")
            rule = f"{rule} {filled}"
    if work.taken:
        work.publish()
    value = before.model_dump()
    value["principles"][-1] |= {"rule": rule, "probes": [p.model_dump() for p in probes]}
    assert constitutions.load(str(mine)) == Constitution.model_validate(value)


def test_from_marks_on_the_rows_of_a_run(fake_run: Run, tmp_path: Path):
    """The rows' own citations decide where their notes stand."""
    context = fake_run("prompts.self_instruct.count=6", "prompts.red_team.count=6")
    for stage in ("prompts", "align"):
        order.run_stage(context, stage)  # type: ignore[arg-type]
    row = next(iter(read_jsonl(context.run.jsonl("responses"), Response)))
    say(context.run, "should go in steps", message=row.message, answer=row.response, principles=row.principles)
    looked = suggest_changes.look(context.run)
    assert [g.principle.id for g in looked.found.groups if g.principle] == sorted(row.principles)
    assert {d.principle for d in looked.found.drafts} <= set(row.principles)
    assert any("a prompt of this run" in d.why for d in looked.found.drafts if d.kind == "probe")


def test_what_two_marks_say_is_written_once(run: RunDir, mine: Path):
    for message in ("A cow?", "A pig?"):
        say(run, "should go in steps", message=message, principles=[1])
    ids = [d.id for d in suggest_changes.look(run).found.drafts if d.kind == "rule"]
    assert "principle 1 says that already" in refused(run.path, "--accept", ",".join(ids), "--write")
    value = json.loads(tool(run.path, "--accept", "all", "--write", "--json").stdout)
    assert [a["id"].split("-")[0] for a in value["accepted"]] == ["rule", "probe", "probe"]
    assert value["left_out"] == [f"{ids[1]} is not taken: principle 1 says that already"]
    assert constitutions.load(str(mine)).principles[0].rule == "I am kind. I should go in steps."
    twice = suggest_changes.chosen(suggest_changes.look(run, "default"), f"{ids[0]},{ids[0]}:2")
    assert [(d.id, place) for d, place in twice] == [(ids[0], 2)]


def test_drafts_in_other_words(run: RunDir):
    say(run, "should go in steps", principles=[1])
    rule, probe = suggest_changes.look(run).found.drafts
    assert suggest_changes.edited(rule, "  So\x1b it\tis ").sentence == "So it is"
    assert suggest_changes.edited(probe, '{ask: "A", expect: mentions, words: [b]}').probe.words == ["b"]  # type: ignore[union-attr]
    for said, why in (
        ("{ask: A", "the probe:1"),
        ("{ask: A, expect: moo}", "expect is 'moo'"),
        ("", "must be a mapping"),
    ):
        with pytest.raises(UserError, match=why):
            suggest_changes.edited(probe, said)
    with pytest.raises(UserError, match="needs words"):
        suggest_changes.edited(rule, " \x1b ")


def test_from_python(fake_run: Run):
    context = fake_run()
    say(context.run, "too long")
    found = api.Run(context, os.open(os.devnull, os.O_RDONLY))
    assert [m.note for m in found.feedback()] == ["too long"]
    assert [d.kind for d in found.suggestions()] == ["rule"]


def test_in_a_terminal_each_draft_is_asked_for(run: RunDir, mine: Path):
    """A real terminal: other words for the rule, another place for the probe, a wrong key, then the end."""
    say(run, "should stay calm", principles=[2])
    say(run, 'should say "moo"', message="What do cows say?", principles=[2])
    typed = ["?", "e", " always", "y", "n", "1", "y"]
    command = [sys.executable, "-m", "selfalign.cli.main", "constitution", "suggest", str(run.path), "--write"]
    main, side = pty.openpty()
    process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env={**os.environ, "TERM": "dumb"})
    os.close(side)
    shown = b""
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            try:
                shown += os.read(main, 4096)
            except OSError:
                break
            ready = shown.endswith((b"q ?] ", b"I should stay calm."))
            if ready and typed:
                os.write(main, f"{typed.pop(0)}\n".encode())
                shown += b"|"
    finally:
        os.close(main)
    assert process.wait(10) == 0, shown.decode()
    found = constitutions.load(str(mine))
    assert found.principles[-1].rule == "I stay calm. I should stay calm. always", shown.decode()
    assert [p.ask for p in found.principles[0].probes] == ["What do cows say?"] and found.principles[1].probes == []
