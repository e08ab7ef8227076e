"""Test clusters of duplicates by words, characters and meaning, also across stages and runs."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from conftest import hang_guard
from selfalign.cli.main import app
from selfalign.pipeline import order
from selfalign.quality import duplicates
from selfalign.report import data_quality
from selfalign.run.context import Context

Runs = Callable[..., Context]
TEXTS = [
    "Write a short letter to your landlord about the broken window.",
    "Name three rivers in the north of the country.",
    "write a short letter to your  landlord about the broken window.",
    "Write a short letter to the landlord about the broken window.",
    "Explain how bees make honey in the summer months.",
    "Name three rivers in the north of the Country.\n",
]


def test_the_same_texts_are_one_cluster():
    assert duplicates.exact(TEXTS) == [[0, 2], [1, 5]]


def test_nearly_the_same_characters_are_one_cluster():
    assert duplicates.near(TEXTS) == [[0, 2, 3], [1, 5]]
    assert duplicates.near(TEXTS, 1.0) == [[0, 2], [1, 5]]


def test_the_same_meaning_is_one_cluster():
    pytest.importorskip("wordllama")
    results = duplicates.semantic(["How do bees make honey?", "Name a river.", "how are bees making honey?"], 0.8)
    assert results == [[0, 2]]


def test_missing_wordllama_error_names_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "wordllama", None)
    duplicates._embedder.cache_clear()
    with pytest.raises(duplicates.UserError, match="pip install wordllama"):
        duplicates.semantic(TEXTS)


@pytest.mark.parametrize("method", ["exact", "near"])
@pytest.mark.parametrize("texts", [[], [""], ["", ""], ["a"], ["?!", "?!"]])
def test_few_or_empty_texts_have_no_clusters(method: str, texts: list[str]):
    results = duplicates.METHODS[method](texts)
    assert results == ([[0, 1]] if len(texts) == 2 else [])


@given(st.lists(st.text(alphabet="ab c", max_size=12), max_size=20))
def test_clusters_are_disjoint_and_complete(texts: list[str]):
    same, close = duplicates.exact(texts), duplicates.near(texts)
    for results in (same, close):
        flat = [i for cluster in results for i in cluster]
        assert len(flat) == len(set(flat))
        assert all(len(cluster) > 1 for cluster in results)
    where = {i: n for n, cluster in enumerate(close) for i in cluster}
    for cluster in same:
        assert len({where[i] for i in cluster}) == 1


def test_near_finds_all_pairs_among_many_texts():
    rng = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=6)) for _ in range(400)]
    texts = [" ".join(rng.choices(words, k=12)) for _ in range(300)]
    for text in texts[:100]:  # copies with one word of twelve changed
        changed = text.split()
        changed[rng.randrange(12)] = rng.choice(words)
        texts.append(" ".join(changed))
    sets = [duplicates._shingles(t) for t in texts]
    pairs = {p for p in itertools.combinations(range(400), 2) if duplicates._jaccard(sets[p[0]], sets[p[1]]) >= 0.7}
    results = duplicates.near(texts)
    together = {p for cluster in results for p in itertools.combinations(cluster, 2)}
    assert len(pairs) > 50
    assert pairs <= together


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_near_finds_most_pairs_at_lower_thresholds(threshold: float):
    rng = random.Random(2)
    words = [f"{a}{b}{c}" for a in "abcdef" for b in "ghijk" for c in "lmnop"]
    texts = [" ".join(rng.choices(words, k=8)) for _ in range(120)]
    for text in texts[:60]:
        changed = text.split()
        for place in rng.sample(range(8), 2 if threshold == 0.5 else 3):
            changed[place] = rng.choice(words)
        texts.append(" ".join(changed))
    sets = [duplicates._shingles(t) for t in texts]
    pairs = [
        p for p in itertools.combinations(range(180), 2) if duplicates._jaccard(sets[p[0]], sets[p[1]]) >= threshold
    ]
    together = {p for c in duplicates.near(texts, threshold) for p in itertools.combinations(c, 2)}
    assert len(pairs) > 10
    assert sum(p in together for p in pairs) >= 0.97 * len(pairs)


def test_many_copies_are_clustered_quickly():
    with hang_guard():
        assert [len(c) for c in duplicates.near(["I cannot help with that."] * 50_000)] == [50_000]


SMALL = ("prompts.self_instruct.count=12", "prompts.red_team.count=12", "prompts.red_team.topic_rounds=1")


def test_two_runs_are_compared(fake_run: Runs, tmp_path: Path):
    one, two = fake_run(*SMALL, name="one"), fake_run(*SMALL, "align.temperature=0.4", name="two")
    for context in (one, two):
        order.run_stage(context, "prompts")
    # Both wrote the same prompts: each is a cluster of two.
    results = data_quality.clusters_across([one.run, two.run], "prompts", "near")
    assert len(results) == 24
    assert {Path(row.run).name for row in results[0]} == {"one", "two"}
    assert data_quality.clusters_across([one.run], "prompts", "near") == []
    for context in (one, two):
        context.journal.close()
    result = CliRunner().invoke(app, ["duplicates", str(tmp_path / "one"), str(tmp_path / "two"), "--json"])
    assert json.loads(result.stdout)["clusters"] == 24
    result = CliRunner().invoke(app, ["duplicates", str(tmp_path / "one"), str(tmp_path / "two")])
    assert "48 rows in 24 clusters" in result.stdout
    assert CliRunner().invoke(app, ["duplicates", str(tmp_path / "one")]).stdout.startswith("no duplicates")
    result = CliRunner().invoke(app, ["duplicates", str(tmp_path / "one"), "--kind", "answers"])
    assert "has no answers yet" in str(result.exception)


def test_responses_of_both_stages_are_compared(fake_run: Runs):
    context = fake_run(*SMALL, "evaluate.heldout_prompts=2", "verbose_cloning.prompts=6")
    for stage in ("prompts", "align"):
        order.run_stage(context, stage)  # type: ignore[arg-type]
    answers = list(data_quality.rows(context.run, "answers"))
    assert {row.stage for row in answers} == {"responses"}
    copied = context.run.jsonl("responses").read_text("utf-8")
    context.run.jsonl("verbose_responses").parent.mkdir(parents=True, exist_ok=True)
    context.run.jsonl("verbose_responses").write_text(copied, "utf-8")
    answers = list(data_quality.rows(context.run, "answers"))
    results = data_quality.clusters(answers, "exact")
    assert all({row.stage for row in cluster} == {"responses", "verbose_responses"} for cluster in results)
    assert len(results) == len(answers) / 2


def test_embedding_leaves_the_log_as_it_was():
    program = (
        "import logging; from selfalign.quality.duplicates import embed; embed(['a']); "
        "print(logging.getLogger().handlers, logging.getLogger().level)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("[] 30\n", "")
