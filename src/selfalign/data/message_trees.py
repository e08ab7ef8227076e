"""Read OpenAssistant's message trees: a tree in a row, or a message in each row, one tree after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

TREE_KEYS = ("message_tree_id", "prompt")
MESSAGE_KEYS = ("message_tree_id", "parent_id", "message_id", "role", "text")
READ = frozenset({*TREE_KEYS, *MESSAGE_KEYS, "rank", "deleted"})


def join_trees(values: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield the rows, with the messages of a tree that follow each other as one row, a nested tree.

    A message whose tree does not begin there is yielded as it is.
    """
    for tree_id, group in groupby(values, key=lambda item: _tree_id(item[1])):
        if tree_id is None:
            yield from group
            continue
        rows = list(group)
        root = next((n for n, (_, row) in enumerate(rows) if row.get("parent_id") is None), None)
        if root is None:
            yield from rows
        else:
            where, prompt = rows[root]
            replies = [row for _, row in rows if row.get("parent_id") == prompt["message_id"]]
            others = len(rows) - 1 - len(replies)
            yield where, {"message_tree_id": tree_id, "prompt": {**prompt, "replies": replies, "others": others}}


def _tree_id(value: object) -> str | None:
    """Return the tree of a row that is a message, or None."""
    if isinstance(value, dict) and all(key in value for key in MESSAGE_KEYS):
        tree_id = value["message_tree_id"]
        return tree_id if isinstance(tree_id, str) else None
    return None


def best_reply(prompt: dict[str, Any]) -> tuple[dict[str, Any] | None, int]:
    """Return the preferred reply to a tree's prompt, the one of the lowest rank, and the number of other messages."""
    replies = [reply for reply in prompt.get("replies") or () if isinstance(reply, dict)]
    usable = [reply for reply in replies if not reply.get("deleted") and isinstance(reply.get("text"), str)]
    best = min(usable, key=lambda reply: _rank(reply.get("rank")), default=None)
    others = prompt.get("others")
    number = others + len(replies) if isinstance(others, int) else sum(map(_size, replies))
    return best, number - (best is not None)


def _rank(rank: object) -> float:
    return float(rank) if isinstance(rank, int | float) else float("inf")


def _size(reply: dict[str, Any]) -> int:
    """Return the number of messages of a branch."""
    number, rest = 0, [reply]
    while rest:
        number += 1
        rest.extend(child for child in rest.pop().get("replies") or () if isinstance(child, dict))
    return number
