"""Estimate the requests, tokens, time, memory and disk of each stage of a run on this machine.

Sizes follow from the recipe (`sizes`), speeds from `calibrate`. Numbers of requests are exact in stages with one
request for each row, and expected numbers in stage 1, and in stage 2 with several samples. Times are estimates, which a
run prints next to the actual times. `capacity` does the same for a cluster.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from selfalign.constitution import Constitution
from selfalign.generation import engines
from selfalign.generation.calibration import Calibration
from selfalign.model.base_model import Model
from selfalign.planning import sizes
from selfalign.run.context import ADAPTER_STAGES
from selfalign.run.recipe import Recipe
from selfalign.system import atomic

THROUGHPUT_FACTOR = 0.73
"""Tokens per second in a stage, relative to the calibration (`benchmarks/planner.py fit`)."""
TRAINING_SPEED, TRAINING_START = 0.37, 21.0
"""Training tokens per second relative to the engine's prompt tokens per second, 159 to 431
(`training.ratio_trl_defaults`), and the start in seconds (`training.overhead`)."""
SCORING_SPEED, SCORING_START = 0.6, 8.0
"""The same for log-probabilities: 270 tokens/s for TruthfulQA's choices; loading takes 8 seconds
(benchmarks/training.py)."""
FORWARD_SHARE = 1 / 3
"""The work of a forward pass without a backward pass, relative to both."""
_CONVERSION = 70
"""Seconds to convert the embedded model's weights."""
_ROW_BYTES = 2600
"""Bytes of a row in the journal, in the stage's file and in drops.jsonl."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """The plan of one stage."""

    stage: str
    """Name of its ledger."""
    requests: int
    prompt_tokens: int
    """Prompt tokens that are computed."""
    cached_tokens: int
    """Prompt tokens that come from the cache."""
    generated_tokens: int
    """For training: training tokens of all epochs."""
    at_most: int
    """Generated tokens if every row reaches its limit."""
    seconds: float | None
    """None if the speed is unknown, as for a server."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a run."""

    stages: list[StagePlan]
    memory_mb: float | None
    """Peak memory."""
    disk_mb: float
    """Size of the run directory."""
    cache_mb: float
    """Size of the converted weights, if they are not in the cache yet."""
    slots: int
    """Requests at once."""
    problems: list[str] = field(default_factory=list)
    """Why the recipe cannot run on this machine, one line each."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def seconds(self) -> float | None:
        """The time of all stages; None if one is unknown."""
        times = [s.seconds for s in self.stages]
        return None if None in times else sum(t for t in times if t is not None)


@dataclass(frozen=True, slots=True)
class Machine:
    """The properties of this machine and the model that a plan depends on."""

    slots: int
    speed: Calibration | None
    weights_mb: float
    """Size of the torch weights in float32; 0 without a model."""
    converted: bool
    """Whether they are in the cache already."""
    reads_prefix_once: bool
    """Whether the engine copies a shared prefix between its slots."""
    context: int
    engine_mb: float
    """Size of the engine's weights."""


def describe_machine(recipe: Recipe, model: Model | None, speed: Calibration | None) -> Machine:
    """Return the properties of this machine for the recipe and the model.

    Args:
        speed: the calibration of llama.cpp; None for other engines.
    """
    slots = recipe.engine.slots
    if slots == "auto":
        slots = speed.slots if speed else engines.default_slots(recipe.engine)
    folder = model.existing_folder() if model else None
    engine_bytes = model.gguf_path.stat().st_size if model and model.gguf_path else 0
    # 4-bit weights are about an eighth of the size of float32 weights; some tensors keep more bits.
    weights = sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder else engine_bytes * 4.5
    kind = engines.kind(recipe.engine)
    return Machine(
        slots,
        speed,
        weights / 1e6,
        folder is not None or model is None or model.is_fake,
        kind in ("llama_cpp", "torch", *engines.VLLM),
        recipe.engine.context,
        engine_bytes / 1e6,
    )


def plan(recipe: Recipe, constitution: Constitution, machine: Machine, user_prompts: int | None = None) -> Plan:
    """Return the plan of a recipe on a machine.

    Args:
        user_prompts: number of user prompts, which replace stage 1; None without.
    """
    stages = [
        _generation(work, machine) if isinstance(work, sizes.Generation) else _training(work, machine)
        for work in sizes.stage_work(recipe, constitution, user_prompts)
    ]
    rows = sum(s.requests for s in stages) + sizes.prompt_count(recipe, user_prompts) * 3
    adapters = sum(s.stage in ADAPTER_STAGES for s in stages) * machine.weights_mb * 0.02
    trains = any(s.stage in ADAPTER_STAGES for s in stages)
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
    """Return the memory of training: float32 weights, activations of each token, and a chunk of the output head.

    Fitted to the embedded model's 3.7 GB (benchmarks/training.py); layers and width grow more slowly than the weights.
    """
    return float(weights_mb * 1.3 + micro_batch_tokens * 1.1 * (weights_mb / 1072) ** 0.67 + 1300)


def training_seconds(tokens: int, speed: Calibration, reference: int = 0) -> float:
    """Return the seconds to train on that many tokens, including the start.

    Args:
        reference: tokens whose log-probabilities under the reference are computed.
    """
    return (tokens + FORWARD_SHARE * reference) / (speed.prompt_tokens_per_second * TRAINING_SPEED) + TRAINING_START


def _generation(work: sizes.Generation, machine: Machine) -> StagePlan:
    requests = work.requests
    # An engine that copies a shared prefix between its slots computes it only once.
    prefix_reads = min(1 if machine.reads_prefix_once else machine.slots, requests)
    computed = round(requests * work.own) + work.shared * prefix_reads
    cached = max(0, work.shared * (requests - prefix_reads))
    # After the first step, the row's prompt is in the slot's cache.
    cached += requests * (work.passes - 1) * (work.shared + 30)
    seconds = None
    if machine.speed:
        speed = machine.speed
        seconds = 0.0
        if requests:
            seconds = work.total / (speed.rate(machine.slots) * THROUGHPUT_FACTOR)
            seconds += computed / speed.prompt_tokens_per_second + speed.load_seconds
        if work.scored:
            seconds += work.scored / (speed.prompt_tokens_per_second * SCORING_SPEED) + SCORING_START
    return StagePlan(work.stage, requests, computed, cached, work.total, requests * work.limit, seconds)


def _training(work: sizes.Training, machine: Machine) -> StagePlan:
    seconds = None
    if machine.speed:
        # The base reads the anchors, too.
        seconds = training_seconds(work.total + work.anchors, machine.speed, work.reference + work.anchors)
        seconds += 0 if machine.converted or work.stage != "engrave" else _CONVERSION
    return StagePlan(work.stage, 0, 0, 0, work.total, work.total, seconds)


def write(path: Path, value: Plan) -> None:
    """Save the plan in the run, to compare it with the actual costs."""
    atomic.write_text(path, json.dumps(value.as_dict(), indent=1) + "\n")


def read(path: Path) -> Plan | None:
    """Read the plan of a run; None if there is none."""
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text("utf-8"))
        return Plan(**{**value, "stages": [StagePlan(**s) for s in value["stages"]]})
    except (ValueError, TypeError, KeyError):  # edited, or from another version
        return None
