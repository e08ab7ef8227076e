"""Write red-team prompts question type by question type (`prompts.red_team.form: by_type`).

A small base model rarely follows "kind: ..., topic: ..., question:", but it continues a list of similar lines well.
Each request shows the examples of one type as a list, "topic: question" line by line. The model writes another topic,
and then the question, which must name its topic. A type without topics shows its questions alone; the model writes
several more, and a question whose nearest neighbours among the constitution's questions are all of other types is
dropped.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from selfalign.constitution import QuestionType
from selfalign.constitution.nearest_type import types_near
from selfalign.data.prompt_text import BOS, Pieces
from selfalign.data.records import Prompt, content_hash, prompt_id
from selfalign.errors import UserError
from selfalign.generation.engines.base import Request, Step
from selfalign.generation.loop import GenerationResult, RowRequest, row_seed
from selfalign.pipeline.rounds import Candidate, Rounds
from selfalign.quality.content_words import content_words, same_stem
from selfalign.quality.instruction_filters import reason_to_drop
from selfalign.quality.language import LANGUAGES
from selfalign.run.context import Context
from selfalign.run.ledger import RowOutcome

STAGE = "red_team"
_SHOWN_ACCEPTED = 1
"""Accepted prompts of the type that a request shows besides the constitution's examples."""
_LISTS = 8
"""The number of requests of a type that share the order of the list, and so its cached prefix."""
_YIELD = {True: 0.5, False: 3.0}
"""Accepted prompts per request that the first round assumes, for types with topics and for those without."""
_TOPIC_TEMPERATURE = 1.1
"""The temperature of topics, as a multiple of that of questions: topics should differ, questions should make sense."""
_ROUND = 360
"""The requests of a round, at most: later rounds know which types lack prompts."""
_TOPIC_TOKENS = 16
_LEAST_YIELD = 0.025
"""Below this number of accepted prompts per request, a type gets no more requests, and the others share its prompts."""
HEADER = "Messages to an assistant. All of them are of one kind: {kind}."


def write(context: Context, types: Sequence[QuestionType], rounds: Rounds) -> Path:
    """Generate questions of every type in turn until the recipe's count is reached; return the file.

    Raises:
        UserError: every type has weight 0.
    """
    room: Counter[str] = Counter()
    """Prompts that each type may add in this round: the first types must not use up the count of all types."""

    types = [t for t in types if t.weight]
    if not types:
        raise UserError(
            "every question type of the constitution has weight 0: raise one, or set prompts.red_team.count to 0"
        )

    def make_requests() -> list[RowRequest]:
        accepted: dict[str, list[Prompt]] = {kind.name: [] for kind in types}
        for prompt in rounds.accepted:
            accepted.setdefault(prompt.question_type, []).append(prompt)
        open_types = _open_types(types, accepted, rounds)
        room.clear()
        room.update(_room(open_types, accepted, rounds))
        requests = []
        for kind, number in _shares(open_types, accepted, rounds):
            # The requests of a type follow each other, so that they share the list in the cache.
            requests += [_request(context, kind, accepted[kind.name], rounds.number, n) for n in range(number)]
        return requests

    def parse(request: RowRequest, result: GenerationResult) -> list[Candidate]:
        kind = next(t for t in types if t.name == request.item)
        if has_topics(kind):
            candidates = [_topic_candidate(context, kind, request.request, result)]
        else:
            candidates = _candidates(context, kind, result)
        return [_within(candidate, room) for candidate in candidates]

    return rounds.run("red-teaming", context.recipe.prompts.red_team.max_rounds, make_requests, parse)


def _within(candidate: Candidate, room: Counter[str]) -> Candidate:
    """Drop a candidate whose type has no room left in this round."""
    outcome, prompt = candidate
    if prompt is None:
        return candidate
    room[prompt.question_type] -= 1
    if room[prompt.question_type] >= 0:
        return candidate
    return outcome._replace(state="dropped", reason="more than wanted"), None


def has_topics(kind: QuestionType) -> bool:
    """Return whether the model writes a topic before each question of this type."""
    return bool(kind.about.strip())


def _open_types(
    types: Sequence[QuestionType], accepted: dict[str, list[Prompt]], rounds: Rounds
) -> Sequence[QuestionType]:
    """Return the types whose requests give prompts; all types if there is none."""
    return [t for t in types if len(accepted[t.name]) + 1 >= _LEAST_YIELD * rounds.subjects[t.name]] or types


def _room(types: Sequence[QuestionType], accepted: dict[str, list[Prompt]], rounds: Rounds) -> dict[str, int]:
    """Return the number of prompts that each type may still add."""
    total = sum(t.weight for t in types)
    target = rounds.missing + sum(len(accepted[t.name]) for t in types)
    return {t.name: math.ceil(target * t.weight / total) - len(accepted[t.name]) for t in types}


def _shares(
    types: Sequence[QuestionType], accepted: dict[str, list[Prompt]], rounds: Rounds
) -> list[tuple[QuestionType, int]]:
    """Return the number of requests of each type in the next round, more for types that lack prompts."""
    requests = {t.name: rounds.subjects[t.name] for t in types}
    # Two requests with the assumed yield are added, so that a few requests do not decide the rate of a type.
    rates = {t.name: (len(accepted[t.name]) + 2 * _YIELD[has_topics(t)]) / (requests[t.name] + 2) for t in types}
    counts = {t.name: float(len(accepted[t.name])) for t in types}
    shares = dict.fromkeys(counts, 0)
    total = float(len(rounds.accepted))
    for _ in range(_ROUND):
        if total >= rounds.target:
            break
        kind = min(types, key=lambda t: counts[t.name] / t.weight)
        shares[kind.name] += 1
        counts[kind.name] += rates[kind.name]
        total += rates[kind.name]
    return [(t, shares[t.name]) for t in types if shares[t.name]]


def first_request(context: Context, kind: QuestionType) -> Request:
    """Return the first request of a type, for a preview."""
    return _request(context, kind, [], 0, 0).request


def _request(context: Context, kind: QuestionType, accepted: list[Prompt], number: int, position: int) -> RowRequest:
    row_id = content_hash(STAGE, kind.name, number, position)
    seed = row_seed(context.recipe.seed, row_id)
    rng = random.Random(row_seed(context.recipe.seed, STAGE, kind.name, number, position // _LISTS))  # noqa: S311
    examples = [(topic, question) for topic, question in kind.examples() if topic or not has_topics(kind)]
    examples += [(p.topic, p.instruction) for p in rng.sample(accepted, min(_SHOWN_ACCEPTED, len(accepted)))]
    rng.shuffle(examples)
    sampling = context.sampling(context.recipe.prompts.red_team)
    pieces = render(kind, examples, context.run.constitution.language)
    if not has_topics(kind):
        return RowRequest(row_id, Request(pieces, (Step(sampling, stop=("\n\n",)),), seed), kind.name)
    # The first word of an example begins the question, for variety.
    opening = random.Random(seed).choice(examples)[1].split()[0]  # noqa: S311
    topic = Step(
        replace(sampling, temperature=_TOPIC_TEMPERATURE * sampling.temperature, max_new_tokens=_TOPIC_TOKENS),
        stop=(":", "\n"),
    )
    question = Step(sampling, cue=f": {opening}", stop=("\n",))
    return RowRequest(row_id, Request(pieces, (topic, question), seed), kind.name)


def render(kind: QuestionType, examples: Sequence[tuple[str, str]], language: str = "en") -> Pieces:
    """Render the prompt: the heading, and the list to continue, given as (topic, question)."""
    header = f"{kind.about}:" if has_topics(kind) else HEADER.format(kind=kind.name)
    header += "" if language == "en" else f" They are in {LANGUAGES[language]}."
    lines = "".join(f"- {topic}: {text}\n" if has_topics(kind) else f"- {text}\n" for topic, text in examples)
    return (BOS, f"{header}\n\n{lines}-")


def mentions(question: str, topic: str) -> bool:
    """Return whether the question has every content word of the topic, in a form with the same beginning."""
    words = content_words(question)
    return all(any(same_stem(word, other) for other in words) for word in content_words(topic))


def _topic_candidate(context: Context, kind: QuestionType, request: Request, result: GenerationResult) -> Candidate:
    """Return the candidate of a completion that has a topic and a question."""
    if result.completion is None:
        return RowOutcome(result.row_id, 0, result.state, result.reason, ""), None
    parts = result.completion.parts
    topic = " ".join(parts[0].text.split())
    if len(parts) < len(request.steps) or not topic:
        return RowOutcome(result.row_id, 0, "dropped", "no topic", topic), None
    opening = request.steps[1].cue.removeprefix(": ")
    text = " ".join(f"{opening}{parts[1].text}".split())
    return _candidate(context, kind, result.row_id, text, topic, {kind.name})


def _candidates(context: Context, kind: QuestionType, result: GenerationResult) -> list[Candidate]:
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
    near = [{kind.name}] * len(texts) if context.model.is_fake else types_near(context.run.constitution, texts)
    rows = zip(texts, near, strict=True)
    return [_candidate(context, kind, content_hash(row_id, n), text, "", names) for n, (text, names) in enumerate(rows)]


def _candidate(context: Context, kind: QuestionType, row_id: str, text: str, topic: str, near: set[str]) -> Candidate:
    ledger_text = f"{topic}: {text}" if topic else text
    outcome = RowOutcome(row_id, 0, "kept", "", text)
    reason = reason_to_drop(text, "", context.run.constitution.language, context.recipe.filters.prompts) or ""
    if not reason and not text.endswith((".", "?", "!")):
        reason = "no end of sentence"
    # The words that only frame a question are known for English.
    english = context.run.constitution.language == "en" and not context.model.is_fake
    if not reason and english and not mentions(text, topic):
        reason = "does not name its topic"
    if not reason and not context.model.is_fake and not kind.has_word(text):
        reason, ledger_text = "not of its type", f"{text}\n{kind.name}; none of its words"
    if not reason and kind.name not in near:
        reason, ledger_text = "not of its type", f"{text}\n{kind.name}; nearest: {', '.join(sorted(near))}"
    if not reason and (hit := context.benchmarks.find(text)):
        return outcome._replace(state="dropped", reason=hit.reason, text=hit.ledger_text(text)), None
    if reason:
        return outcome._replace(state="dropped", reason=reason, text=ledger_text[:400]), None
    return outcome, Prompt(prompt_id(text, ""), text, "", source=STAGE, question_type=kind.name, topic=topic)
