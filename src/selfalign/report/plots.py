"""Drawing: a matplotlib figure becomes a small SVG that stands in the page and takes its colours from there.

Text stays text, in the page's font. Colours are the page's variables, so that light, dark and print each have theirs.
Nothing in an SVG depends on the date, the machine or chance.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from selfalign.system.console import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, LINE, ACCENT, PAPER = "#000001", "#000002", "#000003", "#000004", "#000005"
"""What a plot draws with; in the SVG they are the page's variables."""
_VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", ACCENT: "accent", PAPER: "paper"}
SIZE, SMALL = 11, 10
"""Text, in pixels of the page."""
_DPI = 72
_NUMBER = re.compile(r"-?\d+\.\d+")
_NOT_XML = re.compile("[\ud800-\udfff\ufffe\uffff]")
_STYLE_KEYS = (
    "fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width", "stroke-dasharray", "opacity", "font-size",
    "font-weight", "text-anchor",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Canvas:
    """An empty figure. Sizes are pixels of the page."""

    figure: Figure
    width: int
    height: int

    def axes(self, left: float, top: float, right: float, bottom: float, projection: str | None = None) -> Axes:
        """Axes with these margins; without frame, ticks and grid."""
        w, h = self.width, self.height
        box = (left / w, bottom / h, (w - left - right) / w, (h - top - bottom) / h)
        axes: Axes = self.figure.add_axes(box, projection=projection)
        axes.set_frame_on(False)
        axes.tick_params(length=0, labelsize=SMALL, labelcolor=SOFT, pad=4)
        return axes

    def whole(self) -> Axes:
        """Axes in pixels, y downwards, for a plot that is laid out by hand."""
        axes = self.axes(0, 0, 0, 0)
        axes.set_axis_off()
        axes.set_xlim(0, self.width)
        axes.set_ylim(self.height, 0)
        return axes


def available() -> bool:
    """Whether matplotlib is installed."""
    import importlib.util

    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def drawing() -> Iterator[None]:
    """Settings under which all plots are drawn. Characters that matplotlib's own font lacks are the page's affair."""
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


def canvas(width: int, height: int) -> Canvas:
    """An empty figure of that size."""
    from matplotlib.figure import Figure

    return Canvas(Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI), width, height)


def clip(text: str, most: int) -> str:
    """The text on one line, in at most so many characters, without those that an SVG may not hold."""
    text = " ".join(_NOT_XML.sub("", plain(text)).split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def svg(drawn: Canvas, name: str, title: str, description: str) -> str:
    """The figure as an SVG element for the page.

    Args:
        name: of this plot alone: its ids begin with it.
        title, description: what it shows, for those who do not see it.
    """
    for artist in drawn.figure.findobj(lambda a: a.get_clip_on()):
        artist.set_clip_on(False)
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    drawn.figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(file.getvalue())  # noqa: S314  (it is ours)
    used = {v.removeprefix("#") for e in root.iter() for k, v in e.attrib.items() if _local(k) == "href"}
    inside = "".join(_element(child, name, used) for child in root)
    return (
        f'<svg viewBox="0 0 {drawn.width} {drawn.height}" width="{drawn.width}" role="img" '
        f'aria-labelledby="{name}-title {name}-text"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-text">{escape(description)}</desc>{inside}</svg>'
    )


def _element(element: ElementTree.Element, name: str, used: set[str]) -> str:
    tag = _local(element.tag)
    if tag in ("metadata", "style"):
        return ""
    inside = "".join(_element(child, name, used) for child in element)
    if tag in ("g", "defs") and not inside:
        return ""
    attributes = _attributes(element, name, used)
    if tag == "g" and not attributes:
        return inside
    if tag == "path" and "style" in attributes and attributes["style"] == "fill:none":
        return ""  # a background that is not drawn
    text = escape(element.text or "", quote=False) if tag == "text" else ""
    shown = "".join(f' {key}="{escape(value)}"' for key, value in attributes.items())
    return f"<{tag}{shown}>{text}{inside}</{tag}>"


def _attributes(element: ElementTree.Element, name: str, used: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in element.attrib.items():
        key = _local(key)
        if key == "id":
            if value in used:
                found["id"] = f"{name}-{value}"
        elif key == "href":
            found["href"] = f"#{name}-{value.removeprefix('#')}"
        elif key == "style":
            found["style"] = _style(value)
        elif key == "d":
            found["d"] = _rounded(" ".join(value.split())).replace(" z", "z")
        elif key != "transform" or not value.startswith("rotate(-0 "):
            found[key] = _rounded(value)
    return {k: v for k, v in found.items() if v}


def _style(value: str) -> str:
    parts = dict(part.strip().split(": ", 1) for part in value.split(";") if ": " in part)
    kept = {k: v for k, v in parts.items() if k in _STYLE_KEYS}
    for key in ("fill", "stroke"):
        colour = {"#000000": INK, "#ffffff": PAPER}.get(kept.get(key, ""), kept.get(key, ""))
        if colour in _VARIABLES:
            kept[key] = f"var(--{_VARIABLES[colour]})"
    return ";".join(f"{k}:{v}" for k, v in kept.items())


def _rounded(text: str) -> str:
    return _NUMBER.sub(lambda m: f"{float(m[0]):.1f}".removesuffix(".0"), text)


def _local(name: str) -> str:
    return name.rpartition("}")[2]
