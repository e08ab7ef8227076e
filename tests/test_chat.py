"""The terminal dialogue on the fake engine: turns, models, prompts, comparison, what is saved, pipes."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from selfalign import chat, engines
from selfalign.context import Context
from selfalign.engines.base import Step
from selfalign.engines.fake import Fake
from selfalign.errors import UserError
from selfalign.progress import Screen

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


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("/dance", "/dance is not known"), ("/model best", "this run has base, engraved, final"),
        ("/prompt rude", "known are standard"), ("/undo", "nothing was said"), ("/save", "needs a file"),
        ("/save x", "nothing was said"), ("Hi\n/save /", "cannot be written"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_the_dialogue_goes_on(say: Say, prompts: list[str], typed: str, wanted: str) -> None:
    _, err = say(f"{typed}\nStill there?\n", lines=True)
    assert wanted in err and "Still there?" in prompts[-1]
