"""Draw the plots of the report: funnel, dumbbells, matrix, sunburst, steps, intervals, curves, plan and actual.

Each function takes plain values and returns a canvas, which plots.py turns into an SVG. Plots are about 400 pixels
wide, to fit on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfalign.report.plots import ACCENT, INK, LINE, PAPER, SIZE, SMALL, SOFT, Canvas, clip

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 400
_LETTER = 5.6
"""Approximate width of a letter of small text, in pixels."""
_BINS = 240
"""Points of a curve; longer curves are averaged."""

Style = tuple[str, str]
"""(line colour, fill colour of markers)."""
MODEL_STYLES: dict[str, Style] = {
    "base": (SOFT, SOFT), "prompted base": (SOFT, PAPER), "engraved": (ACCENT, PAPER), "final": (ACCENT, ACCENT),
}  # fmt: skip


def funnel(bars: Sequence[tuple[str, str, float, float, bool]]) -> Canvas:
    """Draw a bar for each (label, number, kept, lost, outlined), with its label above: kept in colour, lost pale."""
    pitch, thick = 36, 9
    drawn = Canvas(WIDTH, pitch * len(bars) + 4)
    axes = drawn.whole()
    longest = max((kept + lost for _, _, kept, lost, _ in bars), default=0) or 1
    for at, (label, number, *sizes, outlined) in enumerate(bars):
        top = at * pitch
        axes.text(0, top + 13, clip(label, 44), color=INK, fontsize=SIZE)
        axes.text(WIDTH, top + 13, number, color=SOFT, fontsize=SIZE, ha="right")
        kept, lost = (WIDTH * n / longest for n in sizes)
        if outlined:
            width = max(kept - 1, 1)
            axes.barh(top + 22.5, width, thick - 1, left=0.5, color=PAPER, edgecolor=SOFT, linewidth=1)
            continue
        axes.barh(top + 22.5, max(kept, 1.5), thick, color=ACCENT)
        if lost:
            axes.barh(top + 22.5, max(lost - 1, 1), thick, left=max(kept, 1.5) + 1, color=LINE)
    return drawn


def _legend(axes: Axes, entries: Sequence[tuple[str, Style, str]], left: float = 0, y: float = 7) -> None:
    """Draw a legend of (label, style, line style or "" for a marker) in axes of pixels."""
    for label, (colour, fill), line in entries:
        if line:
            axes.plot([left, left + 16], [y, y], color=colour, linestyle=line, linewidth=1.6)
        else:
            axes.plot([left + 6], [y], marker="o", markersize=7, color=colour, markerfacecolor=fill)
        start = left + (21 if line else 15)
        axes.text(start, y + 4, clip(label, 24), color=SOFT, fontsize=SMALL)
        left = start + _LETTER * min(len(label), 24) + 16


def _rows(drawn: Canvas, margins: tuple[int, int, int, int], labels: Sequence[str], highest: float) -> Axes:
    """Add axes with a labelled row for each label, from 0 to a little more than the highest value."""
    axes = drawn.axes(*margins)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(0, highest * 1.06 or 1)
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", labelcolor=INK, pad=8)
    axes.grid(visible=True, axis="x", color=LINE, linewidth=0.8)
    return axes


def dumbbells(labels: Sequence[str], series: Sequence[tuple[str, Style, Sequence[float]]], axis: str) -> Canvas:
    """Draw a row for each label with a marker for each series (percent), joined by a line."""
    pitch, side = 19, 158
    drawn = Canvas(WIDTH, pitch * len(labels) + 62)
    _legend(drawn.whole(), [(name, style, "") for name, style, _ in series])
    highest = max((v for _, _, values in series for v in values), default=0)
    axes = _rows(drawn, (side, 24, 12, 36), [clip(label, 27) for label in labels], highest)
    axes.set_xlabel(clip(axis, 60))
    axes.xaxis.set_major_formatter("{x:.0f}%")
    for row in range(len(labels)):
        values = [values[row] for _, _, values in series]
        axes.plot([min([0.0, *values] if len(values) == 1 else values), max(values)], [row, row], color=LINE, lw=2.5)
        for (_, (colour, fill), _), value in zip(series, values, strict=True):
            # Hollow markers are larger, so they stay visible behind a filled one.
            size = 6 if colour == fill else 9
            axes.plot([value], [row], marker="o", markersize=size, color=colour, markerfacecolor=fill)
    return drawn


def matrix(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]]) -> Canvas:
    """Draw shaded cells, from no colour for 0 to full colour for the largest value."""
    side, head, right = 150, 12 + _LETTER * min(24, max(map(len, columns), default=0)), 4
    cell = min(22.0, (WIDTH - side - right) / max(1, len(columns)))
    height = min(cell, 17.0)
    drawn = Canvas(WIDTH, round(head + height * len(rows) + 6))
    axes = drawn.whole()
    largest = max((v for row in values for v in row), default=0) or 1
    for at, column in enumerate(columns):
        x = side + (at + 0.5) * cell
        axes.text(x, head - 6, clip(column, 24), rotation=90, ha="center", va="bottom", color=SOFT, fontsize=SMALL)
    for at, row in enumerate(rows):
        y = head + at * height
        axes.text(side - 8, y + height / 2 + 3.5, clip(row, 28), ha="right", color=INK, fontsize=SMALL)
        axes.barh(y + height, cell * len(columns), 0.4, left=side, color=LINE)
        for place, value in enumerate(values[at]):
            if value > 0:
                shade, left = 0.12 + 0.88 * value / largest, side + place * cell + 0.5
                axes.barh(y + height / 2, cell - 1, height - 1, left=left, color=ACCENT, alpha=shade)
    return drawn


def sunburst(tree: Sequence[tuple[str, Sequence[tuple[str, int]]]]) -> Canvas:
    """Draw an inner ring of names, sized by the sum of their parts, and the parts around them."""
    size = 420
    drawn = Canvas(size, size)
    axes = drawn.axes(0, 0, 0, 0, projection="polar")
    axes.set_axis_off()
    axes.set_theta_offset(math.pi / 2)  # type: ignore[attr-defined]
    axes.set_theta_direction(-1)  # type: ignore[attr-defined]
    axes.set_ylim(0, 1)

    def wedge(start: float, width: float, bottom: float, depth: float, shade: float, label: str, ink: str) -> None:
        middle, radius = start + width / 2, bottom + depth / 2
        axes.bar(middle, depth, width, bottom, color=ACCENT, alpha=shade, edgecolor=PAPER, linewidth=1)
        if width * radius * size / 2 < SMALL:  # too small for a line of text
            return
        degrees = 90 - math.degrees(middle)
        turned = degrees if -90 <= degrees <= 90 else degrees + 180
        axes.text(
            middle, radius, clip(label, int(depth * size / 2 / _LETTER) - 1), rotation=turned, ha="center", va="center",
            color=ink, fontsize=SMALL, rotation_mode="anchor",
        )  # fmt: skip

    total = sum(n for _, parts in tree for _, n in parts) or 1
    start = 0.0
    for at, (name, parts) in enumerate(tree):
        width = sum(n for _, n in parts) / total * 2 * math.pi
        shade = (0.95, 0.78)[at % 2]
        wedge(start, width, 0.24, 0.37, shade, name, PAPER)
        for part, number in parts:
            span = number / total * 2 * math.pi
            wedge(start, span, 0.61, 0.38, 0.26 if at % 2 else 0.34, part, INK)
            start += span
    return drawn


def steps(
    series: Sequence[tuple[str, Style, str, Sequence[float]]],
    edges: Sequence[float],
    axis: str,
    ticks: Sequence[float],
    log: bool = False,
) -> Canvas:
    """Draw histograms over each other: (label, style, line style, percentage of each bin)."""
    drawn = Canvas(WIDTH, 232)
    _legend(drawn.whole(), [(name, style, line) for name, style, line, _ in series])
    axes = drawn.axes(44, 26, 8, 40)
    if log:
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, max((v for *_, values in series for v in values), default=0) * 1.06 or 1)
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.yaxis.set_major_formatter("{x:.0f}%")
    axes.set_xlabel(clip(axis, 60))
    axes.set_ylabel("texts")
    axes.grid(visible=True, axis="y", color=LINE, linewidth=0.8)
    for _, (colour, _), line, values in series:
        axes.stairs(values, edges, color=colour, linestyle=line, linewidth=1.6, baseline=None)
    return drawn


@dataclass(frozen=True, slots=True)
class Estimate:
    """A row of an interval plot; a heading if it has no value."""

    label: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    style: Style = (SOFT, PAPER)


def intervals(
    rows: Sequence[Estimate],
    limits: tuple[float | None, float | None],
    axis: str,
    percent: bool,
    even: float | None = None,
) -> Canvas:
    """Draw an estimate with its interval for each row, under headings.

    Args:
        limits: limits of the axis; None derives one from the values.
        even: position of a line between better and worse.
    """
    pitch, side = 18, 132
    drawn = Canvas(WIDTH, pitch * len(rows) + 44)
    axes = drawn.axes(side, 2, 14, 40)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    known = [v for r in rows for v in (r.value, r.low, r.high) if v is not None]
    room = (max(known) - min(known)) * 0.12 or abs(known[0]) * 0.1 or 1
    left, right = limits
    axes.set_xlim(min(known) - room if left is None else left, max(known) + room if right is None else right)
    axes.locator_params(axis="x", nbins=5)
    axes.set_yticks([])
    axes.set_xlabel(clip(axis, 60))
    if percent:
        axes.xaxis.set_major_formatter("{x:.0f}%")
    axes.grid(visible=True, axis="x", color=LINE, linewidth=0.8)
    if even is not None:
        axes.axvline(even, color=SOFT, linewidth=1)
    for at, row in enumerate(rows):
        heading = row.value is None
        place = (-(side - 2) if heading else -(side - 14), -3.5)
        axes.annotate(
            clip(row.label, 40 if heading else 20), (0, at), place, xycoords=("axes fraction", "data"),
            textcoords="offset pixels", color=INK if heading else SOFT, fontsize=SMALL,
        )  # fmt: skip
        if row.value is None:
            continue
        colour, fill = row.style
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [at, at], color=colour, linewidth=1.6)
        axes.plot([row.value], [at], marker="o", markersize=7, color=colour, markerfacecolor=fill)
    return drawn


def curves(train: Sequence[Sequence[float]], heldout: Sequence[Sequence[float]]) -> Canvas:
    """Draw the loss over steps, its running mean, the held-out loss, and the learning rate below.

    Args:
        train: [step, loss, learning rate] of each step.
        heldout: [step, loss].
    """
    drawn = Canvas(WIDTH, 262)
    entries: list[tuple[str, Style, str]] = [("step", (SOFT, SOFT), "-"), ("mean of a tenth", (ACCENT, ACCENT), "-")]
    if heldout:
        entries.append(("held-out", (INK, PAPER), ""))
    _legend(drawn.whole(), entries)
    axes = drawn.axes(56, 26, 10, 98)
    points = thinned(train)
    x, loss, rate = ([p[i] for p in points] for i in range(3))
    axes.plot(x, loss, color=SOFT, linewidth=0.8, alpha=0.7)
    axes.plot(x, running_mean(loss, max(1, len(loss) // 10)), color=ACCENT, linewidth=1.8)
    if heldout:
        axes.plot(*zip(*heldout, strict=True), color=INK, marker="o", markersize=6, markerfacecolor=PAPER, linewidth=1)
    axes.set_ylabel("loss per token")
    axes.set_xticklabels([])
    below = drawn.axes(56, 178, 10, 38)
    below.plot(x, rate, color=SOFT, linewidth=1.2)
    highest = max(rate, default=0) or 1
    below.set_ylim(0, highest * 1.15)
    below.set_yticks([0, highest], ["0", f"{highest:g}"])
    below.set_ylabel("rate")
    below.set_xlabel("optimiser step")
    for part in (axes, below):
        part.set_xlim(0, max([*x, *(h[0] for h in heldout), 1]))
        part.yaxis.set_label_coords(-0.128, 0.5)
        part.grid(visible=True, axis="y", color=LINE, linewidth=0.8)
    return drawn


def thinned(points: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return at most 240 points, as means of equal parts of the curve."""
    import numpy as np

    if len(points) <= _BINS:
        return [list(p) for p in points]
    cuts = np.linspace(0, len(points), _BINS + 1).astype(int)
    return [part.mean(axis=0).tolist() for part in np.split(np.array(points), cuts[1:-1])]


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Return the mean of each value and its neighbours up to half the width away."""
    half = width // 2
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(w) / len(w) for w in windows]


def plan_and_actual(rows: Sequence[tuple[str, float, float | None]]) -> Canvas:
    """Draw a bar of minutes for each stage, with a marker for the plan."""
    pitch, side = 22, 118
    drawn = Canvas(WIDTH, pitch * len(rows) + 64)
    _legend(drawn.whole(), [("actual", (ACCENT, ACCENT), "-"), ("plan", (INK, PAPER), "")])
    highest = max((v for _, a, p in rows for v in (a, p or 0)), default=0)
    axes = _rows(drawn, (side, 24, 12, 38), [clip(label, 20) for label, _, _ in rows], highest)
    axes.set_xlabel("minutes")
    for at, (_, actual, planned) in enumerate(rows):
        axes.barh(at, actual, height=0.42, color=ACCENT)
        if planned is not None:
            axes.plot([planned], [at], marker="o", markersize=7, color=INK, markerfacecolor=PAPER)
    return drawn
