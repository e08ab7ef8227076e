"""Split texts into tokens by script, compute ROUGE-L as rouge-score does, and normalise texts for equality.

rouge-score sees a-z and 0-9 only. Here, other scripts have tokens, too: words where a script separates them (Cyrillic,
Arabic, Hangul), characters where it does not (Chinese, Japanese, Thai), and emoji. Latin letters with diacritics stay
invisible to `tokens`, as in rouge-score; `words` sees them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

from rapidfuzz.distance import LCSseq

_TOKEN = re.compile(r"[a-z0-9]+")
_WORD = re.compile(r"\w+")
_NOT_LATIN = re.compile("[^\0-\u036f\u1e00-\u1eff\u2000-\u2319]")
"""Matches any character beyond Latin letters, punctuation and mathematical signs. Most texts have none, and need no
search for other scripts, which takes ten times as long."""

_KINDS = {
    "l": r"[a-z0-9]",
    "c": r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}ーｰ]&&[\p{L}\p{N}]]",
    "s": (
        r"[[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Javanese}\p{Balinese}]"
        r"&&[\p{L}\p{N}]]"
    ),
    "f": r"[\uFF10-\uFF19\uFF21-\uFF3A\uFF41-\uFF5A]",
    "o": r"[[[\p{L}\p{Nd}]--[\p{Latin}\p{Common}]]\u0660-\u0669]",
    "n": r"[\p{L}\p{N}_]",
    "r": r"\p{Regional_Indicator}",
    "t": r"\p{Emoji_Modifier}",
    "p": r"\p{Emoji_Presentation}",
    "x": r"\p{Extended_Pictographic}",
    "v": "\ufe0f",
    "z": "\u200d",
    "m": r"\p{M}",
}
"""The kinds of characters, the first one that matches. East Asian (c) and Southeast Asian (s) letters have no spaces
between words; f are full-width, o are other letters than Latin ones, n are letters and digits that rouge-score does not
see, and the others are parts of emoji and marks."""
_EMOJI = "rr|(?:[pt]v?|xv)t?(?:z[px]v?t?)*"
_TOKENS = re.compile(f"l+|{_EMOJI}|c[mv]*|s[mv]*(?=(s[mv]*)?)|o[omv]*|f+")
_WORDS = re.compile(f"{_EMOJI}|[cs][mv]*|[lnof][lnofmv]*")
_WEIGHTS = {"c": 0.5, "s": 0.25}
"""How much of a word a character of this kind is, on average."""


class _Kinds(dict[int, str]):
    """Code point -> the kind of the character; a space if it has none."""

    def __missing__(self, code: int) -> str:
        import regex

        patterns = _KINDS.items()
        kind = next((k for k, p in patterns if regex.match(p, chr(code), regex.VERSION1)), " ")
        self[code] = kind
        return kind


_kinds = _Kinds()


@lru_cache(maxsize=64)
def tokens(text: str) -> tuple[str, ...]:
    """Return rouge-score's default tokens (runs of a-z and 0-9 in lower case), and those of other scripts. Cached.

    In Southeast Asian scripts, with few letters, a token is two neighbouring characters.
    """
    text = text.lower()
    if not _NOT_LATIN.search(text):
        return tuple(_TOKEN.findall(text))
    matches = _TOKENS.finditer(text.translate(_kinds))
    found = (text[m.start() : max(m.end(), m.end(1))] for m in matches)
    return tuple(t if t.isascii() else unicodedata.normalize("NFKC", t).lower() for t in found)


@lru_cache(maxsize=64)
def words(text: str) -> tuple[str, ...]:
    """Return the words of a text in any script, case-folded; characters of scripts that do not separate words."""
    text = text.casefold()
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if not _NOT_LATIN.search(text):
        return tuple(_WORD.findall(text))
    return tuple(text[m.start() : m.end()] for m in _WORDS.finditer(text.translate(_kinds)))


def in_other_script(word: str) -> bool:
    """Return whether a word is an emoji or in another script than Latin."""
    return not word.isascii() and bool(_TOKENS.match(word.translate(_kinds)))


def _weight(word: str) -> float:
    return _WEIGHTS.get(_kinds[ord(word[0])], 1.0)


def _has_unspaced(items: Iterable[str]) -> bool:
    return any(not item.isascii() and _weight(item) < 1 for item in items)


def length(items: Sequence[str]) -> float:
    """Return the number of words in these tokens: a Chinese or Japanese character is half a word, a Thai one less."""
    return sum(map(_weight, items)) if _has_unspaced(items) else len(items)


def count_words(text: str) -> int:
    """Return the number of words between spaces; in scripts without spaces, an estimate from the characters."""
    kinds = "" if text.isascii() else text.translate(_kinds)
    estimate = sum(weight * kinds.count(kind) for kind, weight in _WEIGHTS.items())
    if not estimate:
        return len(text.split())
    rest = "".join(" " if kind in _WEIGHTS else char for kind, char in zip(kinds, text, strict=True))
    return max(1, round(estimate)) + sum(any(map(str.isalnum, part)) for part in rest.split())


def ngrams(items: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    """Return all runs of n words. Where words are not separated, a run has as many characters as n words have."""
    if _has_unspaced(items):
        return _long_ngrams(items, n)
    return zip(*(items[i:] for i in range(n)), strict=False)


def _long_ngrams(items: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    end, total = 0, 0.0
    for start, item in enumerate(items):
        while total < n and end < len(items):
            total += _weight(items[end])
            end += 1
        if total < n:
            return
        yield tuple(items[start:end])
        total -= _weight(item)


def normalize(text: str) -> str:
    """Return the text without differences of case, white space and Unicode form: texts that are equal are the same."""
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower()).split())


def without_end(text: str) -> str:
    """Return `normalize` without the marks that end a sentence, to recognise items that must not be trained on."""
    return normalize(text).rstrip(" .?!…。？！؟।")


def rouge_l(a: str, b: str, split: Callable[[str], Sequence[str]] | None = None) -> float:
    """Return the ROUGE-L F1 of two texts, over `tokens` or what `split` returns."""
    split = split or tokens
    tokens_a, tokens_b = split(a), split(b)
    return f1(int(LCSseq.similarity(tokens_a, tokens_b)), len(tokens_a), len(tokens_b))


def f1(lcs: int, m: int, n: int) -> float:
    """Return the F-measure of texts of m and n tokens with a common subsequence of `lcs`, rounded as by rouge-score."""
    if not lcs:
        return 0.0
    precision, recall = lcs / n, lcs / m
    return 2 * precision * recall / (precision + recall)
