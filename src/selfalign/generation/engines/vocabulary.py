"""Whether an engine means the same tokens by the same ids, before it is given any."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from selfalign.model.dialogue import Tokenizer

TEXT = (
    "It is 2024, isn't it? We've 12,345 apples (3.14 each) and <b>no</b> pears.\n\n1. One\n2. Two\n"
    "\tdef f(x): return x**2 # ok\n"
    "Größe, naïve café, Łódź; Привет, мир! Γειά σου. שלום עולם. مرحبا بالعالم. 日本語のテキスト 中文 한국어 🙂👩‍👧 ∑≠½…"
)
_CONTROLS = 8
"""Control tokens from each end of the vocabulary."""


def difference(tokenizer: Tokenizer, detokenize: Callable[[Sequence[int]], str]) -> str:
    """What the other side reads otherwise in ids that the tokenizer made; empty where it reads the same.

    It is the meaning of ids that counts, not how the other side would encode a text. Spaces are not compared (some add
    or lose the first one), and control tokens may be read as nothing.
    """
    ids = tokenizer.ids(TEXT)
    controls = sorted(tokenizer.controls())
    if len(controls) > 2 * _CONTROLS:
        controls = controls[:_CONTROLS] + controls[-_CONTROLS:]
    mine, bare = _solid(tokenizer.text([*ids, *controls])), _solid(tokenizer.text(ids))
    theirs = _solid(detokenize([*ids, *controls]))
    if theirs in (mine, bare):
        return ""
    at = next((n for n, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))
    return f"it reads {theirs[at : at + 12]!r} where {mine[at : at + 12]!r} is meant"


def _solid(text: str) -> str:
    return "".join(text.split())
