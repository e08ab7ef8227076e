"""The report in a real browser: no console messages, no overflow, no requests, no scripts.

Needs Debian's chromium (`make browser`) and playwright; skipped without them.
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
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(browsers.CHROMIUM is None, reason="chromium is not installed: make browser"),
]

WIDE = """() => [...document.querySelectorAll('body *')].filter(e =>
    e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll, .text, pre')
).map(e => e.tagName + '.' + e.className + ': ' + e.textContent.slice(0, 60))"""
"""Elements that overflow on the right, except in a box that scrolls."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsers.started() as made:
        yield made


@pytest.fixture(scope="module")
def pages(gathered: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of a run, and the same with hostile or long texts everywhere."""
    folder = tmp_path_factory.mktemp("browser")
    hostile, long = poisoned(gathered, " ".join(HOSTILE)), poisoned(gathered, "w" * 400)
    texts = {"usual": gathered, "hostile": hostile, "long": long}
    files = {name: folder / f"{name}.html" for name in texts}
    for name, value in texts.items():
        files[name].write_text(render(value), "utf-8")
    return files


def seen(browser: Any, file: Path, width: int, scheme: str) -> tuple[Any, list[str]]:
    """Open the page; return it, and a list of its console messages, errors, dialogs and requests."""
    page = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    ).new_page()
    events: list[str] = []
    page.on("console", lambda message: events.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: events.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (events.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: events.append(f"request: {request.url}"))
    page.goto(file.as_uri())
    assert events.pop(0) == f"request: {file.as_uri()}"
    return page, events


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [("usual", width, scheme) for width in (390, 1400) for scheme in ("light", "dark")]
    + [(name, width, "light") for width in (390, 1400) for name in ("hostile", "long")],
)
def test_page_has_no_messages_requests_or_overflow(
    browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str
):
    page, events = seen(browser, pages[name], width, scheme)
    page.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("() => document.documentElement.scrollWidth") == width
    assert page.evaluate(WIDE) == []
    assert events == []
    page.context.close()


def test_events_and_overflow_are_detected(browser: Any, tmp_path: Path):
    """Check that the test above fails without the policy and the escaping."""
    file = tmp_path / "bad.html"
    file.write_text("<p style='width: 900px'>a</p><script>alert(1); new Image().src = 'x.png'; throw 1</script>")
    page, events = seen(browser, file, 390, "light")
    page.wait_for_load_state("networkidle")
    assert {event.split(":")[0] for event in events} >= {"dialog", "request", "console", "error"}
    assert page.evaluate(WIDE) == ["P.: a"]
    page.context.close()


def test_contrast_is_sufficient_in_light_and_dark(browser: Any, pages: dict[str, Path]):
    """Compare text and background with WCAG 2's minimum for small text, 4.5."""
    for scheme in ("light", "dark"):
        page, _ = seen(browser, pages["usual"], 1400, scheme)
        for name in ("ink", "soft", "accent"):
            for ground in ("paper", "wash"):
                assert page.evaluate(browsers.CONTRAST, [name, ground]) >= 4.5, (scheme, name, ground)
        page.context.close()


def test_print_opens_all_details(browser: Any, pages: dict[str, Path]):
    page, _ = seen(browser, pages["usual"], 800, "light")
    shown = "() => document.querySelectorAll('details pre')[0].checkVisibility({contentVisibilityAuto: true})"
    assert not page.evaluate(shown)
    page.emulate_media(media="print")
    page.wait_for_function(shown, timeout=10_000)  # hidden content is laid out in the next frame
    assert not page.evaluate("() => document.querySelector('nav').checkVisibility()")
    page.context.close()


def test_headings_links_and_plots_have_accessible_names(browser: Any, pages: dict[str, Path]):
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
