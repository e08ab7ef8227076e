"""Stage 1b, topic-guided red-teaming: question types -> topics -> prompts.

constitution, 1_prompts/self_instruct.jsonl -> 1_prompts/topics.jsonl, 1_prompts/red_team.jsonl

The stage generates questions of types that a model without live data or memory answers wrongly. The model first extends
the list of topics of each type in rounds, and then writes one question for each (type, topic) pair. (SELF-ALIGN, arXiv
2305.03047, section 3.2.)
"""

from __future__ import annotations

import math
import random
import re
import string
from collections import Counter
from dataclasses import replace
from heapq import heapify, heappop, heappush
from pathlib import Path

from selfalign.constitution import QuestionType, load_seeds
from selfalign.data.prompt_text import BOS, Pieces
from selfalign.data.records import Prompt, Topic, content_hash, prompt_id, read_jsonl, write_jsonl
from selfalign.errors import UserError
from selfalign.generation.engines.base import Request, Step
from selfalign.generation.loop import GenerationResult, RowRequest, row_seed
from selfalign.pipeline import typed_questions
from selfalign.pipeline.rounds import Candidate, Rounds
from selfalign.quality.instruction_filters import reason_to_drop
from selfalign.quality.language import LANGUAGES
from selfalign.run.context import Context
from selfalign.run.ledger import RowOutcome
from selfalign.run.recipe import SteeringSettings
from selfalign.system.clock import Clock
from selfalign.system.signals import STOP

TOPICS, STAGE = "topics", "red_team"
_ENOUGH_TOPICS = 10
_SHOWN_TOPICS = 5
_SHOWN_QUESTIONS = 6
_LAST_ROUND = 16
"""Up to this number of missing questions, all are requested in one round."""

TOPIC_HEADER = "Lists of topics. A topic is one to three words long. All topics of a list are different.\n\n"
QUESTION_HEADER = (
    "Questions that people ask an assistant. Each question is one short and clear sentence about its topic, "
    "and it is of the given kind.\n\n"
)


def run(context: Context) -> list[Path]:
    """Generate topics, then questions until the recipe's count is reached; return the files."""
    types = context.run.constitution.question_types
    if not types and context.recipe.prompts.red_team.count:
        raise UserError("the constitution has no question_types: add some, or set prompts.red_team.count to 0")
    config = context.recipe.prompts.red_team
    if config.count and config.form == "by_topic":
        topics = _grow_topics(context, types)
    else:
        topics = {}
        write_jsonl(context.run.jsonl(TOPICS), [])
        context.journal.restart(TOPICS)
    return [context.run.jsonl(TOPICS), _write_questions(context, types, topics)]


# -- topics ----------------------------------------------------------------------------------------------------------


def _grow_topics(context: Context, types: list[QuestionType]) -> dict[str, list[str]]:
    config = context.recipe.prompts.red_team
    clock = Clock()
    topics = {t.name: [t.topic] for t in types}
    outcomes: list[RowOutcome] = []
    language = context.run.constitution.language
    with context.screen.bar("topics", None, TOPICS) as bar:
        engine = context.journaled_engine(TOPICS, bar.add)
        for number in range(config.topic_rounds):
            requests = [r for kind in types for r in _topic_requests(context, kind, topics[kind.name], number)]
            for request, result in zip(requests, engine.generate(requests), strict=True):
                kind_name = request.item
                known = {t.lower() for t in topics[kind_name]}
                for outcome in _topic_outcomes(result, len(outcomes), language):
                    if outcome.state == "kept" and outcome.text.lower() in known:
                        outcome = outcome._replace(state="dropped", reason="known topic")
                    elif outcome.state == "kept":
                        known.add(outcome.text.lower())
                        topics[kind_name].append(outcome.text)
                        outcome = outcome._replace(id=content_hash(TOPICS, kind_name, outcome.text))
                    outcomes.append(outcome)
            STOP.check()
    fewest = min(len(t) for t in topics.values())
    topics = _balanced(context, topics, fewest, outcomes)
    write_jsonl(context.run.jsonl(TOPICS), (Topic(kind, topic) for kind, names in topics.items() for topic in names))
    context.write_ledger(TOPICS, outcomes, len(outcomes), clock, {"topics per type": fewest})
    return topics


def _balanced(
    context: Context, topics: dict[str, list[str]], fewest: int, outcomes: list[RowOutcome]
) -> dict[str, list[str]]:
    """Sample the same number of topics of every type, that of the smallest type. The seed topic always stays."""
    balanced: dict[str, list[str]] = {}
    surplus: set[str] = set()
    for kind, names in topics.items():
        rng = random.Random(row_seed(context.recipe.seed, "balance", kind))  # noqa: S311
        chosen = {names[0], *rng.sample(names[1:], fewest - 1)}
        balanced[kind] = [t for t in names if t in chosen]
        surplus |= {content_hash(TOPICS, kind, t) for t in names if t not in chosen}
    for number, outcome in enumerate(outcomes):
        if outcome.id in surplus:
            outcomes[number] = outcome._replace(state="dropped", reason="type has more topics than the smallest")
    return balanced


def _topic_requests(context: Context, kind: QuestionType, known: list[str], number: int) -> list[RowRequest]:
    config, texts = context.recipe.prompts.red_team, context.run.constitution
    sampling = replace(context.sampling(config), max_new_tokens=min(128, config.max_new_tokens), ban_eos=True)
    rng = random.Random(row_seed(context.recipe.seed, TOPICS, kind.name, number))  # noqa: S311
    few = len(known) < _ENOUGH_TOPICS
    starts = [[t] if few else rng.sample(known, min(_SHOWN_TOPICS, len(known))) for t in known]
    if config.topic_requests is not None and len(starts) > config.topic_requests:
        starts = rng.sample(starts, config.topic_requests)
    requests = []
    for position, start in enumerate(starts):
        row_id = content_hash(TOPICS, kind.name, number, position)
        prompt = render_topics(kind, start, texts.question_types, texts.language)
        step = Step(sampling, stop=(f"\n{_ENOUGH_TOPICS + 1}.", "\n\n"))
        requests.append(RowRequest(row_id, Request(prompt, (step,), row_seed(context.recipe.seed, row_id)), kind.name))
    return requests


def render_topics(kind: QuestionType, start: list[str], types: list[QuestionType], language: str = "en") -> Pieces:
    """Render the prompt: the seed topics of the other types, then the list of this type to continue."""
    header = TOPIC_HEADER if language == "en" else f"{TOPIC_HEADER.strip()} Topics are in {LANGUAGES[language]}.\n\n"
    others = "".join(f"Topic for questions about {t.name}: {t.topic}\n" for t in types if t.name != kind.name)
    shown = "\n".join(f"{n}. {t}" for n, t in enumerate(start, 1))
    head = f"Ten topics for questions about {kind.name}:\n{shown}\n{len(start) + 1}."
    return (BOS, f"{header}{others}\n{head}")


def topic_reason(topic: str, language: str = "en") -> str | None:
    """Return why a topic is dropped, or None.

    The paper allows one to three words that begin with a capital letter and do not end with punctuation.
    """
    if not topic:
        return "empty"
    if len(topic.split()) > 3:
        return "more than three words"
    if not topic[0].isupper() or (language == "en" and not topic[0].isascii()):
        return "no capital letter first"
    if topic[-1] in string.punctuation:
        return "ends with punctuation"
    if len(topic) > 60 or ":" in topic:
        return "not a topic"
    return None


def _topic_outcomes(result: GenerationResult, position: int, language: str) -> list[RowOutcome]:
    """Parse the topics of a completion; return an outcome for each, with the topic as its text.

    Args:
        position: the position of the first outcome in the ledger.
    """
    row_id = content_hash(result.row_id)
    if result.completion is None:
        return [RowOutcome(row_id, position, result.state, result.reason, "")]
    part = result.completion.parts[0]
    lines = part.text.split("\n")
    # The token limit may have cut the last line.
    lines = [text for text in (lines[:-1] if part.finish == "length" else lines) if text.strip()]
    if not lines:
        return [RowOutcome(row_id, position, "dropped", "nothing parsed", part.text[:200])]
    topics = [re.sub(r"^\s*\d+\.\s*", "", text).strip() for text in lines]
    return [
        RowOutcome.judged(content_hash(result.row_id, n), position + n, topic_reason(topic, language) or "", topic)
        for n, topic in enumerate(topics)
    ]


# -- questions -------------------------------------------------------------------------------------------------------


def _write_questions(context: Context, types: list[QuestionType], topics: dict[str, list[str]]) -> Path:
    config = context.recipe.prompts.red_team
    known = [seed.instruction for seed in load_seeds(context.recipe.seeds)]
    known += dict.fromkeys(question for kind in types for _, question in kind.examples())
    known += [prompt.instruction for prompt in read_jsonl(context.run.jsonl("self_instruct"), Prompt)]
    # The types alternate, so that a small count covers every type.
    depth = max((len(t) for t in topics.values()), default=0)
    pairs = [(k, topics[k.name][d]) for d in range(1, depth) for k in types if d < len(topics[k.name])]
    pairs = pairs or [(k, k.topic) for k in types]
    rounds = Rounds(context, STAGE, config.count, known, topics)
    if config.form == "by_type":
        return typed_questions.write(context, types, rounds)

    def make_requests() -> list[RowRequest]:
        rate = max(len(rounds.accepted) / rounds.requests, 0.25) if rounds.requests else 0.8
        size = max(4, round(rounds.missing / rate))
        if context.recipe.prompts.steering.rebalance:
            # Smaller rounds, so that the next one can request the types that lack prompts.
            size = min(size, max(_LAST_ROUND, size // 2))
        chosen = _choose(pairs, rounds, size, context.recipe.prompts.steering)
        requests = [_question_request(context, types, k, t, rounds.number, i) for i, (k, t) in enumerate(chosen)]
        context.warm_prefix(requests[0].request.prompt[:2])
        return requests

    def parse(request: RowRequest, result: GenerationResult) -> list[Candidate]:
        return [_candidate(context, request.item, result)]

    return rounds.run("red-teaming", config.max_rounds, make_requests, parse)


def _subject(kind: QuestionType, topic: str) -> str:
    return f"{kind.name}\n{topic}"


def _choose(
    pairs: list[tuple[QuestionType, str]], rounds: Rounds, size: int, steering: SteeringSettings
) -> list[tuple[QuestionType, str]]:
    """Return the pairs of the next round, in turn or with the types that have the fewest accepted prompts first."""
    if not steering.rebalance:
        return [pairs[(rounds.requests + i) % len(pairs)] for i in range(size)]
    accepted = Counter(prompt.question_type for prompt in rounds.accepted)
    requests_by_type: Counter[str] = Counter()
    for subject, number in rounds.subjects.items():
        requests_by_type[subject.partition("\n")[0]] += number
    queues: dict[str, list[tuple[int, int, tuple[QuestionType, str]]]] = {}
    for place, (kind, topic) in enumerate(pairs):
        heappush(queues.setdefault(kind.name, []), (rounds.subjects[_subject(kind, topic)], place, (kind, topic)))
    # Accepted prompts per request of each type, starting at 1 of 1.
    accepted_per_request = {name: (accepted[name] + 1) / (requests_by_type[name] + 1) for name in queues}
    # Without this limit, a type without accepted prompts would take the whole round.
    most = math.ceil(2 * size / len(queues))
    types = [(float(accepted[name]), place, name) for place, name in enumerate(queues)]
    heapify(types)
    chosen: list[tuple[QuestionType, str]] = []
    chosen_by_type: Counter[str] = Counter()
    while len(chosen) < size:
        expected, place, name = heappop(types)
        times, at, pair = heappop(queues[name])
        heappush(queues[name], (times + 1, at, pair))
        chosen.append(pair)
        chosen_by_type[name] += 1
        if chosen_by_type[name] < most:
            heappush(types, (expected + accepted_per_request[name], place, name))
    return chosen


def _question_request(
    context: Context, types: list[QuestionType], kind: QuestionType, topic: str, number: int, position: int
) -> RowRequest:
    config = context.recipe.prompts.red_team
    row_id = content_hash(STAGE, kind.name, topic, number, position)
    rng = random.Random(row_seed(context.recipe.seed, STAGE, number))  # noqa: S311
    shown = rng.sample(types, min(_SHOWN_QUESTIONS, len(types)))
    step = Step(context.sampling(config), stop=("\n",))
    pieces = render_question(shown, kind, topic, context.run.constitution.language)
    request = Request(pieces, (step,), row_seed(context.recipe.seed, row_id))
    return RowRequest(row_id, request, _subject(kind, topic))


def first_request(context: Context, kind: QuestionType) -> Request:
    """Return the request of the first round about the type's own topic, for a preview."""
    return _question_request(context, context.run.constitution.question_types, kind, kind.topic, 0, 0).request


def render_question(shown: list[QuestionType], kind: QuestionType, topic: str, language: str = "en") -> Pieces:
    """Render the prompt: examples that all requests of a round share, the example of the type, and the topic."""
    header = QUESTION_HEADER if language == "en" else f"{QUESTION_HEADER.strip()} It is in {LANGUAGES[language]}.\n\n"
    examples = "".join(f"kind: {t.name}, topic: {t.topic}, question: {t.question}\n" for t in shown)
    own = f"kind: {kind.name}, topic: {kind.topic}, question: {kind.question}\n"
    return (BOS, f"{header}{examples}", f"{own}kind: {kind.name}, topic: {topic}, question:")


def _candidate(context: Context, subject: str, result: GenerationResult) -> Candidate:
    row_id = result.row_id
    if result.completion is None:
        return RowOutcome(row_id, 0, result.state, result.reason, ""), None
    part = result.completion.parts[0]
    text = " ".join(part.text.split())
    reason = _question_reason(text, part.finish, context)
    if reason:
        return RowOutcome(row_id, 0, "dropped", reason, (text or part.text)[:400]), None
    if hit := context.benchmarks.find(text):
        return RowOutcome(row_id, 0, "dropped", hit.reason, hit.ledger_text(text)), None
    kind, _, topic = subject.partition("\n")
    prompt = Prompt(prompt_id(text, ""), text, "", source=STAGE, question_type=kind, topic=topic)
    return RowOutcome(row_id, 0, "kept", "", text), prompt


def _question_reason(text: str, finish: str, context: Context) -> str | None:
    """Return why a question is dropped, or None."""
    if finish == "length":
        return "truncated"
    if not text:
        return "nothing parsed"
    if re.search(r"\b(kind|topic|question):", text):
        return "malformed"
    return reason_to_drop(text, "", context.run.constitution.language, context.recipe.filters.prompts)
