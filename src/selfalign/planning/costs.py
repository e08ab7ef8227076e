"""What a run will cost, before anything is spent: requests, tokens, time, memory and disk of each stage.

Sizes follow from the recipe (`sizes`); speeds from `calibrate`. Requests and the most tokens are sound, and times are
estimates: a run prints them beside what it really took. `capacity` does the same for a cluster.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from selfalign.constitution import Constitution
from selfalign.generation import engines
from selfalign.generation.calibration import Calibration
from selfalign.model.base_model import Model
from selfalign.planning import sizes
from selfalign.run.recipe import Recipe
from selfalign.system import atomic

ADAPTERS = ("engrave", "verbose_cloning")
PACE = 0.73
"""Tokens a second in a stage against the calibration's, where little else runs (`benchmarks/planner.py fit`)."""
TRAINING_SPEED, TRAINING_START = 0.37, 21.0
"""Tokens trained on a second against the engine's prompt tokens a second, and seconds besides: 159 tokens/s beside 431
(`training.ratio_trl_defaults`), and `training.overhead`."""
SCORING_SPEED, SCORING_START = 0.6, 8.0
"""The same for log-probabilities: 270 tokens/s for TruthfulQA's choices (a stage that is not planned); loading takes
8 seconds (benchmarks/training.py)."""
_CONVERSION = 70
_ROW_BYTES = 2600
"""Of a row in the journal, a stage's file and drops.jsonl."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage."""

    stage: str
    """As the ledger calls it."""
    requests: int
    prompt_tokens: int
    """Prompt tokens to compute."""
    cached_tokens: int
    """Prompt tokens that the cache saves."""
    generated_tokens: int
    """Of training: tokens trained on, over all epochs."""
    at_most: int
    """Generated tokens if every row runs to its limit."""
    seconds: float | None
    """None where the speed is not known (a server)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A run."""

    stages: list[StagePlan]
    memory_mb: float | None
    """At its peak."""
    disk_mb: float
    """Of the run directory."""
    cache_mb: float
    """Of converted weights that are not in the cache yet."""
    slots: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def seconds(self) -> float | None:
        """Of all stages."""
        known = [s.seconds for s in self.stages]
        return None if None in known else sum(s for s in known if s is not None)


@dataclass(frozen=True, slots=True)
class Machine:
    """What of this machine and model enters the plan."""

    slots: int
    speed: Calibration | None
    weights_mb: float
    """Of the torch weights, in float32; 0 without a model."""
    converted: bool
    """They are there already."""
    reads_prefix_once: bool
    """The engine copies a shared prefix between its slots."""
    context: int
    engine_mb: float
    """Of the engine's weights."""


def here(recipe: Recipe, model: Model | None, speed: Calibration | None) -> Machine:
    """This machine, for that recipe and model.

    Args:
        speed: llama.cpp's; None where another engine generates.
    """
    slots = recipe.engine.slots
    if slots == "auto":
        slots = speed.slots if speed else engines.default_slots(recipe.engine)
    folder = model.existing_folder() if model else None
    engine_bytes = model.gguf_path.stat().st_size if model and model.gguf_path else 0
    # 4-bit weights are about an eighth of float32's; what stays in more bits makes it less.
    weights = sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder else engine_bytes * 4.5
    kind = engines.kind(recipe.engine)
    return Machine(
        slots,
        speed,
        weights / 1e6,
        folder is not None or model is None or model.is_fake,
        kind in ("llama_cpp", "vllm"),
        recipe.engine.context,
        engine_bytes / 1e6,
    )


def make(
    recipe: Recipe, constitution: Constitution, model: Model | None, speed: Calibration | None, user_prompts: int | None
) -> Plan:
    """The plan of a recipe here. Takes the same as `here` and `plan`."""
    return plan(recipe, constitution, here(recipe, model, speed), user_prompts)


def plan(recipe: Recipe, constitution: Constitution, machine: Machine, user_prompts: int | None = None) -> Plan:
    """The plan of a recipe on that machine.

    Args:
        user_prompts: rows of the user's own file, which takes the place of stage 1.
    """
    stages = [_priced(work, machine) for work in sizes.of(recipe, constitution, user_prompts)]
    rows = sum(s.requests for s in stages) + sizes.prompts(recipe, user_prompts) * 3
    adapters = sum(s.stage in ADAPTERS for s in stages) * machine.weights_mb * 0.02
    trains = any(s.stage in ADAPTERS for s in stages)
    return Plan(
        stages,
        _memory(machine, trains),
        rows * _ROW_BYTES / 1e6 + adapters,
        0.0 if machine.converted or not trains else machine.weights_mb,
        machine.slots,
    )


def _memory(machine: Machine, trains: bool) -> float | None:
    speed = machine.speed
    if speed is None:
        return None
    per_cell = max(0.0, speed.megabytes - machine.engine_mb) / speed.cells
    generating = machine.engine_mb + per_cell * machine.slots * machine.context + 300
    return max(generating, training_megabytes(machine.weights_mb) if trains else 0.0)


def training_megabytes(weights_mb: float, micro_batch_tokens: int = 1024) -> float:
    """Memory that training takes: the weights (float32), what the layers keep of each token, a chunk of the head.

    Fitted to the embedded model's 3.7 GB (benchmarks/training.py); layers and width grow slower than the weights.
    """
    return float(weights_mb * 1.3 + micro_batch_tokens * 1.1 * (weights_mb / 1072) ** 0.67 + 1300)


def training_seconds(tokens: int, speed: Calibration) -> float:
    """Time that training on so many tokens takes, its start included."""
    return tokens / (speed.prompt_tokens_per_second * TRAINING_SPEED) + TRAINING_START


def _priced(work: sizes.Work, machine: Machine) -> StagePlan:
    """A stage's work on that machine."""
    return _generation(work, machine) if isinstance(work, sizes.Generation) else _training(work, machine)


def _generation(work: sizes.Generation, machine: Machine) -> StagePlan:
    requests = work.requests
    # Who copies a shared prefix between its slots computes it once.
    firsts = min(1 if machine.reads_prefix_once else machine.slots, requests)
    computed = round(requests * work.own) + work.shared * firsts
    cached = max(0, work.shared * (requests - firsts))
    # Steps after the first find their row's prompt in the slot's cache.
    cached += requests * (work.passes - 1) * (work.shared + 30)
    seconds = None
    if machine.speed:
        speed = machine.speed
        seconds = 0.0
        if requests:
            seconds = work.generated / (speed.rate(machine.slots) * PACE)
            seconds += computed / speed.prompt_tokens_per_second + speed.load_seconds
        if work.scored:
            seconds += work.scored / (speed.prompt_tokens_per_second * SCORING_SPEED) + SCORING_START
    return StagePlan(work.stage, requests, computed, cached, work.generated, requests * work.limit, seconds)


def _training(work: sizes.Training, machine: Machine) -> StagePlan:
    seconds = None
    if machine.speed:
        seconds = training_seconds(work.tokens, machine.speed)
        seconds += 0 if machine.converted or work.stage != "engrave" else _CONVERSION
    return StagePlan(work.stage, 0, 0, 0, work.tokens, work.tokens, seconds)


def write(path: Path, value: Plan) -> None:
    """Keep the plan in the run, to be compared with what it really took."""
    atomic.write_text(path, json.dumps(value.as_dict(), indent=1) + "\n")


def read(path: Path) -> Plan | None:
    """A run's plan, if it has one."""
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text("utf-8"))
        return Plan(**{**value, "stages": [StagePlan(**s) for s in value["stages"]]})
    except (ValueError, TypeError, KeyError):  # another version's, or edited
        return None
