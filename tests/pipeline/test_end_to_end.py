"""All four stages with the embedded model and tiny sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import yaml

SETTINGS = [
    "engine.slots=2",
    "engine.threads=1",  # the other test processes need the other cores
    "prompts.self_instruct.count=3",
    "prompts.self_instruct.requests_per_round=2",
    "prompts.self_instruct.max_new_tokens=120",
    "prompts.red_team.count=4",
    "align.max_new_tokens=60",
    "align.samples=1",
    "filters.responses.truncated=trim",
    "filters.verbose.truncated=trim",
    "filters.verbose.new_words=0",
    "verbose_cloning.prompts=3",
    "verbose_cloning.max_new_tokens=48",
    "engrave.epochs=1",
    "engrave.batch_size=2",
    "engrave.warmup_steps=1",
    "engrave.learning_rate=1.0e-3",
    "engrave.identity_repeats=1",
    "engrave.exemplar_repeats=1",
    "engrave.seed_repeats=0",
    "evaluate.heldout_prompts=2",
    "evaluate.limit=2",
    "evaluate.max_new_tokens=24",
]
TYPES = ("opinions", "general knowledge")
"""Question types of the run's constitution: one with a check, one without."""
COMMAND = """
from selfalign.cli.main import main
from selfalign.evaluation.tasks import heldout
from selfalign.generation import parity

texts = heldout.neutral_texts()[:2]
heldout.neutral_texts = lambda: texts
parity.spans.__defaults__ = (100,)
main()
"""
"""The command line, with fewer neutral texts and compared positions."""


pytestmark = [pytest.mark.integration, pytest.mark.timeout(1000)]


def _constitution(folder: Path) -> Path:
    """Write the default constitution with two question types and six identity pairs, for a shorter run."""
    document = yaml.safe_load((resources.files("selfalign") / "assets/constitutions/default.yaml").read_text("utf-8"))
    document["question_types"] = [t for t in document["question_types"] if t["name"] in TYPES]
    document["identity"] = document["identity"][:6]
    path = folder / "constitution.yaml"
    path.write_text(yaml.safe_dump(document, allow_unicode=True), "utf-8")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    command = [sys.executable, "-c", COMMAND, "run", "--out", "run"]
    settings = [*SETTINGS, f"constitution={_constitution(folder)}"]
    command += [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    return folder / "run"


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_every_file_exists(run: Path) -> None:
    for name in (
        "recipe.yaml", "constitution.yaml", "journal.sqlite", "1_prompts/self_instruct.jsonl",
        "1_prompts/red_team.jsonl", "1_prompts/prompts.jsonl", "2_self_align/responses.jsonl",
        "3_engrave/examples.jsonl", "3_engrave/adapter/adapter_model.safetensors", "3_engrave/adapter/NOTICE",
        "3_engrave/adapter.gguf", "4_verbose_clone/responses.jsonl", "4_verbose_clone/examples.jsonl",
        "4_verbose_clone/adapter/adapter_model.safetensors", "4_verbose_clone/adapter.gguf", "drops.jsonl",
        "5_evaluation/scores.json", "report/index.html", "report/report.json", "manifest.json", "2_self_align/NOTICE",
    ):  # fmt: skip
        assert (run / name).stat().st_size > 0, name
    # With `prompts.red_team.form: by_type`, topics are written together with the questions, and stored with them.
    assert rows(run / "1_prompts/topics.jsonl") == []
    assert any(row["topic"] for row in rows(run / "1_prompts/red_team.jsonl"))


def test_counts_balance_and_training_text_has_no_thoughts(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    for stage in manifest["stages"]:
        assert stage["rows_in"] == stage["kept"] + sum(stage["dropped"].values()) + sum(stage["failed"].values())
    responses = rows(run / "2_self_align/responses.jsonl")
    assert len(rows(run / "1_prompts/prompts.jsonl")) == 7
    assert len(responses) >= 3
    assert all(r["thoughts"] and r["principles"] for r in responses)
    heldout = {r["id"] for r in rows(run / "1_prompts/prompts.jsonl") if r["split"] == "heldout"}
    engraved = rows(run / "3_engrave/examples.jsonl")
    assert {r["source"] for r in engraved} >= {"exemplar", "identity", "red_team"}
    trained = engraved + rows(run / "4_verbose_clone/examples.jsonl")
    assert len(heldout) == 2 and not heldout & {r["id"] for r in trained}
    assert not any("internal thoughts" in str(r["assistant"]) or "Principles:" in str(r["assistant"]) for r in trained)


def test_adapters_change_output_and_torch_matches_engine(run: Path) -> None:
    answers = rows(run / "5_evaluation/answers.jsonl")
    by_model = {m: [a["answer"] for a in answers if a["model"] == m] for m in ("base", "engraved", "final")}
    assert len(by_model["base"]) == len(by_model["engraved"]) == len(by_model["final"]) == 2
    assert by_model["base"] not in (by_model["engraved"], by_model["final"])
    adapters = [run / name / "adapter/adapter_model.safetensors" for name in ("3_engrave", "4_verbose_clone")]
    assert adapters[0].read_bytes() != adapters[1].read_bytes()  # two responses may be the same
    assert len(rows(run / "4_verbose_clone/responses.jsonl")) > 0
    counts = {s["stage"]: s["notes"] for s in json.loads((run / "manifest.json").read_text())["stages"]}
    for stage in ("engrave", "verbose_cloning"):
        parity = counts[stage]["parity"]
        assert parity["positions"] == 100
        assert parity["agreement_base"] > 0.9
        assert parity["agreement_adapter"] >= parity["agreement_base"] - 0.05
        assert parity["changed"] >= 0.10


def test_shared_prefix_is_computed_once(run: Path) -> None:
    stages = {s["stage"]: s for s in json.loads((run / "manifest.json").read_text())["stages"]}
    align = stages["align"]
    assert align["cached_tokens"] > 10 * align["prompt_tokens"]


def test_chat_responds_with_base_and_final_model(run: Path) -> None:
    responses = {}
    for model in ("base", "final"):
        command = [sys.executable, "-m", "selfalign.cli.main", "chat", str(run), "--model", model, "-p", "Who are you?"]
        done = subprocess.run([*command, "--max-tokens", "24"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        responses[model] = done.stdout.strip()
    assert responses["base"] and responses["final"] and responses["base"] != responses["final"]


def test_server_responds_to_openai_client_with_every_model(run: Path) -> None:
    import openai_conformance
    from serve_process import serve

    with serve(run) as (process, url):
        listed = ["base", "prompted-base", "engraved", "final"]
        openai_conformance.check(url, ["base", "final"], listed)
        for name in ("prompted-base", "engraved"):
            openai_conformance.check_an_answer(url, name)
        openai_conformance.check_length(url, "final")
        process.terminate()
        assert process.wait(20) == 143
