"""Penalise the token that would repeat a sequence, as llama.cpp's DRY sampler does. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_LONGEST = 40
"""Longer repeated sequences are penalised like this one: 2 to this power forbids any token."""


def penalties(
    tokens: Sequence[int], strength: float, may_repeat: int, is_break: Callable[[int], bool]
) -> dict[int, float]:
    """Return token -> what to subtract from its logit.

    Args:
        tokens: the text so far.
        strength: the penalty on a token that extends a repeated sequence of `may_repeat` tokens; it doubles with each
            further token of the sequence.
        is_break: whether a token ends a repeated sequence.
    """
    if not strength or len(tokens) < 2:
        return {}
    reach = 0
    while reach < min(_LONGEST + may_repeat, len(tokens)) and not is_break(tokens[-1 - reach]):
        reach += 1
    if reach < may_repeat:
        return {}
    lengths: dict[int, int] = {}
    last = tokens[-1]
    for end in range(len(tokens) - 1):
        if tokens[end] != last:
            continue
        length = 1
        while length < reach and length <= end and tokens[end - length] == tokens[-1 - length]:
            length += 1
        follower = tokens[end + 1]
        if length >= may_repeat and length > lengths.get(follower, 0) and not is_break(follower):
            lengths[follower] = length
    return {token: strength * 2.0 ** min(_LONGEST, length - may_repeat) for token, length in lengths.items()}
