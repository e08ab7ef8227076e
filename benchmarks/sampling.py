"""Measure the throughput of the samplers against greedy decoding.

    python benchmarks/sampling.py          # about 4 minutes

Sample: 8 short prompts, 100 generated tokens each, 8 slots, the embedded model, temperature 0.7, top_p 0.95. "greedy"
is temperature 0; "penalty" is `align.repetition` at its default. The settings take turns; figures are medians of 5
rounds.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from selfalign.generation.engines.base import Sampling, Step
from selfalign.generation.engines.llama_cpp import LlamaCpp
from selfalign.model import sources

REPETITION = 1.0
"""The default of `align.repetition`."""
SETTINGS: dict[str, Sampling] = {
    "greedy": Sampling(0.0, 1.0, 100, top_k=1000, ban_eos=True),
    "top_k 0": Sampling(0.7, 0.95, 100, top_k=0, ban_eos=True),
    "top_k 1000": Sampling(0.7, 0.95, 100, top_k=1000, ban_eos=True),
    "penalty": Sampling(0.7, 0.95, 100, top_k=1000, ban_eos=True, repetition=REPETITION),
}


def main() -> None:
    prompts = [f"Question {i}: tell me about the number {i}.\nAnswer:" for i in range(8)]
    engine = LlamaCpp(sources.resolve("embedded").gguf, {}, slots=8, context=2048, threads=0)

    def speed(name: str) -> float:
        start = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(lambda p: engine.generate(p, Step(SETTINGS[name]), 1, None), prompts))
        return sum(p.generated_tokens for p in parts) / (time.monotonic() - start)

    speed("greedy")
    rates: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for _ in range(5):
        for name in SETTINGS:
            rates[name].append(speed(name))
    engine.close()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name:>12}: {medians[name]:5.0f} tokens/s (of {[round(v) for v in values]})", flush=True)
    print(f"sampling.ratio_top_k_1000 {medians['top_k 1000'] / medians['top_k 0']:.2f}")
    print(f"sampling.ratio_greedy {medians['penalty'] / medians['greedy']:.2f}")


if __name__ == "__main__":
    main()
