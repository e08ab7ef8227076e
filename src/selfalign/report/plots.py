"""Turn a matplotlib figure into a small SVG that is part of the page.

Text stays text, in the page's font. Colours are CSS variables of the page, which differ in light, dark and print.
An SVG does not depend on the date, the machine or chance.
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
"""Placeholder colours, which become CSS variables in the SVG."""
_VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", ACCENT: "accent", PAPER: "paper"}
SIZE, SMALL = 11, 10
"""Font sizes in pixels."""
_DPI = 72
_NUMBER = re.compile(r"-?\d+\.\d+")
_NOT_XML = re.compile("[\ud800-\udfff\ufffe\uffff]")
_STYLE_KEYS = (
    "fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width", "stroke-dasharray", "opacity", "font-size",
    "font-weight", "text-anchor",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Canvas:
    """An empty figure; sizes are in pixels."""

    figure: Figure
    width: int
    height: int

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
    """Return an empty figure of that size."""
    from matplotlib.figure import Figure

    return Canvas(Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI), width, height)


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
    for artist in drawn.figure.findobj(lambda a: a.get_clip_on()):
        artist.set_clip_on(False)
    file = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    drawn.figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    root = ElementTree.fromstring(file.getvalue())  # noqa: S314  (our own output)
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
        return ""  # an invisible background
    text = escape(element.text or "", quote=False) if tag == "text" else ""
    markup = "".join(f' {key}="{escape(value)}"' for key, value in attributes.items())
    return f"<{tag}{markup}>{text}{inside}</{tag}>"


def _attributes(element: ElementTree.Element, name: str, used: set[str]) -> dict[str, str]:
    attributes: dict[str, str] = {}
    for key, value in element.attrib.items():
        key = _local(key)
        if key == "id":
            if value in used:
                attributes["id"] = f"{name}-{value}"
        elif key == "href":
            attributes["href"] = f"#{name}-{value.removeprefix('#')}"
        elif key == "style":
            attributes["style"] = _style(value)
        elif key == "d":
            attributes["d"] = _rounded(" ".join(value.split())).replace(" z", "z")
        elif key != "transform" or not value.startswith("rotate(-0 "):
            attributes[key] = _rounded(value)
    return {k: v for k, v in attributes.items() if v}


def _style(value: str) -> str:
    parts = dict(part.strip().split(": ", 1) for part in value.split(";") if ": " in part)
    style = {k: v for k, v in parts.items() if k in _STYLE_KEYS}
    for key in ("fill", "stroke"):
        colour = {"#000000": INK, "#ffffff": PAPER}.get(style.get(key, ""), style.get(key, ""))
        if colour in _VARIABLES:
            style[key] = f"var(--{_VARIABLES[colour]})"
    return ";".join(f"{k}:{v}" for k, v in style.items())


def _rounded(text: str) -> str:
    return _NUMBER.sub(lambda m: f"{float(m[0]):.1f}".removesuffix(".0"), text)


def _local(name: str) -> str:
    return name.rpartition("}")[2]
