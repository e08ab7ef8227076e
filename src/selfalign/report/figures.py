"""Choose the plots of the report from the numbers in report.json, each with its numbers as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from selfalign.evaluation.comparison import WIN_RATE
from selfalign.report import charts, plots, scores
from selfalign.report.charts import Estimate, Style
from selfalign.report.data_quality import LENGTHS
from selfalign.report.plots import ACCENT, INK, PAPER, SOFT, Canvas

SOURCES: dict[str, tuple[str, Style]] = {
    "self_instruct": ("Self-Instruct", (INK, PAPER)),
    "red_team": ("red-teaming", (ACCENT, ACCENT)),
    "user": ("user prompts", (INK, PAPER)),
}
_KINDS: dict[str, tuple[Style, str]] = {
    "prompts": ((SOFT, SOFT), ":"),
    "answers": ((INK, INK), "-"),
    "verbose": ((ACCENT, ACCENT), "-"),
}
_AXES = {"percent": "fraction, with 95 % interval", "words": "words", "number": "mean, with 95 % interval"}
_UNITS = {"percent": "Fractions", "words": "Lengths", "number": "Means"}
_ROWS = 40
"""Points of a training curve in its table."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot with a description and its numbers."""

    name: str
    title: str
    text: str
    """A description for screen readers."""
    head: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    canvas: Callable[[], Canvas]
    """Draws the plot."""


def draw(drawn: Iterable[Figure]) -> dict[str, str]:
    """Return name -> SVG of each plot; none if matplotlib is not installed."""
    if not plots.available():
        return {}
    with plots.drawing():
        return {f.name: plots.svg(f.canvas(), f.name, f.title, f.text) for f in drawn}


def figures(report: dict[str, Any]) -> Iterator[Figure]:
    """Yield the plots for which the report has numbers."""
    if report["funnel"]:
        yield _funnel(report["funnel"])
    use = report["principle_use"]
    if use["citations"]:
        yield _usage(report["principles"], use)
        for name, title in (("question_types", "Principles by question type"), ("verbs", "Principles by verb")):
            if use[name]:
                yield _crossing(name, title, report["principles"], use[name])
    described = report["data"]["diversity"]
    if (pairs := described.get("prompts", {}).get("verb_objects")) and pairs["verbs"]:
        yield _verbs(pairs)
    if report["data"]["lengths"]:
        yield _lengths(report["data"]["lengths"])
    if any(sum(d["similarity"]["nearest"]) for d in described.values()):
        yield _nearest(described)
    for number, group in enumerate(scores.groups(report["scores"])):
        yield from _scores(number, group)
    for number, trained in enumerate(report["training"]):
        if trained["curve"]:
            yield _training(number, trained)
    if any(row["seconds"] for row in report["costs"]["stages"]):
        yield _costs(report["costs"]["stages"])


def _funnel(steps: list[dict[str, Any]]) -> Figure:
    bars = []
    for s in steps:
        number = f"{s['kept']:,} human-written" if s["human"] else f"{s['kept']:,} of {s['rows_in']:,}"
        bars.append((s["title"], number, s["kept"], s["lost"], s["human"]))
    rows = [(s["title"], s["rows_in"], s["kept"], s["lost"]) for s in steps]
    last = steps[-1]
    text = f"{len(steps)} steps; the last one, {last['title']}, keeps {last['kept']:,} of {last['rows_in']:,}."
    head = ("step", "in", "kept", "dropped and failed")
    return Figure("funnel", "Kept at each step", text, head, rows, lambda: charts.funnel(bars))


def _usage(principles: list[dict[str, Any]], use: dict[str, Any]) -> Figure:
    known = [s for s in SOURCES if use["by_source"].get(s)] + [s for s in use["by_source"] if s not in SOURCES]
    series = []
    for source in known:
        label, style = SOURCES.get(source, (source, (INK, INK)))
        counts = [p["by_source"].get(source, 0) for p in principles]
        series.append((label, style, [100 * n / max(1, use["by_source"][source]) for n in counts]))
    labels = [f"{p['id']} {p['name']}" for p in principles]
    most = max(principles, key=lambda p: p["used"])
    text = f"Most cited: {most['id']} {most['name']}, in {most['used']:,} of {use['answers']:,} responses."
    head = ("principle", *(f"{SOURCES.get(s, (s,))[0]}, of {use['by_source'][s]:,}" for s in known))
    rows = [(label, *(p["by_source"].get(s, 0) for s in known)) for label, p in zip(labels, principles, strict=True)]
    axis = "fraction of the responses that cite it"
    return Figure(
        "usage", "Principles cited, by source", text, head, rows, lambda: charts.dumbbells(labels, series, axis)
    )


def _crossing(name: str, title: str, principles: list[dict[str, Any]], crossed: list[dict[str, Any]]) -> Figure:
    cited = [p for p in principles if p["used"]]
    columns = [f"{p['id']} {p['name']}" for p in cited]
    values = [[c["principles"].get(str(p["id"]), 0) / max(1, c["answers"]) for p in cited] for c in crossed]
    rows = [
        (c["name"], c["answers"], ", ".join(f"{p}: {n}" for p, n in list(c["principles"].items())[:6])) for c in crossed
    ]
    what = "question type" if name == "question_types" else "verb"
    text = f"A row for each {what}, a column for each principle; darker cells are cited by a larger fraction."
    head = (what, "responses", "principle number: citations")
    labels = [f"{plots.clip(c['name'], 21)} · {c['answers']}" for c in crossed]
    return Figure(
        f"by-{name.replace('_', '-')}", title, text, head, rows, lambda: charts.matrix(labels, columns, values)
    )


def _verbs(pairs: dict[str, Any]) -> Figure:
    tree = [(v["verb"], [(noun, n) for noun, n in v["objects"]]) for v in pairs["verbs"]]
    rows = [(v, sum(n for _, n in objects), ", ".join(f"{o} {n}" for o, n in objects)) for v, objects in tree]
    of = "Self-Instruct prompts" if pairs["of"] == "self_instruct" else "the prompts"
    text = f"The {len(tree)} most frequent verbs of {of} (inside), with up to four objects of each (outside)."
    head, title = ("verb", "count", "objects"), "Verbs of the instructions and their objects"
    return Figure("verbs", title, text, head, rows, lambda: charts.sunburst(tree))


def _series(histograms: dict[str, Sequence[int]]) -> list[tuple[str, Style, str, list[float]]]:
    """Return the percentages of each histogram, with its style."""
    return [
        (name, *_KINDS.get(name, ((INK, INK), "-")), [100 * n / max(1, sum(counts)) for n in counts])
        for name, counts in histograms.items()
    ]


def _lengths(lengths: dict[str, Any]) -> Figure:
    series = _series({name: stats["histogram"] for name, stats in lengths.items() if stats["texts"]})
    rows = [
        (name, *(stats[k] for k in ("texts", "low", "median", "high", "longest"))) for name, stats in lengths.items()
    ]
    text = "; ".join(f"{name}: median {stats['median']} words" for name, stats in lengths.items()) + "."
    head = ("", "texts", "10th percentile", "median", "90th percentile", "longest")
    edges, ticks = (*LENGTHS, 2 * LENGTHS[-1]), (1, 4, 16, 64, 256, 1024)
    return Figure("lengths", "Lengths", text, head, rows, lambda: charts.steps(series, edges, "words", ticks, log=True))


def _nearest(described: dict[str, Any]) -> Figure:
    known = {name: d["similarity"]["nearest"] for name, d in described.items() if sum(d["similarity"]["nearest"])}
    series, bins = _series(known), len(next(iter(known.values())))
    edges = [i / bins for i in range(bins + 1)]
    rows = [(f"{edges[i]:.1f} to {edges[i + 1]:.1f}", *(nearest[i] for nearest in known.values())) for i in range(bins)]
    halves = {name: round(100 * sum(nearest[bins // 2 :]) / sum(nearest)) for name, nearest in known.items()}
    text = "; ".join(f"{name}: {half} % have a neighbour at 0.5 or more" for name, half in halves.items())
    return Figure(
        "nearest", "Similarity to the nearest other text", f"{text}.", ("ROUGE-L", *known), rows,
        lambda: charts.steps(series, edges, "ROUGE-L F1 with the nearest other text", (0, 0.2, 0.4, 0.6, 0.8, 1)),
    )  # fmt: skip


def _scores(number: int, group: dict[str, Any]) -> Iterator[Figure]:
    """Yield a plot for each unit of a benchmark's measures."""
    for kind in dict.fromkeys(m["unit"] for m in group["measures"]):
        measures = [m for m in group["measures"] if m["unit"] == kind]
        scale = 100 if kind == "percent" else 1
        rows = [row for measure in measures for row in _estimates(measure, scale)]
        if len(measures) == 1:
            rows = rows[1:]  # the measure's name is the plot's title
        if not rows:
            continue
        limits = {"percent": (0.0, 100.0), "words": (0.0, None)}.get(kind, (None, None))
        title = measures[0]["name"] if len(measures) == 1 else _UNITS[kind]
        text = "Values and intervals are in the table."
        even = 50.0 if kind == "percent" and all(m["name"].startswith(WIN_RATE) for m in measures) else None
        canvas = partial(charts.intervals, rows, limits, _AXES[kind], kind == "percent", even)
        yield Figure(f"scores-{number}-{kind}", title, text, (), [], canvas)


def _known(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300  # not nan or infinite


def _estimates(measure: dict[str, Any], scale: float) -> list[Estimate]:
    """Return a heading with the measure's name and a row for each model; nothing if no value is a number."""
    estimates = []
    for row in measure["rows"]:
        value, low, high = (scale * row[k] if _known(row[k]) else None for k in ("value", "low", "high"))
        if value is not None and not row["repeat"]:
            style = charts.MODEL_STYLES.get(row["model"], (INK, PAPER))
            estimates.append(Estimate(row["label"], value, low, high, style))
    return [Estimate(measure["name"]), *estimates] if estimates else []


def _training(number: int, trained: dict[str, Any]) -> Figure:
    curve, heldout = trained["curve"], trained["heldout"]
    rows = [tuple(p) for p in (curve if len(curve) <= _ROWS else curve[:: -(-len(curve) // _ROWS)])]
    head = ("step", "loss", "learning rate")
    text = f"Loss from {curve[0][1]:.3f} to {curve[-1][1]:.3f} in {len(curve):,} steps"
    if heldout:
        text += f"; held out, from {heldout[0][1]:.3f} to {heldout[-1][1]:.3f}"
    title = f"Loss: {trained['title']}"
    return Figure(f"training-{number}", title, f"{text}.", head, rows, lambda: charts.curves(curve, heldout))


def _costs(stages: list[dict[str, Any]]) -> Figure:
    rows = [
        (s["title"], s["seconds"] / 60, None if s["planned_seconds"] is None else s["planned_seconds"] / 60)
        for s in stages
    ]
    longest = max(stages, key=lambda s: s["seconds"])
    text = f"The longest stage is {longest['title']}, {longest['seconds'] / 60:.1f} minutes."
    return Figure("time", "Time, plan and actual", text, (), [], lambda: charts.plan_and_actual(rows))
