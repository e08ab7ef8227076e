"""Runs on unusual machines: one line at most, no traceback, and the rows of an undisturbed run in the end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SETTINGS = (
    "engine.kind=fake",
    "evaluate.limit=4",
    "prompts.self_instruct.count=8",
    "prompts.red_team.count=8",
    "evaluate.heldout_prompts=4",
)
SETS = [argument for setting in SETTINGS for argument in ("--set", setting)]

CLOCK = """
import random, time
_now, _at_random = time.time, random.Random(0)
time.time = lambda: _now() + _at_random.choice((-4e9, -3600.0, 0.0, 86400.0, 6e9))
"""
"""A sitecustomize module with a clock that jumps by hours and centuries."""
FULL = (
    'mount -t tmpfs -o size=16k tmpfs "$BOX/tmp" && head -c 1M /dev/zero > "$BOX/tmp/filler"; export TMPDIR="$BOX/tmp"'
)
READ_ONLY = 'mount -t tmpfs -o ro tmpfs "$BOX/tmp"; export HOME="$BOX/tmp"; unset SELFALIGN_CACHE XDG_CACHE_HOME'
MACHINES = {
    "no home": "unset HOME XDG_CACHE_HOME SELFALIGN_CACHE",
    "unknown user without a home": 'OPTIONS="--map-user=54321"; unset HOME XDG_CACHE_HOME SELFALIGN_CACHE USER LOGNAME',
    "home that is a file": "export HOME=/dev/null; unset SELFALIGN_CACHE XDG_CACHE_HOME",
    "home that can only be read": READ_ONLY,
    "cache that cannot be made": "export SELFALIGN_CACHE=/dev/null/cache",
    "ascii console": "export PYTHONIOENCODING=ascii",
    "western console": "export PYTHONIOENCODING=cp1252",
    "locale without utf-8": "export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0",
    "turkish locale": "export LC_ALL=tr_TR.UTF-8 LANG=tr_TR.UTF-8",
    "terminal of 40 columns": "export COLUMNS=40 LINES=5 TERM=dumb",
    "closed input": "exec <&-",
    "closed streams": "exec <&- >&- 2>&-",
    "full output": "exec >/dev/full",
    "reader that went away": "exec > >(true)",
    "private umask": "umask 077",
    "64 open files": "ulimit -n 64",
    "13 open files": "ulimit -n 13",
    "temporary folder that is missing": "export TMPDIR=/missing",
    "full temporary folder": FULL,
    "proxy that is down": "export HTTP_PROXY=http://127.0.0.1:9 HTTPS_PROXY=http://127.0.0.1:9 ALL_PROXY=socks5://127.0.0.1:9",
    "clock that jumps": 'export PYTHONPATH="$BOX/clock:$PYTHONPATH"',
    "folder with a space, an umlaut and an emoji": 'OUT="$BOX/my runs/Übung 🍎"',
    "folder with characters of addresses and patterns": 'OUT="$BOX/a?b#c%41[x]*"',
    "folder with a new line": "OUT=\"$BOX/a\nb\"",
    "folder that is no utf-8": "OUT=\"$BOX/\"$(printf '\\\\377\\\\376')",
    "file system that can only be read": 'mount --bind -o ro "$BOX" "$BOX"',
    "optimised python": "export PYTHONOPTIMIZE=2",
}  # fmt: skip
"""Name -> bash commands before `selfalign`. OUT is the run, BOX a folder of the test."""


def allowed() -> bool:
    if not shutil.which("unshare") or not shutil.which("bash"):
        return False
    return subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0


def run(box: Path, commands: str) -> tuple[int, str, Path]:
    """Run the recipe after these commands; return exit code, standard error and the run."""
    script = f"""
OUT="$BOX/run"; OPTIONS=
{commands}
printf '%s' "$OUT" > "$NOTE"
[ -z "$OPTIONS" ] || exec unshare $OPTIONS "$@" --out "$OUT"
exec "$@" --out "$OUT"
"""
    command = ["unshare", "-rm", "bash", "-c", script, "bash", sys.executable, "-m", "selfalign.cli.main", "run", *SETS]
    note = box.with_suffix(".out")
    environment = {**os.environ, "BOX": str(box), "NOTE": str(note), "NO_COLOR": "1"}
    done = subprocess.run(command, env=environment, cwd=box.parent, capture_output=True, timeout=120, check=False)
    return done.returncode, done.stderr.decode("utf-8", "replace"), Path(os.fsdecode(note.read_bytes()))


def rows(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*.jsonl"))}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The rows of an undisturbed run."""
    box = tmp_path_factory.mktemp("usual") / "box"
    box.mkdir()
    code, stderr, path = run(box, "")
    assert code == 0, stderr
    return rows(path)


@pytest.mark.skipif(not allowed(), reason="this system allows no mount namespaces")
@pytest.mark.parametrize("machine", MACHINES)
def test_run_survives_the_machine(machine: str, tmp_path: Path, expected: dict[str, bytes]) -> None:
    box = tmp_path / "box"
    for name in ("tmp", "clock"):
        (box / name).mkdir(parents=True)
    (box / "clock/sitecustomize.py").write_text(CLOCK)
    code, stderr, path = run(box, MACHINES[machine])
    assert "Traceback" not in stderr and "Error" not in stderr.replace("OSError", ""), stderr
    if code:
        explained = [line for line in stderr.splitlines() if line.startswith("selfalign: ")]
        # As for every program, a closed pipe needs no message.
        assert code in (1, 75) and len(explained) == (machine != "reader that went away"), (code, stderr)
        code, stderr, path = run(box, f"OUT={json.dumps(str(path))}")
    assert code == 0 and rows(path) == expected, stderr
