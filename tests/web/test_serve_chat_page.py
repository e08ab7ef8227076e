"""Drive the chat page in a real browser: streaming, stopping, models side by side, keyboard, hostile text.

Needs Debian's chromium (`make browser`) and playwright; skipped if one of them is missing.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import browsers
from report_numbers import HOSTILE
from selfalign.run.context import Context
from selfalign.web.guard import Policy
from web_servers import RunningServer, SlowFake, serving

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(browsers.CHROMIUM is None, reason="chromium is not installed: make browser"),
]

TOKEN = "correct-horse-battery"
WIDE = """() => [...document.querySelectorAll('body *')].filter(e =>
    e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsers.started() as browser:
        yield browser


@pytest.fixture
def running(fake_run: Callable[..., Context]) -> Iterator[RunningServer]:
    with serving(fake_run(), SlowFake(), slots=4) as server:
        yield server


class Page:
    """An open chat page, with the console messages, dialogs and foreign requests that it caused."""

    def __init__(self, browser: Any, running: RunningServer, width: int = 1400, scheme: str = "light") -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        self.page = self.context.new_page()
        self.events: list[str] = []
        self.page.on("console", lambda message: self.events.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.events.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.events.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on(
            "request", lambda r: None if r.url.startswith(running.url) else self.events.append(f"request: {r.url}")
        )
        self.page.goto(running.url + "/")

    def ready(self) -> Page:
        self.page.locator("#models button").first.wait_for(state="attached")
        return self

    def key(self, *names: str) -> None:
        for name in names:
            self.page.keyboard.press(name)

    def ask(self, message: str) -> None:
        """Type and send a message without waiting for the response."""
        self.page.keyboard.type(message)
        self.key("Enter")

    def answered(self) -> None:
        self.page.get_by_role("button", name="Send").wait_for(timeout=20_000)

    def answers(self) -> list[str]:
        return [e.text_content() for e in self.page.locator(".answer .text").all()]


@pytest.fixture
def opened(browser: Any, running: RunningServer) -> Iterator[Page]:
    page = Page(browser, running).ready()
    yield page
    assert page.events == []
    page.context.close()


def test_dialogue_works_by_keyboard(opened: Page, running: RunningServer):
    opened.ask("Hello there")
    opened.answered()
    (answer,) = opened.answers()
    prompt, adapter, _ = running.engine.prompts[-1]
    assert adapter == "verbose_cloning"
    assert "User: Hello there" in prompt
    assert len(answer.split()) >= 30
    assert answer == answer.strip()
    head = opened.page.locator(".answer h3").text_content()
    assert head == "final · standard prompt"
    assert re.search(r"\d+ tokens · .*first token after \d", opened.page.locator(".meta").text_content())
    opened.ask("And then?")
    opened.answered()
    assert f"Hello there\n\nAlma: {answer}<eos>\n\nUser: And then?" in running.engine.prompts[-1][0]
    opened.key("ArrowUp")
    assert opened.page.locator("#message").input_value() == "And then?"
    opened.key("Alt+n")
    assert opened.answers() == []
    opened.page.locator("#message").fill("")
    opened.ask("First again")
    opened.answered()
    assert "And then?" not in running.engine.prompts[-1][0]


def test_response_streams_and_can_be_stopped(opened: Page, running: RunningServer):
    running.engine.word_s = 0.05
    opened.ask("Hello")
    text = opened.page.locator(".answer .text")
    api.expect(text).to_have_text(re.compile(r"\S+ \S+"), timeout=5000)
    early = text.text_content()
    api.expect(text).not_to_have_text(early)
    opened.key("Escape")
    opened.answered()
    running.wait_for_jobs(timeout_s=3)
    assert running.engine.cancelled == 1
    assert text.text_content().startswith(early)
    assert "stopped" in opened.page.locator(".meta").text_content()
    opened.ask("Hello again")
    opened.page.get_by_role("button", name="Stop").click()
    opened.answered()
    running.wait_for_jobs(timeout_s=3)


def test_copy_button_needs_a_clipboard(browser: Any, running: RunningServer):
    for can in (True, False):
        page = Page(browser, running)
        if not can:  # as at an address beyond loopback without TLS
            page.page.add_init_script(
                "Object.defineProperty(Navigator.prototype, 'clipboard', { get: () => undefined })"
            )
            page.page.reload()
        page.ready().ask("Hello")
        page.answered()
        page.page.locator(".meta").wait_for()
        assert page.page.get_by_role("button", name="copy").count() == can
        page.context.close()


def test_models_respond_side_by_side(opened: Page, running: RunningServer):
    opened.key("Alt+1", "Alt+2", "Alt+3")
    opened.ask("Hello")
    opened.answered()
    heads = [e.text_content() for e in opened.page.locator(".answer h3").all()]
    assert heads == [
        "base · standard prompt", "prompted-base · constitution prompt", "engraved · standard prompt",
        "final · standard prompt",
    ]  # fmt: skip
    assert len(set(opened.answers())) == 4
    lefts = [e.bounding_box()["x"] for e in opened.page.locator(".answer").all()]
    assert lefts == sorted(set(lefts))
    opened.page.locator("#dialogue details:not([hidden]) > summary").click()
    assert "Principles:" in opened.page.locator(".thoughts").nth(1).text_content()
    opened.ask("And then?")
    opened.answered()
    head = opened.page.locator(".answer h3").nth(5).text_content()
    assert head == "prompted-base · constitution prompt, this message only"
    opened.key("Alt+1", "Alt+2", "Alt+3", "Alt+4")  # the last one stays
    assert opened.page.locator("#models [aria-pressed=true]").count() == 1


def test_feedback_works_by_keyboard(opened: Page, running: RunningServer, tmp_path: Path):
    opened.key("Alt+2")
    opened.ask("Hello <b>")
    opened.answered()
    page, file = opened.page, tmp_path / "run/feedback.jsonl"

    def kept() -> list[Any]:
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []

    opened.key("Shift+Tab", "Enter")  # from the message back to the last answer's last button
    note = page.locator(".answer").last.locator(".note textarea")
    api.expect(note).to_be_focused()
    (row,) = kept()
    assert (row["verdict"], row["model"], row["prompt"], row["note"]) == ("bad", "final", "standard", "")
    assert row["answer"] == opened.answers()[-1] and row["settings"]["temperature"] > 0
    page.keyboard.type("<img src=x> no")
    opened.key("Enter")
    api.expect(page.locator(".saved").last).to_have_text("Saved with the note.")
    api.expect(page.locator("#message")).to_be_focused()
    assert [r["note"] for r in kept()] == ["<img src=x> no"]
    page.locator(".answer").first.get_by_role("button", name="good").click()  # the prompted base, with its thoughts
    api.expect(page.locator(".note")).to_have_count(2)
    api.expect(page.locator(".note textarea").first).to_be_focused()
    assert [(r["model"], r["prompt"], bool(r.get("principles"))) for r in kept()] == [
        ("final", "standard", False), ("prompted-base", "constitution", True),
    ]  # fmt: skip
    bad = page.locator(".answer").last.get_by_role("button", name="bad")
    assert bad.get_attribute("aria-pressed") == "true"
    bad.click()
    api.expect(note).to_be_hidden()
    assert [r["model"] for r in kept()] == ["prompted-base"]


def test_prompt_and_sampling_settings_are_sent(opened: Page, running: RunningServer):
    page = opened.page
    page.locator("#style").select_option("concise")
    assert "one to three sentences" in page.locator("#prompt").text_content()
    page.get_by_text("Sampling").click()
    page.locator("#max_tokens").fill("3")
    page.locator("#seed").fill("7")
    page.locator("#message").focus()
    opened.ask("Hello")
    opened.answered()
    assert "one to three sentences" in running.engine.prompts[-1][0]
    assert running.engine.prompts[-1][2] == 7
    assert "3 tokens" in page.locator(".meta").text_content()
    assert "cut at 3" in page.locator(".meta").text_content()
    page.locator("#style").select_option("own")
    page.locator("#own").fill("Speak like a pirate.")
    page.locator("#message").focus()
    opened.ask("Hello")
    opened.answered()
    assert running.engine.prompts[-1][0].startswith("<bos>Speak like a pirate.\n\n")
    assert page.locator(".answer h3").last.text_content() == "final · custom prompt"
    page.locator("#temperature").fill("7")
    page.locator("#message").focus()
    opened.ask("Hello")
    assert page.locator("#message").input_value() == "Hello"  # the page does not send values out of range
    assert page.locator("#temperature").evaluate("e => e === document.activeElement")


def test_errors_appear_in_place_of_the_response(browser: Any, fake_run: Callable[..., Context]):
    with serving(fake_run(), SlowFake(fail="poison"), slots=1, max_queue=0) as running:
        page = Page(browser, running).ready()
        page.ask("poison")
        page.answered()
        assert "set to fail" in page.page.locator(".error").text_content()
        page.key("Alt+1")
        running.engine.word_s = 0.01
        page.ask("Two at once")
        page.answered()
        message = page.page.locator(".error").last.text_content()
        assert re.fullmatch(r"The server is busy: .* Try again in \d+ s\.", message)
        # The browser itself reports failed requests; there are no other messages.
        assert all("Failed to load resource" in line for line in page.events)
        page.context.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1400, "light"), (1400, "dark")])
def test_layout_fits_and_has_contrast(browser: Any, running: RunningServer, width: int, scheme: str):
    page = Page(browser, running, width, scheme).ready()
    page.key("Alt+1", "Alt+2")
    page.ask("w" * 300)
    page.answered()
    page.page.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.page.evaluate("() => document.documentElement.scrollWidth") == width
    assert page.page.evaluate(WIDE) == []

    for name in ("ink", "soft", "accent"):
        for ground in ("paper", "wash"):
            assert page.page.evaluate(browsers.CONTRAST, [name, ground]) >= 4.5, (scheme, name, ground)
    assert page.events == []
    page.context.close()


def test_page_asks_for_the_token(browser: Any, fake_run: Callable[..., Context]):
    with serving(fake_run(), SlowFake(), policy=Policy(token=TOKEN)) as running:
        page = Page(browser, running)
        for token, note in (("wrong-horse-battery", "Wrong token."), (TOKEN, "")):
            # The page moves the focus there itself, and the browser complains if another element has it already.
            api.expect(page.page.get_by_label("Token")).to_be_focused()
            page.page.keyboard.type(token)
            page.key("Enter")
            if note:
                page.page.get_by_text(note).wait_for()
        page.ready().ask("Hello")
        page.answered()
        assert len(page.answers()) == 1
        assert page.page.evaluate("() => document.cookie") == ""
        assert TOKEN not in page.page.content()
        # A 401 is noted by the browser; it is what a visitor without the token gets.
        assert [line for line in page.events if "401" not in line] == []
        page.context.close()


# -- hostile text ------------------------------------------------------------------------------------------------------

PARTS = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg/onload=alert(1)>", "javascript:alert(1)", "</p>",
    "<iframe src=//evil.example>", "<a href=javascript:alert(1)>x</a>", "<style>*{display:none}</style>", "\u202e",
    "\u2066",
    "<math><mtext></table><mglyph><style><img src onerror=alert(1)>", "${alert(1)}", "{{7*7}}", "<!--", "-->", "]]>",
    "&lt;",
    "&#x3c;", "\x1b[2J", "\x00", "\x07", "data: [DONE]", "\n\ndata: {}", "\r\n", "\r", "\u2028", "\u2029", "\u0085",
    "\ufeff",
    "<base href=//evil.example>", "<meta http-equiv=refresh content=0>", "<link rel=stylesheet href=//evil.example>",
    "'\"><b onmouseover=alert(1)>", "<details open ontoggle=alert(1)>", "<eos>",
    "e\u0301", "🙂", "漢字", "\u200b", "\t",
)  # fmt: skip


def hostile(count: int, seed: int) -> list[str]:
    """Return texts that would run, or disappear, on an unsafe page."""
    rng = random.Random(seed)
    mixed = ["".join(rng.choices(PARTS, k=rng.randint(1, 6))) for _ in range(count - len(PARTS) - len(HOSTILE))]
    return [f"a{text}z" for text in (*PARTS, *HOSTILE, *mixed)]


def check_text(page: Page, selector: str, expected: str) -> None:
    text = page.page.locator(selector).first.text_content()
    assert text == expected, (selector, text, expected)


ELEMENTS = "() => document.querySelectorAll('#dialogue *').length"


@pytest.mark.parametrize("count", [len(PARTS) + len(HOSTILE), pytest.param(300, marks=pytest.mark.slow)])
def test_hostile_messages_and_responses_stay_text(browser: Any, fake_run: Callable[..., Context], count: int):
    """As a message and as a response, no text runs, loads anything or is lost."""
    texts = hostile(count, 1)
    texts_sent: list[str] = []
    context = fake_run()
    with serving(context, SlowFake(script=lambda prompt, step, rng: " " + texts_sent[-1]), slots=1) as running:
        page = Page(browser, running).ready()
        texts_sent.append("a usual answer")
        page.ask("Hello")
        page.answered()
        usual = page.page.evaluate(ELEMENTS)
        for text in texts:
            page.key("Alt+n")
            texts_sent.append(text)
            page.page.locator("#message").fill(text)
            sent = page.page.locator("#message").input_value()  # a text field turns \r into \n and drops NUL's like
            page.key("Enter")
            page.answered()
            cut = min([len(text), *(text.find(s) for s in ("\n\nUser:", "\nUser:") if s in text)])
            check_text(page, ".answer .text", text[:cut])
            check_text(page, ".message", sent)
            assert page.page.evaluate(ELEMENTS) == usual
        assert page.events == []
        page.context.close()


def test_hostile_run_names_stay_text(browser: Any, running: RunningServer):
    """/about returns 300 hostile texts as names of the run, the assistant, models and prompts."""
    texts = list(dict.fromkeys(hostile(300, 2)))
    joined = " ".join(texts)
    about = {
        "run": joined, "assistant": joined, "base": joined, "fake": False,
        "models": [{"id": t, "about": t} for t in texts],
        "default": texts[0], "style": texts[0], "styles": {t: t for t in texts}, "two_shot": [], "defaults": {},
        "limits": {"max_tokens": 9},
    }  # fmt: skip
    context = browser.new_context()
    opened, events = context.new_page(), list[str]()
    opened.on("dialog", lambda dialog: (events.append(dialog.message), dialog.dismiss()))
    opened.on("console", lambda message: events.append(message.text))
    opened.on("request", lambda r: None if r.url.startswith(running.url) else events.append(r.url))
    body = json.dumps(about)
    opened.route("**/about", lambda route: route.fulfill(body=body))
    opened.goto(running.url + "/")
    opened.locator("#models button").first.wait_for(state="attached")
    for place in ("#models b", "#models i", "#style option"):
        shown_texts = opened.locator(place).evaluate_all("all => all.map(e => e.textContent)")
        assert shown_texts[: len(texts)] == texts, place
    for place in ("#run", "#assistant"):
        assert opened.locator(place).text_content() == joined
    assert opened.locator("#prompt").text_content() == texts[0]
    assert joined in opened.locator("#title").text_content()
    assert joined in opened.locator("#lead").text_content()
    assert events == []
    context.close()


def test_page_loads_fast(browser: Any, running: RunningServer):
    began = time.monotonic()
    page = Page(browser, running).ready()
    assert time.monotonic() - began < 5
    sizes = page.page.evaluate("() => performance.getEntriesByType('resource').map(r => [r.name, r.decodedBodySize])")
    assert sum(size for _, size in sizes) < 60_000
    page.context.close()
