"""Measure time, memory and growth of NoveltyIndex, compared with rouge-score and brute force.

    python benchmarks/novelty.py [--rows 366718]      # about 5 minutes

Data: instructions of the embedded model (benchmarks/data/instructions.jsonl) and variants of them. A variant replaces
55 % of the words of an instruction by words drawn by their frequency. New words are drawn with the Good-Turing
probability (the fraction of words that occur once), from 50,000 words by Zipf's law. Uses one core. The brute-force
times are estimates from rapidfuzz over the whole pool for 300 candidates.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from bisect import bisect
from collections import Counter
from itertools import accumulate
from pathlib import Path

from rapidfuzz import process
from rapidfuzz.distance import Indel

from selfalign.quality.novelty import NoveltyIndex
from selfalign.quality.rouge import tokens

REAL = Path(__file__).parent / "data" / "instructions.jsonl"
SIZES = (10_000, 30_000, 100_000, 300_000)


def real() -> list[str]:
    return [json.loads(line)["instruction"] for line in REAL.read_text("utf-8").splitlines()]


def variants(number: int) -> list[str]:
    """Return the real instructions, then variants; the same on every machine."""
    texts = real()
    counts = Counter(t for text in texts for t in tokens(text))
    unseen = sum(1 for n in counts.values() if n == 1) / sum(counts.values())
    words, steps = list(counts), list(accumulate(counts.values()))
    tail = list(accumulate(1 / rank for rank in range(1, 50_001)))
    rng = random.Random(0)

    def word() -> str:
        if rng.random() < unseen:
            return f"w{bisect(tail, rng.random() * tail[-1])}"
        return words[bisect(steps, rng.random() * steps[-1])]

    result = list(texts)
    while len(result) < number:
        result.append(" ".join(word() if rng.random() < 0.55 else t for t in tokens(rng.choice(texts))))
    return result[:number]


def child(rows: int) -> None:
    """Add all rows; print the time at each size, and the memory."""
    texts = variants(rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    index, at = NoveltyIndex(), {}
    start = time.process_time()
    done = 0
    for number in sorted({*(size for size in SIZES if size < rows), rows}):
        index.add_all(texts[done:number])
        at[number], done = time.process_time() - start, number
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    sample = random.Random(1).sample(texts, 300)
    start = time.process_time()
    for text in sample:
        query = index._encode(tokens(text))
        list(process.extract_iter(query, index._encoded, scorer=Indel.normalized_similarity, score_cutoff=0.7))
    per_pair = (time.process_time() - start) / len(sample) / len(index)
    print(json.dumps({"at": at, "accepted": len(index), "megabytes": memory, "brute_per_pair": per_pair}))


def measure(rows: int) -> dict:
    command = [sys.executable, __file__, "--child", "--rows", str(rows)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def against_rouge_score(number: int = 3000) -> None:
    """Compare decisions and speed with rouge-score over all pairs, by its public call and its LCS on token lists."""
    from rouge_score import rouge_scorer

    texts = variants(number)
    NoveltyIndex().add_all(texts[:10])  # loads numpy
    scorer, some = rouge_scorer.RougeScorer(["rougeL"]), texts[:60]
    times: list[float] = []
    rates: list[float] = []

    def side_by_side() -> list[bool]:
        start = time.process_time()
        for text in some:
            for other in some:
                scorer.score(text, other)
        rates.append(len(some) ** 2 / (time.process_time() - start))
        start = time.process_time()
        decisions = NoveltyIndex().add_all(texts)
        times.append(time.process_time() - start)
        return decisions

    for _ in range(5):
        side_by_side()
    lists = [tokens(t) for t in texts]
    start, pool, expected, pairs = time.process_time(), [], [], 0
    for mine in lists:
        near = False
        for other in pool:
            pairs += 1
            near |= bool(mine and other) and rouge_scorer._score_lcs(other, mine).fmeasure > 0.7
        expected.append(not near)
        if not near:
            pool.append(mine)
    theirs = pairs / (time.process_time() - start)
    for _ in range(5):
        decisions = side_by_side()
    rate, called = pairs / statistics.median(times), statistics.median(rates)
    differ = sum(a != b for a, b in zip(decisions, expected, strict=True))
    print(f"first {number:,}: {differ} of {pairs:,} pairs' decisions differ from rouge-score's")
    print(f"pairs/s: {rate:,.0f} (median of ten; {pairs / max(times):,.0f} to {pairs / min(times):,.0f});")
    each = [pairs / seconds / slow for seconds, slow in zip(times, rates, strict=True)]
    print(
        f"rouge-score's public call {called:,.0f}: {rate / called:,.0f} times ({min(each):,.0f} to {max(each):,.0f});"
    )
    print(f"rouge-score on token lists {theirs:,.0f}: {rate / theirs:,.0f} times")


def main(rows: int) -> None:
    against_rouge_score()
    result = measure(rows)
    at = {int(k): v for k, v in result["at"].items()}
    print(f"{result['accepted']:,} of {rows:,} accepted ({result['accepted'] / rows:.0%})")
    for number, seconds in at.items():
        brute = result["brute_per_pair"] * number * number / 2 * result["accepted"] / rows
        print(f"{number:>9,}: {seconds:7.1f} s of one core (brute force with rapidfuzz: about {brute:,.0f} s)")
    if 300_000 in at:
        print(f"growth exponent, 10,000 to 300,000: {math.log(at[300_000] / at[10_000]) / math.log(30):.2f}")
    print(f"memory: {result['megabytes']:,.0f} MB, {result['megabytes'] * 100_000 / rows:,.0f} MB per 100,000")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=366_718)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.rows)
    else:
        main(arguments.rows)
