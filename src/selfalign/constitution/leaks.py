"""Derive from a constitution the texts that must not leak into a response."""

from __future__ import annotations

from collections.abc import Iterator

from selfalign.constitution.document import Constitution, Exemplar
from selfalign.quality.response_filters import Leaks, sentence_keys
from selfalign.quality.rouge import length, ngrams, tokens

_SUBJECT_LETTERS = 5
"""Words of an exemplar's message with at least this number of letters are its subject."""


def leaks_of(constitution: Constitution, words: int, verbose_only: bool = False) -> Leaks:
    """Return the texts that must not leak: exemplars and principles (stage 2) or the verbose system prompt (stage 4).

    The exemplars of question types teach phrases that a response to another question should use, such as "I have no
    live data". Of these exemplars, only short sentences leak, and n-grams with a word of the exemplar's message.

    Args:
        words: number of consecutive words that is a leak.
        verbose_only: use only the verbose system prompt and the two-shot responses (stage 4).
    """
    type_exemplars: list[Exemplar] = []
    if verbose_only:
        texts = [constitution.system_prompt("verbose"), *(t.answer for t in constitution.prompts.two_shot)]
    else:
        type_exemplars = [e for kind in constitution.question_types for e in kind.exemplars]
        texts = [e.answer for e in constitution.exemplars] + [e.thoughts for e in constitution.exemplars]
        texts += [p.rule for p in constitution.principles]
    grams = {g for t in texts for g in ngrams(tokens(t), words)} | {
        g for e in type_exemplars for g in _on_subject(e, words)
    }
    texts += [e.answer for e in type_exemplars]
    short = frozenset(k for t in texts for k in sentence_keys(t) if 4 <= length(k.split()) < words)
    reason = "persona leaked" if verbose_only else "exemplar leaked"
    return Leaks(constitution.assistant.name, words, reason, constitution.language, frozenset(grams), short)


def _on_subject(exemplar: Exemplar, words: int) -> Iterator[tuple[str, ...]]:
    for turn in exemplar.turns():
        subject = {word for word in tokens(turn.user) if len(word) >= _SUBJECT_LETTERS}
        for text in (turn.answer, turn.thoughts):
            yield from (gram for gram in ngrams(tokens(text), words) if subject.intersection(gram))
