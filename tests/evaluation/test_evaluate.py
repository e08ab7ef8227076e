"""Benchmarks on a run and on models without a run: small random models score fixtures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import small_models
from sample_constitutions import GOOD
from selfalign import constitution as constitutions
from selfalign.constitution import Constitution
from selfalign.data.records import Response, read_jsonl, write_jsonl
from selfalign.errors import Interrupted, UserError
from selfalign.evaluation import benchmarks, comparison, evaluate, models, results, scoring
from selfalign.evaluation.evaluate import EvaluationRequest
from selfalign.evaluation.prompting import cell_text
from selfalign.evaluation.records import ItemScore, OpenAnswer, PairVerdict, Score
from selfalign.evaluation.tasks import ORIGINS, heldout, hhh, truthfulqa
from selfalign.generation.scoring.base import Scored, Text
from selfalign.generation.scoring.torch_scorer import TorchScorer
from selfalign.model import sources
from selfalign.pipeline import order
from selfalign.run import recipe as recipes
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.system.console import Screen
from selfalign.system.signals import STOP
from selfalign.training import lora
from selfalign.training.settings import TrainingSettings

pytestmark = pytest.mark.integration
DATA = Path(__file__).parents[1] / "data"
SOURCES = {"hhh": str(DATA / "fixture_hhh.json"), "truthfulqa": str(DATA / "fixture_truthfulqa.csv")}
REQUEST = EvaluationRequest(["hhh"], data=SOURCES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def small_constitution(tmp_path_factory: pytest.TempPathFactory) -> Constitution:
    """A constitution short enough for the small model's context."""
    file = tmp_path_factory.mktemp("texts") / "small.yaml"
    file.write_text(GOOD, "utf-8")
    return constitutions.load(str(file))


@pytest.fixture(autouse=True)
def no_check_of_the_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the check on trivial items: it has its own test."""
    monkeypatch.setattr(scoring, "check_scorer", lambda scorer, adapter=None: None)


def adapter(folder: Path, target: Path, seed: int) -> Path:
    model = lora.with_new_adapter(lora.load_base(folder), TrainingSettings(rank=4, alpha=64, dropout=0.0), seed)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    lora.save_adapter(model, target, sources.resolve(str(folder)), "card")
    target.with_suffix(".gguf").write_bytes(b"")  # only its existence is checked
    return target


@pytest.fixture
def run(tmp_path: Path, folder: Path, small_constitution: Constitution) -> Iterator[Context]:
    """A run whose engraved and final model are random adapters of a small random model."""
    recipe = recipes.load("quick", [f"model={folder}", "engine.kind=llama_cpp", "engine.slots=1"])
    context = Context(RunDir.create(tmp_path / "run", recipe, small_constitution), Screen(-1))
    for seed, stage in enumerate(("engrave", "verbose_cloning")):
        adapter(folder, context.run.adapter(stage), seed)
    yield context
    context.journal.close()


def column(result: Sequence[Score], measure: str, benchmark: str = "hhh (fixture)") -> dict[tuple[str, str], Score]:
    return {(s.model, s.vs or ""): s for s in result if s.measure == measure and s.benchmark == benchmark}


def test_every_model_of_a_run_is_compared(run: Context):
    evaluate.run(run, REQUEST)
    rows = read_jsonl(run.run.evaluation / "hhh.jsonl", ItemScore)
    assert len(rows) == 12 * 2 * 4
    assert {(r.model, r.prompt) for r in rows} == {
        ("base", "standard"), ("prompted base", "constitution"), ("engraved", "standard"), ("final", "standard")
    }  # fmt: skip
    assert all(len(r.logprobs) == len(r.labels) == (4 if r.form == "A or B" else 2) for r in rows)
    by_model = {m: [r.logprobs for r in rows if r.model == m] for m in ("base", "engraved", "final")}
    assert by_model["base"] != by_model["engraved"] != by_model["final"]
    result = results.read_scores(run.run.scores)
    for measure in (hhh.LETTERS, hhh.SUM, hhh.PER_TOKEN):
        overall = column(result, measure)
        assert list(overall) == [
            ("base", ""), ("prompted base", "base"), ("engraved", "base"), ("final", "base"),
            ("final", "prompted base"), ("final", "engraved"),
            ("longest answer", ""), ("shortest answer", ""), ("random guess", ""),
        ]  # fmt: skip
        subsets = [column(result, measure, f"hhh (fixture)/{s}") for s in ("harmless", "helpful", "honest", "other")]
        assert sum(s["final", "base"].value * 3 for s in subsets) == pytest.approx(overall["final", "base"].value * 12)
        final = overall["final", "engraved"]
        assert final.n == 12 and final.p is not None and final.low is not None
        assert final.difference == pytest.approx(final.value - overall["engraved", "base"].value)
    text = (run.run.evaluation / "hhh.jsonl").read_text("utf-8")
    assert "Norway" not in text and "goldfish" not in text, "a benchmark's texts are in no file of a run"


def test_rows_hold_the_log_probabilities_of_torch(run: Context, folder: Path):
    evaluate.run(run, EvaluationRequest(["truthfulqa"], ["engraved"], data=SOURCES))
    rows = read_jsonl(run.run.evaluation / "truthfulqa.jsonl", ItemScore)
    form = truthfulqa.FORMS[1]
    row = next(r for r in rows if r.form == form.name and r.item == 3)
    item = benchmarks.load(ORIGINS["truthfulqa"], SOURCES["truthfulqa"]).items[3]
    model = sources.resolve(str(folder))
    scorer = TorchScorer(folder, {"engrave": run.run.adapter("engrave")}, model.tokenizer())
    texts = [cell_text(model.template, run.run.constitution, "standard", c) for c in form.cells(item)]
    result = [s.logprobs for s in scorer.loglikelihoods(texts, "engrave") if s]
    assert len(result) == len(row.logprobs) == 4
    for mine, theirs in zip(row.logprobs, result, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    assert row.values == pytest.approx(form.read(item, [Scored(f) for f in result]), abs=1e-4)
    assert set(row.values) == {truthfulqa.MC1, truthfulqa.MC2}
    mc2 = column(results.read_scores(run.run.scores), truthfulqa.MC2, "truthfulqa (fixture)")["engraved", ""]
    assert mc2.n == 8 and mc2.low is not None and mc2.low < mc2.value < (mc2.high or 0)


class Counting:
    """A real scorer that counts its texts, and raises Interrupted after a number of calls."""

    def __init__(self, inner: Any, stop_after: int | None) -> None:
        self._inner, self._left, self.items = inner, stop_after, 0
        self.name = inner.name

    @property
    def tokens(self) -> tuple[int, int]:
        result: tuple[int, int] = self._inner.tokens
        return result

    def loglikelihoods(self, requests: Sequence[Text], adapter: str | None) -> list[Scored | None]:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise Interrupted(15)
        self.items += len(requests)
        result: list[Scored | None] = self._inner.loglikelihoods(requests, adapter)
        return result

    def close(self) -> None:
        self._inner.close()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], list[Counting]]:
    """Return a function that makes the run's scorers count, and returns the list of started ones."""
    real = models._start_run_scorer

    def make(stop_after: int | None = None) -> list[Counting]:
        started: list[Counting] = []

        def start(context: Context, folders: Any) -> Counting:
            started.append(Counting(real(context, folders), stop_after))
            return started[-1]

        monkeypatch.setattr(models, "_start_run_scorer", start)
        return started

    return make


def test_interrupted_evaluation_resumes(
    run: Context, counted: Callable[..., list[Counting]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scoring, "_BATCH", 4)
    first = counted(stop_after=5)
    with pytest.raises(Interrupted):
        evaluate.run(run, REQUEST)
    assert not (run.run.evaluation / "hhh.jsonl").exists() and not STOP.is_set
    second = counted()
    evaluate.run(run, REQUEST)
    texts = 12 * (4 + 2) * 4
    assert (first[0].items, first[0].items + second[0].items) == (3 * 16 + 2 * 8, texts)
    before = (run.run.evaluation / "hhh.jsonl").read_bytes()
    third = counted()
    evaluate.run(run, REQUEST)
    assert third == [], "nothing is left to score: no scorer is started"
    assert (run.run.evaluation / "hhh.jsonl").read_bytes() == before
    counts = run.journal.counts("hhh")
    assert (counts.rows_in, counts.kept) == (96, 96)
    state = json.loads((run.run.scores.parent / results.USAGE_LOG).read_text("utf-8"))
    assert len(state["hhh (fixture)"]["readings"]) == 1 and len(state["hhh (fixture)"]["sha256"]) == 64


@pytest.mark.slow
def test_ray_scores_under_the_same_journal_keys(
    run: Context, tmp_path: Path, folder: Path, small_constitution: Constitution, monkeypatch: pytest.MonkeyPatch
):
    """tests/generation/test_ray_scorer.py tests the workers themselves."""
    started = []

    def scorer(executor: Any, config: Any, model: Any, adapters: Any, kind: str, start: Any, say: Any) -> Any:
        started.append((executor.kind, kind, set(adapters)))
        return start(model, adapters)

    monkeypatch.setattr("selfalign.generation.ray.scorer.RayScorer", scorer)
    request = EvaluationRequest(["hhh"], ["base", "engraved"], data=SOURCES, limit=3)
    recipe = recipes.load("quick", [f"model={folder}", "engine.kind=llama_cpp", "engine.slots=1", "executor=ray"])
    other = Context(RunDir.create(tmp_path / "ray", recipe, small_constitution), Screen(-1))
    adapter(folder, other.run.adapter("engrave"), 0)
    evaluate.run(other, request)
    assert started == [("ray", "torch", {"engrave"})]
    evaluate.run(run, request)
    assert len(started) == 1
    assert (other.run.evaluation / "hhh.jsonl").read_bytes() == (run.run.evaluation / "hhh.jsonl").read_bytes()
    keys = [
        sorted(k for (k,) in c.journal._db.execute("SELECT key FROM work WHERE stage = 'hhh'")) for c in (run, other)
    ]
    assert keys[0] == keys[1] and len(keys[0]) == 12
    rows = [Response(f"{i:016x}", f"What is {i}?", "", f"It is {i}.", split="heldout") for i in range(9)]
    for context in (run, other):
        write_jsonl(context.run.jsonl("responses"), rows)
    losses = heldout._losses(other)
    assert started[1:] == [("ray", "torch", {"engrave"})]
    local = heldout._losses(run)
    assert losses == {m: {name: v for name, v in by_model.items() if name != "final"} for m, by_model in local.items()}
    for measure, number in ((heldout.LOSS, 9), (heldout.NEUTRAL_LOSS, len(heldout.neutral_texts()))):
        by_model = losses[measure]
        assert by_model["base"] != by_model["engraved"] and len(by_model["base"]) == number
    other.journal.close()


def test_later_models_join_earlier_rows(run: Context, counted: Callable[..., list[Counting]]):
    evaluate.run(run, EvaluationRequest(["hhh"], ["base", "final"], data=SOURCES))
    scorers = counted()
    evaluate.run(run, EvaluationRequest(["hhh"], ["prompted", "engraved"], data=SOURCES))
    assert scorers[0].items == 12 * 6 * 2
    result = results.read_scores(run.run.scores)
    assert ("final", "engraved") in column(result, hhh.LETTERS)
    state = json.loads((run.run.scores.parent / results.USAGE_LOG).read_text("utf-8"))["hhh (fixture)"]
    assert len(state["readings"]) == 2 and len(state[results.MODELS_KEY]) == 4
    # Another choice of items takes the place of all.
    evaluate.run(run, EvaluationRequest(["hhh"], ["base"], data=SOURCES, limit=5))
    rows = read_jsonl(run.run.evaluation / "hhh.jsonl", ItemScore)
    assert {r.model for r in rows} == {"base"} and len(rows) == 10


def test_refresh_removes_scores_of_old_weights_only(run: Context, folder: Path):
    held = Score("heldout", "loss without constitution", "base", "standard", 3, 1.0)
    run.run.scores.parent.mkdir(parents=True, exist_ok=True)
    run.run.scores.write_text(json.dumps([{n: getattr(held, n) for n in held.__slots__}]), "utf-8")
    evaluate.run(run, REQUEST)
    assert results.read_scores(run.run.scores)[0] == held
    adapter(folder, run.run.adapter("verbose_cloning"), 7)
    evaluate.refresh(run)
    result = results.read_scores(run.run.scores)
    assert result[0] == held
    assert {s.model for s in result if s.benchmark.startswith("hhh") and s.prompt} == {
        "base",
        "prompted base",
        "engraved",
    }
    run.run.check_not_edited([run.run.evaluation / "hhh.jsonl"], force=False)


def test_refresh_removes_verdicts_of_old_weights(run: Context, folder: Path):
    store = results.ResultStore(run.run.scores.parent, run.journal, run.screen)
    store.folder.mkdir(parents=True, exist_ok=True)
    benchmark = benchmarks.load(ORIGINS["vicuna"], str(DATA / "fixture_vicuna.jsonl"))
    now = evaluate._engine_identities(run)
    rows = [
        OpenAnswer(f"{m} {i}", benchmark.label, i, "", "", "?", "standard", m, f"{m} {i}", True)
        for m in ("base", "engraved", "final")
        for i in range(2)
    ]
    store.write("vicuna", rows)
    store.log_usage(
        benchmark, "vicuna (fixture)", {f"{m}|standard": now[m] for m in ("base", "engraved", "final")}, set()
    )
    verdicts = [comparison.verdict_row(p, "j", "A", "B") for p in comparison.pairs_of(rows)]
    store.write("vicuna-verdicts", verdicts)
    run.run.mark_done(
        evaluate.STAGE, "", [run.run.evaluation / "vicuna.jsonl", run.run.evaluation / "vicuna-verdicts.jsonl"]
    )
    evaluate.refresh(run)
    assert len(read_jsonl(run.run.evaluation / "vicuna-verdicts.jsonl", PairVerdict)) == 6
    run.run.adapter_gguf("verbose_cloning").write_bytes(b"trained again")
    evaluate.refresh(run)
    assert {r.model for r in read_jsonl(run.run.evaluation / "vicuna.jsonl", OpenAnswer)} == {"base", "engraved"}
    assert {v.model for v in read_jsonl(run.run.evaluation / "vicuna-verdicts.jsonl", PairVerdict)} == {"engraved"}
    assert {s.model for s in results.read_scores(run.run.scores)} == {"engraved"}
    run.run.check_not_edited(
        [run.run.evaluation / "vicuna.jsonl", run.run.evaluation / "vicuna-verdicts.jsonl"], force=False
    )


def test_duplicate_item_counts_twice(run: Context, tmp_path: Path):
    value = json.loads((DATA / "fixture_hhh.json").read_text("utf-8"))
    value = {"other": {"examples": value["other"]["examples"][:1] * 2}}
    (tmp_path / "twice.json").write_text(json.dumps(value), "utf-8")
    evaluate.run(run, EvaluationRequest(["hhh"], ["base"], data={"hhh": str(tmp_path / "twice.json")}))
    assert len(read_jsonl(run.run.evaluation / "hhh.jsonl", ItemScore)) == 4
    assert {s.n for s in results.read_scores(run.run.scores)} == {2}


def test_edited_benchmark_rows_are_not_overwritten(run: Context):
    evaluate.run(run, REQUEST)
    file = run.run.evaluation / "hhh.jsonl"
    file.write_text(file.read_text("utf-8") + "\n", "utf-8")
    with pytest.raises(UserError, match="was edited"):
        evaluate.run(run, REQUEST)
    run.force = True
    evaluate.run(run, REQUEST)
    # A stage that published scores.json stays finished, and its file does not count as edited.
    run.run.mark_done("evaluate", "inputs", [run.run.scores])
    run.force = False
    evaluate.run(run, EvaluationRequest(["truthfulqa"], data=SOURCES))
    assert run.run.done("evaluate", "inputs")
    run.run.check_not_edited([run.run.scores], force=False)


def test_other_adapters_and_models_are_compared(run: Context, folder: Path, tmp_path: Path):
    mine = adapter(folder, tmp_path / "mine/adapter", 5)
    others = [f"mine={mine}", f"elsewhere={folder}"]
    evaluate.run(run, EvaluationRequest(["hhh"], ["base", "engraved"], others, SOURCES))
    result = column(results.read_scores(run.run.scores), hhh.PER_TOKEN)
    assert {("base", ""), ("engraved", "base"), ("mine", "base"), ("elsewhere", "base")} < set(result)
    assert result["elsewhere", "base"].difference == 0  # the same weights from another place
    rows = {
        m: [r.logprobs for r in read_jsonl(run.run.evaluation / "hhh.jsonl", ItemScore) if r.model == m]
        for m, _ in result
    }
    assert rows["mine"] != rows["base"] and rows["mine"] != rows["engraved"]
    with pytest.raises(UserError, match="has a model with this name"):
        evaluate.run(run, EvaluationRequest(["hhh"], ["base"], [f"base={mine}"], SOURCES))


def test_unknown_task_of_a_recipe_is_an_error_before_the_run(fake_run: Callable[..., Context]):
    context = fake_run("evaluate.tasks=[mmlu]", name="unknown")
    with pytest.raises(UserError, match=r"evaluate\.tasks: 'mmlu' is not known; use one of hhh"):
        order.check_ready(context)


def test_impossible_requests_are_errors_of_one_line(run: Context, fake_run: Callable[..., Context]):
    for models_, match in ((["bass"], "'bass' is not a model"), (["final"], "was not trained in this run")):
        run.run.adapter_gguf("verbose_cloning").unlink(missing_ok=True)
        with pytest.raises(UserError, match=match):
            evaluate.run(run, EvaluationRequest(["hhh"], models_, data=SOURCES))
    with pytest.raises(UserError, match="'mmlu' is not known"):
        evaluate.run(run, EvaluationRequest(["mmlu"]))
    with pytest.raises(UserError, match="write NAME=ADAPTER"):
        evaluate.run(run, EvaluationRequest(["hhh"], others=["x"], data=SOURCES))
    with pytest.raises(UserError, match="#ID"):
        evaluate.run(run, EvaluationRequest(["hhh"], others=["x=http://127.0.0.1:1"], data=SOURCES))
    with pytest.raises(UserError, match="fake engine runs no model"):
        evaluate.run(fake_run(name="fake"), REQUEST)


def test_models_without_a_run_are_compared(folder: Path, tmp_path: Path, small_constitution: Constitution):
    mine = adapter(folder, tmp_path / "3_engrave/adapter", 3)
    specs = [f"base={folder}", f"{folder}+{mine}"]
    out = tmp_path / "out"
    result = evaluate.run_alone(out, specs, REQUEST, small_constitution, True, Screen(-1))
    names = {s.model for s in result if s.prompt}
    second = f"{folder.name}+3_engrave/adapter"
    assert names == {"base", "base, prompted", second, f"{second}, prompted"}
    assert results.read_scores(out / results.SCORES) == result
    again = evaluate.run_alone(out, specs, REQUEST, small_constitution, True, Screen(-1))
    assert again == result
    with pytest.raises(UserError, match="two models are named"):
        evaluate.run_alone(out, [str(folder), str(folder)], REQUEST, small_constitution, False, Screen(-1))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("mine", "utf-8")
    with pytest.raises(UserError, match="contains other files"):
        evaluate.run_alone(tmp_path / "other", specs, REQUEST, small_constitution, False, Screen(-1))


def test_new_task_reruns_only_the_evaluation(run: Context):
    before = {s: order.inputs_hash(run, s) for s in order.STEPS}
    run.run.recipe = run.recipe.model_copy(
        update={"evaluate": run.recipe.evaluate.model_copy(update={"tasks": ["hhh"]})}
    )
    after = {s: order.inputs_hash(run, s) for s in order.STEPS}
    assert [s for s in before if before[s] != after[s]] == ["evaluate"]
