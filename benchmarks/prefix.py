"""The constitution's prefix: computed once and copied to all slots, against once per slot.

    python benchmarks/prefix.py            # about 3 minutes

Sample: 24 questions under the shipped constitution, 60 tokens each, 8 slots, a fresh engine for each way, both ways in
turn, medians of 2 rounds.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from selfalign import constitution, models
from selfalign.engines.base import BOS, Part, Sampling, Step
from selfalign.engines.llama_cpp import LlamaCpp
from selfalign.stages.self_align import query, render


def measure(copied: bool) -> tuple[float, int]:
    """(seconds, prompt tokens computed) of the first pass."""
    texts = constitution.load("default")
    prefix = (BOS, render(texts))
    engine = LlamaCpp(models.resolve("embedded").gguf, {}, slots=8, context=4096, threads=0)
    step = Step(Sampling(0.5, 0.95, 60, top_k=1000, ban_eos=True))
    questions = [s.instruction for s in constitution.load_seeds("default")[:24]]

    def ask(question: str) -> Part:
        return engine.generate((*prefix, query(texts, question)), step, 1, None)

    start = time.monotonic()
    if copied:
        engine.prime(prefix, None)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(ask, questions))
    seconds = time.monotonic() - start
    length = len(engine.encode(prefix)) if copied else 0
    engine.close()
    return seconds, sum(p.prompt_tokens for p in parts) + length


def main() -> None:
    found = {True: [], False: []}
    for _ in range(2):
        for copied in (True, False):
            found[copied].append(measure(copied))
    for copied, rows in found.items():
        seconds = statistics.median(r[0] for r in rows)
        print(f"{'copied' if copied else 'per slot':>8}: {seconds:5.1f} s, {rows[0][1]:,} prompt tokens computed")
    ratio = statistics.median(r[0] for r in found[False]) / statistics.median(r[0] for r in found[True])
    print(f"prefix.ratio_per_slot {ratio:.2f}")


if __name__ == "__main__":
    main()
