"""Compare the throughput of the engines `llama_cpp` and `torch` on this machine.

    python benchmarks/engines.py          # about 6 minutes

Sample: requests of stage 2 with the shipped constitution (its principles and general exemplars, then a question), the
embedded model, temperature 0.7, top_p 0.95, `engine.top_k` and `align.repetition` at their defaults; the end token is
banned, so that every response has 96 tokens, and each slot gets one request. The engines take turns; figures are
medians of 3 rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from selfalign import constitution as constitutions
from selfalign.constitution.rendering import query, render
from selfalign.data.prompt_text import BOS
from selfalign.generation import engines
from selfalign.generation.engines.base import Sampling, Step
from selfalign.generation.settings import EngineSettings
from selfalign.model import sources

TOKENS = 96
SETTINGS: dict[str, tuple[EngineSettings, int]] = {
    "llama_cpp, 8 slots": (EngineSettings(kind="llama_cpp"), 8),
    "torch, 8 slots": (EngineSettings(kind="torch"), 8),
    "torch, 32 slots": (EngineSettings(kind="torch"), 32),
    "torch, 64 slots": (EngineSettings(kind="torch"), 64),
    "torch, float32, 64 slots": (EngineSettings(kind="torch", dtype="float32"), 64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    model, constitution = sources.resolve("embedded"), constitutions.load("default")
    prefix = (BOS, render(constitution))
    step = Step(Sampling(0.7, 0.95, TOKENS, top_k=1000, repetition=1.0, repetition_length=6, ban_eos=True))
    rates: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for _ in range(arguments.rounds):
        for name, (config, slots) in SETTINGS.items():
            engine = engines.start(config, model, {}, slots)
            engine.warm_prefix(prefix, None)

            def ask(n: int, engine: engines.Engine = engine) -> int:
                prompt = (*prefix, query(constitution, f"Tell me about the number {n}."))
                return engine.generate(prompt, step, n, None).generated_tokens

            rates[name].append(_rate(ask, slots))
            engine.close()
            print(f"{name:>26}: {rates[name][-1]:5.0f} tokens/s", flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print({name: round(value) for name, value in medians.items()})
    print(f"engines.torch_ratio {medians['torch, 64 slots'] / medians['llama_cpp, 8 slots']:.2f}")
    print(f"engines.torch_float32_ratio {medians['torch, float32, 64 slots'] / medians['llama_cpp, 8 slots']:.2f}")


def _rate(ask: Callable[[int], int], slots: int) -> float:
    """Return generated tokens per second, after a first request that computes the prefix."""
    ask(-1)
    start = time.monotonic()
    with ThreadPoolExecutor(slots) as pool:
        tokens = sum(pool.map(ask, range(slots)))
    return tokens / (time.monotonic() - start)


if __name__ == "__main__":
    main()
