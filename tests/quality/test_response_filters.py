"""Test the filters of stages 2 and 4 on both sides of each rule, and on any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import hang_guard
from selfalign.constitution import Constitution, Principle
from selfalign.constitution.citations import check_citations
from selfalign.constitution.document import Assistant, Exemplar, SystemPrompts, Turn
from selfalign.constitution.leaks import leaks_of
from selfalign.quality.filter_settings import FilterSettings
from selfalign.quality.response_filters import Verdict, cut_at_repeated_clause, filter_response, loops, not_judged
from selfalign.quality.rouge import ngrams

TEXTS = Constitution(
    format=1,
    name="small",
    assistant=Assistant(name="Alma", cutoff="2020"),
    principles=[
        Principle(id=3, name="helpful", rule="I give the user something to use at once and in a friendly way."),
        Principle(id=7, name="candor", rule="I never make anything up."),
        Principle(id=13, name="step-by-step", rule="I split a hard task into small steps and go through them."),
    ],
    exemplars=[
        Exemplar(
            user="Write a note.",
            thoughts="A request for a note. Principles: 3 (helpful).",
            answer="Dear neighbour, thank you for your kind help this week. Roses grow in May. It was a joy.",
        )
    ],
    prompts=SystemPrompts(
        standard="{name} answers.",
        concise="{name} answers briefly.",
        verbose="{name} gives thorough and detailed answers with many concrete examples. Stay on the question.",
        two_shot=[Turn(user="Why?", answer="Most of the salt in the sea comes from old rocks on land.")],
    ),
)
LEAKS = leaks_of(TEXTS, 8)
VERBOSE = leaks_of(TEXTS, 8, verbose_only=True)
RULES = {name: FilterSettings.model_validate({"base": name}) for name in ("default", "paper")}
ANSWERS, PAPER = (rules.responses for rules in RULES.values())
GOOD = "Rain falls when warm air rises, cools and cannot hold its water any longer. Mountains help it to rise."


def keep(text: str, message: str = "Why does it rain?", rules: str = "default") -> str:
    return filter_response(text, False, message, LEAKS, RULES[rules].responses).reason


# -- thoughts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thoughts", "cited", "reason"),
    [
        ("A question. Principles: 3 (helpful), 7 (candor).", [3, 7], None),
        ("I should follow 7 (candor) and 3 (helpful).", [7, 3], None),
        ("7 (candor), 3 (helpful), 7 (candor)", [7, 3], None),
        ("13 (step-by-step)", [13], None),
        ("3(Helpful), 7 ( CANDOR )", [3, 7], None),
        ("3 (candor)", [7], None),
        ("99 (helpful)", [3], None),
        ("3 (helpful) and 4 (made up)", [3], None),
        ("0.3 (helpful)", [], "no principle cited"),
        ("x3 (helpful)", [], "no principle cited"),
        ("3 helpful", [], "no principle cited"),
        ("A question.", [], "no principle cited"),
        ("", [], "no thoughts"),
        (" \n", [], "no thoughts"),
    ],
)
def test_thoughts_cite_principles_by_name(thoughts: str, cited: list[int], reason: str | None):
    assert check_citations(thoughts, TEXTS.principle_names()) == (cited, reason)


@given(st.text())
def test_check_citations_accepts_any_text(thoughts: str):
    cited, reason = check_citations(thoughts, TEXTS.principle_names())
    assert (reason is None) == bool(cited)
    assert set(cited) <= {3, 7, 13}


# -- stage 2, default rules ------------------------------------------------------------------------------------------


def test_good_response_is_kept_and_stripped():
    assert filter_response(f"\n {GOOD}\n", False, "Why does it rain?", LEAKS, ANSWERS) == Verdict(GOOD)


def test_short_complete_response_is_kept():
    assert not keep("Paris.")
    assert not keep("42")


@pytest.mark.parametrize("text", ["", "  ", "\n\n"])
@pytest.mark.parametrize("rules", ["default", "paper"])
def test_an_empty_answer_is_dropped(text: str, rules: str):
    assert keep(text, rules=rules) == "empty"


def test_truncated_response_is_dropped():
    assert filter_response(GOOD, True, "Why?", LEAKS, ANSWERS).reason == "truncated"


@pytest.mark.parametrize(
    "text",
    [
        f"{GOOD}\nUser: And snow?",
        f"{GOOD}\n\n  assistant: Snow.",
        "Human: hello there",
        f"{GOOD}\nAlma: Snow.",
        "Alma: Snow falls.",
        f"{GOOD}\nUser (internal thoughts): hm",
    ],
)
def test_turn_inside_a_response_is_dropped(text: str):
    assert keep(text) == "turn leaked"


@pytest.mark.parametrize(
    "text", [f"{GOOD} The user: a person.", f"{GOOD} I am Alma: nice to meet you.", "Users: many."]
)
def test_name_inside_a_line_is_kept(text: str):
    assert not keep(text)


@pytest.mark.parametrize(
    "text",
    [
        "(internal thoughts): a question about rain.",
        f"{GOOD} I should follow 3 and be kind.",
        f"{GOOD} Principles: 3.",
        f"{GOOD} (internal note)",
        "Rain falls, see 3 (helpful) and 7 (candor).",
    ],
)
def test_thoughts_in_the_response_are_dropped(text: str):
    assert keep(text) == "thoughts leaked"


@pytest.mark.parametrize(
    "text",
    [
        f"{GOOD} My internal organs are fine.",
        f"{GOOD} I should follow the rain.",
        "The principles: be kind.",
        "We sold 3 (three) boxes.",
    ],
)
def test_words_that_resemble_thoughts_are_kept(text: str):
    assert not keep(text)


def test_eight_words_of_an_exemplar_or_rule_are_dropped():
    assert keep("Dear neighbour, thank you for your kind help.") == "exemplar leaked"
    assert keep("dear NEIGHBOUR thank you, for your kind: help") == "exemplar leaked"
    assert keep("I split a hard task into small steps, always.") == "exemplar leaked"


def test_seven_words_of_an_exemplar_are_kept():
    assert not keep("Dear neighbour, thank you for your kind letter.")


def test_leaked_words_of_the_user_are_kept():
    messages = "Make this nicer: Dear neighbour, thank you for your kind help this week."
    assert not keep("Dear neighbour, thank you for your kind help. My garden has never looked so fine.", messages)


def test_short_sentence_of_an_exemplar_is_dropped():
    assert keep("Gardens need care. Roses grow in May. Then comes June.") == "exemplar leaked"
    assert keep("I never make anything up.") == "exemplar leaked"
    assert not keep("Gardens need care, and roses grow in May if it is warm.")


def test_a_very_short_sentence_of_an_exemplar_is_kept():
    assert "it was a joy" in LEAKS.sentences
    assert not keep("Thank you.")


def test_leaked_sentence_of_the_user_is_kept():
    assert not keep("Yes, that is true. Roses grow in May.", "Is this right? Roses grow in May.")


def test_verbose_leaks_come_from_the_verbose_prompt_only():
    assert VERBOSE.found_in("She gives thorough and detailed answers with many concrete examples.", "") is True
    assert VERBOSE.found_in("Most of the salt in the sea comes from rocks.", "") is True
    assert VERBOSE.found_in("Dear neighbour, thank you for your kind help this week.", "") is False
    assert VERBOSE.name == "Alma"


def test_response_that_repeats_the_prompt_is_dropped():
    message = "Name three warm colours of the autumn forest near us"
    assert keep(f"{message}.", message) == "echoes the prompt"
    assert not keep("Name three warm colours of the winter coast there, please, now.", message)
    assert keep("Red", "Red") == "echoes the prompt"
    assert not keep("Paris.", "What is the capital of France?")


@pytest.mark.parametrize("text", ["...", "?!?!", "🙂🙂", "- - -"])
def test_response_without_words_is_dropped(text: str):
    assert keep(text) == "no words"


ANSWERS_BY_SCRIPT = {
    "为什么会下雨？": "暖空气上升以后会变冷，水汽凝结成云，云里的水滴变大就落下来成为雨。",
    "なぜ雨が降るのですか。": "暖かい空気が上ると冷えて雲になり、水の粒が大きくなって落ちます。",
    "ทำไมฝนจึงตก": "อากาศร้อนลอยขึ้นแล้วเย็นลง ไอน้ำกลายเป็นเมฆ เมื่อหยดน้ำใหญ่ขึ้นก็ตกลงมา",
    "비는 왜 내리나요?": "따뜻한 공기가 올라가서 식으면 구름이 되고 물방울이 커져 떨어집니다.",
    "لماذا ينزل المطر؟": "يصعد الهواء الدافئ ويبرد فيتكون السحاب ثم تكبر القطرات وتسقط على الأرض.",
    "Почему идёт дождь?": "Тёплый воздух поднимается и остывает, из пара растут капли и падают вниз.",
}


@pytest.mark.parametrize("message", ANSWERS_BY_SCRIPT)
def test_responses_in_every_script_are_filtered(message: str):
    answer = ANSWERS_BY_SCRIPT[message]
    assert not keep(answer, message)
    assert keep(message, message) == "echoes the prompt"
    assert keep(f"{answer} " * 3, message) == "loop"
    assert keep("\n".join([answer[:-2]] * 4), message) == "loop"
    assert filter_response(answer, False, message, LEAKS, RULES["default"].verbose).reason == ""
    assert keep(answer) == "in another language than the prompt"
    assert not keep(answer, "Translate the following sentence into another language.")
    assert not keep(GOOD, message)


def test_an_emoji_is_a_new_word():
    assert not keep("Red 🍎", "Red")
    assert keep("Red 🍎", "Red 🍎") == "echoes the prompt"


@pytest.mark.parametrize(
    ("text", "message", "names"),
    [
        (GOOD, "Why does it rain?", []),
        ("La lluvia cae cuando el aire caliente sube y se va.", "¿Por qué?", ["stock refusals", "unsafe"]),
        (next(iter(ANSWERS_BY_SCRIPT.values())), "为什么会下雨呢？", ["stock refusals", "unsafe"]),
        (GOOD, "为什么会下雨呢？", ["language"]),
        ("Это дождь, он идёт.", "为什么会下雨呢？", ["stock refusals", "unsafe", "language"]),
    ],
)
def test_filters_that_cannot_judge_a_response_are_named(text: str, message: str, names: list[str]):
    assert not_judged(text, message, ANSWERS) == names
    none = ANSWERS.model_copy(update={"refusals": 1.0, "unsafe": [], "other_language": False})
    assert not_judged(text, message, none) == []


# -- loops -----------------------------------------------------------------------------------------------------------


def test_a_sentence_three_times_is_a_loop():
    assert loops("I like tea. I like tea. I like tea.")
    assert keep("I like tea. I like tea. I like tea.") == "loop"
    assert not loops("I like tea. I like tea.")
    assert not loops("Go on. Go on. Go on. Go on.")


def test_repeated_ngrams_are_a_loop():
    assert loops("the red fox and the blue hen and " * 5)
    assert not loops(GOOD)
    assert not loops("a b c d e f g h i j k l m n o p q r s t u v w x y z")


def test_short_text_is_not_a_loop():
    assert not loops("")
    assert not loops("tea tea tea tea tea")


def test_numbered_list_is_not_a_loop():
    assert not loops("\n".join(f"{n}. Wash the {f}.\n" for n, f in enumerate(["apple", "pear", "plum", "fig"], 1)))
    assert not loops("1. Eat.\n2. Sleep.\n3. Walk.\n4. Read.\n5. Rest.")


def test_code_may_repeat_itself():
    code = "```python\n" + "print('hello big world')\n" * 8 + "```"
    assert not loops(f"Here is the program:\n{code}\nIt prints a line.")
    assert not loops("Here is the program:\n```python\n" + "print('hello big world')\n" * 8)
    assert loops("print('hello big world')\n" * 8)
    assert loops(f"{code}\n" + "I like tea. " * 3)


def test_ngrams_are_all_consecutive_items():
    assert list(ngrams(["a", "b", "c"], 2)) == [("a", "b"), ("b", "c")]
    assert list(ngrams(["a"], 2)) == []


# -- the paper's rules -----------------------------------------------------------------------------------------------

LONG = (
    "Rain falls when warm air rises, cools and cannot hold its water any longer; mountains help it to rise, and so "
    "does the sea, which is why coasts are wet."
)


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        (" One. Two. One. Three.", "One. Two."),
        ("One. Two. One. Three.", "One. Two. One. Three."),  # the first clause has no blank before it
        ("One, two, three.", "One, two, three."),
        ("One\nTwo\nOne\n", "One\nTwo"),
        ("One. One! One?", "One. One! One?"),
        ("Why?!? How?!?", "Why?!? How?!?"),
        ("", ""),
        ("...", "..."),
    ],
)
def test_cut_ends_before_the_first_repeated_clause(text: str, cut: str):
    assert cut_at_repeated_clause(text, PAPER.clause_ends) == cut


def test_end_of_a_complete_response_ends_its_last_clause():
    text = f"Tea\n{LONG}\nTea"
    assert filter_response(text, False, "Why?", LEAKS, PAPER) == Verdict(f"Tea\n{LONG}".rpartition(" ")[0])
    assert filter_response(text, True, "Why?", LEAKS, PAPER) == Verdict(text.rpartition(" ")[0])


def test_paper_drops_short_complete_responses():
    assert len(LONG) >= 149
    assert keep("Paris.", rules="paper") == "short"
    assert keep("x" * 148, rules="paper") == "short"
    assert filter_response("x" * 149, False, "Why?", LEAKS, PAPER) == Verdict("x" * 149)
    assert filter_response(LONG, False, "Why?", LEAKS, PAPER) == Verdict(LONG)


def test_paper_trims_truncated_responses():
    assert filter_response("Rain falls when warm ai", True, "Why?", LEAKS, PAPER) == Verdict("Rain falls when warm")
    assert filter_response("Rain", True, "Why?", LEAKS, PAPER).reason == "empty"


def test_paper_cuts_at_repeated_clause():
    verdict = filter_response(f"{LONG} It is so. It is so. More text here.", False, "Why?", LEAKS, PAPER)
    assert verdict == Verdict(f"{LONG} It is")
    # A response as generated begins with a blank; without it, its first clause differs from the repetition.
    verdict = filter_response(" It is so. And more. It is so.", False, "Why?", LEAKS, PAPER)
    assert verdict == Verdict("It is so. And")
    assert filter_response(f"It is so. {LONG} It is so.", False, "Why?", LEAKS, PAPER).text.endswith("It is so.")


def test_paper_drops_for_its_other_reasons():
    assert keep(f"I'm sorry, {LONG}", rules="paper") == "begins with sorry"
    assert keep(f"I am sorry, {LONG}", rules="paper") == "begins with sorry"
    assert not keep(f"Sorry, {LONG}", rules="paper")
    assert keep(f"Dear neighbour, thank you for your kind help. {LONG}", rules="paper") == "exemplar leaked"
    assert keep(f"{LONG}\nUser: And snow?", rules="paper") == "turn leaked"


# -- stage 4 ---------------------------------------------------------------------------------------------------------


def verbose(text: str, truncated: bool = False, message: str = "Why does it rain?", rules: str = "default") -> str:
    return filter_response(text, truncated, message, VERBOSE, RULES[rules].verbose).reason


def test_good_verbose_response_is_kept():
    assert filter_response(f" {GOOD}\n", False, "Why does it rain?", VERBOSE, RULES["default"].verbose) == Verdict(GOOD)


@pytest.mark.parametrize("tail", ["See also", "== References ==", "## External links", "Further reading:"])
@pytest.mark.parametrize("rules", ["default", "paper"])
def test_verbose_encyclopaedia_tail_is_dropped(tail: str, rules: str):
    assert verbose(f"{GOOD}\n\n{tail}\nA book.", rules=rules) == "encyclopaedia tail"


def test_verbose_tail_words_inside_a_line_are_kept():
    assert not verbose(f"{GOOD} See also the next page of references.")


@pytest.mark.parametrize("mark", ["{n}.", "{n})", "-", "*", "•"])
def test_verbose_more_than_twelve_list_items_are_dropped(mark: str):
    animals = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "kiwi", "lynx", "mole"]
    lines = [f"{mark.format(n=n)} The {a} lives here." for n, a in enumerate(animals, 1)]
    assert verbose("\n".join(lines)) == "too many list items"
    assert not verbose("\n".join(lines[:12]))


def test_verbose_filters_drop_for_their_other_reasons():
    assert verbose("") == "empty"
    assert verbose(GOOD, truncated=True) == "truncated"
    assert verbose("She gives thorough and detailed answers with many concrete examples.") == "persona leaked"
    assert verbose(f"{GOOD}\nUser: more") == "turn leaked"
    assert verbose("I like tea. " * 3) == "loop"


def test_paper_filters_of_verbose_responses():
    assert verbose("x" * 127 + " y", truncated=True, rules="paper") == "truncated"
    assert not verbose("x" * 128 + " y", truncated=True, rules="paper")
    assert not verbose("Paris.", rules="paper")
    assert filter_response(f"{LONG} One. Two. One.", False, "Why?", VERBOSE, RULES["paper"].verbose) == Verdict(
        f"{LONG} One. Two."
    )
    assert verbose("One.\nTwo.\nOne.\nTwo.", rules="paper") == "truncated"


def test_paper_trims_verbose_response_before_it_cuts():
    text = f"{LONG} One. Two. One. Thr"
    assert filter_response(text, True, "Why?", VERBOSE, RULES["paper"].verbose) == Verdict(f"{LONG} One. Two.")


CODE = f"{LONG}\n```\na = 1\n```\nThen:\n```\nb = 2\n```\nThat is all."


def test_paper_keeps_code_blocks_in_stage_four_only():
    assert filter_response(CODE, False, "Why?", VERBOSE, RULES["paper"].verbose) == Verdict(CODE)
    assert filter_response(CODE, False, "Why?", LEAKS, PAPER).text.endswith("a =")


@pytest.mark.parametrize(("items", "kept"), [(12, 12), (13, 12), (20, 12)])
def test_paper_cuts_verbose_list_at_thirteenth_item(items: int, kept: int):
    text, shorter = (
        "Here is a list of the animals that live around our house and in the wood behind it:\n"
        + "\n".join(f"{n}. {'x' * n} lives here" for n in range(1, number + 1))
        for number in (items, kept)
    )
    assert filter_response(text, False, "Why?", VERBOSE, RULES["paper"].verbose) == Verdict(shorter)
    assert filter_response(text, False, "Why?", LEAKS, PAPER) == Verdict(text)


def test_short_response_cut_at_thirteenth_item_is_dropped():
    items = [f"{n}. {'x' * n}" for n in range(1, 14)]
    assert verbose("\n".join(items[:12]), rules="paper") != "truncated"
    assert verbose("\n".join(i[:5] for i in items), rules="paper") == "truncated"


def test_paper_has_no_limit_of_bullets():
    assert not verbose("\n".join(f"- The {'x' * n} lives here." for n in range(20)), rules="paper")


SPANISH = "La lluvia cae cuando el aire caliente sube, se enfría y ya no puede llevar toda el agua que tenía antes."


def test_response_in_another_language_than_its_prompt_is_dropped():
    assert keep(SPANISH) == "in another language than the prompt"
    assert not keep(SPANISH, "¿Por qué llueve tanto en las montañas del norte?")
    assert not keep(SPANISH, "Translate the sentence about rain into Spanish.")
    assert keep(SPANISH, rules="paper") == "short"
    assert not keep("Sí, claro.")
    assert not keep(SPANISH, "Hola!")  # too short to tell what the user speaks


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        ("List the prime numbers below 100.", ", ".join(str(n) for n in range(3, 100, 2) if n % 3)),
        ("List nine cities of the south.", "Sevilla, Granada, Málaga, Córdoba, Cádiz, Almería, Huelva, Jaén, Ronda."),
        ("Which dishes do you like?", "Spaghetti alla carbonara, penne arrabbiata, gnocchi al pomodoro, risotto."),
        ("Count the rows of the table.", "```\nSELECT COUNT(*) FROM orders WHERE total > 100 GROUP BY customer\n```"),
        ("Make a small list of fruit.", "<ul><li>Apfel</li><li>Birne</li><li>Kirsche</li><li>Pflaume</li></ul>"),
    ],
)  # fmt: skip
def test_names_numbers_and_code_have_no_language(message: str, answer: str):
    assert keep(answer, message) != "in another language than the prompt"


# -- any text --------------------------------------------------------------------------------------------------------

pieces = st.sampled_from(
    [" ", "\n", ".", "User:", "Alma:", "7 (candor)", "```", "1. ", "- ", "See also", "the", "tea", ""]
)
texts = st.text() | st.lists(pieces, max_size=30).map("".join)


@given(texts, texts, st.booleans(), st.sampled_from(["default", "paper"]))
def test_any_response_gets_a_verdict(text: str, message: str, truncated: bool, rules: str):
    for verdict in (
        filter_response(text, truncated, message, LEAKS, RULES[rules].responses),
        filter_response(text, truncated, message, VERBOSE, RULES[rules].verbose),
    ):
        assert isinstance(verdict.text, str)
        if not verdict.reason and truncated:
            assert rules == "paper"
        if not verdict.reason and rules == "default":
            assert verdict.text == text.strip() != ""


UNITS = [
    "a",
    "a ",
    "a\n",
    "a, ",
    "Tea. ",
    "```",
    "``` ",
    "1 (a) ",
    "1(",
    "7 (candor) ",
    "internal thought",
    "- ",
    "1. a\n",
]
UNITS += [
    "=",
    "#",
    "\n==",
    "User",
    "User ",
    "\nUser",
    "()",
    ".",
    "I should follow ",
    "日本",
    "Principles ",
    "see also ",
]
UNITS += ["\n", " \n", "\t\n", "1( ", "1 (\n"]
UNITS += ["make a ", "get into someone ", "pills ", "in secret ", "a@", "1 ", "women are ", "bomb ", "bleach ", "she "]
SPACES = [" ", "\n", "\t"]


@pytest.mark.parametrize("unit", UNITS, ids=ascii)
@pytest.mark.parametrize("rules", ["default", "paper"])
def test_repetition_is_filtered_quickly(unit: str, rules: str):
    text = "x" + unit * (100_000 // len(unit)) + "x"
    with hang_guard():
        filter_response(text, False, "Why does it rain?", LEAKS, RULES[rules].responses)
    with hang_guard():
        filter_response(text, False, "Why does it rain?", VERBOSE, RULES[rules].verbose)


@pytest.mark.parametrize("space", SPACES, ids=ascii)
@pytest.mark.parametrize("before", ["1(", "1 (ab", "1", "internal thoughts", "Principles:", "see", "\n=="], ids=ascii)
def test_long_run_of_blanks_is_filtered_quickly(before: str, space: str):
    text = f"x {before}{space * 100_000}x"
    with hang_guard():
        filter_response(text, False, "Why does it rain?", LEAKS, ANSWERS)
    with hang_guard():
        filter_response(text, False, "Why does it rain?", VERBOSE, RULES["default"].verbose)
    with hang_guard():
        check_citations(text, TEXTS.principle_names())
