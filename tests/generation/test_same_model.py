"""When two servers serve the same model: pure comparisons, and the embedded model against its kin by a real server."""

from __future__ import annotations

import pytest

from selfalign.generation.engines.same_model import MAX_DISTANCE, TEXTS, Fingerprint, _logprob, difference

ANSWERS = tuple((f" word{n}", -0.5 * n) for n in range(len(TEXTS)))


def seen(answers: tuple[tuple[str, float | None], ...], vocabulary: str = "", name: str = "base") -> Fingerprint:
    return Fingerprint(vocabulary, {name: answers})


def test_noise_and_a_tie_that_falls_the_other_way_are_the_same_model():
    noisy = tuple((text, p - 0.02) for text, p in ANSWERS)
    assert difference(seen(ANSWERS), seen(noisy)) == ""
    assert difference(seen(ANSWERS), seen(((" tie", -0.1), *noisy[1:]))) == ""


def test_other_tokens_or_other_probabilities_are_another_model_and_the_farthest_text_is_named():
    shifted = (*((t, p - MAX_DISTANCE - 0.01) for t, p in ANSWERS[:-1]), ("no\x1b", -9.0))
    assert difference(seen(ANSWERS), seen(shifted)) == (
        f"for 'base', after {TEXTS[-1]!r}, 'no\\x1b' (-9.00) instead of ' word7' (-3.50)"
    )
    two_ties = ((" a", 0.0), (" b", 0.0), *ANSWERS[2:])
    assert "instead of ' word0'" in difference(seen(ANSWERS), seen(two_ties))


def test_without_log_probabilities_the_tokens_are_compared():
    bare = tuple((text, None) for text, _ in ANSWERS)
    assert difference(seen(ANSWERS), seen(bare)) == ""
    assert difference(seen(bare), seen(((" a", None), (" b", None), *bare[2:])))


def test_another_vocabulary_at_one_of_them_is_another_model_at_both_it_is_said_elsewhere():
    assert "vocabulary" in difference(seen(ANSWERS, "its vocabulary is not the model's (x)"), seen(ANSWERS))
    assert difference(seen(ANSWERS, "other"), seen(ANSWERS, "other")) == ""
    assert difference(seen(ANSWERS), seen((("z", 0.0),) * len(TEXTS), name="engrave")) == ""


@pytest.mark.parametrize(
    ("logprobs", "value"),
    [
        ({"content": [{"logprob": -1.5}]}, -1.5),
        ({"token_logprobs": [-2]}, -2.0),
        (None, None), ({}, None), ({"content": []}, None),
        ({"token_logprobs": [10**400]}, None), ({"token_logprobs": [None]}, None), ([], None), ("x", None),
    ],
)  # fmt: skip
def test_log_probabilities_in_every_form(logprobs: object, value: float | None):
    assert _logprob({"logprobs": logprobs}) == value
