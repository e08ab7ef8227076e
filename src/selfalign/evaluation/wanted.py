"""What an evaluation is asked to measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from selfalign.evaluation.forms import PromptKind


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be measured."""

    tasks: Sequence[str]
    """Some of `compare.TASKS`."""
    models: Sequence[str] = ()
    """Models of the run; none stands for all."""
    others: Sequence[str] = ()
    """NAME=ADAPTER, NAME=MODEL, NAME=URL#ID."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Benchmark -> file, folder or hub id; behaviour -> file of situations."""
    prompt: PromptKind = "standard"
    limit: int | None = None
    """At most so many items of each benchmark."""
    judge: str = ""
    """Who judges generated answers: NAME=MODEL, NAME=URL#ID, or one without a name; nobody unless given."""
