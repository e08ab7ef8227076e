"""The launch folder: its files follow the recipe, and it trains like the training loop of the run."""

from __future__ import annotations

import ast
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import command_line
import selfalign
from selfalign.errors import Resumable, UserError
from selfalign.export import launch
from selfalign.model import sources
from selfalign.model.dialogue import Encoded
from selfalign.pipeline import adapter_training, order
from selfalign.run.context import Context
from selfalign.training import adapter_import, batches, forward, loop, lora

pytestmark = pytest.mark.integration
ASSETS = Path(selfalign.__file__).parent / "assets/launch"
ROOT = Path(__file__).parents[2]


def options(**arguments: Any) -> launch.LaunchOptions:
    return launch.LaunchOptions(
        **{"stage": "engrave", "gpus": 2, "nodes": 1, "strategy": "ddp", "quantize": "none", **arguments}
    )


def examples(context: Context) -> None:
    """Run stage 3 until its examples are written."""
    with pytest.raises(Resumable, match=r"export .* launch --stage engrave"):
        order.run_stage(context, "engrave")


@pytest.fixture
def launch_folder(tiny_run: Callable[..., Context], tmp_path: Path) -> SimpleNamespace:
    """Return a run whose examples are written, and its launch folder."""
    context = tiny_run("engrave.elsewhere=true", "engrave.batch_size=4")
    examples(context)
    messages = launch.write(context, tmp_path / "folder", options())
    return SimpleNamespace(context=context, folder=tmp_path / "folder", messages=messages)


def functions(*names: str) -> dict[str, Callable[..., Any]]:
    """Return functions of train.py without importing its libraries."""
    tree = ast.parse((ASSETS / "train.py").read_text("utf-8"))
    picked = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in names]
    space: dict[str, Any] = {"math": math, "random": random, "Path": Path, "hashlib": __import__("hashlib")}
    exec(
        compile(ast.Module([ast.parse("from __future__ import annotations").body[0], *picked], []), "t", "exec"), space
    )
    return {name: space[name] for name in names}


def test_files_follow_the_recipe(launch_folder: SimpleNamespace):
    names = {"rows.jsonl", "training.json", "train.py", "accelerate.yaml", "launch.sh", "requirements.txt", "README.md"}
    names |= {"train.slurm", "generate.slurm"}
    assert {f.name for f in launch_folder.folder.iterdir()} == names
    training = json.loads((launch_folder.folder / "training.json").read_text())
    config = launch_folder.context.recipe.training("engrave").model_dump()
    for key in (
        "rank",
        "alpha",
        "dropout",
        "targets",
        "learning_rate",
        "schedule",
        "warmup_steps",
        "max_grad_norm",
        "epochs",
    ):
        assert training[key] == config[key], key
    assert (training["batch_size"], training["seed"], training["stage"]) == (
        4,
        launch_folder.context.recipe.seed,
        "engrave",
    )
    assert training["identity"] == launch_folder.context.model.identity
    launched = yaml.safe_load((launch_folder.folder / "accelerate.yaml").read_text())
    assert (launched["num_processes"], launched["distributed_type"]) == (2, "MULTI_GPU")
    ast.parse((launch_folder.folder / "train.py").read_text())
    for shell in ("sh", "bash"):
        subprocess.run([shell, "-n", str(launch_folder.folder / "launch.sh")], check=True, timeout=20)
    for name in ("README.md", "launch.sh", "train.slurm", "generate.slurm"):
        text = (launch_folder.folder / name).read_text()
        for used in ("$@", "hosts[@]", "steps[@]", "on[@]", "{@:2}", "USR1@"):
            text = text.replace(used, "")
        assert "@" not in text, name


def test_folder_has_no_local_path(launch_folder: SimpleNamespace, tiny_base: Path):
    for file in launch_folder.folder.iterdir():
        text = file.read_text()
        assert str(tiny_base) not in text and str(launch_folder.context.run.path) not in text, file.name
    assert any(str(tiny_base) in line for line in launch_folder.messages)  # the message tells the user what to copy


def test_rows_equal_the_loops_and_have_no_forged_control_tokens(launch_folder: SimpleNamespace):
    lines = [json.loads(line) for line in (launch_folder.folder / "rows.jsonl").read_text().splitlines()]
    rows = adapter_training.rows(launch_folder.context, "engrave")
    assert len(lines) == 13 + len(launch_folder.context.run.constitution.identity)
    assert [(r["input_ids"], [bool(m) for m in r["completion_mask"]]) for r in lines] == [(r.ids, r.mask) for r in rows]
    for row in lines:  # "<eos>" stands in every answer as text
        assert row["input_ids"].count(257) == row["input_ids"].count(256) == 1
        assert (row["input_ids"][0], row["input_ids"][-1]) == (256, 257)
    assert (
        adapter_import.rows_hash(rows)
        == __import__("hashlib").sha256((launch_folder.folder / "rows.jsonl").read_bytes()).hexdigest()
    )


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 7), st.integers(1, 3), st.integers(0, 99))
def test_row_order_equals_the_loops(lengths: list[int], batch: int, epochs: int, seed: int):
    rows = [Encoded([0] * n, [True] * n) for n in lengths]
    number = {id(row): i for i, row in enumerate(rows)}
    rng = random.Random(seed)
    expected = [
        [number[id(r)] for r in group]
        for _ in range(epochs)
        for group in batches.length_grouped_batches(rows, batch, rng)
    ]
    assert functions("order")["order"](lengths, batch, epochs, seed) == expected


@given(st.integers(1, 200), st.integers(0, 50))
def test_learning_rate_equals_the_loops_and_decays_to_zero(steps: int, warmup: int):
    rate = functions("rate")["rate"]
    short = min(warmup, steps // 4)
    for schedule in ("linear", "cosine"):
        rates = [rate(s, steps, warmup, schedule) for s in range(steps + 1)]
        assert max(rates) == rates[short] == 1.0 and rates[-1] == pytest.approx(0.0) and min(rates[:-1]) > 0
        assert rates[:short] == [(s + 1) / (short + 1) for s in range(short)]
        assert rates[short:] == sorted(rates[short:], reverse=True)
        assert rates[:-1] == pytest.approx([loop.rate(s, steps, short, schedule) for s in range(steps)])


@given(st.integers(1, 2000), st.integers(1, 64))
def test_batch_is_divided_evenly(rows: int, processes: int):
    batch = launch.divide(rows, processes)
    assert batch.per_device * batch.accumulation * processes == batch.size >= rows
    assert batch.size - rows < processes and batch.per_device <= 8
    assert ("rounded up" in batch.text()) == (batch.size != rows)


def test_train_script_computes_the_same_weights_hash(tiny_base: Path):
    here = sources.identity_of(sorted(tiny_base.glob("*.safetensors")))
    assert functions("fingerprint")["fingerprint"](tiny_base) == here


@pytest.mark.parametrize("strategy", launch.STRATEGIES)
@pytest.mark.parametrize("quantize", launch.QUANTIZATIONS)
def test_strategies_have_their_configuration_and_packages(strategy: str, quantize: str):
    chosen = options(strategy=strategy, quantize=quantize, gpus=8, nodes=2)
    text, packages = (
        launch.fill_in(name, chosen, launch.divide(16, 16), 1, None) for name in ("accelerate.yaml", "requirements.txt")
    )
    config = yaml.safe_load(text)
    assert (config["num_machines"], config["num_processes"]) == (2, 16)
    assert ("fsdp_config" in config, "deepspeed_config" in config) == (strategy == "fsdp", strategy == "deepspeed")
    assert ("deepspeed" in packages, "bitsandbytes" in packages) == (strategy == "deepspeed", quantize == "4bit")


def test_required_versions_are_the_tested_ones():
    files = ROOT / "constraints.txt", ROOT / "src/selfalign/assets/launch/requirements.txt"
    pinned, required = ({line for line in file.read_text().splitlines() if "==" in line} for file in files)
    assert len(required) == 6 and required <= pinned


def test_invalid_requests_are_one_line_errors(
    tiny_run: Callable[..., Context], fake_run: Callable[..., Context], launch_folder: SimpleNamespace, tmp_path: Path
):
    with pytest.raises(UserError, match="fake engine runs no model"):
        launch.write(fake_run(name="fake"), tmp_path / "x", options())
    with pytest.raises(UserError, match=r"3_engrave/examples\.jsonl is missing"):
        launch.write(tiny_run(name="other"), tmp_path / "x", options())
    with pytest.raises(UserError, match="exists"):
        launch.write(launch_folder.context, launch_folder.folder, options())
    for key in ("stage", "strategy", "quantize"):
        with pytest.raises(UserError, match=f"--{key} 'x'"):
            options(**{key: "x"})
    path = launch_folder.context.run.jsonl("engrave_examples")
    path.write_text(path.read_text().replace("old.", "old. " * 600, 1))
    with pytest.raises(UserError, match="longer than 2048 tokens"):
        launch.write(launch_folder.context, tmp_path / "x", options())


def test_command_writes_the_folder(launch_folder: SimpleNamespace, tmp_path: Path):
    command = ["export", str(launch_folder.context.run.path)]
    arguments = ["launch", "--out", str(tmp_path / "by"), "--gpus", "3", "--strategy", "fsdp"]
    done = command_line.selfalign(*command, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rounded up" in done.stdout and (tmp_path / "by/train.py").is_file()
    assert json.loads((tmp_path / "by/training.json").read_text())["batch_size"] == 6
    done = command_line.selfalign(*command, "parquet", "--out", "y", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr


# -- trainings with TRL ----------------------------------------------------------------------------------------------


def environment(tmp_path: Path, **arguments: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    quiet = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf")}
    return {**os.environ, "PATH": path, **quiet, "CPU": "1", **arguments}


def train(
    launch_folder: SimpleNamespace, base: Path, out: Path, *arguments: str, **variables: str
) -> list[dict[str, float]]:
    """Run the folder and return its log entries."""
    command = ["sh", str(launch_folder.folder / "launch.sh"), "--base", str(base), "--out", str(out), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment(out.parent, **variables)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return losses(out)


def losses(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "adapter/losses.jsonl").read_text().splitlines()]


def curve(logged: list[dict[str, float]]) -> list[float]:
    return [entry["loss"] for entry in logged]


def here(launch_folder: SimpleNamespace, base: Path, batch: int) -> list[float]:
    """Return the losses of our training loop on the same rows."""
    config = launch_folder.context.recipe.training("engrave")
    adapted = lora.with_new_adapter(lora.load_base(base), config, launch_folder.context.recipe.seed)
    config = config.model_copy(update={"batch_size": batch})
    return loop.train(
        adapted, adapter_training.rows(launch_folder.context, "engrave"), config, launch_folder.context.recipe.seed
    ).losses


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_and_two_processes_match_the_loop(launch_folder: SimpleNamespace, tiny_base: Path, tmp_path: Path):
    one = train(launch_folder, tiny_base, tmp_path / "one", GPUS="1")
    two = train(launch_folder, tiny_base, tmp_path / "two", GPUS="2")
    ours = here(launch_folder, tiny_base, 4)
    assert len(one) == len(ours) == 2 * -(-(13 + len(launch_folder.context.run.constitution.identity)) // 4)
    assert ours[-1] < 0.8 * ours[0]  # otherwise any two curves would match
    print("one process", max(abs(a - b) for a, b in zip(curve(one), ours, strict=True)))
    print("two processes", max(abs(a - b) for a, b in zip(curve(two), curve(one), strict=True)))
    assert curve(one) == pytest.approx(ours, abs=1e-3)
    assert curve(two) == pytest.approx(curve(one), abs=1e-3)
    assert curve(two) == pytest.approx(ours, abs=1e-3)
    assert json.loads((tmp_path / "two/adapter/trained.json").read_text())["processes"] == 2
    # Import the result, and continue the run.
    adapter = tmp_path / "two/adapter"
    order.run_stage(launch_folder.context, "engrave", again=True, adapter=adapter)
    order.run_all(launch_folder.context)
    notes = launch_folder.context.journal.counts("engrave").notes
    assert (notes["trained"], notes["processes"], notes["steps"]) == ("elsewhere", 2, len(ours))
    trained = lora.add_adapter(lora.load_base(tiny_base), launch_folder.context.run.adapter("engrave"))
    rows = adapter_training.rows(launch_folder.context, "engrave")
    after = [loss for row in forward.token_losses(trained, rows) for loss in row]
    assert sum(after) / len(after) < 0.85 * ours[0]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_resumed_training_has_the_same_losses(launch_folder: SimpleNamespace, tiny_base: Path, tmp_path: Path):
    whole = train(launch_folder, tiny_base, tmp_path / "out", GPUS="2")
    for checkpoint in (tmp_path / "out").glob("checkpoint-*"):
        assert (checkpoint / "adapter_model.safetensors").is_file()
    kept = sorted((tmp_path / "out").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    subprocess.run(["rm", "-r", str(kept[-1]), str(tmp_path / "out/adapter")], check=True)
    refused = subprocess.run(
        ["sh", str(launch_folder.folder / "launch.sh"), "--base", str(tiny_base), "--out", str(tmp_path / "out")],
        capture_output=True, text=True, timeout=300, env=environment(tmp_path, GPUS="1"),
    )  # fmt: skip
    assert refused.returncode != 0 and "--resume" in refused.stderr
    again = train(launch_folder, tiny_base, tmp_path / "out", "--resume", GPUS="2")
    assert len(again) == len(whole) and 0 < int(kept[0].name.split("-")[1]) < len(whole)
    assert curve(again) == pytest.approx(curve(whole), abs=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_nodes_match_the_loop(launch_folder: SimpleNamespace, tiny_base: Path, tmp_path: Path):
    command = ["sh", str(launch_folder.folder / "launch.sh"), "--base", str(tiny_base), "--out", str(tmp_path / "out")]
    nodes = [
        subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=environment(tmp_path, NODES="2", GPUS="1", NODE_RANK=str(rank), MASTER_PORT="29613"),
        )
        for rank in (0, 1)
    ]  # fmt: skip
    for node in nodes:
        _, error = node.communicate(timeout=300)
        assert node.returncode == 0, error[-3000:]
    assert curve(losses(tmp_path / "out")) == pytest.approx(here(launch_folder, tiny_base, 4), abs=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_other_base_weights_are_refused(launch_folder: SimpleNamespace, tiny_base: Path, tmp_path: Path):
    other = tmp_path / "other"
    subprocess.run(["cp", "-r", str(tiny_base), str(other)], check=True)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    command = ["sh", str(launch_folder.folder / "launch.sh"), "--base", str(other), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(tmp_path, GPUS="1"))
    assert done.returncode != 0 and "other weights" in done.stderr
