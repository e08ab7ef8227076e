"""Ray on this machine against no Ray, and how it scales. The engine is the fake one but for `embedded`.

    python benchmarks/cluster.py driver [--rows 10000 30000]  # the loop alone and through Ray: overhead, memory; 1 min
    python benchmarks/cluster.py scale [--seconds 12]         # 1, 2, 4, 8 workers of 50 rows/s, in turn, twice; 3 min
    python benchmarks/cluster.py data                         # the same workers by ray.data.map_batches; 1 min
    python benchmarks/cluster.py embedded [--rows 60]         # the embedded model, Ray with one worker, and none; 4 min
    python benchmarks/cluster.py paper --rows 10000           # recipe `paper` cut to so many prompts, 8 workers

A worker of `scale`, `data` and `paper` has 8 slots that sleep 160 ms a request: 50 rows/s, hardly any processor. Rows
of `driver`, `scale` and `data` are stage 2's requests (paper form) under the shipped constitution; the first two are
journalled each.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import selfalign
from selfalign import constitution
from selfalign.generation import engines, guided
from selfalign.generation.engines.base import Request, Sampling, answer
from selfalign.generation.engines.fake import Fake
from selfalign.generation.loop import JournaledEngine, RowRequest
from selfalign.generation.ray.pool import Pool
from selfalign.generation.settings import EngineSettings, Executor
from selfalign.model import sources
from selfalign.model.fake import FakeModel
from selfalign.pipeline import order
from selfalign.run import recipe
from selfalign.run.journal import Journal
from selfalign.system.console import Screen

SLOTS, LATENCY = 8, 0.16
FAKE = EngineSettings.model_validate({"kind": "fake", "slots": SLOTS})
TEXTS = constitution.load("default")
MESSAGES = [seed.instruction for seed in constitution.load_seeds("default")]


def form(tokens: int, temperature: float = 0.5) -> guided.Form:
    align = recipe.load("quick", ["align.form=paper", "align.max_thought_tokens=16"]).align
    return guided.Form(TEXTS, align, Sampling(temperature, 0.95, tokens))


def works(rows: int, asked: guided.Form) -> Iterator[RowRequest]:
    return (RowRequest(str(i), asked.request(f"{MESSAGES[i % len(MESSAGES)]} ({i})", i)) for i in range(rows))


def seconds(rows: int, engine: Any, asked: guided.Form, kept: list[str] | None = None) -> float:
    """One pass over fresh requests, through the loop and a journal of its own."""
    with tempfile.TemporaryDirectory(prefix="selfalign-cluster-") as name:
        journal = Journal(Path(name) / "journal.sqlite")
        start = time.monotonic()
        done = 0
        for _, result in JournaledEngine(engine, journal, "align", {None: "fake"}).stream(works(rows, asked)):
            done += result.completion is not None
            if kept is not None and result.completion:
                kept.append(json.dumps([p.text for p in result.completion.parts]))
        spent = time.monotonic() - start
        journal.close()
        assert done == rows
        return spent


@contextmanager
def pool(workers: int, latency: float) -> Iterator[Pool]:
    """Workers whose engine sleeps so long; each takes a little of the processors that Ray counts."""
    real = engines.start
    engines.start = lambda config, model, adapters, slots, *say: Fake(slots, latency_s=latency)  # type: ignore[assignment]
    made = Pool(Executor.model_validate({"kind": "ray", "workers": workers, "cpus": 0.1}), FAKE, FakeModel(), {})
    engines.start = real
    try:
        yield made
    finally:
        made.close()


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(kind: str, rows: int) -> None:
    """A child: one measurement in a process of its own, for its memory."""
    if kind == "local":
        spent = seconds(rows, Fake(SLOTS), form(256))
    else:
        with pool(2, 0.0) as made:
            seconds(200, made, form(256))
            spent = seconds(rows, made, form(256))
    print(json.dumps({"seconds": spent, "megabytes": megabytes()}))


def driver(sizes: list[int]) -> None:
    for rows in sizes:
        found = {}
        for kind in ("local", "ray"):
            command = [sys.executable, __file__, "one", "--kind", kind, "--rows", str(rows)]
            found[kind] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        here, there = found["local"], found["ray"]
        more = (there["seconds"] - here["seconds"]) / rows * 1000
        print(
            f"{rows:,} rows: alone {rows / here['seconds']:,.0f} rows/s, {here['megabytes']:.0f} MB; through Ray "
            f"(2 workers) {rows / there['seconds']:,.0f} rows/s, {there['megabytes']:.0f} MB; {more:+.2f} ms a row",
            flush=True,
        )


def scale(length: float) -> None:
    rates: dict[int, list[float]] = {n: [] for n in (1, 2, 4, 8)}
    asked = form(256)
    for _ in range(2):
        for workers, found in rates.items():
            with pool(workers, LATENCY) as made:
                seconds(workers * SLOTS, made, asked)
                rows = int(workers * SLOTS / LATENCY * length)
                found.append(rows / seconds(rows, made, asked))
                print(f"{workers} workers: {found[-1]:.1f} rows/s", flush=True)
    for workers, found in rates.items():
        ideal = workers * SLOTS / LATENCY
        print(f"{workers} workers: median {statistics.median(found):.1f} rows/s of {ideal:.0f}: ", end="")
        print(f"{statistics.median(found) / ideal:.1%}")


class Asked:
    """What `map_batches` calls: the same engine, its slots filled by threads for one block at a time."""

    def __init__(self) -> None:
        self.engine, self.form = Fake(SLOTS, latency_s=LATENCY), form(256)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        from concurrent.futures import ThreadPoolExecutor

        def text(message: str, seed: int) -> str:
            request: Request = self.form.request(message, seed)
            return answer(self.engine, request).parts[0].text

        with ThreadPoolExecutor(SLOTS) as threads:
            return {"text": list(threads.map(text, batch["message"], map(int, batch["seed"])))}


def data(length: float) -> None:
    import ray

    with pool(1, 0.0):  # the cluster is ours as long as the pool lives
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        for workers in (2, 8):
            rows = int(workers * SLOTS / LATENCY * length)
            items = [{"message": MESSAGES[i % len(MESSAGES)], "seed": i} for i in range(rows)]
            start = time.monotonic()
            first = 0.0
            found = ray.data.from_items(items, override_num_blocks=rows // 32).map_batches(
                Asked, batch_size=32, num_cpus=0.1, compute=ray.data.ActorPoolStrategy(size=workers)
            )
            done = 0
            for _ in found.iter_rows():
                first = first or time.monotonic() - start
                done += 1
            spent = time.monotonic() - start
            print(
                f"ray.data, {workers} workers: {done} rows in {spent:.1f} s, first result after {first:.1f} s: "
                f"{done / spent:.1f} rows/s with its start, {done / (spent - first):.1f} after the first result"
            )


def embedded(rows: int) -> None:
    model = sources.resolve("embedded")
    config = EngineSettings.model_validate({"kind": "llama_cpp", "slots": SLOTS, "context": 2048})
    asked = form(48, 0.0)
    texts: dict[str, list[str]] = {}
    spent: dict[str, list[float]] = {"local": [], "ray": []}
    for turn, name in enumerate(("local", "ray", "local", "ray")):
        if name == "ray":
            engine: Any = Pool(Executor.model_validate({"kind": "ray"}), config, model, {})
        else:
            engine = engines.start(config, model, {}, SLOTS)
        engine.warm_prefix(asked.prefix, None)
        found = texts.setdefault(f"{name}{turn // 2}", [])
        spent[name].append(seconds(rows, engine, asked, found))
        engine.close()
        print(f"{name}: {rows / spent[name][-1]:.2f} rows/s", flush=True)
    ratio = statistics.mean(spent["ray"]) / statistics.mean(spent["local"])
    print(f"Ray takes {ratio:.3f} of the time; greedy answers alike of {rows}:")
    for one_, other in (("local0", "local1"), ("ray0", "ray1"), ("local0", "ray0"), ("local1", "ray1")):
        print(f"  {one_} and {other}: {sum(a == b for a, b in zip(texts[one_], texts[other], strict=True))}")


def paper(rows: int, workers: int, out: Path | None) -> None:
    written, asked = round(rows * 267_597 / 366_718), rows - round(rows * 267_597 / 366_718)
    executor = {"kind": "ray", "workers": workers, "cpus": 0.1}
    settings = {
        "engine.kind": "fake", "engine.slots": SLOTS, "executor": executor, "max_failed": 0,
        "stages": ["prompts", "align", "engrave", "verbose_cloning"], "evaluate.heldout_prompts": min(2000, rows // 20),
        "prompts.self_instruct.count": written, "prompts.red_team.count": asked,
        # Five rounds of topics are for a hundred thousand prompts: they are no fewer where fewer prompts are wanted.
        "prompts.red_team.topic_rounds": 5 if rows >= 100_000 else 2,
    }  # fmt: skip
    real = engines.start
    engines.start = lambda config, model, adapters, slots, *say: Fake(slots, latency_s=LATENCY)  # type: ignore[assignment]
    with tempfile.TemporaryDirectory(prefix="selfalign-paper-") as name:
        start = time.monotonic()
        with selfalign.create("paper", out or Path(name) / "run", settings=settings, screen=Screen(-1)) as made:
            for stage in ("prompts", "align", "engrave", "verbose_cloning"):
                before = time.monotonic()
                order.run_stage(made.context, stage)  # type: ignore[arg-type]
                print(f"{stage}: {time.monotonic() - before:.0f} s; driver at most {megabytes():.0f} MB", flush=True)
            for counts in made.counts():
                lost = counts.rows_in - counts.kept - sum(counts.dropped.values()) - sum(counts.failed.values())
                print(f"  {counts.stage}: {counts.rows_in:,} in, {counts.kept:,} kept, {lost} unaccounted for")
        print(f"{time.monotonic() - start:.0f} s in all")
    engines.start = real


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["driver", "scale", "data", "embedded", "paper", "one"])
    parser.add_argument("--rows", type=int, nargs="+")
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--out", type=Path, help="paper: the folder of the run; an existing run is resumed")
    parser.add_argument("--kind", default="local", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.what == "driver":
        driver(given.rows or [10_000, 30_000])
    elif given.what == "scale":
        scale(given.seconds)
    elif given.what == "data":
        data(given.seconds)
    elif given.what == "embedded":
        embedded((given.rows or [60])[0])
    elif given.what == "paper":
        paper((given.rows or [10_000])[0], given.workers, given.out)
    else:
        one(given.kind, given.rows[0])
