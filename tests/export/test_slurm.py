"""The Slurm scripts, run by bash for two nodes, with stub programs on PATH that record their arguments."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_launch import curve, environment, here, launch_folder, losses  # noqa: F401  (launch_folder is a fixture)

from selfalign.export import launch

pytestmark = pytest.mark.integration
NODES = ("node-a", "node-b")
HOSTILE = "a b; touch hurt $(touch hurt) `touch hurt` 'x' \"y\" \\ *"
FAKE = f"""#!{sys.executable} -S
import json, os, sys, time
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
keys = ("NODES", "GPUS", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "RDZV_BACKEND", "RDZV_CONF", "RAY_AUTH_TOKEN")
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([name, arguments, {{k: os.environ[k] for k in keys if k in os.environ}}]) + "\\n")
"""
SCONTROL = FAKE + 'print("node-a\\nnode-b") if arguments[:2] == ["show", "hostnames"] else None\n'
SRUN = (
    FAKE
    + """
import subprocess
options = dict(word[2:].partition("=")[::2] for word in arguments if word.startswith("--"))
while arguments and arguments[0].startswith("--"):
    arguments.pop(0)
known = os.environ["SLURM_JOB_NODELIST"].split(",")
hosts = options.get("nodelist", ",".join(known)).split(",")
assert int(options["nodes"]) == int(options["ntasks"]) == len(hosts), options
running = [subprocess.Popen(arguments, env={**os.environ, "SLURM_NODEID": str(known.index(h))}) for h in hosts]
import signal
signal.signal(signal.SIGTERM, lambda *_: [child.terminate() for child in running])
sys.exit(max(child.wait() for child in running))
"""
)
GETENT = FAKE + 'print("10.1.2.3      STREAM node-a")\n'
RAY = FAKE + "time.sleep(60)\n"
PYTHON = (
    FAKE
    + """
with open(os.environ["CALLS"]) as file:
    print(sum(json.loads(line)[0] == "ray" for line in file) - int(os.path.exists("nobody-joins")))
"""
)
SELFALIGN = (
    FAKE.replace("import json,", "import signal\nsignal.signal(signal.SIGINT, lambda *_: sys.exit(75))\nimport json,")
    + """
time.sleep(float(os.environ.get("WORKS", "0")))
sys.exit(int(os.environ.get("CODE", "0")))
"""
)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Return a function that runs a script of the folder as the first of two nodes."""
    tools, folder = tmp_path / "tools", tmp_path / "folder"
    tools.mkdir()
    folder.mkdir()
    programs = {"scontrol": SCONTROL, "srun": SRUN, "getent": GETENT, "ray": RAY, "python3": PYTHON}
    for name, text in {**programs, "selfalign": SELFALIGN, "accelerate": FAKE}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    launch_options = launch.LaunchOptions("engrave", 4, 2, "fsdp", "none")
    for name in ("train.slurm", "generate.slurm", "launch.sh", "train.py"):
        (folder / name).write_text(launch.fill_in(name, launch_options, launch.divide(8, 8), 10, None))

    def start(name: str, *arguments: str, **more: str) -> subprocess.Popen[str]:
        kept = {"PATH": f"{tools}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls"), "POLL": "0.1", "PATIENCE": "40"}
        slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": ",".join(NODES), "SLURM_SUBMIT_DIR": str(folder)}
        return subprocess.Popen(
            ["bash", str(folder / name), *arguments], env={**kept, **slurm, **more}, cwd="/", text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    return start


def calls(tmp_path: Path, name: str) -> list[tuple[list[str], dict[str, str]]]:
    lines = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
    return [(arguments, env) for tool, arguments, env in map(json.loads, lines) if tool == name]


def ended(process: subprocess.Popen[str], code: int) -> tuple[str, str]:
    out, error = process.communicate(timeout=60)
    assert process.returncode == code, (out, error)
    return out, error


def test_training_starts_a_launcher_on_every_node(job: Callable[..., subprocess.Popen[str]], tmp_path: Path):
    ended(job("train.slurm", "--base", HOSTILE), 0)
    (srun,) = calls(tmp_path, "srun")
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"} <= set(srun[0])
    launched = sorted(calls(tmp_path, "accelerate"), key=lambda call: call[1]["NODE_RANK"])
    assert [env["NODE_RANK"] for _, env in launched] == ["0", "1"]
    assert [env["RDZV_CONF"] for _, env in launched] == ["is_host=1", "is_host=0"]
    for arguments, _ in launched:
        options = dict(zip(arguments[1::2], arguments[2::2], strict=False))
        assert options["--rdzv_backend"] == "c10d" and options["--num_machines"] == "2"
        assert (options["--num_processes"], options["--main_process_ip"]) == ("8", "node-a")
        assert options["--main_process_port"] == str(20000 + 4711)
        assert arguments[-4:-2] == ["./train.py", "--resume"] and arguments[-2:] == ["--base", HOSTILE]
    assert not list(tmp_path.rglob("hurt"))


def test_a_failed_launcher_fails_the_job(job: Callable[..., subprocess.Popen[str]], tmp_path: Path):
    (tmp_path / "tools/accelerate").write_text(FAKE + "sys.exit(3)\n")
    ended(job("train.slurm"), 3)
    (tmp_path / "folder/train.py").unlink()
    assert "submit train.slurm in its own folder" in ended(job("train.slurm"), 2)[1]


def test_run_starts_after_all_nodes_joined_ray(job: Callable[..., subprocess.Popen[str]], tmp_path: Path):
    run = tmp_path / "folder" / HOSTILE
    run.mkdir()
    ended(job("generate.slurm", HOSTILE, "--set", "seed=$(touch hurt)"), 0)
    head, worker = calls(tmp_path, "ray")
    assert head[0][:3] == ["start", "--head", "--node-ip-address=10.1.2.3"] and "--num-gpus=4" in head[0]
    assert worker[0][:2] == ["start", "--address=10.1.2.3:24711"] and "--block" in worker[0]
    assert head[1]["RAY_AUTH_TOKEN"] == worker[1]["RAY_AUTH_TOKEN"] and len(head[1]["RAY_AUTH_TOKEN"]) == 64
    assert not any("RAY_AUTH" in word or head[1]["RAY_AUTH_TOKEN"] in word for word in head[0] + worker[0])
    where = [next(w for w in arguments if w.startswith("--nodelist")) for arguments, _ in calls(tmp_path, "srun")]
    assert where == ["--nodelist=node-b", "--nodelist=node-a", "--nodelist=node-b"]
    ((arguments, env),) = calls(tmp_path, "selfalign")
    assert arguments[:6] == ["run", f"{HOSTILE}/recipe.yaml", "--out", HOSTILE, "--set", "seed=$(touch hurt)"]
    assert arguments[6:] == ["--set", "executor.kind=ray", "--set", "executor.address=10.1.2.3:24711"]
    assert env["RAY_AUTH_TOKEN"] == head[1]["RAY_AUTH_TOKEN"]
    assert not list(tmp_path.rglob("hurt"))


def test_recipe_arguments_are_passed_to_run(job: Callable[..., subprocess.Popen[str]], tmp_path: Path):
    ended(job("generate.slurm", "quick", "--out", "r", CODE="3"), 3)  # its exit code is the job's
    assert calls(tmp_path, "selfalign")[0][0][:4] == ["run", "quick", "--out", "r"]
    assert "usage" in ended(job("generate.slurm"), 2)[1]


def test_missing_node_fails_the_job(job: Callable[..., subprocess.Popen[str]], tmp_path: Path):
    (tmp_path / "folder/nobody-joins").touch()
    assert "0 of 2 nodes after 1 seconds" in ended(job("generate.slurm", "quick", PATIENCE="1"), 1)[1]
    assert not calls(tmp_path, "selfalign")
    (tmp_path / "calls").unlink()  # or the first job's head would be counted
    (tmp_path / "tools/ray").write_text(FAKE + "sys.exit(1)\n")
    assert "ray ended on a node" in ended(job("generate.slurm", "quick"), 1)[1]


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_job_drains_and_requeues_before_its_time_limit(
    job: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: int, requeued: bool
):
    process = job("generate.slurm", "quick", WORKS="50")
    for _ in range(300):
        if calls(tmp_path, "selfalign"):
            break
        time.sleep(0.1)
    os.kill(process.pid, number)
    ended(process, 75)
    requeued = [arguments for arguments, _ in calls(tmp_path, "scontrol") if arguments[0] == "requeue"]
    assert requeued == ([["requeue", "4711"]] if requeued else [])


def test_scripts_pass_bash_and_shellcheck(tmp_path: Path):
    for nodes in (1, 16):
        for name in ("train.slurm", "generate.slurm"):
            text = launch.fill_in(
                name, launch.LaunchOptions("verbose_cloning", 8, nodes, "ddp", "none"), launch.divide(8, 8), 1, None
            )
            (tmp_path / name).write_text(text)
            subprocess.run(["bash", "-n", str(tmp_path / name)], check=True, timeout=20)
            assert f"#SBATCH --nodes={nodes}\n#SBATCH --ntasks-per-node=1\n#SBATCH --gpus-per-node=8\n" in text
            assert "\n##SBATCH --partition=NAME\n##SBATCH --account=NAME\n" in text and "@STAGE" not in text
            if shellcheck := shutil.which("shellcheck"):
                subprocess.run([shellcheck, str(tmp_path / name)], check=True, timeout=60)


def two_here(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a job of two nodes that are both this machine; srun and scontrol are stubs."""
    tools, nodes = tmp_path / "tools", "localhost,127.0.0.1"
    tools.mkdir()
    scontrol = SCONTROL.replace("node-a\\nnode-b", nodes.replace(",", "\\n"))
    command = f'#!/bin/sh\nexec {sys.executable} -m selfalign.cli.main "$@"\n'
    for name, text in {"scontrol": scontrol, "srun": SRUN, "selfalign": command}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    variables = environment(tmp_path, CALLS=str(tmp_path / "calls"), SLURM_JOB_NODELIST=nodes, SLURM_JOB_ID="9")
    return variables | {"PATH": f"{tools}:{variables['PATH']}"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_ray_run_on_two_nodes(tmp_path: Path):
    pytest.importorskip("ray")
    text = launch.fill_in(
        "generate.slurm", launch.LaunchOptions("engrave", 1, 2, "ddp", "none"), launch.divide(2, 2), 1, None
    )
    (tmp_path / "generate.slurm").write_text(text)
    variables = two_here(tmp_path) | {"SLURM_SUBMIT_DIR": str(tmp_path), "GPUS": "0", "POLL": "1", "PATIENCE": "120"}
    settings = ["--set", "engine.kind=fake", "--set", "stages=[prompts,align]", "--limit", "10"]
    for arguments in (["quick", "--out", "my run", *settings], ["my run"]):  # created, then resumed
        command = ["bash", str(tmp_path / "generate.slurm"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=variables)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "2 node(s) of 0 GPUs at 127.0.0.1:20009" in done.stdout
    made_rows = (tmp_path / "my run/2_self_align/responses.jsonl").read_text().splitlines()
    assert len(made_rows) == 20


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_real_training_on_two_nodes_has_the_same_losses(
    launch_folder: SimpleNamespace,  # noqa: F811
    tiny_base: Path,
    tmp_path: Path,
):
    """Run train.slurm on two nodes of this machine (gloo), with stubs for srun and scontrol only."""
    variables = two_here(tmp_path) | {"SLURM_SUBMIT_DIR": str(launch_folder.folder), "GPUS": "1"}
    command = [
        "bash",
        str(launch_folder.folder / "train.slurm"),
        "--base",
        str(tiny_base),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=variables)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 node(s) of 1 processes; rendezvous at localhost:20009 (c10d)" in done.stdout
    trained = json.loads((tmp_path / "out/adapter/trained.json").read_text())
    assert trained["processes"] == 2
    assert curve(losses(tmp_path / "out")) == pytest.approx(here(launch_folder, tiny_base, 4), abs=1e-3)
