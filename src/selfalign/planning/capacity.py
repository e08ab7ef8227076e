"""Estimate replicas, time, GPU-hours, memory and storage of each stage of a recipe on a cluster of GPUs.

The cost model (docs/capacity.md): decoding reads the weights and the keys and values of every sequence at each step;
prefill and training are limited by arithmetic. Each reaches a fraction of the vendor's figure. These fractions are
public measurements, not ours, so times come with a range.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from selfalign.constitution import Constitution
from selfalign.planning import sizes
from selfalign.planning.clusters import Cluster
from selfalign.planning.hardware import Gpu, Shape
from selfalign.planning.sizes import Generation, Training
from selfalign.run.recipe import Recipe
from selfalign.training.settings import TrainingSettings

BANDWIDTH = 0.75
"""Fraction of the memory bandwidth in decoding: 77 % on one A100 (Llama 3.1 8B in vLLM, one request)."""
COMPUTE = 0.5
"""Fraction of the FLOP/s in prefill and batched decoding: 43 and 48 % on one A100 (TensorRT-LLM, 7B)."""
TRAINING = 0.35
"""The same in LoRA training: 36 % (70B) and 34 % (7B) on eight H100 (NeMo)."""
STEP = 0.003
"""Seconds of a decoding step outside its kernels: scheduler, sampling, launches."""
REDUCE = 20e-6
"""Minimum seconds of an all-reduce; each layer has two."""
SPEED_RANGE = 1.5
"""Factor by which times may be shorter or longer; docs/capacity.md compares with public figures."""
LENGTH_FRACTIONS = (0.25, 0.5, 1.0)
"""Lengths of a large model's responses as fractions of their limits: low, expected, high."""
ENGINE_MEMORY, TRAINING_MEMORY = 0.9, 0.92
"""Fractions of a GPU's memory that may be used; 0.9 is vLLM's default."""
RESERVE = 2e9
"""Bytes of a GPU for its context, graphs and activations."""
_START, _READ = 120.0, 1e9
"""Seconds to start an engine or a training, and bytes/s to read the weights."""
_SLOTS = 64
"""Requests at once of a vLLM engine with slots: auto (`engines.default_slots`)."""
_MORE_SLOTS = 256
"""Requests at once that a note suggests if they shorten generation."""
_ROWS_AT_ONCE = 8
"""Maximum rows per GPU, as in `export launch`."""
_PADDING = 1.15
_OPTIMISER = 16
"""Bytes per parameter of the adapter: weight, gradient and two moments in float32."""
_MAX_GPUS = 64
"""Largest node that `_problem` tries."""


@dataclass(frozen=True, slots=True)
class StageCapacity:
    """The plan of one stage on the cluster. Times in seconds; None if it does not fit."""

    stage: str
    kind: str
    """generate; ddp or fsdp for training, as `export RUN launch --strategy` takes them."""
    requests: int
    prompt_tokens: int
    """Prompt tokens that are computed; a shared prefix once per replica."""
    generated_tokens: int
    """Expected; for training, training tokens."""
    generated_low: int
    at_most: int
    gpus_per_replica: int
    """0 if it does not fit."""
    replicas: int
    at_once: int
    """Requests per replica, or rows per GPU, that are computed together."""
    memory_gb: float
    """Memory of the fullest GPU."""
    seconds: float | None
    seconds_low: float | None
    seconds_high: float | None
    gpu_hours: float | None
    """All GPUs of the cluster, for that time."""
    storage_mb: float
    """Size of its files and checkpoints."""
    problem: str = ""
    """Why it does not fit."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The plan of a recipe on a cluster."""

    cluster: str
    gpus: int
    model: str
    parameters: int
    weights_gb: float
    """Size in 16 bits, on each node's disk or on a shared one."""
    stages: list[StageCapacity]
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"seconds": self.total("seconds"), "gpu_hours": self.total("gpu_hours")}

    def total(self, name: str) -> float | None:
        """Return the sum of a field over the stages; None if a stage does not fit."""
        values = [getattr(stage, name) for stage in self.stages]
        return None if None in values else float(sum(values))


@dataclass(frozen=True, slots=True)
class Fit:
    """A way to place a stage on the GPUs."""

    seconds: float
    gpus: int
    """GPUs of a replica; all GPUs for training."""
    replicas: int
    at_once: int
    memory: float
    kind: str = "generate"


# -- generation ------------------------------------------------------------------------------------------------------


def step_seconds(shape: Shape, gpu: Gpu, gpus: int, batch: float, context: float) -> float:
    """Return the time of one token for each of `batch` sequences of `context` tokens, with the model on `gpus` GPUs."""
    read = 2 * shape.computed / gpus + batch * context * shape.kv_bytes / min(gpus, shape.kv_heads)
    attention = 4 * shape.layers * shape.heads * shape.head * context
    computed = batch * (2 * shape.computed + attention) / gpus
    reduced = 0.0
    if gpus > 1:
        sent = 2 * (gpus - 1) / gpus * batch * shape.hidden * 2
        reduced = 2 * shape.layers * (REDUCE + sent / gpu.link)
    return read / (gpu.bandwidth * BANDWIDTH) + computed / (gpu.flops * COMPUTE) + reduced + STEP


def prefill_seconds(shape: Shape, gpu: Gpu, gpus: int, tokens: float) -> float:
    """Return the time to process prompt tokens."""
    reduced = 2 * shape.layers * 2 * (gpus - 1) / gpus * shape.hidden * 2 / gpu.link if gpus > 1 else 0.0
    return tokens * (2 * shape.computed / gpus / (gpu.flops * COMPUTE) + reduced)


def max_batch(work: Generation, shape: Shape, gpu: Gpu, gpus: int) -> int:
    """Return how many requests' keys and values fit next to the weights; 0 if the longest does not fit."""
    split = min(gpus, shape.kv_heads)
    free = gpu.memory * ENGINE_MEMORY - RESERVE - 2 * shape.parameters / gpus
    token = shape.kv_bytes / split
    if free < token * (work.shared + work.own + work.limit):
        return 0
    return int((free - token * work.shared) / (token * (work.own + work.tokens)))


def fit_generation(work: Generation, shape: Shape, cluster: Cluster, slots: int) -> Fit | None:
    """Return the fastest placement of the stage on the cluster; None if it does not fit."""
    best: Fit | None = None
    for gpus in splits(shape, cluster.gpus_per_node):
        rows = max_batch(work, shape, cluster.gpu, gpus)
        if rows < 1:
            continue
        waiting = max(1.0, work.requests / work.rounds)  # rounds wait for each other
        replicas = max(1, min(cluster.nodes * (cluster.gpus_per_node // gpus), math.floor(waiting)))
        batch = max(1.0, min(slots, rows, waiting / replicas))
        seconds = _generation_seconds(work, shape, cluster.gpu, gpus, replicas, batch)
        if best is None or seconds < best.seconds:
            cached = work.shared + batch * (work.own + work.tokens)
            memory = 2 * shape.parameters / gpus + RESERVE + cached * shape.kv_bytes / min(gpus, shape.kv_heads)
            best = Fit(seconds, gpus, replicas, round(batch), memory)
    return best


def _generation_seconds(work: Generation, shape: Shape, gpu: Gpu, gpus: int, replicas: int, batch: float) -> float:
    if not work.requests:
        return 0.0
    context = work.shared + work.own + work.tokens / 2
    steps = work.total / replicas / batch
    prompts = (work.requests * work.own + work.scored) / replicas + work.shared
    # At the end of a round, slots become idle one after the other.
    idle = work.rounds * work.tokens / 2 * step_seconds(shape, gpu, gpus, 1, context)
    seconds = steps * step_seconds(shape, gpu, gpus, batch, context) + prefill_seconds(shape, gpu, gpus, prompts)
    return seconds + idle


def splits(shape: Shape, most: int) -> list[int]:
    """Return the numbers of GPUs that a replica can use: powers of two that divide the heads."""
    return [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= most and shape.heads % n == 0]


# -- training --------------------------------------------------------------------------------------------------------


def training_memory(shape: Shape, adapter: int, tokens: int, sharded: int) -> float:
    """Return the bytes per GPU: bf16 weights, adapter and optimiser, checkpointed activations, logits.

    Args:
        tokens: tokens computed at once.
        sharded: number of GPUs that share the weights; 1 if each has all of them.
    """
    weights = 2 * shape.parameters / sharded
    if sharded > 1:  # two layers and an embedding are gathered at a time
        weights += 2 * (2 * shape.body / shape.layers + shape.vocabulary * shape.hidden)
    checkpoints = tokens * shape.hidden * 2 * shape.layers
    logits = tokens * shape.vocabulary * 10  # in 16 bits, in float32, and their gradient
    return weights + _OPTIMISER * adapter / sharded + checkpoints + layer_bytes(shape, tokens) + logits + RESERVE


def layer_bytes(shape: Shape, tokens: int) -> int:
    """Return the bytes that one layer keeps for its backward pass, in 16 bits."""
    return tokens * 2 * (10 * shape.hidden + 4 * shape.inner)


def fit_training(work: Training, shape: Shape, cluster: Cluster, config: TrainingSettings) -> Fit | None:
    """Return the fastest training, with whole weights on each GPU or sharded over all; None if none fits."""
    adapter = shape.adapter(config.rank, list(config.targets))
    best: Fit | None = None
    for nodes in range(1, cluster.nodes + 1):
        gpus = nodes * cluster.gpus_per_node
        for kind in ("ddp", "fsdp"):
            sharded = gpus if kind == "fsdp" else 1
            each = math.ceil(work.batch / gpus)  # a batch is rounded up, as `export launch` does
            for rows in (n for n in range(min(_ROWS_AT_ONCE, each), 0, -1) if each % n == 0):
                memory = training_memory(shape, adapter, rows * work.longest, sharded)
                if memory > cluster.gpu.memory * TRAINING_MEMORY:
                    continue
                transfer = _transfer_seconds(shape, cluster, nodes, sharded)
                seconds = _training_seconds(work, shape, cluster.gpu, gpus, rows, transfer)
                if best is None or seconds < best.seconds:
                    best = Fit(seconds, gpus, 1, rows, memory, kind)
                break
    return best


def _training_seconds(work: Training, shape: Shape, gpu: Gpu, gpus: int, rows: int, transfer: float) -> float:
    """Return the time of training: six FLOPs per parameter and token (two forward passes, one backward)."""
    computed = rows * work.length * _PADDING * 6 * shape.computed / (gpu.flops * TRAINING)
    return work.examples * work.epochs / gpus / rows * max(computed, transfer)


def _transfer_seconds(shape: Shape, cluster: Cluster, nodes: int, sharded: int) -> float:
    """Return the time to gather sharded weights three times per step; it overlaps with arithmetic."""
    if sharded == 1:
        return 0.0
    inside = min(sharded, cluster.gpus_per_node)
    within = 2 * shape.parameters * (inside - 1) / inside / cluster.gpu.link
    across = 2 * shape.parameters * (nodes - 1) / nodes / cluster.network
    return 3 * max(within, across)


# -- a recipe --------------------------------------------------------------------------------------------------------


def plan(
    recipe: Recipe, constitution: Constitution, cluster: Cluster, shape: Shape, user_prompts: int | None = None
) -> Capacity:
    """Return the plan of the recipe on the cluster.

    Args:
        user_prompts: number of user prompts, which replace stage 1; None without.
    """
    small = shape.name == "270m"  # its lengths were measured
    lengths = [sizes.EMBEDDED if small else sizes.fraction_of_limits(recipe, fraction) for fraction in LENGTH_FRACTIONS]
    works = [sizes.stage_work(recipe, constitution, user_prompts, length) for length in lengths]
    slots = recipe.engine.slots if isinstance(recipe.engine.slots, int) else _SLOTS
    planner = _Planner(recipe, cluster, shape, slots)
    stages = [planner.stage(low, middle, high) for low, middle, high in zip(*works, strict=True)]
    weights = 2 * shape.parameters / 1e9
    notes = _notes(stages, planner, works[1])
    return Capacity(cluster.text(), cluster.gpus, shape.name, shape.parameters, weights, stages, notes)


class _Planner:
    """Plans the stages of a recipe on a cluster."""

    def __init__(self, recipe: Recipe, cluster: Cluster, shape: Shape, slots: int) -> None:
        self.recipe, self.cluster, self.shape, self.slots = recipe, cluster, shape, slots
        self.start = _START + 2 * shape.parameters / _READ

    def fit(self, work: sizes.Work, cluster: Cluster | None = None) -> Fit | None:
        cluster = cluster or self.cluster
        if isinstance(work, Generation):
            return fit_generation(work, self.shape, cluster, self.slots)
        return fit_training(work, self.shape, cluster, self.recipe.training(work.stage))

    def stage(self, low: sizes.Work, middle: sizes.Work, high: sizes.Work) -> StageCapacity:
        fits = [self.fit(work) for work in (low, middle, high)]
        times = [None if fit is None else fit.seconds + self._start_seconds(middle) for fit in fits]
        fit = fits[1]
        requests = prompts = 0
        if isinstance(middle, Generation):
            requests = middle.requests
            prompts = round(requests * middle.own) + middle.shared * min(fit.replicas if fit else 1, requests)
        most = requests * middle.limit if isinstance(middle, Generation) else high.total
        return StageCapacity(
            stage=middle.stage,
            kind=fit.kind if fit else "",
            requests=requests,
            prompt_tokens=prompts,
            generated_tokens=middle.total,
            generated_low=low.total,
            at_most=most,
            gpus_per_replica=fit.gpus if fit else 0,
            replicas=fit.replicas if fit else 0,
            at_once=fit.at_once if fit else 0,
            memory_gb=round(fit.memory / 1e9, 1) if fit else 0.0,
            seconds=times[1],
            seconds_low=None if times[0] is None else times[0] / SPEED_RANGE,
            seconds_high=None if times[2] is None else times[2] * SPEED_RANGE,
            gpu_hours=None if times[1] is None else times[1] * self.cluster.gpus / 3600,
            storage_mb=round(self._storage(middle), 1),
            problem="" if fit else self._problem(middle),
        )

    def _start_seconds(self, work: sizes.Work) -> float:
        """Return the start time of the stage: an engine starts first and after each training; each training starts."""
        stages = self.recipe.stages
        first = {"self_instruct"} if "prompts" in stages else {"align"}
        counts = isinstance(work, Training) or work.stage in first | {
            "pairs",
            "on_policy",
            "verbose_responses",
            "evaluate",
        }
        return self.start if counts else 0.0

    def _storage(self, work: sizes.Work) -> float:
        if isinstance(work, Generation):  # journal, the stage's file, drops
            return (work.requests * 1500 + work.total * 4.4 * 2) / 1e6
        config = self.recipe.training(work.stage)
        adapter = self.shape.adapter(config.rank, list(config.targets))
        # PEFT and GGUF in float32, two checkpoints with moments, the encoded rows.
        return (adapter * (4 + 4 + 2 * 12) + work.examples * work.length * 14) / 1e6

    def _problem(self, work: sizes.Work) -> str:
        """Return how many GPUs of that kind a single node would need."""
        cluster, size = self.cluster, f"{self.shape.name} ({2 * self.shape.parameters / 1e9:,.0f} GB in 16 bits)"
        kind, where = "training", f"there are {cluster.gpus}"
        if isinstance(work, Generation):
            kind, where = "a replica", f"a node has {cluster.gpus_per_node}"
        for gpus in range(1, _MAX_GPUS + 1):
            if self.fit(work, Cluster(1, gpus, cluster.gpu, cluster.network)):
                return f"{size} needs {gpus} {cluster.gpu.name} for {kind}; {where}"
        return f"{size} needs more than {_MAX_GPUS} {cluster.gpu.name} for {kind}"


def _notes(planned: list[StageCapacity], planner: _Planner, works: list[sizes.Work]) -> list[str]:
    """Return advice for the user, one line each."""
    notes = list(dict.fromkeys(stage.problem for stage in planned if stage.problem))
    wide = _Planner(planner.recipe, planner.cluster, planner.shape, _MORE_SLOTS)
    generations = [w for w in works if isinstance(w, Generation)]
    now, then = (sum(f.seconds for w in generations if (f := p.fit(w))) for p in (planner, wide))
    if planner.slots < _MORE_SLOTS and then < 0.85 * now:
        notes.append(
            f"--set engine.slots={_MORE_SLOTS} would shorten generation from {now / 3600:.1f} to {then / 3600:.1f} h"
        )
    if (most := max((s.gpus_per_replica for s in planned if s.kind == "generate"), default=0)) > 1:
        notes.append(
            f"replicas use {most} GPUs: --set engine.tensor_parallel_size={most}, or a server (`vllm serve "
            f"--tensor-parallel-size {most}`, engine.kind=openai)"
        )
    trained = {stage.stage: stage.kind for stage in planned if stage.kind in ("ddp", "fsdp")}
    for kind in sorted(set(trained.values())):
        stages = [stage for stage, its in trained.items() if its == kind]
        which = f" of {' and '.join(stages)}" if len(set(trained.values())) > 1 else ""
        notes.append(f"training{which}: `selfalign export RUN launch --strategy {kind}` (docs/training.md)")
    return notes
