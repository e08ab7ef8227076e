"""Hold a dialogue with a run's models: streamed, with several turns, from a terminal or a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfalign.data.prompt_text import Pieces, Turn, replace_surrogates
from selfalign.data.records import to_json
from selfalign.errors import UserError
from selfalign.evaluation.models import ADAPTERS, run_models
from selfalign.evaluation.prompting import SYSTEM_PROMPTS, PromptKind, check_system_prompt, opening
from selfalign.generation import engines
from selfalign.generation.engines.base import Engine, RowError, Sampling, Step
from selfalign.run import feedback
from selfalign.run.context import Context
from selfalign.system import atomic
from selfalign.system.console import plain
from selfalign.system.signals import STOP, interruptible

HELP = """\
/model NAME        use another model from now on
/compare           send each message to every model; /compare again ends it
/prompt [NAME]     show the system prompt, or use another one
/retry             respond to the last message again
/undo              remove the last message and its response
/new               start a new dialogue
/good, /bad [NOTE] mark the last response; with several, name one: /bad 2 NOTE
                   or /bad engraved NOTE
/notes             list the run's marks; /withdraw N withdraws one
/save FILE         append the dialogue to a file as a line of JSON
/help, /quit       Ctrl-D also ends the dialogue; Ctrl-C ends a response"""


@dataclass
class Dialogue:
    """A dialogue with the models of a run.

    Args:
        models: model -> the stage whose adapter it uses; None for the base.
        compare: send each message to every model; the dialogue continues with the response of `model`.
    """

    context: Context
    engine: Engine
    models: dict[str, str | None]
    model: str
    system_prompt: PromptKind
    sampling: Sampling
    seed: int
    compare: bool = False
    turns: list[Turn] = field(default_factory=list)
    rounds: int = 0
    """Number of messages sent; each has another seed."""
    last: dict[str, Any] = field(default_factory=dict)
    """What a mark on a response to the last message records, except the response."""
    responses: dict[str, str] = field(default_factory=dict)
    """Model -> its response to the last message."""

    def respond(self, model: str, show: Callable[[str], None]) -> tuple[str, tuple[str, ...]]:
        """Generate the model's response, and pass each part to `show` as it arrives.

        Returns:
            The response, and the control tokens of the text that were escaped.

        Raises:
            UserError: the engine refuses the dialogue, for instance because it is longer than the context.
        """
        response = ""

        def on_text(part: str) -> bool:
            nonlocal response
            new = replace_surrogates(part if response else part.lstrip())
            response += new
            show(new)
            return not STOP.is_set

        step = Step(self.sampling, stop=self.context.model.template.stops())
        seed, adapter = self.seed + self.rounds, self.models[model]
        try:
            result = self.engine.generate(self.pieces(self.turns), step, seed, adapter, on_text)
        except RowError as error:
            raise UserError(f"the model cannot respond: {error}; in a dialogue, use /undo or /new") from None
        return response, result.escaped

    def pieces(self, turns: list[Turn]) -> Pieces:
        """Return the prompt of a response to these turns."""
        return opening(self.context.model.template, self.context.run.constitution, self.system_prompt, turns)


def start(
    context: Context,
    message: str | None,
    model: str,
    temperature: float,
    max_tokens: int,
    seed: int,
    system_prompt: str = "standard",
    compare: bool = False,
    lines: bool = False,
) -> None:
    """Respond to `message` or to piped input once; without either, hold a dialogue until Ctrl-D, Ctrl-C or /quit.

    Args:
        message: "-" stands for standard input.
        model: a model of the run; "" is the last one trained.
        system_prompt: standard, concise, verbose, or two-shot (the standard one and two example turns).
        compare: send each message to every model of the run.
        lines: each line of standard input is a message, or a command, of one dialogue.

    Raises:
        UserError: the model or the system prompt is not known, or there is no message.
    """
    available = run_models(context)
    model, kind = _check_model(available, model or list(available)[-1]), check_system_prompt(system_prompt)
    if message in (None, "-") and sys.stdin is None:
        raise UserError("standard input is closed; give the message with -p")
    if message == "-" or (message is None and not lines and not sys.stdin.isatty()):
        message = _check_utf8(sys.stdin.read).strip()
        if not message:
            raise UserError("standard input is empty; pipe a message, or give it with -p")
    if message is not None and not (message := _check_utf8(lambda: message or "", "the message").strip()):
        raise UserError("the message is empty; give one with -p, or omit -p for a dialogue")
    settings = context.recipe.evaluate
    sampling = Sampling(
        temperature, settings.top_p, max_tokens, context.recipe.engine.top_k, repetition=settings.repetition
    )
    names = [model] if message is not None and not compare else list(available)
    stages = [stage for name in names if (stage := available[name])]
    adapters = {stage: context.run.adapter(stage) for stage in stages}
    engine = engines.start(context.recipe.engine, context.model, adapters, 1, context.screen.say)
    dialogue = Dialogue(context, engine, available, model, kind, sampling, seed, compare)
    try:
        if message is not None:
            _send(dialogue, message, heads=compare)
            STOP.check()
        else:
            _hold(dialogue, _read_line if lines else _ask)
    finally:
        engine.close()


def _check_model(available: dict[str, str | None], name: str) -> str:
    if name not in available:
        why = "was not trained in this run" if name in ADAPTERS else "is not a model"
        raise UserError(f"model {name!r} {why}; this run has {', '.join(available)}")
    return name


def _hold(dialogue: Dialogue, read: Callable[[], str]) -> None:
    """Read messages and commands until the end of input or /quit."""
    run = dialogue.context.run
    dialogue.context.screen.say(
        f"{run.constitution.assistant.name} ({dialogue.model} model of {run.path.name}). Training was single-turn: "
        "later turns may be weaker. /help lists the commands, /quit or Ctrl-D ends.",
        "dim",
    )
    STOP.message = b""
    while True:
        try:
            text = read()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if text in ("/quit", "/exit"):
            return
        try:
            if text.startswith("/"):
                _command(dialogue, text)
            elif text:
                _send(dialogue, text, heads=True)
        except UserError as error:
            print(plain(str(error)), file=sys.stderr)
        if STOP.is_set:
            STOP.check_terminated()
            STOP.clear()


def _ask() -> str:
    """Return the user's next message, read with line editing and history."""
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input uses it)
    while True:
        try:
            with interruptible():
                return _check_utf8(lambda: input("\nyou: ")).strip()
        except UserError as error:
            print(error, file=sys.stderr)


def _read_line() -> str:
    """Return the next line of standard input."""
    with interruptible():
        line = _check_utf8(sys.stdin.readline)
    if not line:
        raise EOFError
    return line.strip()


def _check_utf8(read: Callable[[], str], what: str = "standard input") -> str:
    try:
        text = read()
        text.encode("utf-8")
    except UnicodeError as error:
        raise UserError(f"{what} is not UTF-8 ({error.reason})") from None  # type: ignore[attr-defined]
    return text


def _command(dialogue: Dialogue, text: str) -> None:
    """Run a command, which begins with a slash. Raises UserError if it is not known or cannot be run."""
    name, _, argument = text[1:].partition(" ")
    argument, say = argument.strip(), dialogue.context.screen.say
    if name == "help":
        print(HELP)
    elif name == "model":
        dialogue.model = _check_model(dialogue.models, argument) if argument else dialogue.model
        say(f"{dialogue.model}; this run has {', '.join(dialogue.models)}", "dim")
    elif name == "compare":
        dialogue.compare = not dialogue.compare
        names = ", ".join(dialogue.models) if dialogue.compare else dialogue.model
        say(f"models that respond to each message: {names}", "dim")
    elif name == "prompt":
        dialogue.system_prompt = check_system_prompt(argument) if argument else dialogue.system_prompt
        say(f"{dialogue.system_prompt}; known are {', '.join(SYSTEM_PROMPTS)}", "dim")
        print(plain("".join(piece for piece in dialogue.pieces([]) if isinstance(piece, str)).strip()))
    elif name in ("retry", "undo"):
        _undo(dialogue, retry=name == "retry")
    elif name in ("good", "bad"):
        _mark(dialogue, name, argument)
    elif name == "notes":
        _list_marks(dialogue)
    elif name == "withdraw":
        _withdraw(dialogue, argument)
    elif name == "new":
        dialogue.turns.clear()
        dialogue.responses.clear()
        say("a new dialogue", "dim")
    elif name == "save":
        _save(dialogue, argument)
    else:
        raise UserError(f"/{name} is not known; /help lists the commands")


def _undo(dialogue: Dialogue, retry: bool) -> None:
    if not dialogue.turns:
        raise UserError("the dialogue is empty")
    removed = dialogue.turns[-2:]
    message = removed[0].text
    del dialogue.turns[-2:]
    length = len(dialogue.turns)
    if retry:
        try:
            _send(dialogue, message, heads=True)
        finally:
            if len(dialogue.turns) == length:  # there was no response, or it was stopped before it began
                dialogue.turns += removed
    else:
        dialogue.responses.clear()
        dialogue.context.screen.say(f"removed: {message}", "dim")


def _mark(dialogue: Dialogue, verdict: str, text: str) -> None:
    """Mark a response to the last message. If there are several, the first word of the text is a number or a model."""
    run, names, name, note = dialogue.context.run, list(dialogue.responses), "", text
    if not names:
        raise UserError("there is no response to mark")
    if len(names) == 1:
        name = names[0]
    else:
        word, _, note = text.partition(" ")
        by_number = {str(number): model for number, model in enumerate(names, 1)}
        if (name := by_number.get(word, word)) not in names:
            choices = ", ".join(f"{number} {model}" for number, model in by_number.items())
            raise UserError(f"which response? /{verdict} 2 NOTE: {choices}")
    answer = dialogue.responses[name]
    mark = feedback.mark(run, {**dialogue.last, "verdict": verdict, "note": note, "model": name, "answer": answer})
    with_note = f", with the note: {mark.note}" if mark.note else ""
    dialogue.context.screen.say(
        f"marked {verdict}: the response of {name}{with_note} (mark {len(feedback.read(run))}). Nothing is trained on "
        f"marks; `selfalign constitution suggest {run.path}` lists them",
        "dim",
    )


def _messages(dialogue: Dialogue) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.text} for turn in dialogue.turns]


def _list_marks(dialogue: Dialogue) -> None:
    marks = feedback.read(dialogue.context.run)
    if not marks:
        dialogue.context.screen.say("no response of this run is marked", "dim")
    for number, mark in enumerate(marks.values(), 1):
        print(plain(feedback.line(mark, f"{number}. ")))


def _withdraw(dialogue: Dialogue, number: str) -> None:
    ids = list(feedback.read(dialogue.context.run))
    if not number.isascii() or not number.isdigit() or not 0 < int(number[:9]) <= len(ids):
        raise UserError("/withdraw needs the number of a mark, as /notes lists it")
    mark = feedback.withdraw(dialogue.context.run, ids[int(number) - 1])
    if mark:
        dialogue.context.screen.say(f"withdrawn: {feedback.line(mark)}", "dim")


def _save(dialogue: Dialogue, target: str) -> None:
    """Append the dialogue to a file as a line of JSON: OpenAI's messages, the model, the system prompt and the run."""
    if not target:
        raise UserError("/save needs a file, as in /save talk.jsonl")
    if not dialogue.turns:
        raise UserError("the dialogue is empty")
    talk = {"messages": _messages(dialogue), "model": dialogue.model, "prompt": dialogue.system_prompt}
    talk["run"] = dialogue.context.run.path.name
    try:
        path = Path(target).expanduser().resolve()  # an atomic write would replace a link
        before = path.read_text("utf-8") if path.exists() else ""
        before += "\n" if before and not before.endswith("\n") else ""
        atomic.write_text(path, before + to_json(talk) + "\n")
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{target} cannot be written ({error})") from None
    dialogue.context.screen.say(f"saved: {target}", "dim")


def _send(dialogue: Dialogue, message: str, heads: bool) -> None:
    """Send the message to the model, or to all, and print each response. Continue with the response of `model`.

    Args:
        heads: print the assistant's name before a response.
    """
    label, screen = dialogue.context.run.constitution.assistant.name, dialogue.context.screen
    dialogue.turns.append(Turn("user", message))
    sampling, responses = dialogue.sampling, dict[str, str]()
    last = {
        "source": "chat", "prompt": dialogue.system_prompt, "turns": _messages(dialogue),
        "settings": {
            "temperature": sampling.temperature, "top_p": sampling.top_p, "max_new_tokens": sampling.max_new_tokens,
            "seed": dialogue.seed + dialogue.rounds,
        },
    }  # fmt: skip
    try:
        for model in list(dialogue.models) if dialogue.compare else [dialogue.model]:
            if heads:
                print(f"\n{f'{label} ({model})' if dialogue.compare else label}: ", end="", flush=True)
            responses[model], escaped = dialogue.respond(model, lambda new: print(plain(new), end="", flush=True))
            print()
            if escaped:
                screen.say(f"  control tokens in the text were escaped: {' '.join(escaped)}", "yellow")
            if STOP.is_set:
                break
    except UserError:
        dialogue.turns.pop()
        raise
    dialogue.last, dialogue.responses = last, responses
    dialogue.rounds += 1
    response = responses.get(dialogue.model, "")
    if response or not STOP.is_set:
        dialogue.turns.append(Turn("assistant", response.strip()))
    else:  # stopped before the response of the dialogue's model began
        dialogue.turns.pop()
