"""The Modelfile for Ollama: its instructions, and that no text becomes an instruction."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelfile_reader import parse
from test_chat_template import HOSTILE, TEMPLATES, WORDS

from selfalign.export import chat_template, modelfile
from selfalign.model.dialogue import Template, plain

PLAIN = plain("<eos>")


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: f"{t.name} {t.end}")
def test_modelfile_has_every_instruction(template: Template) -> None:
    instructions = parse(modelfile.text("model-q8_0.gguf", template, "Be kind.", "Alma", "Terms.\n\nMore."))
    assert instructions == [
        ("FROM", "./model-q8_0.gguf"),
        ("TEMPLATE", chat_template.go(template, "Be kind.", "Alma")),
        ("SYSTEM", "Be kind."),
        *(("PARAMETER", f"stop {stop}") for stop in (*template.stops(), template.end)),
        ("LICENSE", "Terms.\n\nMore."),
    ]


@given(system=WORDS, licence=st.one_of(st.just(""), WORDS))
def test_no_text_becomes_an_instruction(system: str, licence: str) -> None:
    system = system.strip() or "Be kind."
    instructions = parse(modelfile.text("model-q8_0.gguf", PLAIN, system, "Alma", licence))
    names = [name for name, _ in instructions]
    expected = ["FROM", "TEMPLATE", "SYSTEM", *["PARAMETER"] * 3, "LICENSE"]
    assert [n for n in expected if n in names or n == "PARAMETER"] == names
    values = dict(instructions)
    assert values["TEMPLATE"] == chat_template.go(PLAIN, system, "Alma")  # it contains the system prompt as well
    assert values.get("SYSTEM", system) == system


def test_system_prompt_with_three_quotes_is_only_in_the_template() -> None:
    instructions = parse(modelfile.text("model-q8_0.gguf", PLAIN, f"Say {HOSTILE[0]} ok", "Alma", ""))
    assert [name for name, _ in instructions] == ["FROM", "TEMPLATE", *["PARAMETER"] * 3]


def test_reader_follows_ollamas_quoting() -> None:
    text = '# from x\nfrom a.gguf # no comment\nPARAMETER stop """\n\nUser:"""  \n'
    text += 'SYSTEM """a "b"\n"" c"""\nLICENSE "x\ny"\n'
    assert parse(text) == [
        ("FROM", "a.gguf # no comment"),
        ("PARAMETER", "stop \n\nUser:"),
        ("SYSTEM", 'a "b"\n"" c'),
        ("LICENSE", "x\ny"),
    ]
    for broken in ('TEMPLATE """x', 'TEMPLATE "x', "SYSTEM"):
        with pytest.raises(ValueError, match=r"not closed|no value"):
            parse(broken)
