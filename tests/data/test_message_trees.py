"""Test message trees: rows that are messages are joined, and none is lost."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from selfalign.data.formats import Row, parse_row
from selfalign.data.message_trees import best_reply, join_trees


def message(name: str, parent: str | None, tree: str = "a", **more: Any) -> tuple[str, dict[str, Any]]:
    role = "prompter" if parent is None else "assistant"
    value = {"message_id": name, "parent_id": parent, "message_tree_id": tree, "role": role, "text": f"Text {name}."}
    return f"rows:{name}", {**value, **more}


def read(*rows: tuple[str, Any]) -> list[tuple[str, Row]]:
    return [(where, parse_row(value, where)) for where, value in join_trees(rows)]


def test_preferred_reply_is_the_response():
    rows = [message("a", None), message("b", "a", rank=1), message("c", "b"), message("d", "a", rank=0)]
    assert read(*rows) == [("rows:a", Row("message tree", "Text a.", "", "Text d.", None, 2))]
    rows[3][1]["deleted"] = True
    assert read(*rows)[0][1].answer == "Text b."


def test_order_within_a_tree_has_no_effect():
    rows = [message("b", "a"), message("a", None), message("x", None, "x"), message("y", "x", "x")]
    assert [(where, row.answer) for where, row in read(*rows)] == [("rows:a", "Text b."), ("rows:x", "Text y.")]


def test_messages_without_their_tree_are_dropped_with_a_reason():
    reason = "belongs to no message tree that begins before it"
    rows = [message("b", "a"), ("rows:1", {"prompt": "Hi"}), message("x", None, "x", deleted=True)]
    assert [(row.message, row.problem) for _, row in read(*rows)] == [("", reason), ("Hi", ""), ("Text x.", "deleted")]


def test_a_tree_without_a_reply_has_no_response():
    assert read(message("a", None))[0][1] == Row("message tree", "Text a.")


trees = st.recursive(
    st.fixed_dictionaries({"text": st.text(max_size=3) | st.none()}),
    lambda inner: st.fixed_dictionaries({"text": st.text(max_size=3), "replies": st.lists(inner, max_size=3)}),
)


@given(trees)
def test_every_message_of_a_tree_is_counted(tree: dict[str, Any]):
    def size(branch: dict[str, Any]) -> int:
        return 1 + sum(map(size, branch.get("replies", [])))

    reply, others = best_reply(tree)
    assert others + (reply is not None) == size(tree) - 1
