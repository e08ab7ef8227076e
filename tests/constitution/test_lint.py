"""Test `selfalign constitution lint`: shipped documents are clean, and each fault is found at its line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sample_constitutions import GOOD, SEEDS
from selfalign.constitution.document import SeedTask
from selfalign.constitution.lint import Budget, Finding, lint
from selfalign.constitution.loading import Located, located_seeds, read

NUMBERS = '"Count with care and show each sum."'
NEWS = '"For news and prices, name a place to look."'
FAULTS = {
    # fault: (text of GOOD, its replacement, line of the finding, its rule, part of its message)
    "an unknown key": ("name: small", 'name: small\nlicense: "MIT"', 3, "form", "did you mean 'licence'"),
    "a wrong type": ("{id: 2, name: numbers", "{id: two, name: numbers", 8, "form", "'two'"),
    "a missing key": ("    answer: Gladly. The sum is 6 euros.\n", "", 11, "form", "answer"),
    "a probe without words": ("words: [sorry, tough]", "words: []", 6, "form", "needs words"),
    "an unknown number": ("3 (live)", "9 (live)", 15, "consistency", "there is no principle 9"),
    "a wrong name": ("2 (numbers)", "2 (sums)", 12, "consistency", "principle 2 is 'numbers'"),
    "no citation": ("news. Principles: 3 (live).", "news.", 15, "consistency", "cites no principle"),
    "an id twice": ("{id: 2, name: numbers", "{id: 1, name: numbers", 8, "consistency", "two principles have the id 1"),
    "an unknown hint": ("hints: [3]", "hints: [7]", 19, "consistency", "there is no such principle"),
    "a gap": ("{id: 3, name: live", "{id: 4, name: live", 9, "numbering", "expected principle 3, not 4"),
    "not exemplified": ("1 (kind), 2 (numbers).", "1 (kind).", 8, "exemplified", "2 (numbers)"),
    "the same name": ("name: numbers, rule", "name: Kind, rule", 8, "duplicate", "both named"),
    "the same rule": (NUMBERS, '"Be very kind and patient with the user."', 8, "duplicate", "nearly"),
    "opposite rules": (NUMBERS, '"Never be kind or patient in public."', 8, "contradiction", "contradict"),
    "a negative rule": (NEWS, '"Do not guess the news and the prices."', 9, "negative", "instead"),
    "a probe on an exemplar": ("I failed my exam today.", "Add up the prices of my pears.", 6, "leak", "exemplar 1"),
    "a trained probe": ('What is seven times six?", e', 'Why do things fall?", e', 7, "leak", "as a seed"),
    "an unfinished answer": ("The sum is 6 euros.", "The sum is 6 euros and the", 13, "unfinished", "mid-sentence"),
    "a turn inside": ("Please look at a news site for that.", '"Look.\\nUser: Thanks."', 16, "turn", "another turn"),
    "an unfilled placeholder": ("{name} helps at length.", "{nom} helps at length.", 23, "placeholder", "{nom}"),
    "no hints": ('Who won the vote?", hints: [3]', 'Who won the vote?"', 19, "hints", "names no principle"),
}


def findings(tmp_path: Path, text: str, seeds: str = SEEDS, budget: Budget | None = None) -> list[Finding]:
    file, seed_file = tmp_path / "c.yaml", tmp_path / "s.jsonl"
    file.write_text(text, "utf-8")
    seed_file.write_text(seeds, "utf-8")
    return lint(read(str(file)), located_seeds(str(seed_file)), budget)


def test_the_good_fixture_is_clean(tmp_path: Path):
    assert findings(tmp_path, GOOD) == []


@pytest.mark.parametrize("source", ["default", "two-stage"])
def test_the_shipped_constitutions_are_clean(source: str):
    assert lint(read(source), located_seeds("default")) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_lint_finds_each_fault_with_its_line(tmp_path: Path, fault: str):
    old, new, line, rule, words = FAULTS[fault]
    assert GOOD.count(old) >= 1
    results = findings(tmp_path, GOOD.replace(old, new, 1))
    hits = [f for f in results if f.where == f"{tmp_path / 'c.yaml'}:{line}" and f.rule == rule and words in f.message]
    assert hits, "\n".join(map(str, results))


def test_different_citation_cues_are_a_warning(tmp_path: Path):
    results = findings(tmp_path, GOOD.replace("Principles: 3 (live)", "Rules: 3 (live)"))
    assert [(f.where, f.rule) for f in results] == [(f"{tmp_path / 'c.yaml'}:15", "cue")]


def test_english_checks_in_another_language_are_an_error(tmp_path: Path):
    german = GOOD.replace("name: small", "name: small\nlanguage: de").replace(
        "expect: mentions, words: [sorry, tough]", "expect: admits"
    )
    assert [(f.where, f.rule, f.level) for f in findings(tmp_path, german)] == [
        (f"{tmp_path / 'c.yaml'}:7", "probes", "error")
    ]


@pytest.mark.parametrize(
    "answer", ["Eggs and a little milk", "1. Boil the egg for ten full minutes", "**Done.**", "5 €"]
)
def test_response_without_full_stop_can_be_finished(tmp_path: Path, answer: str):
    assert findings(tmp_path, GOOD.replace("Gladly. The sum is 6 euros.", f'"{answer}"')) == []


def test_twenty_faults_cover_ten_rules():
    assert len(FAULTS) >= 20
    assert len({f[3] for f in FAULTS.values()}) >= 10


def test_leaking_and_repeated_seeds_are_warnings(tmp_path: Path):
    seeds = SEEDS + '{"instruction": "Add up the prices of the pears.", "instances": [{"input": ""}]}\n'
    seeds += '{"instruction": "Name two warm colours please.", "instances": [{"input": ""}]}\n'
    results = findings(tmp_path, GOOD, seeds)
    assert [(f.where, f.rule) for f in results] == [
        (f"{tmp_path / 's.jsonl'}:3", "leak"),
        (f"{tmp_path / 's.jsonl'}:4", "seeds"),
    ]


def test_budget_counts_tokens_of_the_prompt(tmp_path: Path):
    def words(text: str) -> int:
        return len(text.split())

    assert findings(tmp_path, GOOD, budget=Budget("m", words, 1000, 300)) == []
    results = findings(tmp_path, GOOD, budget=Budget("m", words, 200, 150))
    assert [(f.where, f.level, f.rule) for f in results] == [(f"{tmp_path / 'c.yaml'}:4", "error", "budget")]
    assert "of 200" in results[0].message


def test_too_many_human_written_items_are_a_warning(tmp_path: Path):
    pairs = [(a, b) for a in range(17) for b in range(17)]
    seeds = "".join(f'{{"instruction": "p{a}q{b} r{a}s{b} t{b}u{a}", "instances": []}}\n' for a, b in pairs)
    results = findings(tmp_path, GOOD, seeds)
    assert [f.rule for f in results] == ["size"]
    assert "300" in results[0].message


def test_findings_name_the_extended_file(tmp_path: Path):
    base, mine = tmp_path / "base.yaml", tmp_path / "mine.yaml"
    base.write_text(
        GOOD.replace("name a place to look", "avoid an answer").replace('"For news', '"Never tell news'), "utf-8"
    )
    mine.write_text('extends: base.yaml\nprinciples:\n  - {id: 4, name: calm, rule: "Stay calm."}\n', "utf-8")
    results = lint(read(str(mine)), [])
    assert {(f.where, f.rule) for f in results} == {
        (f"{base}:9", "negative"),
        (f"{mine}:3", "exemplified"),
    }


@given(st.text(max_size=200), st.text(max_size=200))
def test_lint_never_fails_on_any_rule_or_seed(rule: str, seed: str):
    value = yaml.safe_load(GOOD)
    value["principles"][0]["rule"] = rule or "x"
    document = Located("c.yaml", value, {})
    for finding in lint(document, [("s:1", SeedTask(instruction=seed or "x", input=rule))]):
        assert finding.where
        assert finding.message
