"""Measure the throughput of sampling by top_k, at temperature 1.0 and top_p 0.98.

    python benchmarks/sampling.py          # about 3 minutes

Sample: 16 Self-Instruct prompts of 5 seeds each, 100 generated tokens each, 8 slots, the embedded model. The settings
take turns; figures are medians of 3 rounds.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from selfalign.constitution import load_seeds
from selfalign.generation.engines.base import Sampling, Step
from selfalign.generation.engines.llama_cpp import LlamaCpp
from selfalign.model import sources
from selfalign.pipeline.step1a_self_instruct import render

TOP_K = (0, 1000, 40)


def main() -> None:
    seeds = load_seeds("default")
    prompts = [render(seeds[i : i + 5]) for i in range(16)]
    engine = LlamaCpp(sources.resolve("embedded").gguf, {}, slots=8, context=2048, threads=0)

    def speed(top_k: int) -> float:
        step = Step(Sampling(1.0, 0.98, 100, top_k=top_k, ban_eos=True))
        start = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(lambda p: engine.generate(p, step, 1, None), prompts))
        return sum(p.generated_tokens for p in parts) / (time.monotonic() - start)

    speed(40)
    rates = {k: [] for k in TOP_K}
    for _ in range(3):
        for k in TOP_K:
            rates[k].append(speed(k))
    engine.close()
    for k, values in rates.items():
        print(f"top_k {k or 'none':>5}: {statistics.median(values):5.0f} tokens/s (of {[round(v) for v in values]})")
    ratio = statistics.median(rates[1000]) / statistics.median(rates[0])
    print(f"sampling.ratio_top_k_1000 {ratio:.2f}")


if __name__ == "__main__":
    main()
