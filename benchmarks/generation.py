"""Compare stage 2's generation with simpler ways to run the same engine.

    python benchmarks/generation.py            # about 14 minutes

Sample: messages of the built-in seed tasks under the default constitution, 120 generated tokens per row (the end token
is banned), the embedded model. Each round measures in turn: selfalign (loop, journal, calibrated slots, prefix copied),
a bare thread pool that sends the same requests to the same warm engine, one slot with a cached prefix, and one request
at a time without a cache. Figures are medians over the rounds; the slow lanes have 40 rows in total. Then: the fraction
of prefix tokens that are not computed again, for 200 rows in 8 slots, with the prefix copied between slots and without.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfalign import constitution
from selfalign.constitution.rendering import query, render
from selfalign.data.prompt_text import BOS
from selfalign.generation import calibration
from selfalign.generation.engines.base import Request, Sampling, Step, answer
from selfalign.generation.engines.llama_cpp import LlamaCpp
from selfalign.generation.loop import JournaledEngine, RowRequest
from selfalign.model import sources
from selfalign.run.journal import Journal

ROUNDS = 4
ROWS = 40
SLOW_ROWS = 10
TOKENS = 120
CONTEXT = 4096
MODEL = sources.resolve("embedded")
TEXTS = constitution.load("default")
PREFIX = (BOS, render(TEXTS))
MESSAGES = [seed.instruction for seed in constitution.load_seeds("default")]


def requests(first: int, rows: int, tokens: int = TOKENS) -> list[Request]:
    step = Step(Sampling(0.5, 0.95, tokens, top_k=1000, ban_eos=True))
    chosen = [(i, f"{MESSAGES[i % len(MESSAGES)]} ({i})") for i in range(first, first + rows)]
    return [Request((*PREFIX, query(TEXTS, text)), (step,), i) for i, text in chosen]


@contextmanager
def engine(slots: int, warmed: bool = True) -> Any:
    started = LlamaCpp(MODEL.gguf, {}, slots=slots, context=CONTEXT, threads=0, tokenizer=MODEL.tokenizer())
    try:
        if warmed:
            started.warm_prefix(PREFIX, None)
        yield started
    finally:
        started.close()


def seconds(lane: Callable[[LlamaCpp, list[Request]], None], llama: LlamaCpp, items: list[Request]) -> float:
    start = time.monotonic()
    lane(llama, items)
    return time.monotonic() - start


def ours(llama: LlamaCpp, items: list[Request]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal.sqlite")
        rows = [RowRequest(str(r.seed), r) for r in items]
        results = JournaledEngine(llama, journal, "align", {None: "embedded"}).generate(rows)
        assert all(result.completion for result in results)
        journal.close()


def bare(llama: LlamaCpp, items: list[Request]) -> None:
    with ThreadPoolExecutor(llama.parallel) as pool:
        list(pool.map(lambda r: answer(llama, r), items))


def without_cache(llama: LlamaCpp, items: list[Request]) -> None:
    real = llama._http
    llama._http = lambda path, body: real(path, {**body, "cache_prompt": False})  # type: ignore[method-assign]
    for item in items:
        assert answer(llama, item).parts[0].cached_tokens == 0


def one_by_one(llama: LlamaCpp, items: list[Request]) -> None:
    for item in items:
        answer(llama, item)


def speeds(slots: int) -> None:
    """Print the rows per second of each lane, and selfalign's ratio to it."""
    lanes: dict[str, list[float]] = {"ours": [], "bare pool": [], "one slot": [], "no cache": []}
    for number in range(ROUNDS):
        fast, slow = requests(number * 100, ROWS), requests(number * 100 + 50, SLOW_ROWS)
        with engine(slots) as llama:
            # The order alternates, because the second lane finds the CPU warm.
            pair = [("ours", ours), ("bare pool", bare)]
            for name, lane in pair if number % 2 == 0 else pair[::-1]:
                lanes[name].append(ROWS / seconds(lane, llama, fast))
        with engine(1) as llama:
            lanes["one slot"].append(SLOW_ROWS / seconds(one_by_one, llama, slow))
        with engine(1, warmed=False) as llama:
            lanes["no cache"].append(SLOW_ROWS / seconds(without_cache, llama, slow))
        print(f"round {number + 1}: " + ", ".join(f"{n} {v[-1]:.3f} rows/s" for n, v in lanes.items()), flush=True)
    median = {name: statistics.median(rates) for name, rates in lanes.items()}
    for name, rate in median.items():
        ratios = [a / b for a, b in zip(lanes["ours"], lanes[name], strict=True)]
        print(f"{name:>10}: {rate:.3f} rows/s, {rate * TOKENS:.0f} tokens/s; ours is {statistics.median(ratios):.2f} x")


def prefix_share(copied: bool) -> None:
    """Print the fraction of the rows' prefix tokens that were not computed again."""
    items = requests(0, 200, tokens=4)
    with engine(8, warmed=copied) as llama:
        length = len(llama.encode(PREFIX))
        own = sum(len(llama.encode(r.prompt)) for r in items) - length * len(items)
        with ThreadPoolExecutor(8) as pool:
            parts = [p for c in pool.map(lambda r: answer(llama, r), items) for p in c.parts]
    # The last token of the prefix may be encoded together with the suffix: a few tokens more or less.
    computed = sum(p.prompt_tokens for p in parts) - own + (length if copied else 0)
    fraction = 1 - computed / (length * len(items))
    print(
        f"prefix of {length} tokens, 200 rows, {'copied' if copied else 'per slot'}: {fraction:.1%} not computed again"
    )


def main() -> None:
    measured = calibration.calibrate(MODEL.gguf, MODEL.identity, CONTEXT, 0, fresh=True)
    print(f"calibration: {measured.slots} slots; tokens/s by slots {measured.by_slots}")
    prefix_share(copied=True)
    prefix_share(copied=False)
    speeds(measured.slots)


if __name__ == "__main__":
    main()
