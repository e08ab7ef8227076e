"""Drive the viewer in a real browser: filters, pages, keyboard, layout, hostile text.

Needs Debian's chromium (`make browser`) and playwright; skipped if one of them is missing.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import browsers
import viewer_runs
from report_numbers import HOSTILE
from selfalign.run.directory import RunDir
from selfalign.run.journal import Journal
from selfalign.web.guard import Policy
from selfalign.web.view.index import Index

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
routes = pytest.importorskip("selfalign.web.view.routes", reason="starlette is not installed")
server = pytest.importorskip("selfalign.web.server")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(browsers.CHROMIUM is None, reason="chromium is not installed: make browser"),
]

WIDE = """() => [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() &&
    e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('pre')
).map(e => e.tagName + '.' + e.className + ': ' + e.textContent.slice(0, 60))"""
PARTS = (
    "<script>globalThis.pwned=1</script>", "<img src=x onerror='globalThis.pwned=1'>",
    "<svg onload=globalThis.pwned=1>", "<iframe srcdoc='<script>parent.pwned=1</script>'>",
    "\"><script>globalThis.pwned=1</script>", "</textarea></title></style>", "<style>*{display:none}</style>",
    "<base href=//evil.example>", "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "javascript:globalThis.pwned=1", "<a href=javascript:globalThis.pwned=1>click</a>",
    "<form action=//evil.example><button>", "{{7*7}}", "${7*7}", "<%= 7*7 %>", "&lt;b&gt;", "<!--", "]]>",
    "\u202e\u2066right to left\u2069", "\x1b[31m\x07\x9b", "\x00\x08", "e\u0301\u0323", "👩\u200d👧\u200d👦",
    "\u200b\ufeff", "\u2028\u2029", "%00%0a", "..\\..\\etc/passwd", "' OR 1=1 --", "𝕏" * 30, "w" * 400,
    "\\u003cscript\\u003e", "__proto__", "constructor", "NaN", *HOSTILE,
)  # fmt: skip


NO_TOKEN = Policy()


def hostile(number: int) -> list[str]:
    """Return this many different texts."""
    rng = random.Random(7)
    return [f"{n} " + " ".join(rng.choices(PARTS, k=rng.randint(1, 4))) for n in range(number)]


@contextmanager
def served(run: RunDir, other_run: RunDir | None = None, policy: Policy = NO_TOKEN) -> Iterator[str]:
    """Serve the viewer of a run on a socket; yield its address."""
    indices = [
        Index(directory.path, directory.constitution, directory.view) for directory in (run, other_run) if directory
    ]
    for index in indices:
        index.refresh()
    listening = server.listen("127.0.0.1", 0)
    uvicorn_server = server.build(routes.build(routes.Viewer(*indices), policy))
    thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"{server.address(listening)}/"
    finally:
        uvicorn_server.should_exit = True
        thread.join(20)
        listening.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsers.started() as browser:
        yield browser


Open = Callable[..., Any]
Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start viewers that stop after the pages have closed, since open pages poll the progress."""
    with ExitStack() as started:
        yield lambda *runs: started.enter_context(served(*runs))


@pytest.fixture
def open_page(browser: Any, serve: Serve) -> Iterator[Open]:
    """Open pages; at the end, check for console messages, foreign requests and executed scripts."""
    pages: list[Any] = []
    events: list[str] = []

    def opened(url: str, width: int = 1400, scheme: str = "light") -> Any:
        page = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        ).new_page()
        page.on("console", lambda message: events.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: events.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (events.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        root = "/".join(url.split("/")[:3])
        page.on("request", lambda r: None if r.url.startswith(f"{root}/") else events.append(f"request: {r.url}"))
        page.goto(url)
        page.wait_for_function("() => document.getElementById('matches')?.textContent")
        pages.append(page)
        return page

    yield opened
    for page in pages:
        assert page.evaluate("() => globalThis.pwned") is None
        page.context.close()
    assert events == []


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(viewer_runs.make(tmp_path_factory.mktemp("browser") / "run", 140)) as address:
        yield address


def wait_for_rows(page: Any, number: int) -> None:
    """Wait until that many rows match."""
    page.wait_for_function(
        "n => document.getElementById('matches')?.textContent.endsWith(`of ${n} rows`)", arg=f"{number:,}"
    )


def test_filters_search_and_pages(open_page: Open, url: str):
    page = open_page(url)
    wait_for_rows(page, 140 + 140 + 120)
    page.get_by_role("button", name="2 self-align").click()
    wait_for_rows(page, 140)
    page.get_by_role("button", name="dropped 20").click()
    wait_for_rows(page, 20)
    page.locator("#facets button", has_text="truncated").click()
    wait_for_rows(page, 5)
    assert page.locator("#list .tag b").all_text_contents() == ["truncated"] * 5
    page.go_back()
    wait_for_rows(page, 20)
    page.reload()
    wait_for_rows(page, 20)
    page.locator("#chosen button").first.click()
    page.wait_for_function("() => document.querySelectorAll('#chosen button').length === 1")
    page.locator("#chosen button").click()
    wait_for_rows(page, 400)
    page.get_by_role("button", name="Next").click()
    page.wait_for_function("() => document.getElementById('matches')?.textContent.startsWith('51')")
    page.get_by_role("button", name="Last").click()
    page.wait_for_function("() => document.getElementById('matches')?.textContent.startsWith('351')")
    page.get_by_role("button", name="Previous").click()
    page.wait_for_function("() => document.getElementById('matches')?.textContent.startsWith('301')")
    page.locator("#words").fill('"answer 17"')
    wait_for_rows(page, 2)


def test_row_shows_its_candidates_with_their_scores(open_page: Open, url: str):
    page = open_page(f"{url}?stage=align&state=kept")
    page.locator("#list .item").first.click()
    page.get_by_text("2 candidates").click()
    shown = page.locator(".candidate .tag .outcome").all_inner_texts()
    assert shown == ["kept", "score +0.250", "dropped: another response", "score −0.750"]


def test_keyboard_navigation(open_page: Open, url: str):
    page = open_page(f"{url}?stage=align&state=kept")
    wait_for_rows(page, 120)
    for _ in range(50):
        page.keyboard.press("j")
    page.keyboard.press("j")
    page.wait_for_function("() => document.getElementById('matches')?.textContent.startsWith('51')")
    page.keyboard.press("k")
    page.wait_for_function("() => document.getElementById('matches')?.textContent.startsWith('1 ')")
    page.wait_for_function("() => document.querySelector('#list li:last-child [aria-current]')")
    last = page.locator("[aria-current]").get_attribute("data-row")
    page.wait_for_function("row => document.getElementById('row').dataset.row === row", arg=last)
    page.keyboard.press("p")
    page.wait_for_selector(".exact")
    assert page.locator(".exact").text_content().startswith("⟨start⟩")
    page.keyboard.press("Escape")
    page.wait_for_function("() => !document.querySelector('[aria-current]')")
    page.keyboard.press("/")
    assert page.evaluate("() => document.activeElement.id") == "words"
    page.keyboard.press("j")
    assert page.locator("#words").input_value() == "j"


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1400, "dark")])
def test_layout_fits_phone_and_desktop(open_page: Open, serve: Serve, tmp_path: Path, width: int, scheme: str):
    texts = hostile(300)
    run = viewer_runs.make(tmp_path / "run", 15, lambda n, field: f"{field} {texts[n * 11]}")
    address = serve(run)
    for query in ("", "?tab=watch"):
        page = open_page(address + query, width, scheme)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        assert page.evaluate(WIDE) == []
    page = open_page(f"{address}?stage=align", width, scheme)
    page.locator("#list button").first.click()
    page.wait_for_selector(".step")
    page.locator("summary").first.click()
    page.wait_for_selector("#row pre")
    assert page.evaluate(WIDE) == []
    for name in ("ink", "soft", "accent"):
        assert page.evaluate(browsers.CONTRAST, [name, "wash"]) >= 4.5


def test_hostile_texts_are_shown_and_never_run(open_page: Open, serve: Serve, tmp_path: Path):
    texts = hostile(300)
    run = viewer_runs.make(
        tmp_path / "run", 300, lambda n, field: f"{field} {texts[n]}" if field != "input" else texts[n]
    )
    journal = Journal(run.path / "journal.sqlite")
    # Also in reasons, stages and ids.
    journal.record("align", [(f"x{n}{t}", 1000 + n, "dropped", t, t) for n, t in enumerate(texts)])
    journal.record("<script>globalThis.pwned=1</script>", [(t, n, "failed", t, t) for n, t in enumerate(texts[:40])])
    journal.close()
    address = serve(run)
    page = open_page(f"{address}?stage=align")
    seen: set[str] = set()
    while True:
        seen |= set(page.locator("#list .message").all_text_contents()) | set(
            page.locator("#list .gist").all_text_contents()
        )
        seen |= {t.split(" · ", 1)[-1] for t in page.locator("#list .tag").all_text_contents()}
        if page.get_by_role("button", name="Next").is_disabled():
            break
        before = page.locator("#matches").text_content()
        page.get_by_role("button", name="Next").click()
        page.wait_for_function("t => document.getElementById('matches')?.textContent !== t", arg=before)
    short = [t if len(t) <= 320 else t[:320] + "…" for t in texts]
    assert [t for t in short if t not in seen] == []
    assert sum(any(s.endswith(t) for s in seen) for t in texts) >= 250  # whole reasons
    rows = page.evaluate("async () => (await (await fetch('/api/rows?stage=engrave&limit=60')).json()).rows")
    for row in rows[::4]:
        page.evaluate("async row => (await import('/static/view.js')).choose(row)", row)
        whole = page.evaluate("async r => (await (await fetch(`/api/row?stage=${r.stage}&id=${r.id}`)).json())", row)
        shown = page.locator("#row").evaluate("e => [...e.querySelectorAll('.pre')].map(x => x.textContent)")
        for step in whole["steps"]:
            for text in (step["message"], step["thoughts"]):
                assert not text or text in shown
        assert row["id"] in page.locator("#row .tag").first.text_content()
    # Open all details, then the progress with the reasons.
    for summary in page.locator("#row summary").all():
        summary.click()
    page.wait_for_selector("#row pre")
    page.get_by_role("button", name="Progress").click()
    page.wait_for_selector(".ledger")
    reasons = page.locator(".reasons").all_text_contents()
    assert all(any(t in r for r in reasons) for t in texts[:40])


def test_marks_by_keyboard_and_comparison_of_runs(open_page: Open, serve: Serve, tmp_path: Path):
    def other_text(number: int, field: str) -> str:
        return viewer_runs.default_text(number, field) + (" otherwise" if field == "answer" and number == 2 else "")

    run, other_run = viewer_runs.make(tmp_path / "a", 14), viewer_runs.make(tmp_path / "b", 14, other_text)
    address = serve(run, other_run)
    page = open_page(f"{address}?stage=engrave")
    page.keyboard.press("j")
    page.wait_for_selector(".step.own")
    page.keyboard.press("d")
    page.wait_for_selector("#list .tag b")
    mark = json.loads(run.jsonl("marks").read_text("utf-8"))
    assert (mark["stage"], mark["mark"]) == ("engrave", "drop")
    page.keyboard.press("u")
    page.wait_for_function("() => !document.querySelector('#list .tag b')")
    page.keyboard.press("e")
    page.locator(".marking textarea").fill("<b>Edited</b> & whole")
    page.get_by_role("button", name="Save edit").click()
    page.wait_for_selector(".edited")
    assert page.locator(".edited").text_content() == "<b>Edited</b> & whole"
    assert json.loads(run.jsonl("marks").read_text("utf-8"))["answer"] == "<b>Edited</b> & whole"
    page.get_by_role("button", name="Compare").click()
    page.wait_for_selector("#pairs .pre")
    assert page.locator("#pairs section").count() == 1
    answers = page.locator("#pairs .models p:last-child").all_text_contents()
    assert answers[1] == f"{answers[0]} otherwise"
    assert page.locator("#compare td button").all_text_contents() == ["1", "1"]  # the answer and its example
    same = open_page(f"{serve(other_run, other_run)}?tab=compare")
    same.get_by_text("No rows differ.").wait_for()


def test_feedback_by_keyboard(open_page: Open, serve: Serve, tmp_path: Path):
    run = viewer_runs.make(tmp_path / "run", 8)
    page = open_page(f"{serve(run)}?stage=align&state=kept")
    page.keyboard.press("j")
    page.wait_for_selector(".step.own")
    page.keyboard.press("b")
    page.wait_for_function("() => document.activeElement.matches('.note textarea')")
    page.keyboard.type("<b>no</b> source")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('.note .saved')?.textContent.startsWith('Saved')")
    (entry,) = [json.loads(line) for line in run.jsonl("feedback").read_text("utf-8").splitlines()]
    assert (entry["verdict"], entry["note"], entry["source"]) == ("bad", "<b>no</b> source", "view")
    assert page.locator(".note textarea").input_value() == "<b>no</b> source"
    assert page.locator(".feedback [aria-pressed=true]").text_content() == "bad"
    assert not run.jsonl("marks").exists()
    page.keyboard.press("b")
    page.wait_for_function("() => !document.querySelector('.note')")
    assert run.jsonl("feedback").read_text("utf-8") == ""


def test_sign_in_with_token(browser: Any, tmp_path: Path):
    token = "a token of 24 characters"
    with served(viewer_runs.make(tmp_path / "run", 5), policy=Policy(token=token)) as address:
        page = browser.new_page()
        page.goto(address)
        assert page.locator("#list").count() == 0
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Sign in").click()
        wait_for_rows(page, 14)
        page.close()


def test_run_is_shown_live(open_page: Open, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = viewer_runs.make(tmp_path / "run", 20)
    monkeypatch.setattr("selfalign.web.view.progress.is_locked", lambda path: True)
    journal = Journal(run.path / "journal.sqlite")
    journal.ledger("verbose_responses", 10)
    journal.record("verbose_responses", [("0" * 16, 0, "kept", "", "first question\nfirst answer")])
    address = serve(run)
    page = open_page(f"{address}?stage=verbose_responses")
    one_match = "() => document.getElementById('matches')?.textContent.endsWith('of 1 row')"
    page.wait_for_function(one_match)
    page.wait_for_function("() => document.getElementById('state')?.textContent.includes('running')")
    journal.record("verbose_responses", [(f"{n:016x}", n, "kept", "", f"{n} question\nanswer") for n in range(1, 6)])
    wait_for_rows(page, 6)
    page.wait_for_function("() => document.getElementById('state')?.textContent.includes('6 of 10')")
    journal.close()


def test_harness_detects_scripts_that_run(browser: Any, url: str):
    """The harness detects both inline styles and HTML from strings."""
    page = browser.new_context().new_page()
    events: list[str] = []
    page.on("console", lambda message: events.append(message.text))
    page.goto(url)
    page.wait_for_selector("#list li")
    page.evaluate("() => { const s = document.createElement('style'); s.append('*{}'); document.body.append(s) }")
    page.wait_for_function("() => true")
    assert any("Content Security Policy" in text for text in events)
    with pytest.raises(api.Error, match="TrustedScript"):
        page.evaluate("() => document.createElement('img').setAttribute('onerror', 'globalThis.pwned=1')")
    assert page.evaluate("() => globalThis.pwned") is None
    with pytest.raises(api.Error, match="TrustedHTML"):
        page.evaluate("() => { document.body.innerHTML = '<b>x</b>' }")
    page.context.close()


@pytest.mark.slow
def test_300000_rows_are_filtered_and_paged_in_the_browser(open_page: Open, serve: Serve, tmp_path: Path):
    """benchmarks/viewer.py measures the time."""
    run = viewer_runs.make(tmp_path / "run", 105_000)
    address = serve(run)
    page = open_page(address)
    wait_for_rows(page, 300_000)
    assert page.locator("#list li").count() == 50
    page.get_by_role("button", name="2 self-align").click()
    wait_for_rows(page, 105_000)
    page.get_by_role("button", name="dropped 15,000").click()
    wait_for_rows(page, 15_000)
    page.locator("#facets button", has_text="truncated").click()
    wait_for_rows(page, 3750)
    page.get_by_role("button", name="Last").click()
    page.wait_for_function("() => document.getElementById('matches')?.textContent.startsWith('3,701')")
    page.go_back()
    wait_for_rows(page, 15_000)
    page.goto(address)
    wait_for_rows(page, 300_000)
    page.locator("#words").fill('"answer 104998"')
    wait_for_rows(page, 2)
    assert page.evaluate("() => document.querySelectorAll('*').length") < 2000
