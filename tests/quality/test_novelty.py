"""Test that novelty decisions equal those of rouge-score's ROUGE-L, strictly above the threshold."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from selfalign.quality import novelty
from selfalign.quality.novelty import NoveltyIndex
from selfalign.quality.rouge import rouge_l, tokens

SCORER = RougeScorer(["rougeL"])
WORDS = [f"w{i}" for i in range(300)]

words = st.sampled_from(
    ["list", "sort", "the", "three", "colours", "Of", "a", "RAINBOW", "3", "é", "naïve", "ß", "x-y"]
)
marks = st.sampled_from([" ", " ", " ", ", ", ". ", "\n", "_", "  "])


@st.composite
def instructions(draw: st.DrawFn) -> str:
    return "".join(draw(words) + draw(marks) for _ in range(draw(st.integers(0, 14))))


def reference(a: str, b: str) -> float:
    return SCORER.score(a, b)["rougeL"].fmeasure


@given(instructions(), instructions())
@example("", "")
@example("", "sort")
@example("ééé", "ééé")
def test_score_equals_rouge_score(a: str, b: str):
    assert rouge_l(a, b) == reference(a, b)


@given(st.lists(instructions(), max_size=12), st.sampled_from([0.7, 0.5, 0.6, 2 / 3, 0.9]))
@example(["sort the a", "sort the a"], 0.7)
@settings(max_examples=150)
def test_decisions_equal_rouge_score(candidates: list[str], threshold: float):
    index, accepted = NoveltyIndex(threshold), []
    for text in candidates:
        near = [other for other in accepted if reference(other, text) > threshold]
        results = index.nearest(text)
        assert (results is not None) == bool(near)
        if results:
            assert results.text == near[0]
            assert results.score == reference(results.text, text)
        assert index.add(text) == (not near)
        if not near:
            accepted.append(text)
        assert len(index) == len(accepted)


@given(st.lists(instructions(), max_size=12), instructions(), st.sampled_from([0.7, 0.6]))
def test_similar_returns_every_close_text(accepted: list[str], text: str, threshold: float):
    index = NoveltyIndex(threshold)
    for other in accepted:
        index.accept(other)
    expected = [(other, reference(other, text)) for other in accepted if reference(other, text) > threshold]
    assert [(near.text, near.score) for near in index.similar(text)] == expected
    assert index.similar(text)[:1] == ([near] if (near := index.nearest(text)) else [])


latin = st.text(st.characters(max_codepoint=0x36F) | st.sampled_from("“”‘’–—…€™°ạếữẞﬁ₂²½→≤√\u200b\u2028"), max_size=40)


@given(latin, latin)
def test_any_latin_text_has_the_tokens_of_rouge_score(a: str, b: str):
    assert rouge_l(a, b) == reference(a, b)


def numbered(common: int, length: int, own: str) -> str:
    return " ".join([f"w{i}" for i in range(common)] + [f"{own}{i}" for i in range(length - common)])


@pytest.mark.parametrize(
    ("common", "m", "n"),
    [(7, 10, 10), (7, 8, 12), (7, 9, 11), (7, 7, 13), (14, 20, 20), (14, 17, 23), (21, 30, 30), (35, 50, 50)],
)
def test_decision_at_the_threshold_equals_rouge_score(common: int, m: int, n: int):
    one, two = numbered(common, m, "a"), numbered(common, n, "b")
    index = NoveltyIndex(0.7)
    index.accept(one)
    assert abs(reference(one, two) - 0.7) < 1e-9
    assert index.add(two) == (not reference(one, two) > 0.7)


def test_decisions_just_above_and_below_the_threshold():
    index = NoveltyIndex(0.7)
    index.accept(numbered(10, 10, "a"))
    assert index.nearest(numbered(8, 10, "b")) is not None
    assert index.nearest(numbered(6, 10, "b")) is None


@pytest.mark.parametrize("text", ["", "   ", "?!", "é ñ", "\x00\u2028"])
def test_text_without_tokens_is_always_new(text: str):
    index = NoveltyIndex()
    assert index.add(text)
    assert index.add(text)
    assert index.add("sort the words")
    assert index.nearest(text) is None


def test_case_and_punctuation_do_not_matter():
    index = NoveltyIndex()
    index.accept("Sort the words, please.")
    assert index.nearest("sort THE words -- please!").score == 1.0
    assert tokens("Naïve 3x, x_y") == ("na", "ve", "3x", "x", "y")


def test_nearest_returns_the_first_close_text():
    index = NoveltyIndex()
    for text in ("name two rivers", "sort these ten words", "sort these ten words now"):
        index.accept(text)
    assert index.nearest("sort these ten words").text == "sort these ten words"


def test_more_words_than_the_basic_plane_has_characters():
    index = NoveltyIndex()
    for start in range(0, 70_000, 1000):
        index.accept(" ".join(f"w{i}" for i in range(start, start + 1000)))
    characters = set(index._characters.values())
    assert len(characters) == 70_000
    assert not any("\ud800" <= c <= "\udfff" for c in characters)
    assert index.nearest(" ".join(f"w{i}" for i in range(69_000, 70_000))) is not None
    assert index.nearest(" ".join(f"w{i}" for i in range(0, 70_000, 700))) is None
    assert index.nearest(" ".join(f"new{i}" for i in range(100))) is None


# -- the index against rouge-score, at random and where it is hardest --------------------------------------------------


def adversarial(rng: random.Random) -> tuple[str, str]:
    """Generate a pair of texts that is likely to be near the threshold, or unusual."""
    vocabulary = [f"w{i}" for i in range(rng.choice([1, 2, 5, 40]))] + [
        "the",
        "a",
        "Of",
        "é",
        "naïve",
        "ø",
        "x-y",
        "3",
    ]
    one = rng.choices(vocabulary, k=rng.randint(0, rng.choice([1, 6, 14, 40])))
    two = list(one)
    for _ in range(rng.randint(0, max(1, len(two)))):
        edit, at = rng.randrange(4), rng.randrange(len(two) + 1)
        if edit == 0:
            two.insert(at, rng.choice(vocabulary))
        elif two and edit == 1:
            two.pop(min(at, len(two) - 1))
        elif two and edit == 2:
            two[min(at, len(two) - 1)] = rng.choice(vocabulary)
        else:
            two = two[at:] + two[:at]
    return " ".join(one), rng.choice([" ", "  ", ", ", "\n"]).join(two)


def decide_pairs(number: int, seed: int) -> tuple[int, int]:
    """Return the numbers of pairs with another decision than rouge-score, and of pairs that are too close."""
    rng = random.Random(seed)
    differ = close = 0
    for _ in range(number):
        one, two = adversarial(rng)
        threshold = rng.choice([0.7, 0.7, 0.7, 0.5, 2 / 3, 0.9])
        index = NoveltyIndex(threshold)
        index.accept(one)
        expected = reference(one, two) > threshold
        close += expected
        differ += index.add(two) == expected
    return differ, close


def test_ten_thousand_pairs_are_decided_as_by_rouge_score():
    differ, close = decide_pairs(10_000, 1)
    assert differ == 0
    assert 2000 < close < 8000


@pytest.mark.slow
def test_a_hundred_thousand_pairs_are_decided_as_by_rouge_score():
    assert decide_pairs(100_000, 2)[0] == 0


def test_pool_decisions_equal_all_pairs():
    rng = random.Random(3)
    texts = [text for _ in range(300) for text in adversarial(rng)]
    pool: list[str] = []
    index = NoveltyIndex()
    for text in texts:
        near = next((other for other in pool if reference(other, text) > 0.7), None)
        results = index.nearest(text)
        assert (results.text if results else None) == near
        assert index.add(text) == (near is None)
        if near is None:
            pool.append(text)
    assert len(pool) > 100


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a few texts fill several blocks, passes and numberings."""
    monkeypatch.setattr(novelty, "_BLOCK", 7)
    monkeypatch.setattr(novelty, "_POSTINGS_AT_ONCE", 20)
    monkeypatch.setattr(novelty, "_FIRST_NUMBERING", 3)
    monkeypatch.setattr(novelty, "_FEW_POSTINGS", 4)


def first_near(pool: list[str], text: str, threshold: float) -> str | None:
    return next((other for other in pool if rouge_l(other, text) > threshold), None)


def found_text(results: novelty.Nearest | None) -> str | None:
    return results.text if results else None


@pytest.mark.parametrize("seed", range(4))
def test_batches_decide_like_single_texts(seed: int, small_sizes: None):
    rng, pool = random.Random(seed), list[str]()
    threshold = [0.7, 0.5, 2 / 3, 0.9][seed]
    texts = [text for _ in range(300) for text in adversarial(rng)]
    index = NoveltyIndex(threshold)
    before = index.nearest_all(texts)
    assert before == [None] * len(texts)  # nothing was entered
    requested = []
    for text in texts:
        near = first_near(pool, text, threshold)
        requested.append(near)
        if near is None:
            pool.append(text)
    assert [found_text(n) for n in index.nearest_all(texts, enter=True)] == requested
    assert len(index) == len(pool) > 100
    assert index._next_numbering > 256
    again = [first_near(pool, text, threshold) for text in texts[:200]]
    assert [found_text(n) for n in index.nearest_all(texts[:200])] == again


@given(st.lists(instructions(), max_size=30), st.sampled_from([0.7, 0.5, 0.9]), st.integers(0, 30))
@settings(max_examples=100)
def test_blocks_of_any_size_decide_the_same(texts: list[str], threshold: float, cut: int):
    whole, parts, single = (NoveltyIndex(threshold) for _ in range(3))
    decided = whole.add_all(texts)
    assert parts.add_all(texts[:cut]) + parts.add_all(texts[cut:]) == decided
    assert [single.add(text) for text in texts] == decided


def test_long_and_common_texts_are_decided_exactly(small_sizes: None):
    """Hundreds of tokens fill the 64 bits of a signature; close copies must still be found."""
    rng = random.Random(5)
    index, texts = NoveltyIndex(), [" ".join(rng.choices(WORDS, k=400)) for _ in range(20)]
    assert all(index.add_all(texts))
    for text in texts:
        changed = text.split()
        for place in range(0, 400, 5):
            changed[place] = "new"
        assert found_text(index.nearest(" ".join(changed))) == text


def test_mean_similarity_equals_all_pairs():
    rng = random.Random(6)
    texts = [text for _ in range(20) for text in adversarial(rng)]
    index = NoveltyIndex(1.0)
    assert index.mean_similarity("sort") == 0.0
    for text in texts:
        index.accept(text)
    for text in texts[:10]:
        expected = sum(reference(other, text) for other in texts) / len(texts)
        assert index.mean_similarity(text) == pytest.approx(expected, abs=1e-6)


def test_a_text_counts_with_its_first_million_tokens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(novelty, "_PLACE", 5)
    index = NoveltyIndex()
    assert index.add("a b c d e f") and index.add("a g h i j") and not index.add("a b c d e g")


@pytest.mark.parametrize(
    ("one", "two", "other"),
    [
        ("请写一首关于春天的诗。", "请写一首关于春天的短诗。", "面包是怎么做的？"),
        ("パンはどうやって焼きますか。", "パンはどうやって焼くのですか。", "日本の首都はどこですか。"),
        ("อบขนมปังอย่างไร", "อบขนมปังอย่างไรดี", "เมืองหลวงของไทยคือเมืองใด"),
        ("빵은 어떻게 굽나요?", "빵은 어떻게 굽나요!", "수도는 어디입니까?"),
        ("Как пекут белый хлеб?", "Как пекут белый хлеб", "Какой город столица?"),
        ("كيف يخبز الخبز؟", "كيف يخبز الخبز", "ما هي العاصمة؟"),
        ("Explain 🍎.", "explain 🍎", "Explain 🔥 🧊."),
    ],
)
def test_novelty_sees_every_script(one: str, two: str, other: str):
    index = NoveltyIndex(0.7)
    assert index.add(one) and not index.add(two) and index.add(other)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_thresholds_zero_and_one(threshold: float):
    index = NoveltyIndex(threshold)
    assert index.add("one two three") is True
    # Above 0 is any shared word; above 1 is nothing.
    assert index.add("three four") is (threshold == 1.0)
    assert index.add("five") is True
    assert index.add("") is True
