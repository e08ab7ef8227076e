"""Write red-team prompts as lists of questions of one type (`prompts.red_team.form: by_type`).

A small base model rarely follows "kind: ..., topic: ..., question:", but it continues a list of similar questions well.
Each request shows questions of one type, from the constitution and from accepted prompts, as a list to continue. A
question whose nearest neighbours among the constitution's questions are all of other types is dropped.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from selfalign.constitution import QuestionType
from selfalign.constitution.nearest_type import types_near
from selfalign.data.prompt_text import BOS, Pieces
from selfalign.data.records import Prompt, content_hash, prompt_id
from selfalign.generation.engines.base import Request, Step
from selfalign.generation.loop import GenerationResult, RowRequest, row_seed
from selfalign.pipeline.rounds import Candidate, Rounds
from selfalign.quality.instruction_filters import reason_to_drop
from selfalign.quality.language import LANGUAGES
from selfalign.run.context import Context
from selfalign.run.ledger import RowOutcome

STAGE = "red_team"
_SHOWN_ACCEPTED = 3
"""Accepted questions of the type that a request shows."""
_YIELD = 2.0
"""Accepted questions per request that the first round assumes."""
HEADER = "Messages to an assistant. All of them are of one kind: {kind}."


def write(context: Context, types: Sequence[QuestionType], rounds: Rounds) -> Path:
    """Generate questions of every type in turn until the recipe's count is reached; return the file."""

    def make_requests() -> list[RowRequest]:
        accepted: dict[str, list[str]] = {}
        for prompt in rounds.accepted:
            accepted.setdefault(prompt.question_type, []).append(prompt.instruction)
        rate = max(len(rounds.accepted) / rounds.requests, 0.5) if rounds.requests else _YIELD
        counts = {kind.name: float(len(accepted.get(kind.name, []))) for kind in types}
        chosen = []
        for _ in range(max(4, round(rounds.missing / rate))):
            # The type with the fewest prompts is next; of several, the first one.
            kind = min(types, key=lambda t: counts[t.name])
            counts[kind.name] += rate
            chosen.append(kind)
        return [_request(context, kind, accepted.get(kind.name, []), rounds.number, n) for n, kind in enumerate(chosen)]

    def parse(request: RowRequest, result: GenerationResult) -> list[Candidate]:
        return _candidates(context, request.item, result)

    return rounds.run("red-teaming", context.recipe.prompts.red_team.max_rounds, make_requests, parse)


def _request(context: Context, kind: QuestionType, accepted: list[str], number: int, position: int) -> RowRequest:
    config = context.recipe.prompts.red_team
    row_id = content_hash(STAGE, kind.name, number, position)
    seed = row_seed(context.recipe.seed, row_id)
    rng = random.Random(seed)  # noqa: S311
    shown = [kind.question, *(e.user for e in kind.exemplars if "\n" not in e.user.strip())]
    shown += rng.sample(accepted, min(_SHOWN_ACCEPTED, len(accepted)))
    rng.shuffle(shown)
    sampling = context.sampling(config)
    step = Step(sampling, stop=("\n\n",))
    return RowRequest(row_id, Request(render(kind, shown, context.run.constitution.language), (step,), seed), kind.name)


def render(kind: QuestionType, shown: Sequence[str], language: str = "en") -> Pieces:
    """Render the prompt: the name of the type, and the list to continue."""
    header = HEADER.format(kind=kind.name)
    header += "" if language == "en" else f" They are in {LANGUAGES[language]}."
    lines = "".join(f"- {' '.join(question.split())}\n" for question in shown)
    return (BOS, f"{header}\n\n{lines}-")


def _candidates(context: Context, kind: str, result: GenerationResult) -> list[Candidate]:
    """Return a candidate for each line of a completion; the last line may be cut by the token limit."""
    row_id = result.row_id
    if result.completion is None:
        return [(RowOutcome(row_id, 0, result.state, result.reason, ""), None)]
    part = result.completion.parts[0]
    lines = [" ".join(line.strip().lstrip("-*•").split()) for line in part.text.split("\n")]
    complete = lines[:-1] if part.finish == "length" else lines
    texts = [text for text in complete if text]
    if not texts:
        return [(RowOutcome(row_id, 0, "dropped", "nothing parsed", part.text[:400]), None)]
    near = [{kind}] * len(texts) if context.model.is_fake else types_near(context.run.constitution, texts)
    return [_candidate(context, kind, row_id, n, *pair) for n, pair in enumerate(zip(texts, near, strict=True))]


def _candidate(context: Context, kind: str, row_id: str, number: int, text: str, near: set[str]) -> Candidate:
    outcome = RowOutcome(content_hash(row_id, number), 0, "kept", "", text)
    reason = reason_to_drop(text, "", context.run.constitution.language, context.recipe.filters.prompts) or ""
    if not reason and not text.endswith((".", "?", "!")):
        reason = "no end of sentence"
    if not reason and kind not in near:
        reason, text = "not of its type", f"{text}\n{kind}; nearest: {', '.join(sorted(near))}"
    if not reason and (hit := context.benchmarks.find(text)):
        return outcome._replace(state="dropped", reason=hit.reason, text=hit.ledger_text(text)), None
    if reason:
        return outcome._replace(state="dropped", reason=reason, text=text[:400]), None
    return outcome, Prompt(prompt_id(text, ""), text, "", source=STAGE, question_type=kind)
