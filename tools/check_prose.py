"""Find words that the project does not use, and name the standard term for each.

    python tools/check_prose.py [PATH...]

Without paths it reads those in `DEFAULT`. Paths in `FIXED` are skipped. The exit code is 1 if there is a finding.
`FORBIDDEN` lists each pattern with the words to write instead.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUFFIXES = {".py", ".md", ".yaml", ".html", ".js", ".css", ".jinja", ".sh", ".slurm"}
DEFAULT = ("src", "docs", "benchmarks", "README.md", "CONTRIBUTING.md", "SECURITY.md")
FIXED = ("src/selfalign/assets/constitutions", "src/selfalign/assets/scenarios.jsonl", "benchmarks/data")
"""Paths with fixed texts: the shipped constitutions and scenarios, responses of models, annotations."""

FORBIDDEN: tuple[tuple[str, str], ...] = (
    (r"inference[ _-]prompts?", "system prompt"),
    (r"fates?", "RowOutcome, outcome"),
    (r"sittings?", "session"),
    (r"entrants?|speakers?", "models, models under comparison"),
    (r"spoken", "open-ended (tasks)"),
    (r"situations?", "scenario"),
    (r"neutralis\w*", "escaped"),
    (r"killers?", "poison request"),
    (r"nurses?", "health checks"),
    (r"crews?", "executor"),
    (r"paces?", "throughput"),
    (r"primed|priming|prime the", "warm the prefix cache"),
    (r"tokens_at_once", "micro_batch_tokens"),
    (r"run_on", "heldout_prompts (the measure is run-on)"),
    (r"verbose_clone(?!/)|verbose clones?", "verbose_cloning, verbose cloning"),
    (r"(?:go|goes|going|gone|went) on(?! to )", "resume, resumed, continue"),
    (r"tak(?:e|es|en|ing) up|took up|take[sn]? (?:it|a run|the run) up", "resume"),
    (r"(?:is|are|was|were) said", "is reported, is logged, an error names"),
    (r"sa(?:y|ys|id) so", "reports it, an error says"),
    (r"so large a share", "fraction"),
    (r"left out|leaves? out|leaving out", "excluded, skipped, omitted"),
    (r"by hand", "manual, manually"),
    (r"(?<!its )(?<!your )(?<!their )own (?:data|prompts?|rows)", "user data, user prompts"),
    (r"human lines?|(?:items|texts|lines) (?:written by people|that people write)", "human-written items"),
    (r"for so long|so long may", "timeout, limit"),
)
"""Whole words, in any case. Where a word has an ordinary meaning that the text needs, reword the text."""

_PATTERN = re.compile("|".join(rf"(?P<p{n}>\b(?:{pattern})\b)" for n, (pattern, _) in enumerate(FORBIDDEN)), re.I)


def findings(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield (line number, forbidden words, words to write instead)."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.endswith("# old name"):  # a name in files of earlier versions
            continue
        for match in _PATTERN.finditer(line):
            yield number, match[0], FORBIDDEN[int((match.lastgroup or "p0")[1:])][1]


def files(paths: list[str]) -> Iterator[Path]:
    """Yield the text files at or below the paths, sorted. Files in `FIXED` are skipped."""
    fixed = [ROOT / name for name in FIXED]
    for path in (ROOT / name for name in paths):
        below = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix in SUFFIXES)
        yield from (f for f in below if "__pycache__" not in f.parts and not any(map(f.is_relative_to, fixed)))


def main(paths: list[str]) -> int:
    lines = [
        f"{file.relative_to(ROOT)}:{number}: {words!r}: write {instead}"
        for file in files(paths or list(DEFAULT))
        for number, words, instead in findings(file.read_text("utf-8", "replace"))
    ]
    print(*lines, f"{len(lines)} findings", sep="\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
