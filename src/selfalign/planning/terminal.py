"""Print plans as tables: for this machine, and for a cluster."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from selfalign.planning.capacity import Capacity, StageCapacity
from selfalign.planning.costs import Plan, StagePlan
from selfalign.run.ledger import TITLES
from selfalign.system.console import plain, stdout_console
from selfalign.system.format import count, duration


def new_table(*columns: str, footer: Sequence[str] = ()) -> Table:
    """Return an empty table in the style of all tables: a column of names, and columns of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_footer=bool(footer))
    for at, name in enumerate(columns):
        table.add_column(name, footer[at] if footer else "", justify="right" if at else "left", no_wrap=True)
    return table


def show(plan: Plan) -> None:
    """Print a plan for this machine."""
    console = stdout_console()
    console.print(_plan_table(plan))
    console.print("\nIn tokens: prompt, cached, generated, at most (if every row reaches its limit).", style="dim")
    memory = f"Peak memory: {plan.memory_mb / 1000:.1f} GB. " if plan.memory_mb else ""
    cache = f", {plan.cache_mb / 1000:.1f} GB for converted weights in the cache" if plan.cache_mb else ""
    console.print(f"{memory}Disk: {plan.disk_mb:,.0f} MB for the run{cache}. Concurrent requests: {plan.slots}.")
    for problem in plan.problems:
        console.print(escape(plain(problem)), style="yellow", soft_wrap=True)
    if plan.seconds is not None:
        console.print("Times are estimates based on the embedded model; a run prints plan and actual.", style="dim")


def _plan_table(plan: Plan) -> Table:
    columns = ("requests", "prompt", "cached", "generated", "at most")
    totals = [sum(v) for v in zip(*(_plan_numbers(s) for s in plan.stages), strict=True)] or [0] * len(columns)
    table = new_table("stage", *columns, "time", footer=["all", *map(count, totals), duration(plan.seconds)])
    for stage in plan.stages:
        numbers = [count(n) for n in _plan_numbers(stage)]
        table.add_row(TITLES.get(stage.stage, stage.stage), *numbers, duration(stage.seconds))
    return table


def _plan_numbers(stage: StagePlan) -> tuple[int, ...]:
    return (stage.requests, stage.prompt_tokens, stage.cached_tokens, stage.generated_tokens, stage.at_most)


def show_capacity(plan: Capacity) -> None:
    """Print a plan for a cluster."""
    console = stdout_console()
    model = f"{plan.model} ({plan.parameters / 1e9:,.1f} B parameters, {plan.weights_gb:,.1f} GB in 16 bits)"
    console.print(escape(plain(f"{model} on {plan.cluster}\n")), soft_wrap=True)
    times = _range(plan.total("seconds_low"), plan.total("seconds_high"))
    totals = ["all", "", "", "", "", duration(plan.total("seconds")), times, _hours(plan.total("gpu_hours"))]
    table = new_table("stage", "requests", "tokens", "GPUs", "GB", "time", "from–to", "GPU-h", footer=totals)
    for stage in plan.stages:
        table.add_row(TITLES.get(stage.stage, stage.stage), *_capacity_cells(stage))
    console.print(table)
    storage = sum(stage.storage_mb for stage in plan.stages) / 1e3
    console.print(
        "\nGPUs: replicas x GPUs per replica; for training, all GPUs. GB: memory of the fullest GPU. "
        f"Storage: {storage:,.1f} GB for the run, {plan.weights_gb:,.0f} GB for the weights.",
    )
    for note in plan.notes:
        console.print(escape(plain(note)), style="yellow" if "needs" in note else None, soft_wrap=True)
    console.print(
        "All numbers are estimates: rows follow from the recipe, lengths and kept fractions from the embedded model, "
        "speeds from public figures (docs/capacity.md).",
        style="dim",
    )


def _capacity_cells(stage: StageCapacity) -> list[str]:
    cells = [count(stage.requests) if stage.requests else "", count(stage.generated_tokens)]
    if stage.problem:
        return [*cells, "does not fit", "", "", "", ""]
    gpus = f"{stage.replicas} x {stage.gpus_per_replica}" if stage.kind == "generate" else str(stage.gpus_per_replica)
    times = duration(stage.seconds), _range(stage.seconds_low, stage.seconds_high), _hours(stage.gpu_hours)
    return [*cells, gpus, f"{stage.memory_gb:.0f}", *times]


def _range(low: float | None, high: float | None) -> str:
    return f"{duration(low)}–{duration(high)}" if low is not None and high is not None else "?"


def _hours(value: float | None) -> str:
    return "?" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
