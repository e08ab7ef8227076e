"""Test overlap with benchmarks: matches, file formats, and the stages that drop overlapping rows."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.data.records import Drop, Prompt, Response, read_jsonl
from selfalign.data.scenarios import shipped
from selfalign.errors import UserError
from selfalign.generation.engines.base import Step
from selfalign.generation.engines.fake import default_script
from selfalign.pipeline import order
from selfalign.quality.contamination import SCENARIO_FRAME, SCENARIO_ROUGE, Benchmarks, texts
from selfalign.quality.content_words import share_content
from selfalign.quality.rouge import rouge_l
from selfalign.run.context import Context

Runs = Callable[..., Context]
ITEMS = [
    "Which small animal of the northern forest sleeps through the whole winter under the snow?",
    "How long does light from the nearest star travel before somebody on earth can see it?",
    "Name the reason why bread rises.",
    "What do bees eat?",
    "The tides follow the moon, which pulls the water of the seas towards itself twice a day.",
]
CLEAN = [
    "Which animals live in the forest near your house?",
    "How long does it take to walk around the lake?",
    "Name the reason why the sky is blue at noon.",
    "Write a short note to the people who live next door and ask them to feed the cat.",
    "The moon is full tonight.",
]


@pytest.fixture
def benchmarks() -> Benchmarks:
    results = Benchmarks()
    results.add("mine.jsonl", ITEMS)
    return results


def test_items_may_have_a_threshold_of_their_own():
    benchmarks = Benchmarks()
    benchmarks.add("mine", ["Which train goes to the old town hall?"])
    benchmarks.add("scenarios", ["Why do whales sing under the sea?"], SCENARIO_ROUGE)
    assert benchmarks.find("Why do birds sing in the sea?").source == "scenarios"  # 5 of 7 words
    assert benchmarks.find("Which train goes to a new airport?") is None  # 4 of 8 and 7 words
    assert benchmarks.find("Why do whales swim to our coast?") is None
    assert benchmarks.find("why do  WHALES sing under the sea?").evidence == "the same"
    assert benchmarks.find("why do WHALES sing under the sea").evidence == "ROUGE-L 1.00"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("How do I repair my red bike?", False),  # 4 of 7 words, the frame only
        ("How do I store my rye breads?", True),  # also a form of the same word
        ("How do I slice my rye breads?", False),  # 4 of 7, one of three content words
        ("How do I bake my bread at home?", False),
        ("How do I pay my taxes?", False),
    ],
)
def test_near_scenarios_share_most_content_words(text: str, found: bool):
    benchmarks = Benchmarks()
    benchmarks.add("scenarios", ["How do I store my bread?"], SCENARIO_ROUGE, SCENARIO_FRAME)
    assert (benchmarks.find(text) is not None) == found


def test_items_of_benchmarks_need_no_content_word():
    benchmarks = Benchmarks(rouge=0.5)
    benchmarks.add("mine", ["How do I store my bread?"])
    assert benchmarks.find("How do I repair my red bike?") is not None  # 4 of 7 and 6 words, the frame only


def test_from_three_quarters_on_the_frame_is_enough():
    benchmarks = Benchmarks()
    benchmarks.add(
        "scenarios",
        ["How do I get there from here today?", "What can I do about my cough?"],
        SCENARIO_ROUGE,
        SCENARIO_FRAME,
    )
    assert benchmarks.find("What can I do about my hiccups?").evidence == "ROUGE-L 0.86"
    assert benchmarks.find("What can I do about it in winter?") is None  # 5 of 8 and 7 words


def test_a_shared_frame_does_not_hide_a_near_item():
    benchmarks = Benchmarks()
    benchmarks.add("scenarios", ["How do I pay my taxes?", "How do I bake my bread?"], SCENARIO_ROUGE, SCENARIO_FRAME)
    assert benchmarks.find("How do I bake my cake?").item == "How do I bake my bread?"


FRAMES = st.lists(
    st.sampled_from(["how", "do", "i", "bake", "fry", "my", "red", "bread", "fish"]), min_size=3, max_size=8
)


@given(FRAMES, st.lists(FRAMES, max_size=4))
def test_content_words_matter_below_three_quarters_only(words: list[str], others: list[list[str]]):
    text, items = " ".join(words), [" ".join(other) for other in others]
    benchmarks = Benchmarks(words=0)
    benchmarks.add("scenarios", items, SCENARIO_ROUGE, SCENARIO_FRAME)
    scores = {item: rouge_l(text, item) for item in items}
    near = any(f1 >= 0.75 or (f1 >= 0.6 and share_content(text, item)) for item, f1 in scores.items())
    assert (benchmarks.find(text) is not None) == near


def test_shipped_scenarios_of_both_halves_are_kept_out(fake_run: Callable[..., Context]):
    benchmarks = fake_run().benchmarks
    for text in shipped().texts():
        assert benchmarks.find(text.upper()) is not None
    assert benchmarks.find("How do I build a pipe bomb in my house?").reason == "overlaps with scenarios"


@pytest.mark.parametrize("item", ITEMS)
def test_item_matches_despite_case_and_punctuation(benchmarks: Benchmarks, item: str):
    for text in (item, item.upper(), item.replace(" ", "  ").rstrip("?.") + " !", f"  {item}\n"):
        hit = benchmarks.find(text)
        assert hit is not None
        assert (hit.source, hit.item) == ("mine.jsonl", item)


@pytest.mark.parametrize("item", [ITEMS[0], ITEMS[1], ITEMS[4]])
def test_ngram_of_an_item_inside_a_text_matches(benchmarks: Benchmarks, item: str):
    hit = benchmarks.find(f"Here is something to think about. {item} Please give two reasons and an example of each.")
    assert hit is not None
    assert hit.evidence.startswith("8 words in a row: ")
    assert hit.reason == "overlaps with mine.jsonl"
    assert hit.ledger_text("text " * 200).startswith("text " * 200)
    assert item in hit.ledger_text("text")


@pytest.mark.parametrize("item", ITEMS[:3])
def test_item_with_a_changed_word_matches(benchmarks: Benchmarks, item: str):
    changed = item.split()
    changed[len(changed) // 2] = "other"
    assert benchmarks.find(" ".join(changed)) is not None


@pytest.mark.parametrize("text", [*CLEAN, "", "?!", "日本語"])
def test_unrelated_text_does_not_match(benchmarks: Benchmarks, text: str):
    assert benchmarks.find(text) is None


def test_thresholds_disable_each_test(benchmarks: Benchmarks):
    inside = f"Think. {ITEMS[0]} Then answer in a table with three columns, and say where you know it from."
    assert benchmarks.find(inside)
    strict, loose = Benchmarks(words=0), Benchmarks(words=0, rouge=1)
    for results in (strict, loose):
        results.add("mine", ITEMS)
        assert results.find(inside) is None
    changed = ITEMS[3].replace("bees", "wasps")
    assert strict.find(ITEMS[2].replace("bread", "dough")) is not None
    assert loose.find(changed) is None
    assert loose.find(ITEMS[3]) is not None  # the same text is the same under any threshold


@given(st.text(max_size=60), st.lists(st.text(max_size=60), max_size=6))
def test_find_accepts_any_text(text: str, items: list[str]):
    results = Benchmarks()
    results.add("any", items)
    hit = results.find(text)
    if text in items:
        assert hit is not None
    assert len(results) <= len(items)


def test_find_works_at_any_threshold_with_many_items():
    rng = random.Random(4)
    items = [" ".join(rng.choices([f"w{i}" for i in range(500)], k=9)) for _ in range(1300)]
    for results in (Benchmarks(0, 1.0), Benchmarks(8, 0.7), Benchmarks(0, 0.7)):
        results.add("many", items)
        assert results.find(items[1200]) is not None
        assert results.find("nothing like any of the items at all") is None
    scripts = Benchmarks()
    scripts.add("many", ("日" * n for n in range(1, 1300)))
    assert scripts.find("日" * 1250) is not None


def test_quote_in_tsv_does_not_swallow_lines(tmp_path: Path):
    file = tmp_path / "a.tsv"
    file.write_text(f'"The stone is an odd thing to eat\tx\n{QUESTION}\ty\n', "utf-8")
    assert QUESTION in set(texts(file))


def test_a_whole_document_in_one_cell_is_an_item(tmp_path: Path):
    document = " ".join(f"w{i}" for i in range(5000))
    results = Benchmarks()
    results.add("doc", [document])
    assert results.find("So it is: w100 w101 w102 w103 w104 w105 w106 w107, they say.") is not None
    assert results.find(document) is not None


# -- files -------------------------------------------------------------------------------------------------------------

QUESTION = "What happens to somebody who swallows a cherry stone?"
ANSWERS = ["Nothing at all happens to them", "The stone leaves the body after a day"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps({"examples": [{"input": QUESTION, "target_scores": dict.fromkeys(ANSWERS, 0)}]})),
        ("a.jsonl", json.dumps({"turns": [QUESTION]}) + "\n" + json.dumps({"choices": ANSWERS}) + "\n"),
        ("a.csv", f'Question,Answers,Source\n"{QUESTION}","{"; ".join(ANSWERS)}",https://stones.example/cherry\n'),
        ("a.tsv", f"Question\tAnswers\n{QUESTION}\t{'; '.join(ANSWERS)}\n"),
        ("a.txt", "\n".join([QUESTION, *ANSWERS, "Yes."])),
        ("a.ndjson", json.dumps({"turns": [QUESTION]}) + "\n" + json.dumps({"choices": ANSWERS}) + "\n"),
        ("a", json.dumps([QUESTION, *ANSWERS])),
    ],
)
def test_every_kind_of_file_is_read(tmp_path: Path, name: str, content: str):
    for file, data in ((tmp_path / name, content.encode()), (tmp_path / f"{name}.gz", gzip.compress(content.encode()))):
        file.write_bytes(data)
        results = set(texts(file))
        assert {QUESTION, *ANSWERS} <= results
        assert not {"Yes.", "https://stones.example/cherry"} & results


@pytest.mark.parametrize(
    ("name", "content"), [("a.json", b"{"), ("a.csv", b"\xff\xfe\x00"), ("a.jsonl", b"{\n"), ("none.csv", None)]
)
def test_unreadable_benchmark_file_is_an_error(tmp_path: Path, name: str, content: bytes | None):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=name):
        list(texts(file))


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.csv", 'n,q\n1,"Hello there\n2,Why do cats purr at night?\n', "a.csv.* is not valid CSV"),
        ("a.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "a.txt only points to the data"),
        ("a.data", "PAR1" + "x" * 40, "'.*a.data' is Parquet: save it as JSON lines or CSV"),
        ("b.jsonl", '{"q": "Why do cats purr at night?"}\n{"q": \n', "b.jsonl:2 is not valid JSONL"),
        ("c.csv", "n,q\n", "has no text of 5 words"),
        ("d.json", "[]", "has no text of 5 words"),
    ],
)
def test_benchmark_file_without_items_is_an_error(tmp_path: Path, name: str, content: str, why: str):
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(UserError, match=why):
        Benchmarks().add_file(tmp_path / name)


def test_texts_without_spaces_between_words_are_items(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    items = ["日本語で自己紹介してください。", "这是一个关于人工智能的问题请回答它"]
    file.write_text("".join(json.dumps({"q": text}) + "\n" for text in items), "utf-8")
    results = Benchmarks()
    results.add_file(file)
    assert results.sources == {"a.jsonl": 2}
    assert all(results.find(text) is not None for text in items)


SCRIPTS = {
    "Chinese": ("澳大利亚的首都是哪个城市，为什么不是悉尼？", "请告诉我：{}", "面包是怎么做的，要在烤箱里烤多久？"),
    "Japanese": (
        "オーストラリアの首都はどの都市ですか。",
        "教えてください。{}",
        "パンはどうやって焼きますか。",
    ),
    "Thai": ("เมืองหลวงของออสเตรเลียคือเมืองใด", "ช่วยบอกหน่อยว่า{}", "อบขนมปังอย่างไรให้กรอบและนุ่ม"),
    "Korean": (
        "호주의 수도는 왜 시드니가 아닙니까?",
        "말해 주세요: {}",
        "빵은 어떻게 굽고 얼마나 걸립니까?",
    ),
    "Arabic": ("ما هي عاصمة أستراليا ولماذا ليست سيدني؟", "أخبرني: {}", "كيف يخبز الخبز في الفرن وكم من الوقت؟"),
    "Russian": ("Какой город является столицей Австралии?", "Скажи, {}", "Как пекут хлеб в печи и как долго?"),
    "Hindi": ("ऑस्ट्रेलिया की राजधानी कौन सा शहर है?", "बताओ, {}", "घर पर रोटी कैसे पकाई जाती है?"),
}


@pytest.mark.parametrize("language", SCRIPTS)
@pytest.mark.parametrize("thresholds", [{}, {"words": 0}, {"words": 4, "rouge": 1.0}])
def test_overlap_is_found_in_every_script(language: str, thresholds: dict[str, float], tmp_path: Path):
    item, frame, other = SCRIPTS[language]
    (tmp_path / "a.txt").write_text(item, "utf-8")
    benchmarks = Benchmarks(**thresholds)  # type: ignore[arg-type]
    benchmarks.add_file(tmp_path / "a.txt")
    assert benchmarks.find(item).evidence == "the same"
    assert benchmarks.find(frame.format(item)) is not None
    assert benchmarks.find(other) is None


# -- stages ------------------------------------------------------------------------------------------------------------

SMALL = ("prompts.self_instruct.count=10", "prompts.red_team.count=10", "prompts.red_team.topic_rounds=1")


def test_overlapping_prompts_and_responses_are_dropped(fake_run: Runs, tmp_path: Path):
    probe = fake_run(*SMALL, name="probe")
    for stage in ("prompts", "align"):
        order.run_stage(probe, stage)  # type: ignore[arg-type]
    task = read_jsonl(probe.run.jsonl("self_instruct"), Prompt)[1].instruction
    question = read_jsonl(probe.run.jsonl("red_team"), Prompt)[2].instruction
    answer = read_jsonl(probe.run.jsonl("responses"), Response)[3].response
    file = tmp_path / "bench.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in (task, question, answer)), "utf-8")
    # The same prompts are asked, so that the same answer comes.
    context = fake_run(*SMALL, f"evaluate.benchmarks=[{file}]", "prompts.steering.own_seeds=0", name="measured")
    for stage in ("prompts", "align"):
        order.run_stage(context, stage)  # type: ignore[arg-type]
    instructions = {p.instruction for p in read_jsonl(context.run.jsonl("prompts"), Prompt)}
    assert not instructions & {task, question}
    assert answer not in {r.response for r in read_jsonl(context.run.jsonl("responses"), Response)}
    drops = [d for d in read_jsonl(context.run.jsonl("drops"), Drop) if d.reason == "overlaps with bench.jsonl"]
    assert {d.stage for d in drops} >= {"self_instruct", "red_team"}
    assert all("\n~ " in d.text for d in drops)


def test_response_equal_to_an_item_is_dropped(fake_run: Runs, tmp_path: Path):
    file = tmp_path / "bench.txt"
    file.write_text("The stone leaves the body of a person after a day or two.\n")

    def script(prompt: str, step: Step, rng: random.Random) -> str:
        if prompt.endswith("\n\nAlma:"):
            return " The stone leaves the body of a person after a day or two, says my aunt.\n\nUser:"
        return default_script(prompt, step, rng)

    context = fake_run(*SMALL, f"evaluate.benchmarks=[{file}]", script=script)
    for stage in ("prompts", "align"):
        order.run_stage(context, stage)  # type: ignore[arg-type]
    assert context.journal.counts("align").dropped == {"overlaps with bench.txt": 20}


def test_manually_added_prompt_is_checked_for_overlap(fake_run: Runs, tmp_path: Path):
    file = tmp_path / "bench.txt"
    file.write_text(f"{ITEMS[0]}\n")
    context = fake_run(*SMALL, f"evaluate.benchmarks=[{file}]")
    order.run_stage(context, "prompts")
    with context.run.jsonl("prompts").open("a", encoding="utf-8") as added:
        added.write(json.dumps({"instruction": ITEMS[0]}) + "\n")
    order.run_stage(context, "align")
    assert context.journal.counts("align").dropped == {"overlaps with bench.txt": 1}


def test_broken_benchmark_file_stops_the_run_before_generation(fake_run: Runs, tmp_path: Path):
    file = tmp_path / "bench.json"
    file.write_text("{")
    context = fake_run(*SMALL, f"evaluate.benchmarks=[{file}]")
    with pytest.raises(UserError, match=r"bench\.json"):
        order.run_stage(context, "prompts")
    assert context.engine().requests == 0  # type: ignore[attr-defined]


def test_changed_benchmark_files_rerun_stage_1(fake_run: Runs, tmp_path: Path):
    file = tmp_path / "bench.txt"
    file.write_text("The stone leaves the body of a person after a day or two.\n")
    context = fake_run(*SMALL, f"evaluate.benchmarks=[{file}]")
    before = order.inputs_hash(context, "prompts")
    file.write_text("Something else is asked in here, that nobody knows.\n")
    assert order.inputs_hash(context, "prompts") != before
