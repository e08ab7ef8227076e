"""Filters of stages 2 and 4: is an answer fit to be learnt? Pure decisions with reasons, thresholds from the recipe.

Ours: a truncated answer is dropped, a short complete one is kept, true loops are found by repetition of whole sentences
or n-grams (code is spared), and what leaks from the exemplars is found by overlap with the exemplars of *this*
constitution. The published rules (`filters: paper`): the answer is cut at the first repeated clause, a complete one of
fewer than 149 characters is dropped, a truncated one loses its last word and stays. docs/filters.md compares them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from selfalign.data.text import CITATION
from selfalign.quality import safety
from selfalign.quality.contamination import Benchmarks, Hit
from selfalign.quality.filter_settings import ResponseFilter
from selfalign.quality.language import LANGUAGES, lapses, other_language
from selfalign.quality.refusals import stock_refusal
from selfalign.quality.rouge import rouge_l, tokens, words

_THOUGHT = re.compile(r"internal thoughts?\)?\s*:|I should follow \d|\(internal|\bPrinciples?:\s*\d", re.IGNORECASE)
_ROLE = re.compile(r"(^|\n)[^\S\n]*(user|assistant|human)\s*(\(internal thoughts\))?:", re.IGNORECASE)
_ENCYCLOPAEDIA = re.compile(
    r"(^|\n)[^\S\n]*((={2,}|#+)[^\S\n]*)?(see also|external links|references|further reading)\b", re.IGNORECASE
)
_LIST_ITEM = re.compile(r"(^|\n)[^\S\n]*(\d+[.)]|[-*•])\s")
_CLAUSE = re.compile(r"(?<=[\n.?!;:,])")


TOO_MANY_REFUSALS = "more stock refusals than wanted"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The response as it is kept, or the reason why it is dropped."""

    text: str
    reason: str = ""
    """Empty where the response is kept."""
    overlap: Hit | None = None
    """The benchmark item that the message or the response overlaps with."""

    def ledger_text(self, row: str) -> str:
        """Return the row's text for the ledger, followed by the benchmark item that it overlaps with, if any."""
        return self.overlap.beside(row) if self.overlap else row


@dataclass(frozen=True, slots=True)
class Leaks:
    """What must not reach an answer, derived from a constitution."""

    name: str
    words: int
    """Length of `ngrams`."""
    reason: str = "exemplar leaked"
    language: str = "en"
    """The constitution's: an answer that lapses into English is dropped."""
    ngrams: frozenset[tuple[str, ...]] = field(default_factory=frozenset)
    sentences: frozenset[str] = field(default_factory=frozenset)

    def found_in(self, text: str, message: str) -> bool:
        """Whether the text repeats so many words in a row, or a whole short sentence, that the user did not say."""
        grams = self.ngrams.intersection(ngrams(tokens(text), self.words))
        if grams and not grams <= set(ngrams(tokens(message), self.words)):
            return True
        sentences = self.sentences.intersection(sentence_keys(text))
        return bool(sentences) and not sentences <= set(sentence_keys(message))


def ngrams(items: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    """All runs of n neighbours."""
    return zip(*(items[i:] for i in range(n)), strict=False)


def _sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.?!])\s+|\n+", text) if s.strip()]


@lru_cache(maxsize=16)
def sentence_keys(text: str) -> tuple[str, ...]:
    """Each sentence's tokens, joined by spaces."""
    return tuple(" ".join(tokens(s)) for s in _sentences(text))


def shows_thoughts(text: str) -> bool:
    """Whether the words of stage 2's thoughts stand in an answer."""
    low = text.lower()
    # The words first: the expression costs ten times as much.
    return any(w in low for w in ("internal", "follow", "principle")) and bool(_THOUGHT.search(text))


def _without_code(text: str) -> str:
    return re.sub(r"```.*?(```|$)", " ", text, flags=re.DOTALL) if "```" in text else text


def loops(text: str, sentence_repeats: int = 3, share: float = 0.3, run: int = 6) -> bool:
    """Whether the text repeats itself without end: a sentence so many times, or mostly n-grams that occurred before."""
    prose = _without_code(text)
    sentences = Counter(k for k in sentence_keys(prose) if k.count(" ") >= 2)
    if sentence_repeats and sentences and max(sentences.values()) >= sentence_repeats:
        return True
    grams = list(ngrams(tokens(prose), run))
    return len(grams) >= 10 and 1 - len(set(grams)) / len(grams) > share


def repetitive(text: str, distinct: float = 0.65, judged: int = 12) -> bool:
    """Whether the text goes in circles: fewer of its three-word runs are different ones."""
    found = tokens(_without_code(text))
    grams = list(ngrams(found, 3))
    return len(found) >= judged and len(set(grams)) / len(grams) < distinct


def new_words(text: str, message: str) -> int:
    """How many different words of three letters and more, or numbers, the answer adds to the question."""
    return len({w for w in words(text) if len(w) >= 3 or w.isdigit()} - set(words(message)))


def _echoes(text: str, message: str, limit: float) -> bool:
    if limit == 1 or not tokens(text):
        return False
    if not new_words(text, message):
        return True
    one, two = words(text), words(message)
    # F1 is at most that of two texts of which the shorter is part of the longer.
    if 2 * min(len(one), len(two)) <= limit * (len(one) + len(two)):
        return False
    return rouge_l(text, message, words) > limit


def cut_at_repeated_clause(text: str) -> str:
    """The paper's rule: everything from the first clause on that already occurred is cut away."""
    seen: set[str] = set()
    kept = ""
    for clause in _CLAUSE.split(text):
        bare = clause.strip(" \n.?!;:,")
        if bare and clause.strip() in seen:
            break
        seen.add(clause.strip())
        kept += clause
    return kept.strip()


def judge(text: str, truncated: bool, message: str, leaks: Leaks, filters: ResponseFilter) -> Verdict:
    """Keep or drop an answer of stage 2 or 4.

    Args:
        text: the answer, without thoughts.
        truncated: the token limit cut it.
        message: what the user said.
    """
    text = text.strip()
    if not text:
        return Verdict(text, "empty")
    if lapses(text, leaks.language):
        return Verdict(text, f"not in {LANGUAGES[leaks.language]}")
    whole = text
    if filters.repeated_clause == "cut":
        text = cut_at_repeated_clause(text)
    if truncated or text != whole:
        if truncated and filters.truncated == "drop":
            return Verdict(text, "truncated")
        if truncated or filters.trim_after_cut:
            text = text.rpartition(" ")[0]
        if len(text) < filters.min_chars_truncated:
            return Verdict(text, "truncated")
    elif len(text) < filters.min_chars:
        return Verdict(text, "short")
    if not text:
        return Verdict(text, "empty")
    return Verdict(text, _reason(text, message, leaks, filters))


def _reason(text: str, message: str, leaks: Leaks, filters: ResponseFilter) -> str:
    if filters.encyclopaedia and _ENCYCLOPAEDIA.search(text):
        return "encyclopaedia tail"
    if filters.list_items and len(_LIST_ITEM.findall(text)) > filters.list_items:
        return "too many list items"
    if _ROLE.search(text) or f"\n{leaks.name}:" in f"\n{text}":
        return "turn leaked"
    if filters.thoughts and (shows_thoughts(text) or len(CITATION.findall(text)) >= 2):
        return "thoughts leaked"
    if leaks.found_in(text, message):
        return leaks.reason
    if filters.sorry and text.startswith(("I'm sorry", "I am sorry")):
        return "begins with sorry"
    if loops(text, filters.sentence_repeats, filters.loop_share, filters.loop_words):
        return "loop"
    if repetitive(text, filters.distinct_trigrams, filters.judged_words):
        return "repetitive"
    if _echoes(text, message, filters.echo):
        return "echoes the prompt"
    if filters.echo < 1 and not any(c.isalnum() for c in text):
        return "no words"
    if filters.new_words and tokens(text) and new_words(text, message) < filters.new_words:
        return "not thorough"
    if filters.other_language and other_language(_without_code(text), message, leaks.language):
        return "in another language than the prompt"
    if rule := safety.broken(text, message, filters.unsafe):
        return f"unsafe: {rule}"
    return ""


class RefusalCap:
    """Keeps the share of stock refusals among the answers kept so far at most at a limit.

    The one decision that looks at other rows: in their order, so that it is the same every time.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._kept = self._refusals = 0

    def admits(self, text: str) -> bool:
        """Whether the answer may be kept; counts it if so."""
        refusal = self._limit < 1 and stock_refusal(text)
        if refusal and self._refusals + 1 > self._limit * (self._kept + 1):
            return False
        self._kept += 1
        self._refusals += refusal
        return True


class ResponseJudge:
    """Decide on the responses of one stage: filters, then benchmark overlap, then the cap on stock refusals.

    Call it in the rows' order: the cap counts what was kept before.
    """

    def __init__(self, filters: ResponseFilter, leaks: Leaks, benchmarks: Benchmarks) -> None:
        self._filters = filters
        self._leaks = leaks
        self._benchmarks = benchmarks
        self._cap = RefusalCap(filters.refusals)

    def judge(self, text: str, truncated: bool, message: str) -> Verdict:
        """Keep or drop a response. Arguments as of `judge`."""
        verdict = judge(text, truncated, message, self._leaks, self._filters)
        if verdict.reason:
            return verdict
        if hit := self._benchmarks.find(message, verdict.text):
            return Verdict(verdict.text, hit.reason, hit)
        if not self._cap.admits(verdict.text):
            return Verdict(verdict.text, TOO_MANY_REFUSALS)
        return verdict
