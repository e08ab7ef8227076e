"""Write report.json and index.html of a run, from its journal, scores and responses.

The page has no scripts and loads nothing. Every text in it is escaped, since a model wrote most of them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from selfalign.constitution.rendering import render as render_constitution
from selfalign.evaluation.tasks.behaviour import TEST
from selfalign.report import data_quality, figures, plots, principles, run_summary, scores, side_by_side, summary
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.run.ledger import TITLES
from selfalign.system import atomic, strict_yaml
from selfalign.system.console import plain
from selfalign.system.format import duration
from selfalign.system.version import __version__

_MAX_TEXT = 2000
"""Characters of a response on the page."""
_MAX_ITEMS = 60
"""Items of a list of the constitution on the page."""
_MAX_REASONS = 12
"""Reasons for drops of a stage on the page."""


def run(context: Context) -> list[Path]:
    """Publish report/index.html and report/report.json, and return their paths."""
    report = gather(context.run)
    report["notice"] = context.model.notice
    atomic.write_bytes(context.run.report_json, to_json(report, indent=1, inf_nan_mode="null") + b"\n")
    atomic.write_text(context.run.report, render(report))
    return [context.run.report, context.run.report_json]


def gather(run: RunDir) -> dict[str, Any]:
    """Return the content of report.json."""
    counts = [run.journal.counts(s).as_dict() for s in run.journal.stages()]
    stages = [{**c, "title": TITLES.get(c["stage"], c["stage"])} for c in counts]
    tagged = data_quality.tag_verbs(run)
    return {
        "format": 2,
        "selfalign": __version__,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "run": run.path.name,
        "model": run.recipe.model,
        "engine": run.recipe.engine.kind,
        "assistant": run.constitution.assistant.name,
        **run_summary.gather(run, stages),
        "stages": stages,
        "scores": scores.read_scores(run),
        "test_half_read": scores.readings_of_test_half(run),
        **principles.gather(run, tagged),
        **side_by_side.gather(run),
        "data": data_quality.gather(run, tagged),
        "recipe": run.recipe.model_dump(mode="json"),
        "constitution": run.constitution.model_dump(mode="json"),
        "constitution_text": render_constitution(run.constitution),
        "notice": "",
    }


def render(report: dict[str, Any]) -> str:
    """Return the HTML page of the content of report.json."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from markupsafe import Markup

    plotted = list(figures.figures(report))
    groups = scores.groups(report["scores"])
    paper = strict_yaml.read_asset("paper.yaml")
    references = match([g["benchmark"] for g in groups], paper["references"])
    environment = ImmutableSandboxedEnvironment(
        loader=jinja2.PackageLoader("selfalign", "report/parts"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    environment.filters |= {"number": _number, "share": _percent, "duration": duration, "short": _shorten}
    return environment.get_template("page.html.jinja").render(
        report=report,
        plots=plots.available(),
        figures={figure.name: figure for figure in plotted},
        # Matplotlib and plots.py escape all texts in an SVG.
        svg={name: Markup(plain(svg)) for name, svg in figures.draw(plotted).items()},  # noqa: S704
        groups=groups,
        summary=summary.summary(report["scores"], report["supervision"]["total"], report["costs"]["seconds"]),
        primary_rows=summary.primary_rows(report["scores"]),
        score_text=scores.score_text,
        test_half=TEST,
        times_read=scores.times_read,
        references=references,
        other_references=[r for r in paper["references"] if r not in references.values()],
        supervision=paper["supervision"],
        recipe=strict_yaml.dump(report["recipe"]),
        sources={name: label for name, (label, _) in figures.SOURCES.items()},
        max_reasons=_MAX_REASONS,
        max_items=_MAX_ITEMS,
    )


def match(benchmarks: list[str], references: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the paper's results on each benchmark, each of them only once."""
    matches: dict[str, dict[str, Any]] = {}
    for name in benchmarks:
        reference = next((r for r in references if name.lower().startswith(r["benchmark"])), None)
        if reference and reference not in matches.values():
            matches[name] = reference
    return matches


def _clean(value: Any) -> Any:
    # A value with __html__ is the output of a macro, whose texts are already clean.
    return plain(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}"


def _percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f}%"


def _shorten(text: str, most: int = _MAX_TEXT) -> str:
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} characters more)"
