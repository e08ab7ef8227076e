"""The Jinja and Go chat templates render what `dialogue.Template` renders, for any text."""

from __future__ import annotations

import codecs
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfalign.constitution import Constitution
from selfalign.data.prompt_text import Turn
from selfalign.export import chat_template
from selfalign.model.dialogue import ROLES, Template, plain

TEMPLATES = [*ROLES, plain("<eos>"), plain("</s>")]
HOSTILE = [
    '"""\nFROM /etc/passwd\nTEMPLATE """', "{{ .System }}", "}}{{ 7 * 7 }}{%- for x in y %}", "'~ namespace() ~'",
    "\\", "\\n'\"", "{#", "#}", "`", "{{-", "-}}", "é 😀 \u2028", "<eos>", "a\r\nb", "\t",
]  # fmt: skip
WORDS = st.lists(st.sampled_from([*HOSTILE, "Hello", " ", "\n", "\n\n"]), min_size=1, max_size=6).map("".join)
LABELS = st.sampled_from(["Alma", "O'Neil", "Dr. Who", "A-B", "Élan"])


def text(words: str) -> str:
    """Return a text that does not begin or end with white space, which every template strips."""
    return f"x{words}x"


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: f"{t.name} {t.end}")
@settings(max_examples=30)
@given(system=WORDS, other=st.one_of(st.none(), WORDS), says=st.lists(WORDS, min_size=1, max_size=5), label=LABELS)
def test_jinja_renders_the_training_text(
    template: Template, system: str, other: str | None, says: list[str], label: str
) -> None:
    turns = [Turn("assistant" if i % 2 else "user", text(words)) for i, words in enumerate(says)]
    system_message = "" if other is None else text(other)
    expected = chat_template.text(template, system_message or text(system), turns, label, "<bos>")
    messages = chat_template.messages((system_message, turns))
    source = chat_template.jinja(template, text(system), label, starts_with_bos=True)
    assert chat_template.render(source, messages, "<bos>") == expected
    without = chat_template.jinja(template, text(system), label, starts_with_bos=False)
    assert chat_template.render(without, messages, "<bos>") == expected.removeprefix("<bos>")


GO_CHATML = r"""
{{ $lead := .System }}{{ if not $lead }}{{ $lead = "Be kind." }}{{ end }}
{{ range .Messages }}
{{ if eq .Role "user" }}{{ "<|im_start|>user\u000a" }}
{{ if $lead }}{{ $lead }}{{ "\u000a\u000a" }}{{ end }}{{ $lead = "" }}
{{ .Content }}{{ "<|im_end|>\u000a" }}
{{ else if eq .Role "assistant" }}{{ "<|im_start|>assistant\u000a" }}
{{ .Content }}{{ "<|im_end|>" }}{{ "\u000a" }}
{{ end }}{{ end }}{{ "<|im_start|>assistant\u000a" }}
"""
GO_PLAIN = r"""
{{ $lead := .System }}{{ if not $lead }}{{ $lead = "Be kind." }}{{ end }}
{{ if $lead }}{{ $lead }}{{ "\u000a\u000a" }}{{ end }}{{ $lead = "" }}
{{ range .Messages }}
{{ if eq .Role "user" }}{{ "User: " }}
{{ .Content }}{{ "\u000a\u000a" }}
{{ else if eq .Role "assistant" }}{{ "Alma:" }}{{ " " }}
{{ .Content }}{{ "<eos>" }}{{ "\u000a\u000a" }}
{{ end }}{{ end }}{{ "Alma:" }}
"""


@pytest.mark.parametrize(("template", "expected"), [(ROLES[1], GO_CHATML), (plain("<eos>"), GO_PLAIN)])
def test_go_template_is_the_expected_text(template: Template, expected: str) -> None:
    assert chat_template.go(template, "Be kind.", "Alma") == expected.replace("\n", "")


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: f"{t.name} {t.end}")
@given(words=WORDS, label=LABELS)
def test_go_template_keeps_its_structure_for_any_text(template: Template, words: str, label: str) -> None:
    literal = re.compile(r'"(?:[^"\\]|\\.)*"')
    source = chat_template.go(template, words, label)
    assert literal.sub('""', source) == literal.sub('""', chat_template.go(template, "Be kind.", "Alma"))
    assert source.isascii() and "\n" not in source and '"""' not in source
    texts = [codecs.decode(match[0][1:-1], "unicode_escape") for match in literal.finditer(source)]
    assert texts[0] == words and texts[-1] == template.assistant.format(name=label)


@given(words=WORDS)
def test_jinja_template_has_no_syntax_from_texts(words: str) -> None:
    for template in TEMPLATES:
        jinja = chat_template.jinja(template, words, "Alma", starts_with_bos=True)
        empty = chat_template.jinja(template, "", "Alma", starts_with_bos=True)
        assert jinja.count("{{") == empty.count("{{") and jinja.count("{%") == empty.count("{%")


def test_jinja_strips_messages_like_the_template() -> None:
    for template in TEMPLATES:
        turns = [Turn("user", "\n hi \n"), Turn("assistant", " yes\n"), Turn("user", "\u00a0why? ")]
        source = chat_template.jinja(template, "Be kind.", "Alma", starts_with_bos=False)
        expected = chat_template.text(template, "Be kind.", turns, "Alma")
        assert chat_template.render(source, chat_template.messages(("", turns)), "") == expected
        blank = [{"role": "system", "content": " \n"}, *chat_template.messages(("", turns))]
        assert chat_template.render(source, blank, "") == expected


@pytest.mark.parametrize("roles", [["tool"], ["user", "system"], ["system", "system", "user"], ["developer", "user"]])
def test_jinja_raises_for_other_roles(roles: list[str]) -> None:
    source = chat_template.jinja(plain("<eos>"), "Be kind.", "Alma", starts_with_bos=True)
    with pytest.raises(ValueError, match="only user and assistant messages"):
        chat_template.render(source, [{"role": role, "content": "x"} for role in roles], "<bos>")


def test_dialogues_cover_turns_and_system_prompts(
    default_constitution: Constitution,
) -> None:
    dialogues = chat_template.dialogues(default_constitution)
    assert {(bool(system), len(turns)) for system, turns in dialogues} == {(False, 1), (False, 3), (True, 1), (True, 3)}
    assert all(turns[-1].role == "user" for _, turns in dialogues)
