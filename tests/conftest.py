"""What several test files need: reproducible property tests, a run on the fake engine, a guard against hanging."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from selfalign import constitution as constitutions
from selfalign import recipe as recipes
from selfalign.constitution import Constitution
from selfalign.context import Context
from selfalign.engines.fake import Fake, default_script
from selfalign.progress import Screen
from selfalign.run import RunDir

# The public benchmarks, where they lie beside the checkout; tests that need them are skipped elsewhere.
_BESIDE = Path(__file__).parents[2] / "shared/data"
if _BESIDE.is_dir():
    os.environ.setdefault("SELFALIGN_BENCHMARKS", str(_BESIDE))

settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fixed")


@contextmanager
def hang_guard(limit: float = 20.0) -> Iterator[None]:
    """Fail where the block hangs, a regex included: processor seconds far beyond what any machine needs for it."""

    def too_slow(*_: object) -> None:
        raise AssertionError(f"took more than {limit} s of processor time")

    before = signal.signal(signal.SIGVTALRM, too_slow)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@pytest.fixture(scope="session")
def default_constitution() -> Constitution:
    return constitutions.load("default")


@pytest.fixture
def fake_run(tmp_path: Path, default_constitution: Constitution) -> Iterator[Callable[..., Context]]:
    """Makes contexts on the fake engine: `fake_run("align.form=paper", name="a", script=...)`."""
    made: list[Context] = []

    def make(*sets: str, name: str = "run", texts: Constitution | None = None, **fake: Any) -> Context:
        recipe = recipes.load("quick", ["engine.kind=fake", *sets])
        texts = texts or default_constitution
        context = Context(RunDir.create(tmp_path / name, recipe, texts), Screen(-1))
        context._engine = Fake(parallel=context.slots(), **{"script": default_script, **fake})
        context._engine_for = tuple(context.identities().values())
        made.append(context)
        return context

    yield make
    for context in made:
        context.release_engine()
        context.journal.close()


@pytest.fixture
def tiny_gemma() -> Any:
    """A small random model of the embedded model's architecture, frozen."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(1)
    config = Gemma3TextConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=8, max_position_embeddings=128,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config)
    model.requires_grad_(False)
    return model


@pytest.fixture
def tiny_llama() -> Any:
    """A small random Llama, frozen."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.requires_grad_(False)
    return model
