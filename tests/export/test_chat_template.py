"""The template in Jinja and in Go says what `dialogue.Template` says, whatever the texts in it are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfalign.constitution import Constitution
from selfalign.data.prompt_text import Turn
from selfalign.export import chat_template, go_template
from selfalign.model.dialogue import ROLES, Template, plain

TEMPLATES = [*ROLES, plain("<eos>"), plain("</s>")]
HOSTILE = [
    '"""\nFROM /etc/passwd\nTEMPLATE """', "{{ .System }}", "}}{{ 7 * 7 }}{%- for x in y %}", "'~ namespace() ~'",
    "\\", "\\n'\"", "{#", "#}", "`", "{{-", "-}}", "é 😀 \u2028", "<eos>", "a\r\nb", "\t",
]  # fmt: skip
WORDS = st.lists(st.sampled_from([*HOSTILE, "Hello", " ", "\n", "\n\n"]), min_size=1, max_size=6).map("".join)
LABELS = st.sampled_from(["Alma", "O'Neil", "Dr. Who", "A-B", "Élan"])


def text(words: str) -> str:
    """No template sees what a text begins and ends with: turns are stripped, which Go's templates cannot do."""
    return f"x{words}x"


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: f"{t.name} {t.end}")
@settings(max_examples=30)
@given(system=WORDS, other=st.one_of(st.none(), WORDS), says=st.lists(WORDS, min_size=1, max_size=5), label=LABELS)
def test_both_languages_render_what_the_template_says(
    template: Template, system: str, other: str | None, says: list[str], label: str
) -> None:
    turns = [Turn("assistant" if i % 2 else "user", text(words)) for i, words in enumerate(says)]
    given_system = "" if other is None else text(other)
    wanted = chat_template.text(template, given_system or text(system), turns, label, "<bos>")
    listed = chat_template.messages((given_system, turns))
    source = chat_template.jinja(template, text(system), label, starts=True)
    assert chat_template.render(source, listed, "<bos>") == wanted
    without = chat_template.jinja(template, text(system), label, starts=False)
    assert chat_template.render(without, listed, "<bos>") == wanted.removeprefix("<bos>")
    data = {"System": given_system, "Messages": [{"Role": m["role"], "Content": m["content"]} for m in listed]}
    rendered = go_template.render(chat_template.go(template, text(system), label), data)
    assert rendered == wanted.removeprefix("<bos>")


@given(words=WORDS)
def test_a_text_is_a_literal_and_no_syntax(words: str) -> None:
    for template in TEMPLATES:
        source = chat_template.go(template, words, "Alma")
        assert '"""' not in source and "\n" not in source and source.isascii()
        jinja = chat_template.jinja(template, words, "Alma", starts=True)
        empty = chat_template.jinja(template, "", "Alma", starts=True)
        assert jinja.count("{{") == empty.count("{{") and jinja.count("{%") == empty.count("{%")


def test_jinja_strips_what_a_message_begins_and_ends_with_as_the_template_does() -> None:
    for template in TEMPLATES:
        turns = [Turn("user", "\n hi \n"), Turn("assistant", " yes\n"), Turn("user", "\u00a0why? ")]
        source = chat_template.jinja(template, "Be kind.", "Alma", starts=False)
        wanted = chat_template.text(template, "Be kind.", turns, "Alma")
        assert chat_template.render(source, chat_template.messages(("", turns)), "") == wanted
        blank = [{"role": "system", "content": " \n"}, *chat_template.messages(("", turns))]
        assert chat_template.render(source, blank, "") == wanted


@pytest.mark.parametrize("roles", [["tool"], ["user", "system"], ["system", "system", "user"], ["developer", "user"]])
def test_other_roles_are_refused_aloud(roles: list[str]) -> None:
    source = chat_template.jinja(plain("<eos>"), "Be kind.", "Alma", starts=True)
    with pytest.raises(ValueError, match="user and assistant turns"):
        chat_template.render(source, [{"role": role, "content": "x"} for role in roles], "<bos>")


def test_the_compared_dialogues_are_single_and_multi_turn_and_under_another_system_text(
    default_constitution: Constitution,
) -> None:
    found = chat_template.dialogues(default_constitution)
    assert {(bool(system), len(turns)) for system, turns in found} == {(False, 1), (False, 3), (True, 1), (True, 3)}
    assert all(turns[-1].role == "user" for _, turns in found)
