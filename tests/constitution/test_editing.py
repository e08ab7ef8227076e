"""Append probes to the text of a constitution: they read back exactly, and the rest of the text stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from selfalign.constitution import Constitution, Probe, editing, loading
from selfalign.errors import UserError

REST = """\
format: 1
name: mine  # a name
# about Ida
assistant: {name: Ida, cutoff: May 2024}
prompts: {standard: "{name} helps.", concise: "{name} is brief.", verbose: "{name} says a lot."}
exemplars:
  - user: Hi   # a greeting
    thoughts: "A greeting. Principles: 1 (kind), 3 (calm)."
    answer: Hello.
principles:
  # the first
  - id: 1
    name: kind
    rule: RULE
    probes:
      - {ask: "Hello?", expect: wordy}   # one
      # after the probes
  - name: calm
    probes: []
    id: 3
    rule: "I stay calm."
# the end
"""
RULES = {
    "plain": "I am kind.  # a plain one",
    "long": "I am kind\n      to everybody.",
    "single": "'I am kind; it''s {name}.'",
    "double": '"I am kind: \\u00e9."',
    "folded": ">-\n      I am kind\n      to everybody.\n\n    # under it",
    "clipped": ">\n      I am kind.",
    "remark": ">-  # why\n      I am kind.",
    "literal": "|\n      I am kind.\n      Truly.\n",
    "kept": "|+\n      I am kind.\n\n",
}
FLOW = (
    REST[: REST.index("principles:")]
    + "principles: [{id: 1, name: kind, rule: I am kind, probes: [{ask: A, expect: wordy},]}, # one\n"
    + "  {id: 3, name: calm, rule: I stay calm, probes: []}, {id: 4, name: new, rule: x}]\n"
)
NASTY = st.sampled_from(
    ["{name}", "{x}", "'", '"', "\n", "\r\n", ": ", " #", "- ", "\\", "\x1b[31m", "\t", "%", "&a", "*a", "!!str ", "@",
     "|", ">", "~", "yes", "null", "1e3", "\u2028", "\x85", "\ufeff", "\U0001f600", "\x00", "{", "}", "[", ",", "?",
     "---\n", "...\n", "\u202e", "é", " "]
)  # fmt: skip
TEXT = st.lists(NASTY | st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=8).map(
    "".join
)
TEXTS = TEXT.filter(str.strip)
DOCUMENTS = st.sampled_from([*(REST.replace("RULE", r) for r in RULES.values()), FLOW])


PROBES = st.builds(lambda ask, c: Probe(ask=ask, expect="steps", contrast=c), TEXTS, st.booleans()) | st.builds(
    lambda ask, words: Probe(ask=ask, expect="mentions", words=words), TEXTS, st.lists(TEXTS, min_size=1)
)


def expected_document(text: str, number: int, probe: Probe) -> Constitution:
    """Return what the edited text must say, without the module under test."""
    value = loading.merged("mine.yaml", text).value
    principles = [dict(p) for p in value["principles"]]
    target = next(p for p in principles if p["id"] == number)
    target["probes"] = [*target.get("probes", []), probe.model_dump()]
    document = loading.filled(loading.Located("", {**value, "principles": principles}, {}))
    return Constitution.model_validate(document.value)


def common_prefix(one: str, other: str) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@settings(max_examples=25)
@given(DOCUMENTS, st.sampled_from([1, 3]), PROBES, st.sampled_from(["\n", "\r\n"]))
@example(FLOW, 1, Probe(ask="a", expect="steps"), "\n")
@example(FLOW, 4, Probe(ask="a", expect="steps"), "\n")
@example(REST.replace("RULE", RULES["kept"]), 3, Probe(ask="1e3", expect="steps"), "\r\n")
def test_any_probe_reads_back_and_the_rest_stays(document: str, number: int, probe: Probe, newline: str):
    document = document.replace("\n", newline)
    edited = editing.append_probe("mine.yaml", document, number, probe)
    assert loading.load("mine.yaml", edited) == expected_document(document, number, probe)
    assert newline == "\n" or "\n" not in edited.replace("\r\n", "")
    begin = common_prefix(document, edited)
    end = common_prefix(document[begin:][::-1], edited[begin:][::-1])
    assert document[begin : len(document) - end] == "", "nothing was removed"


def test_a_principle_without_probes_gets_them():
    for text in (
        REST.replace("RULE", "I am kind.").replace("    probes: []\n", ""),
        FLOW.replace(", probes: []", ""),
        REST.replace("RULE", "I am kind.").replace("probes: []", "probes: # none\n      []"),
    ):
        probe = Probe(ask="Are you calm?", expect="steps")
        edited = editing.append_probe("mine.yaml", text, 3, probe)
        assert loading.load("mine.yaml", edited) == expected_document(text, 3, probe)


@settings(max_examples=10)
@given(TEXTS, st.sampled_from(["", "\nprinciples: []", "\nprinciples:\n- {id: 4, name: late, rule: Late.}", "\nx: {}"]))
def test_an_inherited_principle_is_copied(tmp_path_factory: pytest.TempPathFactory, ask: str, end: str):
    folder = tmp_path_factory.mktemp("c")
    base, mine = folder / "base.yaml", str(folder / "mine.yaml")
    base.write_text(REST.replace("RULE", "I am {name}."), "utf-8")
    text = "# only mine\nextends: base.yaml\nassistant: {name: Ole}" + end.replace("x: {}", "language: en")
    edited = editing.append_probe(mine, text, 1, Probe(ask=ask, expect="steps"))
    edited = editing.append_probe(mine, edited, 1, Probe(ask="Again?", expect="verse"))
    one, three = loading.load(mine, edited).principles[:2]
    filled = ask.replace("{name}", "Ole")
    assert (one.rule, three.rule) == ("I am Ole.", "I stay calm.")
    assert [(p.ask, p.expect) for p in one.probes] == [("Hello?", "wordy"), (filled, "steps"), ("Again?", "verse")]
    assert edited.startswith("# only mine\nextends: base.yaml\nassistant: {name: Ole}")


def test_an_unknown_principle_is_an_error():
    with pytest.raises(UserError, match="no principle 2; it has 1, 3"):
        editing.append_probe("mine.yaml", REST.replace("RULE", "I."), 2, Probe(ask="a", expect="steps"))


def test_a_text_that_cannot_be_edited_is_refused():
    # A list by a merge key: what stands in the text is not what the document says.
    text = REST.replace("principles:", "<<:\n  principles:").replace("\n  -", "\n    -").replace("RULE", "I am kind.")
    merge_key = text.replace("\n    name", "\n      name")
    block_ends = REST.replace("RULE", "I.").replace(
        '    id: 3\n    rule: "I stay calm."', "    id: 3\n    rule: |+\n      I.\n\n"
    )
    for document in (merge_key, FLOW.replace("id: 1,", "? id\n  : 1,"), block_ends.replace("    probes: []\n", "")):
        probe = Probe(ask="So?", expect="steps")
        try:
            expected = expected_document(document, 1, probe)
        except (UserError, KeyError):
            continue
        try:
            edited = editing.append_probe("mine.yaml", document, 1, probe)
        except UserError as error:
            assert "add it manually" in str(error)
        else:
            assert loading.load("mine.yaml", edited) == expected


def test_the_shipped_constitution_takes_a_probe(default_constitution: Constitution):
    for principle in default_constitution.principles[:3]:
        probe = Probe(ask="So?", expect="steps")
        edited = editing.append_probe("mine.yaml", "extends: default\n", principle.id, probe)
        changed = loading.load("mine.yaml", edited)
        assert [p.rule for p in changed.principles] == [p.rule for p in default_constitution.principles]
        assert [p for p in changed.probes() if p[1] == probe] == [(changed.principles[principle.id - 1], probe)]


def test_publish_detects_a_changed_file_and_keeps_links(tmp_path: Path):
    real, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    real.write_bytes(b"old")
    link.symlink_to(real)
    editing.publish(link, b"new", b"old")
    assert link.is_symlink() and real.read_bytes() == b"new"
    for path, before in ((link, b"old"), (real, None), (tmp_path / "none.yaml", b"old")):
        with pytest.raises(UserError, match="changed since it was read"):
            editing.publish(path, b"newer", before)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        editing.publish(tmp_path / "file/x.yaml", b"new", None)
    assert real.read_bytes() == b"new" and not list(tmp_path.glob(".*"))
