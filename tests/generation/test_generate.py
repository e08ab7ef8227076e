"""The loop between journal and engine: order, memory, failures, signals."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from selfalign.data.prompt_text import BOS, Control
from selfalign.errors import Interrupted
from selfalign.generation.engines.base import Completion, Part, Request, Sampling, Step
from selfalign.generation.engines.fake import Fake
from selfalign.generation.loop import GenerationResult, JournaledEngine, RowRequest, row_seed
from selfalign.run.journal import Journal
from selfalign.system.signals import STOP

IDENTITIES = {None: "base", "engrave": "adapter"}
STEP = Step(Sampling(1.0, 0.9, 50))


def echo(prompt: str, step: Step, rng: random.Random) -> str:
    return f" answer to {prompt} {rng.random()}"


def works(number: int) -> list[RowRequest]:
    return [RowRequest(f"row{i}", Request((BOS, f"prompt {i}"), (STEP,), seed=i)) for i in range(number)]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


def ask(
    items: list[RowRequest], engine: Fake, journal: Journal, stage: str = "align", **more
) -> list[GenerationResult]:
    return JournaledEngine(engine, journal, stage, more.pop("identities", IDENTITIES), **more).generate(items)


def text(outcome: GenerationResult) -> str:
    assert outcome.completion is not None
    return outcome.completion.parts[-1].text


@pytest.mark.parametrize("parallel", [1, 8])
def test_results_have_the_order_of_the_requests(journal: Journal, parallel: int):
    def slow_first(prompt: str, step: Step, rng: random.Random) -> str:
        time.sleep(0.02 if prompt.endswith("0") else 0.0)
        return f"to {prompt}"

    results = ask(works(40), Fake(parallel, slow_first), journal)
    assert [o.row_id for o in results] == [f"row{i}" for i in range(40)]
    assert [text(o) for o in results] == [f"to <bos>prompt {i}" for i in range(40)]


def test_second_call_sends_no_requests(journal: Journal):
    engine = Fake(4, echo)
    first = ask(works(10), engine, journal)
    assert engine.requests == 10
    again = Fake(4, echo)
    assert ask(works(10), again, journal) == first
    assert again.requests == 0


def test_only_new_requests_are_sent(journal: Journal):
    ask(works(4), Fake(2, echo), journal)
    engine = Fake(2, echo)
    assert len(ask(works(10), engine, journal)) == 10
    assert engine.requests == 6


def test_results_do_not_depend_on_slots(tmp_path: Path):
    results = []
    for slots in (2, 8):
        opened = Journal(tmp_path / f"{slots}.sqlite")
        results.append(ask(works(12), Fake(slots, echo), opened))
        opened.close()
    assert results[0] == results[1]


BASE = Request((BOS, "prompt"), (STEP,), seed=1)
CHANGES: dict[str, Callable[[Request], Request]] = {
    "prompt": lambda r: replace(r, prompt=(BOS, "prompt!")),
    "control piece": lambda r: replace(r, prompt=(BOS, Control("prompt"))),
    "pieces": lambda r: replace(r, prompt=(BOS, "pro", "mpt")),
    "seed": lambda r: replace(r, seed=2),
    "adapter": lambda r: replace(r, adapter="engrave"),
    "temperature": lambda r: replace(r, steps=(replace(STEP, sampling=replace(STEP.sampling, temperature=0.5)),)),
    "top_p": lambda r: replace(r, steps=(replace(STEP, sampling=replace(STEP.sampling, top_p=0.5)),)),
    "top_k": lambda r: replace(r, steps=(replace(STEP, sampling=replace(STEP.sampling, top_k=5)),)),
    "tokens": lambda r: replace(r, steps=(replace(STEP, sampling=replace(STEP.sampling, max_new_tokens=5)),)),
    "repetition": lambda r: replace(r, steps=(replace(STEP, sampling=replace(STEP.sampling, repetition=0.5)),)),
    "repetition length": lambda r: replace(
        r, steps=(replace(STEP, sampling=replace(STEP.sampling, repetition_length=3)),)
    ),
    "breaks": lambda r: replace(r, steps=(replace(STEP, sampling=replace(STEP.sampling, breaks=(".",))),)),
    "bias": lambda r: replace(r, steps=(replace(STEP, sampling=replace(STEP.sampling, bias=(("a", -1.0),))),)),
    "ban_eos": lambda r: replace(r, steps=(replace(STEP, sampling=replace(STEP.sampling, ban_eos=True)),)),
    "cue": lambda r: replace(r, steps=(replace(STEP, cue="so"),)),
    "stop": lambda r: replace(r, steps=(replace(STEP, stop=("\n",)),)),
    "grammar": lambda r: replace(r, steps=(replace(STEP, grammar='root ::= "a"'),)),
    "steps": lambda r: replace(r, steps=(STEP, STEP)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_request_is_sent_again(journal: Journal, change: str):
    ask([RowRequest("row", BASE)], Fake(1, echo), journal)
    engine = Fake(1, echo)
    ask([RowRequest("row", CHANGES[change](BASE))], engine, journal)
    assert engine.requests >= 1
    same = Fake(1, echo)
    ask([RowRequest("row", BASE)], same, journal)
    assert same.requests == 0


def test_other_weights_stage_or_row_are_sent_again(journal: Journal):
    ask([RowRequest("row", BASE)], Fake(1, echo), journal)
    for items, more in [
        ([RowRequest("row", BASE)], {"identities": {None: "other"}}),
        ([RowRequest("row", BASE)], {"stage": "verbose"}),
        ([RowRequest("row2", BASE)], {}),
    ]:
        engine = Fake(1, echo)
        ask(items, engine, journal, **more)
        assert engine.requests == 1


def test_new_adapter_weights_resend_only_its_requests(journal: Journal):
    items = [RowRequest("a", BASE), RowRequest("b", replace(BASE, adapter="engrave"))]
    ask(items, Fake(1, echo), journal)
    engine = Fake(1, echo)
    ask(items, engine, journal, identities={None: "base", "engrave": "trained again"})
    assert engine.requests == 1


def test_repeated_request_is_sent_once(journal: Journal):
    engine = Fake(2, echo)
    results = ask([RowRequest("row", BASE)] * 3, engine, journal)
    assert engine.requests == 1
    assert results[0] == results[1] == results[2]


def test_failed_row_does_not_affect_others(journal: Journal):
    results = ask(works(10), Fake(3, echo, fail="prompt 4"), journal)
    assert [o.row_id for o in results if o.completion is None] == ["row4"]
    assert "set to fail" in results[4].reason
    assert all(o.reason == "" for o in results if o.completion)
    assert journal.counts("align").generation.requests == 9
    assert journal.open_work("align") == 0


def test_failed_row_is_retried_next_time(journal: Journal):
    ask(works(10), Fake(3, echo, fail="prompt 4"), journal)
    engine = Fake(3, echo)
    results = ask(works(10), engine, journal)
    assert engine.requests == 1
    assert all(o.completion for o in results)


def test_engine_failure_loses_no_saved_output(journal: Journal):
    def breaks(prompt: str, step: Step, rng: random.Random) -> str:
        if prompt.endswith("prompt 30"):
            raise RuntimeError("the engine is gone")
        return "fine"

    with pytest.raises(RuntimeError, match="the engine is gone"):
        ask(works(40), Fake(1, breaks), journal)
    saved = journal.counts("align").generation.requests
    assert saved >= 27
    engine = Fake(1, echo)
    ask(works(40), engine, journal)
    assert engine.requests == 40 - saved


def test_raw_output_is_in_the_journal(journal: Journal):
    results = ask(works(3), Fake(1, lambda *_: "raw \u2028 é\x1b[2J"), journal)
    with sqlite3.connect(journal.path) as other:
        rows = other.execute("SELECT row_id, state, raw, prompt_tokens, generated_tokens FROM work").fetchall()
    other.close()
    assert {r[0] for r in rows} == {"row0", "row1", "row2"}
    for _, state, raw, prompt_tokens, generated in rows:
        assert state == "raw_saved"
        assert Completion.from_json(json.loads(raw)).parts[0].text == "raw \u2028 é\x1b[2J"
        assert prompt_tokens > 0
        assert generated == results[0].completion.parts[0].generated_tokens


def test_guided_request_has_a_part_per_step(journal: Journal):
    seen: list[str] = []

    def script(prompt: str, step: Step, rng: random.Random) -> str:
        seen.append(prompt)
        return "one \nmore" if not step.cue else " two"

    steps = (replace(STEP, stop=("\n",)), replace(STEP, cue="\nSo:"))
    results = ask([RowRequest("row", replace(BASE, steps=steps))], Fake(1, script), journal)
    assert [p.text for p in results[0].completion.parts] == ["one ", " two"]
    assert seen == ["<bos>prompt", "<bos>promptone\nSo:"]


def test_truncated_step_ends_the_request(journal: Journal):
    short = replace(STEP, sampling=replace(STEP.sampling, max_new_tokens=2))
    engine = Fake(1, lambda *_: "a b c d e")
    results = ask([RowRequest("row", replace(BASE, steps=(short, STEP)))], engine, journal)
    assert engine.requests == 1
    assert results[0].completion == Completion((Part("a b", "length", 2, 0, 2),))


def test_progress_counts_rows_and_tokens(journal: Journal):
    ask(works(3), Fake(2, lambda *_: "a b"), journal)
    told: list[tuple[int, int]] = []
    ask(works(8), Fake(2, lambda *_: "a b", fail="prompt 5"), journal, on_done=lambda *t: told.append(t))
    assert sum(rows for rows, _ in told) == 8
    assert sum(tokens for _, tokens in told) == 4 * 2


def test_no_requests_give_no_results(journal: Journal):
    engine = Fake(2, echo)
    assert ask([], engine, journal) == []
    assert engine.requests == 0


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    monkeypatch.setattr(STOP, "_signum", None)
    return lambda signum: setattr(STOP, "_signum", signum)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_finishes_requests_in_flight(journal: Journal, stop, signum: int, code: int):
    def script(prompt: str, step: Step, rng: random.Random) -> str:
        time.sleep(0.005)
        if prompt.endswith("prompt 9"):
            stop(int(signum))
        return echo(prompt, step, rng)

    engine = Fake(4, script)
    with pytest.raises(Interrupted) as caught:
        ask(works(60), engine, journal)
    assert caught.value.exit_code == code
    assert 10 <= engine.requests < 30
    assert journal.counts("align").generation.requests == engine.requests
    stop(None)
    rest = Fake(4, echo)
    results = ask(works(60), rest, journal)
    assert rest.requests == 60 - engine.requests
    assert [text(o).split(" 0.")[0] for o in results] == [f" answer to <bos>prompt {i}" for i in range(60)]


def test_no_request_is_sent_after_a_signal(journal: Journal, stop):
    stop(int(signal.SIGINT))
    engine = Fake(4, echo)
    with pytest.raises(Interrupted):
        ask(works(5), engine, journal)
    assert engine.requests == 0
    assert journal.open_work("align") == 5


def test_row_seed_depends_only_on_the_row():
    assert row_seed(0, "align", "a") == row_seed(0, "align", "a")
    assert len({row_seed(0, "a"), row_seed(1, "a"), row_seed(0, "b"), row_seed(0, "a", "b")}) == 4
    assert all(0 <= row_seed(0, i) < 2**32 for i in range(100))
