"""Turn a matplotlib figure into a small SVG that is part of the page.

Text stays text, in the page's font. Colours are CSS variables of the page, which differ in light, dark and print.
An SVG does not depend on the date, the machine or chance.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from selfalign.system.console import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, SOFT, LINE, ACCENT, PAPER = "#000001", "#000002", "#000003", "#000004", "#000005"
"""Placeholder colours, which become CSS variables in the SVG."""
_VARIABLES = {
    INK: "ink", SOFT: "soft", LINE: "line", ACCENT: "accent", PAPER: "paper", "#000000": "ink", "#ffffff": "paper",
}  # fmt: skip
SIZE, SMALL = 11, 10
"""Font sizes in pixels."""
_DPI = 72
_NOT_XML = re.compile("[\ud800-\udfff\ufffe\uffff]")


class Canvas:
    """An empty figure; sizes are in pixels."""

    def __init__(self, width: int, height: int) -> None:
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)

    def axes(self, left: float, top: float, right: float, bottom: float, projection: str | None = None) -> Axes:
        """Add axes with these margins, without frame, ticks and grid."""
        w, h = self.width, self.height
        box = (left / w, bottom / h, (w - left - right) / w, (h - top - bottom) / h)
        axes: Axes = self.figure.add_axes(box, projection=projection)
        axes.set_frame_on(False)
        axes.tick_params(length=0, labelsize=SMALL, labelcolor=SOFT, pad=4)
        return axes

    def whole(self) -> Axes:
        """Add axes over the whole figure in pixels, with y downwards."""
        axes = self.axes(0, 0, 0, 0)
        axes.set_axis_off()
        axes.set_xlim(0, self.width)
        axes.set_ylim(self.height, 0)
        return axes


def available() -> bool:
    """Return whether matplotlib is installed."""
    import importlib.util

    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def drawing() -> Iterator[None]:
    """Set matplotlib up for plots; glyphs that its font lacks are fine, since the page has its own font."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns if it cannot keep its cache
    import matplotlib

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "selfalign",
        "font.size": SIZE,
        "text.color": INK,
        "text.parse_math": False,
        "axes.labelcolor": SOFT,
        "axes.labelsize": SMALL,
        "axes.unicode_minus": True,
        "axes.axisbelow": True,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        yield


def clip(text: str, most: int) -> str:
    """Return the text on one line, in at most `most` characters, without characters that XML forbids."""
    text = " ".join(_NOT_XML.sub("", plain(text)).split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def svg(drawn: Canvas, name: str, title: str, description: str) -> str:
    """Return the figure as an SVG element.

    Args:
        name: a unique prefix of its ids.
        title: for screen readers.
        description: for screen readers.
    """
    drawn.figure.patch.set_visible(False)  # else it is an invisible path
    for artist in drawn.figure.findobj(lambda a: a.get_clip_on()):
        artist.set_clip_on(False)
    file = io.StringIO()
    drawn.figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    markup = file.getvalue()
    markup = markup[markup.index("<g ") : markup.rindex("</svg>")]
    markup = re.sub(r"</?g\b[^>]*>|(?<=>)\s+(?=<|$)", "", markup)  # groups have only ids, which nothing uses
    inside = re.sub(r"<[^>]*>", lambda tag: _element(tag[0], name), markup)
    return (
        f'<svg viewBox="0 0 {drawn.width} {drawn.height}" width="{drawn.width}" role="img" '
        f'aria-labelledby="{name}-title {name}-text"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-text">{escape(description)}</desc>{inside}</svg>'
    )


def _element(tag: str, name: str) -> str:
    """Return a tag of matplotlib without its font, with the page's colours, unique ids and short numbers."""
    tag = re.sub(r"font-family: [^;]*; | transform=\"rotate\(-0 [^\"]*\"", "", " ".join(tag.split()))
    tag = re.sub(r' (?:xlink:)?(id|href)="(#?)', rf' \1="\2{name}-', tag)
    for colour, variable in _VARIABLES.items():
        tag = tag.replace(colour, f"var(--{variable})")
    # Opacities in a style need all their digits.
    return re.sub(
        r'style="[^"]*"|-?\d+\.\d+', lambda m: m[0] if m[0][0] == "s" else f"{float(m[0]):.1f}".removesuffix(".0"), tag
    )
