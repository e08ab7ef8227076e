"""Write the dialogue template as a chat template: in Jinja (transformers, llama.cpp, vLLM) and in Go (Ollama).

Both render exactly what `dialogue.Template.prompt` renders, with the standard system prompt as the default. Texts of
the template, the constitution and the label are written as string literals and cannot become template syntax.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources

from selfalign.constitution import Constitution
from selfalign.data.prompt_text import BOS, Turn
from selfalign.model.dialogue import Template

Dialogue = tuple[str, list[Turn]]
"""A system prompt (if empty, the template's default) and turns; the last turn is the user's."""

_JINJA_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
"""Escapes that both Jinja and llama.cpp support."""
_GO_PLAIN = re.compile(r"[\w .,;:!?()\[\]<>|/@#$%^&*+=~-]", re.ASCII)
"""Characters that a Go literal contains unescaped; braces, quotes and all others are escaped."""
_SEPARATOR = "\n\n"
"""The text between the system prompt and the first turn, as in `Template.prompt`."""


def jinja(template: Template, system: str, label: str, starts_with_bos: bool) -> str:
    """Return the Jinja template for Hugging Face tokenizers and GGUF metadata.

    A system message at the start replaces the standard system prompt. The template raises an error for a later system
    message and for any other role.

    Args:
        system: the standard system prompt.
        label: the assistant's name, for plain-text turns.
        starts_with_bos: whether the tokenizer adds a start token; llama.cpp removes a duplicate.
    """
    # Templates with role tokens have no system turn: the system prompt is part of the first user turn.
    lead = "{{- ns.lead }}{%- set ns.lead = '' %}"
    texts = {
        "SYSTEM": system, "SEPARATOR": _SEPARATOR, "USER": template.user, "USER_END": template.user_end,
        "ASSISTANT": template.assistant.format(name=label), "SPACE": template.space, "END": template.end,
        "AFTER": template.after,
    }  # fmt: skip
    values = {name: _jinja(text) for name, text in texts.items()}
    values["BOS"] = "{{- bos_token }}" if starts_with_bos else ""
    values |= {"FIRST": "", "IN_TURN": lead} if template.control else {"FIRST": lead, "IN_TURN": ""}
    source = (resources.files("selfalign") / "assets/chat_template.jinja").read_text("utf-8")
    filled_in = re.sub("@([A-Z_]+)@", lambda name: values[name[1]], source)
    return "\n".join(line for line in filled_in.split("\n") if line)


def _jinja(text: str) -> str:
    """Return the text as a Jinja literal. Adjacent braces are split, so no parser can find a delimiter."""
    escaped = "".join(_JINJA_ESCAPES.get(c, c) for c in text)
    return "'" + re.sub(r"(?<=[{}%#])(?=[{}%#])", "' ~ '", escaped) + "'"


def go(template: Template, system: str, label: str) -> str:
    """Return the template for Ollama (Go's text/template).

    Ollama adds the start token itself. Go's templates cannot strip the white space around a message.

    Args:
        system: used if neither the Modelfile's SYSTEM nor the client gives a system prompt.
    """
    assistant = _go(template.assistant.format(name=label))
    lead = "{{ if $lead }}{{ $lead }}" + _go(_SEPARATOR) + '{{ end }}{{ $lead = "" }}'
    return "".join(
        [
            "{{ $lead := .System }}{{ if not $lead }}{{ $lead = " + _go_literal(system) + " }}{{ end }}",
            "" if template.control else lead,
            '{{ range .Messages }}{{ if eq .Role "user" }}',
            _go(template.user),
            lead if template.control else "",
            "{{ .Content }}" + _go(template.user_end),
            '{{ else if eq .Role "assistant" }}',
            assistant + _go(template.space) + "{{ .Content }}" + _go(template.end) + _go(template.after),
            "{{ end }}{{ end }}" + assistant,
        ]
    )


def _go(text: str) -> str:
    return f"{{{{ {_go_literal(text)} }}}}" if text else ""


def _go_literal(text: str) -> str:
    """Return the text as a Go literal in ASCII, which can end neither the literal nor a quoted value of a Modelfile."""
    return '"' + "".join(c if _GO_PLAIN.fullmatch(c) else _go_escape(c) for c in text) + '"'


def _go_escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def text(template: Template, system: str, turns: Sequence[Turn], label: str, bos: str = "") -> str:
    """Return the pieces of `Template.prompt` as one string."""
    return "".join(bos if piece is BOS else str(piece) for piece in template.prompt(system, turns, label))


def render(source: str, messages: list[dict[str, str]], bos: str) -> str:
    """Render a Jinja chat template in the same environment as transformers."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise
    return environment.from_string(source).render(messages=messages, bos_token=bos, add_generation_prompt=True)


def _raise(message: str) -> None:
    raise ValueError(message)


def messages(dialogue: Dialogue) -> list[dict[str, str]]:
    """Return the dialogue as a list of chat messages."""
    system, turns = dialogue
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *({"role": t.role, "content": t.text} for t in turns)]


def dialogues(constitution: Constitution) -> list[Dialogue]:
    """Return the test dialogues: one turn and several turns, under the standard and another system prompt."""
    first, last = constitution.exemplars[0], constitution.exemplars[-1]
    short = [Turn("user", first.user.strip())]
    long = [*short, Turn("assistant", first.answer.strip()), Turn("user", last.user.strip())]
    other = constitution.system_prompt("concise")
    return [("", short), ("", long), (other, short), (other, long)]
