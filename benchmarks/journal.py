"""Measure journal, parser and filters without a model: rows/s, memory, time to resume.

    python benchmarks/journal.py [--rows 1000000]

Runs stage 2 on the fake engine, whose responses cost almost nothing, each measurement in its own process: rows/s
(median of five runs of 20,000 rows), peak memory at 10,000 rows and at --rows, the same command again after a finished
stage of 100,000 rows, and the same stage filtered again from the journal. Takes about 13 minutes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import selfalign
from selfalign.data.records import Prompt, line, prompt_id
from selfalign.generation.engines.fake import Fake

SETTINGS = {"engine.kind": "fake", "stages": ["align"]}


def write_prompts(file: Path, rows: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            text = f"Explain in your own words what number {number} has to do with the sea and with {number % 1013}."
            stream.write(line(Prompt(prompt_id(text, ""), text)))


def child(folder: Path, rows: int, again: bool) -> None:
    """Run stage 2 and print its measurements."""
    with selfalign.create("quick", folder, settings=SETTINGS) as run:
        file = run.context.run.jsonl("prompts")
        if not file.exists():
            write_prompts(file, rows)
        engine = run.context.engine()
        assert isinstance(engine, Fake)
        start = time.monotonic()
        if again:
            run.run_stage("align")
        else:
            run.run_all()
        seconds = time.monotonic() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        counts = run.counts()[0]
        assert counts.rows_in == rows, counts
        print(json.dumps({"seconds": seconds, "megabytes": memory, "requests": engine.requests, "kept": counts.kept}))


def measure(folder: Path, rows: int, *flags: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", str(folder), "--rows", str(rows), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measurements: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measurements


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory(prefix="selfalign-journal-") as name:
        folder = Path(name)
        rates = [20_000 / measure(folder / f"rate{n}", 20_000)["seconds"] for n in range(5)]
        print(f"stage 2, 20,000 rows, 8 threads: {statistics.median(rates):,.0f} rows/s", end=" ")
        print(f"(median of five, {min(rates):,.0f} to {max(rates):,.0f})")
        measure(folder / "resume", 100_000)
        again = measure(folder / "resume", 100_000)
        print(f"same command after 100,000 rows: {again['seconds']:.2f} s, {again['requests']:.0f} engine calls")
        anew = measure(folder / "resume", 100_000, "--again")
        print(f"filtered again from the journal: {anew['seconds']:.1f} s, {anew['requests']:.0f} engine calls")
        small, large = measure(folder / "small", 10_000), measure(folder / "large", rows)
        print(f"peak memory: {small['megabytes']:.0f} MB at 10,000 rows, {large['megabytes']:.0f} MB at {rows:,}")
        print(f"{rows:,} rows: {rows / large['seconds']:,.0f} rows/s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--again", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.rows, arguments.again)
    else:
        main(arguments.rows)
