"""Check that a recipe fits on the GPUs of this machine, and state how much memory is missing."""

from __future__ import annotations

from selfalign.errors import UserError
from selfalign.generation import engines
from selfalign.model.base_model import Model
from selfalign.planning import capacity
from selfalign.planning.hardware import Shape, read_shape
from selfalign.run.context import ADAPTER_STAGES
from selfalign.run.recipe import Recipe
from selfalign.system import gpu
from selfalign.system.environment import accelerators
from selfalign.system.gpu import GpuMemory


def problems(recipe: Recipe, model: Model | None) -> list[str]:
    """Return why the recipe cannot run here, one line each; an empty list if it can, or if that is unknown.

    Raises:
        UserError: the GPU's driver does not answer.
    """
    if model is None or model.is_fake:
        return []
    trains = bool(set(ADAPTER_STAGES) & set(recipe.stages)) and not recipe.engrave.elsewhere
    if not accelerators():
        needs_gpu = trains and recipe.engrave.device == "cuda"
        return ["this machine has no GPU, and engrave.device is cuda: set it to auto to train on the CPU"] * needs_gpu
    folder = model.existing_folder()
    cards = gpu.visible() if folder and recipe.executor.kind == "local" else []
    if not folder or not cards:
        return []
    try:
        shape = read_shape(folder)
    except UserError:  # such as a mixture of experts, which the planner does not support
        return []
    least = min(cards, key=lambda card: card.total_mb)
    found = []
    if engines.kind(recipe.engine) in engines.VLLM:
        found.append(_generation(recipe, shape, least))
    if trains and recipe.engrave.device == "cuda":  # auto may train on the CPU
        found.append(_training(recipe, shape, least))
    return [line for line in found if line]


def _generation(recipe: Recipe, shape: Shape, card: GpuMemory) -> str:
    """Return what is missing for vLLM: it needs room for the weights and one request of `engine.context` tokens."""
    config = recipe.engine
    wide = 2 if config.dtype == "float32" else 1
    split = min(config.tensor_parallel_size, shape.kv_heads)
    other = capacity.RESERVE + wide * shape.kv_bytes * config.context / split
    weights = 2 * wide * shape.parameters / config.tensor_parallel_size
    advice = f"or lower engine.context ({config.context}), or raise engine.tensor_parallel_size on several GPUs"
    return _missing("vLLM", shape, card, capacity.ENGINE_MEMORY, weights, other, advice)


def _training(recipe: Recipe, shape: Shape, card: GpuMemory) -> str:
    """Return what is missing for training on one row of `max_length` tokens at a time."""
    config = recipe.engrave
    wide = 2 if config.dtype == "float32" else 1
    adapter = shape.adapter(config.rank, list(config.targets))
    tokens = max(recipe.training(stage).max_length for stage in ADAPTER_STAGES)
    other = capacity.training_memory(shape, adapter, tokens, 1) - 2 * shape.parameters
    advice = "or train on several GPUs (engrave.elsewhere)"
    if not config.gradient_checkpointing:  # every layer keeps what it computes, not one at a time
        other += (shape.layers - 1) * capacity.layer_bytes(shape, tokens)
        advice = f"or set engrave.gradient_checkpointing, {advice}"
    return _missing("training", shape, card, capacity.TRAINING_MEMORY, 2 * wide * shape.parameters, other, advice)


def _missing(what: str, shape: Shape, card: GpuMemory, usable: float, weights: float, other: float, advice: str) -> str:
    needed, memory = (weights + other) / usable, card.total_mb * 1e6
    if needed <= memory:
        return ""
    largest = max(0.0, memory * usable - other) / weights * shape.parameters
    return (
        f"{what} with {shape.name} ({shape.parameters / 1e9:.1f} billion parameters) needs a GPU with "
        f"{needed / 1e9:.0f} GB, and {card.name} has {memory / 1e9:.0f} GB, {(needed - memory) / 1e9:.1f} GB too few: "
        f"use a base of up to {largest / 1e9:.1f} billion parameters, {advice}"
    )
