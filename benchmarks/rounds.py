"""Measure stage 1 at scale without a model: rows/s of its rounds, and the time to resume after them.

    python benchmarks/rounds.py [--prompts 100000]     # about 4 minutes

Runs Self-Instruct on the fake engine until the number of prompts is accepted, then again from the journal, as a resumed
run does before its next request.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from selfalign import constitution
from selfalign.pipeline import step1a_self_instruct
from selfalign.run import recipe
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.system.console import Screen


def child(folder: Path, prompts: int) -> None:
    settings = [
        "engine.kind=fake",
        f"prompts.self_instruct.count={prompts}",
        "prompts.self_instruct.requests_per_round=1024",
        "prompts.self_instruct.max_rounds=100000",
    ]
    context = Context(RunDir.create(folder, recipe.load("quick", settings), constitution.load("default")), Screen(-1))
    start = time.perf_counter()
    step1a_self_instruct.run(context)
    seconds = time.perf_counter() - start
    counts = context.journal.counts("self_instruct")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{counts.kept:,} of {counts.rows_in:,} candidates accepted in {counts.notes['rounds']} rounds: "
        f"{seconds:.1f} s, {counts.rows_in / seconds:,.0f} candidates/s, {memory:,.0f} MB",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.prompts)
    else:
        with tempfile.TemporaryDirectory(prefix="selfalign-rounds-") as name:
            for label in ("first run", "resumed from the journal"):
                print(label, end=": ", flush=True)
                command = [
                    sys.executable,
                    __file__,
                    "--child",
                    str(Path(name) / "run"),
                    "--prompts",
                    str(arguments.prompts),
                ]
                subprocess.run(command, check=True)
