"""What a run will cost, before anything is spent: requests, tokens, time, memory and disk of each stage.

Sizes follow from the recipe; speeds from `calibrate`; how many tokens a row takes from what the embedded model needed
(docs/measurements.md). So requests and the most tokens are sound, and times are estimates: a run prints them beside
what it really took.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from selfalign import atomic, engines
from selfalign.calibrate import Calibration
from selfalign.constitution import Constitution
from selfalign.constitution.render import render
from selfalign.models import Model
from selfalign.recipe import Recipe

TOKENS = {"topic": 51, "question": 13, "thought": 20, "citation": 20, "answer": 70, "verbose": 55, "evaluation": 52}
"""Generated tokens of a row, as the embedded model needs them."""
_PROMPTS_PER_REQUEST = 4.5
"""Prompts that one request of Self-Instruct yields, after the filters."""
_QUESTIONS_KEPT = 0.8
_TOPICS_PER_REQUEST = 3
_ANSWERS_KEPT = 0.9
_EXAMPLE_TOKENS = 95
_EFFICIENCY = 0.8
"""Tokens a second in a stage against the calibration's: slots fall idle at a stage's end, and cues are computed."""
_TRAINING_SPEED = 0.36
"""Training tokens a second against prompt tokens a second of the engine: forward and backward in float32."""
_TRAINING_START = 40
_SCORING_SPEED = 0.6
_SCORING_START = 15
_EVALUATION_EFFICIENCY = 0.5
_CONVERSION = 70
_CHARACTERS_PER_TOKEN = 4.4
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
    folder = model.made_folder() if model else None
    engine_bytes = model.gguf_path.stat().st_size if model and model.gguf_path else 0
    # 4-bit weights are about an eighth of float32's; what stays in more bits makes it less.
    weights = sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder else engine_bytes * 4.5
    kind = engines.kind(recipe.engine)
    return Machine(
        slots,
        speed,
        weights / 1e6,
        folder is not None or model is None,
        kind in ("llama_cpp", "vllm"),
        recipe.engine.context,
        engine_bytes / 1e6,
    )


def make(
    recipe: Recipe, constitution: Constitution, model: Model | None, speed: Calibration | None, own_prompts: int | None
) -> Plan:
    """The plan of a recipe here. Takes the same as `here` and `plan`."""
    return plan(recipe, constitution, here(recipe, model, speed), own_prompts)


def plan(recipe: Recipe, constitution: Constitution, machine: Machine, own_prompts: int | None = None) -> Plan:
    """The plan of a recipe on that machine.

    Args:
        own_prompts: rows of the user's own file, which takes the place of stage 1.
    """
    made = _Planner(recipe, constitution, machine, own_prompts)
    stages = made.stages()
    rows = sum(s.requests for s in stages) + made.prompts * 3
    adapters = sum(s.stage in ("engrave", "clone") for s in stages) * machine.weights_mb * 0.02
    trains = any(s.stage in ("engrave", "clone") for s in stages)
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


def training_megabytes(weights_mb: float, tokens_at_once: int = 1024) -> float:
    """Memory that training takes: the weights (float32), what the layers keep of each token, a chunk of the head.

    Fitted to the embedded model's 3.7 GB (benchmarks/training.py); layers and width grow slower than the weights.
    """
    return float(weights_mb * 1.3 + tokens_at_once * 1.1 * (weights_mb / 1072) ** 0.67 + 1300)


def training_seconds(tokens: int, speed: Calibration) -> float:
    """Time that training on so many tokens takes, its start included."""
    return tokens / (speed.prompt_tokens_per_second * _TRAINING_SPEED) + _TRAINING_START


class _Planner:
    def __init__(self, recipe: Recipe, constitution: Constitution, machine: Machine, own_prompts: int | None) -> None:
        self._recipe = recipe
        self._constitution = constitution
        self._machine = machine
        self._own = own_prompts
        wanted = recipe.prompts
        self.prompts = own_prompts if own_prompts is not None else wanted.self_instruct.count + wanted.red_team.count
        self._heldout = min(recipe.evaluate.run_on, self.prompts // 2)
        self._identity = len(dict.fromkeys(p.question for p in constitution.identity))

    def stages(self) -> list[StagePlan]:
        found: list[StagePlan] = []
        for stage in self._recipe.stages:
            if stage == "prompts" and self._own is None:
                found += self._write_prompts()
            elif stage == "align":
                found.append(self._align())
            elif stage == "engrave":
                kept = round((self.prompts - self._heldout) * _ANSWERS_KEPT) + len(self._constitution.identity)
                found.append(self._train("engrave", kept, self._recipe.engrave.epochs))
            elif stage == "clone":
                verbose = self._verbose()
                epochs = self._recipe.clone.epochs or self._recipe.engrave.epochs
                found += [verbose, self._train("clone", round(verbose.requests * _ANSWERS_KEPT), epochs)]
            elif stage == "evaluate":
                rows, config = 3 * self._heldout + 4 * self._situations(), self._recipe.evaluate
                answers = self._generated("evaluate", rows, 30, 20, TOKENS["evaluation"], config.max_new_tokens)
                found.append(self._with_scoring(answers))
        return found

    def _situations(self) -> int:
        """What the behaviour task asks each of four models, where the recipe has it."""
        from selfalign.evaluation import situations

        wanted = "behaviour" in self._recipe.evaluate.tasks
        return len(situations.load(None, self._constitution).items) if wanted else 0

    def _generated(self, stage: str, requests: int, own: int, shared: int, tokens: float, limit: int) -> StagePlan:
        """A stage of requests, each with `own` prompt tokens and `shared` ones that all begin with."""
        machine = self._machine
        once = 1 if machine.reads_prefix_once else machine.slots
        computed = requests * own + (shared * min(once, requests))
        cached = max(0, requests * shared - shared * min(once, requests))
        generated = round(requests * min(tokens, limit))
        seconds = None
        if machine.speed:
            seconds = generated / (machine.speed.rate(machine.slots) * _EFFICIENCY)
            seconds += computed / machine.speed.prompt_tokens_per_second + machine.speed.load_seconds
        return StagePlan(stage, requests, computed, cached, generated, requests * limit, seconds)

    def _write_prompts(self) -> list[StagePlan]:
        wanted, found = self._recipe.prompts, []
        tasks, questions = wanted.self_instruct, wanted.red_team
        if tasks.count:
            # In rounds of at most so many requests; the first assumes two prompts a request.
            missing, requests = float(tasks.count), 0
            while missing > 0:
                rate = 2.0 if not requests else _PROMPTS_PER_REQUEST
                size = min(tasks.requests_per_round, max(4, round(missing / rate)))
                requests += size
                missing -= size * _PROMPTS_PER_REQUEST
            own = 40 * tasks.seeds_per_request
            limit = tasks.max_new_tokens  # the end token is banned: every request runs to it
            found.append(self._generated("self_instruct", requests, own, 80, limit, limit))
        if questions.count:
            types, known, requests = len(self._constitution.question_types), 1, 0
            for _ in range(questions.topic_rounds):
                asked = min(known, questions.topic_requests or known)
                requests += types * asked
                known += asked * _TOPICS_PER_REQUEST
            limit = min(128, questions.max_new_tokens)
            found.append(self._generated("topics", requests, 170, 60, TOKENS["topic"], limit))
            asked = math.ceil(questions.count / _QUESTIONS_KEPT)
            found.append(self._generated("red_team", asked, 35, 180, TOKENS["question"], questions.max_new_tokens))
        return found

    def _align(self) -> StagePlan:
        config = self._recipe.align
        if config.form == "given":
            return StagePlan("align", 0, 0, 0, 0, 0, 0.0 if self._machine.speed else None)
        prefix = round(len(render(self._constitution)) / _CHARACTERS_PER_TOKEN)
        thought = min(TOKENS["thought"], config.max_thought_tokens) + TOKENS["citation"]
        tokens = thought + min(TOKENS["answer"], config.max_new_tokens)
        guided = config.form == "guided"
        limit = config.max_new_tokens + (config.max_thought_tokens + 64 if guided else 0)
        # Guided rows read the prefix once for each of three steps.
        plan = self._generated("align", self.prompts, 35, prefix, tokens, limit)
        extra = plan.requests * 2 * (prefix + 30) if guided else 0
        return replace(plan, cached_tokens=plan.cached_tokens + extra)

    def _with_scoring(self, answers: StagePlan) -> StagePlan:
        """The held-out responses are scored under each model, too."""
        machine = self._machine
        if machine.speed is None or answers.seconds is None:
            return answers
        tokens = answers.requests * _ANSWERS_KEPT * _EXAMPLE_TOKENS
        scoring = tokens / (machine.speed.prompt_tokens_per_second * _SCORING_SPEED) + _SCORING_START
        # Answers of models that run on end at different times, and the penalty on repetition costs its part.
        return replace(answers, seconds=answers.seconds * _EFFICIENCY / _EVALUATION_EFFICIENCY + scoring)

    def _verbose(self) -> StagePlan:
        config, train = self._recipe.clone, self.prompts - self._heldout
        rows = min(train, config.prompts or train) + self._identity
        shared = round(len(self._constitution.inference_prompt("verbose")) / _CHARACTERS_PER_TOKEN)
        return self._generated("verbose", rows, 25, shared, TOKENS["verbose"], config.max_new_tokens)

    def _train(self, stage: str, examples: int, epochs: int) -> StagePlan:
        machine, tokens = self._machine, examples * _EXAMPLE_TOKENS * epochs
        seconds = None
        if machine.speed:
            seconds = training_seconds(tokens, machine.speed)
            seconds += 0 if machine.converted or stage != "engrave" else _CONVERSION
        return StagePlan(stage, 0, 0, 0, tokens, tokens, seconds)


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
