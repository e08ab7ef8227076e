"""The comparison of two servers' fingerprints."""

from __future__ import annotations

import pytest

from selfalign.generation.engines.same_model import MAX_DISTANCE, TEXTS, Fingerprint, _logprob, difference

ANSWERS = tuple((f" word{n}", -0.5 * n) for n in range(len(TEXTS)))


def fingerprint(answers: tuple[tuple[str, float | None], ...], vocabulary: str = "", name: str = "base") -> Fingerprint:
    return Fingerprint(vocabulary, {name: answers})


def test_noise_and_one_tie_are_the_same_model():
    noisy = tuple((text, p - 0.02) for text, p in ANSWERS)
    assert difference(fingerprint(ANSWERS), fingerprint(noisy)) == ""
    assert difference(fingerprint(ANSWERS), fingerprint(((" tie", -0.1), *noisy[1:]))) == ""


def test_another_model_is_named_by_its_farthest_text():
    shifted = (*((t, p - MAX_DISTANCE - 0.01) for t, p in ANSWERS[:-1]), ("no\x1b", -9.0))
    assert difference(fingerprint(ANSWERS), fingerprint(shifted)) == (
        f"for 'base', after {TEXTS[-1]!r}, 'no\\x1b' (-9.00) instead of ' word7' (-3.50)"
    )
    two_ties = ((" a", 0.0), (" b", 0.0), *ANSWERS[2:])
    assert "instead of ' word0'" in difference(fingerprint(ANSWERS), fingerprint(two_ties))


def test_tokens_are_compared_without_log_probabilities():
    bare = tuple((text, None) for text, _ in ANSWERS)
    assert difference(fingerprint(ANSWERS), fingerprint(bare)) == ""
    assert difference(fingerprint(bare), fingerprint(((" a", None), (" b", None), *bare[2:])))


def test_vocabulary_of_only_one_server_is_another_model():
    assert "vocabulary" in difference(
        fingerprint(ANSWERS, "its vocabulary is not the model's (x)"), fingerprint(ANSWERS)
    )
    assert difference(fingerprint(ANSWERS, "other"), fingerprint(ANSWERS, "other")) == ""
    assert difference(fingerprint(ANSWERS), fingerprint((("z", 0.0),) * len(TEXTS), name="engrave")) == ""


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
