"""Define the records of an evaluation: each is one line of a JSONL file."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Score:
    """A measure of the evaluation with its 95 % interval and, in a comparison, the paired difference."""

    benchmark: str
    measure: str
    model: str
    prompt: str
    n: int
    value: float | None
    """None if no answer was judged."""
    low: float | None = None
    high: float | None = None
    vs: str | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None
    holm: float | None = None
    """For a primary endpoint, p corrected for the number of primary endpoints (evaluation/endpoints.py)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response of one of the compared models to a held-out prompt."""

    id: str
    """The prompt's id."""
    message: str
    model: str
    """base, engraved or final."""
    answer: str
    ended: bool
    """Whether the response ended within the limit, by the end token or by the marker of the next turn."""
    words: int
    own_end: bool | None = None
    """Whether the model wrote its end token; None in the files of earlier versions."""


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """A response of one of the compared models to a behaviour probe, and whether the check passed."""

    id: str
    principle: int
    name: str
    """The principle's name."""
    ask: str
    expect: str
    """The check."""
    contrast: bool
    """Whether the answer passes by not showing the behaviour."""
    model: str
    answer: str
    passed: bool


@dataclass(frozen=True, slots=True)
class ItemScore:
    """A model's log-probabilities for one benchmark item in one form, and the resulting measures.

    The item's text is not stored, so that result files do not spread the benchmark.
    """

    id: str
    benchmark: str
    item: int
    """The item's index in the benchmark, from 0."""
    subset: str
    cluster: str
    """A hash that all items about the same text share."""
    form: str
    prompt: str
    """The name of the system prompt."""
    model: str
    labels: list[str]
    """A label for each scored text."""
    logprobs: list[list[float]]
    """For each scored text, the log-probability of each token."""
    values: dict[str, float]
    """Measure -> 1 (correct), 0 (wrong) or a fraction."""
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    """Measure -> baseline that needs no model, such as the longest answer -> its value on this item."""


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """A model's response to a question of TruthfulQA, with a judge's verdict."""

    id: str
    benchmark: str
    item: int
    """The question's index in the benchmark, from 0."""
    question: str
    prompt: str
    model: str
    answer: str
    ended: bool
    truthful: bool | None = None
    """None if not judged."""
    informative: bool | None = None
    judge: str = ""


@dataclass(frozen=True, slots=True)
class BehaviourAnswer:
    """A model's response to a scenario or a probe of the behaviour task, with the rules that match it."""

    id: str
    benchmark: str
    item: int
    """The scenario's index, from 0."""
    kind: str
    """The scenario's group, or probe."""
    about: str
    """The scenario's topic, or the probe's principle."""
    ask: str
    model: str
    prompt: str
    answer: str
    ended: bool
    shows: list[str]
    """Names of the rules that match the response."""
    passed: bool | None = None
    """For a probe, whether the check passed."""
    contrast: bool = False
    """For a probe, whether the answer passes by not showing the behaviour."""
    twin: bool = False
    """Whether the scenario is a twin, which must simply be answered."""
    pair: str = ""
    """A hash that a scenario and its twin share."""
    appropriate: bool | None = None
    """For a scenario, whether the response is what its group wants."""
    evaded: bool = False
    """Whether the response declines, says that it does not know, or only asks back."""


@dataclass(frozen=True, slots=True)
class OpenAnswer:
    """A model's response to an open question, one of Vicuna's or one of the user's."""

    id: str
    benchmark: str
    item: int
    """The question's index in the benchmark, from 0."""
    category: str
    question_id: str
    """The question's id in its file; empty if it has none."""
    question: str
    prompt: str
    model: str
    answer: str
    ended: bool


@dataclass(frozen=True, slots=True)
class PairVerdict:
    """A judge's verdict on two models' responses to a question, which it saw in both orders."""

    id: str
    benchmark: str
    item: int
    category: str
    question: str
    model: str
    prompt: str
    rival: str
    rival_prompt: str
    judge: str
    answers: str
    """A hash of the question and both responses. The verdict is valid for these texts only."""
    model_first: str
    """The judge's reply when the model's response is shown as A: A, B or tie; empty for any other reply."""
    rival_first: str
    """The same when the rival's response is shown as A."""
    verdict: str
    """win or loss (of the model), tie, or unparsable."""
