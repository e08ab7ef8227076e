"""Filter the responses of stages 2 and 4.

By default, truncated responses are dropped and short complete ones are kept. Loops are found by repeated sentences and
n-grams outside code, and leaks by overlap with the exemplars of *this* constitution. The published rules (`filters:
paper`) cut a response at its first repeated clause (in stage 4 also at the thirteenth item of a list), drop a complete
one of fewer than 149 characters, and keep a truncated one without its last word. docs/filters.md compares the two.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache

from selfalign.data.text import CITATION
from selfalign.quality import safety
from selfalign.quality.contamination import Benchmarks, Hit
from selfalign.quality.filter_settings import ResponseFilter
from selfalign.quality.language import LANGUAGES, LATIN, is_english, lapses, other_language, script
from selfalign.quality.refusals import sentences, stock_refusal
from selfalign.quality.rouge import in_other_script, length, ngrams, rouge_l, tokens, words

_THOUGHT = re.compile(r"internal thoughts?\)?\s*:|I should follow \d|\(internal|\bPrinciples?:\s*\d", re.IGNORECASE)
_ROLE = re.compile(r"(^|\n)[^\S\n]*(user|assistant|human)\s*(\(internal thoughts\))?:", re.IGNORECASE)
_ENCYCLOPAEDIA = re.compile(
    r"(^|\n)[^\S\n]*((={2,}|#+)[^\S\n]*)?(see also|external links|references|further reading)\b", re.IGNORECASE
)
_LIST_ITEM = re.compile(r"(^|\n)[^\S\n]*(\d+[.)]|[-*•])\s")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision on a response: its text, and the reason if it is dropped."""

    text: str
    reason: str = ""
    """Empty if the response is kept."""
    overlap: Hit | None = None
    """The overlap of the message or the response with a benchmark item."""

    def ledger_text(self, row: str) -> str:
        """Return the row's text for the ledger, followed by the benchmark item with which it overlaps, if any."""
        return self.overlap.ledger_text(row) if self.overlap else row


@dataclass(frozen=True, slots=True)
class Leaks:
    """Texts that must not leak into a response, derived from a constitution."""

    name: str
    words: int
    """Length of the n-grams in words."""
    reason: str = "exemplar leaked"
    language: str = "en"
    """The constitution's language; responses that lapse into English are dropped."""
    ngrams: frozenset[tuple[str, ...]] = field(default_factory=frozenset)
    sentences: frozenset[str] = field(default_factory=frozenset)

    def found_in(self, text: str, message: str) -> bool:
        """Return whether the text contains an n-gram or a short sentence that leaked and is not in the message."""
        grams = self.ngrams.intersection(ngrams(tokens(text), self.words))
        if grams and not grams <= set(ngrams(tokens(message), self.words)):
            return True
        leaked = self.sentences.intersection(sentence_keys(text))
        return bool(leaked) and not leaked <= set(sentence_keys(message))


@lru_cache(maxsize=16)
def sentence_keys(text: str) -> tuple[str, ...]:
    """Return the tokens of each sentence, joined by spaces."""
    return tuple(" ".join(tokens(s)) for s in sentences(text))


def shows_thoughts(text: str) -> bool:
    """Return whether a response contains the wording of internal thoughts."""
    low = text.lower()
    # Look for the words first: the pattern is ten times slower.
    return any(w in low for w in ("internal", "follow", "principle")) and bool(_THOUGHT.search(text))


def _without_code(text: str) -> str:
    return re.sub(r"```.*?(```|$)", " ", text, flags=re.DOTALL) if "```" in text else text


def loops(text: str, sentence_repeats: int = 3, share: float = 0.3, run: int = 6) -> bool:
    """Return whether the text is a loop: it often repeats a sentence, or repeats too many of its n-grams.

    Args:
        sentence_repeats: number of occurrences of a sentence that make a loop; 0 disables the test.
        share: fraction of repeated n-grams above which the text is a loop.
        run: length of the n-grams.
    """
    prose = _without_code(text)
    counts = Counter(k for k in sentence_keys(prose) if length(k.split()) >= 3)
    if sentence_repeats and counts and max(counts.values()) >= sentence_repeats:
        return True
    grams = list(ngrams(tokens(prose), run))
    return len(grams) >= 10 and 1 - len(set(grams)) / len(grams) > share


def repetitive(text: str, distinct: float = 0.65, judged: int = 12) -> bool:
    """Return whether the fraction of distinct trigrams of a text of at least `judged` words is less than `distinct`."""
    prose = tokens(_without_code(text))
    trigrams = list(ngrams(prose, 3))
    return length(prose) >= judged and len(set(trigrams)) / len(trigrams) < distinct


def new_words(text: str, message: str) -> int:
    """Count the different words that the response adds to the message: numbers, emoji and words of three letters.

    In other scripts than Latin, words and characters of any length count, as `length` does.
    """
    added = set(words(text)) - set(words(message))
    return math.ceil(length([w for w in added if len(w) >= 3 or w.isdigit() or in_other_script(w)]))


def _echoes(text: str, message: str, limit: float) -> bool:
    if limit == 1 or not tokens(text):
        return False
    if not new_words(text, message):
        return True
    m, n = len(words(text)), len(words(message))
    # F1 is highest if the longer text contains the shorter one.
    if 2 * min(m, n) <= limit * (m + n):
        return False
    return rouge_l(text, message, words) > limit


def cut_at_repeated_clause(text: str, ends: str) -> str:
    """Cut the text before its first repeated clause, as the original does.

    Clauses are compared with the spaces around them.

    Args:
        ends: the characters that end a clause; a clause of only these and spaces is never a repetition.
    """
    seen: set[str] = set()
    beginning = ""
    for clause in re.split(f"(?<=[{re.escape(ends)}])", text):
        if clause.strip(f" {ends}") and clause in seen:
            break
        seen.add(clause)
        beginning += clause
    return beginning.strip()


def _cut(text: str, truncated: bool, filters: ResponseFilter) -> tuple[str, bool]:
    """Cut and trim a response as the published rules do; return it, and whether it is still complete."""
    if truncated and not filters.trim_after_cut:
        text = text.rpartition(" ")[0]
    whole = text.strip()
    if filters.repeated_clause == "cut":
        # In the original, the next turn follows a complete response on a new line, which ends the last clause.
        text = cut_at_repeated_clause(text if truncated else f"{text.rstrip()}\n", filters.clause_ends)
    if filters.list_items and filters.more_items == "cut":
        text = text.partition(f"\n{filters.list_items + 1}. ")[0]
    text = text.strip()
    has_end = not truncated and text == whole
    return text if has_end or not filters.trim_after_cut else text.rpartition(" ")[0], has_end


def filter_response(text: str, truncated: bool, message: str, leaks: Leaks, filters: ResponseFilter) -> Verdict:
    """Keep or drop a response by its own text.

    Args:
        text: the response as generated, without internal thoughts.
        truncated: whether the response reached the token limit.
        message: the user's message.
    """
    if not text.strip():
        return Verdict("", "empty")
    if lapses(text, leaks.language):
        return Verdict(text.strip(), f"not in {LANGUAGES[leaks.language]}")
    if truncated and filters.truncated == "drop":
        return Verdict(text.strip(), "truncated")
    text, has_end = _cut(text, truncated, filters)
    if len(text) < (filters.min_chars if has_end else filters.min_chars_truncated):
        return Verdict(text, "short" if has_end else "truncated")
    if not text:
        return Verdict(text, "empty")
    return Verdict(text, _reason(text, message, leaks, filters))


def _reason(text: str, message: str, leaks: Leaks, filters: ResponseFilter) -> str:
    if filters.encyclopaedia and _ENCYCLOPAEDIA.search(text):
        return "encyclopaedia tail"
    if filters.list_items and filters.more_items == "drop" and len(_LIST_ITEM.findall(text)) > filters.list_items:
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
    if rule := safety.first_violation(text, message, filters.unsafe):
        return f"unsafe: {rule}"
    return ""


def not_judged(text: str, message: str, filters: ResponseFilter) -> list[str]:
    """Return the filters that keep a response because they cannot judge its language."""
    names = []
    if not is_english(text):
        names += ["stock refusals"] * (filters.refusals < 1) + ["unsafe"] * bool(filters.unsafe)
    if filters.other_language and script(text) != script(message) and script(message) not in (None, LATIN):
        names.append("language")
    return names


class ResponseJudge:
    """Decide on the responses of one stage: filters, then benchmark overlap, then the cap on stock refusals.

    Call it in the order of the rows: the cap, a fraction of the responses kept so far, depends on those before.
    """

    def __init__(self, filters: ResponseFilter, leaks: Leaks, benchmarks: Benchmarks) -> None:
        self._filters = filters
        self._leaks = leaks
        self._benchmarks = benchmarks
        self._kept = self._refusals = 0
        self.not_judged: Counter[str] = Counter()
        """Filter -> number of kept responses that it cannot judge."""

    def check(self, text: str, truncated: bool, message: str) -> Verdict:
        """Keep or drop a response by its own text and by benchmark overlap. Arguments: see `filter_response`."""
        verdict = filter_response(text, truncated, message, self._leaks, self._filters)
        if not verdict.reason and (hit := self._benchmarks.find(message, verdict.text)):
            return Verdict(verdict.text, hit.reason, hit)
        return verdict

    def count(self, verdict: Verdict, message: str) -> None:
        """Count the filters that cannot judge a kept response."""
        self.not_judged.update(not_judged(verdict.text, message, self._filters))

    def cap(self, verdict: Verdict, admissions: bool = True) -> Verdict:
        """Drop a response that passed `check` if it is one stock refusal too many; count it otherwise.

        Args:
            admissions: whether an admission of ignorance, or of having no live data, is a stock refusal, too.
        """
        if verdict.reason:
            return verdict
        limit = self._filters.refusals
        refusal = limit < 1 and stock_refusal(verdict.text, admissions)
        if refusal and self._refusals + 1 > limit * (self._kept + 1):
            return Verdict(verdict.text, "more stock refusals than wanted")
        self._kept += 1
        self._refusals += refusal
        return verdict
