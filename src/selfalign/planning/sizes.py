"""Compute the requests, prompt tokens, generated tokens and training tokens of each stage of a recipe.

Numbers of rows follow from the recipe. Tokens per row and fractions of kept rows were measured with the embedded model
in one run (`benchmarks/planner.py fit quick` prints these constants); those of questions by type and of several samples
come from other runs. Larger models write longer
responses, so their lengths are given as fractions of the limits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from selfalign.constitution import Constitution, load_seeds
from selfalign.constitution.rendering import prompt_types, render
from selfalign.run.recipe import Recipe
from selfalign.training.settings import ANCHOR_ROWS

PROMPTS_PER_REQUEST = 4.06
"""Prompts from one request of Self-Instruct, after the filters."""
QUESTIONS_KEPT = 0.913
_TYPED_KEPT, _LISTED_KEPT = 0.45, 1.1
"""Questions by type (`prompts.red_team.form: by_type`) from one request: of a type whose questions have topics, and of
one that lists questions. Of 419 requests by the embedded model, 400 and 19 gave 179 and 21 prompts."""
_LIST_CACHED = 0.52
"""The fraction of such a list that is in the cache, because several requests share its order."""
_TOPIC_LIMIT = 16
"""Maximum of generated tokens of a topic before its question."""
_TYPED_ROUNDS, _TYPED_ROUND = 3, 360
"""Rounds of questions by type, and the requests of a round, at most."""
_TOPICS_PER_REQUEST = 4.5
"""New topics, as in the paper: from one topic of a type to about 4,956 in five rounds (99,121 questions, 20 types)."""
_TOPICS_LISTED = 10
"""Length of the list that a request for topics completes. It shows one topic, or five once the type has so many."""
ANSWERS_KEPT = 0.958
_SAMPLE_REJECTED = 0.255
"""The fraction of responses after which stage 2 generates another one (`align.samples`): 214 responses to 162 prompts,
with at most three samples."""
_UNUSABLE = 0.845
"""The fraction of responses without the constitution after which `engrave.method: dpo` generates another one: 236
responses to 75 prompts, with at most four samples, gave 35 pairs."""
_UNCHECKED_LENGTH, _REJECTED_LENGTH = 0.79, 0.73
"""Lengths in that run: of these responses relative to those of stage 2, and of the rejected response of a pair relative
to the chosen one."""
VERBOSE_KEPT = 0.738
TURN_TOKENS = 46.5
"""Tokens of an example without its response: system prompt, message and turns."""
KEPT_LENGTH = {"engrave": 0.869, "verbose_cloning": 0.953}
"""Length of a kept response relative to all: loops and truncated responses are longer."""
_CHARACTERS_PER_TOKEN = 4.4


@dataclass(frozen=True, slots=True)
class Lengths:
    """Generated tokens of one row."""

    topic_line: float = 6.41
    """One topic of a list."""
    question: float = 13.3
    typed_question: float = 15.4
    """A topic and its question."""
    listed_questions: float = 101
    """A list of questions without topics."""
    thought: float = 17.9
    citation: float = 21.1
    answer: float = 57.7
    verbose: float = 75.6
    evaluation: float = 64.2
    behaviour: float = 58.8


EMBEDDED = Lengths()
"""The lengths of the embedded model with the recipe `quick`."""


def fraction_of_limits(recipe: Recipe, fraction: float) -> Lengths:
    """Return lengths of responses as a fraction of their limits; lists and questions as in `EMBEDDED`."""
    thoughts = EMBEDDED.thought + EMBEDDED.citation if recipe.align.form == "paper" else 0.0
    evaluation = recipe.evaluate.max_new_tokens * fraction
    return Lengths(
        # In the paper's form, internal thoughts and response share one limit.
        answer=max(1.0, recipe.align.max_new_tokens * fraction - thoughts),
        verbose=recipe.verbose_cloning.max_new_tokens * fraction,
        evaluation=evaluation,
        behaviour=evaluation,
    )


@dataclass(frozen=True, slots=True)
class Generation:
    """The requests of one stage."""

    stage: str
    """Name of its ledger."""
    requests: int
    own: float
    """Prompt tokens of one request that are not shared."""
    shared: int
    """Prompt tokens of the prefix that all requests share."""
    tokens: float
    """Generated tokens of one request."""
    limit: int
    """Maximum of generated tokens of one request."""
    passes: int = 1
    """Steps of one request; the guided form has three."""
    rounds: int = 1
    """Rounds that wait for each other."""
    scored: int = 0
    """Tokens whose log-probabilities are computed."""

    @property
    def total(self) -> int:
        """Return the generated tokens of all requests."""
        return round(self.requests * min(self.tokens, self.limit))


@dataclass(frozen=True, slots=True)
class Training:
    """The training examples of one stage."""

    stage: str
    examples: int
    """Examples in an epoch."""
    length: float
    """Mean tokens of an example."""
    epochs: int
    batch: int
    """Examples of an optimiser step."""
    longest: int
    reference: int = 0
    """Tokens whose log-probabilities under the reference are computed, with dpo and on_policy."""
    rounds: int = 0
    """Tokens of the rounds of on_policy, which follow the epochs."""
    anchors: int = 0
    """Tokens of all anchors, with `engrave.anchor`."""

    @property
    def total(self) -> int:
        """Return the training tokens of all epochs and rounds."""
        return round(self.examples * self.length * self.epochs) + self.rounds


Work = Generation | Training


def stage_work(
    recipe: Recipe, constitution: Constitution, user_prompts: int | None = None, lengths: Lengths = EMBEDDED
) -> list[Work]:
    """Return the work of the recipe's stages, in order.

    Args:
        user_prompts: number of user prompts, which replace stage 1; None without.
    """
    return _Sizes(recipe, constitution, user_prompts, lengths).stages()


def prompt_count(recipe: Recipe, user_prompts: int | None) -> int:
    """Return the number of prompts of stage 2."""
    return recipe.prompts.self_instruct.count + recipe.prompts.red_team.count if user_prompts is None else user_prompts


def _topic_rounds(recipe: Recipe, constitution: Constitution) -> list[tuple[int, int]]:
    """Return (requests, topics written by each) of every round of topics."""
    questions, types, known = recipe.prompts.red_team, len(constitution.question_types), 1.0
    rounds = []
    for _ in range(questions.topic_rounds):
        requests = min(round(known), questions.topic_requests or round(known))
        rounds.append((types * requests, _TOPICS_LISTED - (1 if known < _TOPICS_LISTED else 5)))
        known += requests * _TOPICS_PER_REQUEST
    return rounds


def topic_lines(recipe: Recipe, constitution: Constitution) -> int:
    """Return the number of topics that the model writes, including those that are not kept."""
    return sum(requests * lines for requests, lines in _topic_rounds(recipe, constitution))


class _Rows(NamedTuple):
    """Training examples."""

    examples: int
    answer: float
    """Mean tokens of the response."""


class _Sizes:
    def __init__(self, recipe: Recipe, constitution: Constitution, user_prompts: int | None, lengths: Lengths) -> None:
        self._recipe, self._constitution, self._lengths = recipe, constitution, lengths
        self._user_prompts = user_prompts
        self._prompts = prompt_count(recipe, user_prompts)
        self._heldout = min(recipe.evaluate.heldout_prompts, self._prompts // 2)
        self._questions = len(dict.fromkeys(p.question for p in constitution.identity))
        types = prompt_types(constitution) if recipe.align.exemplars == "by_type" else [""]
        lengths_of_types = [len(render(constitution, name)) for name in types]
        self._prefix = round(sum(lengths_of_types) / len(types) / _CHARACTERS_PER_TOKEN)

    def stages(self) -> list[Work]:
        work: list[Work] = []
        for stage in self._recipe.stages:
            if stage == "prompts" and self._user_prompts is None:
                work += self._write_prompts()
            elif stage == "align":
                work.append(self._align())
            elif stage == "engrave":
                answered = (self._prompts - self._heldout) * ANSWERS_KEPT
                rows = self._engraved(round(answered) + self._human(1.0))
                if self._recipe.engrave.method == "dpo":
                    work += self._prefer(round(answered), rows)
                elif self._recipe.engrave.method == "on_policy":
                    work += self._distill(round(answered), rows)
                else:
                    work.append(self._train("engrave", [rows]))
            elif stage == "verbose_cloning":
                verbose = self._verbose()
                kept = round(verbose.requests * VERBOSE_KEPT)
                cloned = _Rows(kept, min(verbose.tokens, verbose.limit) * KEPT_LENGTH["verbose_cloning"])
                work += [verbose, self._train("verbose_cloning", [cloned, self._engraved(self._replayed(kept))])]
            elif stage == "evaluate":
                work += self._evaluate()
        return work

    def _write_prompts(self) -> list[Work]:
        prompts, work = self._recipe.prompts, list[Work]()
        tasks, questions = prompts.self_instruct, prompts.red_team
        if tasks.count:
            # The first round assumes two prompts per request.
            missing, requests, rounds = float(tasks.count), 0, 0
            while missing > 0:
                rate = 2.0 if not requests else PROMPTS_PER_REQUEST
                size = min(tasks.requests_per_round, max(4, round(missing / rate)))
                requests, rounds = requests + size, rounds + 1
                missing -= size * PROMPTS_PER_REQUEST
            own, limit = 40 * tasks.seeds_per_request, tasks.max_new_tokens
            # The end token is banned: every request runs to its limit.
            work.append(Generation("self_instruct", requests, own, 80, limit, limit, rounds=rounds))
        if questions.count:
            if questions.form == "by_type":
                return [*work, self._questions_by_type()]
            work.append(self._topics())
            count = math.ceil(questions.count / QUESTIONS_KEPT)
            limit = questions.max_new_tokens
            work.append(Generation("red_team", count, 35, 180, self._lengths.question, limit))
        return work

    def _questions_by_type(self) -> Generation:
        """Return the requests of all types: each writes a topic and a question, or a list of questions."""
        questions, types = self._recipe.prompts.red_team, self._constitution.question_types
        total = max(1, sum(t.weight for t in types))
        requests = tokens = prompt_tokens = 0.0
        for kind in types:
            rate = _TYPED_KEPT if kind.about else _LISTED_KEPT
            count = questions.count * kind.weight / total / rate
            requests += count
            tokens += count * (self._lengths.typed_question if kind.about else self._lengths.listed_questions)
            texts = [kind.about or kind.name, *(text for example in kind.examples() for text in example)]
            prompt_tokens += count * (sum(len(text) + 3 for text in texts)) / _CHARACTERS_PER_TOKEN
        whole, count = prompt_tokens / max(1.0, requests), math.ceil(requests)
        return Generation(
            "red_team",
            count,
            own=whole * (1 - _LIST_CACHED),
            shared=round(whole * _LIST_CACHED),
            tokens=tokens / max(1.0, requests),
            limit=questions.max_new_tokens + _TOPIC_LIMIT,
            passes=2 if any(t.about for t in types) else 1,
            rounds=max(_TYPED_ROUNDS, math.ceil(count / _TYPED_ROUND)),
        )

    def _topics(self) -> Generation:
        questions = self._recipe.prompts.red_team
        rounds = _topic_rounds(self._recipe, self._constitution)
        requests = sum(count for count, _ in rounds)
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
        rejected = 1.0 if config.rank == "contrast" else _SAMPLE_REJECTED
        requests = round(self._prompts * sum(rejected**n for n in range(config.samples)))
        return Generation("align", requests, 35, self._prefix, tokens, limit, passes=3 if guided else 1)

    def _without_check(self) -> int:
        """Return the number of training prompts that the engraved model may respond to, if examples are replayed."""
        train, types = self._prompts - self._heldout, self._constitution.question_types
        if self._user_prompts is not None or not types:
            return train
        plain = sum(t.weight for t in types if self._constitution.required_check(t.name) is None)
        checked = self._recipe.prompts.red_team.count * (1 - plain / max(1, sum(t.weight for t in types)))
        return round(train * (1 - checked / max(1, self._prompts)))

    def _human(self, share: float) -> int:
        """Return the number of human-written examples: all identity pairs, and a share of the others."""
        config, constitution = self._recipe.engrave, self._constitution
        exemplars = len(constitution.exemplars) + sum(len(kind.exemplars) for kind in constitution.question_types)
        others = exemplars * config.exemplar_repeats
        if config.seed_repeats:
            others += len(load_seeds(self._recipe.seeds)) * config.seed_repeats
        return len(constitution.identity) * config.identity_repeats + round(share * others)

    def _replayed(self, cloned: int) -> int:
        """Return the number of engraving examples in stage 4, of whose prompts `cloned` have a verbose response."""
        share = self._recipe.verbose_cloning.replay
        if not share:
            return 0
        plain = self._without_check()
        checked = self._prompts - self._heldout - plain
        return self._human(share) + round((checked + share * max(0, plain - cloned)) * ANSWERS_KEPT)

    def _verbose(self) -> Generation:
        config = self._recipe.verbose_cloning
        train = self._without_check() if config.replay else self._prompts - self._heldout
        rows = min(train, config.prompts or train) + (0 if config.replay else self._questions)
        shared = round(len(self._constitution.system_prompt("verbose")) / _CHARACTERS_PER_TOKEN)
        return Generation("verbose_responses", rows, 25, shared, self._lengths.verbose, config.max_new_tokens)

    def _engraved(self, count: int) -> _Rows:
        answer = min(self._lengths.answer, self._recipe.align.max_new_tokens)
        return _Rows(count, answer * KEPT_LENGTH["engrave"])

    def _prefer(self, chosen: int, rows: _Rows) -> list[Work]:
        """Return the rejected responses to that many prompts, and the training, where a rejected response is a row."""
        config, limit = self._recipe.engrave, self._recipe.align.max_new_tokens
        requests = round(chosen * sum(_UNUSABLE**n for n in range(config.pair_samples)))
        shared = round(len(self._constitution.system_prompt("standard")) / _CHARACTERS_PER_TOKEN)
        pairs = _Rows(round(chosen * (1 - _UNUSABLE**config.pair_samples)), rows.answer * _REJECTED_LENGTH)
        training = self._train("engrave", [rows, pairs])
        reference = round(2 * pairs.examples * (TURN_TOKENS + (rows.answer + pairs.answer) / 2))
        tokens = min(self._lengths.answer * _UNCHECKED_LENGTH, limit)
        return [
            Generation("pairs", requests, 20, shared, tokens, limit),
            replace(training, reference=reference),
        ]

    def _distill(self, answered: int, rows: _Rows) -> list[Work]:
        """Return the responses of all rounds, and the training, where the teacher reads them after the constitution."""
        config, limit = self._recipe.engrave.on_policy, self._recipe.align.max_new_tokens
        requests = config.rounds * min(config.prompts, answered)
        shared = round(len(self._constitution.system_prompt("standard")) / _CHARACTERS_PER_TOKEN)
        length = TURN_TOKENS + rows.answer
        types = config.rounds * len(prompt_types(self._constitution))
        thoughts = self._lengths.thought + self._lengths.citation
        training = replace(
            self._train("engrave", [rows]),
            reference=round(types * self._prefix / 2 + requests * (length + thoughts)),
            rounds=round(requests * length),
        )
        if config.warmup == "none":
            training = replace(training, epochs=0)
        return [Generation("on_policy", requests, 20, shared, min(self._lengths.answer, limit), limit), training]

    def _train(self, stage: str, rows: list[_Rows]) -> Training:
        config, kept = self._recipe.training(stage), sum(r.examples for r in rows)
        learnt = round(kept * (1 - config.validation))
        answer = sum(r.examples * r.answer for r in rows) / max(1, kept)
        length = min(TURN_TOKENS + answer, config.max_length)
        steps = -(-learnt // config.batch_size) * config.epochs
        anchors = round(steps * ANCHOR_ROWS * answer) if config.anchor and not config.elsewhere else 0
        return Training(stage, learnt, length, config.epochs, config.batch_size, config.max_length, anchors=anchors)

    def _evaluate(self) -> list[Work]:
        config, lengths = self._recipe.evaluate, self._lengths
        rows = 3 * self._heldout
        scored = round(rows * ANSWERS_KEPT * (TURN_TOKENS + lengths.answer))
        limit = config.max_new_tokens
        work: list[Work] = [Generation("evaluate", rows, 30, 20, lengths.evaluation, limit, scored=scored)]
        if "behaviour" in config.tasks:
            # Base, engraved, final and, if wanted, the prompted base, which reads the constitution.
            from selfalign.evaluation.tasks import behaviour

            items = behaviour.load_scenarios(None, self._constitution, config.limit, config.scenarios).items
            models = 3 + config.prompted_base
            shared = 20 + (self._prefix // 4 if config.prompted_base else 0)
            work.append(Generation("behaviour", models * len(items), 18, shared, lengths.behaviour, limit))
        return work
