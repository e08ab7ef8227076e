"""Write llms.txt, an index of the pages for language models, and llms-full.txt with their whole text (llmstxt.org)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pages

_TOCTREE = re.compile(r"```\{toctree\}\n(.*?)```\n*", re.DOTALL)
_DIRECTIVE = re.compile(r"^```\{.*?^```\n*", re.DOTALL | re.MULTILINE)
FULL_WITHOUT = {"changelog"}
"""Pages that llms-full.txt leaves to the index."""


def sections(index: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (caption, pages) of each table of contents in the text of the index page."""
    for block in _TOCTREE.findall(index):
        caption = re.search(r":caption: (.*)", block)
        yield (
            caption[1] if caption else "Start here",
            [line.rpartition("<")[2].rstrip("> ") for line in block.splitlines() if line and not line.startswith(":")],
        )


def title_and_summary(text: str) -> tuple[str, str]:
    """Return a page's title and the first sentence of its first paragraph."""
    title = re.search(r"^# (.*)$", text, re.MULTILINE)
    for paragraph in text.partition("\n")[2].split("\n\n"):
        if paragraph.strip() and not re.match(r"\s*(```|#|\||[-*] |\d+\. |!|>)", paragraph):
            plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
            return (title[1] if title else "", re.split(r"(?<=[.:]) (?=[A-Z`])", plain)[0].rstrip(":"))
    return (title[1] if title else "", "")


def documents(source: Path) -> tuple[str, str]:
    """Return (llms.txt, llms-full.txt) of the pages in a folder."""
    index = (source / "index.md").read_text("utf-8")
    title, summary = title_and_summary(index)
    short, full = [f"# {title}", "", f"> {summary}"], [_DIRECTIVE.sub("", index)]
    for caption, names in sections(index):
        short += ["", f"## {caption}", ""]
        for name in names:
            text = pages.filled(name, (source / f"{name}.md").read_text("utf-8"))
            title, summary = title_and_summary(text)
            short.append(f"- [{title}](_sources/{name}.md)" + (f": {summary}" if summary else ""))
            if name not in FULL_WITHOUT:
                full.append(f"<!-- {name}.md -->\n\n{_DIRECTIVE.sub('', text)}")
    return "\n".join(short) + "\n", "\n\n".join(part.strip() for part in full) + "\n"


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""

    def on_finish(app: Any, error: Exception | None) -> None:
        if error is None and app.builder.name == "html":
            short, full = documents(Path(app.srcdir))
            (Path(app.outdir) / "llms.txt").write_text(short, "utf-8")
            (Path(app.outdir) / "llms-full.txt").write_text(full, "utf-8")
            for page in Path(app.outdir, "_sources").glob("*.md"):
                page.write_text(pages.filled(page.stem, page.read_text("utf-8")), "utf-8")

    app.connect("build-finished", on_finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
