"""Split a transcript, a dialogue written as one text, at the markers of its turns."""

from __future__ import annotations

import re

_FAMILIES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?:^|\n\n)(?:(?P<user>Human)|(?P<assistant>Assistant)):",
        r"### ?(?:(?P<user>Human|User)|(?P<assistant>Assistant)|(?P<system>System)):",
        r"### ?(?:(?P<user>Instruction|Input)|(?P<assistant>Response|Output)):",
        r"\[\|(?:(?P<user>Human)|(?P<assistant>AI))\|\]",
        r"<\|im_start\|>[ \n]?(?:(?P<user>user)|(?P<assistant>assistant)|(?P<system>system)|(?P<tool>tool))(?:\n|$)",
        r"<\|start_header_id\|>(?:(?P<user>user)|(?P<assistant>assistant)|(?P<system>system)|(?P<tool>ipython))"
        r"<\|end_header_id\|>",
        r"<start_of_turn>(?:(?P<user>user)|(?P<assistant>model))(?:\n|$)",
        r"<\|(?:(?P<user>user|prompter)|(?P<assistant>assistant)|(?P<system>system))\|>",
        r"<(?:(?P<user>human)|(?P<assistant>bot))>:",
        r"(?P<user>\[INST\])|(?P<assistant>\[/INST\])",
        r"(?:^|\n)(?:(?P<user>USER)|(?P<assistant>ASSISTANT)|(?P<system>SYSTEM)|(?P<tool>FUNCTION RESPONSE)):",
    )
)
"""One pattern per way of writing turns; the name of the group that matches is the role."""
_END_TOKENS = (
    "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>", "</s>", "<s>", "<eos>"
)  # fmt: skip
_FIRST_TOKENS = ("<s>", "<bos>", "<|begin_of_text|>")
_ALPACA = "Below is an instruction that describes a task"
"""The beginning of Alpaca's prompt."""
_SYSTEM = re.compile(r"<<SYS>>(.*?)<</SYS>>", re.DOTALL)
"""The system text in a user turn of Llama 2."""


def turns(text: str, preamble: bool = True) -> list[dict[str, str]] | None:
    """Return the turns of a transcript as {role, content}, or None if the text is not one.

    A text is a transcript if it has turns of the user and of the assistant in one way of writing them.

    Args:
        preamble: whether text may come before the first turn; it is returned as a system turn.
    """
    found: list[re.Match[str]] | None = None
    text = text.strip()
    for family in _FAMILIES:
        if not preamble and not family.match(text):
            continue
        matches = list(family.finditer(text))
        roles = {match.lastgroup for match in matches}
        if {"user", "assistant"} <= roles and (found is None or matches[0].start() < found[0].start()):
            found = matches
    if found is None:
        return None
    ends = [*(match.start() for match in found[1:]), len(text)]
    before = text[: found[0].start()].strip()
    for token in _FIRST_TOKENS:
        before = before.removeprefix(token)
    result = [("system", before)]
    for match, end in zip(found, ends, strict=True):
        content = text[match.end() : end]
        if system := _SYSTEM.search(content):
            result.append(("system", system[1].strip()))
            content = content[system.end() :]
        result.append((match.lastgroup or "", _content(content)))
    return [{"role": role, "content": content} for role, content in result if content or role != "system"]


def ends_open(text: str) -> bool:
    """Return whether the text is a transcript in plain words that ends where the assistant must respond."""
    start = text.lstrip()
    found = None if start.startswith("<") else turns(text, preamble=start.startswith(_ALPACA))
    return found is not None and found[-1] == {"role": "assistant", "content": ""}


def _content(text: str) -> str:
    text = text.strip()
    while token := next((token for token in _END_TOKENS if text.endswith(token)), None):
        text = text.removesuffix(token).rstrip()
    return text
