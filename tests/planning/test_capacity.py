"""The planner for a cluster: its option, model shapes, and properties of all plans."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import selfalign
from selfalign.cli.main import app
from selfalign.constitution import Constitution
from selfalign.errors import UserError
from selfalign.planning import capacity, clusters, hardware
from selfalign.planning.clusters import Cluster, parse, shape_of
from selfalign.run import recipe as recipes

H100 = hardware.GPUS["H100"]


def planned(texts: Constitution, text: str, recipe: str = "paper", own: int | None = None) -> capacity.Capacity:
    loaded, machines = recipes.load(recipe, ["model=embedded"]), parse(text)
    return capacity.plan(loaded, texts, machines, shape_of(machines.model, loaded.model), own)


@pytest.mark.parametrize(
    ("text", "nodes", "each", "gpu"),
    [
        ("gpus=8xH100,model=70b", 1, 8, "H100"), ("gpus=2x8xA100-80", 2, 8, "A100-80"),
        ("gpus=8xh100, nodes=4", 4, 8, "H100"), ("gpus=L4", 1, 1, "L4"), ("gpus=2x4xRTX4090", 2, 4, "RTX4090"),
    ],
)  # fmt: skip
def test_cluster_option_is_parsed(text: str, nodes: int, each: int, gpu: str):
    cluster = parse(text)
    assert (cluster.nodes, cluster.gpus_per_node, cluster.gpu.name, cluster.gpus) == (nodes, each, gpu, nodes * each)
    assert cluster.network == 50e9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not key=value"), ("nodes=2", "names no GPUs"), ("gpu=8xH100", "did you mean 'gpus'"),
        ("gpus=8xH100,gpus=L4", "set twice"), ("gpus=2x8xH100,nodes=2", "both set the nodes"),
        ("gpus=8xA100", "did you mean A100-80 or A100-40"), ("gpus=8xH1000", "did you mean H100"),
        ("gpus=8xB200", "known: H200"), ("gpus=0xH100", "not a number from 1"), ("gpus=1x2x3xH100", "at most two"),
        ("gpus=8xH100,network=x", "not a number"), ("gpus=8\nxH100", "unknown GPU"),
    ],
)  # fmt: skip
def test_invalid_cluster_is_a_one_line_error(text: str, message: str):
    with pytest.raises(UserError, match=message) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_model_is_a_size_or_a_folder(tmp_path: Path):
    assert (shape_of("70B", "").name, shape_of("embedded", "").name) == ("70b", "270m")
    for name, own, message in (
        ("71b", "", "did you mean"),
        ("", "ORG/X", "add model="),
        ("", "", "names no model"),
        ("", "embedded", "recipe's model is the embedded one: add model="),
    ):
        with pytest.raises(UserError, match=message):
            shape_of(name, own)
    with pytest.raises(UserError, match=r"no config\.json"):
        shape_of(str(tmp_path), "")
    config = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "vocab_size": 128_256}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="intermediate_size"):
        shape_of(str(tmp_path), "")
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 14_336, "num_key_value_heads": 8}))
    assert shape_of(str(tmp_path), "").parameters == hardware.SHAPES["8b"].parameters


def test_shapes_have_published_parameter_counts():
    published = {"270m": 0.268, "7b": 6.74, "8b": 8.03, "13b": 13.02, "32b": 32.8, "65b": 65.3, "70b": 70.6}
    assert {n: s.parameters / 1e9 for n, s in hardware.SHAPES.items()} == pytest.approx(published, rel=0.005)
    # LLaMA 65B, rank 16 on q, k, v, o: 80 layers x 4 x 16 x (8192 + 8192).
    assert hardware.SHAPES["65b"].adapter(16, ["q_proj", "k_proj", "v_proj", "o_proj"]) == 83_886_080


def test_more_gpus_and_nodes_are_never_slower(default_constitution: Constitution):
    for model in ("8b", "70b"):
        times = [
            planned(default_constitution, f"gpus={nodes}x8xH100,model={model}").total("seconds") for nodes in (1, 2, 4)
        ]
        assert None not in times and times == sorted(times, reverse=True)
    each = [planned(default_constitution, f"gpus={n}xH100,model=8b").total("seconds") for n in (1, 2, 4, 8)]
    assert each == sorted(each, reverse=True)


def test_slow_network_trains_on_fewer_nodes(default_constitution: Constitution):
    quick, slow = (planned(default_constitution, f"gpus=4x8xH100,model=70b,network={n}") for n in (3200, 1))
    one = planned(default_constitution, "gpus=8xH100,model=70b")
    gpus = [{s.stage: s.gpus_per_replica for s in plan.stages}["engrave"] for plan in (quick, slow, one)]
    assert gpus == [32, 8, 8]


def test_larger_models_and_more_rows_take_longer(default_constitution: Constitution):
    recipe, machines = recipes.load("paper"), parse("gpus=8xH100")
    base = hardware.SHAPES["8b"]
    plans = [
        capacity.plan(recipe, default_constitution, machines, replace(base, layers=layers)) for layers in (32, 64, 128)
    ]
    times = [plan.total("seconds") for plan in plans]
    assert None not in times and times == sorted(times)
    few, many = (planned(default_constitution, "gpus=8xH100,model=8b", own=n).stages[0] for n in (10_000, 20_000))
    assert many.generated_tokens == 2 * few.generated_tokens
    assert many.seconds > few.seconds


def test_stage_that_does_not_fit_names_the_needed_gpus(default_constitution: Constitution):
    plan = planned(default_constitution, "gpus=1xL4,model=70b", "quick")
    assert plan.total("seconds") is None
    assert all(stage.problem and stage.seconds is None for stage in plan.stages)
    assert any("70b (141 GB in 16 bits) needs 8 L4 for a replica; a node has 1" in note for note in plan.notes)
    assert {s.problem for s in planned(default_constitution, "gpus=8xL4,model=70b", "quick").stages if s.requests} == {
        ""
    }


def test_stages_have_a_time_range_and_fit_the_memory(default_constitution: Constitution):
    plan = planned(default_constitution, "gpus=8xH100,model=70b")
    for stage in plan.stages:
        assert stage.seconds_low < stage.seconds < stage.seconds_high
        assert stage.generated_low <= stage.generated_tokens <= stage.at_most
        assert 0 < stage.memory_gb <= 80 * 0.92
        assert stage.gpu_hours == pytest.approx(stage.seconds * 8 / 3600)
        assert stage.kind in ("generate", "fsdp")
    assert json.loads(json.dumps(plan.as_dict()))["gpus"] == 8


def test_plan_command_prints_a_table_and_json():
    table = CliRunner().invoke(app, ["plan", "paper", "--cluster", "gpus=8xH100,model=70b"], env={"COLUMNS": "120"})
    assert table.exit_code == 0 and "2 x 4" in table.stdout and "estimate" in table.stdout
    result = CliRunner().invoke(app, ["plan", "quick", "--cluster", "gpus=1xL4,model=270m", "--json"])
    assert json.loads(result.stdout)["model"] == "270m"
    assert selfalign.plan_cluster("quick", "gpus=1xL4,model=8b").model == "8b"
    with pytest.raises(UserError, match="add model= to --cluster"):
        selfalign.plan_cluster("paper", "gpus=8xH100")


def test_replicas_split_heads_evenly():
    assert capacity.splits(hardware.SHAPES["270m"], 8) == [1, 2, 4]
    assert Cluster(2, 8, H100, 1.0).text() == "2 nodes of 8 H100"
    assert set(clusters.hardware.ALIASES.values()) <= set(hardware.GPUS)


def test_notes_name_the_strategy_of_each_training():
    """Regression: the note named ddp for both trainings, although only one fits with whole weights."""
    plan = selfalign.plan_cluster(
        "paper", "gpus=8xH100,model=32b", settings=["engrave.max_length=512", "verbose_cloning.max_length=4096"]
    )
    assert {s.stage: s.kind for s in plan.stages if s.kind in ("ddp", "fsdp")} == {
        "engrave": "ddp",
        "verbose_cloning": "fsdp",
    }
    assert [n for n in plan.notes if n.startswith("training")] == [
        "training of engrave: `selfalign export RUN launch --strategy ddp` (docs/training.md)",
        "training of verbose_cloning: `selfalign export RUN launch --strategy fsdp` (docs/training.md)",
    ]
