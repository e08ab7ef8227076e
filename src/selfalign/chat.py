"""Talk to a run's models in the terminal, streaming."""

from __future__ import annotations

import signal
import sys

from selfalign import engines
from selfalign.context import Context
from selfalign.dialogue import PLAIN, Turn
from selfalign.engines.base import Engine, RowError, Sampling, Step
from selfalign.errors import UserError
from selfalign.evaluation.heldout import ADAPTERS, models
from selfalign.progress import plain
from selfalign.signals import STOP

STYLES = ("standard", "concise", "verbose", "two-shot")


def start(
    context: Context,
    prompt: str | None,
    model: str,
    temperature: float,
    max_tokens: int,
    seed: int,
    style: str = "standard",
) -> None:
    """One answer where `prompt` is given, else a dialogue until Ctrl-D, Ctrl-C or /quit.

    Args:
        style: which inference prompt opens the dialogue; two-shot is the standard one and two worked turns.

    Raises:
        UserError: the model is not one of the run's, or the style is not known.
    """
    if style not in STYLES:
        raise UserError(f"--style {style!r} is not known; known are {', '.join(STYLES)}")
    found = models(context)
    name = model or list(found)[-1]
    if name not in found:
        known = ", ".join(found)
        why = "was not trained in this run" if name in ADAPTERS else "is not a model"
        raise UserError(f"--model {name!r} {why}; this run has {known}")
    adapter = found[name] if context.has_weights else None
    base = context.model if context.has_weights else None
    adapters = {adapter: context.run.adapter(adapter)} if adapter else {}
    engine = engines.start(context.recipe.engine, base, adapters, 1, context.screen.say)
    settings = context.recipe.evaluate
    sampling = Sampling(
        temperature, settings.top_p, max_tokens, context.recipe.engine.top_k, repetition=settings.repetition
    )
    try:
        if prompt is not None:
            _say(context, engine, adapter, [Turn("user", prompt)], sampling, seed, style)
            STOP.check()
            return
        _dialogue(context, engine, adapter, name, sampling, seed, style)
    finally:
        engine.close()


def _dialogue(
    context: Context, engine: Engine, adapter: str | None, name: str, sampling: Sampling, seed: int, style: str
) -> None:
    label = context.run.constitution.assistant.name
    context.screen.say(
        f"{label} ({name} model of {context.run.path.name}). Training was single-turn: later turns may be weaker. "
        "/quit or Ctrl-D ends.",
        "dim",
    )
    turns: list[Turn] = []
    STOP.message = b""
    while True:
        try:
            message = _ask()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if message in ("/quit", "/exit"):
            return
        if not message:
            continue
        turns.append(Turn("user", message))
        print(f"\n{label}: ", end="", flush=True)
        try:
            turns.append(Turn("assistant", _say(context, engine, adapter, turns, sampling, seed + len(turns), style)))
        except UserError as error:
            turns.pop()
            print(f"\n{error}", file=sys.stderr)
        if STOP.is_set:
            STOP.check_terminated()
            STOP.clear()


def _ask() -> str:
    """The user's next message. Ctrl-C while waiting ends the dialogue; during an answer it ends the answer."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return input("\nyou: ").strip()
    finally:
        signal.signal(signal.SIGINT, before)


def _say(
    context: Context, engine: Engine, adapter: str | None, turns: list[Turn], sampling: Sampling, seed: int, style: str
) -> str:
    """Stream the next answer to standard output; returns it."""
    constitution = context.run.constitution
    template = context.model.template if context.has_weights else PLAIN
    opening = "standard" if style == "two-shot" else style
    shots = constitution.prompts.two_shot if style == "two-shot" else []
    lead = [turn for shot in shots for turn in (Turn("user", shot.user), Turn("assistant", shot.answer))]
    system = constitution.inference_prompt(opening)  # type: ignore[arg-type]
    pieces = template.prompt(system, [*lead, *turns], constitution.assistant.name)
    text = ""

    def show(stretch: str) -> bool:
        nonlocal text
        new = stretch if text else stretch.lstrip()
        text += new
        print(plain(new), end="", flush=True)
        return not STOP.is_set

    try:
        part = engine.generate(pieces, Step(sampling, stop=template.stops()), seed, adapter, show)
    except RowError as error:
        raise UserError(f"the message cannot be answered: {error}") from None
    print()
    if part.neutralised:
        context.screen.say(f"  control tokens in the text neutralised: {' '.join(part.neutralised)}", "yellow")
    return text
