"""`engrave.method: dpo`: rejected responses, the pairs' file and ledger, resuming, training, export, viewer."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.api import Run
from selfalign.constitution import Constitution
from selfalign.constitution.diff import diff
from selfalign.data import user_pairs
from selfalign.data.records import Example, PreferencePair, Prompt, Response, prompt_id, read_jsonl, write_jsonl
from selfalign.errors import Interrupted, UserError
from selfalign.export import dataset, launch, push
from selfalign.generation.engines.base import Step
from selfalign.generation.engines.fake import Fake
from selfalign.pipeline import order
from selfalign.pipeline.preference_pairs import STAGE, mismatch
from selfalign.planning import costs
from selfalign.report import run_summary
from selfalign.run import recipe as recipes
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.run.ledger import RowOutcome
from selfalign.run.marks import Mark, write
from selfalign.system.console import Screen
from selfalign.system.signals import STOP
from selfalign.web.view.entries import FILES, EntryBuilder, JsonlIndex

Runs = Callable[..., Context]
CHOSEN = "Salt gives bread its taste, and it slows the yeast, so that the crumb stays even."
WORSE = "Bakers put salt into their dough since nobody ever asked them why they would do that."
DPO = ("engrave.method=dpo", "stages=[engrave]")


def answer(prompt: str, step: Step, rng: random.Random) -> str:
    """Each prompt names its kind of rejected response; what depends on luck is usable in one of three samples."""
    if "short" in prompt:
        return " Only out of habit.\n\nUser:"
    if "same" in prompt:
        return f" {CHOSEN}\n\nUser:"
    if "empty" in prompt:
        return "\n\nUser:"
    if "endless" in prompt:
        return " word" * 1000
    return f" {WORSE}\n\nUser:" if "luck" not in prompt or rng.random() < 0.34 else " Only out of habit.\n\nUser:"


def prepare(context: Context, *kinds: str) -> Context:
    kinds = kinds or ("good",) * 3 + ("short", "same", "empty", "endless") + ("luck",) * 5
    rows = [
        Response(f"{n:016x}", f"Why do bakers use salt, {kind} {n}?", "", CHOSEN, "", [2, 3])
        for n, kind in enumerate(kinds)
    ]
    rows.append(Response(f"{99:016x}", "A held-out question?", "", CHOSEN, "", [1], split="heldout"))
    write_jsonl(context.run.jsonl("responses"), rows)
    return context


def pairs_of(context: Context) -> list[PreferencePair]:
    return read_jsonl(context.run.jsonl("pairs"), PreferencePair)


def test_pairs_have_a_ledger_that_balances(fake_run: Runs) -> None:
    context = prepare(fake_run(*DPO, script=answer))
    order.run_stage(context, "engrave")
    counts, pairs = context.journal.counts(STAGE), pairs_of(context)
    assert counts.finished and counts.rows_in == 12 and counts.kept == len(pairs) > 3
    assert counts.rows_in == counts.kept + sum(counts.dropped.values()) + sum(counts.failed.values())
    assert {
        "rejected: shorter than the length ratio allows", "both responses are the same", "rejected: empty",
        "rejected: truncated",
    } <= counts.dropped.keys()  # fmt: skip
    assert sum(d.stage == STAGE for d in context.journal.drops()) == counts.rows_in - counts.kept
    first = pairs[0]
    assert (first.chosen, first.rejected, first.rejected_from, first.principles) == (CHOSEN, WORSE, "base", [2, 3])
    assert counts.notes["chosen_longer"] == 0.0 and counts.notes["rejected_characters"] == len(WORSE)
    examples = read_jsonl(context.run.jsonl("engrave_examples"), Example)
    identity = len(context.run.constitution.identity) * context.recipe.engrave.identity_repeats
    assert len(examples) == 12 + identity, "rows without a pair are examples of the sft term"


def test_prompt_of_the_rejected_response_has_no_constitution(fake_run: Runs) -> None:
    seen: list[str] = []

    def script(prompt: str, step: Step, rng: random.Random) -> str:
        seen.append(prompt)
        return f" {WORSE}\n\nUser:"

    context = prepare(fake_run(*DPO, script=script), "good")
    order.run_stage(context, "engrave")
    constitution = context.run.constitution
    assert len(seen) == 1 and constitution.system_prompt("standard") in seen[0]
    assert not any(p.rule in seen[0] for p in constitution.principles)


def test_more_samples_are_requested_only_while_none_is_usable(fake_run: Runs) -> None:
    requests, kept = {}, {}
    for samples in (1, 2, 8):
        context = prepare(fake_run(*DPO, f"engrave.pair_samples={samples}", script=answer, name=f"run{samples}"))
        order.run_stage(context, "engrave")
        requests[samples] = context.journal.counts(STAGE).generation.requests
        kept[samples] = context.journal.counts(STAGE).kept
    assert requests[1] == 12 and kept[1] < kept[8] and 2 * 12 > requests[2] > 12 and requests[8] < 8 * 12


def test_antitheses_of_the_cited_principles_are_shown(fake_run: Runs, default_constitution: Constitution) -> None:
    seen: list[str] = []

    def script(prompt: str, step: Step, rng: random.Random) -> str:
        seen.append(prompt)
        return f" {WORSE}\n\nUser:"

    changed = [
        p.model_copy(update={"antithesis": f"Never mind rule {p.id}."} if p.id in (1, 3) else {})
        for p in default_constitution.principles
    ]
    texts = default_constitution.model_copy(update={"principles": changed})
    assert texts.human_items(0)["antitheses"] == 2
    assert texts.human_items(0)["total"] == default_constitution.human_items(0)["total"] + 2
    assert texts.digest() != default_constitution.digest()
    (first, _) = diff(default_constitution, texts, len)["principles"]["reworded"]
    assert first["to"] == "Never mind rule 1." and first["name"].endswith(", antithesis")
    context = prepare(fake_run(*DPO, script=script, texts=texts), "good")
    order.run_stage(context, "engrave")
    assert "Never mind rule 3." in seen[0] and "Never mind rule 1." not in seen[0]
    assert [p.rejected_from for p in pairs_of(context)] == ["antithesis"]


def test_interrupted_pairs_resume_with_equal_files(fake_run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = prepare(fake_run(*DPO, script=answer, name="whole"))
    order.run_stage(expected, "engrave")
    whole = expected.run.jsonl("pairs").read_bytes()
    for stop in (1, 9, 15, 25):
        calls = 0

        def script(prompt: str, step: Step, rng: random.Random, stop: int = stop) -> str:
            nonlocal calls
            calls += 1
            if calls == stop:
                monkeypatch.setattr(STOP, "_signum", 15)
            return answer(prompt, step, rng)

        context = prepare(fake_run(*DPO, script=script, name=f"stopped{stop}"))
        with pytest.raises(Interrupted):
            order.run_stage(context, "engrave")
        monkeypatch.setattr(STOP, "_signum", None)
        assert not context.run.jsonl("pairs").exists()
        order.run_stage(context, "engrave")
        assert context.run.jsonl("pairs").read_bytes() == whole
        mine, theirs = (c.journal.counts(STAGE) for c in (context, expected))
        assert (mine.kept, mine.dropped, mine.generation.requests) == (
            theirs.kept, theirs.dropped, theirs.generation.requests
        )  # fmt: skip


def test_marks_apply_to_the_chosen_responses(fake_run: Runs) -> None:
    context = prepare(fake_run(*DPO, script=answer), "good", "good", "good")
    edited = "Because of the taste, they say, and because salt keeps the dough from rising too fast."
    chosen = [Mark("engrave", f"{0:016x}", "drop"), Mark("engrave", f"{1:016x}", "edit", edited)]
    write(context.run, {(m.stage, m.id): m for m in chosen})
    order.run_stage(context, "engrave")
    assert [p.chosen for p in pairs_of(context)] == [edited, CHOSEN]
    counts = context.journal.counts(STAGE)
    assert (counts.rows_in, counts.dropped) == (3, {"dropped manually": 1})


def test_return_to_sft_removes_the_pairs(fake_run: Runs) -> None:
    context = prepare(fake_run(*DPO, script=answer))
    order.run_stage(context, "engrave")
    assert context.run.jsonl("pairs").exists()
    engrave = context.recipe.engrave.model_copy(update={"method": "sft"})
    context.run.recipe = context.recipe.model_copy(update={"engrave": engrave})
    order.run_stage(context, "engrave")
    assert not context.run.jsonl("pairs").exists() and context.journal.counts(STAGE).rows_in == 0


def test_sft_settings_keep_the_hash_of_earlier_versions(fake_run: Runs) -> None:
    plain, other = fake_run(name="a"), fake_run("engrave.beta=0.5", "engrave.length_ratio=3", name="b")
    assert order.inputs_hash(plain, "engrave") == order.inputs_hash(other, "engrave")
    keys = plain.recipe.engrave.deciding().keys()
    assert not keys & {"method", "beta", "sft_weight", "pair_samples", "length_ratio"}
    assert plain.recipe.training("verbose_cloning").method == "sft"


texts = st.text(st.characters(codec="utf-8"), max_size=60)


@given(texts, texts, st.floats(1, 10))
def test_pairs_differ_and_their_lengths_are_within_the_ratio(chosen: str, rejected: str, ratio: float) -> None:
    reason = mismatch(chosen, rejected, ratio)
    a, b = len(chosen.strip()), len(rejected.strip())
    assert bool(reason) == (chosen.split() == rejected.split() or max(a, b) > ratio * min(a, b))
    assert bool(mismatch(rejected, chosen, ratio)) == bool(reason)


def test_pairs_are_exported_for_trl(fake_run: Runs, tmp_path: Path) -> None:
    context = prepare(fake_run(*DPO, script=answer), "good", "short", "good")
    order.run_stage(context, "engrave")
    written = dataset.write(context, "preference", out=tmp_path / "pairs")
    assert list(written.files.values()) == [2]
    row = json.loads((tmp_path / "pairs/train.jsonl").read_text().splitlines()[0])
    assert [turn["role"] for turn in row["prompt"]] == ["system", "user"]
    assert row["chosen"] == [{"role": "assistant", "content": CHOSEN}]
    assert row["rejected"] == [{"role": "assistant", "content": WORSE}]
    assert "conversational preference" in (tmp_path / "pairs/README.md").read_text()
    assert set(dataset.stages(context)) == {"engrave", "responses"}
    folder = push.find_or_export(context, "dataset", row_format="preference", file_type="jsonl")
    assert (
        folder == push.find_or_export(context, "dataset", row_format="preference") and (folder / "README.md").exists()
    )
    for options in ({"row_format": "messages", "stage": "pairs"}, {"row_format": "preference", "stage": "engrave"}):
        with pytest.raises(UserError, match="does not apply to --stage"):
            dataset.write(context, **options, out=tmp_path / "other")


def test_export_without_pairs_says_what_makes_them(fake_run: Runs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"engrave\.method=dpo makes pairs"):
        dataset.write(fake_run(), "preference", out=tmp_path / "pairs")


def test_viewer_shows_rejected_responses(fake_run: Runs) -> None:
    context = prepare(fake_run(*DPO, script=answer), "good", "short")
    order.run_stage(context, "engrave")
    files = {name: JsonlIndex(context.run.path, name) for name in FILES[STAGE]}
    builder = EntryBuilder(STAGE, context.run.constitution, files)
    rows = context.journal._read("SELECT id, position, state, reason, text FROM rows WHERE stage = 'pairs'")
    kept, dropped = (builder.entry(RowOutcome(*row)) for row in rows)
    for file in files.values():
        file.close()
    assert (kept.answer, kept.principles, kept.message) == (WORSE, (2, 3), "Why do bakers use salt, good 0?")
    assert dropped.message.endswith("habit.")  # there is no prompts file to split the ledger's text with


def test_plan_has_rejected_responses_and_longer_training(fake_run: Runs) -> None:
    sft, dpo = (fake_run(f"engrave.method={m}", name=m) for m in ("sft", "dpo"))
    machine = costs.Machine(8, None, 1000.0, True, True, 4096, 241.0)
    plans = [costs.plan(c.recipe, c.run.constitution, machine) for c in (sft, dpo)]
    stages: list[dict[str, Any]] = [{s.stage: s for s in plan.stages} for plan in plans]
    assert list(stages[1]) == [name for s in stages[0] for name in ((STAGE, s) if s == "engrave" else (s,))]
    assert stages[1][STAGE].requests > 0
    assert stages[1]["engrave"].generated_tokens > 1.1 * stages[0]["engrave"].generated_tokens
    assert stages[1]["verbose_cloning"] == stages[0]["verbose_cloning"]


# -- the user's pairs ------------------------------------------------------------------------------------------------

ASK = {"role": "user", "content": "Why salt?"}
FORMS = {
    "texts": {"prompt": "Why salt?", "chosen": CHOSEN, "rejected": WORSE},
    "messages": {
        "prompt": [{"role": "system", "content": "Be brief."}, ASK],
        "chosen": [{"role": "assistant", "content": CHOSEN}],
        "rejected": [{"role": "assistant", "content": WORSE}],
    },
    "dialogues": {
        "chosen": [ASK, {"role": "assistant", "content": CHOSEN}],
        "rejected": [ASK, {"role": "assistant", "content": WORSE}],
    },
    "transcripts": {
        "chosen": f"\n\nHuman: Why salt?\n\nAssistant: {CHOSEN}",
        "rejected": f"\n\nHuman: Why salt?\n\nAssistant: {WORSE}",
    },
    "a run's own": {"id": "1", "prompt": "standard", "user": "Why salt?", "chosen": CHOSEN, "rejected": WORSE},
}


@pytest.mark.parametrize("form", FORMS)
def test_pairs_of_published_forms_are_read_alike(form: str) -> None:
    pair, problem = user_pairs.parse(FORMS[form], "x:1")
    assert (pair.user, pair.chosen, pair.rejected, problem) == ("Why salt?", CHOSEN, WORSE, "")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rejected": ""}, "rejected: empty"),
        ({"prompt": [ASK, {"role": "assistant", "content": "Taste."}, ASK]}, "more than one turn"),
        ({"chosen": [ASK, {"role": "assistant", "content": CHOSEN}], "rejected": [
            {"role": "user", "content": "Why?"}, {"role": "assistant", "content": WORSE}], "prompt": ""},
         "the two responses have different prompts"),
    ],
)  # fmt: skip
def test_unusable_pairs_have_a_reason(change: dict[str, Any], expected: str) -> None:
    assert user_pairs.parse({**FORMS["texts"], **change}, "x:1")[1] == expected


def test_row_without_a_rejected_response_is_an_error(tmp_path: Path) -> None:
    file, target = tmp_path / "pairs.jsonl", tmp_path / "copy.jsonl"
    file.write_text('{"prompt": "Why?", "chosen": "So."}\n')
    with pytest.raises(UserError, match=r"pairs\.jsonl:1: the key 'rejected' is missing"):
        user_pairs.copy(file, target)
    file.write_text("")
    with pytest.raises(UserError, match="has no rows"):
        user_pairs.copy(file, target)
    assert not target.exists()


def test_prefer_trains_on_the_users_pairs(fake_run: Runs, tmp_path: Path) -> None:
    context = prepare(fake_run("stages=[engrave]"), "good", "good")
    heldout = Prompt("", "Is this held out?", split="heldout")
    write_jsonl(context.run.jsonl("prompts"), [replace(heldout, id=prompt_id(heldout.instruction, ""))])
    rows = [
        FORMS["texts"], FORMS["texts"], {**FORMS["texts"], "rejected": "No."}, {**FORMS["texts"], "chosen": ""},
        {**FORMS["texts"], "prompt": heldout.instruction}, {**FORMS["texts"], "prompt": "What does salt do?"},
    ]  # fmt: skip
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(rows))
    Run(context, -1).prefer(file)
    counts = context.journal.counts(STAGE)
    assert (counts.rows_in, counts.kept, sum(counts.dropped.values())) == (6, 2, 4)
    assert {"duplicate", "chosen: empty", "its prompt is held out for the evaluation"} <= counts.dropped.keys()
    assert counts.notes["rejected_from"] == {"user": 2} and counts.generation.requests == 0
    examples = read_jsonl(context.run.jsonl("engrave_examples"), Example)
    assert [e.user for e in examples if e.source == "user"][-2:] == ["Why salt?", "What does salt do?"]
    assert RunDir.load(context.run.path).recipe.engrave.method == "dpo"
    before = order.inputs_hash(context, "engrave")
    context.run.jsonl("user_pairs").write_text(json.dumps(rows[0]) + "\n")
    assert order.inputs_hash(context, "engrave") != before


def dpo_run(tiny_run: Runs, *sets: str, **more: Any) -> Context:
    """A context that trains the tiny base on pairs of the fake engine."""
    context = prepare(tiny_run("engrave.method=dpo", "engrave.learning_rate=0.005", *sets, **more))
    context._engine = Fake(parallel=4, script=answer)
    context._engine_for = context.identities()
    return context


def test_stage_3_trains_on_pairs_and_reports_them(tiny_run: Runs) -> None:
    context = dpo_run(tiny_run)
    order.run_stage(context, "engrave")
    notes = context.journal.counts("engrave").notes
    assert notes["pairs"] == context.journal.counts(STAGE).kept and 0 <= notes["accuracy"] <= 1
    assert (context.run.adapter("engrave") / "adapter_model.safetensors").exists()
    card = (context.run.adapter("engrave") / "README.md").read_text()
    assert f"{notes['pairs']} preference pairs" in card
    stages = [{**context.journal.counts(s).as_dict(), "title": s} for s in context.journal.stages()]
    (record,) = run_summary.training(stages)
    assert record["preference"]["pairs"] == notes["pairs"] and record["preference"]["chosen_characters"] == len(CHOSEN)
    with pytest.raises(UserError, match=r"engrave\.method is dpo"):
        launch._rows(context, "engrave")


def test_no_pairs_is_an_error_with_advice(tiny_run: Runs) -> None:
    context = dpo_run(tiny_run)
    prepare(context, "short")
    with pytest.raises(UserError, match=r"no preference pairs.*engrave\.length_ratio"):
        order.run_stage(context, "engrave")


def test_without_sft_weight_only_pairs_are_examples(tiny_run: Runs) -> None:
    context = dpo_run(tiny_run, "engrave.sft_weight=0")
    order.run_stage(context, "engrave")
    counts = context.journal.counts("engrave")
    assert counts.kept == context.journal.counts(STAGE).kept
    assert list(counts.dropped) == ["has no rejected response, and engrave.sft_weight is 0"]


def test_elsewhere_and_dpo_exclude_each_other(tiny_run: Runs) -> None:
    with pytest.raises(UserError, match="elsewhere supports sft only"):
        tiny_run("engrave.method=dpo", "engrave.elsewhere=true")


@pytest.mark.slow
@pytest.mark.integration
def test_embedded_model_writes_and_learns_pairs(tmp_path: Path, default_constitution: Constitution) -> None:
    settings = (
        "stages=[engrave]", "engrave.method=dpo", "engrave.epochs=2", "engrave.learning_rate=1e-3", "engrave.dropout=0",
        "engrave.length_ratio=10", "align.max_new_tokens=48", "engrave.identity_repeats=1", "engine.slots=4",
        "engrave.exemplar_repeats=0", "engrave.seed_repeats=0",
    )  # fmt: skip
    recipe = recipes.load("quick", list(settings))
    texts = default_constitution.model_copy(update={"identity": default_constitution.identity[:2]})
    context = Context(RunDir.create(tmp_path / "run", recipe, texts), Screen(-1))
    things = ("salt in bread", "a bridge over a river", "the moon at night", "old books", "rain in spring", "a clock")
    rows = [
        Response(f"{n:016x}", f"Tell me something about {thing}.", "", f"{thing.capitalize()}: {CHOSEN}")
        for n, thing in enumerate(things)
    ]
    write_jsonl(context.run.jsonl("responses"), rows)
    try:
        order.run_stage(context, "engrave")
        counts, notes = context.journal.counts(STAGE), context.journal.counts("engrave").notes
        assert counts.rows_in == 6 == counts.kept + sum(counts.dropped.values()) and counts.kept >= 2
        assert notes["pairs"] == counts.kept and notes["margin"] > 0 and notes["parity"]["holds"]
    finally:
        context.release_engine()
        context.journal.close()
