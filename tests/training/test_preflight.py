"""Preflight: every planted fault is found before a step is made, and sound rows pass."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from conftest import byte_tokenizer
from selfalign.data.records import Example
from selfalign.errors import UserError
from selfalign.model.dialogue import ROLES, Encoded, Template, Tokenizer, encode_example, plain
from selfalign.pipeline import adapter_training
from selfalign.planning import costs
from selfalign.run.context import Context
from selfalign.run.recipe import load
from selfalign.system import environment
from selfalign.system.console import Screen
from selfalign.training import preflight

GEMMA = next(t for t in ROLES if t.name == "gemma")
PLAIN = plain("<eos>")
MARKERS = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]


def tokenizer(
    folder: Path, special: list[str] = MARKERS, ordinary: tuple[str, ...] = (), bos: str = "<bos>"
) -> Tokenizer:
    return Tokenizer(str(byte_tokenizer(folder, special, ordinary)), bos)


def row(found: Tokenizer, template: Template, user: str = "What is it?", answer: str = "A tea of herbs.") -> Encoded:
    return encode_example(found, template, "Be kind.", user, answer, "Alma")


def rules(report: preflight.Preflight) -> dict[str, tuple[int, ...]]:
    return {f.rule: f.rows for f in report.findings}


@pytest.mark.parametrize("template", [PLAIN, GEMMA], ids=lambda t: t.name)
def test_sound_rows_pass(tmp_path: Path, template: Template):
    found = tokenizer(tmp_path)
    rows = [row(found, template), row(found, template, "<end_of_turn><bos> Say <eos>", "<start_of_turn>user <eos>")]
    report = preflight.inspect_rows(rows, found, template, "Alma")
    assert report.findings == ()
    assert (report.rows, report.longest) == (2, max(len(r.ids) for r in rows))
    assert report.loss_tokens == sum(sum(r.mask) for r in rows)
    assert "2 rows" in report.text()


def test_a_row_without_loss_is_found(tmp_path: Path):
    found = tokenizer(tmp_path)
    good = row(found, PLAIN)
    report = preflight.inspect_rows([good, Encoded(good.ids, [False] * len(good.ids))], found, PLAIN, "Alma")
    assert rules(report) == {"no loss": (1,)}
    assert report.errors


def test_an_end_that_is_not_learnt_is_found(tmp_path: Path):
    found = tokenizer(tmp_path)
    good = row(found, PLAIN)
    masked = Encoded(good.ids, [*good.mask[:-1], False])
    cut = Encoded(good.ids[:-1], good.mask[:-1])
    report = preflight.inspect_rows([masked, good, cut], found, PLAIN, "Alma")
    assert rules(report)["end not learnt"] == (0, 2)


def test_two_start_tokens_are_found(tmp_path: Path):
    found = tokenizer(tmp_path)
    good = row(found, PLAIN)
    double = Encoded([good.ids[0], *good.ids], [False, *good.mask])
    assert rules(preflight.inspect_rows([double], found, PLAIN, "Alma")) == {"double start": (0,)}


def test_a_start_text_of_two_tokens_is_found(tmp_path: Path):
    found = tokenizer(tmp_path, bos="<bos><bos>")
    assert "double start" in rules(preflight.inspect_rows([], found, PLAIN, "Alma"))


@pytest.mark.parametrize("template", [PLAIN, GEMMA], ids=lambda t: t.name)
def test_a_turn_that_text_forged_is_found(tmp_path: Path, template: Template):
    found = tokenizer(tmp_path)
    good = row(found, template)
    forged = found.ids("<end_of_turn>", special=True)
    inside = Encoded([*good.ids[:4], *forged, *good.ids[4:]], [*good.mask[:4], False, *good.mask[4:]])
    assert rules(preflight.inspect_rows([good, inside], found, template, "Alma")) == {"forged turn": (1,)}


@pytest.mark.parametrize("special", [True, False], ids=["special", "ordinary"])
@pytest.mark.parametrize("template", ROLES, ids=lambda t: t.name)
def test_forged_turns_are_found_whatever_the_tokenizer_says_of_role_tokens(
    tmp_path: Path, template: Template, special: bool
):
    fields = (template.user, template.user_end, template.assistant, template.end)
    markers = list(dict.fromkeys(m for f in fields for m in preflight._markers(f)))
    known = ["<bos>", *markers] if special else ["<bos>"]
    found = tokenizer(tmp_path, known, () if special else tuple(markers))
    turn = f"Tea.{template.user_end}{template.user}More?{template.user_end}{template.assistant}"
    good = row(found, template)
    assert rules(preflight.inspect_rows([good, row(found, template, turn, turn)], found, template, "Alma")) == {}
    # As a tokenizer that is not ours would encode them: content becomes structure.
    forged, lone = found.ids(turn, special=True), found.ids(markers[-1], special=True)
    first, second = [n for n, i in enumerate(good.ids) if i in found.controls()][:2]
    moved = list(good.ids)
    moved[first], moved[second] = moved[second], moved[first]
    rows = [
        good,
        inserted(good, 30, forged),
        inserted(good, -4, forged),
        inserted(good, 30, lone),
        Encoded(moved, good.mask),
    ]
    assert rules(preflight.inspect_rows(rows, found, template, "Alma")) == {"forged turn": (1, 2, 3, 4)}


def inserted(good: Encoded, at: int, ids: list[int]) -> Encoded:
    """The row with these ids in that place, learnt if what follows is."""
    return Encoded(
        [*good.ids[:at], *ids, *good.ids[at:]], [*good.mask[:at], *[good.mask[at]] * len(ids), *good.mask[at:]]
    )


def test_a_token_that_the_tokenizer_does_not_know_is_found(tmp_path: Path):
    found = tokenizer(tmp_path, ["<bos>", "<eos>"])
    report = preflight.inspect_rows([row(found, GEMMA)], found, GEMMA, "Alma")
    messages = [f.message for f in report.errors if f.rule == "unknown token"]
    assert len(messages) == 2
    assert "'<start_of_turn>'" in " ".join(messages)


def test_doubtful_rows_are_warned_about(tmp_path: Path):
    found = tokenizer(tmp_path)
    report = preflight.inspect_rows([row(found, PLAIN, answer="")], found, PLAIN, "Alma", too_long=1)
    assert set(rules(report)) == {"empty answer", "too long"}
    assert report.errors == ()
    assert rules(preflight.inspect_rows([row(found, PLAIN)] * 99, found, PLAIN, "Alma", too_long=1)) == {}


@pytest.mark.parametrize(
    ("needed", "free", "warned"), [(2000, 1000.0, True), (2000, 3000.0, False), (2000, None, False)]
)
def test_memory_is_compared_where_it_is_known(needed: float, free: float | None, warned: bool):
    assert (preflight.check_memory(needed, free) is not None) == warned


def test_what_is_learnt_is_shown_apart(tmp_path: Path):
    found = tokenizer(tmp_path)
    spans = preflight.loss_spans(row(found, GEMMA), found)
    assert [learnt for _, learnt in spans] == [False, True]
    assert spans[1][0] == "A tea of herbs.<end_of_turn>"
    assert spans[0][0].startswith("<bos><start_of_turn>user\nBe kind.")


def context(folder: Path, found: Tokenizer, verbosity: int = 0) -> Context:
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    model = SimpleNamespace(template=PLAIN, tokenizer=lambda: found, folder=lambda: folder)
    run = SimpleNamespace(constitution=SimpleNamespace(assistant=SimpleNamespace(name="Alma")))
    screen = Screen(verbosity)
    recipe = load("quick", ["engine.slots=4"])
    return cast(Context, SimpleNamespace(model=model, run=run, screen=screen, recipe=recipe, speed=lambda: None))


def test_training_is_refused_with_the_row_or_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = tokenizer(tmp_path)
    good = row(found, PLAIN)
    rows = [good, Encoded(good.ids, [False] * len(good.ids))]
    examples = [Example(name, "standard", "What?", "Tea.", "user") for name in ("one", "two")]
    config = load("quick").engrave
    with pytest.raises(UserError, match=r"no loss: 1 of 2 rows .* the first is two.*engrave\.preflight"):
        adapter_training._preflight(context(tmp_path, found), examples, rows, config, [])
    warn = config.model_copy(update={"preflight": "warn"})
    assert adapter_training._preflight(context(tmp_path, found), examples, rows, warn, []).errors
    assert "no loss: 1 of 2 rows" in capsys.readouterr().err


def test_three_rows_are_shown_in_colour_on_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = tokenizer(tmp_path)
    rows = [row(found, PLAIN, answer=f"Tea number {n}.") for n in range(5)]
    examples = [Example(str(n), "standard", "What?", "Tea.", "user") for n in range(5)]
    config = load("quick").engrave
    adapter_training._preflight(context(tmp_path, found), examples, rows, config, [])
    assert "Tea number" not in capsys.readouterr().err
    adapter_training._preflight(context(tmp_path, found, verbosity=1), examples, rows, config, [])
    shown = capsys.readouterr().err
    assert [f"Tea number {n}.<eos>" in shown for n in range(5)] == [True] * 3 + [False] * 2


def test_free_memory_is_a_number_or_unknown():
    free = environment.free_megabytes()
    assert free is None or 0 < free < 1e9
    assert costs.training_megabytes(1000) > 1000
