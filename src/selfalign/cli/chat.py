"""Talk to a run's models in the terminal: streamed, several turns, side by side, from a pipe."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from selfalign.data.prompt_text import Pieces, Turn, whole_characters
from selfalign.data.records import to_json
from selfalign.errors import UserError
from selfalign.evaluation.models import ADAPTERS, run_models
from selfalign.evaluation.prompting import PROMPTS, PromptKind, opening
from selfalign.generation import engines
from selfalign.generation.engines.base import Engine, RowError, Sampling, Step
from selfalign.run import feedback
from selfalign.run.context import Context
from selfalign.system import atomic
from selfalign.system.console import plain
from selfalign.system.signals import STOP

STYLES: tuple[PromptKind, ...] = PROMPTS[:-1]
HELP = """\
/model NAME        go on with another model
/compare           every message answered by every model; once more ends it
/prompt            the text before the dialogue; /prompt NAME takes another one
/retry             another answer to the last message
/undo              take the last message and its answer back
/new               begin anew
/good, /bad [NOTE] mark the last answer; after several, say which: /bad 2 NOTE, or /bad engraved NOTE
/notes             the run's marks; /withdraw N takes one back
/save FILE         the dialogue as a line of JSON (messages), added to the file
/help, /quit       Ctrl-D ends, too; Ctrl-C ends an answer"""


@dataclass(frozen=True)
class Answered:
    """The last message and who answered what, for marks."""

    turns: tuple[Turn, ...]
    style: PromptKind
    seed: int
    answers: dict[str, str]
    """model -> its answer."""


@dataclass
class Talk:
    """A dialogue with the models of a run.

    Args:
        found: model -> the stage whose adapter it has.
    """

    context: Context
    engine: Engine
    found: dict[str, str | None]
    model: str
    style: PromptKind
    sampling: Sampling
    seed: int
    compares: bool = False
    turns: list[Turn] = field(default_factory=list)
    tries: int = 0
    """Answers asked for so far: each is drawn with another seed."""
    last: Answered | None = None

    def shown_prompt(self) -> str:
        """The text that stands before the dialogue."""
        return "".join(p for p in self._pieces([]) if isinstance(p, str)).strip()

    def answer(self, name: str, show: Callable[[str], None]) -> tuple[str, tuple[str, ...]]:
        """(the model's next answer, control tokens of the text that were neutralised); the answer is shown as it comes.

        Raises:
            UserError: the dialogue cannot be answered, as when it is longer than the context.
        """
        text = ""

        def on_text(stretch: str) -> bool:
            nonlocal text
            new = whole_characters(stretch if text else stretch.lstrip())
            text += new
            show(new)
            return not STOP.is_set

        step = Step(self.sampling, stop=self.context.model.template.stops())
        try:
            part = self.engine.generate(
                self._pieces(self.turns), step, self.seed + self.tries, self.found[name], on_text
            )
        except RowError as error:
            raise UserError(f"the message cannot be answered: {error}; in a dialogue: /undo it, or /new") from None
        return text, part.escaped

    def _pieces(self, turns: list[Turn]) -> Pieces:
        return opening(self.context.model.template, self.context.run.constitution, self.style, turns)

    def messages(self) -> dict[str, object]:
        """The dialogue as OpenAI's messages, and whom it was with."""
        said = [{"role": t.role, "content": t.text} for t in self.turns]
        return {"messages": said, "model": self.model, "prompt": self.style, "run": self.context.run.path.name}


def start(
    context: Context,
    prompt: str | None,
    model: str,
    temperature: float,
    max_tokens: int,
    seed: int,
    style: str = "standard",
    compares: bool = False,
    lines: bool = False,
) -> None:
    """One answer to `prompt` or to what is piped in, else a dialogue until Ctrl-D, Ctrl-C or /quit.

    Args:
        prompt: "-" stands for standard input.
        style: which system prompt opens the dialogue; two-shot is the standard one and two worked turns.
        compares: every message is answered by every model of the run.
        lines: each line of standard input is a message, or a command, of one dialogue.

    Raises:
        UserError: the model is not one of the run's, the style is not known, or nothing is asked.
    """
    found = run_models(context)
    name, kind = _model(found, model or list(found)[-1]), _style(style)
    if prompt in (None, "-") and sys.stdin is None:
        raise UserError("standard input is closed: say the message with -p")
    if prompt == "-" or (prompt is None and not lines and not sys.stdin.isatty()):
        prompt = _checked(sys.stdin.read).strip()
        if not prompt:
            raise UserError("standard input is empty: pipe a message in, or say it with -p")
    if prompt is not None and not (prompt := _checked(lambda: prompt or "", "the message").strip()):
        raise UserError("the message is empty: say one with -p, or leave -p out for a dialogue")
    settings = context.recipe.evaluate
    sampling = Sampling(
        temperature, settings.top_p, max_tokens, context.recipe.engine.top_k, repetition=settings.repetition
    )
    engine = _engine(context, [name] if prompt is not None and not compares else list(found), found)
    talk = Talk(context, engine, found, name, kind, sampling, seed, compares)
    try:
        if prompt is not None:
            _say(talk, prompt, heads=compares)
            STOP.check()
            return
        _dialogue(talk, _read if lines else _ask)
    finally:
        engine.close()


def _model(found: dict[str, str | None], name: str) -> str:
    if name not in found:
        why = "was not trained in this run" if name in ADAPTERS else "is not a model"
        raise UserError(f"model {name!r} {why}; this run has {', '.join(found)}")
    return name


def _style(style: str) -> PromptKind:
    kind = next((s for s in STYLES if s == style), None)
    if kind is None:
        raise UserError(f"prompt {style!r} is not known; known are {', '.join(STYLES)}")
    return kind


def _engine(context: Context, names: list[str], found: dict[str, str | None]) -> Engine:
    """An engine with the adapters of these models."""
    adapters = {s: context.run.adapter(s) for n in names if (s := found[n])}
    return engines.start(context.recipe.engine, context.model, adapters, 1, context.screen.say)


def _dialogue(talk: Talk, read: Callable[[], str]) -> None:
    run, label = talk.context.run, talk.context.run.constitution.assistant.name
    talk.context.screen.say(
        f"{label} ({talk.model} model of {run.path.name}). Training was single-turn: later turns may be weaker. "
        "/help lists commands, /quit or Ctrl-D ends.",
        "dim",
    )
    STOP.message = b""
    while True:
        try:
            message = read()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if message in ("/quit", "/exit"):
            return
        try:
            if message.startswith("/"):
                _command(talk, message)
            elif message:
                _say(talk, message, heads=True)
        except UserError as error:
            print(f"{plain(str(error))}", file=sys.stderr)
        if STOP.is_set:
            STOP.check_terminated()
            STOP.clear()


def _ask() -> str:
    """The user's next message, with the keys and the history of a line editor."""
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input uses it)
    while True:
        try:
            return _checked(lambda: _waiting(lambda: input("\nyou: "))).strip()
        except UserError as error:
            print(error, file=sys.stderr)


def _read() -> str:
    """The next line of standard input."""
    line = _checked(lambda: _waiting(sys.stdin.readline))
    if not line:
        raise EOFError
    return line.strip()


def _waiting(read: Callable[[], str]) -> str:
    """Ctrl-C while waiting for the user ends the dialogue; during an answer it ends the answer."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return read()
    finally:
        signal.signal(signal.SIGINT, before)


def _checked(read: Callable[[], str], what: str = "standard input") -> str:
    """What is read, if it is UTF-8."""
    try:
        text = read()
        text.encode("utf-8")
    except UnicodeError as error:
        raise UserError(f"{what} is not UTF-8 ({error.reason})") from None  # type: ignore[attr-defined]
    return text


def _command(talk: Talk, message: str) -> None:
    """What begins with a slash.

    Raises:
        UserError: there is no such command, or it cannot be done.
    """
    name, _, rest = message[1:].partition(" ")
    rest, say = rest.strip(), talk.context.screen.say
    if name == "help":
        print(HELP)
    elif name == "model":
        talk.model = _model(talk.found, rest) if rest else talk.model
        say(f"{talk.model}; this run has {', '.join(talk.found)}", "dim")
    elif name == "compare":
        talk.compares = not talk.compares
        say(f"every message is answered by {', '.join(talk.found) if talk.compares else talk.model}", "dim")
    elif name == "prompt":
        talk.style = _style(rest) if rest else talk.style
        say(f"{talk.style}; known are {', '.join(STYLES)}", "dim")
        print(plain(talk.shown_prompt()))
    elif name in ("retry", "undo"):
        _take_back(talk, again=name == "retry")
    elif name in ("good", "bad"):
        _mark(talk, name, rest)
    elif name == "notes":
        _notes(talk)
    elif name == "withdraw":
        _withdraw(talk, rest)
    elif name == "new":
        talk.turns.clear()
        talk.last = None
        say("a new dialogue", "dim")
    elif name == "save":
        _save(talk, rest)
    else:
        raise UserError(f"/{name} is not known; /help lists the commands")


def _take_back(talk: Talk, again: bool) -> None:
    if not talk.turns:
        raise UserError("nothing was said yet")
    before, kept = talk.turns[-2:], len(talk.turns) - 2
    message = before[0].text
    del talk.turns[-2:]
    if again:
        try:
            _say(talk, message, heads=True)
        finally:
            if len(talk.turns) == kept:  # it could not be answered, or was stopped before it was
                talk.turns += before
    else:
        talk.last = None
        talk.context.screen.say(f"taken back: {message}", "dim")


def _mark(talk: Talk, verdict: str, rest: str) -> None:
    """Mark an answer to the last message. Of several, the first word says which: its number or its model's name."""
    if talk.last is None:
        raise UserError("nothing was answered yet")
    names, note = list(talk.last.answers), rest
    name = names[0]
    if len(names) > 1:
        word, _, note = rest.partition(" ")
        by_number = {str(number): n for number, n in enumerate(names, 1)}
        if word not in names and word not in by_number:
            which = ", ".join(f"{number} {n}" for number, n in enumerate(names, 1))
            raise UserError(f"which answer? /{verdict} 2 NOTE: {which}")
        name = by_number.get(word, word)
    said, sampling = talk.last, talk.sampling
    made = feedback.mark(
        talk.context.run,
        {
            "verdict": verdict, "note": note, "source": "chat", "model": name, "prompt": said.style,
            "turns": [{"role": t.role, "content": t.text} for t in said.turns], "answer": said.answers[name],
            "settings": {
                "temperature": sampling.temperature, "top_p": sampling.top_p,
                "max_new_tokens": sampling.max_new_tokens, "seed": said.seed,
            },
        },
    )  # fmt: skip
    run = talk.context.run
    number = len(feedback.read(run))
    with_note = f", with the note: {made.note}" if made.note else ""
    talk.context.screen.say(
        f"{number}. marked {verdict}: the answer of {name}{with_note}. Nothing is trained on it; "
        f"selfalign constitution suggest {run.path} lists the marks",
        "dim",
    )


def _notes(talk: Talk) -> None:
    found = feedback.read(talk.context.run)
    if not found:
        talk.context.screen.say("no answer of this run is marked", "dim")
    for number, mark in enumerate(found.values(), 1):
        print(plain(feedback.line(mark, f"{number}. ")))


def _withdraw(talk: Talk, rest: str) -> None:
    found = list(feedback.read(talk.context.run))
    if not rest.isascii() or not rest.isdigit() or not 0 < int(rest[:9]) <= len(found):
        raise UserError("/withdraw needs the number of a mark, as /notes shows it")
    gone = feedback.withdraw(talk.context.run, found[int(rest) - 1])
    if gone:
        talk.context.screen.say(f"withdrawn: {feedback.line(gone)}", "dim")


def _save(talk: Talk, target: str) -> None:
    """Add the dialogue to a file, as a line of JSON that others read as messages."""
    if not target:
        raise UserError("/save needs a file, as /save talk.jsonl")
    if not talk.turns:
        raise UserError("nothing was said yet")
    try:
        path = Path(target).expanduser().resolve()  # a link stays one
        before = path.read_text("utf-8") if path.exists() else ""
        before += "\n" if before and not before.endswith("\n") else ""
        atomic.write_text(path, before + to_json(talk.messages()) + "\n")
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{target} cannot be written ({error})") from None
    talk.context.screen.say(f"saved: {target}", "dim")


def _say(talk: Talk, message: str, heads: bool) -> None:
    """Put the message to the model (or to all) and print each answer as it comes; the talk goes on with its model's.

    Args:
        heads: say who answers.
    """
    label = talk.context.run.constitution.assistant.name
    talk.turns.append(Turn("user", message))
    asked, answers = tuple(talk.turns), dict[str, str]()
    answer = ""
    try:
        for name in list(talk.found) if talk.compares else [talk.model]:
            if heads:
                who = f"{label} ({name})" if talk.compares else label
                print(f"\n{who}: ", end="", flush=True)
            text, neutralised = talk.answer(name, lambda new: print(plain(new), end="", flush=True))
            print()
            if neutralised:
                talk.context.screen.say(f"  control tokens in the text neutralised: {' '.join(neutralised)}", "yellow")
            answers[name] = text
            answer = text if name == talk.model else answer
            if STOP.is_set:
                break
    except UserError:
        talk.turns.pop()
        raise
    talk.last = Answered(asked, talk.style, talk.seed + talk.tries, answers)
    talk.tries += 1
    if answer or not STOP.is_set:
        talk.turns.append(Turn("assistant", answer.strip()))
    else:  # stopped before the chosen model's turn
        talk.turns.pop()
