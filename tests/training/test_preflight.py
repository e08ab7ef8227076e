"""Preflight checks: each planted fault is reported, and valid rows pass."""

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


def row(tok: Tokenizer, template: Template, user: str = "What is it?", answer: str = "A tea of herbs.") -> Encoded:
    return encode_example(tok, template, "Be kind.", user, answer, "Alma")


def rules(report: preflight.Preflight) -> dict[str, tuple[int, ...]]:
    return {f.rule: f.rows for f in report.findings}


@pytest.mark.parametrize("template", [PLAIN, GEMMA], ids=lambda t: t.name)
def test_valid_rows_pass(tmp_path: Path, template: Template):
    tok = tokenizer(tmp_path)
    rows = [row(tok, template), row(tok, template, "<end_of_turn><bos> Say <eos>", "<start_of_turn>user <eos>")]
    report = preflight.inspect_rows(rows, tok, template, "Alma")
    assert report.findings == ()
    assert (report.rows, report.longest) == (2, max(len(r.ids) for r in rows))
    assert report.loss_tokens == sum(sum(r.mask) for r in rows)
    assert "2 rows" in report.text()


def test_row_without_loss_is_an_error(tmp_path: Path):
    tok = tokenizer(tmp_path)
    good = row(tok, PLAIN)
    report = preflight.inspect_rows([good, Encoded(good.ids, [False] * len(good.ids))], tok, PLAIN, "Alma")
    assert rules(report) == {"no loss": (1,)}
    assert report.errors


def test_end_token_outside_the_loss_is_an_error(tmp_path: Path):
    tok = tokenizer(tmp_path)
    good = row(tok, PLAIN)
    masked = Encoded(good.ids, [*good.mask[:-1], False])
    cut = Encoded(good.ids[:-1], good.mask[:-1])
    report = preflight.inspect_rows([masked, good, cut], tok, PLAIN, "Alma")
    assert rules(report)["end not learnt"] == (0, 2)


def test_two_start_tokens_are_an_error(tmp_path: Path):
    tok = tokenizer(tmp_path)
    good = row(tok, PLAIN)
    double = Encoded([good.ids[0], *good.ids], [False, *good.mask])
    assert rules(preflight.inspect_rows([double], tok, PLAIN, "Alma")) == {"double start": (0,)}


def test_start_text_of_two_tokens_is_an_error(tmp_path: Path):
    tok = tokenizer(tmp_path, bos="<bos><bos>")
    assert "double start" in rules(preflight.inspect_rows([], tok, PLAIN, "Alma"))


@pytest.mark.parametrize("template", [PLAIN, GEMMA], ids=lambda t: t.name)
def test_turn_forged_by_text_is_an_error(tmp_path: Path, template: Template):
    tok = tokenizer(tmp_path)
    good = row(tok, template)
    forged = tok.ids("<end_of_turn>", special=True)
    inside = Encoded([*good.ids[:4], *forged, *good.ids[4:]], [*good.mask[:4], False, *good.mask[4:]])
    assert rules(preflight.inspect_rows([good, inside], tok, template, "Alma")) == {"forged turn": (1,)}


@pytest.mark.parametrize("special", [True, False], ids=["special", "ordinary"])
@pytest.mark.parametrize("template", ROLES, ids=lambda t: t.name)
def test_forged_turn_is_an_error_even_with_ordinary_role_tokens(tmp_path: Path, template: Template, special: bool):
    fields = (template.user, template.user_end, template.assistant, template.end)
    markers = list(dict.fromkeys(m for f in fields for m in preflight._markers(f)))
    known = ["<bos>", *markers] if special else ["<bos>"]
    tok = tokenizer(tmp_path, known, () if special else tuple(markers))
    turn = f"Tea.{template.user_end}{template.user}More?{template.user_end}{template.assistant}"
    good = row(tok, template)
    assert rules(preflight.inspect_rows([good, row(tok, template, turn, turn)], tok, template, "Alma")) == {}
    # Encoded as another tokenizer would: content becomes structure.
    forged, lone = tok.ids(turn, special=True), tok.ids(markers[-1], special=True)
    first, second = [n for n, i in enumerate(good.ids) if i in tok.controls()][:2]
    moved = list(good.ids)
    moved[first], moved[second] = moved[second], moved[first]
    rows = [
        good,
        inserted(good, 30, forged),
        inserted(good, -4, forged),
        inserted(good, 30, lone),
        Encoded(moved, good.mask),
    ]
    assert rules(preflight.inspect_rows(rows, tok, template, "Alma")) == {"forged turn": (1, 2, 3, 4)}


def inserted(good: Encoded, at: int, ids: list[int]) -> Encoded:
    """Insert ids into a row; they have loss if the token after them has."""
    return Encoded(
        [*good.ids[:at], *ids, *good.ids[at:]], [*good.mask[:at], *[good.mask[at]] * len(ids), *good.mask[at:]]
    )


def test_unknown_template_token_is_an_error(tmp_path: Path):
    tok = tokenizer(tmp_path, ["<bos>", "<eos>"])
    report = preflight.inspect_rows([row(tok, GEMMA)], tok, GEMMA, "Alma")
    messages = [f.message for f in report.errors if f.rule == "unknown token"]
    assert len(messages) == 2
    assert "'<start_of_turn>'" in " ".join(messages)


def test_empty_and_too_long_rows_give_warnings(tmp_path: Path):
    tok = tokenizer(tmp_path)
    report = preflight.inspect_rows([row(tok, PLAIN, answer="")], tok, PLAIN, "Alma", too_long=1)
    assert set(rules(report)) == {"empty answer", "too long"}
    assert report.errors == ()
    assert rules(preflight.inspect_rows([row(tok, PLAIN)] * 99, tok, PLAIN, "Alma", too_long=1)) == {}
    few = [row(tok, PLAIN)] * 95 + [row(tok, PLAIN, answer="")] * 5
    assert rules(preflight.inspect_rows(few, tok, PLAIN, "Alma")) == {}


@pytest.mark.parametrize(
    ("needed", "free", "warned"), [(2000, 1000.0, True), (2000, 3000.0, False), (2000, None, False)]
)
def test_memory_warning_needs_known_free_memory(needed: float, free: float | None, warned: bool):
    assert (preflight.check_memory(needed, free) is not None) == warned


def test_loss_spans_separate_prompt_and_response(tmp_path: Path):
    tok = tokenizer(tmp_path)
    spans = preflight.loss_spans(row(tok, GEMMA), tok)
    assert [learnt for _, learnt in spans] == [False, True]
    assert spans[1][0] == "A tea of herbs.<end_of_turn>"
    assert spans[0][0].startswith("<bos><start_of_turn>user\nBe kind.")


def context(folder: Path, tok: Tokenizer, verbosity: int = 0) -> Context:
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    model = SimpleNamespace(template=PLAIN, tokenizer=lambda: tok, folder=lambda: folder)
    run = SimpleNamespace(constitution=SimpleNamespace(assistant=SimpleNamespace(name="Alma")))
    screen = Screen(verbosity)
    recipe = load("quick", ["engine.slots=4"])
    return cast(Context, SimpleNamespace(model=model, run=run, screen=screen, recipe=recipe, speed=lambda: None))


def test_errors_refuse_training_or_warn_by_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tok = tokenizer(tmp_path)
    good = row(tok, PLAIN)
    rows = [good, Encoded(good.ids, [False] * len(good.ids))]
    examples = [Example(name, "standard", "What?", "Tea.", "user") for name in ("one", "two")]
    config = load("quick").engrave
    with pytest.raises(UserError, match=r"no loss: 1 of 2 rows .* the first is two.*engrave\.preflight"):
        adapter_training._preflight(context(tmp_path, tok), examples, rows, config, [])
    warn = config.model_copy(update={"preflight": "warn"})
    assert adapter_training._preflight(context(tmp_path, tok), examples, rows, warn, []).errors
    assert "no loss: 1 of 2 rows" in capsys.readouterr().err


def test_verbose_output_shows_three_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tok = tokenizer(tmp_path)
    rows = [row(tok, PLAIN, answer=f"Tea number {n}.") for n in range(5)]
    examples = [Example(str(n), "standard", "What?", "Tea.", "user") for n in range(5)]
    config = load("quick").engrave
    adapter_training._preflight(context(tmp_path, tok), examples, rows, config, [])
    assert "Tea number" not in capsys.readouterr().err
    adapter_training._preflight(context(tmp_path, tok, verbosity=1), examples, rows, config, [])
    output = capsys.readouterr().err
    assert [f"Tea number {n}.<eos>" in output for n in range(5)] == [True] * 3 + [False] * 2


def test_free_memory_is_a_number_or_unknown():
    free = environment.free_megabytes()
    assert free is None or 0 < free < 1e9
    assert costs.training_megabytes(1000) > 1000
