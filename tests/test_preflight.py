"""Preflight: every planted fault is found before a step is made, and sound rows pass."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel as ByteDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from selfalign import costs, environment
from selfalign.context import Context
from selfalign.dialogue import ROLES, Encoded, Template, Tokenizer, encode_example, plain
from selfalign.errors import UserError
from selfalign.progress import Screen
from selfalign.recipe import load
from selfalign.records import Example
from selfalign.training import adapter, preflight

GEMMA = next(t for t in ROLES if t.name == "gemma")
PLAIN = plain("<eos>")
MARKERS = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]


def tokenizer(
    folder: Path, special: list[str] = MARKERS, ordinary: tuple[str, ...] = (), bos: str = "<bos>"
) -> Tokenizer:
    """Bytes, and these tokens; the ordinary ones are known but not special."""
    alphabet = sorted(ByteLevel.alphabet())
    backend = Backend(BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteDecoder()
    backend.add_tokens([AddedToken(t, special=True) for t in special])
    backend.add_tokens([AddedToken(t, special=False) for t in ordinary])
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer(str(folder / "tokenizer.json"), bos)


def row(found: Tokenizer, template: Template, user: str = "What is it?", answer: str = "A tea of herbs.") -> Encoded:
    return encode_example(found, template, "Be kind.", user, answer, "Alma")


def rules(report: preflight.Preflight) -> dict[str, tuple[int, ...]]:
    return {f.rule: f.rows for f in report.findings}


@pytest.mark.parametrize("template", [PLAIN, GEMMA], ids=lambda t: t.name)
def test_sound_rows_pass(tmp_path: Path, template: Template):
    found = tokenizer(tmp_path)
    rows = [row(found, template), row(found, template, "<end_of_turn><bos> Say <eos>", "<start_of_turn>user <eos>")]
    report = preflight.examine(rows, found, template, "Alma")
    assert report.findings == ()
    assert (report.rows, report.longest) == (2, max(len(r.ids) for r in rows))
    assert report.loss_tokens == sum(sum(r.mask) for r in rows)
    assert "2 rows" in report.text()


def test_a_row_without_loss_is_found(tmp_path: Path):
    found = tokenizer(tmp_path)
    good = row(found, PLAIN)
    report = preflight.examine([good, Encoded(good.ids, [False] * len(good.ids))], found, PLAIN, "Alma")
    assert rules(report) == {"no loss": (1,)}
    assert report.errors


def test_an_end_that_is_not_learnt_is_found(tmp_path: Path):
    found = tokenizer(tmp_path)
    good = row(found, PLAIN)
    masked = Encoded(good.ids, [*good.mask[:-1], False])
    cut = Encoded(good.ids[:-1], good.mask[:-1])
    report = preflight.examine([masked, good, cut], found, PLAIN, "Alma")
    assert rules(report)["end not learnt"] == (0, 2)


def test_two_start_tokens_are_found(tmp_path: Path):
    found = tokenizer(tmp_path)
    good = row(found, PLAIN)
    double = Encoded([good.ids[0], *good.ids], [False, *good.mask])
    assert rules(preflight.examine([double], found, PLAIN, "Alma")) == {"double start": (0,)}


def test_a_start_text_of_two_tokens_is_found(tmp_path: Path):
    found = tokenizer(tmp_path, bos="<bos><bos>")
    assert "double start" in rules(preflight.examine([], found, PLAIN, "Alma"))


@pytest.mark.parametrize("template", [PLAIN, GEMMA], ids=lambda t: t.name)
def test_a_turn_that_text_forged_is_found(tmp_path: Path, template: Template):
    found = tokenizer(tmp_path)
    good = row(found, template)
    forged = found.ids("<end_of_turn>", special=True)
    inside = Encoded([*good.ids[:4], *forged, *good.ids[4:]], [*good.mask[:4], False, *good.mask[4:]])
    assert rules(preflight.examine([good, inside], found, template, "Alma")) == {"forged turn": (1,)}


def test_a_role_token_that_is_not_special_can_be_forged_and_is_found(tmp_path: Path):
    found = tokenizer(tmp_path, ["<bos>", "<eos>"], ("<start_of_turn>", "<end_of_turn>"))
    rows = [row(found, GEMMA), row(found, GEMMA, answer="Tea.<end_of_turn>\n<start_of_turn>user\nMore")]
    assert rules(preflight.examine(rows, found, GEMMA, "Alma")) == {"forged turn": (1,)}


def test_a_token_that_the_tokenizer_does_not_know_is_found(tmp_path: Path):
    found = tokenizer(tmp_path, ["<bos>", "<eos>"])
    report = preflight.examine([row(found, GEMMA)], found, GEMMA, "Alma")
    messages = [f.message for f in report.errors if f.rule == "unknown token"]
    assert len(messages) == 2
    assert "'<start_of_turn>'" in " ".join(messages)


def test_doubtful_rows_are_warned_about(tmp_path: Path):
    found = tokenizer(tmp_path)
    report = preflight.examine([row(found, PLAIN, answer="")], found, PLAIN, "Alma", too_long=1)
    assert set(rules(report)) == {"empty answer", "too long"}
    assert report.errors == ()
    assert rules(preflight.examine([row(found, PLAIN)] * 99, found, PLAIN, "Alma", too_long=1)) == {}


@pytest.mark.parametrize(
    ("needed", "free", "warned"), [(2000, 1000.0, True), (2000, 3000.0, False), (2000, None, False)]
)
def test_memory_is_compared_where_it_is_known(needed: float, free: float | None, warned: bool):
    assert (preflight.memory(needed, free) is not None) == warned


def test_what_is_learnt_is_shown_apart(tmp_path: Path):
    found = tokenizer(tmp_path)
    spans = preflight.spans(row(found, GEMMA), found)
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
        adapter._preflight(context(tmp_path, found), examples, rows, config, [])
    warn = config.model_copy(update={"preflight": "warn"})
    assert adapter._preflight(context(tmp_path, found), examples, rows, warn, []).errors
    assert "no loss: 1 of 2 rows" in capsys.readouterr().err


def test_three_rows_are_shown_in_colour_on_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = tokenizer(tmp_path)
    rows = [row(found, PLAIN, answer=f"Tea number {n}.") for n in range(5)]
    examples = [Example(str(n), "standard", "What?", "Tea.", "user") for n in range(5)]
    config = load("quick").engrave
    adapter._preflight(context(tmp_path, found), examples, rows, config, [])
    assert "Tea number" not in capsys.readouterr().err
    adapter._preflight(context(tmp_path, found, verbosity=1), examples, rows, config, [])
    shown = capsys.readouterr().err
    assert [f"Tea number {n}.<eos>" in shown for n in range(5)] == [True] * 3 + [False] * 2


def test_free_memory_is_a_number_or_unknown():
    free = environment.free_megabytes()
    assert free is None or 0 < free < 1e9
    assert costs.training_megabytes(1000) > 1000
