"""Filters of stages 2 and 4: is an answer fit to be learnt? Pure decisions with reasons.

`default` is ours: a truncated answer is dropped, a short complete one is kept, true loops are found by repetition of
whole sentences or n-grams (code is spared), and what leaks from the exemplars is found by overlap with the exemplars of
*this* constitution. `paper` follows the published rules: the answer is cut at the first repeated clause, a complete
answer of fewer than 149 characters is dropped, a truncated one loses its last word and stays.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from selfalign.constitution import CITATION, Constitution
from selfalign.constitution.document import LANGUAGES
from selfalign.quality import rouge
from selfalign.quality.language import lapses
from selfalign.quality.rouge import rouge_l

_PAPER_MIN_CHARS = 149
_LEAK_NGRAM = 8
_LOOP_NGRAM = 6
_MAX_LIST_ITEMS = 12
_ECHO = 0.8
"""ROUGE-L F1 with the prompt above which an answer only repeats it."""
_MIN_DISTINCT_TRIGRAMS = 0.65
_MIN_JUDGED_TOKENS = 12
"""Shorter answers repeat themselves by chance."""
_MIN_NEW_WORDS_VERBOSE = 6
_THOUGHT = re.compile(r"internal thoughts?\)?\s*:|I should follow \d|\(internal|\bPrinciples?:\s*\d", re.IGNORECASE)
_ROLE = re.compile(r"(^|\n)[^\S\n]*(user|assistant|human)\s*(\(internal thoughts\))?:", re.IGNORECASE)
_ENCYCLOPAEDIA = re.compile(
    r"(^|\n)[^\S\n]*((={2,}|#+)[^\S\n]*)?(see also|external links|references|further reading)\b", re.IGNORECASE
)
_CLAUSE = re.compile(r"(?<=[\n.?!;:,])")


@lru_cache(maxsize=32)
def tokens(text: str) -> tuple[str, ...]:
    """rouge-score's tokens. Every rule of a row looks at the same two texts."""
    return tuple(rouge.tokens(text))


@lru_cache(maxsize=32)
def words(text: str) -> tuple[str, ...]:
    """The text's words in any script, case folded."""
    return tuple(rouge.words(text))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer as it is kept, or the reason why it is dropped."""

    text: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Leaks:
    """What must not reach an answer, derived from a constitution."""

    name: str
    language: str = "en"
    """The constitution's: an answer that lapses into English is dropped."""
    ngrams: frozenset[tuple[str, ...]] = field(default_factory=frozenset)
    sentences: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, constitution: Constitution, verbose_only: bool = False) -> Leaks:
        """Leaks of the exemplars and rules (stage 2), or of the verbose inference prompt (stage 4)."""
        if verbose_only:
            texts = [constitution.inference_prompt("verbose"), *(t.answer for t in constitution.prompts.two_shot)]
        else:
            texts = [e.answer for e in constitution.exemplars] + [e.thoughts for e in constitution.exemplars]
            texts += [p.rule for p in constitution.principles]
        grams = frozenset(g for t in texts for g in ngrams(tokens(t), _LEAK_NGRAM))
        short = frozenset(k for t in texts for k in _sentence_keys(t) if 4 <= k.count(" ") + 1 < _LEAK_NGRAM)
        return cls(constitution.assistant.name, constitution.language, grams, short)

    def found_in(self, text: str, message: str) -> bool:
        """Whether the text repeats eight words in a row, or a whole short sentence, that the user did not say."""
        grams = self.ngrams.intersection(ngrams(tokens(text), _LEAK_NGRAM))
        if grams and not grams <= set(ngrams(tokens(message), _LEAK_NGRAM)):
            return True
        sentences = self.sentences.intersection(_sentence_keys(text))
        return bool(sentences) and not sentences <= set(_sentence_keys(message))


def ngrams(items: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    """All runs of n neighbours."""
    return zip(*(items[i:] for i in range(n)), strict=False)


def _sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.?!])\s+|\n+", text) if s.strip()]


@lru_cache(maxsize=16)
def _sentence_keys(text: str) -> tuple[str, ...]:
    """Each sentence's tokens, joined by spaces."""
    return tuple(" ".join(tokens(s)) for s in _sentences(text))


def _shows_thoughts(text: str) -> bool:
    low = text.lower()
    # The words first: the expression costs ten times as much.
    return any(w in low for w in ("internal", "follow", "principle")) and bool(_THOUGHT.search(text))


def _without_code(text: str) -> str:
    return re.sub(r"```.*?(```|$)", " ", text, flags=re.DOTALL) if "```" in text else text


def loops(text: str) -> bool:
    """Whether the text repeats itself without end: a sentence three times, or mostly n-grams that occurred before."""
    prose = _without_code(text)
    sentences = Counter(k for k in _sentence_keys(prose) if k.count(" ") >= 2)
    if sentences and max(sentences.values()) >= 3:
        return True
    grams = list(ngrams(tokens(prose), _LOOP_NGRAM))
    return len(grams) >= 10 and 1 - len(set(grams)) / len(grams) > 0.3


def repetitive(text: str) -> bool:
    """Whether the text goes in circles: more than a third of its three-word runs occurred before in it."""
    found = tokens(_without_code(text))
    grams = list(ngrams(found, 3))
    return len(found) >= _MIN_JUDGED_TOKENS and len(set(grams)) / len(grams) < _MIN_DISTINCT_TRIGRAMS


def new_words(text: str, message: str) -> int:
    """How many different words of three letters and more, or numbers, the answer adds to the question."""
    return len({w for w in words(text) if len(w) >= 3 or w.isdigit()} - set(words(message)))


def _echoes(text: str, message: str) -> bool:
    one, two = words(text), words(message)
    # F1 is at most that of two texts of which the shorter is part of the longer.
    if 2 * min(len(one), len(two)) <= _ECHO * (len(one) + len(two)):
        return False
    return rouge_l(text, message, words) > _ECHO


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


def judge_thoughts(thoughts: str, constitution: Constitution) -> tuple[list[int], str | None]:
    """The principles that the thoughts cite (ids in order, once each), and why the thoughts are not well-formed.

    The name decides: without a grammar a small model writes "3 (informative)" where 2 is informative.
    """
    known = {p.name.lower(): p.id for p in constitution.principles}
    names = [name.lower() for _, name in CITATION.findall(thoughts)]
    cited = list(dict.fromkeys(known[name] for name in names if name in known))
    if not thoughts.strip():
        return cited, "no thoughts"
    return cited, None if cited else "no principle cited"


def judge_response(text: str, truncated: bool, message: str, leaks: Leaks, rules: str = "default") -> Verdict:
    """Stage 2: keep or drop an answer.

    Args:
        text: the answer, without thoughts.
        truncated: the token limit cut it.
        message: what the user said.
        rules: default or paper.
    """
    text = text.strip()
    if not text:
        return Verdict(text, "empty")
    if lapses(text, leaks.language):
        return Verdict(text, f"not in {LANGUAGES[leaks.language]}")
    if rules == "paper":
        return _paper(text, truncated, leaks, message)
    if truncated:
        return Verdict(text, "truncated")
    if reason := _common(text, message, leaks):
        return Verdict(text, reason)
    return Verdict(text)


def _common(text: str, message: str, leaks: Leaks) -> str | None:
    if _ROLE.search(text) or f"\n{leaks.name}:" in f"\n{text}":
        return "turn leaked"
    if _shows_thoughts(text) or len(CITATION.findall(text)) >= 2:
        return "thoughts leaked"
    if leaks.found_in(text, message):
        return "exemplar leaked"
    if loops(text):
        return "loop"
    if repetitive(text):
        return "repetitive"
    if tokens(text) and (not new_words(text, message) or _echoes(text, message)):
        return "echoes the prompt"
    if not any(c.isalnum() for c in text):
        return "no words"
    return None


def _paper(text: str, truncated: bool, leaks: Leaks, message: str) -> Verdict:
    cut = cut_at_repeated_clause(text)
    if truncated or cut != text:
        cut = cut.rpartition(" ")[0]
    elif len(cut) < _PAPER_MIN_CHARS:
        return Verdict(text, "short")
    if not cut:
        return Verdict(text, "empty")
    if _ROLE.search(cut) or leaks.found_in(cut, message):
        return Verdict(cut, "exemplar leaked")
    if cut.startswith(("I'm sorry", "I am sorry")):
        return Verdict(cut, "begins with sorry")
    return Verdict(cut)


def judge_verbose(text: str, truncated: bool, message: str, leaks: Leaks, rules: str = "default") -> Verdict:
    """Stage 4: keep or drop an answer of the verbose mode."""
    text = text.strip()
    if not text:
        return Verdict(text, "empty")
    if lapses(text, leaks.language):
        return Verdict(text, f"not in {LANGUAGES[leaks.language]}")
    if _ENCYCLOPAEDIA.search(text):
        return Verdict(text, "encyclopaedia tail")
    if len(re.findall(r"(^|\n)[^\S\n]*(\d+[.)]|[-*•])\s", text)) > _MAX_LIST_ITEMS:
        return Verdict(text, "too many list items")
    if rules == "paper":
        cut = cut_at_repeated_clause(text)
        return Verdict(cut, "truncated" if truncated and len(cut) < 128 else None)
    if truncated:
        return Verdict(text, "truncated")
    reason = _common(text, message, leaks)
    if reason is None and tokens(text) and new_words(text, message) < _MIN_NEW_WORDS_VERBOSE:
        reason = "not thorough"
    return Verdict(text, "persona leaked" if reason == "exemplar leaked" else reason)
