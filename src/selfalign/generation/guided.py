"""Build requests for responses under the constitution, with internal thoughts first, and split the raw outputs.

Stage 2 and the evaluation's prompted base use it (SELF-ALIGN, arXiv 2305.03047, section 3.3).
"""

from __future__ import annotations

import json
from dataclasses import replace

from selfalign.constitution import Constitution
from selfalign.constitution.rendering import prompt_types, query, render, render_exemplars, render_principles
from selfalign.data.prompt_text import BOS, Pieces
from selfalign.generation.engines.base import Completion, Request, Sampling, Step
from selfalign.generation.settings import AlignSettings

NO_SORRY = ((" Sorry", -100.0),)
"""The paper's ban on responses that only apologise."""

_LABELS = ("\n", ":", "(", ",")
"""The repetition penalty does not look across these. Otherwise it would suppress the labels and citations of the
exemplars, which a response must repeat."""

_MAY_REPEAT = 6
"""Sequences of up to this many tokens may repeat in the guided form. With fewer, the penalty would suppress the names
in the user's message, and the phrases that the exemplars teach."""

NEXT_MESSAGE = "\n\nUser:"
"""Begins the user's next message in the prompt of stage 2, and so ends a response."""


class Form:
    """The parts of a request that all messages of a question type share, rendered once.

    Args:
        config: the form (guided or paper), the exemplars, the limit on internal thoughts, hints.
        sampling: sampling parameters of the response and the internal thoughts.
    """

    def __init__(self, constitution: Constitution, config: AlignSettings, sampling: Sampling) -> None:
        self._constitution = constitution
        self._config = config
        self._sampling = replace(sampling, bias=NO_SORRY, repetition=config.repetition)
        self.types = tuple(prompt_types(constitution)) if config.exemplars == "by_type" else ("",)
        """The question types with a prefix of their own, after "" for the general exemplars."""
        self._prefixes: dict[str, Pieces] = {"": (BOS, render(constitution))}
        if len(self.types) > 1:
            principles = render_principles(constitution)
            self._prefixes = {t: (BOS, principles, render_exemplars(constitution, t)) for t in self.types}
        self._steps: dict[str, tuple[Step, ...]] = {}

    def prefix_type(self, exemplar_type: str) -> str:
        """Return the type whose prefix a message of this type gets: "" if the type has no exemplars to show."""
        return exemplar_type if exemplar_type in self._prefixes else ""

    def prefix(self, exemplar_type: str = "") -> Pieces:
        """Return the beginning of all requests of this type: the principles, then the exemplars."""
        return self._prefixes[self.prefix_type(exemplar_type)]

    def answered(self, message: str, thoughts: str, exemplar_type: str = "") -> Pieces:
        """Return the prompt of this type up to where the response begins, after these internal thoughts."""
        name = self._constitution.assistant.name
        asked = f"{query(self._constitution, message)} {thoughts.strip()}" if thoughts.strip() else f"User: {message}"
        return (*self.prefix(exemplar_type), f"{asked}\n\n{name}:")

    def request(self, message: str, seed: int, question_type: str = "", exemplar_type: str = "") -> Request:
        """Return the request for one message.

        Args:
            question_type: the red-team type of the message, for hints.
            exemplar_type: the question type whose exemplars are shown; empty for the general exemplars.
        """
        hint = _hint(self._constitution, question_type) if self._config.hints else ""
        if hint not in self._steps:
            self._steps[hint] = self._make_steps(hint)
        pieces = (*self.prefix(exemplar_type), query(self._constitution, message))
        return Request(pieces, self._steps[hint], seed)

    def _make_steps(self, hint: str) -> tuple[Step, ...]:
        constitution, sampling = self._constitution, self._sampling
        name = constitution.assistant.name
        ends = (NEXT_MESSAGE, NEXT_MESSAGE[1:])
        if self._config.form == "paper":
            return (Step(replace(sampling, breaks=_LABELS, repetition_length=5), stop=ends),)
        sampling = replace(sampling, repetition_length=_MAY_REPEAT)
        answer = Step(sampling, cue=f"\n\n{name}:", stop=(*ends, f"\n{name} (internal thoughts)"))
        brief = replace(sampling, max_new_tokens=self._config.max_thought_tokens)
        cue = constitution.citation_cue()
        if not cue:
            return (Step(brief, stop=("\n",)), answer)
        cite = replace(brief, max_new_tokens=64, repetition=0.0)
        principles = Step(cite, cue=f"{cue.rstrip()}{hint}", stop=("\n",), grammar=_citations(constitution))
        return (Step(brief, stop=("\n", cue.rstrip())), principles, answer)


def _citations(constitution: Constitution) -> str:
    """Return a grammar for one to four citations of existing principles: small models mix up numbers and names."""
    options = " | ".join(json.dumps(f"{p.id} ({p.name})", ensure_ascii=False) for p in constitution.principles)
    close = json.dumps(constitution.citation_close(), ensure_ascii=False)
    return f'root ::= " " cite (", " cite)? (", " cite)? (", " cite)? {close}\ncite ::= {options}'


def _hint(constitution: Constitution, question_type: str) -> str:
    """Return the beginning of the citations: the principles that the question type hints at."""
    names = {p.id: p.name for p in constitution.principles}
    hints = next((t.hints for t in constitution.question_types if t.name == question_type), [])
    return "".join(f" {i} ({names[i]})," for i in hints)


def split(completion: Completion, request: Request, name: str) -> tuple[str, str, bool]:
    """Return (internal thoughts, response, truncated) of a raw output. The response is empty if it was not started."""
    last = completion.parts[-1]
    if len(request.steps) == 1:
        thoughts, _, response = last.text.partition(f"\n\n{name}:")
        return thoughts.strip(), response, last.finish == "length"
    answered = len(completion.parts) == len(request.steps)
    thought_parts = completion.parts[:-1] if answered else completion.parts
    thoughts = "".join(s.cue + p.text.rstrip() for s, p in zip(request.steps, thought_parts, strict=False))
    return thoughts.strip(), last.text if answered else "", answered and last.finish == "length"
