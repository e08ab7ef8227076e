"""Make runs of any size and text for the viewer's tests and benchmark: a journal and files as stages write them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from selfalign import constitution
from selfalign.data.records import Example, Prompt, Response, prompt_id, write_jsonl
from selfalign.run import recipe
from selfalign.run.directory import RunDir
from selfalign.run.ledger import CandidateOutcome

_TEXT = (
    "the a of and to in is river winter teacher engine letter garden music number friend window market planet bread "
    "answer story language history reason colour weather journey kitchen doctor island paper"
)
WORDS = _TEXT.split()
REASONS = ("truncated", "repetitive", "exemplar leaked", "more stock refusals than wanted")
TYPES = ("art knowledge", "current events", "famous people", "legal expertise", "")

Say = Callable[[int, str], str]
"""(row number, field) -> text."""


def default_text(number: int, field: str) -> str:
    """Return plain sentences that depend only on the arguments."""
    rng = random.Random(f"{number} {field}")
    lengths = {"instruction": 12, "input": 0, "thoughts": 14, "answer": 45, "dropped": 40}
    return f"{field} {number}: " + " ".join(rng.choices(WORDS, k=lengths.get(field, 10)))


def prompts(rows: int, say: Say) -> Iterator[tuple[int, Prompt]]:
    for n in range(rows):
        kind = TYPES[n % len(TYPES)]
        instruction, text = say(n, "instruction"), say(n, "input") if n % 3 == 0 else ""
        source, split = ("red_team" if kind else "self_instruct"), ("heldout" if n % 10 == 0 else "train")
        yield n, Prompt(prompt_id(instruction, text), instruction, text, source, kind, kind and f"topic {n}", split)


def make(folder: Path, rows: int, say: Say = default_text, engine: str = "fake") -> RunDir:
    """Make a run of that many prompts, responses (a seventh of them dropped) and training examples.

    The run's journal is closed.
    """
    settings = ["engine.kind=fake", "evaluate.limit=4"] if engine == "fake" else [f"engine.kind={engine}"]
    run = RunDir.create(folder, recipe.load("quick", settings), constitution.load("default"))
    numbers = [p.id for p in run.constitution.principles]
    write_jsonl(run.jsonl("prompts"), (p for _, p in prompts(rows, say)))

    def answered() -> Iterator[tuple[int, Prompt, Response]]:
        for n, p in prompts(rows, say):
            cited = [numbers[n % len(numbers)], numbers[(3 * n + 1) % len(numbers)]]
            yield n, p, Response(
                p.id, p.instruction, p.input, say(n, "answer"), say(n, "thoughts"), list(dict.fromkeys(cited)),
                p.source, p.question_type, p.split,
            )  # fmt: skip

    write_jsonl(run.jsonl("responses"), (r for n, _, r in answered() if n % 7))
    examples = (Example(r.id, "standard", r.message, r.response, r.source) for n, _, r in answered() if n % 7)
    write_jsonl(run.jsonl("engrave_examples"), examples)
    journal = run.journal
    journal.record("self_instruct", ((p.id, n, "kept", "", p.message) for n, p in prompts(rows, say)))
    journal.finish("self_instruct", rows, 1.5)
    journal.record(
        "align",
        (
            (r.id, n, "kept", "", f"{r.message}\n[{r.thoughts}]\n{r.response}")
            if n % 7
            else (r.id, n, "dropped", REASONS[n % len(REASONS)], f"{r.message}\n[{r.thoughts}]\n{say(n, 'dropped')}")
            for n, _, r in answered()
        ),
        (
            CandidateOutcome(r.id, sample, "dropped" if sample else "kept", "another response" * sample, 0.25 - sample)
            for n, _, r in answered()
            for sample in (range(2) if n % 7 == 1 else ())
        ),
    )
    journal.finish("align", rows, 2.5)
    kept = [(r.id, n, r.message) for n, _, r in answered() if n % 7]
    journal.record("engrave", ((row, n, "kept", "", text) for row, n, text in kept))
    journal.finish("engrave", len(kept), 3.5)
    journal.close()
    return run
