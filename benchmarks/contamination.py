"""Measure how many planted benchmark texts the overlap filter detects, and how many clean rows it drops.

    python benchmarks/contamination.py BENCHMARK_FILE... [--run RUN ...]     # seconds

Plants 200 texts from the given files: 50 unchanged, 50 with other case and punctuation, 50 in a longer text, 50 with
one word in ten replaced. The clean rows are instructions by the embedded model (benchmarks/data/instructions.jsonl) and
the prompts and responses of each run; none of them was generated from the files.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from selfalign.data.records import Prompt, Response, read_jsonl
from selfalign.quality.contamination import Benchmarks, texts

INSTRUCTIONS = Path(__file__).parent / "data" / "instructions.jsonl"


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
    instructions = [json.loads(line)["instruction"] for line in INSTRUCTIONS.read_text("utf-8").splitlines()]
    vocabulary = [word for text in instructions for word in text.split()]
    items = sorted({text for file in files for text in texts(file)})
    kinds = ("unchanged", "case and punctuation", "inside a longer text", "one word in ten replaced")
    for kind, name in enumerate(kinds):
        # Inside another text, the filter recognises only sequences of eight words.
        pool = [i for i in items if len(i.split()) >= 8] if kind == 2 else items
        planted = [plant(item, kind, rng, vocabulary) for item in rng.sample(pool, 50)]
        missed = [text for text in planted if benchmarks.find(text) is None]
        print(f"{name}: {50 - len(missed)} of 50 found" + (f"; missed {missed[:3]}" if missed else ""))
    clean = {"instructions": instructions}
    for run in runs:
        clean[f"{run.name}, prompts"] = [p.message for p in read_jsonl(run / "1_prompts/prompts.jsonl", Prompt)]
        if (file := run / "2_self_align/responses.jsonl").exists():
            clean[f"{run.name}, responses"] = [r.response for r in read_jsonl(file, Response)]
    flagged = rows = 0
    start = time.process_time()
    for name, sample in clean.items():
        hits = [(text, hit) for text in sample if (hit := benchmarks.find(text))]
        flagged, rows = flagged + len(hits), rows + len(sample)
        print(f"clean {name}: {len(hits)} of {len(sample)} flagged")
        for text, hit in hits[:5]:
            print(f"    {' '.join(text.split())[:90]!r} ~ {hit.item[:90]!r} ({hit.evidence})")
    seconds = time.process_time() - start
    print(f"clean rows flagged: {flagged} of {rows} ({flagged / rows:.2%}); {rows / seconds:,.0f} rows/s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--run", type=Path, action="append", default=[], dest="runs")
    arguments = parser.parse_args()
    main(arguments.files, arguments.runs)
