"""Plots: small, accessible and reproducible SVGs."""

from __future__ import annotations

import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfalign.report import charts, plots
from selfalign.report.charts import Estimate

pytest.importorskip("matplotlib")

ROWS = [Estimate("accuracy"), Estimate("base", 40, 30, 50), Estimate("final", 60, None, None)]
CURVE = [[n, 3 - n / 100, 1e-4] for n in range(1, 101)]
LOOK = (plots.INK, plots.PAPER)
CHARTS = {
    "funnel": lambda t: charts.funnel([(t, "1 of 2", 1, 1, False), (t, "3", 3, 0, True)]),
    "dumbbells": lambda t: charts.dumbbells([t, "b"], [(t, LOOK, [0.0, 50.0])], t),
    "matrix": lambda t: charts.matrix([t, "b"], [t], [[0.5], [0.0]]),
    "sunburst": lambda t: charts.sunburst([(t, [(t, 3), ("x", 1)]), ("go", [(t, 2)])]),
    "steps": lambda t: charts.steps([(t, LOOK, "-", [10, 90])], [1, 2, 4], t, (1, 2, 4), log=True),
    "intervals": lambda t: charts.intervals([Estimate(t), *ROWS], (0, 100), t, True),
    "curves": lambda t: charts.curves(CURVE, [[0, 3.0], [100, 2.1]]),
    "plan": lambda t: charts.plan_and_actual([(t, 1.0, 2.0), ("b", 0.0, None)]),
}


def drawn(name: str, text: str = "a label") -> str:
    with plots.drawing():
        return plots.svg(CHARTS[name](text), "p", "a title", "what it shows")


@pytest.mark.parametrize("name", CHARTS)
def test_plot_is_small_well_formed_and_uses_css_colours(name: str):
    svg = drawn(name)
    root = ElementTree.fromstring(svg)
    assert root.find("title").text == "a title"
    assert root.find("desc").text == "what it shows"
    assert root.get("aria-labelledby") == "p-title p-text"
    assert len(svg) < 20_000
    assert "font-family" not in svg
    assert "clip-path" not in svg
    assert not re.search(r"#[0-9a-fA-F]{6}", svg)
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    assert {e.get("href")[1:] for e in root.iter() if e.get("href")} <= set(ids)
    assert all(i.startswith("p-") for i in ids)
    assert list(root.iter("path"))


@pytest.mark.parametrize("name", sorted(set(CHARTS) - {"curves"}))
def test_labels_are_text(name: str):
    texts = ["".join(e.itertext()) for e in ElementTree.fromstring(drawn(name, "a $x^2$ & <b>")).iter("text")]
    assert any(t.startswith("a $x^2$ &") for t in texts), texts


@given(st.text(max_size=30))
@settings(max_examples=15)
def test_any_label_gives_valid_xml(text: str):
    for name in ("funnel", "matrix", "sunburst", "intervals"):
        ElementTree.fromstring(drawn(name, text))


def test_plots_are_reproducible_across_processes():
    code = (
        "from selfalign.report import charts, plots\n"
        "with plots.drawing():\n"
        "    c = charts.dumbbells(['a', 'b'], [('s', ('#000001', '#000005'), [1.0, 2.0])], 'x')\n"
        "    print(plots.svg(c, 'p', 't', 'd'))"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
        for _ in range(2)
    }
    assert len(outputs) == 1
    assert outputs.pop().startswith("<svg")


def test_drawing_restores_matplotlib_settings():
    import matplotlib

    before = dict(matplotlib.rcParams)
    drawn("funnel")
    assert dict(matplotlib.rcParams) == before


def test_text_is_cut_to_one_line():
    assert plots.clip("one\ntwo   three", 40) == "one two three"
    assert plots.clip("one two three", 8) == "one two…"


def test_long_curve_is_averaged():
    points = [[n, float(n), 1.0] for n in range(1000)]
    means = charts.thinned(points)
    assert len(means) == 240
    assert sum(p[1] for p in means) / 240 == pytest.approx(499.5, abs=1)
    assert charts.thinned(points[:240]) == points[:240]


def test_a_running_mean_keeps_its_length():
    assert charts.running_mean([1, 2, 3, 4, 5], 3) == [1.5, 2, 3, 4, 4.5]
    assert charts.running_mean([7.0], 1) == [7.0]


def test_bar_widths_follow_kept_rows():
    with plots.drawing():
        svg = plots.svg(charts.funnel([("a", "", 100, 0, False), ("b", "", 25, 25, False)]), "p", "t", "d")
    boxes = [[float(n) for n in re.findall(r"[\d.]+", d)] for d in re.findall(r' d="([^"]+)"', svg)]
    widths = sorted(max(b[0::2]) - min(b[0::2]) for b in boxes)
    assert widths == pytest.approx([99, 100, 400], abs=0.2)
