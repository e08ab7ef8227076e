"""Run on a full disk: a tmpfs in a mount namespace. test_cli covers systems that do not allow that."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

INSIDE = """
import json, subprocess, sys
from pathlib import Path

disk, size, levels = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
command = [sys.executable, "-m", "selfalign.cli.main", "run", "--out", str(disk / "run"), *sys.argv[4:]]

def run():
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stderr

def files():
    return {str(p.relative_to(disk)): p.read_bytes() for p in sorted(disk.rglob("*.jsonl"))}

assert run()[0] == 0
expected = files()
subprocess.run(["rm", "-r", str(disk / "run")], check=True)
for free in levels:
    (disk / "filler").write_bytes(bytes(size - free * 1024 - 4096))
    code, stderr = run()
    left = [p.name for p in disk.rglob(".*") if p.suffix in (".tmp", ".incomplete")]
    (disk / "filler").unlink()
    again, _ = run()
    row = {"free": free, "code": code, "stderr": stderr, "left": left, "again": again, "same": files() == expected}
    print(json.dumps(row))
    subprocess.run(["rm", "-r", str(disk / "run")], check=True)
"""


def allowed() -> bool:
    if not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0


def fill(tmp_path: Path, levels: list[int]) -> list[dict[str, object]]:
    disk = tmp_path / "disk"
    disk.mkdir()
    settings = ["engine.kind=fake", "evaluate.limit=4", "prompts.self_instruct.count=40", "prompts.red_team.count=40"]
    sets = [a for s in settings for a in ("--set", s)]
    command = ["unshare", "-rm", sys.executable, "-c", INSIDE, str(disk), str(4 << 20), json.dumps(levels), *sets]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(rows: list[dict[str, object]]) -> None:
    for row in rows:
        assert row["code"] in (75, 0), row
        assert row["again"] == 0 and row["same"] is True, row
        assert row["left"] == [], row
        if row["code"] == 75:
            last = str(row["stderr"]).strip().splitlines()[-1]
            assert last.startswith("selfalign: no space") and "run the same command again" in last
            assert "Traceback" not in str(row["stderr"])
    assert any(row["code"] == 75 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(not allowed(), reason="no mount namespaces here")
def test_full_disk_stops_the_run_and_loses_nothing(tmp_path: Path):
    check(fill(tmp_path, [40, 300]))


@pytest.mark.slow
@pytest.mark.skipif(not allowed(), reason="no mount namespaces here")
def test_twenty_levels_of_a_full_disk(tmp_path: Path):
    rows = fill(tmp_path, [4, 12, 24, 32, 48, 64, 80, 100, 120, 150, 180, 220, 260, 300, 350, 400, 500, 600, 700, 900])
    check(rows)
    assert sum(row["code"] == 75 for row in rows) >= 15
