"""Import of an adapter that was trained elsewhere: accepted if it fits, refused otherwise."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models
from command_line import selfalign
from selfalign import api
from selfalign.constitution import Constitution
from selfalign.data.records import Example, Response, write_jsonl
from selfalign.errors import Resumable, UserError
from selfalign.evaluation import models
from selfalign.export import launch
from selfalign.model import plain_lora
from selfalign.pipeline import adapter_training, order
from selfalign.run import recipe as recipes
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.system.console import Screen
from selfalign.training import adapter_import, forward, loop, lora

pytestmark = pytest.mark.integration

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def context(tiny_run: Callable[..., Context]) -> Context:
    """A run that stopped to be trained elsewhere."""
    context = tiny_run("engrave.elsewhere=true")
    with pytest.raises(Resumable, match=r"selfalign engrave .* --adapter DIR/out/adapter") as stop:
        order.run_all(context)
    assert stop.value.exit_code == 75
    return context


@pytest.fixture
def adapter_folder(context: Context, tiny_base: Path, tmp_path: Path) -> Path:
    """An adapter as train.py writes it."""
    config = context.recipe.training("engrave")
    adapted = lora.with_new_adapter(lora.load_base(tiny_base), config, 3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    folder = tmp_path / "adapter"
    lora.save_adapter(adapted, folder, context.model, "card")
    note(folder, "base.json", identity=context.model.identity)
    rows = adapter_import.rows_hash(adapter_training.rows(context, "engrave"))
    note(folder, "trained.json", stage="engrave", rows_sha256=rows, processes=2, steps=2, strategy="ddp")
    log = [{"step": n + 1, "loss": 5.0 - n, "learning_rate": 0.01, "epoch": 0.5} for n in range(2)]
    (folder / "losses.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    return folder


def note(folder: Path, name: str, **values: Any) -> None:
    """Set values in a JSON file."""
    path = folder / name
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**old, **values}))


def take(context: Context, folder: Path) -> None:
    order.run_stage(context, "engrave", again=True, adapter=folder)


def test_run_stops_with_examples_and_continues_with_the_adapter(
    context: Context, adapter_folder: Path, tiny_base: Path
):
    run = context.run
    assert run.jsonl("engrave_examples").is_file() and not run.adapter("engrave").exists() and not run.manifest.exists()
    take(context, adapter_folder)
    published = run.adapter("engrave")
    assert {f.name for f in published.iterdir()} == {WEIGHTS, "adapter_config.json", "base.json", "README.md"}
    config = json.loads((published / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 16)
    assert config["base_model_name_or_path"] == context.model.source
    assert run.adapter_gguf("engrave").read_bytes()[:4] == b"GGUF"
    mine, theirs = load_file(published / WEIGHTS), load_file(adapter_folder / WEIGHTS)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    rows = adapter_training.rows(context, "engrave")[:2]
    losses = [
        forward.token_losses(lora.add_adapter(lora.load_base(tiny_base), folder), rows)
        for folder in (published, adapter_folder)
    ]
    assert losses[0] == losses[1]
    counts = run.journal.counts("engrave")
    assert counts.rows_in == counts.kept == 13 + len(run.constitution.identity)
    notes = counts.notes
    assert (notes["trained"], notes["processes"], notes["rank"]) == ("elsewhere", 2, 4)
    assert (notes["loss_first"], notes["loss_last"], len(notes["curve"])) == (5.0, 4.0, 2)
    order.run_all(context)
    assert run.manifest.is_file()


def test_bfloat16_adapter_is_published_in_float32(context: Context, adapter_folder: Path):
    tensors = {name: value.bfloat16() for name, value in load_file(adapter_folder / WEIGHTS).items()}
    save_file(tensors, adapter_folder / WEIGHTS)
    take(context, adapter_folder)
    mine = load_file(context.run.adapter("engrave") / WEIGHTS)
    assert all(mine[name].dtype == torch.float32 and torch.equal(mine[name], tensors[name].float()) for name in mine)


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Return a function that changes the tensors of a folder."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return spoil


def first(tensors: dict[str, torch.Tensor]) -> str:
    return min(tensors)


def config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: note(folder, "adapter_config.json", **values)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "has no adapter_model.safetensors"),
    "no configuration": (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_model.safetensors and"),
    "pickle": (lambda f: (f / WEIGHTS).write_bytes(b"\x80\x04\x95junk"), "not a complete safetensors file"),
    "half": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), "not a complete safetensors file"),
    "other base": (lambda f: note(f, "base.json", identity="0" * 16), "trained on another base"),
    "no object": (lambda f: (f / "base.json").write_text("[]"), "not a JSON object"),
    "deep": (lambda f: (f / "base.json").write_text("[" * 100_000), "not a JSON object"),
    "other stage": (
        lambda f: note(f, "trained.json", stage="verbose_cloning"),
        "for the stage 'verbose_cloning', not 'engrave'",
    ),
    "other rows": (lambda f: note(f, "trained.json", rows_sha256="0"), "trained on other rows"),
    "other kind": (config(peft_type="IA3"), "only LORA"),
    "more layers than tensors": (config(target_modules=".*proj"), "lacks .*proj"),
    "strange target": (config(target_modules=["lm_head"]), "target_modules selects 'base_model.model.lm_head'; only"),
    "unknown target": (config(target_modules=["query"]), "PEFT cannot apply it to this base .*not found"),
    "broken pattern": (config(rank_pattern={"(": 3}), "PEFT cannot apply it to this base"),
    "no target": (config(target_modules=[]), r"target_modules is \[\], which is not valid"),
    "no rank": (config(r=None), "r is None, which is not valid"),
    "text as a number": (config(rank_pattern={"q_proj": "3"}), "rank_pattern is .*, which is not valid"),
    "no object of settings": (lambda f: (f / "adapter_config.json").write_text("[1]"), "not a JSON object"),
    "no kind": (lambda f: (f / "adapter_config.json").write_text("{}"), "peft_type is missing"),
    "rank": (config(r=8), r"has the shape \(4, 64\), this base needs \(8, 64\)"),
    "targets": (config(target_modules=["q_proj"]), "that a LoRA adapter of this base with these targets does not have"),
    "more targets": (config(target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]), "lacks .*up_proj"),
    "missing": (weights(lambda t: t.pop(first(t))), "lacks base_model"),
    "added": (weights(lambda t: t.update({"x": torch.zeros(1)})), "has 'x' and 0 more"),
    "not finite": (weights(lambda t: t[first(t)].fill_(float("nan"))), "infinite or NaN"),
    "whole numbers": (weights(lambda t: t.update({first(t): t[first(t)].int()})), "infinite or NaN"),
    "untrained": (weights(lambda t: [v.zero_() for k, v in t.items() if "lora_B" in k]), "was not trained"),
    "losses": (lambda f: (f / "losses.jsonl").write_text('{"step": 1, "loss": NaN, "learning_rate": 1}\n'), "must be"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_unsuitable_adapter_is_refused_and_not_published(context: Context, adapter_folder: Path, fault: str):
    spoil, message = FAULTS[fault]
    spoil(adapter_folder)
    with pytest.raises(UserError, match=message) as error:
        take(context, adapter_folder)
    assert "\n" not in str(error.value)
    assert not context.run.adapter("engrave").exists() and not context.run.adapter_gguf("engrave").exists()


# -- adapters with other scales, ranks and layers than one trained here ------------------------------------------------

ADAPTERS: dict[str, dict[str, Any]] = {
    "rank-stabilised": {"use_rslora": True, "r": 5},
    "ranks and scales by layer": {
        "rank_pattern": {"q_proj": 3, r"layers\.1\.self_attn\.v_proj": 7},
        "alpha_pattern": {"v_proj": 20},
        "use_rslora": True,
    },
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "excluded layers": {"exclude_modules": r".*layers\.0.*"},
    "layers by pattern": {"target_modules": r".*\.(1\.self_attn\.q_proj|mlp\.up_proj)"},
    "a fraction as alpha": {"lora_alpha": 0.3},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}


def outside_adapter(base: Path, target: Path, **settings: Any) -> Path:
    """Save an adapter that PEFT made, with random weights."""
    import peft

    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings(action="ignore"):
        adapted = peft.get_peft_model(lora.load_base(base), peft.LoraConfig(**{**options, **settings}))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted.save_pretrained(str(target), save_embedding_layers=False)
    return target


def logprobs(base: Path, adapter: Path | None, positions: int = 50) -> torch.Tensor:
    model = lora.load_base(base)
    model = lora.add_adapter(model, adapter) if adapter else model
    with torch.no_grad():
        return torch.log_softmax(model(torch.arange(3, 3 + positions)[None]).logits[0], -1)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_published_adapter_computes_what_peft_computes(context: Context, tiny_base: Path, tmp_path: Path, kind: str):
    outside = outside_adapter(tiny_base, tmp_path / "outside", **ADAPTERS[kind])
    take(context, outside)
    published = context.run.adapter("engrave")
    expected = logprobs(tiny_base, outside)
    assert torch.allclose(logprobs(tiny_base, published), expected, atol=1e-4)
    assert not torch.allclose(logprobs(tiny_base, None), expected, atol=0.1)
    assert plain_lora.uniform(published)[1] >= 4
    assert context.run.adapter_gguf("engrave").read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "pissa"},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [5]},
        {"alora_invocation_tokens": [5, 6]},
    ],
)
def test_adapters_that_are_no_plain_lora_are_refused_everywhere(
    context: Context, tiny_base: Path, tmp_path: Path, settings: dict[str, Any]
):
    outside, field = outside_adapter(tiny_base, tmp_path / "outside", **settings), next(iter(settings))
    with pytest.raises(UserError, match=f"{field} is "):
        take(context, outside)
    assert not context.run.adapter("engrave").exists()
    for group in (
        models.scorers_of_run(context, ["base"], [f"mine={outside}"], "standard")[0],
        models.scorers_of([f"{tiny_base}+{outside}"], "standard", False)[0],
        models.engines_of([f"{tiny_base}+{outside}"], "standard", False)[0],
    ):
        with pytest.raises(UserError, match=f"{field} is "):
            group.backend()


@pytest.fixture
def engine_context(tiny_run: Callable[..., Context], tmp_path: Path) -> Context:
    """A run on a base with a GGUF."""
    context = tiny_run(f"model={tiny_models.write(tmp_path / 'llama', 'llama')}", "engrave.elsewhere=true")
    with pytest.raises(Resumable):
        order.run_all(context)
    return context


def test_engine_agrees_with_torch_on_an_adapter_with_patterns(engine_context: Context, tmp_path: Path):
    base = engine_context.model.folder()
    kind = ADAPTERS["ranks and scales by layer"]
    take(engine_context, outside_adapter(base, tmp_path / "outside", **kind))
    parity = engine_context.run.journal.counts("engrave").notes["parity"]
    assert parity["agreement_adapter"] > 0.97 and parity["changed"] > 0.3


def test_adapter_that_differs_from_peft_is_not_published(
    engine_context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    outside = outside_adapter(engine_context.model.folder(), tmp_path / "outside", r=5, use_rslora=True)
    monkeypatch.setattr(adapter_import, "_convert", lambda *_: 0)
    with pytest.raises(UserError, match=r"computes something else in PEFT than as a plain LoRA: .* at 50 positions"):
        take(engine_context, outside)
    assert not engine_context.run.adapter("engrave").exists()


def test_missing_notes_and_differences_are_reported(
    context: Context, adapter_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    messages: list[str] = []
    monkeypatch.setattr(context.screen, "say", lambda text, style="": messages.append(text))
    for name in ("base.json", "trained.json", "losses.jsonl"):
        (adapter_folder / name).unlink()
    note(adapter_folder, "adapter_config.json", lora_alpha=32.0, lora_dropout=0.1)
    take(context, adapter_folder)
    text = "\n".join(messages)
    for part in ("no base.json", "no trained.json", "alpha: the adapter has 32, the recipe says 16", "dropout: "):
        assert part in text
    notes = context.run.journal.counts("engrave").notes
    assert notes["trained"] == "elsewhere" and notes["alpha"] == 32 and "curve" not in notes


def test_adapter_of_edited_rows_is_refused(context: Context, adapter_folder: Path):
    path = context.run.jsonl("responses")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match="trained on other rows"):
        take(context, adapter_folder)


def test_training_elsewhere_changes_no_inputs(tiny_run: Callable[..., Context], context: Context):
    there, here = context, tiny_run("engrave.elsewhere=false", name="here")
    assert order.inputs_hash(there, "engrave") == order.inputs_hash(here, "engrave")
    rank = tiny_run("engrave.rank=2", name="rank")
    assert order.inputs_hash(rank, "engrave") != order.inputs_hash(here, "engrave")


def test_stage_4_stops_and_continues_in_the_same_way(
    tiny_run: Callable[..., Context], adapter_folder: Path, tmp_path: Path
):
    context = tiny_run(
        "engrave.elsewhere=true", "verbose_cloning.max_length=2048", "verbose_cloning.epochs=3", name="two"
    )
    pairs = [Example(f"{i:016x}", "concise" if i % 2 else "standard", f"Why {i}?", "So.", "") for i in range(5)]

    def stage(adapter: Path | None = None) -> list[Path]:
        return adapter_training.run(context, "verbose_cloning", pairs, adapter=adapter)

    with pytest.raises(Resumable, match=r"--stage verbose_cloning .*`selfalign clone "):
        stage()
    launch.write(context, tmp_path / "folder", launch.LaunchOptions("verbose_cloning", 1, 1, "ddp", "none"))
    training = json.loads((tmp_path / "folder/training.json").read_text())
    assert (training["stage"], training["epochs"]) == ("verbose_cloning", 3)
    with pytest.raises(UserError, match="for the stage 'engrave', not 'verbose_cloning'"):
        stage(adapter_folder)
    rows = hashlib.sha256((tmp_path / "folder/rows.jsonl").read_bytes()).hexdigest()
    note(adapter_folder, "trained.json", stage="verbose_cloning", rows_sha256=rows)
    assert context.run.adapter_gguf("verbose_cloning") in stage(adapter_folder)
    assert context.run.adapter_gguf("verbose_cloning").is_file()
    assert context.journal.counts("verbose_cloning").kept == 5


def test_stage_4_overrides_training_settings(tiny_run: Callable[..., Context]):
    recipe = tiny_run("verbose_cloning.max_length=99", "verbose_cloning.epochs=5").recipe
    verbose_cloning, engrave = recipe.training("verbose_cloning"), recipe.training("engrave")
    assert (verbose_cloning.max_length, verbose_cloning.epochs, verbose_cloning.learning_rate) == (
        99,
        5,
        engrave.learning_rate,
    )
    assert engrave == recipe.engrave


def test_fake_engine_accepts_no_adapter(fake_run: Callable[..., Context], adapter_folder: Path):
    context = fake_run(
        "engrave.elsewhere=true",
        "verbose_cloning.start=base",
        "prompts.self_instruct.count=4",
        "prompts.red_team.count=4",
        name="fake",
    )
    for stage in ("prompts", "align", "engrave"):
        order.run_stage(context, stage)  # trains nothing, so there is nothing to wait for
    with pytest.raises(UserError, match="takes no adapter"):
        take(context, adapter_folder)


def test_only_training_stages_accept_an_adapter(context: Context, adapter_folder: Path):
    path = context.run.path
    with api.open_run(path) as run, pytest.raises(UserError, match="takes no adapter; engrave and verbose_cloning do"):
        run.run_stage("align", adapter_folder)
    done = selfalign("engrave", str(path), "--adapter", str(adapter_folder), cwd=path.parent)
    assert done.returncode == 0, done.stderr
    assert (path / "manifest.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_embedded_model_trained_elsewhere_agrees_with_the_engine(tmp_path: Path, default_constitution: Constitution):
    sets = ["stages=[engrave]", "engrave.elsewhere=true", "engrave.learning_rate=1.5e-3", "engrave.batch_size=4"]
    recipe = recipes.load("quick", [*sets, "engrave.dropout=0", "engrave.epochs=1"])
    context = Context(RunDir.create(tmp_path / "run", recipe, default_constitution), Screen(-1))
    answers = [Response(f"{i:016x}", f"What is {i}?", "", f"It is {i}, I think.") for i in range(8)]
    write_jsonl(context.run.jsonl("responses"), answers)
    with pytest.raises(Resumable):
        order.run_all(context)
    launch.write(context, tmp_path / "folder", launch.LaunchOptions("engrave", 1, 1, "ddp", "none"))
    base = context.model.folder()
    (tmp_path / "folder/base").symlink_to(base)
    environment = {**os.environ, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, str(tmp_path / "folder/train.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    config = context.recipe.training("engrave")
    adapted = lora.with_new_adapter(lora.load_base(base), config, 0)
    ours = loop.train(adapted, adapter_training.rows(context, "engrave"), config, 0).losses
    del adapted
    take(context, tmp_path / "folder/out/adapter")
    notes = context.journal.counts("engrave").notes
    curve = [loss for _, loss, _ in notes["curve"]]
    print(ours[0], ours[-1], max(abs(a - b) for a, b in zip(curve, ours, strict=True)), notes["parity"])
    assert curve == pytest.approx(ours, abs=1e-3) and ours[-1] < ours[0]
    assert notes["parity"]["positions"] == 200 and notes["parity"]["holds"]
    order.run_all(context)
    assert context.run.manifest.is_file()
    context.journal.close()


def test_refused_adapter_leaves_the_published_one(context: Context, adapter_folder: Path, tmp_path: Path):
    take(context, adapter_folder)
    before = context.journal.published()["engrave"]
    with pytest.raises(UserError, match="has no adapter_model"):
        take(context, tmp_path / "no such folder")
    assert context.journal.published()["engrave"] == before
