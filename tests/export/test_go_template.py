"""The known part of Go's templates: what it renders, and that everything else is an error."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import hang_guard
from selfalign.export.go_template import GoTemplateError, parse, render

DATA: dict[str, Any] = {"System": "s", "Empty": "", "Messages": [{"Role": "user", "Content": "c{{ }}"}, {"Role": "x"}]}


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("plain }text", "plain }text"),
        ('{{ "a\\u007b\\n\\"\\\\" }}', 'a{\n"\\'),
        ("a  {{- .System -}}  b", "asb"),
        ("{{ if .Empty }}1{{ else if .System }}2{{ else }}3{{ end }}", "2"),
        ("{{ if not .System }}1{{ else }}3{{ end }}", "3"),
        ('{{ range .Messages }}{{ if eq .Role "user" }}{{ .Content }}{{ else }}-{{ end }}{{ end }}', "c{{ }}-"),
        ('{{ $a := "x" }}{{ range .Messages }}{{ $a }}{{ $a = "" }}{{ end }}{{ $a }}', "x"),
        ("{{ if and .System .Empty }}1{{ end }}{{ if or .Empty .System }}2{{ end }}", "2"),
        ('{{ if ne .System "t" }}{{ $.System }}{{ end }}', "s"),
    ],
)
def test_what_it_renders(source: str, wanted: str) -> None:
    assert render(source, DATA) == wanted


@pytest.mark.parametrize(
    "source",
    [
        "{{ .System", "}}", '{{ "a }}', "{{ }}", "{{ end }}", "{{ else }}", "{{ if .A }}", "{{ range .A }}{{ else }}",
        "{{ template .A }}", "{{ printf .A }}", "{{ eq .A }}", "{{ .A .B }}", "{{ if }}{{ end }}", '{{ "\\q" }}',
        "{{ if .A }}{{ else foo }}{{ end }}", "{{ $a := }}", "{{ {{ .A }} }}", "{{ define }}", "{{ 5 }}",
    ],
)  # fmt: skip
def test_everything_else_is_an_error(source: str) -> None:
    with pytest.raises(GoTemplateError):
        parse(source)


@pytest.mark.parametrize("source", ["{{ .Nothing }}", "{{ $b }}", "{{ .System.More }}"])
def test_what_is_not_given_is_an_error(source: str) -> None:
    with pytest.raises(GoTemplateError):
        render(source, DATA)


@given(st.text(alphabet='{}"\\ -.$=:()abirnfe\n', max_size=60))
def test_any_text_is_read_or_refused(source: str) -> None:
    with contextlib.suppress(GoTemplateError):
        parse(source)


def test_long_texts_are_read_in_time() -> None:
    with hang_guard():
        for source in ("{{ " * 3000, '{{ "' + 'a"' * 5000, '{{ "' + "\\" * 9000, "{{ " + "}" * 5000, "{{ .A }}" * 3000):
            with contextlib.suppress(GoTemplateError):
                parse(source)
