"""Take the README's pictures of the chat page and of the report: `python tools/pictures.py RUN`.

Needs Debian's chromium (`make browser`) and playwright. The question is fixed, and the answers are the models' first.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).resolve().parents[1] / "docs/pictures"
QUESTION = "What does a kilo of tomatoes cost at the market today?"
SIZE = {"width": 1100, "height": 620}


def main(run: Path) -> None:
    """Serve the run, ask all its models the question, and take both pictures."""
    PICTURES.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "selfalign", "serve", str(run), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        url = next(m[0] for line in server.stderr if (m := re.search(r"http://[\d.:]+", line)))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport=SIZE, device_scale_factor=1, color_scheme="light")
            page.goto(url)
            page.locator("#models button").first.wait_for(state="attached")
            for key in ("Alt+1", "Alt+3"):  # base, engraved and final; not the prompted base
                page.keyboard.press(key)
            page.keyboard.type(QUESTION)
            page.keyboard.press("Enter")
            page.get_by_role("button", name="Send").wait_for(timeout=120_000)
            page.screenshot(path=PICTURES / "chat.png")
            page.goto((run.resolve() / "report/index.html").as_uri())
            page.screenshot(path=PICTURES / "report.png")
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
