"""Test `selfalign constitution diff`."""

from __future__ import annotations

import copy
from typing import Any

from selfalign.constitution import Constitution
from selfalign.constitution.diff import diff, lines


def changed(texts: Constitution, change: Any) -> Constitution:
    value = copy.deepcopy(texts.model_dump(mode="json"))
    change(value)
    return Constitution.model_validate(value)


def count(text: str) -> int:
    return len(text.split())


def test_equal_constitutions_have_no_changes(default_constitution: Constitution):
    changes = diff(default_constitution, default_constitution, count)
    assert lines(changes) == []
    assert changes["tokens"]["change"] == 0


def test_changed_principles_are_listed(default_constitution: Constitution):
    def change(value: dict[str, Any]) -> None:
        value["principles"][1]["rule"] = "I tell facts."
        value["principles"][2]["name"] = "useful"
        del value["principles"][15]
        value["principles"].append({"id": 17, "name": "calm", "rule": "I stay calm."})

    changes = diff(default_constitution, changed(default_constitution, change), count)
    principles = changes["principles"]
    assert [p["name"] for p in principles["added"]] == ["calm"]
    assert [p["name"] for p in principles["removed"]] == ["operational"]
    assert [(p["id"], p["to"]) for p in principles["reworded"]] == [(2, "I tell facts.")]
    assert principles["renamed"] == [{"id": 3, "from": "helpful", "to": "useful"}]
    assert changes["tokens"]["change"] < 0
    shown = lines(changes)
    assert "+ principle 17 (calm). I stay calm." in shown
    assert "    + I tell facts." in shown
    assert any(line.startswith("- principle 16 (operational)") for line in shown)


def test_a_moved_principle_is_renumbered_not_replaced(default_constitution: Constitution):
    def swap(value: dict[str, Any]) -> None:
        a, b = value["principles"][0], value["principles"][1]
        a["id"], b["id"] = b["id"], a["id"]

    principles = diff(default_constitution, changed(default_constitution, swap), count)["principles"]
    assert principles["added"] == principles["removed"] == principles["reworded"] == []
    assert [(p["name"], p["from"], p["to"]) for p in principles["renumbered"]] == [
        ("ethical", 1, 2),
        ("informative", 2, 1),
    ]


def test_changes_of_other_texts_are_listed(default_constitution: Constitution):
    def change(value: dict[str, Any]) -> None:
        value["exemplars"][0]["answer"] = "Dear neighbour, thanks."
        del value["question_types"][0]
        value["identity"].append({"question": "Are you old?", "answer": "I am new."})
        value["assistant"]["name"] = "Ida"
        value["principles"][0]["probes"] = []

    changes = diff(default_constitution, changed(default_constitution, change), count)
    assert changes["exemplars"]["changed"] == [default_constitution.exemplars[0].user]
    assert changes["question_types"]["removed"] == ["harmful requests"]
    assert changes["identity"]["added"] == ["Are you old?"]
    assert changes["texts"] == [{"key": "assistant.name", "from": "Alma", "to": "Ida"}]
    (probes,) = changes["principles"]["probes"]
    assert (probes["id"], probes["from"], probes["to"], probes["added"], probes["changed"]) == (1, 6, 0, [], [])
    assert [p["ask"] for p in probes["removed"]] == [p.ask for p in default_constitution.principles[0].probes]


def test_changes_of_probes_are_listed(default_constitution: Constitution):
    def change(value: dict[str, Any]) -> None:
        probes = value["principles"][0]["probes"]
        del probes[1]
        probes[0]["contrast"] = True
        probes.append({"ask": "Is\nit?", "expect": "mentions", "words": ["a", "b c"], "contrast": True})

    first = default_constitution.principles[0].probes
    changes = diff(default_constitution, changed(default_constitution, change), count)
    assert lines(changes) == [
        "~ principle 1 (ethical): 6 probes",
        "    + Is it? [not mentions: a, b c]",
        f"    - {first[1].ask} [refuses]",
        f"    - {first[0].ask} [refuses]",
        f"    + {first[0].ask} [not refuses]",
    ]
    swapped = changed(default_constitution, lambda v: v["principles"][0]["probes"].reverse())
    assert lines(diff(default_constitution, swapped, count)) == [
        "~ principle 1 (ethical): 6 probes, in a different order"
    ]
    both = [{**first[2].model_dump(), "contrast": c} for c in (False, True)]
    twice = changed(default_constitution, lambda v: v["principles"][0]["probes"].append(both[1]))
    (probes,) = diff(default_constitution, twice, count)["principles"]["probes"]
    assert [(len(p["from"]), len(p["to"])) for p in probes["changed"]] == [(1, 2)] and probes["added"] == []


def test_order_and_second_responses_are_changes(default_constitution: Constitution):
    def reverse(value: dict[str, Any]) -> None:
        value["principles"].reverse()
        value["exemplars"].reverse()

    changes = diff(default_constitution, changed(default_constitution, reverse), count)
    assert changes["reordered"] == ["principles", "exemplars"]
    assert lines(changes) == ["~ principles: in a different order", "~ exemplars: in a different order"]
    second = {"question": "Who are you?", "answer": "A program."}
    more = diff(default_constitution, changed(default_constitution, lambda v: v["identity"].append(second)), count)
    assert more["identity"] == {"added": ["Who are you?"], "removed": [], "changed": []}
