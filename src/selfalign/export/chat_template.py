"""The dialogue template in the languages that others read: Jinja (transformers, llama.cpp, vLLM) and Go (Ollama).

Both render exactly what `dialogue.Template.prompt` does, with the standard system prompt where no system text is
given. Every text of template, constitution and label lands as a string literal, so that none of it can become syntax.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from selfalign.constitution import Constitution
from selfalign.data.prompt_text import BOS, Turn
from selfalign.model.dialogue import Template

Dialogue = tuple[str, list[Turn]]
"""A system text (empty: the template's own) and turns, the last of which is the user's."""

_JINJA_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
"""Those that Python's Jinja and llama.cpp's both know."""
_GO_PLAIN = re.compile(r"[\w .,;:!?()\[\]<>|/@#$%^&*+=~-]", re.ASCII)
"""Characters that stand for themselves in a Go literal here; braces, quotes and all others are escaped."""


def jinja(template: Template, system: str, label: str, starts: bool) -> str:
    """The template for Hugging Face tokenizers and GGUF metadata.

    A system message in front replaces the standard prompt; any other role, or one in the middle, is refused aloud.

    Args:
        system: the standard system prompt.
        label: the assistant's name, for plain-text turns.
        starts: whether the tokenizer begins texts with its start token (llama.cpp takes a doubled one away).
    """
    assistant = _jinja(template.assistant.format(name=label))
    # Plain-text turns begin with the prompt; role templates have no system turn: it opens the first user turn.
    lead = "{{- ns.lead }}{%- set ns.lead = '' %}"
    lines = [
        f"{{%- set ns = namespace(lead={_jinja(system)}) %}}",
        "{%- if messages and messages[0]['role'] == 'system' and messages[0]['content'] | trim %}",
        "{%- set ns.lead = messages[0]['content'] | trim %}",
        "{%- endif %}",
        f"{{%- set ns.lead = ns.lead ~ {_jinja(_LEAD)} %}}",
        "{{- bos_token }}" if starts else "",
        "" if template.control else lead,
        "{%- for message in messages %}",
        "{%- if message['role'] == 'user' %}",
        f"{{{{- {_jinja(template.user)} }}}}{lead if template.control else ''}",
        f"{{{{- message['content'] | trim }}}}{{{{- {_jinja(template.user_end)} }}}}",
        "{%- elif message['role'] == 'assistant' %}",
        f"{{{{- {assistant} }}}}{{{{- {_jinja(template.space)} }}}}{{{{- message['content'] | trim }}}}",
        f"{{{{- {_jinja(template.end)} }}}}{{{{- {_jinja(template.after)} }}}}",
        "{%- elif not (message['role'] == 'system' and loop.first) %}",
        "{{- raise_exception('known are user and assistant turns, and a system text before them') }}",
        "{%- endif %}",
        "{%- endfor %}",
        f"{{%- if add_generation_prompt %}}{{{{- {assistant} }}}}{{%- endif %}}",
    ]
    return "\n".join(line for line in lines if line)


_LEAD = "\n\n"
"""Between the system prompt and what follows it, as in `Template.prompt`."""


def _jinja(text: str) -> str:
    """The text as a Jinja literal; braces are kept apart, so that no reader sees a delimiter."""
    escaped = "".join(_JINJA_ESCAPES.get(c, c) for c in text)
    return "'" + re.sub(r"(?<=[{}%#])(?=[{}%#])", "' ~ '", escaped) + "'"


def go(template: Template, system: str, label: str) -> str:
    """The template for Ollama (Go's text/template).

    Ollama puts the start token itself; Go's templates cannot strip what a message begins and ends with.

    Args:
        system: rendered where neither the Modelfile's SYSTEM nor the client gives a system text.
    """
    assistant = _go(template.assistant.format(name=label))
    lead = "{{ if $lead }}{{ $lead }}" + _go(_LEAD) + '{{ end }}{{ $lead = "" }}'
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
    """The text as a Go string literal of harmless ASCII: neither Go nor a Modelfile's quotes can be broken out of."""
    return '"' + "".join(c if _GO_PLAIN.fullmatch(c) else _go_escape(c) for c in text) + '"'


def _go_escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def text(template: Template, system: str, turns: Sequence[Turn], label: str, bos: str = "") -> str:
    """What `Template.prompt` says as one text."""
    return "".join(bos if piece is BOS else str(piece) for piece in template.prompt(system, turns, label))


def render(source: str, messages: list[dict[str, str]], bos: str) -> str:
    """A Jinja chat template's text, in an environment like transformers' own."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(source).render(messages=messages, bos_token=bos, add_generation_prompt=True)


def _refuse(message: str) -> None:
    raise ValueError(message)


def messages(dialogue: Dialogue) -> list[dict[str, str]]:
    """The dialogue as chat interfaces take it."""
    system, turns = dialogue
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *({"role": t.role, "content": t.text} for t in turns)]


def dialogues(constitution: Constitution) -> list[Dialogue]:
    """What is compared: one turn, several turns, and both under another system text."""
    shown = constitution.exemplars
    first, last = shown[0], shown[-1]
    short = [Turn("user", first.user.strip())]
    long = [*short, Turn("assistant", first.answer.strip()), Turn("user", last.user.strip())]
    other = constitution.system_prompt("concise")
    return [("", short), ("", long), (other, short), (other, long)]
