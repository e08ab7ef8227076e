"""The report in a real browser: nothing in the console, nothing too wide, nothing fetched, nothing run.

Needs Debian's chromium (`make browser`) and playwright; skips where one of them is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import browsers
from report_numbers import HOSTILE, poisoned
from selfalign.report.page import render

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(browsers.CHROMIUM is None, reason="chromium is not installed: make browser")

WIDE = """() => [...document.querySelectorAll('body *')].filter(e =>
    e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll, .said, pre')
).map(e => e.tagName + '.' + e.className + ': ' + e.textContent.slice(0, 60))"""
"""Elements that stand out at the right, but for those in a box that scrolls by itself."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsers.started() as made:
        yield made


@pytest.fixture(scope="module")
def pages(gathered: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of a run, and the same with hostile texts in every place."""
    folder = tmp_path_factory.mktemp("browser")
    hostile, long = poisoned(gathered, " ".join(HOSTILE)), poisoned(gathered, "w" * 400)
    texts = {"usual": gathered, "hostile": hostile, "long": long}
    files = {name: folder / f"{name}.html" for name in texts}
    for name, value in texts.items():
        files[name].write_text(render(value), "utf-8")
    return files


def seen(browser: Any, file: Path, width: int, scheme: str) -> tuple[Any, list[str]]:
    """The page, opened; and everything that it said, asked or met with."""
    page = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    ).new_page()
    heard: list[str] = []
    page.on("console", lambda message: heard.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (heard.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: heard.append(f"request: {request.url}"))
    page.goto(file.as_uri())
    assert heard.pop(0) == f"request: {file.as_uri()}"
    return page, heard


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [("usual", width, scheme) for width in (390, 1400) for scheme in ("light", "dark")]
    + [(name, width, "light") for width in (390, 1400) for name in ("hostile", "long")],
)
def test_nothing_is_said_fetched_or_too_wide(browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str):
    page, heard = seen(browser, pages[name], width, scheme)
    page.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("() => document.documentElement.scrollWidth") == width
    assert page.evaluate(WIDE) == []
    assert heard == []
    page.context.close()


def test_a_console_message_a_dialog_and_a_fetch_would_be_heard(browser: Any, tmp_path: Path):
    """The test above can fail: without the policy and the escaping it does."""
    file = tmp_path / "bad.html"
    file.write_text("<p style='width: 900px'>a</p><script>alert(1); new Image().src = 'x.png'; throw 1</script>")
    page, heard = seen(browser, file, 390, "light")
    page.wait_for_load_state("networkidle")
    assert {one.split(":")[0] for one in heard} >= {"dialog", "request", "console", "error"}
    assert page.evaluate(WIDE) == ["P.: a"]
    page.context.close()


def test_light_and_dark_are_both_readable(browser: Any, pages: dict[str, Path]):
    """Text against its ground, by the contrast that WCAG 2 asks of small text: 4.5."""
    for scheme in ("light", "dark"):
        page, _ = seen(browser, pages["usual"], 1400, scheme)
        for name in ("ink", "soft", "accent"):
            for ground in ("paper", "wash"):
                assert page.evaluate(browsers.CONTRAST, [name, ground]) >= 4.5, (scheme, name, ground)
        page.context.close()


def test_in_print_everything_is_open(browser: Any, pages: dict[str, Path]):
    page, _ = seen(browser, pages["usual"], 800, "light")
    shown = "() => document.querySelectorAll('details pre')[0].checkVisibility({contentVisibilityAuto: true})"
    assert not page.evaluate(shown)
    page.emulate_media(media="print")
    page.wait_for_function(shown, timeout=10_000)  # content that was hidden is laid out with the next frame
    assert not page.evaluate("() => document.querySelector('nav').checkVisibility()")
    page.context.close()


def test_the_page_is_read_by_its_headings_and_plots_have_names(browser: Any, pages: dict[str, Path]):
    page, _ = seen(browser, pages["usual"], 1400, "light")
    plots = page.get_by_role("img")
    assert plots.count() >= 10
    assert page.get_by_role("img", name="Principles cited, by source").count() == 1
    assert page.get_by_role("heading", level=1).count() == 1
    names = page.evaluate("() => [...document.querySelectorAll('nav a')].map(a => [a.hash.slice(1), a.textContent])")
    assert len(names) == 12
    for anchor, name in names:
        page.get_by_role("link", name=name, exact=True).click()
        assert page.evaluate("id => document.getElementById(id).getBoundingClientRect().top < innerHeight", anchor)
    page.context.close()
