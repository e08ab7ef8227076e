"""A constitution's text, edited in one place: what is written reads back exactly, all else stays as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from selfalign import constitution as constitutions
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


def wanted(text: str, change: editing.Change) -> Constitution:
    """What the edited document must say, made without the module under test."""
    value = loading.merged("mine.yaml", text).value
    principles = [dict(p) for p in value["principles"]]
    target = next((p for p in principles if p["id"] == change.id), None)
    if isinstance(change, editing.Added):
        principles.append({"id": change.id, "name": change.name, "rule": change.rule})
    elif isinstance(change, editing.Reworded):
        assert target
        target["rule"] = change.rule
    else:
        assert target
        target["probes"] = [*target.get("probes", []), change.probe.model_dump()]
    document = loading.filled(loading.Located("", {**value, "principles": principles}, {}))
    return Constitution.model_validate(document.value)


def common(one: str, other: str) -> int:
    """How many characters both begin with."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


CHANGES = st.one_of(
    st.builds(editing.Reworded, st.sampled_from([1, 3]), TEXTS),
    st.builds(
        editing.Probed,
        st.sampled_from([1, 3]),
        st.builds(lambda ask, c: Probe(ask=ask, expect="steps", contrast=c), TEXTS, st.booleans())
        | st.builds(lambda ask, w: Probe(ask=ask, expect="mentions", words=w), TEXTS, st.lists(TEXTS, min_size=1)),
    ),
    st.builds(editing.Added, st.just(17), st.just("no"), TEXTS),
)


@settings(max_examples=25)
@given(DOCUMENTS, CHANGES, st.sampled_from(["\n", "\r\n"]))
@example(FLOW, editing.Reworded(3, "a, b: {c}"), "\n")
@example(FLOW, editing.Probed(1, Probe(ask="a", expect="steps")), "\n")
def test_any_text_reads_back_and_the_rest_stays(document: str, change: editing.Change, newline: str):
    document = document.replace("\n", newline)
    new = editing.changed("mine.yaml", document, change)
    assert loading.load("mine.yaml", new) == wanted(document, change)
    assert newline == "\n" or "\n" not in new.replace("\r\n", "")
    # All that went is the value itself: comments, blank lines and the rest stand where they stood.
    begin = common(document, new)
    end = common(document[begin:][::-1], new[begin:][::-1])
    gone = document[begin : len(document) - end]
    assert "#" not in gone if isinstance(change, editing.Reworded) else gone == ""


@settings(max_examples=5)
@given(TEXTS, TEXTS)
def test_what_is_extended_is_copied_before_it_is_changed(tmp_path_factory: pytest.TempPathFactory, rule: str, ask: str):
    folder = tmp_path_factory.mktemp("c")
    base, mine = folder / "base.yaml", str(folder / "mine.yaml")
    base.write_text(REST.replace("RULE", "I am {name}."), "utf-8")
    text = "# only mine\nextends: base.yaml\nassistant: {name: Ole}"
    for change in (
        editing.Probed(1, Probe(ask=ask, expect="steps")), editing.Reworded(1, rule), editing.Added(4, "late", rule),
        editing.Probed(4, Probe(ask=ask, expect="steps", contrast=True)),
    ):  # fmt: skip
        text = editing.changed(mine, text, change)
    found = loading.load(mine, text)
    one, three, four = found.principles
    fill = lambda t: t.replace("{name}", "Ole").replace("{cutoff}", "May 2024")  # noqa: E731
    assert (one.rule, four.rule, three.rule) == (fill(rule), fill(rule), "I stay calm.")
    assert [(p.ask, p.expect, p.contrast) for p in one.probes] == [
        ("Hello?", "wordy", False),
        (fill(ask), "steps", False),
    ]
    assert [(p.ask, p.contrast) for p in four.probes] == [(fill(ask), True)]
    assert text.startswith("# only mine\nextends: base.yaml\nassistant: {name: Ole}\n")


@pytest.mark.parametrize("style", RULES)
def test_the_style_is_kept_where_the_words_allow_it(style: str):
    document = REST.replace("RULE", RULES[style])
    new = editing.changed("mine.yaml", document, editing.Reworded(1, f"I am good. {'Very ' * 40}good."))
    line = next(
        line
        for line in new.splitlines()
        if ("rule:" in line and "good" in line) or line.endswith((">-", "|-", "# why"))
    )
    begins = {"single": "'", "double": '"', "folded": ">-", "clipped": ">-", "literal": "|-", "kept": "|-"}
    begins["remark"] = ">-  # why"
    assert line.strip().removeprefix("rule: ").startswith(begins.get(style, "I am good."))
    if style == "folded":
        assert max(len(line) for line in new.splitlines()) <= 120


def test_a_rule_is_read_as_it_is_written(tmp_path: Path):
    text = REST.replace("RULE", "I am {name}.")
    assert editing.rule_of("mine.yaml", text, 1) == "I am {name}."
    with pytest.raises(UserError, match="no principle 2"):
        editing.rule_of("mine.yaml", text, 2)


def test_what_cannot_be_edited_is_refused():
    # A list by a merge key: what stands in the text is not what the document says.
    text = REST.replace("principles:", "<<:\n  principles:").replace("\n  -", "\n    -").replace("RULE", "I am kind.")
    text = text.replace("\n    name", "\n      name")
    for document in (text, FLOW.replace("id: 1,", "? id\n  : 1,")):
        try:
            before = loading.load("mine.yaml", document)
        except UserError:
            continue
        try:
            new = editing.changed("mine.yaml", document, editing.Reworded(1, "So."))
        except UserError as error:
            assert "edit it by hand" in str(error)
        else:
            assert loading.load("mine.yaml", new).principles[0].rule == "So." != before.principles[0].rule


def test_the_shipped_text_takes_every_change(default_constitution: Constitution):
    shipped = "extends: default\n"
    for principle in default_constitution.principles[:3]:
        new = editing.changed("mine.yaml", shipped, editing.Reworded(principle.id, "I do it."))
        found = loading.load("mine.yaml", new)
        assert [p.rule for p in found.principles if p.rule == "I do it."] == ["I do it."]
        assert [p.probes for p in found.principles] == [p.probes for p in default_constitution.principles]
    assert constitutions.load("default") == default_constitution
