"""Install the built wheel in an empty environment of each Python and try the verbs that need no training.

    python tools/try_wheel.py python3.12 python3.13

A run on the fake engine goes through all stages; a run on the embedded model writes and answers a few prompts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = "embedded,serve,data,diversity,report"
REAL = ["prompts.self_instruct.count=2", "prompts.red_team.count=0", "stages=[prompts,align]"]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Return the output of a command; exit with it if the command fails."""
    result = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit code {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


def try_python(python: str, wheel: Path, folder: Path) -> None:
    """Install the wheel for one Python and try it; exit if anything fails."""
    start = time.monotonic()
    run(python, "-m", "venv", folder / "venv")
    pip = [folder / "venv/bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    run(*pip, "-c", ROOT / "constraints.txt", f"{wheel}[{EXTRAS}]")
    installed = time.monotonic() - start
    selfalign = folder / "venv/bin/selfalign"
    version = run(selfalign, "--version").strip()
    run(selfalign, "--help")
    run(selfalign, "constitution", "lint", "default")
    run(selfalign, "init", "mine", cwd=folder)
    run(selfalign, "plan", "mine/recipe.yaml", cwd=folder)
    run(selfalign, "run", "mine/recipe.yaml", "--set", "engine.kind=fake", "--limit", "6", "--out", "run", cwd=folder)
    for verb in ("status", "evaluate", "report", "duplicates"):
        run(selfalign, verb, "run", cwd=folder)
    run(selfalign, "export", "run", "dataset", "--out", "data", cwd=folder)
    run(selfalign, "chat", "run", "-p", "Hello", cwd=folder)
    run(selfalign, "run", *(part for key in REAL for part in ("--set", key)), "--out", "real", cwd=folder)
    rows = [json.loads(line) for line in (folder / "real/2_self_align/responses.jsonl").read_text("utf-8").splitlines()]
    assert all(row["response"] for row in rows)
    seconds = time.monotonic() - start
    print(f"{python}: {version}, installed in {installed:.0f} s, all verbs in {seconds:.0f} s", flush=True)


def main() -> None:
    """Try the newest wheel in dist/ with every Python on the command line."""
    wheel = max((ROOT / "dist").glob("*.whl"), key=lambda file: file.stat().st_mtime)
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB")
    for python in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            try_python(python, wheel, Path(folder))


if __name__ == "__main__":
    main()
