"""The report's page: hostile texts stay texts, and its numbers are those of the run."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from report_numbers import HOSTILE, poisoned
from selfalign.data.records import Prompt, Response, prompt_id, write_jsonl
from selfalign.evaluation.records import Answer
from selfalign.pipeline import order
from selfalign.report import page, plots
from selfalign.report.page import render
from selfalign.report.side_by_side import side_by_side
from selfalign.run.context import Context
from selfalign.system.console import plain
from selfalign.system.format import duration


@pytest.fixture(scope="module")
def made(gathered: dict[str, Any]) -> str:
    return render(gathered)


@pytest.fixture(scope="module")
def usual(gathered: dict[str, Any]) -> Page:
    return check(render(poisoned(gathered, "plain text")))


class Page(HTMLParser):
    """The elements of a page, their attributes, and the text outside the style sheet."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        """Elements outside plots."""
        self.attributes: list[tuple[str, str, str | None]] = []
        self.drawn: list[str] = []
        """Elements of plots."""
        self.text = ""
        self.others: list[str] = []
        self._style = False
        self._svg = 0
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._svg += tag == "svg"
        if self._svg:
            self.drawn.append(tag)
        else:
            self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        if self._svg:
            self._svg -= tag == "svg"
        else:
            self.elements.append((f"/{tag}", ()))
        self.text += " " if tag in ("td", "th", "dt", "dd", "text", "li", "summary", "b", "p", "div") else ""
        self._style = False

    def handle_data(self, text: str) -> None:
        if not self._style:
            self.text += text

    def handle_comment(self, text: str) -> None:
        self.others.append(text)

    def handle_pi(self, text: str) -> None:
        self.others.append(text)

    def unknown_decl(self, text: str) -> None:
        self.others.append(text)

    @property
    def flat(self) -> str:
        return " ".join(self.text.split())


_DRAWN = {"svg", "title", "desc", "g", "defs", "path", "use", "text"}
_NEVER = {"script", "img", "link", "iframe", "object", "embed", "form", "input", "base", "image", "foreignobject"}


def check(page: str) -> Page:
    """Check that the page loads and runs nothing, and that links stay in it."""
    read = Page(page)
    assert read.others == []
    assert set(read.drawn) <= _DRAWN
    assert not _NEVER & {tag for tag, _ in read.elements}
    ids = [value for _, name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for tag, name, value in read.attributes:
        assert not name.startswith("on")
        assert name not in {"src", "action", "srcset", "data", "xlink:href", "background", "poster"}
        if name == "href":
            assert tag in ("a", "use") and (value or "").removeprefix("#") in ids, value
        assert "url(" not in (value or ""), (tag, name, value)
        assert "http" not in (value or ""), (tag, name, value)
    return read


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_change_no_element(gathered: dict[str, Any], usual: Page, hostile: str):
    page = render(poisoned(gathered, hostile))
    assert check(page).elements == usual.elements
    assert page == plain(page)


def test_any_text_changes_no_element(gathered: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    usual = check(render(poisoned(gathered, "plain text")))

    @given(st.text(min_size=1, max_size=60))
    @settings(max_examples=20)
    def holds(text: str) -> None:
        assert check(render(poisoned(gathered, text))).elements == usual.elements

    holds()


@pytest.mark.parametrize("hostile", HOSTILE[:5], ids=range(5))
def test_texts_are_shown_unchanged(gathered: dict[str, Any], hostile: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    value = copy.deepcopy(gathered)
    value["side_by_side"][0]["message"] = f"M {hostile}"
    next(iter(value["side_by_side"][0]["answers"].values()))["text"] = f"A {hostile}"
    value["examples"][0]["thoughts"] = f"T {hostile}"
    value["constitution"]["principles"][0]["rule"] = f"R {hostile}"
    shown = Page(render(value)).text
    for letter in "MATR":
        assert f"{letter} {hostile}" in shown


def test_style_and_policy_load_nothing(made: str):
    style = re.search(r"<style>(.*?)</style>", made, re.DOTALL)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'" in made
    assert "http://" not in made
    assert "https://" not in made


def test_plots_use_css_colours_only(made: str):
    drawn = re.findall(r"<svg.*?</svg>", made, re.DOTALL)
    assert len(drawn) >= 10
    style = made[: made.index("</style>")]
    for one in drawn:
        assert not re.search(r"#[0-9a-fA-F]{6}", one)
        assert set(re.findall(r"var\(--(\w+)\)", one)) <= set(re.findall(r"--(\w+):", style))
        assert re.search(r"<title id=\"[\w-]+\">[^<]+</title><desc id=\"[\w-]+\">[^<]+</desc>", one)


def test_page_is_reproducible(gathered: dict[str, Any], made: str):
    assert render(copy.deepcopy(gathered)) == made


def test_without_matplotlib_numbers_are_shown(gathered: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    page = check(render(gathered))
    assert page.drawn == []
    assert page.text.count("pip install 'selfalign[report]'") == 1
    assert ("details", ("open",)) in page.elements
    assert "Self-Instruct candidates" in page.text


def test_new_run_has_a_page(fake_run: Callable[..., Context]):
    page = check(render(page_of(fake_run())))
    assert "From seeds to examples" in page.text
    assert "Held-out prompts" not in page.text
    assert "No kept response cites a principle" in page.text


def page_of(context: Context) -> dict[str, Any]:
    return page.gather(context.run)


def test_omitted_rows_are_counted(gathered: dict[str, Any], made: str):
    text = Page(made).flat
    assert len(gathered["side_by_side"]) == 12
    assert "2 more in 5_evaluation/answers.jsonl" in text
    assert "2 more in drops.jsonl" in text
    assert "the same text · the same text · the same text and 6 more" in text


def test_stages_training_and_costs_are_shown(gathered: dict[str, Any], made: str):
    text = Page(made).flat
    first = gathered["stages"][0]
    assert f"1a Self-Instruct {first['rows_in']} {first['kept']} more than wanted" in text
    assert "failed: server gone 2" in text
    assert "3 engrave 4 2 9,000 1 min 2.500 2.000 on 99.0% of 200 next tokens" in text
    assert "Terms of the base." in text
    assert re.search(r"– → [\d,]+ – → \d+ s", text)


def test_fake_engine_is_named_without_speeds(gathered: dict[str, Any], made: str):
    assert "Generation" in Page(made).text
    text = Page(render({**gathered, "engine": "fake"})).text
    assert "no model ran" in text
    assert "Generation" not in text


def test_paper_results_are_next_to_matching_benchmarks(made: str):
    text = Page(made).flat
    beside, below = text.split("The paper’s results (65 B) on other benchmarks")
    assert "overall 77 85 83" in beside
    assert "MC1, ranked by P(True) 37 61 49" in below.split("Supervision")[0]


def test_constitution_is_complete(made: str, default_constitution: Any):
    text = Page(made).flat
    for principle in default_constitution.principles:
        assert principle.rule in text
        assert all(" ".join(probe.ask.split()) in text for probe in principle.probes)
    for exemplar in default_constitution.exemplars:
        assert all(" ".join(turn.answer.split()) in text for turn in exemplar.turns())
    for kind in default_constitution.question_types:
        assert kind.question in text
    for pair in default_constitution.identity:
        assert " ".join(pair.answer.split()) in text


def test_human_items_add_up(gathered: dict[str, Any], default_constitution: Any):
    human = gathered["supervision"]
    assert human["total"] == sum(human["counts"].values()) == default_constitution.human_items(175)["total"]
    assert human["missing"] == ""


def test_user_prompts_count_as_human_items(fake_run: Callable[..., Context], tmp_path: Path):
    file = tmp_path / "mine.txt"
    file.write_text("Name three rivers.\nHow do bees dance?\n")
    context = fake_run(f"prompts.file={file}")
    order.run_stage(context, "prompts")
    report = page_of(context)
    assert report["supervision"]["counts"]["prompts of the user"] == 2
    assert "seed tasks" not in report["supervision"]["counts"]
    trained = fake_run(f"prompts.file={file}", "engrave.seed_repeats=1", name="trained")
    order.run_stage(trained, "prompts")
    assert page_of(trained)["supervision"]["counts"]["seed tasks"] == 175
    assert report["funnel"][0] == {"title": "prompts of the user", "human": True, "rows_in": 2, "kept": 2, "lost": 0}


def test_funnel_balances(gathered: dict[str, Any]):
    steps = [s for s in gathered["funnel"] if not s["human"]]
    assert [s["title"] for s in gathered["funnel"]][:2] == ["seed tasks", "Self-Instruct candidates"]
    assert all(s["rows_in"] == s["kept"] + s["lost"] for s in steps)


def test_page_size_does_not_grow_with_the_run(fake_run: Callable[..., Context]):
    """Compare pages of 300 and 3,000 rows."""
    sizes = []
    for number in (300, 3000):
        context = fake_run(name=str(number))
        rng = random.Random(number)
        words = ["".join(rng.choices("abcdefgh", k=6)) for _ in range(500)]
        texts = [f"Describe the {' '.join(rng.choices(words, k=6))}." for _ in range(number)]
        write_jsonl(context.run.jsonl("prompts"), (Prompt(prompt_id(t, ""), t, source="self_instruct") for t in texts))
        answers = [" ".join(rng.choices(words, k=5 + n % 50)) for n in range(number)]
        rows = zip(texts, answers, strict=True)
        write_jsonl(
            context.run.jsonl("responses"),
            (Response(prompt_id(t, ""), t, "", a, "It asks.", [1 + len(a) % 16], "self_instruct") for t, a in rows),
        )
        models = [(t, m) for m in ("base", "final") for t in texts]
        write_jsonl(
            context.run.jsonl("answers"), (Answer(prompt_id(t, ""), t, m, "Yes. " * 20, True, 20) for t, m in models)
        )
        sizes.append(len(render(page_of(context))))
    assert sizes[1] < sizes[0] * 1.05


# -- small parts -------------------------------------------------------------------------------------------------------


def test_responses_are_grouped_in_file_order():
    rows = [Answer("1", "m1", "base", "a", True, 1), Answer("2", "m2", "base", "b", True, 1)]
    rows.append(Answer("1", "m1", "final", "c", False, 2))
    grouped = side_by_side(rows)
    assert [r["message"] for r in grouped] == ["m1", "m2"]
    assert grouped[0]["answers"]["final"] == {"text": "c", "ended": False, "words": 2}


def test_held_out_responses_have_stage_2_thoughts(gathered: dict[str, Any], made: str):
    rows = gathered["side_by_side"]
    assert gathered["heldout"] == 14
    assert all(set(r["answers"]) == {"base", "engraved", "final"} for r in rows)
    assert any(r["constitution"] and r["constitution"]["thoughts"] for r in rows)
    assert "The base model’s internal thoughts and response under the constitution" in made


def test_non_finite_numbers_become_null(fake_run: Callable[..., Context], monkeypatch: pytest.MonkeyPatch):
    context = fake_run()
    extra = {"a": [float("nan"), {"b": float("-inf")}], "c": 1.5, "d": "nan"}
    report = page.gather(context.run) | {"extra": extra}
    monkeypatch.setattr(page, "gather", lambda run: report)
    _, file = page.run(context)
    value = json.loads(file.read_text("utf-8"))
    assert value["extra"] == {"a": [None, {"b": None}], "c": 1.5, "d": "nan"}


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (3.4, "3 s"), (61, "1 min"), (5399, "90 min"), (7200, "2.0 h")]
)
def test_duration_is_short(seconds: float | None, text: str):
    assert duration(seconds) == text
