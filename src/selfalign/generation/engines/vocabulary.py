"""Check that an engine's vocabulary gives token ids the same meaning as the model's tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from selfalign.model.dialogue import Tokenizer

TEXT = (
    "It is 2024, isn't it? We've 12,345 apples (3.14 each) and <b>no</b> pears.\n\n1. One\n2. Two\n"
    "\tdef f(x): return x**2 # ok\n"
    "Größe, naïve café, Łódź; Привет, мир! Γειά σου. שלום עולם. مرحبا بالعالم. 日本語のテキスト 中文 한국어 🙂👩‍👧 ∑≠½…"
)
_CONTROLS = 8
"""Number of control tokens checked at each end of the vocabulary."""


def difference(tokenizer: Tokenizer, detokenize: Callable[[Sequence[int]], str]) -> str:
    """Return the first difference between `detokenize` and the tokenizer's own decoding; empty if there is none.

    Ids are decoded, and no text is encoded, because only the meaning of ids matters. Spaces are not compared (some
    engines add or remove the first one), and control tokens may be decoded to nothing.
    """
    ids = tokenizer.ids(TEXT)
    controls = sorted(tokenizer.controls())
    if len(controls) > 2 * _CONTROLS:
        controls = controls[:_CONTROLS] + controls[-_CONTROLS:]
    expected = _without_spaces(tokenizer.text([*ids, *controls]))
    text = _without_spaces(detokenize([*ids, *controls]))
    if text in (expected, _without_spaces(tokenizer.text(ids))):
        return ""
    pairs = enumerate(zip(expected, text, strict=False))
    at = next((n for n, (a, b) in pairs if a != b), min(len(expected), len(text)))
    return f"it decodes to {text[at : at + 12]!r} instead of {expected[at : at + 12]!r}"


def _without_spaces(text: str) -> str:
    return "".join(text.split())
