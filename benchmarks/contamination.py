"""Measure how many planted benchmark texts the overlap filter finds, and how many clean rows it drops.

    python benchmarks/contamination.py BENCHMARK_FILE... [--run RUN ...]     # seconds

Plants 200 texts drawn from the given files: 50 as they stand, 50 in other case and punctuation, 50 in a longer text,
50 with one word in ten changed. Clean rows: instructions that the embedded model wrote
(benchmarks/data/instructions.jsonl) and, of each run, the prompts and responses, none of which saw the files.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from selfalign.data.records import Prompt, Response, read_jsonl
from selfalign.quality.contamination import Benchmarks, texts

REAL = Path(__file__).parent / "data" / "instructions.jsonl"


def plant(item: str, kind: int, rng: random.Random, vocabulary: list[str]) -> str:
    if kind == 0:
        return item
    if kind == 1:
        return f"{item.upper().rstrip('.?!')} ...".replace(",", " -")
    if kind == 2:
        return f"Somebody asked me this on the train. {item} Tell me what you would say, and keep it short."
    split = item.split()
    for _ in range(max(1, len(split) // 10)):
        split[rng.randrange(len(split))] = rng.choice(vocabulary)
    return " ".join(split)


def main(files: list[Path], runs: list[Path]) -> None:
    rng = random.Random(0)
    start = time.process_time()
    benchmarks = Benchmarks()
    for file in files:
        benchmarks.add_file(file)
    print(f"{len(benchmarks):,} items read in {time.process_time() - start:.1f} s")
    real = [json.loads(line)["instruction"] for line in REAL.read_text("utf-8").splitlines()]
    vocabulary = [word for text in real for word in text.split()]
    items = sorted({text for file in files for text in texts(file)})
    kinds = ("as it stands", "case and punctuation", "inside a longer text", "one word in ten changed")
    for kind, name in enumerate(kinds):
        # Inside another text only a run of eight words can be known again.
        pool = [i for i in items if len(i.split()) >= 8] if kind == 2 else items
        planted = [plant(item, kind, rng, vocabulary) for item in rng.sample(pool, 50)]
        missed = [text for text in planted if benchmarks.find(text) is None]
        print(f"{name}: {50 - len(missed)} of 50 found" + (f"; missed {missed[:3]}" if missed else ""))
    clean = {"instructions": real}
    for run in runs:
        clean[f"{run.name}, prompts"] = [p.message for p in read_jsonl(run / "1_prompts/prompts.jsonl", Prompt)]
        if (file := run / "2_self_align/responses.jsonl").exists():
            clean[f"{run.name}, responses"] = [r.response for r in read_jsonl(file, Response)]
    touched = rows = 0
    start = time.process_time()
    for name, sample in clean.items():
        hits = [(text, hit) for text in sample if (hit := benchmarks.find(text))]
        touched, rows = touched + len(hits), rows + len(sample)
        print(f"clean {name}: {len(hits)} of {len(sample)} touched")
        for text, hit in hits[:5]:
            print(f"    {' '.join(text.split())[:90]!r} ~ {hit.item[:90]!r} ({hit.evidence})")
    seconds = time.process_time() - start
    print(f"clean rows touched: {touched} of {rows} ({touched / rows:.2%}); {rows / seconds:,.0f} rows/s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--run", type=Path, action="append", default=[], dest="runs")
    arguments = parser.parse_args()
    main(arguments.files, arguments.runs)
