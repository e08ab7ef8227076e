"""Print the results of a run: the tables of stages, scores and probes, and responses side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from selfalign.data.records import read_jsonl
from selfalign.evaluation.comparison import WIN_RATE
from selfalign.evaluation.records import Answer, ProbeAnswer, Score
from selfalign.evaluation.tasks.probes import Total
from selfalign.planning.terminal import new_table
from selfalign.report.data_quality import Row
from selfalign.report.run_summary import plan_and_actual, supervision
from selfalign.report.scores import groups, score_text, times_read
from selfalign.report.side_by_side import side_by_side
from selfalign.report.status import status
from selfalign.report.summary import summary
from selfalign.run.directory import RunDir
from selfalign.run.ledger import TITLES
from selfalign.system.console import Screen, plain, stdout_console
from selfalign.system.format import count, duration

_MAX_EXAMPLES = 3
_FAKE = "Made with the fake engine: no model ran, and the texts are random words.\n"


def _title(row: dict[str, Any]) -> str:
    return TITLES.get(row["stage"], str(row["stage"]))


def _clip(text: str, most: int) -> str:
    """Return the text on one line, cut at a word."""
    line = " ".join(plain(text).split())
    return line if len(line) <= most else line[:most].rsplit(" ", 1)[0] + " …"


# -- a run -----------------------------------------------------------------------------------------------------------


def show(run: RunDir, screen: Screen) -> None:
    """Print the results at the end of `selfalign run`: counts, a summary, a few responses, and where to look next.

    With --verbose, the tables of generation, scores and costs are printed, too.
    """
    console, state = stdout_console(), status(run)
    details = screen.verbosity > 0
    console.print()
    _show_tables(run, state, console, examples=False, details=details)
    costs = plan_and_actual(run, state["stages"])
    _show_summary(run, state["scores"], costs["seconds"], console)
    if details and costs["disk_mb"] is not None:  # there is a plan
        console.print()
        console.print(_plan_table(costs))
        console.print(_resources(costs), style="dim")
    if screen.verbosity >= 0 and run.jsonl("answers").exists():
        _show_responses(run, console)
    if run.report.exists():
        console.print(f"\nreport: {run.report}", soft_wrap=True)
    if state["scores"]:
        console.print(f"details: selfalign status {run.path}", soft_wrap=True, markup=False)


def _show_summary(run: RunDir, scores: list[dict[str, Any]], seconds: float, console: Console) -> None:
    if run.recipe.engine.kind == "fake":
        return
    for question, answer in summary(scores, supervision(run)["total"], seconds):
        console.print(f"\n[bold]{question}[/bold] {escape(plain(answer))}")


def show_status(run: RunDir) -> None:
    """Print the tables of stages, generation and scores, with examples of dropped rows."""
    _show_tables(run, status(run), stdout_console(), examples=True)


def _show_tables(run: RunDir, state: dict[str, Any], console: Console, examples: bool, details: bool = True) -> None:
    fake, stages = run.recipe.engine.kind == "fake", state["stages"]
    if fake:
        console.print(_FAKE, style="yellow")
    if not stages:
        console.print(f"no stage has started ({state['state']}): `selfalign run` with the same --out starts it")
        return
    if state["state"] != "finished":
        console.print(f"{state['state']}\n", style="dim")
    console.print(_stages_table(stages))
    generated = [row for row in stages if row["requests"] and row["generation_seconds"]]
    if details and generated and not fake:
        console.print()
        console.print(_generation_table(generated))
    for row in stages:
        if number := row["neutralised"]:  # old name
            rows = "row" if number == 1 else "rows"
            text = f"{_title(row)}: control tokens in the text of {number:,} {rows} were escaped (--json lists them)"
            console.print(text, style="yellow", soft_wrap=True)
    if details and state["scores"]:
        console.print()
        console.print(_scores_table(state["scores"], console.width < 100))
        if state["test_half_read"]:
            console.print(times_read(state["test_half_read"]), style="dim")
    if any(state["feedback"].values()):
        marks = f"{state['feedback']['good']} good, {state['feedback']['bad']} bad"
        console.print(f"\nmarked responses: {marks} (see selfalign constitution suggest {run.path})", markup=False)
    if examples and any(row["examples"] for row in stages):
        console.print("\nThe first row of each reason (drops.jsonl has all)")
        _show_drops(stages, console)


def _stages_table(rows: list[dict[str, Any]]) -> Table:
    table = new_table()
    for name, justify in (("stage", "left"), ("in", "right"), ("kept", "right"), ("dropped, failed", "left")):
        table.add_column(name, justify=justify, no_wrap=name == "stage", ratio=1 if name == "dropped, failed" else None)  # type: ignore[arg-type]
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    for row in rows:
        reasons = {**row["dropped"], **{f"failed: {k}": v for k, v in row["failed"].items()}}
        tokens = row["generated_tokens"] or row["notes"].get("training_tokens", 0)
        remaining = row["rows_in"] - row["kept"] - sum(reasons.values())
        prefix = f"{remaining:,} remaining; " if not row["finished"] and remaining > 0 else ""
        table.add_row(
            _title(row),
            f"{row['rows_in']:,}" if row["finished"] or row["rows_in"] else "…",
            f"{row['kept']:,}" if row["finished"] or row["kept"] else "…",
            escape(plain(prefix + ", ".join(f"{reason} {n}" for reason, n in reasons.items()))),
            f"{tokens:,}",
            f"{row['seconds']:.0f}" if row["finished"] else "…",
        )
    return table


def _generation_table(rows: list[dict[str, Any]]) -> Table:
    table = new_table("generation", "requests", "prompt tok.", "cached", "generated", "tok./s", "busy")
    for row in rows:
        table.add_row(
            _title(row),
            f"{row['requests']:,}",
            count(row["prompt_tokens"] + row["cached_tokens"]),
            f"{row['hit_rate']:.1%}",
            count(row["generated_tokens"]),
            f"{row['tokens_per_second']:.0f}",
            f"{row['busy']:.0%}",
        )
    return table


def _show_drops(rows: list[dict[str, Any]], console: Console) -> None:
    """Print the most frequent reasons for drops, each with its first row."""
    for row in rows:
        for reason, text in list(row["examples"].items())[:_MAX_EXAMPLES]:
            failed = row["failed"].get(reason, 0)
            label = f"failed: {reason} {failed}" if failed else f"{reason} {row['dropped'].get(reason, 0)}"
            head = f"{_title(row)} · {plain(label)}"
            console.print(f"[dim]{escape(head)}[/dim]")
            console.print(Padding.indent(escape(_clip(text, 150)), 2))


def _plan_table(costs: dict[str, Any]) -> Table:
    """Return planned and actual costs of the finished stages."""
    table = new_table("plan → actual", "requests", "tokens", "time")
    rows = [row for row in costs["stages"] if row["finished"] and row["planned_tokens"] is not None]
    for row in rows:
        table.add_row(
            row["title"],
            f"{row['planned_requests']:,} → {row['requests']:,}" if row["planned_requests"] else "",
            f"{row['planned_tokens']:,} → {row['tokens']:,}",
            f"{duration(row['planned_seconds'])} → {duration(row['seconds'])}",
        )
    total = sum(row["seconds"] for row in rows)
    table.add_row("all", "", "", f"{duration(costs['planned_seconds'])} → {duration(total)}", style="bold")
    return table


def _resources(costs: dict[str, Any]) -> str:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    memory = f"{costs['memory_mb'] / 1000:.1f}" if costs["memory_mb"] else "?"
    disk = f"{costs['disk_mb']:,.0f} → {costs['actual_disk_mb']:,.0f} MB"
    return f"memory {memory} → {peak:.1f} GB (this process), disk {disk}"


def _show_responses(run: RunDir, console: Console) -> None:
    for row in side_by_side(read_jsonl(run.jsonl("answers"), Answer))[:_MAX_EXAMPLES]:
        console.print(f"\n[bold]{escape(plain(row['message']))}[/bold]")
        table = Table.grid(padding=(0, 0, 0, 2))
        for name, response in row["answers"].items():
            text, ended = _clip(response["text"], 320), "" if response["ended"] else " (did not end)"
            table.add_row(f"[dim]{name}[/dim]", f"{escape(text)}[dim]{ended}[/dim]")
        console.print(table)


def show_clusters(clusters: list[list[Row]]) -> None:
    """Print clusters of duplicate rows."""
    console = stdout_console()
    rows, word = sum(map(len, clusters)), "cluster" if len(clusters) == 1 else "clusters"
    console.print(f"{rows:,} rows in {len(clusters):,} {word}" if clusters else "no duplicates")
    for cluster in clusters:
        console.print()
        for row in cluster:
            text = escape(_clip(row.text, 200))
            console.print(f"[dim]{escape(row.run)} {row.stage} {row.id}[/dim]  {text}", soft_wrap=True)


# -- scores ----------------------------------------------------------------------------------------------------------


def _scores_table(scores: list[dict[str, Any]], narrow: bool) -> Table:
    """Return the scores, without those of subsets, with a heading for each measure.

    Args:
        narrow: write intervals of differences on lines of their own.
    """
    table = new_table()
    table.add_column("scores")
    for name in ("n", "value"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    table.add_column("paired difference")
    for group in groups(scores):
        for measure in group["measures"]:
            heading = measure["name"] if group["benchmark"] == "heldout" else f"{group['title']}: {measure['name']}"
            table.add_row(escape(plain(heading)))
            for row in measure["rows"]:
                value, interval, difference = score_text(row, measure["unit"])
                cells = ("",) * 4 if row["repeat"] else (f"  {row['label']}", str(row["n"]), value, interval)
                shown = difference.replace(" (", "\n(") if narrow else difference
                table.add_row(*(escape(plain(cell)) for cell in (*cells, shown)))
    return table


def show_probes(answers: list[ProbeAnswer], totals: list[Total], fake: bool) -> None:
    """Print the passed probes of each principle, and each model's total with its interval.

    Args:
        fake: whether the fake engine responded.
    """
    table = new_table("principle", *(total.model for total in totals))
    for number, name in dict.fromkeys((a.principle, a.name) for a in answers):
        cells = []
        for total in totals:
            rows = [a for a in answers if a.principle == number and a.model == total.model]
            cells.append(f"{sum(a.passed for a in rows)}/{len(rows)}")
        table.add_row(f"{number} {escape(plain(name))}", *cells)
    table.add_section()
    table.add_row("where it applies", *(f"{t.shown[0]}/{t.shown[1]}" for t in totals))
    table.add_row("where it does not", *(f"{t.held_back[0]}/{t.held_back[1]}" for t in totals))
    table.add_row("all", *(f"{t.passed}/{t.n}" for t in totals), style="bold")
    table.add_row("", *(f"{t.interval.value:.0%}" for t in totals))
    table.add_row("95 % interval", *(f"{t.interval.low:.0%} to {t.interval.high:.0%}" for t in totals))
    if differences := [t.difference for t in totals if t.difference]:
        table.add_row(f"points from {totals[0].model}", "", *(f"{100 * d.value:+.0f}" for d in differences))
        table.add_row("95 % interval", "", *(f"{100 * d.low:+.0f} to {100 * d.high:+.0f}" for d in differences))
    console = stdout_console()
    if fake:
        console.print(_FAKE, style="yellow")
    console.print(table)
    console.print(
        "\nA model that shows no behaviour at all passes every probe where the principle does not apply, so the lowest "
        "total is about half.",
        style="dim",
    )


def show_benchmarks(scores: Sequence[Score], test_half_read: int = 0) -> None:
    """Print a table for each benchmark and measure, with intervals and paired differences; subsets as values only.

    Args:
        test_half_read: how often the test half of the scenarios was read.
    """
    console = stdout_console()
    for group in groups([asdict(score) for score in scores]):
        for measure in group["measures"]:
            console.print(
                f"[bold]{escape(plain(group['benchmark']))}[/bold]  {escape(plain(measure['name']))}", soft_wrap=True
            )
            console.print(_measure_table(measure))
            rows = [row for subset in group["subsets"] for row in subset["rows"]]
            _show_subsets(console, [row for row in rows if row["measure"] == measure["name"]])
            console.print()
    if test_half_read:
        console.print(times_read(test_half_read), style="dim")


def _measure_table(measure: dict[str, Any]) -> Table:
    """Return a row for each model; its last cell has verdict, difference (or counts of pairs) and p, as the report."""
    table = new_table()
    for column in ("model", "prompt"):
        table.add_column(column, overflow="fold")
    for column in ("n", "value"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    table.add_column("pairs" if measure["name"].startswith(WIN_RATE) else "paired difference", ratio=1)
    for row in measure["rows"]:
        value, interval, difference = score_text(row, measure["unit"])
        cells = ("",) * 5 if row["repeat"] else (row["model"], row["prompt"], str(row["n"]), value, interval)
        details = ", ".join(filter(None, (difference, row["p_text"])))
        comparison = ": ".join(filter(None, (row["verdict"], details)))
        table.add_row(*(escape(plain(cell)) for cell in (*cells, comparison)))
    return table


def _show_subsets(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """Print the models' values by subset, without the baselines that need no model."""
    values = {(r["benchmark"].split("/", 1)[1], r["label"]): score_text(r)[0] for r in rows if r["prompt"]}
    if not values:
        return
    models = list(dict.fromkeys(model for _, model in values))
    table = new_table("subset", *(escape(plain(model)) for model in models))
    for subset in dict.fromkeys(subset for subset, _ in values):
        table.add_row(escape(plain(subset)), *(values.get((subset, model), "") for model in models))
    console.print(table)
