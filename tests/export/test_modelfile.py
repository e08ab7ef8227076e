"""Ollama's Modelfile: its form is checked, its template says what training saw, and no text breaks out of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_chat_template import HOSTILE, TEMPLATES, WORDS

from selfalign.constitution import Constitution
from selfalign.export import chat_template, modelfile
from selfalign.model.dialogue import Template, plain

PLAIN = plain("<eos>")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model-q8_0.gguf").write_bytes(b"GGUF")
    return tmp_path


def written(folder: Path, template: Template, system: str, licence: str) -> Path:
    path = folder / modelfile.NAME
    path.write_text(modelfile.text("model-q8_0.gguf", template, system, "Alma", licence), "utf-8")
    return path


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: f"{t.name} {t.end}")
def test_it_holds_what_ollama_needs(folder: Path, template: Template, default_constitution: Constitution) -> None:
    system = default_constitution.system_prompt("standard")
    path = written(folder, template, system, "Terms.\n\nMore.")
    assert modelfile.check_modelfile(path) == []
    found = modelfile.parse(path.read_text("utf-8"))
    assert [name for name, _ in found].count("PARAMETER") == len(template.stops()) + 1
    stops = [value.partition(" ")[2] for name, value in found if name == "PARAMETER"]
    assert stops == [*template.stops(), template.end]
    said = dict(found)
    assert said["FROM"] == "./model-q8_0.gguf" and said["SYSTEM"] == system and said["LICENSE"] == "Terms.\n\nMore."
    dialogues = chat_template.dialogues(default_constitution)
    assert modelfile.renders(path, template, system, "Alma", dialogues)
    assert not modelfile.renders(path, template, system, "Alan", dialogues) or template.control
    assert not modelfile.renders(path, TEMPLATES[TEMPLATES.index(template) - 1], system, "Alma", dialogues)


@given(system=WORDS, licence=st.one_of(st.just(""), WORDS))
def test_no_text_breaks_out(
    tmp_path_factory: pytest.TempPathFactory, default_constitution: Constitution, system: str, licence: str
) -> None:
    folder = tmp_path_factory.mktemp("m")
    (folder / "model-q8_0.gguf").write_bytes(b"GGUF")
    system = system.strip() or "Be kind."
    path = written(folder, PLAIN, system, licence)
    assert modelfile.check_modelfile(path) == []
    names = [name for name, _ in modelfile.parse(path.read_text("utf-8"))]
    allowed = ["FROM", "TEMPLATE", "SYSTEM", *["PARAMETER"] * 3, "LICENSE"]
    assert [n for n in allowed if n in names or n == "PARAMETER"] == names
    # Whether SYSTEM can hold the prompt or not, the template says it.
    assert modelfile.renders(path, PLAIN, system, "Alma", chat_template.dialogues(default_constitution))


def test_a_prompt_with_three_quotes_stands_in_the_template_alone(folder: Path) -> None:
    path = written(folder, PLAIN, f"Say {HOSTILE[0]} ok", "")
    found = modelfile.parse(path.read_text("utf-8"))
    assert [name for name, _ in found] == ["FROM", "TEMPLATE", *["PARAMETER"] * 3]
    assert modelfile.check_modelfile(path) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('TEMPLATE """x"""', "one FROM"),
        ("FROM ./model-q8_0.gguf", "one TEMPLATE"),
        ('FROM ./other.gguf\nTEMPLATE """x"""', "'./other.gguf', which is not there"),
        ('FROM ./model-q8_0.gguf\nTEMPLATE """x', "not closed"),
        ('FROM ./model-q8_0.gguf\nTEMPLATE "x', "not closed"),
        ('FROM ./model-q8_0.gguf\nTEMPLATE """x"""\nRUN ls', "'RUN' is not known"),
        ('FROM ./model-q8_0.gguf\nTEMPLATE """x"""\nPARAMETER stopp "a"', "'stopp' is not known"),
        ('FROM ./model-q8_0.gguf\nTEMPLATE """{{ .System """', "not closed"),
        ('FROM ./model-q8_0.gguf\nTEMPLATE """{{ call .System }}"""', "not known"),
        ('FROM ./model-q8_0.gguf\nTEMPLATE """x"""\nSYSTEM', "no value"),
        ('FROM ./model-q8_0.gguf\nFROM ./model-q8_0.gguf\nTEMPLATE """x"""', "one FROM, and there are 2"),
    ],
)
def test_what_is_wrong_with_the_form_is_said(folder: Path, text: str, said: str) -> None:
    path = folder / modelfile.NAME
    path.write_text(text)
    assert said in " ".join(modelfile.check_modelfile(path))


def test_it_is_read_as_ollama_reads_it() -> None:
    text = '# from x\nfrom a.gguf # no comment\nPARAMETER stop """\n\nUser:"""  \n'
    text += 'SYSTEM """a "b"\n"" c"""\nLICENSE "x\ny"\n'
    assert modelfile.parse(text) == [
        ("FROM", "a.gguf # no comment"),
        ("PARAMETER", "stop \n\nUser:"),
        ("SYSTEM", 'a "b"\n"" c'),
        ("LICENSE", "x\ny"),
    ]
