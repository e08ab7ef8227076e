"""Derive from a constitution the texts that must not leak into a response."""

from __future__ import annotations

from selfalign.constitution.document import Constitution
from selfalign.quality.response_filters import Leaks, sentence_keys
from selfalign.quality.rouge import ngrams, tokens


def leaks_of(constitution: Constitution, words: int, verbose_only: bool = False) -> Leaks:
    """Return the texts that must not leak: exemplars and principles (stage 2) or the verbose system prompt (stage 4).

    Args:
        words: number of consecutive words that is a leak.
        verbose_only: use only the verbose system prompt and the two-shot responses (stage 4).
    """
    if verbose_only:
        texts = [constitution.system_prompt("verbose"), *(t.answer for t in constitution.prompts.two_shot)]
    else:
        exemplars = constitution.all_exemplars()
        texts = [e.answer for e in exemplars] + [e.thoughts for e in exemplars]
        texts += [p.rule for p in constitution.principles]
    grams = frozenset(g for t in texts for g in ngrams(tokens(t), words))
    short = frozenset(k for t in texts for k in sentence_keys(t) if 4 <= k.count(" ") + 1 < words)
    reason = "persona leaked" if verbose_only else "exemplar leaked"
    return Leaks(constitution.assistant.name, words, reason, constitution.language, grams, short)
