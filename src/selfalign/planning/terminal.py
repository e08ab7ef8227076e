"""Plans as tables in the terminal: this machine's, and a cluster's."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from selfalign.planning.capacity import Capacity, StageCapacity
from selfalign.planning.costs import Plan, StagePlan
from selfalign.run import ledger
from selfalign.system.console import plain, stdout_console


def _plan_table(made: Plan) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_footer=True)
    table.add_column("stage", "all", no_wrap=True)
    columns = ("requests", "prompt tokens", "from cache", "generated", "at most")
    total = [sum(v) for v in zip(*(_plan_numbers(s) for s in made.stages), strict=True)] or [0] * 5
    for name, number in zip(columns, total, strict=True):
        table.add_column(name, count(number), justify="right", no_wrap=True)
    table.add_column("time", duration(made.seconds), justify="right", no_wrap=True)
    for stage in made.stages:
        numbers = [count(n) for n in _plan_numbers(stage)]
        table.add_row(ledger.TITLES.get(stage.stage, stage.stage), *numbers, duration(stage.seconds))
    return table


def _plan_numbers(stage: StagePlan) -> tuple[int, ...]:
    return (stage.requests, stage.prompt_tokens, stage.cached_tokens, stage.generated_tokens, stage.at_most)


def count(number: int) -> str:
    """So short that a table of large numbers fits 80 columns."""
    if number < 100_000:
        return f"{number:,}"
    return f"{number / 1e3:,.0f} k" if number < 1_000_000 else f"{number / 1e6:,.1f} M"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show(made: Plan) -> None:
    """A plan on standard output."""
    console = stdout_console()
    console.print(_plan_table(made))
    memory = f"{made.memory_mb / 1000:.1f} GB of memory at the peak, " if made.memory_mb else ""
    cache = f", {made.cache_mb / 1000:.1f} GB in the cache for converted weights" if made.cache_mb else ""
    console.print(f"\n{memory}{made.disk_mb:,.0f} MB of disk for the run{cache}; {made.slots} requests at once.")
    if made.seconds is None:
        return
    console.print(
        "Times are estimates from what the embedded model took; a run prints them beside what it really took.",
        style="dim",
    )


def _capacity_table(made: Capacity) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_footer=True)
    table.add_column("stage", "all", no_wrap=True)
    for name in ("requests", "tokens", "GPUs", "GB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("time", duration(made.total("seconds")), justify="right", no_wrap=True)
    span = _span(made.total("seconds_low"), made.total("seconds_high"))
    table.add_column("from–to", span, justify="right", no_wrap=True)
    table.add_column("GPU-h", _hours(made.total("gpu_hours")), justify="right", no_wrap=True)
    for stage in made.stages:
        table.add_row(ledger.TITLES.get(stage.stage, stage.stage), *_capacity_cells(stage))
    return table


def _capacity_cells(stage: StageCapacity) -> list[str]:
    requests = count(stage.requests) if stage.requests else ""
    if stage.problem:
        return [requests, count(stage.generated_tokens), "does not fit", "", "", "", ""]
    gpus = f"{stage.replicas} x {stage.gpus_per_replica}" if stage.kind == "generate" else str(stage.gpus_per_replica)
    return [
        requests,
        count(stage.generated_tokens),
        gpus,
        f"{stage.memory_gb:.0f}",
        duration(stage.seconds),
        _span(stage.seconds_low, stage.seconds_high),
        _hours(stage.gpu_hours),
    ]


def _span(low: float | None, high: float | None) -> str:
    return f"{duration(low)}–{duration(high)}" if low is not None and high is not None else "?"


def _hours(value: float | None) -> str:
    return "?" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def show_capacity(made: Capacity) -> None:
    """A plan for a cluster on standard output."""
    console = stdout_console()
    model = f"{made.model} ({made.parameters / 1e9:,.1f} B parameters, {made.weights_gb:,.1f} GB in 16 bits)"
    console.print(escape(plain(f"{model} on {made.cluster}\n")), soft_wrap=True)
    console.print(_capacity_table(made))
    storage = sum(stage.storage_mb for stage in made.stages) / 1e3
    console.print(
        "\nGPUs: replicas x GPUs of each; in training, all. GB: memory of the fullest GPU. "
        f"{storage:,.1f} GB of storage for the run, {made.weights_gb:,.0f} GB for the weights.",
        soft_wrap=True,
    )
    for note in made.notes:
        console.print(escape(plain(note)), style="yellow" if "needs" in note else None, soft_wrap=True)
    console.print(
        "All of it is an estimate: rows from the recipe, lengths and survivors from the embedded model, speeds from "
        "public figures (docs/capacity.md).",
        style="dim",
        soft_wrap=True,
    )
