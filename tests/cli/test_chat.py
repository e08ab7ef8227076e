"""Hold dialogues in the terminal on the fake engine."""

from __future__ import annotations

import io
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from selfalign.cli import dialogue
from selfalign.errors import UserError
from selfalign.generation import engines
from selfalign.generation.engines.base import Step
from selfalign.generation.engines.fake import Fake
from selfalign.run.context import Context
from selfalign.system.console import Screen

Say = Callable[..., tuple[str, str]]


@pytest.fixture
def prompts() -> list[str]:
    """The prompts that the engine got."""
    return []


@pytest.fixture
def say(
    fake_run: Callable[..., Context],
    prompts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Say:
    """Return a function that runs a dialogue on the given input and returns its standard output and error."""
    context = fake_run()
    context.screen = Screen(0)

    def script(prompt: str, step: Step, rng: random.Random) -> str:
        prompts.append(prompt)
        return f" Answer \x1b[31m{len(prompts)}"

    monkeypatch.setattr(engines, "start", lambda *_: Fake(script=script))

    def run(typed: str = "", message: str | None = None, **options: object) -> tuple[str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        given = {"model": "", "temperature": 0.3, "max_tokens": 20, "seed": 0, **options}
        dialogue.start(context, message, **given)  # type: ignore[arg-type]
        return capsys.readouterr()

    return run


def test_one_response_without_escape_characters(say: Say) -> None:
    out, _ = say(message="Hello")
    assert out == "Answer [31m1\n"


def test_piped_input_is_one_message(say: Say, prompts: list[str]) -> None:
    assert say("Two\nlines\n")[0] == "Answer [31m1\n"
    assert "Two\nlines" in prompts[0]
    say("From a pipe", message="-")
    assert "From a pipe" in prompts[1]
    with pytest.raises(UserError, match="standard input is empty"):
        say("  \n")


def test_later_turns_see_the_earlier_ones(say: Say, prompts: list[str]) -> None:
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
    dialogue.start(fake_run(), None, "", 0.3, 20, 0, lines=True)
    assert len(set(drawn)) == 3


def test_compare_continues_with_one_response(say: Say, prompts: list[str]) -> None:
    out, err = say("/compare\nHello\n/compare\nAgain\n", lines=True, model="engraved")
    for number, name in enumerate(("base", "engraved", "final"), 1):
        assert f"({name}): Answer [31m{number}" in out
    assert "models that respond to each message: base, engraved, final" in err
    assert len(prompts) == 4 and "Answer \x1b[31m2" in prompts[3] and "Answer \x1b[31m1" not in prompts[3]
    out, _ = say(message="Hello", compare=True)
    assert out.count("(final)") == 1


def test_save_writes_messages(say: Say, tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    say(f"Hello\n/save {file}\n/save {file}\n", lines=True)
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert len(rows) == 2 and rows[0]["model"] == "final" and rows[0]["prompt"] == "standard"
    assert [m["role"] for m in rows[0]["messages"]] == ["user", "assistant"]


def marked(folder: Path) -> list[dict[str, object]]:
    file = folder / "run/feedback.jsonl"
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def test_response_is_marked_with_a_note(say: Say, tmp_path: Path) -> None:
    _, err = say("First\nSecond\n/prompt verbose\n/bad too \x1b[31m long\n/good\n/bad 2 much: {name}\n", lines=True)
    (row,) = marked(tmp_path)
    assert (row["verdict"], row["note"], row["model"], row["prompt"]) == ("bad", "2 much: {name}", "final", "standard")
    assert row["turns"] == [
        {"role": "user", "content": "First"}, {"role": "assistant", "content": "Answer \x1b[31m1"},
        {"role": "user", "content": "Second"},
    ]  # fmt: skip
    assert row["answer"] == "Answer \x1b[31m2" and row["source"] == "chat"
    assert row["settings"] == {"temperature": 0.3, "top_p": 0.9, "max_new_tokens": 20, "seed": 1}
    assert "marked good" in err and "Nothing is trained on marks" in err and "\x1b" not in err


def test_one_of_several_responses_is_marked(say: Say, tmp_path: Path) -> None:
    out, err = say("/compare\nHi\n/bad too long\n/bad engraved too long\n/good 3\n/bad 9 x\n/notes\n", lines=True)
    assert err.count("which response? /bad 2 NOTE: 1 base, 2 engraved, 3 final") == 2
    rows = marked(tmp_path)
    assert [(r["model"], r["verdict"], r["note"]) for r in rows] == [
        ("engraved", "bad", "too long"), ("final", "good", ""),
    ]  # fmt: skip
    assert "1. bad  engraved: Hi | too long\n2. good final: Hi\n" in out


def test_notes_are_listed_and_withdrawn(say: Say, tmp_path: Path) -> None:
    out, err = say("/notes\nHi\n/bad \u202ea\x9b\n/notes\n/withdraw 2\n/withdraw 1\n/withdraw 1\n", lines=True)
    assert "no response of this run is marked" in err and "1. bad  final: Hi | a\n" in out
    assert err.count("needs the number of a mark") == 2 and "withdrawn: bad  final: Hi" in err
    assert marked(tmp_path) == []


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("/bad", "no response to mark"), ("Hi\n/undo\n/good", "no response to mark"),
        ("Hi\n/new\n/good", "no response to mark"), (f"Hi\n/bad {'x' * 2001}", "at most 2000"),
        ("/withdraw", "needs the number"), ("/withdraw ²", "needs the number"),
        ("/dance", "/dance is not known"), ("/model best", "this run has base, engraved, final"),
        ("/prompt rude", "use one of standard"), ("/undo", "the dialogue is empty"), ("/save", "needs a file"),
        ("/save x", "the dialogue is empty"), ("Hi\n/save /", "cannot be written"),
        ("Hi\n/save ~nobody-by-this-name/x", "cannot be written"), ("Hi\n/save a\0b", "cannot be written"),
    ],
)  # fmt: skip
def test_dialogue_continues_after_a_mistake(say: Say, prompts: list[str], typed: str, message: str) -> None:
    _, err = say(f"{typed}\nStill there?\n", lines=True)
    assert message in err and "Still there?" in prompts[-1]


def test_save_keeps_links_and_permissions(say: Say, tmp_path: Path) -> None:
    file, link = tmp_path / "talks.jsonl", tmp_path / "link"
    file.write_text("first", "utf-8")
    file.chmod(0o600)
    link.symlink_to(file)
    say(f"Hello\n/save {link}\n", lines=True)
    assert link.is_symlink() and file.stat().st_mode & 0o777 == 0o600
    assert file.read_text("utf-8").splitlines()[0] == "first" and len(file.read_text("utf-8").splitlines()) == 2


@pytest.mark.parametrize(("message", "reason"), [("", "is empty"), (" \n", "is empty"), ("\udcff", "is not UTF-8")])
def test_empty_or_invalid_message_is_refused(say: Say, message: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"the message {reason}"):
        say(message=message)


def test_closed_standard_input_is_an_error(fake_run: Callable[..., Context], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    for prompt in (None, "-"):
        with pytest.raises(UserError, match="standard input is closed"):
            dialogue.start(fake_run(), prompt, "", 0.3, 20, 0)


def test_half_a_character_is_replaced(
    fake_run: Callable[..., Context],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(engines, "start", lambda *_: Fake(script=lambda *_: " An\ud83d answer \n"))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"Hi\n/save {tmp_path / 'talk'}\n"))
    dialogue.start(fake_run(), None, "", 0.3, 20, 0, lines=True)
    assert "An? answer" in capsys.readouterr().out
    assert json.loads((tmp_path / "talk").read_text())["messages"][-1]["content"] == "An? answer"


def test_stopped_retry_keeps_the_response_before(
    fake_run: Callable[..., Context], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[str] = []

    def script(prompt: str, step: Step, rng: random.Random) -> str:
        calls.append(prompt)
        if len(calls) == 4:  # the first model of the second try
            monkeypatch.setattr(dialogue.STOP, "_signum", signal.SIGINT)
        return f" Answer {len(calls)}"

    monkeypatch.setattr(engines, "start", lambda *_: Fake(script=script))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/compare\nHi\n/retry\n/save {tmp_path / 'talk'}\n"))
    dialogue.start(fake_run(), None, "final", 0.3, 20, 0, lines=True)
    messages = json.loads((tmp_path / "talk").read_text())["messages"]
    assert [m["content"] for m in messages] == ["Hi", "Answer 3"] and len(calls) == 4


def test_ctrl_c_at_the_prompt_ends_the_dialogue(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    class Waits(io.StringIO):
        def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("it was not interrupted")

    monkeypatch.setattr(io, "StringIO", Waits)
    before = signal.signal(signal.SIGINT, dialogue.STOP._receive)  # as the command line has it
    try:
        assert "Answer" not in say("", lines=True)[0]
        assert not dialogue.STOP.is_set
    finally:
        dialogue.STOP.clear()
        signal.signal(signal.SIGINT, before)
