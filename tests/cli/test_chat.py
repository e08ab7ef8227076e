"""The terminal dialogue on the fake engine: turns, models, prompts, comparison, what is saved, pipes."""

from __future__ import annotations

import io
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from selfalign.cli import chat
from selfalign.errors import UserError
from selfalign.generation import engines
from selfalign.generation.engines.base import Step
from selfalign.generation.engines.fake import Fake
from selfalign.run.context import Context
from selfalign.system.console import Screen

Say = Callable[..., tuple[str, str]]


@pytest.fixture
def prompts() -> list[str]:
    """What the engine was given."""
    return []


@pytest.fixture
def say(
    fake_run: Callable[..., Context],
    prompts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Say:
    """Runs `chat.start` with these lines on standard input; (standard output, standard error)."""
    context = fake_run()
    context.screen = Screen(0)

    def script(prompt: str, step: Step, rng: random.Random) -> str:
        prompts.append(prompt)
        return f" Answer \x1b[31m{len(prompts)}"

    monkeypatch.setattr(engines, "start", lambda *_: Fake(script=script))

    def said(typed: str = "", prompt: str | None = None, **options: object) -> tuple[str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        given = {"model": "", "temperature": 0.3, "max_tokens": 20, "seed": 0, **options}
        chat.start(context, prompt, **given)  # type: ignore[arg-type]
        return capsys.readouterr()

    return said


def test_one_answer_and_nothing_else_and_no_escape_reaches_the_terminal(say: Say) -> None:
    out, _ = say(prompt="Hello")
    assert out == "Answer [31m1\n"


def test_what_is_piped_in_is_one_message(say: Say, prompts: list[str]) -> None:
    assert say("Two\nlines\n")[0] == "Answer [31m1\n"
    assert "Two\nlines" in prompts[0]
    say("From a pipe", prompt="-")
    assert "From a pipe" in prompts[1]
    with pytest.raises(UserError, match="standard input is empty"):
        say("  \n")


def test_turns_follow_each_other(say: Say, prompts: list[str]) -> None:
    out, err = say("First\nSecond\n", lines=True)
    assert "Answer [31m1" in out and "Answer [31m2" in out and "single-turn" in err
    assert prompts[1].index("First") < prompts[1].index("Answer") < prompts[1].index("Second")


def test_commands(say: Say, prompts: list[str]) -> None:
    out, err = say(
        "/help\n/model base\nOne\n/undo\nTwo\n/retry\n/new\nThree\n/prompt verbose\n/quit\nFour\n", lines=True
    )
    assert "/save FILE" in out and "base; this run has base, engraved, final" in err
    assert len(prompts) == 4
    assert "One" not in prompts[1] and prompts[2] == prompts[1] and "Two" not in prompts[3]
    assert "Four" not in "".join(prompts) and "verbose; known are standard" in err


def test_retry_draws_with_another_seed(fake_run: Callable[..., Context], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    engine = Fake(script=lambda prompt, step, rng: str(drawn.append(rng.random())))
    monkeypatch.setattr(engines, "start", lambda *_: engine)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n/retry\n/retry\n"))
    chat.start(fake_run(), None, "", 0.3, 20, 0, lines=True)
    assert len(set(drawn)) == 3


def test_all_models_side_by_side_and_the_talk_goes_on_with_one(say: Say, prompts: list[str]) -> None:
    out, err = say("/compare\nHello\n/compare\nAgain\n", lines=True, model="engraved")
    for number, name in enumerate(("base", "engraved", "final"), 1):
        assert f"({name}): Answer [31m{number}" in out
    assert "every message is answered by base, engraved, final" in err
    assert len(prompts) == 4 and "Answer \x1b[31m2" in prompts[3] and "Answer \x1b[31m1" not in prompts[3]
    out, _ = say(prompt="Hello", compares=True)
    assert out.count("(final)") == 1


def test_the_dialogue_is_saved_as_messages(say: Say, tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    say(f"Hello\n/save {file}\n/save {file}\n", lines=True)
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert len(rows) == 2 and rows[0]["model"] == "final" and rows[0]["prompt"] == "standard"
    assert [m["role"] for m in rows[0]["messages"]] == ["user", "assistant"]


def marked(folder: Path) -> list[dict[str, object]]:
    file = folder / "run/feedback.jsonl"
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def test_answers_are_marked_with_a_note(say: Say, tmp_path: Path) -> None:
    _, err = say("First\nSecond\n/prompt verbose\n/bad too \x1b[31m long\n/good\n/bad 2 much: {name}\n", lines=True)
    (row,) = marked(tmp_path)
    assert (row["verdict"], row["note"], row["model"], row["prompt"]) == ("bad", "2 much: {name}", "final", "standard")
    assert row["turns"] == [
        {"role": "user", "content": "First"}, {"role": "assistant", "content": "Answer \x1b[31m1"},
        {"role": "user", "content": "Second"},
    ]  # fmt: skip
    assert row["answer"] == "Answer \x1b[31m2" and row["source"] == "chat"
    assert row["settings"] == {"temperature": 0.3, "top_p": 0.9, "max_new_tokens": 20, "seed": 1}
    assert "marked good" in err and "Nothing is trained on it" in err and "\x1b" not in err


def test_of_several_answers_one_is_marked(say: Say, tmp_path: Path) -> None:
    out, err = say("/compare\nHi\n/bad too long\n/bad engraved too long\n/good 3\n/bad 9 x\n/notes\n", lines=True)
    assert err.count("which answer? /bad 2 NOTE: 1 base, 2 engraved, 3 final") == 2
    rows = marked(tmp_path)
    assert [(r["model"], r["verdict"], r["note"]) for r in rows] == [
        ("engraved", "bad", "too long"), ("final", "good", ""),
    ]  # fmt: skip
    assert "1. bad  engraved: Hi | too long\n2. good final: Hi\n" in out


def test_notes_are_listed_and_withdrawn(say: Say, tmp_path: Path) -> None:
    out, err = say("/notes\nHi\n/bad \u202ea\x9b\n/notes\n/withdraw 2\n/withdraw 1\n/withdraw 1\n", lines=True)
    assert "no answer of this run is marked" in err and "1. bad  final: Hi | a\n" in out
    assert err.count("needs the number of a mark") == 2 and "withdrawn: bad  final: Hi" in err
    assert marked(tmp_path) == []


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("/bad", "nothing was answered"), ("Hi\n/undo\n/good", "nothing was answered"),
        ("Hi\n/new\n/good", "nothing was answered"), (f"Hi\n/bad {'x' * 2001}", "at most 2,000"),
        ("/withdraw", "needs the number"), ("/withdraw ²", "needs the number"),
        ("/dance", "/dance is not known"), ("/model best", "this run has base, engraved, final"),
        ("/prompt rude", "known are standard"), ("/undo", "nothing was said"), ("/save", "needs a file"),
        ("/save x", "nothing was said"), ("Hi\n/save /", "cannot be written"),
        ("Hi\n/save ~nobody-by-this-name/x", "cannot be written"), ("Hi\n/save a\0b", "cannot be written"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_the_dialogue_goes_on(say: Say, prompts: list[str], typed: str, wanted: str) -> None:
    _, err = say(f"{typed}\nStill there?\n", lines=True)
    assert wanted in err and "Still there?" in prompts[-1]


def test_saving_leaves_a_link_and_a_files_privacy_alone(say: Say, tmp_path: Path) -> None:
    file, link = tmp_path / "talks.jsonl", tmp_path / "link"
    file.write_text("first", "utf-8")
    file.chmod(0o600)
    link.symlink_to(file)
    say(f"Hello\n/save {link}\n", lines=True)
    assert link.is_symlink() and file.stat().st_mode & 0o777 == 0o600
    assert file.read_text("utf-8").splitlines()[0] == "first" and len(file.read_text("utf-8").splitlines()) == 2


@pytest.mark.parametrize(("prompt", "why"), [("", "is empty"), (" \n", "is empty"), ("\udcff", "is not UTF-8")])
def test_a_message_of_nothing_or_of_half_characters_is_not_asked(say: Say, prompt: str, why: str) -> None:
    with pytest.raises(UserError, match=f"the message {why}"):
        say(prompt=prompt)


def test_without_standard_input_it_says_so(fake_run: Callable[..., Context], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    for prompt in (None, "-"):
        with pytest.raises(UserError, match="standard input is closed"):
            chat.start(fake_run(), prompt, "", 0.3, 20, 0)


def test_half_a_character_of_a_server_is_shown_and_saved(
    fake_run: Callable[..., Context],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(engines, "start", lambda *_: Fake(script=lambda *_: " An\ud83d answer \n"))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"Hi\n/save {tmp_path / 'talk'}\n"))
    chat.start(fake_run(), None, "", 0.3, 20, 0, lines=True)
    assert "An? answer" in capsys.readouterr().out
    assert json.loads((tmp_path / "talk").read_text())["messages"][-1]["content"] == "An? answer"


def test_another_answer_that_is_stopped_leaves_the_one_before(
    fake_run: Callable[..., Context], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[str] = []

    def script(prompt: str, step: Step, rng: random.Random) -> str:
        calls.append(prompt)
        if len(calls) == 4:  # the first model of the second try
            monkeypatch.setattr(chat.STOP, "_signum", signal.SIGINT)
        return f" Answer {len(calls)}"

    monkeypatch.setattr(engines, "start", lambda *_: Fake(script=script))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/compare\nHi\n/retry\n/save {tmp_path / 'talk'}\n"))
    chat.start(fake_run(), None, "final", 0.3, 20, 0, lines=True)
    said = json.loads((tmp_path / "talk").read_text())["messages"]
    assert [m["content"] for m in said] == ["Hi", "Answer 3"] and len(calls) == 4


def test_ctrl_c_while_a_line_is_awaited_ends_the_dialogue(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    class Waits(io.StringIO):
        def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("it was not interrupted")

    monkeypatch.setattr(io, "StringIO", Waits)
    before = signal.signal(signal.SIGINT, chat.STOP._receive)  # as the command line has it
    try:
        assert "Answer" not in say("", lines=True)[0]
        assert not chat.STOP.is_set
    finally:
        chat.STOP.clear()
        signal.signal(signal.SIGINT, before)
