"""List results of the paper (arXiv 2305.03047) to show next to a run's scores.

base is LLaMA-65B, engraved is Dromedary before verbose cloning ("non-verbose"), final is Dromedary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reference:
    """The paper's results on a benchmark."""

    benchmark: str
    """The beginning of our names of this benchmark."""
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str | int, ...], ...]
    note: str


_MODELS = ("base: LLaMA-65B", "engraved", "final: Dromedary")

REFERENCES = (
    Reference(
        "hhh",
        "HHH Eval, multiple choice",
        ("accuracy, %", *_MODELS),
        (
            ("harmless", 71, 91, 91),
            ("helpful", 83, 86, 85),
            ("honest", 72, 74, 74),
            ("other", 84, 88, 81),
            ("overall", 77, 85, 83),
        ),
        "ChatGPT: 87 overall.",
    ),
    Reference(
        "truthfulqa",
        "TruthfulQA",
        ("%", *_MODELS),
        (
            ("MC1, ranked by P(True)", 37, 61, 49),
            ("MC1, ranked by P(True) − P(False)", 56, 69, 65),
            ("generation: truthful", 57, 74, 72),
            ("generation: truthful and informative", 53, 57, 61),
        ),
        "MC1 was read from a figure.",
    ),
    Reference(
        "vicuna",
        "Vicuna questions, judged by GPT-4",
        ("Dromedary, two-shot, against", "won", "tied", "lost"),
        (
            ("LLaMA-65B, zero-shot", 72, 0, 8),
            ("LLaMA-65B, two-shot", 47, 5, 28),
            ("engraved, zero-shot", 67, 2, 11),
            ("engraved, two-shot", 55, 5, 20),
            ("ChatGPT", 19, 6, 55),
        ),
        "Of 80 questions, read from a figure.",
    ),
)

SUPERVISION = (
    ("InstructGPT", "77,000", "users, annotators"),
    ("Alpaca", "52,000", "Davinci-003"),
    ("Vicuna", "70,000", "ShareGPT"),
    ("Koala", "472,000", ""),
    ("OpenAssistant", "161,000", ""),
    ("Dolly-v2", "15,000", ""),
    ("Davinci-003, ChatGPT, GPT-4, Claude", "unknown", ""),
    ("Dromedary", "< 300 lines", "the paper's own count"),
)
"""The paper's table 1: system, human-written items, their source."""


def match(benchmarks: Sequence[str]) -> dict[str, Reference]:
    """Return the reference of each benchmark, each reference only once."""
    matches: dict[str, Reference] = {}
    for name in benchmarks:
        reference = next((r for r in REFERENCES if name.lower().startswith(r.benchmark)), None)
        if reference and reference not in matches.values():
            matches[name] = reference
    return matches
