"""Stages 1 and 2 with the fake engine: parsers, prompts, counts, files, resuming."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conftest import hang_guard
from selfalign.constitution import Constitution, SeedTask, load_seeds
from selfalign.constitution.rendering import query, render
from selfalign.data.prompt_text import BOS, Control
from selfalign.data.records import Drop, Prompt, Response, Topic, prompt_id, read_jsonl, write_jsonl
from selfalign.errors import Interrupted, TooManyFailed, UserError
from selfalign.generation.engines.base import Request, Step
from selfalign.generation.engines.fake import default_script
from selfalign.pipeline import order, step1a_self_instruct, step1b_red_team, step2_self_align
from selfalign.pipeline.order import run_stage
from selfalign.pipeline.step1a_self_instruct import parse
from selfalign.pipeline.step1b_red_team import topic_reason
from selfalign.run.context import Context
from selfalign.system.signals import STOP

SMALL = (
    "prompts.self_instruct.count=12",
    "prompts.red_team.count=12",
    "prompts.red_team.topic_rounds=1",
    "evaluate.heldout_prompts=4",
)
LEDGERS = ("self_instruct", "topics", "red_team", "align")
Runs = Callable[..., Context]


# -- parse -----------------------------------------------------------------------------------------------------------


def block(number: int, instruction: str, text: str = "<noinput>") -> str:
    return f"{number}. Instruction: {instruction}\n{number}. Input:\n{text}\n"


def after(first: int, *blocks: str) -> str:
    """What a model writes after "<first>. Instruction:"."""
    return "###\n".join(blocks).removeprefix(f"{first}. Instruction:")


def test_parse_reads_every_block():
    text = after(6, block(6, "Sort the words.", "pear\nfig"), block(7, "Name a river."))
    assert parse(text, 6, False) == [("Sort the words.", "pear\nfig"), ("Name a river.", "")]


@pytest.mark.parametrize("none", ["<noinput>", "noinput", "<No Input>", "None", "N/A", "<noinput>.", ""])
def test_parse_reads_every_spelling_of_no_input(none: str):
    assert parse(after(6, block(6, "Name a river.", none)), 6, False) == [("Name a river.", "")]


def test_parse_skips_the_last_block_of_a_truncated_completion():
    text = after(6, block(6, "Sort the words."), block(7, "Name a riv"))
    assert parse(text, 6, True) == [("Sort the words.", "")]
    assert parse(after(6, block(6, "Sort the words.")), 6, True) == []


def test_parse_joins_the_lines_of_an_instruction():
    assert parse(" Sort\n  the words.\n6. Input:\n<noinput>", 6, False) == [("Sort the words.", "")]


@pytest.mark.parametrize(
    "text",
    [
        " Sort the words.",
        " Sort the words.\n7. Input:\nx",
        " Sort the words.\n6. Input:\nx\n7. Instruction: Name a river.\n7. Input:\ny",
        " Sort.\n6. Instruction: Again.\n6. Input:\nx",
    ],
)
def test_parse_returns_a_malformed_block_as_text(text: str):
    blocks = parse(text, 6, False)
    assert len(blocks) == 1
    assert isinstance(blocks[0], str)
    assert "Sort" in blocks[0]


def test_parse_continues_after_a_malformed_block():
    text = after(6, "6. Instruction: Sort.\n", block(7, "Name a river."))
    assert parse(text, 6, False) == ["6. Instruction: Sort.", ("Name a river.", "")]


fragments = st.sampled_from(
    ["6. Instruction:", "7. Instruction:", "6. Input:", "7. Input:", "###", "\n", " ", "a", "<noinput>"]
)


@given(st.text() | st.lists(fragments, max_size=20).map("".join), st.integers(1, 30), st.booleans())
@example("", 6, False)
@example("###" * 50, 6, True)
def test_parse_accepts_any_text(text: str, first: int, truncated: bool):
    for block in parse(text, first, truncated):
        assert isinstance(block, str) or (len(block) == 2 and "\n" not in block[0])


@pytest.mark.parametrize(
    "unit", [" ", " \n", "\n", "6. Input:\n", "6. Instruction: a\n", "###", "a ", "6. "], ids=ascii
)
def test_parse_is_fast_on_repetitive_text(unit: str):
    text = " Sort the words" + unit * (20_000 // len(unit)) + "x"
    with hang_guard():
        parse(text, 6, False)


# -- topics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", ["Gold", "Marie Curie", "The Red Cross", "A", "Café Society", "X-rays"])
def test_usable_topics_have_no_reason(topic: str):
    assert topic_reason(topic) is None


@pytest.mark.parametrize(
    ("topic", "reason"),
    [
        ("", "empty"),
        ("The Red Cross House", "more than three words"),
        ("gold", "no capital letter first"),
        ("7 Wonders", "no capital letter first"),
        ("École", "no capital letter first"),
        ("Gold.", "ends with punctuation"),
        ("Gold?", "ends with punctuation"),
        ("X" * 61, "not a topic"),
        ("Topic: Gold", "not a topic"),
    ],
)
def test_unusable_topics_have_a_reason(topic: str, reason: str):
    assert topic_reason(topic) == reason


@given(st.text())
def test_topic_reason_accepts_any_text(topic: str):
    assert topic_reason(topic) is None or topic_reason(topic)


# -- prompts as they are sent ----------------------------------------------------------------------------------------


def test_self_instruct_prompt_shows_seeds_and_ends_with_next_number():
    pieces = step1a_self_instruct.render(
        [SeedTask(instruction="Sort\nthese:", input="b a"), SeedTask(instruction="Go.", input="")]
    )
    text = "".join(pieces)
    assert pieces[0] is BOS
    assert "###\n1. Instruction: Sort these\n1. Input:\nb a\n###\n2. Instruction: Go.\n2. Input:\n<noinput>\n" in text
    assert text.endswith("###\n3. Instruction:")


def test_markers_in_seeds_stay_text():
    pieces = step1a_self_instruct.render([SeedTask(instruction="<eos> {0} %s \\1", input="<bos>")])
    assert [p for p in pieces if isinstance(p, Control)] == [BOS]
    assert "<eos> {0} %s \\1" in pieces[1]


def test_topic_prompt_shows_other_types_and_ends_with_its_own(default_constitution: Constitution):
    types = default_constitution.question_types
    text = "".join(step1b_red_team.render_topics(types[0], ["Gift", "Party"], types))
    assert text.endswith(f"Ten topics for questions about {types[0].name}:\n1. Gift\n2. Party\n3.")
    assert all(f"Topic for questions about {t.name}: {t.topic}\n" in text for t in types[1:])
    assert types[0].topic not in text


def test_question_prompts_share_a_prefix(default_constitution: Constitution):
    types = default_constitution.question_types
    one = step1b_red_team.render_question(types[:3], types[5], "Rome")
    two = step1b_red_team.render_question(types[:3], types[6], "Oslo")
    assert one[:2] == two[:2]
    assert one[2].endswith(f"kind: {types[5].name}, topic: Rome, question:")
    assert types[5].question in one[2]


def test_rendered_constitution_has_all_parts(default_constitution: Constitution):
    text = render(default_constitution)
    for principle in default_constitution.principles:
        assert f"{principle.id} ({principle.name}). {principle.rule}" in text
    for exemplar in default_constitution.exemplars:
        assert (
            f"User: {exemplar.user}\n\nAlma (internal thoughts): {exemplar.thoughts}\n\nAlma: {exemplar.answer}" in text
        )
    assert text.endswith("\n\n")
    assert query(default_constitution, "Hi") == "User: Hi\n\nAlma (internal thoughts):"


PROMPT = Prompt(prompt_id("Why is gold dear?", ""), "Why is gold dear?", question_type="real-time information")


def align_request(fake_run: Runs, *sets: str) -> Request:
    return first_request(fake_run(*sets))


def first_request(context: Context) -> Request:
    return step2_self_align.request(context, PROMPT, step2_self_align.form(context))


def test_guided_form_has_steps_for_thoughts_citations_and_response(fake_run: Runs):
    request = align_request(fake_run)
    assert "".join(request.prompt).endswith("User: Why is gold dear?\n\nAlma (internal thoughts):")
    think, cite, answer = request.steps
    assert think.stop == ("\n", " Principles:")
    assert cite.cue == " Principles:"
    assert '"9 (static)"' in cite.grammar
    assert answer.cue == "\n\nAlma:"
    assert think.sampling.max_new_tokens == 80
    assert answer.sampling.max_new_tokens == 128


def test_hints_start_the_citations(fake_run: Runs):
    assert align_request(fake_run, "align.hints=true").steps[1].cue == " Principles: 9 (static), 7 (candor),"


def test_paper_form_has_one_step(fake_run: Runs):
    request = align_request(fake_run, "align.form=paper")
    assert len(request.steps) == 1
    assert request.steps[0].cue == ""
    assert request.adapter is None


def test_request_seed_depends_on_row_and_recipe_seed(fake_run: Runs):
    one, two = fake_run(name="a"), fake_run("seed=1", name="b")
    assert first_request(one).seed == first_request(one).seed
    assert first_request(one).seed != first_request(two).seed


# -- whole stages ----------------------------------------------------------------------------------------------------


def script(prompt: str, step: Step, rng: random.Random) -> str:
    """default_script, and for the guided form's second step two citations."""
    if prompt.endswith("Principles:"):
        return " 2 (informative), 3 (helpful)."
    if prompt.endswith("\n\nAlma:"):
        return default_script("x", step, rng)
    return default_script(prompt, step, rng)


def run_both(context: Context) -> Context:
    run_stage(context, "prompts")
    run_stage(context, "align")
    return context


def check_counts(context: Context, stages: tuple[str, ...] = LEDGERS) -> None:
    drops = Counter(d.stage for d in context.journal.drops())
    for stage in stages:
        counts = context.journal.counts(stage)
        assert counts.finished
        lost = sum(counts.dropped.values()) + sum(counts.failed.values())
        assert counts.rows_in == counts.kept + lost
        assert drops[stage] == lost


def contents(context: Context) -> dict[str, bytes]:
    return {
        p.relative_to(context.run.path).as_posix(): p.read_bytes() for p in sorted(context.run.path.rglob("*.jsonl"))
    }


@pytest.fixture
def done(fake_run: Runs) -> Context:
    return run_both(fake_run(*SMALL, script=script))


def test_files_exist_and_counts_balance(done: Context):
    check_counts(done)
    assert set(contents(done)) == {
        "1_prompts/self_instruct.jsonl",
        "1_prompts/topics.jsonl",
        "1_prompts/red_team.jsonl",
        "1_prompts/prompts.jsonl",
        "2_self_align/responses.jsonl",
        "drops.jsonl",
    }
    assert len(read_jsonl(done.run.jsonl("self_instruct"), Prompt)) == done.journal.counts("self_instruct").kept == 12
    assert len(read_jsonl(done.run.jsonl("red_team"), Prompt)) == done.journal.counts("red_team").kept == 12
    assert len(read_jsonl(done.run.jsonl("responses"), Response)) == done.journal.counts("align").kept > 0
    assert done.journal.counts("align").rows_in == 24
    lines = done.run.jsonl("drops").read_text("utf-8").splitlines()
    assert [Drop(**json.loads(line)) for line in lines] == list(done.journal.drops())
    assert not list(done.run.path.rglob("*.tmp"))


def test_prompts_are_deduplicated_and_partly_held_out(done: Context):
    rows = read_jsonl(done.run.jsonl("prompts"), Prompt)
    assert len(rows) == len({r.id for r in rows}) == 24
    assert len({r.instruction.lower() for r in rows}) == 24
    assert Counter(r.split for r in rows) == {"heldout": 4, "train": 20}
    assert Counter(r.source for r in rows) == {"self_instruct": 12, "red_team": 12}
    assert not {r.instruction for r in rows} & {s.instruction for s in load_seeds("default")}


def test_all_question_types_have_equally_many_topics(done: Context):
    topics = read_jsonl(done.run.jsonl("topics"), Topic)
    types = [t.name for t in done.run.constitution.question_types]
    counts = Counter(t.question_type for t in topics)
    assert set(counts) == set(types)
    assert len(set(counts.values())) == 1
    assert counts[types[0]] == done.journal.counts("topics").notes["topics per type"]
    assert len({(t.question_type, t.topic.lower()) for t in topics}) == len(topics)


def test_red_team_prompts_have_type_and_topic(done: Context):
    topics = {(t.question_type, t.topic) for t in read_jsonl(done.run.jsonl("topics"), Topic)}
    rows = read_jsonl(done.run.jsonl("red_team"), Prompt)
    assert all((r.question_type, r.topic) in topics for r in rows)
    assert len({r.question_type for r in rows}) == 12


def test_responses_have_separate_thoughts_and_principles(done: Context):
    prompts = {p.id: p for p in read_jsonl(done.run.jsonl("prompts"), Prompt)}
    for row in read_jsonl(done.run.jsonl("responses"), Response):
        assert row.principles == [2, 3]
        assert "2 (informative)" in row.thoughts
        assert "informative" not in row.response
        assert (row.instruction, row.split) == (prompts[row.id].instruction, prompts[row.id].split)
    assert done.journal.counts("align").notes["principles"] == dict.fromkeys("23", done.journal.counts("align").kept)


def test_finished_stage_is_skipped(done: Context):
    engine = done.engine()
    before, requests = contents(done), engine.requests
    run_both(done)
    assert engine.requests == requests
    assert contents(done) == before


def test_repeated_stage_takes_outputs_from_the_journal(done: Context):
    engine = done.engine()
    before, requests = contents(done), engine.requests
    run_stage(done, "prompts", again=True)
    run_stage(done, "align", again=True)
    assert engine.requests == requests
    assert contents(done) == before


def test_files_do_not_depend_on_slots(fake_run: Runs):
    one = run_both(fake_run(*SMALL, "engine.slots=1", name="one", script=script))
    eight = run_both(fake_run(*SMALL, "engine.slots=8", name="eight", script=script))
    assert contents(one) == contents(eight)


@pytest.mark.parametrize("at", [3, 30, 50])
def test_resumed_run_has_the_same_files(fake_run: Runs, done: Context, monkeypatch: pytest.MonkeyPatch, at: int):
    monkeypatch.setattr(STOP, "_signum", None)
    prompts = []

    def stopping(prompt: str, step: Step, rng: random.Random) -> str:
        prompts.append(prompt)
        if len(prompts) == at:
            STOP._signum = 15
        return script(prompt, step, rng)

    with pytest.raises(Interrupted):
        run_both(fake_run(*SMALL, name="stopped", script=stopping))
    STOP._signum = None
    resumed = run_both(fake_run(*SMALL, name="stopped", script=script))
    check_counts(resumed)
    assert contents(resumed) == contents(done)


def test_another_seed_gives_other_prompts(fake_run: Runs, done: Context):
    other = run_both(fake_run(*SMALL, "seed=1", name="other", script=script))
    assert contents(other)["1_prompts/prompts.jsonl"] != contents(done)["1_prompts/prompts.jsonl"]


def test_paper_form_runs(fake_run: Runs):
    def one_pass(prompt: str, step: Step, rng: random.Random) -> str:
        if prompt.endswith("(internal thoughts):"):
            return f" Easy. 2 (informative).\n\nAlma: {default_script('x', step, rng)}"
        return script(prompt, step, rng)

    context = run_both(fake_run(*SMALL, "align.form=paper", "filters=paper", script=one_pass))
    check_counts(context)
    assert context.journal.counts("align").kept > 0


GARBAGE = {
    "nothing": "",
    "blanks": " \n \n",
    "noise": "\x00\x1b[2J\u202e ### 6. Instruction: 7. Input: ### \u2028",
    "blocks": " \n6. Input:\n###\n7. Instruction:\n7. Input:\n###",
    "markers": "kind: a, topic: b, question: c\nUser: hi\nAlma: ho",
    "long": "word " * 5000,
    "one": " Why is the big sky blue?\n6. Input:\n<noinput>\n",
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_is_dropped(fake_run: Runs, garbage: str):
    sets = [*SMALL, "prompts.self_instruct.max_rounds=2", "prompts.red_team.max_rounds=2"]
    context = run_both(fake_run(*sets, script=lambda *_: GARBAGE[garbage]))
    check_counts(context)
    counts = context.journal.counts("self_instruct")
    assert counts.rows_in > 0
    assert counts.kept <= 1
    assert context.journal.counts("red_team").kept <= 1


ANSWERS = {
    "": "empty",
    " ...": "no words",
    " Fine.\nUser: more": None,
    " Principles: 3 (helpful).": "thoughts leaked",
    " I like tea. I like tea. I like tea.": "loop",
    " word" * 5000: "truncated",
}


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda a: a[:12])
def test_bad_response_is_dropped_with_its_reason(fake_run: Runs, answer: str):
    def bad(prompt: str, step: Step, rng: random.Random) -> str:
        return answer if prompt.endswith("\n\nAlma:") else script(prompt, step, rng)

    context = run_both(fake_run(*SMALL, script=bad))
    check_counts(context)
    counts = context.journal.counts("align")
    assert counts.dropped == ({ANSWERS[answer]: 24} if ANSWERS[answer] else {})


@pytest.mark.parametrize(
    ("thoughts", "reason"), [("", "no principle cited"), (" I should follow 3 (honour).", "no principle cited")]
)
def test_thoughts_without_a_principle_are_dropped(fake_run: Runs, thoughts: str, reason: str):
    def bad(prompt: str, step: Step, rng: random.Random) -> str:
        return thoughts if re.search(r"(Principles|thoughts\)):$", prompt) else script(prompt, step, rng)

    context = run_both(fake_run(*SMALL, script=bad))
    assert context.journal.counts("align").dropped == {reason: 24}


def test_unfinished_thoughts_are_dropped(fake_run: Runs):
    def bad(prompt: str, step: Step, rng: random.Random) -> str:
        return " 3 (helpful) on" * 500 if prompt.endswith("thoughts):") else script(prompt, step, rng)

    context = run_both(fake_run(*SMALL, script=bad))
    assert context.journal.counts("align").dropped == {"thoughts never ended": 24}


def test_failed_rows_stop_the_stage_and_others_stay(fake_run: Runs):
    context = fake_run(*SMALL, script=script)
    run_stage(context, "prompts")
    row = next(iter(context.prompts()))
    context._engine._fail = row.message
    with pytest.raises(TooManyFailed, match=r"align: 1 of 24 rows failed") as caught:
        run_stage(context, "align")
    assert caught.value.exit_code == 3
    check_counts(context)
    assert len(read_jsonl(context.run.jsonl("responses"), Response)) == 23
    context._engine._fail = None
    requests = context._engine.requests
    run_stage(context, "align")
    assert context._engine.requests == requests + 3
    assert context.journal.counts("align").kept == 24


def test_few_failed_rows_are_allowed(fake_run: Runs):
    context = fake_run(*SMALL, "max_failed=0.05", script=script)
    run_stage(context, "prompts")
    row = next(iter(context.prompts()))
    context._engine._fail = row.message
    run_stage(context, "align")
    assert sum(context.journal.counts("align").failed.values()) == 1
    check_counts(context)


# -- files that hands changed ----------------------------------------------------------------------------------------


def test_manually_removed_prompt_is_counted(done: Context):
    file = done.run.jsonl("prompts")
    lines = file.read_text("utf-8").splitlines(keepends=True)
    file.write_text("".join(lines[1:]), "utf-8")
    run_stage(done, "align")
    check_counts(done)
    counts = done.journal.counts("align")
    assert counts.rows_in == 24
    assert counts.dropped["removed manually"] == 1
    gone = json.loads(lines[0])
    removed = [d for d in done.journal.drops() if d.reason == "removed manually"]
    assert [d.id for d in removed] == [gone["id"]]
    assert gone["instruction"] in removed[0].text


def test_manually_added_prompt_gets_a_response(done: Context):
    file = done.run.jsonl("prompts")
    with file.open("a", encoding="utf-8") as out:
        out.write('{"instruction": "Why do cats purr at night?"}\n')
    requests = done.engine().requests
    run_stage(done, "align")
    check_counts(done)
    assert done.journal.counts("align").rows_in == 25
    assert done.engine().requests == requests + 3
    assert "Why do cats purr at night?" in {r.instruction for r in read_jsonl(done.run.jsonl("responses"), Response)}


def test_edited_prompt_counts_as_removed_and_added(done: Context):
    rows = read_jsonl(done.run.jsonl("prompts"), Prompt)
    text = done.run.jsonl("prompts").read_text("utf-8").replace(json.dumps(rows[0].instruction), '"Why do cats purr?"')
    done.run.jsonl("prompts").write_text(text, "utf-8")
    run_stage(done, "align")
    check_counts(done)
    assert done.journal.counts("align").rows_in == 25
    assert done.journal.counts("align").dropped["removed manually"] == 1


def test_error_names_file_and_line_of_an_invalid_prompt(done: Context):
    with done.run.jsonl("prompts").open("a", encoding="utf-8") as out:
        out.write("{oops\n")
    with pytest.raises(UserError, match=r"prompts\.jsonl:25 is not JSON"):
        run_stage(done, "align")


def test_edited_responses_are_not_overwritten_without_force(done: Context):
    file = done.run.jsonl("responses")
    file.write_text(file.read_text("utf-8") + "\n", "utf-8")
    edited = file.read_bytes()
    with pytest.raises(UserError, match=r"responses\.jsonl was edited since the run wrote it; --force overwrites it"):
        run_stage(done, "align", again=True)
    assert file.read_bytes() == edited
    done.force = True
    run_stage(done, "align", again=True)
    assert file.read_bytes() == edited[:-1]


def test_finished_stage_keeps_edited_responses(done: Context):
    file = done.run.jsonl("responses")
    file.write_text("", "utf-8")
    run_stage(done, "align")
    assert file.read_bytes() == b""


# -- settings at their edges -----------------------------------------------------------------------------------------


def test_prompts_stage_without_red_teaming_finishes(fake_run: Runs):
    context = fake_run(*SMALL, "prompts.red_team.count=0", script=script)
    run_stage(context, "prompts")
    assert len(read_jsonl(context.run.jsonl("prompts"), Prompt)) == 12
    file = context.run.jsonl("prompts")
    file.write_text(file.read_text("utf-8").split("\n", 1)[1], "utf-8")
    run_stage(context, "prompts")
    assert len(read_jsonl(context.run.jsonl("prompts"), Prompt)) == 11


def test_prompts_stage_without_self_instruct_finishes(fake_run: Runs):
    context = fake_run(*SMALL, "prompts.self_instruct.count=0", script=script)
    run_both(context)
    assert {r.source for r in read_jsonl(context.run.jsonl("prompts"), Prompt)} == {"red_team"}


def test_novelty_of_one_drops_only_duplicates(fake_run: Runs):
    sets = (*SMALL, "prompts.novelty=1.0", "prompts.self_instruct.max_rounds=2", "prompts.red_team.max_rounds=2")
    context = fake_run(*sets, script=lambda *_: GARBAGE["one"])
    run_stage(context, "prompts")
    check_counts(context, LEDGERS[:3])
    assert len(read_jsonl(context.run.jsonl("self_instruct"), Prompt)) == 1


def test_constitution_without_question_types_needs_count_zero(fake_run: Runs, default_constitution: Constitution):
    bare = default_constitution.model_copy(update={"question_types": []})
    with pytest.raises(UserError, match=r"no question_types: add some, or set prompts\.red_team\.count to 0"):
        run_stage(fake_run(*SMALL, texts=bare, name="a", script=script), "prompts")
    context = fake_run(*SMALL, "prompts.red_team.count=0", texts=bare, name="b", script=script)
    run_stage(context, "prompts")
    assert len(read_jsonl(context.run.jsonl("prompts"), Prompt)) == 12


def test_stage_ends_after_the_last_round(fake_run: Runs):
    sets = (
        "prompts.self_instruct.max_rounds=1",
        "prompts.self_instruct.requests_per_round=1",
        "evaluate.heldout_prompts=40",
    )
    context = fake_run(*SMALL, *sets, "prompts.red_team.count=0", script=script)
    run_stage(context, "prompts")
    rows = read_jsonl(context.run.jsonl("prompts"), Prompt)
    assert 0 < len(rows) < 12
    assert Counter(r.split for r in rows)["heldout"] == len(rows) // 2


# -- prompts of the user's own ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own.txt", "Why do cats purr?\n\nName a river.\nWhy do cats purr?\n"),
        (
            "own.jsonl",
            '{"prompt": "Why do cats purr?"}\n{"instruction": "Name a river."}\n{"prompt": "Why do cats purr?"}',
        ),
    ],
)
def test_user_prompts_replace_stage_1(fake_run: Runs, tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text, "utf-8")
    context = fake_run(*SMALL, f"prompts.file={tmp_path / name}", script=script)
    run_both(context)
    assert {r.instruction for r in read_jsonl(context.run.jsonl("prompts"), Prompt)} == {
        "Why do cats purr?",
        "Name a river.",
    }
    assert context.journal.counts("self_instruct").dropped == {"duplicate": 1}
    check_counts(context, ("self_instruct", "align"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("own.txt", "\n\n", "has no usable prompt"),
        ("own.jsonl", "{}\n", r"own\.jsonl:1: unknown row format: the keys are \(none\); known are messages"),
        ("own.jsonl", '{"prompt": 5}\n', r"own\.jsonl:1: prompt is 5, not text"),
        ("own.jsonl", "nonsense\n", r"own\.jsonl:1 is not JSON"),
    ],
)
def test_invalid_user_prompts_are_refused(fake_run: Runs, tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text, "utf-8")
    context = fake_run(*SMALL, f"prompts.file={tmp_path / name}")
    with pytest.raises(UserError, match=message):
        run_stage(context, "prompts")


# -- editing between stages through the pipeline ---------------------------------------------------------------------


def test_run_all_writes_a_manifest_last(fake_run: Runs):
    context = fake_run(*SMALL, "stages=[prompts, align]", script=script)
    order.run_all(context)
    manifest = json.loads(context.run.manifest.read_text("utf-8"))
    assert manifest["files"]["1_prompts/prompts.jsonl"]["rows"] == 24
    assert [s["stage"] for s in manifest["stages"]] == list(LEDGERS)
    assert set(contents(context)) <= set(manifest["files"])
    write_jsonl(context.run.jsonl("prompts"), list(context.prompts())[:5])
    run_stage(context, "align")
    assert not context.run.manifest.exists()
