"""How diverse texts are: distinct n-grams, openings, verbs and objects of instructions, similarity among themselves."""

from __future__ import annotations

import random
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from selfalign.quality.rouge import tokens, words

_OPENING = 6
_SAMPLE = 1000
"""Texts whose similarity is looked at: all pairs of so many are half a million."""
MOST = 20_000
"""Texts whose n-grams are counted, and instructions that are tagged: all n-grams of 300,000 would take gigabytes."""
BINS = 10
_AUXILIARIES = re.compile(
    r"(be|is|are|was|were|am|been|being|do|does|did|have|has|had|can|could|will|would|shall|should|may|might|must|let)",
    re.IGNORECASE,
)
_NAMES_AND_VERBS = ("NN", "JJ", "VB", "FW", "UH", "RB")
_AFTER_IMPERATIVE = ("DT", "CD", "PRP", "JJ", "WRB", "WP", "IN", "TO", "NNS")


def distinct(texts: Iterable[str], n: int) -> float:
    """Distinct-n: the share of different ones among all runs of n words (Li et al., arXiv 1510.03055)."""
    total, different = 0, set()
    for text in texts:
        found = words(text)
        grams = list(zip(*(found[i:] for i in range(n)), strict=False))
        total += len(grams)
        different.update(grams)
    return len(different) / total if total else 0.0


def commonest_opening(texts: Sequence[str]) -> tuple[str, float]:
    """The commonest first six words and the share of texts that begin with them."""
    found = Counter(" ".join(words(text)[:_OPENING]) for text in texts)
    if not found:
        return "", 0.0
    opening, number = found.most_common(1)[0]
    return opening, number / len(texts)


def similarity(texts: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Mean ROUGE-L F1 of all pairs, and a histogram of each text's nearest other one, over at most 1,000 texts."""
    import numpy as np
    from rapidfuzz import process
    from rapidfuzz.distance import Indel

    # Indel over tokens is ROUGE-L's F-measure.
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


def verb_objects(texts: Iterable[str]) -> Counter[tuple[str, str]] | None:
    """The main verb of each instruction and its object, in lower case; "" where there is no object.

    After Self-Instruct (arXiv 2212.10560, figure 3), with textblob's rule-based English tagger, not a parser.
    None where textblob is not installed.
    """
    if _tagger() is None:
        return None
    return Counter(pair for text in texts if (pair := verb_object(text)))


def verb_object(text: str) -> tuple[str, str] | None:
    """The same of one instruction; None where it has no verb, or where textblob is not installed."""
    tagger = _tagger()
    return _verb_object(tagger.tag(text.strip().split("\n", 1)[0])) if tagger else None


@lru_cache(maxsize=1)
def _tagger() -> Any:
    try:
        from textblob.en.taggers import PatternTagger
    except ImportError:
        return None
    tagger = PatternTagger()
    with warnings.catch_warnings():  # it reads its lexicon at the first use and leaves the closing to Python
        warnings.simplefilter("ignore", ResourceWarning)
        tagger.tag("Write it.")
    return tagger


def _verb_object(tagged: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    from textblob.en.inflect import singularize

    if len(tagged) > 1 and tagged[0][1].startswith(_NAMES_AND_VERBS) and tagged[1][1].startswith(_AFTER_IMPERATIVE):
        # An imperative's capital letter makes the tagger take it for a name: "List three rivers".
        tagged = [(tagged[0][0].lower(), "VB"), *tagged[1:]]
    verbs = [i for i, (word, tag) in enumerate(tagged) if tag.startswith("VB") and not _AUXILIARIES.fullmatch(word)]
    # "the following text", "a broken cup": a participle is the verb only where there is no other.
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
    """All of these about instructions or answers, as plain values; distinct-n over at most 20,000 texts."""
    opening, share = commonest_opening(texts)
    some = texts if len(texts) <= MOST else random.Random(0).sample(texts, MOST)  # noqa: S311
    return {
        "texts": len(texts),
        "distinct": {str(n): distinct(some, n) for n in (1, 2, 3)},
        "commonest_opening": {"words": opening, "share": share},
        "similarity": similarity(texts),
    }
