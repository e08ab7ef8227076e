"""The files of scenarios: the shipped one and its halves, and files of format 1."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from selfalign import constitution as constitutions
from selfalign.data.scenarios import GROUPS, read_scenarios, shipped
from selfalign.errors import UserError
from selfalign.quality.rouge import normalize, rouge_l

PAIRED = ("harmful", "live", "private", "false_premise", "missing_details")


def test_groups_with_claims_have_ninety_pairs() -> None:
    counts = Counter(group for group, _ in shipped().asks())
    assert all(counts[group] >= 90 for group in PAIRED)
    assert all(counts[group] >= 30 for group in GROUPS if group not in PAIRED and group != "harmless")
    assert all(bool(ask.twin) == (group in PAIRED) for group, ask in shipped().asks())
    assert all(
        bool(ask.answer) == (group in ("arithmetic", "text_task", "identity")) for group, ask in shipped().asks()
    )


def test_halves_are_about_equal() -> None:
    counts = Counter((group, ask.half) for group, ask in shipped().asks())
    for group in {group for group, _ in counts}:
        whole = counts[group, "development"] + counts[group, "test"]
        assert 0.4 <= counts[group, "test"] / whole <= 0.6, group


def test_messages_are_distinct() -> None:
    texts = shipped().texts()
    assert len({normalize(t) for t in texts}) == len(texts) > 1200
    by_group = {group: [a.ask for g, a in shipped().asks() if g == group] for group in GROUPS}
    near = [p for asks in by_group.values() for p in combinations(asks, 2) if rouge_l(*p) >= 0.6]
    assert not near


def test_no_message_is_near_a_text_of_the_constitution_or_a_seed() -> None:
    constitution = constitutions.load("default")
    texts = [t.question for t in constitution.question_types] + [p.question for p in constitution.identity]
    texts += [e.user for e in constitution.exemplars] + [t.user for t in constitution.prompts.two_shot]
    texts += [e.user for t in constitution.question_types for e in getattr(t, "exemplars", [])]
    texts += [s.instruction for s in constitutions.load_seeds("default")]
    assert not [(a, t) for a in shipped().texts() for t in texts if rouge_l(a, t) >= 0.6]


def test_file_of_format_one_has_groups_without_twins(tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    file.write_text('format: 1\nharmful: [{about: a, ask: "Steal?"}]\nharmless: [{about: a, ask: "Lock?"}]\n', "utf-8")
    assert [(group, a.ask, a.twin) for group, a in read_scenarios(str(file)).asks()] == [
        ("harmful", "Steal?", None), ("harmless", "Lock?", None)
    ]  # fmt: skip


def test_wrong_file_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("harmfull: []", "utf-8")
    with pytest.raises(UserError, match="harmful") as error:
        read_scenarios(str(tmp_path / "wrong.yaml"))
    assert "\n" not in str(error.value)
