"""Print a comparison of runs with different seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape

from selfalign.evaluation.endpoints import is_primary
from selfalign.evaluation.seeds import RunResults, SeedScore
from selfalign.planning.terminal import new_table
from selfalign.report.scores import Unit, number_text, p_text, score_text, title, unit, verdict
from selfalign.system.console import plain, stdout_console


def show(scores: Sequence[SeedScore], runs: Sequence[RunResults]) -> None:
    """Print the primary endpoints, then the rates of all other measures by benchmark and group."""
    console = stdout_console()
    seeds = ", ".join(str(run.seed) for run in runs)
    console.print(f"[bold]Primary endpoints[/bold], seeds {seeds}: appropriate responses of the final model\n")
    table = new_table("", "by seed", "mean difference (95 % interval)", "", "")
    for score in scores:
        if is_primary(score):
            row, kind = asdict(score), unit(asdict(score))
            gaps = ", ".join(number_text(d, kind, score.n, sign=True) for d in score.differences)
            cells = (title(score.benchmark), gaps, score_text(row)[2], verdict(row), p_text(row))
            table.add_row(*(escape(plain(cell)) for cell in cells))
    console.print(table)
    console.print("\n[bold]Exploratory[/bold]: mean (by seed)")
    for benchmark in dict.fromkeys(s.benchmark.split("/")[0] for s in scores):
        _show_benchmark(console, [s for s in scores if s.benchmark.split("/")[0] == benchmark])


def _show_benchmark(console: Console, scores: Sequence[SeedScore]) -> None:
    """Print a row for each measure and group, with a column for each model except baselines without a prompt."""
    models = list(dict.fromkeys((s.model, s.prompt) for s in scores if s.prompt))
    names = [model for model, _ in models]
    labels = [m if names.count(m) == 1 else f"{m} · {prompt}" for m, prompt in models]
    cells: dict[tuple[str, str], dict[tuple[str, str], SeedScore]] = {}
    for score in scores:
        subset = score.benchmark.partition("/")[2]
        cells.setdefault((score.measure, subset), {})[score.model, score.prompt] = score
    table = new_table(*(escape(plain(text)) for text in (title(scores[0].benchmark), *labels)))
    table.columns[0].no_wrap = False  # in a narrow terminal, names are wrapped and not the numbers
    measures = list(dict.fromkeys(measure for measure, _ in cells))
    for measure, subset in sorted(cells, key=lambda key: measures.index(key[0])):  # the groups below their measure
        row = cells[measure, subset]
        texts = (_cell(row[model]) if model in row else "" for model in models)
        table.add_row(escape(plain(f"  {subset}" if subset else measure)), *texts)
    console.print()
    console.print(table)


def _cell(score: SeedScore) -> str:
    kind: Unit = unit(asdict(score))
    by_seed = ", ".join(number_text(v, kind) for v in score.values)
    return f"{number_text(score.value, kind)}{'%' if kind == 'percent' else ''} ({by_seed})"
