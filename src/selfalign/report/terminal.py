"""The run in the terminal: the table of stages, the scores, the models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from selfalign.data.records import Answer, ProbeAnswer, Score, read_jsonl
from selfalign.errors import UserError
from selfalign.evaluation.comparison import WIN_RATE
from selfalign.evaluation.tasks.probes import Total
from selfalign.planning import costs
from selfalign.planning.costs import Plan
from selfalign.planning.terminal import count, duration
from selfalign.report.answers import side_by_side
from selfalign.report.data import Row
from selfalign.report.scores import folded, p_text, read_scores, score_text
from selfalign.report.scores import verdict as word
from selfalign.run import feedback, ledger
from selfalign.run.directory import RunDir, held
from selfalign.system.console import Screen, plain, stdout_console

_SHOWN = 3
_CLIP = 150
_FAKE = "The fake engine made this: no model ran, the texts are random words.\n"


def status(run: RunDir) -> dict[str, Any]:
    """The ledger of every stage as plain values, with requests that still wait and a row for each reason to drop."""
    journal = run.journal
    stages = [
        {
            **journal.counts(s).as_dict(),
            "open": journal.open_work(s),
            "examples": journal.drop_examples(s),
            "neutralised_rows": journal.neutralised(s),
        }
        for s in journal.stages()
    ]
    state = "finished" if run.manifest.exists() else "running" if held(run.path) else "stopped"
    return {
        "run": run.path.name,
        "state": state,
        "finished": run.manifest.exists(),
        "stages": stages,
        "scores": read_scores(run),
        "feedback": _feedback(run),
    }


def _feedback(run: RunDir) -> dict[str, int]:
    """How many answers people marked; a file that was broken by hand must not hide how far the run is."""
    try:
        return feedback.counts(run)
    except UserError:
        return {}


def _stages_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name, justify in (("stage", "left"), ("in", "right"), ("kept", "right"), ("dropped, failed", "left")):
        table.add_column(name, justify=justify, no_wrap=name == "stage", ratio=1 if name == "dropped, failed" else None)  # type: ignore[arg-type]
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    for row in rows:
        reasons = {**row["dropped"], **{f"failed: {k}": v for k, v in row["failed"].items()}}
        tokens = row["generated_tokens"] or row["notes"].get("training_tokens", 0)
        left = row["rows_in"] - row["kept"] - sum(reasons.values())
        open_ = f"{left:,} to come; " if not row["finished"] and left > 0 else ""
        table.add_row(
            ledger.TITLES.get(row["stage"], row["stage"]),
            f"{row['rows_in']:,}" if row["finished"] or row["rows_in"] else "…",
            f"{row['kept']:,}" if row["finished"] or row["kept"] else "…",
            escape(plain(open_ + ", ".join(f"{reason} {n}" for reason, n in reasons.items()))),
            f"{tokens:,}",
            f"{row['seconds']:.0f}" if row["finished"] else "…",
        )
    return table


def _generation_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("generation", no_wrap=True)
    for name in ("requests", "prompt tok.", "cached", "generated", "tok./s", "busy"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            ledger.TITLES.get(row["stage"], row["stage"]),
            f"{row['requests']:,}",
            count(row["prompt_tokens"] + row["cached_tokens"]),
            f"{row['hit_rate']:.1%}",
            count(row["generated_tokens"]),
            f"{row['tokens_per_second']:.0f}",
            f"{row['busy']:.0%}",
        )
    return table


def _show_examples(rows: list[dict[str, Any]], console: Console) -> None:
    """The most frequent reasons to drop, each with the first row that it befell."""
    for row in rows:
        for reason, text in list(row["examples"].items())[:_SHOWN]:
            shown = " ".join(plain(text).split())
            failed = row["failed"].get(reason, 0)
            label = f"failed: {reason} {failed}" if failed else f"{reason} {row['dropped'].get(reason, 0)}"
            head = f"{ledger.TITLES.get(row['stage'], row['stage'])} · {plain(label)}"
            console.print(f"[dim]{escape(head)}[/dim]\n  {escape(shown[:_CLIP])}{' …' if len(shown) > _CLIP else ''}")


def _scores_table(scores: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("held-out prompts", "model"):
        table.add_column(name, no_wrap=True)
    table.add_column("n", justify="right")
    table.add_column("value", justify="right")
    table.add_column("95 % interval")
    table.add_column("paired difference")
    for score in folded(scores):
        value, interval, difference = score_text(score)
        table.add_row(score["measure"], score["model"], str(score["n"]), value, interval, difference)
    return table


def show_probes(answers: list[ProbeAnswer], totals: list[Total], fake: bool) -> None:
    """A principle a row (counts), and each model's total with its interval.

    Args:
        fake: the fake engine answered.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("principle", no_wrap=True)
    for total in totals:
        table.add_column(total.model, justify="right")
    for number, name in dict.fromkeys((a.principle, a.name) for a in answers):
        cells = []
        for total in totals:
            rows = [a for a in answers if a.principle == number and a.model == total.model]
            cells.append(f"{sum(a.passed for a in rows)}/{len(rows)}")
        table.add_row(f"{number} {escape(plain(name))}", *cells)
    table.add_section()
    table.add_row("where it belongs", *(f"{t.shown[0]}/{t.shown[1]}" for t in totals))
    table.add_row("where it does not", *(f"{t.held_back[0]}/{t.held_back[1]}" for t in totals))
    table.add_row("all", *(f"{t.passed}/{t.n}" for t in totals), style="bold")
    table.add_row("", *(f"{t.interval.value:.0%}" for t in totals))
    table.add_row("95 % interval", *(f"{t.interval.low:.0%} to {t.interval.high:.0%}" for t in totals))
    if compared := [t.difference for t in totals if t.difference]:
        table.add_row(f"points from {totals[0].model}", "", *(f"{100 * d.value:+.0f}" for d in compared))
        table.add_row("95 % interval", "", *(f"{100 * d.low:+.0f} to {100 * d.high:+.0f}" for d in compared))
    console = stdout_console()
    if fake:
        console.print(_FAKE, style="yellow")
    console.print(table)
    console.print(
        "\nA model that says anything at all but shows no behaviour passes every probe where it does not belong: "
        "the floor of the total is about half.",
        style="dim",
    )


def show_benchmarks(scores: Sequence[Score]) -> None:
    """A table for each benchmark and measure, with intervals and paired differences; subsets by their values only."""
    console = stdout_console()
    rows = folded([asdict(s) for s in scores])
    scores = [Score(**{name: row[name] for name in Score.__dataclass_fields__}) for row in rows]
    pairs = {s: _pairs(r) for s, r in zip(scores, rows, strict=True)}
    for name, measure in dict.fromkeys((s.benchmark, s.measure) for s in scores if "/" not in s.benchmark):
        console.print(f"[bold]{escape(plain(name))}[/bold]  {escape(plain(measure))}", soft_wrap=True)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for column in ("model", "prompt"):
            table.add_column(column, overflow="fold")
        for column in ("n", "value"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("95 % interval", no_wrap=True)
        won = measure.startswith(WIN_RATE)
        table.add_column("pairs" if won else "paired difference", ratio=1)
        before = ("", "")
        for s in (s for s in scores if (s.benchmark, s.measure) == (name, measure)):
            same, before = (s.model, s.prompt) == before, (s.model, s.prompt)
            own = ("",) * 5 if same else (s.model, s.prompt, str(s.n), *_rate(s))
            table.add_row(*(escape(plain(cell)) for cell in (*own, pairs[s] if won else _difference(s))))
        console.print(table)
        _show_subsets(console, [s for s in scores if s.benchmark.startswith(f"{name}/") and s.measure == measure])
        console.print()


def _pairs(row: dict[str, Any]) -> str:
    """What a win rate's pairs came to, and what that may be called."""
    text = ", ".join(filter(None, (row.get("counts"), p_text(row))))
    return ": ".join(filter(None, (word(row), text)))


def _show_subsets(console: Console, scores: Sequence[Score]) -> None:
    """The values of each subset, a model a line."""
    values = {(s.model, s.prompt, s.benchmark.split("/", 1)[1]): _rate(s)[0] for s in scores}
    for model, prompt in dict.fromkeys((s.model, s.prompt) for s in scores):
        own = ", ".join(f"{subset} {value}" for (m, p, subset), value in values.items() if (m, p) == (model, prompt))
        console.print(f"  {escape(plain(f'{model} ({prompt}): {own}'))}", style="dim", soft_wrap=True)


def _rate(score: Score) -> tuple[str, str]:
    value, interval, _ = score_text(score)
    return value, interval


def _difference(score: Score) -> str:
    """The paired difference, what it may be called, and p; in the words of the report."""
    row = asdict(score)
    return ": ".join(filter(None, (word(row), ", ".join(filter(None, (score_text(row)[2], p_text(row)))))))


def _comparison_table(made: Plan, rows: list[dict[str, Any]]) -> Table:
    """Plan against actual, of the stages that are finished."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("plan → actual", no_wrap=True)
    for name in ("requests", "tokens", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    actual = {row["stage"]: row for row in rows if row["finished"]}
    for stage in made.stages:
        if row := actual.get(stage.stage):
            tokens = row["generated_tokens"] or row["notes"].get("training_tokens", 0)
            table.add_row(
                ledger.TITLES.get(stage.stage, stage.stage),
                f"{stage.requests:,} → {row['requests']:,}" if stage.requests else "",
                f"{stage.generated_tokens:,} → {tokens:,}",
                f"{duration(stage.seconds)} → {duration(row['seconds'])}",
            )
    planned = {stage.stage for stage in made.stages}
    spent = sum(row["seconds"] for name, row in actual.items() if name in planned)
    table.add_row("all", "", "", f"{duration(made.seconds)} → {duration(spent)}", style="bold")
    return table


def show_status(run: RunDir, examples: bool = True) -> None:
    """The tables of stages, generation and scores on standard output, with examples of what was dropped."""
    _show_tables(run, status(run), stdout_console(), examples)


def _show_tables(run: RunDir, found: dict[str, Any], console: Console, examples: bool) -> None:
    if run.recipe.engine.kind == "fake":
        console.print(_FAKE, style="yellow")
    if not found["stages"]:
        console.print(f"nothing done yet: `selfalign run` with the same --out goes on ({found['state']})")
        return
    if found["state"] != "finished":
        console.print(f"{found['state']}\n", style="dim")
    console.print(_stages_table(found["stages"]))
    made = [row for row in found["stages"] if row["requests"] and row["generation_seconds"]]
    if made and run.recipe.engine.kind != "fake":
        console.print()
        console.print(_generation_table(made))
    for row in (row for row in found["stages"] if row["neutralised"]):
        title = ledger.TITLES.get(row["stage"], row["stage"])
        word = "row" if row["neutralised"] == 1 else "rows"
        console.print(
            f"{title}: control tokens in the text neutralised: {row['neutralised']:,} {word} (--json names them)",
            style="yellow",
        )
    if found["scores"]:
        console.print()
        console.print(_scores_table(found["scores"]))
    if any(found["feedback"].values()):
        said = f"{found['feedback']['good']} good, {found['feedback']['bad']} bad"
        console.print(f"\nanswers marked by people: {said} (selfalign constitution suggest {run.path})", markup=False)
    if examples and any(row["examples"] for row in found["stages"]):
        console.print("\nThe first row of each reason (all: drops.jsonl)")
        _show_examples(found["stages"], console)


def show(run: RunDir, screen: Screen) -> None:
    """What `run` ends with: the tables, a few prompts answered by every model, and where the report is."""
    console = stdout_console()
    console.print()
    found = status(run)
    _show_tables(run, found, console, examples=False)
    if made := costs.read(run.plan):
        console.print()
        console.print(_comparison_table(made, found["stages"]))
        console.print(_resources(run, made), style="dim")
    if screen.verbosity >= 0 and run.jsonl("answers").exists():
        _show_answers(run, console)
    if run.report.exists():
        console.print(f"\nreport: {run.report}", soft_wrap=True)


def show_clusters(found: list[list[Row]]) -> None:
    """Clusters of rows that say the same, on standard output."""
    console = stdout_console()
    rows = sum(map(len, found))
    word = "cluster" if len(found) == 1 else "clusters"
    console.print(f"{rows:,} rows in {len(found):,} {word}" if found else "none is nearly the same as another")
    for cluster in found:
        console.print()
        for row in cluster:
            text = " ".join(plain(row.text).split())
            text = text if len(text) <= 200 else text[:200].rsplit(" ", 1)[0] + " …"
            console.print(f"[dim]{escape(row.run)} {row.stage} {row.id}[/dim]  {escape(text)}", soft_wrap=True)


def _resources(run: RunDir, made: Plan) -> str:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    disk = sum(f.stat().st_size for f in run.path.rglob("*") if f.is_file()) / 1e6
    memory = f"{made.memory_mb / 1000:.1f}" if made.memory_mb else "?"
    return f"memory {memory} → {peak:.1f} GB (of this process), disk {made.disk_mb:,.0f} → {disk:,.0f} MB"


def _show_answers(run: RunDir, console: Console) -> None:
    for row in side_by_side(read_jsonl(run.jsonl("answers"), Answer))[:_SHOWN]:
        console.print(f"\n[bold]{escape(plain(row['message']))}[/bold]")
        for name, answer in row["answers"].items():
            text = " ".join(plain(answer["text"]).split())
            text = text if len(text) <= 320 else text[:320].rsplit(" ", 1)[0] + " …"
            ended = "" if answer["ended"] else " (did not end)"
            console.print(f"  [dim]{name:<9}[/dim] {escape(text)}[dim]{ended}[/dim]")
