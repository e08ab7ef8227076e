"""Train in rounds with `engrave.method: on_policy`: the model responds, the base scores it under the constitution.

2_self_align/responses.jsonl -> 3_engrave/on_policy.jsonl

Each round generates responses to training prompts with the adapter so far, under the standard system prompt and without
the constitution. The teacher is the base with the prompt of stage 2: principles, exemplars of the prompt's type, and
the internal thoughts that stage 2 wrote for this prompt. Thoughts are no part of the response; with them, the teacher
is the distribution from which stage 2 sampled, and without them it would respond against the pattern of its exemplars.
Training then moves the adapter towards the teacher's probabilities (`training.distillation`).

The adapters of earlier rounds are in 3_engrave/rounds until the stage ends. Each has its finished checkpoint, from
which an interrupted stage gets the same adapter again; the journal then has the responses.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

from selfalign.constitution.leaks import leaks_of
from selfalign.data.prompt_text import Control, Turn
from selfalign.data.records import Example, OwnResponse, Response, content_hash, write_jsonl
from selfalign.errors import UserError
from selfalign.generation import engines, guided
from selfalign.generation.loop import GenerationResult, RowRequest
from selfalign.model.dialogue import Encoded
from selfalign.pipeline import preference_pairs
from selfalign.pipeline.adapter_training import Train
from selfalign.quality.response_filters import ResponseJudge
from selfalign.run.context import Context
from selfalign.run.ledger import RowOutcome
from selfalign.system.clock import Clock
from selfalign.training.batches import held_out_ids
from selfalign.training.response_rows import TurnEnd, response_row

STAGE: Final = "on_policy"


def check(context: Context) -> None:
    """Check that the engine can load the adapter of each round.

    Raises:
        UserError: the engine is a server.
    """
    if context.recipe.engrave.method == STAGE and engines.kind(context.recipe.engine) == "openai":
        raise UserError(
            "engrave.method on_policy generates with the adapter of every round, which a server does not load: set "
            "engine.kind to llama_cpp, torch or vllm, or engrave.method to sft"
        )


def remove(context: Context) -> None:
    """Remove what the rounds of an earlier training left, of a run whose method has changed."""
    shutil.rmtree(context.run.rounds, ignore_errors=True)
    if context.run.jsonl(STAGE).exists():
        context.journal.restart(STAGE)
        context.journal.finish(STAGE, 0, 0.0)
        context.run.jsonl(STAGE).unlink()


class Rounds:
    """The rounds of a training, in order.

    Args:
        responses: those of stage 2 to training prompts, whose thoughts the teacher reads.
    """

    def __init__(self, context: Context, responses: Sequence[Response]) -> None:
        self._context, self._config = context, context.recipe.engrave.on_policy
        self._responses = {response.id: response for response in responses}
        self._types: dict[str, str] = {}
        """Id of a prompt -> the type whose exemplars stage 2 showed."""
        self._form = guided.Form(context.run.constitution, context.recipe.align, context.sampling(context.recipe.align))
        filters = context.recipe.filters.responses
        leaks = leaks_of(context.run.constitution, filters.leak_words)
        # A response may have the faults that the teacher shall correct. Loops are dropped: a teacher that reads one
        # continues it.
        filters = filters.model_copy(update={"unsafe": [], "truncated": "keep"})
        self._judge = ResponseJudge(filters, leaks, context.benchmarks)
        self._outcomes: list[RowOutcome] = []
        self._own: list[OwnResponse] = []

    def __call__(self, examples: Sequence[Example], train: Train) -> dict[str, Any]:
        """Train in rounds, and return the notes for the ledger of stage 3.

        Args:
            examples: the kept examples of stage 3. Responses are generated to the prompts of stage 2 among them,
                without those that are held out from the training.

        Raises:
            UserError: no response of a round is usable.
            TooManyFailed: as `Context.check_failures`.
        """
        context = self._context
        held_out = held_out_ids([example.id for example in examples], context.recipe.engrave.validation)
        chosen = [e for e in examples if e.id in self._responses and e.id not in held_out]
        if context.run.jsonl("prompts").exists():
            self._types = {p.id: p.exemplar_type for p in context.prompts() if p.id in self._responses}
        all_notes: list[dict[str, Any]] = []
        start = None
        if self._config.warmup == "sft":
            start = "engrave-0"
            all_notes.append(train(start))
        for number in range(1, self._config.rounds + 1):
            rows = self._respond(number, chosen, start)
            if not rows:
                raise UserError(
                    f"round {number} of engrave.method on_policy has no usable response (the last reason: "
                    f"{self._outcomes[-1].reason if self._outcomes else 'there are no prompts'}): set "
                    "engrave.on_policy.warmup to sft, or engrave.method to sft"
                )
            name = "engrave" if number == self._config.rounds else f"engrave-{number}"
            notes = train(name, start, rows, len(self._own))
            all_notes.append({**notes, "responses": len(rows)})
            start = name
        write_jsonl(context.run.jsonl(STAGE), self._own)
        # The ledger of stage 3 has the time of the rounds; this one has no more than that of its requests.
        notes = {"rounds": self._config.rounds}
        context.check_failures(context.write_ledger(STAGE, self._outcomes, len(self._outcomes), Clock(), notes))
        return _joined(all_notes, self._config.warmup == "sft")

    def _respond(self, number: int, examples: Sequence[Example], adapter: str | None) -> list[Encoded]:
        """Generate the responses of a round, and return those that can be trained on. Raises as `_Loop`."""
        context, rows = self._context, list[Encoded]()
        asked = sorted(examples, key=lambda e: content_hash(STAGE, context.recipe.seed, number, e.id))
        asked = asked[: self._config.prompts]
        with context.screen.bar(f"own responses {number}", len(asked)) as bar:
            for example, result in self._generate(number, asked, adapter, bar.add):
                row_id, at = content_hash(example.id, number), len(self._outcomes)
                if result.completion is None:
                    self._outcomes.append(RowOutcome(row_id, at, result.state, result.reason, example.user))
                    continue
                part = result.completion.parts[-1]
                raw, truncated = part.text.strip(), part.finish == "length"
                verdict = self._judge.check(raw, truncated, example.user)
                complete = not truncated and verdict.text == raw
                own = OwnResponse(row_id, example.id, number, example.user, verdict.text, complete)
                reason, row = verdict.reason, None
                if not reason:
                    reason, row = self._row(own)
                self._outcomes.append(RowOutcome.judged(row_id, at, reason, f"{example.user}\n{verdict.text}"))
                if not reason:
                    self._own.append(own)
                    rows += [row] if row else []
        context.release_engine()
        return rows

    def _generate(
        self, number: int, examples: Sequence[Example], adapter: str | None, on_done: Callable[[int, int], None]
    ) -> Iterator[tuple[Example, GenerationResult]]:
        """Yield a response to each example's prompt. Responses in the journal are not generated again."""
        requests = (
            RowRequest(
                content_hash(e.id, number),
                replace(preference_pairs.request(self._context, e, (), number), adapter=adapter),
                e,
            )
            for e in examples
        )
        engine = self._context.journaled_engine(STAGE, on_done, (adapter,) if adapter else ())
        with closing(engine.stream(requests)) as results:
            for row, result in results:
                yield row.item, result

    @cached_property
    def _end(self) -> TurnEnd:
        """How turns end: the teacher's by the text before the next message, as in the prompt of stage 2."""
        tokenizer, template = self._context.model.tokenizer(), self._context.model.template
        turn = tokenizer.first(guided.NEXT_MESSAGE)
        joined = tokenizer.joined(tokenizer.text([turn]))
        return TurnEnd(tokenizer.first(Control(template.end)), turn, tuple(joined), tuple(joined.values()))

    def _row(self, own: OwnResponse) -> tuple[str, Encoded | None]:
        """Return (the reason why a response cannot be trained on, its row)."""
        context, model = self._context, self._context.model
        tokenizer, template, constitution = model.tokenizer(), model.template, context.run.constitution
        name, response = constitution.assistant.name, self._responses[own.prompt_id]
        prompt = template.prompt(constitution.system_prompt("standard"), [Turn("user", own.user)], name)
        before = self._form.answered(
            own.user, response.thoughts, self._types.get(own.prompt_id, response.question_type)
        )
        row = response_row(
            tokenizer.encode(prompt),
            tokenizer.ids(template.space + own.assistant),
            tokenizer.encode(before),
            tokenizer.ids(f" {own.assistant}"),
            self._end,
            own.complete,
        )
        limit = model.context_length() or 10**9
        if len(row.ids) > min(limit, context.recipe.engrave.max_length):
            return f"longer than {min(limit, context.recipe.engrave.max_length)} tokens", None
        if len(row.teacher.ids) > limit:
            return f"longer than {limit} tokens with the constitution", None
        if template.forged(own.assistant, name):
            return "contains a turn of its own", None
        return ("" if any(row.mask) else "has no tokens to compare"), row


def _joined(notes: Sequence[dict[str, Any]], has_warmup: bool) -> dict[str, Any]:
    """Return the ledger's notes about a training in rounds.

    Losses and their curve are those of the first training. The held-out loss is the same measure in all of them.
    """
    joined, heldout, steps = dict(notes[0]), list[list[float]](), 0
    for part in notes:
        heldout += [[steps + step, loss] for step, loss in part.get("heldout", [])]
        steps += part["steps"]
    for key in ("training_tokens", "training_seconds", "steps"):
        joined[key] = round(sum(part[key] for part in notes), 1)
    if heldout:
        joined["heldout"] = heldout
    rounds = [
        {"responses": part["responses"], "divergence_first": part["loss_first"], "divergence_last": part["loss_last"]}
        for part in notes[has_warmup:]
    ]
    joined |= {key: value for key, value in notes[-1].items() if key in ("divergence", "computed", "parity")}
    return {**joined, "on_policy": rounds}
