"""Measure the viewer on a large run: the index, its size, pages, filters and searches.

    python benchmarks/viewer.py [--rows 300000]

Writes a run with that many rows, builds its index, then requests rows and counts over HTTP as the page does, for each
filter: the median of five, the slowest in brackets. Takes about two minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from selfalign.web import guard, server
from selfalign.web.view import routes
from selfalign.web.view.index import Index
from viewer_runs import make

QUESTIONS: dict[str, dict[str, str]] = {
    "first page": {},
    "a stage": {"stage": "engrave"},
    "a reason": {"reason": "truncated"},
    "stage, outcome and type": {"stage": "align", "state": "kept", "type": "legal expertise"},
    "a principle": {"principle": "7"},
    "a rare word": {"words": '"answer 4712"'},
    "a common word": {"words": "winter"},
    "a word in every row": {"words": "the"},
    "a phrase": {"words": '"river winter"'},
    "a principle, a type and a word": {"principle": "1", "type": "legal expertise", "words": "music"},
    "a word's beginning": {"words": "gard"},
    "in a script without spaces": {"words": "天気"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000)
    wanted = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="selfalign-viewer-") as name:
        start = time.monotonic()
        run = make(Path(name) / "run", round(wanted / (2 + 6 / 7)))
        print(f"run written in {time.monotonic() - start:.1f} s")
        start = time.monotonic()
        index = Index(run.path, run.constitution, run.view)
        index.refresh()
        size = run.view.stat().st_size / 1e6
        journal = (run.path / "journal.sqlite").stat().st_size / 1e6
        print(f"index built in {time.monotonic() - start:.1f} s; {size:.0f} MB beside a journal of {journal:.0f} MB")
        start = time.monotonic()
        index.refresh()
        print(f"opened again in {1000 * (time.monotonic() - start):.0f} ms")
        listening = server.listen("127.0.0.1", 0)
        app = routes.build(routes.Viewer(index), guard.policy("127.0.0.1"))
        made = server.build(app)
        threading.Thread(target=made.run, kwargs={"sockets": [listening]}, daemon=True).start()
        ask(listening, "run", {})
        for title, query in QUESTIONS.items():
            times = [measured(listening, query) for _ in range(5)]
            pages, counts = ([1000 * t[at] for t in times] for at in (0, 1))
            print(
                f"{title:<34} page {statistics.median(pages):6.0f} ms ({max(pages):.0f})  counts "
                f"{statistics.median(counts):6.0f} ms ({max(counts):.0f})  {times[0][2]:,} rows"
            )
        deep(listening)
        in_a_browser(server.address(listening))
        made.should_exit = True


def measured(listening: object, query: dict[str, str]) -> tuple[float, float, int]:
    start = time.monotonic()
    ask(listening, "rows", {**query, "limit": "50"})
    middle = time.monotonic()
    total = ask(listening, "counts", query)["total"]
    return middle - start, time.monotonic() - middle, total


def deep(listening: object) -> None:
    """The last page, and the progress."""
    start = time.monotonic()
    ask(listening, "rows", {"back": "1", "limit": "50"})
    print(f"{'the last page':<34} page {1000 * (time.monotonic() - start):6.0f} ms")
    start = time.monotonic()
    ask(listening, "progress", {})
    print(f"{'progress':<34}      {1000 * (time.monotonic() - start):6.0f} ms")


SEEN = """text => new Promise(done => {
  const at = performance.now();
  const look = () => document.getElementById('matches').textContent.endsWith(text)
    ? done(performance.now() - at) : requestAnimationFrame(look);
  look();
})"""


def in_a_browser(url: str) -> None:
    """What a person waits for, in Chromium: from the address or the click to rows and counts on the page."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        print("no browser here: make browser")
        return
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for attempt in ("cold", "warm"):
            page = browser.new_page()
            page.goto(url, wait_until="commit")
            page.wait_for_function("() => document.querySelectorAll('#list li').length === 50")
            # Since the address was asked for; the time in which Chromium makes a tab is not the viewer's.
            took = page.evaluate("() => performance.getEntriesByName('rows')[0].startTime")
            print(f"{f'browser, {attempt}: the page':<34} {took:6.0f} ms")
            total = page.locator("#matches").text_content().rpartition(" of ")[2]
            for name, click in {"a stage": "2 self-align", "a reason": "truncated", "a principle": "7 candor"}.items():
                button = page.locator("#facets button", has_text=click).first
                wanted = f"of {button.locator('.n').text_content()} rows"
                start = time.monotonic()
                button.click()
                page.evaluate(SEEN, wanted)
                print(f"{f'browser, {attempt}: {name}':<34} {1000 * (time.monotonic() - start):6.0f} ms")
                page.locator("#chosen button").click()
                page.evaluate(SEEN, f"of {total}")
            page.close()
        browser.close()


def ask(listening: object, name: str, query: dict[str, str]) -> dict:  # type: ignore[type-arg]
    url = f"{server.address(listening)}/api/{name}?{urlencode(query)}"  # type: ignore[arg-type]
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main()
