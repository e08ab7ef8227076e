"""`export RUN dataset`: row formats and files, and training text that other trainers encode to the same tokens."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import command_line
import selfalign
from selfalign import constitution as constitutions
from selfalign.constitution import Constitution
from selfalign.data import formats
from selfalign.data.formats import OUTPUT_FORMATS, Row
from selfalign.data.records import Example, Prompt, Response, read_jsonl, write_jsonl
from selfalign.errors import UserError
from selfalign.export import dataset
from selfalign.export.training_text import TrainingText, rendered
from selfalign.model import sources
from selfalign.model.base_model import Model
from selfalign.model.dialogue import ROLES, Template, Tokenizer, encode_example
from selfalign.pipeline.order import run_stage
from selfalign.run import recipe as recipes
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.system.console import Screen

Runs = Callable[..., Context]
SMALL = ("prompts.self_instruct.count=12", "prompts.red_team.count=12", "prompts.red_team.topic_rounds=1",
         "evaluate.heldout_prompts=4")  # fmt: skip
WITH_ROLES = [form for form in OUTPUT_FORMATS if form not in ("prompt-completion-text", "preference")]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def read(path: Path) -> list[Row]:
    return [formats.parse_row(value, f"{path}:{n}") for n, value in enumerate(rows(path), 1)]


@pytest.fixture
def done(fake_run: Runs) -> Context:
    context = fake_run(*SMALL)
    for stage in ("prompts", "align", "engrave", "verbose_cloning"):
        run_stage(context, stage)  # type: ignore[arg-type]
    return context


@pytest.mark.parametrize("form", WITH_ROLES)
def test_pairs_have_their_system_prompts(done: Context, form: str):
    for stage in ("engrave", "verbose_cloning"):
        examples = read_jsonl(done.run.jsonl(f"{stage}_examples"), Example)
        exported = dataset.write(done, form, stage)
        path = done.run.path / f"export/dataset-{stage}-{form}/train.jsonl"
        assert exported.files == {path: len(examples)} and exported.notes == []
        prompts = done.run.constitution.system_prompt
        assert [(r.message, r.answer, r.system) for r in read(path)] == [
            (e.user, e.assistant, prompts(e.prompt)) for e in examples
        ]
        beside = {"README.md", "constitution.yaml", "export.json"}
        assert {p.name for p in path.parent.iterdir()} == {"train.jsonl", *beside}
    assert {"standard", "concise"} == {e.prompt for e in examples}


def test_held_out_rows_are_the_test_split(done: Context, tmp_path: Path):
    responses = read_jsonl(done.run.jsonl("responses"), Response)
    held = [r for r in responses if r.split == "heldout"]
    assert held
    exported = dataset.write(done, "alpaca", "responses", tmp_path / "mine")
    assert exported.files == {
        tmp_path / "mine/train.jsonl": len(responses) - len(held),
        tmp_path / "mine/test.jsonl": len(held),
    }
    assert [(r.instruction, r.input, r.answer) for r in read(tmp_path / "mine/test.jsonl")] == [
        (r.instruction, r.input, r.response) for r in held
    ]
    exported = dataset.write(done, "alpaca", "responses", tmp_path / "one.jsonl")
    assert exported.files == {tmp_path / "one.jsonl": len(responses) - len(held)}
    assert exported.notes == [f"rows that are held out from training and not in the file: {len(held)}"]


@pytest.mark.parametrize(("form", "kind"), [*zip(WITH_ROLES, ["jsonl", "parquet"] * 2, strict=True)])
def test_datasets_library_loads_every_configuration(
    done: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, kind: str
):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    datasets.disable_progress_bars()
    dataset.write(done, form, out=tmp_path / "out", file_type=kind)
    configs = json.loads((tmp_path / "out/export.json").read_text("utf-8"))["configs"]
    assert list(configs) == ["engrave", "verbose_cloning", "responses", "prompts"]
    text = datasets.Value("string")
    names = {"sharegpt": ["conversations"], "messages": ["messages"], "prompt-completion": ["prompt", "completion"]}
    keys = ("from", "value") if form == "sharegpt" else ("role", "content")
    for name, counts in configs.items():
        read = datasets.load_dataset(str(tmp_path / "out"), name, cache_dir=str(tmp_path / "cache"))
        assert {split: rows.num_rows for split, rows in read.items()} == counts
        columns = names.get(form, ["instruction", "input", "output", "system"])
        columns = [c for c in columns if name != "prompts" or c not in ("output", "completion")]
        kind_of = text if form == "alpaca" else datasets.List(dict.fromkeys(keys, text))
        assert read["train"].features == datasets.Features(dict.fromkeys(columns, kind_of))
        folder = tmp_path / "out" / name
        if kind == "jsonl":
            assert list(read["train"]) == rows(folder / "train.jsonl")
    assert datasets.get_dataset_default_config_name(str(tmp_path / "out")) == "engrave"


def test_jsonl_and_parquet_hold_the_same_rows(done: Context, tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    for form in WITH_ROLES:
        for stage in ("verbose_cloning", "prompts"):
            dataset.write(done, form, stage, tmp_path / f"{form}-{stage}.jsonl")
            dataset.write(done, form, stage, tmp_path / f"{form}-{stage}.parquet")
            table = parquet.read_table(tmp_path / f"{form}-{stage}.parquet")
            assert table.to_pylist() == rows(tmp_path / f"{form}-{stage}.jsonl")


def test_card_describes_the_data_and_is_valid_on_the_hub(done: Context, tmp_path: Path):
    from huggingface_hub import DatasetCard

    (done.run.path / "NOTICE").write_text("The <b>terms</b>.\n")
    dataset.write(done, "messages", out=tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text("utf-8")
    data = DatasetCard(text).data.to_dict()
    assert [c["config_name"] for c in data["configs"]] == ["engrave", "verbose_cloning", "responses", "prompts"]
    assert data["configs"][0]["default"] and data["size_categories"] == ["n<1K"]
    assert data["language"] == ["en"] and data["task_categories"] == ["text-generation"]
    assert {"self-align", "synthetic"} <= set(data["tags"])
    for config in data["configs"]:
        assert all((tmp_path / "out" / file["path"]).is_file() for file in config["data_files"])
    for principle in done.run.constitution.principles:
        assert f"{principle.id}. **" in text
    for stage in done.journal.stages():
        counts = done.journal.counts(stage)
        assert f"| {counts.rows_in} | {counts.kept} |" in text
        assert all(f"{reason} {n}" in text for reason, n in counts.dropped.items())
    assert "Not evaluated." in text and "    The <b>terms</b>." in text
    assert "conversational language modeling" in text
    assert str(done.run.path.parent) not in text + (tmp_path / "out/export.json").read_text("utf-8")
    loaded = constitutions.load(str(tmp_path / "out/constitution.yaml"))
    assert loaded.digest() == done.run.constitution.digest()


@pytest.mark.parametrize("form", WITH_ROLES)
def test_prompts_have_no_responses(done: Context, tmp_path: Path, form: str):
    prompts = read_jsonl(done.run.jsonl("prompts"), Prompt)
    dataset.write(done, form, "prompts", tmp_path / "out")
    rows = read(tmp_path / "out/train.jsonl") + read(tmp_path / "out/test.jsonl")
    assert sorted((r.message, r.answer) for r in rows) == sorted((p.message, None) for p in prompts)


def test_exported_pairs_can_start_another_run(done: Context, tmp_path: Path):
    dataset.write(done, "sharegpt", "responses", tmp_path / "pairs.jsonl")
    settings = {"engine.kind": "fake", "align.form": "given", "stages": ["prompts", "align"]}
    with selfalign.create("quick", tmp_path / "other", settings=settings, prompts=tmp_path / "pairs.jsonl") as run:
        run.run_all()
        user_rows = {(r.message, r.response) for r in run.responses()}
    assert user_rows and user_rows <= {(r.message, r.answer) for r in read(tmp_path / "pairs.jsonl")}


def test_existing_files_are_kept_without_force(done: Context, tmp_path: Path):
    out = tmp_path / "out"
    dataset.write(done, "messages", "responses", out)
    before = (out / "test.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"out exists: --force replaces it, or choose another --out"):
        dataset.write(done, "alpaca", "engrave", out)
    assert (out / "test.jsonl").read_bytes() == before
    dataset.write(done, "alpaca", "engrave", out, force=True)
    # The pairs have no held-out part: what an earlier export left would be taken for theirs.
    assert sorted(p.name for p in out.iterdir() if p.suffix == ".jsonl") == ["train.jsonl"]
    dataset.write(done, "messages", "engrave", tmp_path / "one.jsonl")
    with pytest.raises(UserError, match=r"one\.jsonl exists: --force overwrites it"):
        dataset.write(done, "alpaca", "engrave", tmp_path / "one.jsonl")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"is not an export .* never replaced"):
        dataset.write(done, "messages", "engrave", tmp_path / "mine", force=True)


def test_notice_is_written_next_to_the_data(done: Context, tmp_path: Path):
    (done.run.path / "NOTICE").write_text("The terms.\n")
    dataset.write(done, "messages", out=tmp_path / "a")
    assert (tmp_path / "a/NOTICE").read_text() == "The terms.\n"
    (tmp_path / "b").mkdir()
    (tmp_path / "b/NOTICE").write_text("My own.\n")
    dataset.write(done, "messages", out=tmp_path / "b/mine.jsonl")
    assert (tmp_path / "b/NOTICE").read_text() == "My own.\n"
    assert (tmp_path / "b/mine.NOTICE").read_text() == "The terms.\n"


def test_invalid_options_are_one_line_errors(done: Context, fake_run: Runs, tmp_path: Path):
    for match, arguments in {
        "unknown --format 'chatml'; use one of prompt-completion, ": ("chatml",),
        "unknown --stage 'align'; use one of engrave, ": ("messages", "align"),
        r"is not a folder, and not a file that ends in \.jsonl or \.parquet": (
            "messages",
            "engrave",
            tmp_path / "a.csv",
        ),
        "is in the run's folder": ("messages", "engrave", done.run.jsonl("engrave_examples"), True),
        "--type 'csv': a data set can have the type jsonl or parquet": ("messages", "", None, False, "csv"),
        r"does not end in \.parquet, as --type requires": ("messages", "", tmp_path / "a.jsonl", False, "parquet"),
        "the fake engine runs no model: prompt-completion-text needs": ("prompt-completion-text",),
    }.items():
        with pytest.raises(UserError, match=match):
            dataset.write(done, *arguments)  # type: ignore[arg-type]
    new = fake_run(name="new")
    for stage, file in (("", "1_prompts/prompts"), ("engrave", "3_engrave/examples")):
        with pytest.raises(UserError, match=rf"{file}\.jsonl is missing: its stage has not run"):
            dataset.write(new, "messages", stage, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    done.run.jsonl("prompts").write_text("")
    with pytest.raises(UserError, match=r"prompts\.jsonl has no row that can be written"):
        dataset.write(done, "messages", "prompts", tmp_path / "none")


def test_command_and_api_write_the_same_rows(tmp_path: Path):
    settings = {"engine.kind": "fake", **dict(s.split("=") for s in SMALL), "stages": ["prompts", "align", "engrave"]}
    settings = {k: int(v) if str(v).isdigit() else v for k, v in settings.items()}
    with selfalign.create("quick", tmp_path / "run", settings=settings) as run:
        run.run_all()
        files = run.export_dataset("alpaca", "engrave", out=tmp_path / "api").files
    command = ["export", "run", "dataset", "--format", "alpaca", "--stage", "engrave"]
    first, again, forced = (
        command_line.selfalign(*command, *more, cwd=tmp_path)
        for more in ([], [], ["--force", "--out", "run/export/dataset-engrave-alpaca"])
    )
    path = "run/export/dataset-engrave-alpaca/train.jsonl"
    assert first.stdout == f"{path}: {next(iter(files.values()))} rows\n" == forced.stdout
    assert (again.returncode, again.stdout) == (1, "") and "--force" in again.stderr
    assert (tmp_path / path).read_bytes() == (tmp_path / "api/train.jsonl").read_bytes()


# -- the training text and its tokens --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Model:
    return sources.resolve("embedded")


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of another family: byte-level, with the tokens of ChatML and Llama 3; it adds no start token."""
    from tokenizers import Regex, decoders, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE

    made = Backend(BPE())
    lines = pre_tokenizers.Split(Regex(r"\n+| ?[^\s]+|[^\S\n]+"), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["user assistant User: Alma: the the and and of of\n\n"] * 50, trainer)
    file = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    made.save(str(file))
    return file


@dataclass
class Family:
    """A tokenizer and a template."""

    tokenizer: Tokenizer
    template: Template
    made: TrainingText

    @classmethod
    def of(cls, file: Path, bos: str, template: Template) -> Family:
        tokenizer = Tokenizer(str(file), bos)
        return cls(tokenizer, template, TrainingText(file, tokenizer, template, "Alma"))

    def under(self, template: Template) -> Family:
        """Return the same tokenizer with another template, since reading the file takes a second."""
        made = copy.copy(self.made)
        made._template, made._skipped = template, []
        return Family(self.tokenizer, template, made)


@pytest.fixture(scope="module")
def families(model: Model, byte_level: Path) -> dict[str, Family]:
    by_name = {t.name: t for t in ROLES}
    plain = Family.of(model.folder() / "tokenizer.json", "<bos>", model.template)
    return {
        "plain": plain,
        "gemma": plain.under(by_name["gemma"]),
        "chatml": Family.of(byte_level, "", by_name["chatml"]),
        "llama3": Family.of(byte_level, "<s>", by_name["llama3"]),
    }


FAMILIES = ["plain", "gemma", "chatml", "llama3"]
SPELLED = ["<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<s>", "</s>"]
words = st.lists(
    st.sampled_from(
        ["Hello", " world", "\n", "\n\n", "  ", "\t", "User:", "naïve", "日本語", "🙂", "12", "- a", ")", "…"]
    ),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(user=words | st.text(max_size=20), answer=words | st.text(max_size=20))
@example(user="Hi", answer=" Hello! ")
@example(user="", answer="")
def test_trainer_encodes_the_text_to_our_tokens(families: dict[str, Family], name: str, user: str, answer: str):
    family = families[name]
    row = Row("selfalign pairs", user, "", answer, "Be kind.")
    text = rendered(row, family.template, "Alma", family.made._bos)
    together, alone = (
        family.made._trainer.encode(t).ids for t in (text["prompt"] + text["completion"], text["prompt"])
    )
    ours = encode_example(family.tokenizer, family.template, "Be kind.", user, answer, "Alma")
    same = together == ours.ids and [n >= len(alone) for n in range(len(together))] == ours.mask
    assert family.made.render("id", row) == (text if same else None)
    # Whatever is no token of the template, no white space where it would join the template's, and no cut character:
    if not any(token in user + answer for token in SPELLED) and answer[:1].isalnum() and user[:1].isalnum():
        assert same


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_with_control_tokens_are_skipped(families: dict[str, Family], name: str):
    family = families[name].under(families[name].template)
    tokenizer, made = family.tokenizer, family.made
    ordinary = ["Hi", "Name a river.\n\nAny river.", "1, 2, 3", "Écris, s'il te plaît : « non » — 日本語 🙂", "x" * 500]
    assert all(made.render(text, Row("selfalign pairs", text, "", text, "Be kind.")) for text in ordinary)
    known = [token for token in SPELLED if set(tokenizer.ids(token, special=True)) <= tokenizer.controls()]
    assert len(known) >= 4
    for token in known:
        assert made.render(f"u{token}", Row("selfalign pairs", f"a {token} b", "", "Hello", "Be kind.")) is None
        assert made.render(f"a{token}", Row("selfalign pairs", "Hello", "", f"a {token} b", "Be kind.")) is None
        assert made.render(f"p{token}", Row("selfalign", f"a {token} b", "", None, "Be kind.")) is None
    alone, answered = (made.render("p", Row("selfalign", "Hello", "", answer, "Be kind.")) for answer in (None, "x"))
    assert alone and answered and alone == {"prompt": answered["prompt"]}
    notes = made.notes()
    assert notes[0].startswith("rows skipped because a trainer would encode them differently")
    assert f"across turns): {3 * len(known)}, for example u{known[0]}, a{known[0]}, p{known[0]}" in notes[0]
    assert f"eos_token={family.template.end!r}" in notes[1] and "max_length" not in notes[1]


def test_start_token_is_written_only_if_the_tokenizer_lacks_it(families: dict[str, Family]):
    starts = {name: family.made._bos for name, family in families.items()}
    assert starts == {"plain": "", "gemma": "", "chatml": "", "llama3": "<s>"}


LONG = "A river is a stream of water that flows to the sea. " * 200


@pytest.fixture
def real(tmp_path: Path, default_constitution: Constitution, model: Model) -> Iterator[Context]:
    """Return a run of the embedded model that contains pairs. No engine is started."""
    recipe = recipes.load("quick", ["engine.kind=llama_cpp"])
    context = Context(RunDir.create(tmp_path / "run", recipe, default_constitution), Screen(-1), _model=model)
    pairs = [
        Example("0", "standard", "Hi\n\nthere", "Hello! How can I help?", "user"),
        Example("1", "concise", "Name a river.", "The Rhine.\n\n- It is long.", "user"),
        Example("2", "standard", "Say <eos>.", "Okay.", "user"),
        Example("3", "standard", "Tell me more.", LONG, "user"),
    ]
    write_jsonl(context.run.jsonl("engrave_examples"), pairs)
    yield context
    context.journal.close()


@pytest.mark.slow
def test_real_run_has_terms_and_trainer_notes(real: Context, tmp_path: Path):
    exported = dataset.write(real, "prompt-completion-text", "engrave", tmp_path / "out")
    assert exported.files == {tmp_path / "out/train.jsonl": 3}
    assert exported.notes[0].startswith("rows skipped") and exported.notes[0].endswith(": 1, for example 2")
    assert exported.notes[1].startswith("for TRL: eos_token='<eos>', max_length at least 2,")
    assert "Gemma Terms of Use" in (tmp_path / "out/NOTICE").read_text()
    constitution = real.run.constitution
    first = rows(tmp_path / "out/train.jsonl")[0]
    assert first == {
        "prompt": f"{constitution.system_prompt('standard')}\n\nUser: Hi\n\nthere\n\n{constitution.assistant.name}:",
        "completion": " Hello! How can I help?<eos>",
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")  # TRL sets it
def test_trl_trains_on_the_same_tokens(real: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("trl")
    import datasets
    import torch
    from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig
    from trl import SFTConfig, SFTTrainer

    monkeypatch.chdir(tmp_path)
    dataset.write(real, "prompt-completion-text", "engrave", tmp_path / "out")
    data = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    tokenizer = AutoTokenizer.from_pretrained(real.model.folder())
    torch.manual_seed(0)
    tiny = Gemma3ForCausalLM(Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8,
    ))  # fmt: skip
    config = SFTConfig(
        output_dir="trl", max_length=4096, eos_token=real.model.template.end, report_to="none", use_cpu=True,
        bf16=False, dataset_num_proc=None,
    )  # fmt: skip
    trainer = SFTTrainer(model=tiny, args=config, train_dataset=data, processing_class=tokenizer)
    constitution, tokens = real.run.constitution, real.model.tokenizer()
    kept = [e for e in read_jsonl(real.run.jsonl("engrave_examples"), Example) if e.id != "2"]
    for made, pair in zip(trainer.train_dataset, kept, strict=True):
        system = constitution.system_prompt(pair.prompt)
        ours = encode_example(
            tokens, real.model.template, system, pair.user, pair.assistant, constitution.assistant.name
        )
        assert list(made["input_ids"]) == ours.ids
        labels = [token if counts else -100 for token, counts in zip(ours.ids, ours.mask, strict=True)]
        assert list(made["labels"]) == labels
