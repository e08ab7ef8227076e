"""Is the scorer whole? Asked before any benchmark, and of every benchmark's numbers.

A scorer can be broken without a sign: a server that has no log-probabilities of prompts may answer 0.0 for each, and
every accuracy is then at chance (ggml-org/llama.cpp, issue 27174).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from selfalign.data.prompt_text import BOS
from selfalign.errors import UserError
from selfalign.generation.scoring.base import Scored, Scorer, Text

_TRIVIAL = (
    ("One, two, three, four, five, six,", " seven", " carpet"),
    ("Monday, Tuesday, Wednesday, Thursday,", " Friday", " potato"),
    ("red blue red blue red blue red blue red", " blue", " window"),
    ("A, B, C, D, E, F,", " G", " Q"),
    ("January, February, March, April,", " May", " shoe"),
    ("The cat sat on the mat. The cat sat on the mat. The cat sat on the", " mat", " justice"),
    ("apple pear apple pear apple pear apple", " pear", " seven"),
    ("10, 20, 30, 40, 50,", " 60", " Tuesday"),
    ("Hello, hello, hello, hello, hello,", " hello", " tax"),
    ("The capital of France is", " Paris", " seventeen"),
    ("He opened the door with the key, and then he closed the", " door", " however"),
    ("up down up down up down up down up", " down", " lemon"),
)
"""What follows, and what does not: any language model that ever read English knows which."""
_NEEDED = 10
"""Right answers of the twelve; a coin has them in two of a hundred trials."""


def check(scorer: Scorer, adapter: str | None = None) -> None:
    """Let the scorer compare what is certain.

    Raises:
        UserError: it is at chance, or its numbers are none.
    """
    texts: list[Text] = [((BOS, begin), end) for begin, good, bad in _TRIVIAL for end in (good, bad)]
    found = scorer.loglikelihoods(texts, adapter)
    if any(s is None for s in found):
        raise UserError(f"the scorer ({scorer.name}) takes no texts of twenty tokens: nothing can be scored with it")
    scored = [s for s in found if s is not None]
    whole(scored, scorer.name, "trivial items")
    right = sum(good.total > bad.total for good, bad in zip(scored[0::2], scored[1::2], strict=True))
    if right < _NEEDED:
        raise UserError(
            f"the scorer ({scorer.name}) is at chance on trivial items: {right} of {len(_TRIVIAL)} right, where any "
            "language model has nearly all. Either the model is not trained, or its tokenizer or the scorer is broken"
        )


def whole(found: Sequence[Scored], scorer: str, what: str) -> None:
    """Look at log-probabilities as such.

    Raises:
        UserError: they are all zero, all equal, above zero or no numbers.
    """
    values = [v for s in found for v in s.logprobs]
    if not all(math.isfinite(v) and v <= 1e-6 for v in values):
        wrong = next(v for v in values if not math.isfinite(v) or v > 1e-6)
        raise UserError(f"the scorer ({scorer}) gave {wrong} as a log-probability on {what}: it is broken")
    if len(values) > 1 and max(values) == min(values):
        how = "0 for every token" if values[0] == 0 else f"{values[0]:.4f} for every token"
        raise UserError(
            f"the scorer ({scorer}) gave {how} on {what}: it has no log-probabilities of prompts, or is broken"
        )
