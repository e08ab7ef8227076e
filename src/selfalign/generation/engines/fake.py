"""Generate scripted, seeded text without a model, for tests of control flow."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable

from selfalign.data.prompt_text import Pieces
from selfalign.generation.engines.base import OnText, Part, RowError, Step

Script = Callable[[str, Step, random.Random], str]

_VERBS = """
describe explain compare list rewrite summarise plan sort translate judge invent check count name
""".split()  # noqa: SIM905
_WORDS = """
amber anchor apple arrow autumn basket beacon bicycle blossom bottle branch bridge bronze butter button cabin
candle canyon carpet castle cedar cellar cherry circle cloud clover coast copper corner cotton cradle crystal
desert dragon eagle ember engine falcon feather fiddle forest fountain garden garlic ginger glacier granite
hammer harbour harvest honey island ivory jacket jungle kettle ladder lagoon lantern lemon lily linen lizard
magnet maple marble meadow mirror monkey mosaic mountain needle nutmeg oasis orchid otter paddle palace pebble
pepper pigeon planet pocket pottery puzzle quartz rabbit ribbon river rocket saddle saffron sailor salmon sandal
satin shadow silver spider spiral spring squirrel statue sugar summer temple thunder timber tulip tunnel turtle
valley velvet violin walnut willow window winter wizard yellow zebra
""".split()  # noqa: SIM905


def _sentence(rng: random.Random, words: int) -> str:
    return f"{rng.choice(_VERBS)} {' '.join(rng.choices(_WORDS, k=words))}"


def _answer(rng: random.Random) -> str:
    return f" {_sentence(rng, rng.randint(30, 60)).capitalize()}.\n\nUser:"


def default_script(prompt: str, step: Step, rng: random.Random) -> str:
    """Generate text in the form that the prompt's last line requires."""
    last = prompt.rstrip().rsplit("\n", 1)[-1]
    if numbered := re.fullmatch(r"(\d+)\. Instruction:", last):
        first = int(numbered[1])
        blocks = []
        for number in range(first, first + 5):
            head = "" if number == first else f"{number}. Instruction:"
            text = _sentence(rng, rng.randint(6, 12))
            blocks.append(f"{head} {text.capitalize()}.\n{number}. Input:\n<noinput>\n")
        return "###\n".join(blocks) + "###\n"
    if re.fullmatch(r"\d+\.", last):
        return "".join(f" {rng.choice(_WORDS).title()} {rng.choice(_WORDS).title()}\n{n}." for n in range(3, 13))
    if last.endswith("(internal thoughts):"):
        thoughts = f" The user asks to {_sentence(rng, 5)}. Principles: 2 (informative), 3 (helpful)."
        # Guided generation stops after the thoughts; the paper's form continues with the response in the same pass.
        name = last.removesuffix("(internal thoughts):").rstrip()
        return f"{thoughts}\n\n{name}:{_answer(rng)}"
    if last.endswith("Principles:"):
        return " 2 (informative), 3 (helpful)."
    if last == "-" and ":" in step.stop:
        return f" {rng.choice(_WORDS).title()} {rng.choice(_WORDS)}: "
    if last == "-":
        questions = (f" What does {_sentence(rng, rng.randint(5, 9))} mean?" for _ in range(3))
        return "\n-".join(questions) + "\n\n"
    if re.fullmatch(r"- [^:]+: \w+", last):
        return f" does {_sentence(rng, rng.randint(5, 9))} mean?\n"
    if last.endswith(", question:"):
        return f" What does {_sentence(rng, rng.randint(5, 9))} mean?\n"
    return _answer(rng)


class Fake:
    """An engine that answers by a script.

    Args:
        parallel: maximum number of concurrent requests.
        script: (prompt, step, random numbers) -> generated text.
        latency_s: seconds that each step takes.
        fail: a prompt that contains this text fails.
    """

    def __init__(
        self,
        parallel: int = 8,
        script: Script = default_script,
        latency_s: float = 0.0,
        fail: str | None = None,
    ) -> None:
        self.parallel = parallel
        self.note = ""
        self.requests = 0
        self._script = script
        self._latency_s = latency_s
        self._fail = fail

    def generate(self, prompt: Pieces, step: Step, seed: int, adapter: str | None, on_text: OnText = None) -> Part:
        """See `Engine.generate`. The same request and seed give the same text."""
        self.requests += 1
        text = "".join(prompt)
        if self._fail and self._fail in text:
            raise RowError(f"the fake engine is set to fail on {self._fail!r}")
        if self._latency_s:
            time.sleep(self._latency_s)
        reply = self._script(text, step, random.Random(f"{seed} {adapter} {text[-200:]}"))  # noqa: S311
        stops = [start for stop in step.stop if (start := reply.find(stop)) >= 0]
        finish = "stop" if stops else "end"
        reply = reply[: min(stops)] if stops else reply
        words = re.findall(r"\s*\S+|\s+", reply)
        if len(words) > step.sampling.max_new_tokens:
            words = words[: step.sampling.max_new_tokens]
            reply, finish = "".join(words), "length"
        if on_text:
            streamed = ""
            for word in words:
                streamed += word
                if not on_text(word):
                    return Part(streamed, "cancelled", generated_tokens=len(words))
        return Part(reply, finish, len(text) // 4, 0, len(words))  # type: ignore[arg-type]

    def warm_prefix(self, prefix: Pieces, adapter: str | None) -> str:
        """Do nothing."""
        return "never computed"

    def close(self) -> None:
        """Do nothing."""
