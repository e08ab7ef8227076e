"""One self-contained page about a run, and the same in JSON.   journal, scores, answers -> report/

No scripts, nothing loaded from elsewhere; every text is escaped, since most of it was written by a model.
"""

from __future__ import annotations

import json
import math
import time
from importlib import resources
from pathlib import Path
from typing import Any

from selfalign.constitution.rendering import render as as_the_model_sees_it
from selfalign.report import about, answers, data, figures, paper, plots, principles, scores
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.run.ledger import TITLES
from selfalign.system import atomic, strict_yaml
from selfalign.system.console import plain
from selfalign.system.version import __version__

_TEXT = 2000
"""Characters of one model's text on the page."""
_ITEMS = 60
"""Items of one list of the constitution on the page."""
_REASONS = 12
"""Reasons to drop of one stage on the page."""


def run(context: Context) -> list[Path]:
    """Publish report/index.html and report/report.json; returns the files."""
    found = gather(context.run)
    found["notice"] = context.model.notice
    atomic.write_text(context.run.report_json, json.dumps(_finite(found), indent=1, ensure_ascii=False) + "\n")
    atomic.write_text(context.run.report, render(found))
    return [context.run.report, context.run.report_json]


def gather(run: RunDir) -> dict[str, Any]:
    """Everything the report says, as plain values."""
    counts = [run.journal.counts(s).as_dict() for s in run.journal.stages()]
    stages = [{**c, "title": TITLES.get(c["stage"], c["stage"])} for c in counts]
    tagged = data.tag(run)
    return {
        "format": 2,
        "selfalign": __version__,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "run": run.path.name,
        "model": run.recipe.model,
        "engine": run.recipe.engine.kind,
        "assistant": run.constitution.assistant.name,
        **about.gather(run, stages),
        "stages": stages,
        "scores": scores.read_scores(run),
        **principles.gather(run, tagged),
        **answers.gather(run),
        "data": data.gather(run, tagged),
        "recipe": run.recipe.model_dump(mode="json"),
        "constitution": run.constitution.model_dump(mode="json"),
        "constitution_text": as_the_model_sees_it(run.constitution),
        "notice": "",
    }


def render(found: dict[str, Any]) -> str:
    """The page."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from markupsafe import Markup

    drawn = figures.draw(found)
    groups = scores.groups(found["scores"])
    beside = paper.beside([g["benchmark"] for g in groups])
    environment = ImmutableSandboxedEnvironment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_harmless,
    )
    environment.filters |= {"number": _number, "share": _share, "duration": duration, "short": _short}
    return environment.get_template("page.html").render(
        found=found,
        plots=plots.available(),
        figures=drawn,
        # Made by plots.py, which escapes the words in it.
        svg={name: Markup(plain(figure.svg)) for name, figure in drawn.items()},  # noqa: S704
        groups=groups,
        findings=scores.findings(found["scores"]),
        score_text=scores.score_text,
        beside=beside,
        others=[r for r in paper.REFERENCES if r not in beside.values()],
        supervision=paper.SUPERVISION,
        recipe=strict_yaml.dump(found["recipe"]),
        sources={name: label for name, (label, _) in figures.SOURCES.items()},
        reasons=_REASONS,
        items=_ITEMS,
    )


def _template(name: str) -> str:
    return (resources.files("selfalign") / "report/parts" / f"{name}.jinja").read_text("utf-8")


def _harmless(value: Any) -> Any:
    # What has __html__ is a macro's output: the texts in it went through here already.
    return plain(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}"


def _share(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f}%"


def duration(seconds: float | None) -> str:
    """A time as people read it."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _short(text: str, most: int = _TEXT) -> str:
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} characters more)"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value
