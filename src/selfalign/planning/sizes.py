"""What a recipe asks of a model: requests, prompt tokens, generated tokens and training tokens of each stage. Pure.

Numbers of rows follow from the recipe. How many tokens a row takes and how many rows survive is what the embedded
model showed in one run of the recipe `quick` (`benchmarks/planner.py fit quick` gives these constants); a larger model
writes longer answers, so for one the answers are given as a share of their limits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from selfalign.constitution import Constitution
from selfalign.constitution.rendering import render
from selfalign.run.recipe import Recipe

PROMPTS_PER_REQUEST = 4.06
"""Prompts that one request of Self-Instruct yields, after the filters."""
QUESTIONS_KEPT = 0.913
_TOPICS_PER_REQUEST = 4.5
"""New ones, as in the paper: from one topic of a type to about 4,956 in five rounds (99,121 questions, 20 types)."""
_TOPICS_LISTED = 10
"""A request of topics lets the model go on to so many. It shows one, and five once the type has so many."""
ANSWERS_KEPT = 0.958
VERBOSE_KEPT = 0.738
TURN_TOKENS = 46.5
"""Of an example, without its answer: the system prompt, the message, the turns."""
KEPT_LENGTH = {"engrave": 0.869, "verbose_cloning": 0.953}
"""Tokens of a kept answer against those of all: loops and what the limit cut are longer."""
_CHARACTERS_PER_TOKEN = 4.4


@dataclass(frozen=True, slots=True)
class Lengths:
    """Generated tokens of one row."""

    topic_line: float = 6.41
    """One topic of a list."""
    question: float = 13.3
    thought: float = 17.9
    citation: float = 21.1
    answer: float = 57.7
    verbose: float = 75.6
    evaluation: float = 64.2
    behaviour: float = 58.8


EMBEDDED = Lengths()
"""As the embedded model needs them, on the recipe `quick`."""


def share_of_limit(recipe: Recipe, share: float) -> Lengths:
    """Answers that take that share of the tokens that the recipe allows them; lists and questions as `EMBEDDED`."""
    thoughts = EMBEDDED.thought + EMBEDDED.citation if recipe.align.form == "paper" else 0.0
    answering = recipe.evaluate.max_new_tokens * share
    return Lengths(
        # One pass writes thoughts and answer within one limit.
        answer=max(1.0, recipe.align.max_new_tokens * share - thoughts),
        verbose=recipe.verbose_cloning.max_new_tokens * share,
        evaluation=answering,
        behaviour=answering,
    )


@dataclass(frozen=True, slots=True)
class Generation:
    """Requests of one stage."""

    stage: str
    """As the ledger calls it."""
    requests: int
    own: float
    """Prompt tokens of one request that it shares with no other."""
    shared: int
    """Prompt tokens that all begin with."""
    tokens: float
    """Generated tokens of one request."""
    limit: int
    """At most so many."""
    passes: int = 1
    """How often one request's prompt is read: guided rows are three steps."""
    rounds: int = 1
    """A round waits for the one before it."""
    scored: int = 0
    """Tokens whose log-probability is measured besides."""

    @property
    def generated(self) -> int:
        return round(self.requests * min(self.tokens, self.limit))


@dataclass(frozen=True, slots=True)
class Training:
    """Examples of one stage."""

    stage: str
    examples: int
    """Trained on in an epoch."""
    length: float
    """Tokens of one, on average."""
    epochs: int
    batch: int
    """Examples of an optimiser step."""
    longest: int

    @property
    def tokens(self) -> int:
        """Over all epochs."""
        return round(self.examples * self.length * self.epochs)


Work = Generation | Training


def of(recipe: Recipe, constitution: Constitution, own: int | None = None, lengths: Lengths = EMBEDDED) -> list[Work]:
    """The work of the recipe's stages, in their order.

    Args:
        own: rows of the user's own file, which takes the place of stage 1.
    """
    return _Sizes(recipe, constitution, own, lengths).stages()


def prompts(recipe: Recipe, own: int | None) -> int:
    """Prompts that stage 2 answers."""
    wanted = recipe.prompts
    return own if own is not None else wanted.self_instruct.count + wanted.red_team.count


def _topic_rounds(recipe: Recipe, constitution: Constitution) -> list[tuple[int, int]]:
    """(requests, topics that each writes) of every round of topics."""
    questions, types, known = recipe.prompts.red_team, len(constitution.question_types), 1.0
    found = []
    for _ in range(questions.topic_rounds):
        asked = min(round(known), questions.topic_requests or round(known))
        found.append((types * asked, _TOPICS_LISTED - (1 if known < _TOPICS_LISTED else 5)))
        known += asked * _TOPICS_PER_REQUEST
    return found


def topic_lines(recipe: Recipe, constitution: Constitution) -> int:
    """Topics that the model writes, those that are not kept too."""
    return sum(asked * lines for asked, lines in _topic_rounds(recipe, constitution))


class _Sizes:
    def __init__(self, recipe: Recipe, constitution: Constitution, own: int | None, lengths: Lengths) -> None:
        self._recipe, self._constitution, self._lengths = recipe, constitution, lengths
        self._own = own
        self._prompts = prompts(recipe, own)
        self._heldout = min(recipe.evaluate.heldout_prompts, self._prompts // 2)
        self._questions = len(dict.fromkeys(p.question for p in constitution.identity))
        self._prefix = round(len(render(constitution)) / _CHARACTERS_PER_TOKEN)

    def stages(self) -> list[Work]:
        found: list[Work] = []
        for stage in self._recipe.stages:
            if stage == "prompts" and self._own is None:
                found += self._write_prompts()
            elif stage == "align":
                found.append(self._align())
            elif stage == "engrave":
                answered = (self._prompts - self._heldout) * ANSWERS_KEPT
                kept = round(answered) + len(self._constitution.identity)
                found.append(self._train("engrave", kept, self._lengths.answer, self._recipe.align.max_new_tokens))
            elif stage == "verbose_cloning":
                verbose = self._verbose()
                kept = round(verbose.requests * VERBOSE_KEPT)
                found += [verbose, self._train("verbose_cloning", kept, verbose.tokens, verbose.limit)]
            elif stage == "evaluate":
                found += self._evaluate()
        return found

    def _write_prompts(self) -> list[Work]:
        wanted, found = self._recipe.prompts, list[Work]()
        tasks, questions = wanted.self_instruct, wanted.red_team
        if tasks.count:
            # In rounds of at most so many requests; the first assumes two prompts a request.
            missing, requests, rounds = float(tasks.count), 0, 0
            while missing > 0:
                rate = 2.0 if not requests else PROMPTS_PER_REQUEST
                size = min(tasks.requests_per_round, max(4, round(missing / rate)))
                requests, rounds = requests + size, rounds + 1
                missing -= size * PROMPTS_PER_REQUEST
            own, limit = 40 * tasks.seeds_per_request, tasks.max_new_tokens
            # The end token is banned: every request runs to its limit.
            found.append(Generation("self_instruct", requests, own, 80, limit, limit, rounds=rounds))
        if questions.count:
            found.append(self._topics())
            asked = math.ceil(questions.count / QUESTIONS_KEPT)
            limit = questions.max_new_tokens
            found.append(Generation("red_team", asked, 35, 180, self._lengths.question, limit))
        return found

    def _topics(self) -> Generation:
        questions = self._recipe.prompts.red_team
        rounds = _topic_rounds(self._recipe, self._constitution)
        requests = sum(asked for asked, _ in rounds)
        tokens = self._lengths.topic_line * topic_lines(self._recipe, self._constitution) / max(1, requests)
        limit = min(128, questions.max_new_tokens)
        return Generation("topics", requests, 170, 60, tokens, limit, rounds=len(rounds))

    def _align(self) -> Generation:
        config, lengths = self._recipe.align, self._lengths
        if config.form == "given":
            return Generation("align", 0, 0, 0, 0, 0)
        guided = config.form == "guided"
        tokens = min(lengths.thought, config.max_thought_tokens) + lengths.citation
        tokens += min(lengths.answer, config.max_new_tokens)
        limit = config.max_new_tokens + (config.max_thought_tokens + 64 if guided else 0)
        return Generation("align", self._prompts, 35, self._prefix, tokens, limit, passes=3 if guided else 1)

    def _verbose(self) -> Generation:
        config, train = self._recipe.verbose_cloning, self._prompts - self._heldout
        rows = min(train, config.prompts or train) + self._questions
        shared = round(len(self._constitution.system_prompt("verbose")) / _CHARACTERS_PER_TOKEN)
        return Generation("verbose_responses", rows, 25, shared, self._lengths.verbose, config.max_new_tokens)

    def _train(self, stage: str, kept: int, answer: float, limit: int) -> Training:
        config = self._recipe.training(stage)
        learnt = round(kept * (1 - config.validation))
        length = min(TURN_TOKENS + min(answer, limit) * KEPT_LENGTH[stage], config.max_length)
        return Training(stage, learnt, length, config.epochs, config.batch_size, config.max_length)

    def _evaluate(self) -> list[Work]:
        config, lengths = self._recipe.evaluate, self._lengths
        rows = 3 * self._heldout
        scored = round(rows * ANSWERS_KEPT * (TURN_TOKENS + lengths.answer))
        limit = config.max_new_tokens
        found: list[Work] = [Generation("evaluate", rows, 30, 20, lengths.evaluation, limit, scored=scored)]
        if "behaviour" in config.tasks:
            # Base, prompted base, engraved and final model; the prompted one reads the constitution.
            from selfalign.evaluation.tasks import behaviour

            asked = len(behaviour.load_scenarios(None, self._constitution).items)
            shared = 20 + self._prefix // 4
            found.append(Generation("behaviour", 4 * asked, 18, shared, lengths.behaviour, limit))
        return found
