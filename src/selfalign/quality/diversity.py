"""Measure the diversity of texts: distinct n-grams, openings, verbs and objects, pairwise similarity."""

from __future__ import annotations

import random
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from selfalign.quality.rouge import ngrams, tokens, words

_OPENING = 6
_SAMPLE = 1000
"""Maximum number of texts for the pairwise similarity (half a million pairs)."""
MAX_TEXTS = 20_000
"""Maximum number of texts for distinct-n and tagging; the n-grams of 300,000 texts would take gigabytes."""
BINS = 10
_AUXILIARIES = re.compile(
    r"(be|is|are|was|were|am|been|being|do|does|did|have|has|had|can|could|will|would|shall|should|may|might|must|let)",
    re.IGNORECASE,
)
_NAMES_AND_VERBS = ("NN", "JJ", "VB", "FW", "UH", "RB")
_AFTER_IMPERATIVE = ("DT", "CD", "PRP", "JJ", "WRB", "WP", "IN", "TO", "NNS")


def distinct(texts: Iterable[str], n: int) -> float:
    """Return distinct-n, the fraction of distinct n-grams among all n-grams of words (Li et al., arXiv 1510.03055)."""
    total, different = 0, set()
    for text in texts:
        grams = list(ngrams(words(text), n))
        total += len(grams)
        different.update(grams)
    return len(different) / total if total else 0.0


def commonest_opening(texts: Sequence[str]) -> tuple[str, float]:
    """Return the most frequent first six words, and the fraction of texts that begin with them."""
    openings = Counter(" ".join(next(iter(ngrams(words(text), _OPENING)), words(text))) for text in texts)
    if not openings:
        return "", 0.0
    opening, number = openings.most_common(1)[0]
    return opening, number / len(texts)


def similarity(texts: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Return the mean ROUGE-L F1 of all pairs, and a histogram of the highest F1 of each text (at most 1,000)."""
    import numpy as np
    from rapidfuzz import process
    from rapidfuzz.distance import Indel

    # The normalised Indel similarity of tokens is ROUGE-L's F-measure.
    lists = [t for t in map(tokens, texts) if t]
    if len(lists) > _SAMPLE:
        lists = random.Random(seed).sample(lists, _SAMPLE)  # noqa: S311
    if len(lists) < 2:
        return {"texts": len(lists), "mean": None, "nearest": [0] * BINS}
    scores = process.cdist(lists, lists, scorer=Indel.normalized_similarity, workers=1)
    np.fill_diagonal(scores, 0)
    histogram, _ = np.histogram(scores.max(axis=1), bins=BINS, range=(0, 1))
    mean = float(scores.sum(dtype=float)) / (len(lists) * (len(lists) - 1))
    return {"texts": len(lists), "mean": mean, "nearest": histogram.tolist()}


def can_tag() -> bool:
    """Return whether textblob is installed, which `verb_object` needs."""
    return _tagger() is not None


def verb_object(text: str) -> tuple[str, str] | None:
    """Return the main verb of an instruction and its object, in lower case; "" stands for no object.

    As in Self-Instruct (arXiv 2212.10560, figure 3), but with textblob's rule-based English tagger instead of a parser.
    None if there is no verb, or textblob is not installed.
    """
    tagger = _tagger()
    return _verb_object(tagger.tag(text.strip().split("\n", 1)[0])) if tagger else None


@lru_cache(maxsize=1)
def _tagger() -> Any:
    try:
        from textblob.en.taggers import PatternTagger
    except ImportError:
        return None
    tagger = PatternTagger()
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # it does not close its lexicon
        tagger.tag("Write it.")
    return tagger


def _verb_object(tagged: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    from textblob.en.inflect import singularize

    if len(tagged) > 1 and tagged[0][1].startswith(_NAMES_AND_VERBS) and tagged[1][1].startswith(_AFTER_IMPERATIVE):
        # The tagger mistakes a capitalised imperative for a name: "List three rivers".
        tagged = [(tagged[0][0].lower(), "VB"), *tagged[1:]]
    verbs = [i for i, (word, tag) in enumerate(tagged) if tag.startswith("VB") and not _AUXILIARIES.fullmatch(word)]
    # A participle ("the following text", "a broken cup") is the main verb only if there is no other verb.
    at = next((i for i in verbs if tagged[i][1] not in ("VBG", "VBN")), verbs[0] if verbs else None)
    if at is None:
        return None
    noun = ""
    for word, tag in tagged[at + 1 :]:
        if tag.startswith("NN") and word.isalpha():
            noun = word.lower() if tag in ("NN", "NNP") else singularize(word.lower())
        elif noun or tag in ("VB", "VBP", "VBZ", "VBD") or not word[0].isalnum():
            break
    return tagged[at][0].lower(), noun


def describe(texts: Sequence[str]) -> dict[str, Any]:
    """Return these measures of prompts or responses as plain values; distinct-n uses at most 20,000 texts."""
    opening, share = commonest_opening(texts)
    sample = texts if len(texts) <= MAX_TEXTS else random.Random(0).sample(texts, MAX_TEXTS)  # noqa: S311
    return {
        "texts": len(texts),
        "distinct": {str(n): distinct(sample, n) for n in (1, 2, 3)},
        "commonest_opening": {"words": opening, "share": share},
        "similarity": similarity(texts),
    }
