"""Make the pairs of stage 3 with `engrave.method: dpo`: a rejected response to each prompt with a kept response.

2_self_align/responses.jsonl -> 3_engrave/pairs.jsonl

The chosen response is stage 2's. The base writes the rejected one without the constitution, under the system prompt of
the training text; if the constitution has antitheses of the principles that the chosen response cites, they follow the
system prompt (RLCD, arXiv 2307.12950). Rejected responses pass stage 2's filters, except for those on unsafe texts and
the cap on refusals: a rejected response may have these faults. A prompt gets another rejected response while none is
usable (`engrave.pair_samples`).

With the user's pairs (`selfalign prefer`, 3_engrave/user_pairs.jsonl), nothing is generated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from statistics import fmean
from typing import Any, Final

from selfalign.constitution import Constitution
from selfalign.constitution.leaks import leaks_of
from selfalign.data import user_pairs
from selfalign.data.prompt_text import Turn
from selfalign.data.records import Example, PreferencePair, content_hash, json_lines, write_jsonl
from selfalign.generation.engines.base import Request, Step
from selfalign.generation.loop import GenerationResult, RowRequest, row_seed
from selfalign.model.dialogue import encode_example
from selfalign.quality.response_filters import ResponseJudge
from selfalign.run import marks
from selfalign.run.context import Context
from selfalign.run.ledger import RowOutcome
from selfalign.system.clock import Clock
from selfalign.system.signals import STOP

STAGE: Final = "pairs"


def run(context: Context, examples: Sequence[Example], cited: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Generate rejected responses, write the pairs, and return id of an example -> its rejected response.

    Args:
        examples: the chosen responses.
        cited: id of an example -> the principles that its internal thoughts cite.

    Raises:
        TooManyFailed: as `Context.check_failures`.
    """
    clock, rows_in, usable = Clock(), len(examples), _Usable(context)
    examples, dropped, _ = marks.apply(marks.read(context.run), "engrave", examples)
    outcomes = {outcome.id: outcome for outcome in dropped}
    pairs: dict[str, PreferencePair] = {}
    waiting, positions = list(examples), {example.id: n for n, example in enumerate(examples)}
    with context.screen.bar("rejected responses", len(examples), STAGE) as bar:
        for sample in range(context.recipe.engrave.pair_samples):
            # Further samples of a prompt are not further prompts.
            report = bar.add if not sample else (lambda rows, tokens: bar.add(0, tokens))
            group, waiting = waiting, []
            for example, result in _responses(context, group, cited, sample, report):
                at, numbers = positions[example.id], cited.get(example.id, ())
                if result.completion is None:
                    outcomes[example.id] = RowOutcome(example.id, at, result.state, result.reason, example.user)
                    continue
                part = result.completion.parts[-1]
                text, reason = usable(example, part.text, part.finish == "length")
                outcome = RowOutcome.judged(example.id, at, reason, f"{example.user}\n{text}")
                if reason:
                    waiting.append(example)
                    outcomes.setdefault(example.id, outcome)  # the ledger shows the first sample
                    continue
                outcomes[example.id] = outcome
                source = "antithesis" if antitheses(context.run.constitution, numbers) else "base"
                pairs[example.id] = PreferencePair(
                    example.id, "standard", example.user, example.assistant, text, source, list(numbers)
                )
            if not waiting:
                break
    ordered = [pairs[example.id] for example in examples if example.id in pairs]
    return _write(context, ordered, outcomes.values(), rows_in, clock)


def from_user(context: Context) -> tuple[list[Example], dict[str, str]]:
    """Filter the user's pairs and write those that are kept; return their examples, and rejected responses as `run`."""
    clock, usable, path = Clock(), _Usable(context), context.run.jsonl("user_pairs")
    heldout = {prompt.message for prompt in context.prompts() if prompt.split == "heldout"}
    outcomes: list[RowOutcome] = []
    pairs: dict[str, PreferencePair] = {}
    for position, (pair, problem) in enumerate(user_pairs.read(json_lines(path), str(path))):
        STOP.check()
        reason = problem or ("duplicate" if pair.id in pairs else "")
        if not reason and pair.user in heldout:
            reason = "its prompt is held out for the evaluation"
        pair, reason = (pair, reason) if reason else usable.pair(pair)
        row_id = content_hash(pair.id, position) if reason == "duplicate" else pair.id
        outcomes.append(RowOutcome.judged(row_id, position, reason, f"{pair.user}\n{pair.rejected}"))
        if not reason:
            pairs[pair.id] = pair
    examples = [Example(pair.id, "standard", pair.user, pair.chosen, "user") for pair in pairs.values()]
    return examples, _write(context, list(pairs.values()), outcomes, len(outcomes), clock)


def _write(
    context: Context, pairs: Sequence[PreferencePair], outcomes: Iterable[RowOutcome], rows_in: int, clock: Clock
) -> dict[str, str]:
    """Write the pairs and their ledger; return id -> rejected response."""
    write_jsonl(context.run.jsonl("pairs"), pairs)
    context.check_failures(context.write_ledger(STAGE, outcomes, rows_in, clock, _notes(pairs)))
    return {pair.id: pair.rejected for pair in pairs}


def antitheses(constitution: Constitution, cited: Sequence[int]) -> list[str]:
    """Return the antitheses of the cited principles that have one."""
    return [p.antithesis.strip() for p in constitution.principles if p.id in cited and p.antithesis.strip()]


def request(context: Context, example: Example, cited: Sequence[int], sample: int = 0) -> Request:
    """Return the request for one of the rejected responses to an example's prompt."""
    constitution, template = context.run.constitution, context.model.template
    system = "\n".join((constitution.system_prompt("standard"), *antitheses(constitution, cited)))
    pieces = template.prompt(system, [Turn("user", example.user)], constitution.assistant.name)
    sampling = replace(context.sampling(context.recipe.align), repetition=context.recipe.align.repetition)
    seed = row_seed(context.recipe.seed, STAGE, example.id, sample)
    return Request(pieces, (Step(sampling, stop=template.stops()),), seed)


def _responses(
    context: Context,
    examples: Sequence[Example],
    cited: Mapping[str, Sequence[int]],
    sample: int,
    on_done: Callable[[int, int], None],
) -> Generator[tuple[Example, GenerationResult], None, None]:
    """Yield one more response to each example's prompt. Responses in the journal are not generated again."""
    requests = (
        RowRequest(content_hash(e.id, sample), request(context, e, cited.get(e.id, ()), sample), e) for e in examples
    )
    with closing(context.journaled_engine(STAGE, on_done).stream(requests)) as results:
        for row, result in results:
            yield row.item, result


class _Usable:
    """Decides whether a rejected response, or a user's pair, can be used."""

    def __init__(self, context: Context) -> None:
        filters = context.recipe.filters.responses
        leaks = leaks_of(context.run.constitution, filters.leak_words)
        self._chosen = ResponseJudge(filters, leaks, context.benchmarks)
        self._rejected = ResponseJudge(filters.model_copy(update={"unsafe": []}), leaks, context.benchmarks)
        self._context = context
        self._config = context.recipe.engrave

    def __call__(self, example: Example, raw: str, truncated: bool) -> tuple[str, str]:
        """Return (the response as filtered, the reason why it is not usable; empty if it is)."""
        verdict = self._rejected.check(raw.strip(), truncated, example.user)
        reason = verdict.reason and f"rejected: {verdict.reason}"
        return verdict.text, (
            reason
            or mismatch(example.assistant, verdict.text, self._config.length_ratio)
            or self._not_trainable(example, verdict.text)
        )

    def pair(self, pair: PreferencePair) -> tuple[PreferencePair, str]:
        """Return (the pair as filtered, the reason why it is not usable; empty if it is)."""
        verdict = self._chosen.check(pair.chosen, False, pair.user)
        if verdict.reason:
            return pair, f"chosen: {verdict.reason}"
        example = Example(pair.id, pair.prompt, pair.user, verdict.text, "user")
        text, reason = self(example, pair.rejected, False)
        return replace(pair, chosen=verdict.text, rejected=text), reason

    def _not_trainable(self, example: Example, text: str) -> str:
        """Return why the text cannot be a training row, as for chosen responses."""
        context, model = self._context, self._context.model
        if model.is_fake:
            return ""
        name, system = context.run.constitution.assistant.name, context.run.constitution.system_prompt(example.prompt)
        limit = min(self._config.max_length, model.context_length() or self._config.max_length)
        if len(encode_example(model.tokenizer(), model.template, system, example.user, text, name).ids) > limit:
            return f"rejected: longer than {limit} tokens"
        return "rejected: contains a turn of its own" if model.template.forged(text, name) else ""


def mismatch(chosen: str, rejected: str, ratio: float) -> str:
    """Return why two responses are not a pair: they are the same, or their lengths differ by more than the ratio."""
    if " ".join(chosen.split()) == " ".join(rejected.split()):
        return "both responses are the same"
    lengths = len(chosen.strip()), len(rejected.strip())
    if max(lengths) <= ratio * min(lengths):
        return ""
    return f"rejected: {'shorter' if lengths[1] < lengths[0] else 'longer'} than the length ratio allows"


def _notes(pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    """Return the ledger's notes: the sources of the rejected responses, and the remaining difference in length."""
    if not pairs:
        return {}
    chosen, rejected = [len(p.chosen) for p in pairs], [len(p.rejected) for p in pairs]
    return {
        "rejected_from": dict(Counter(pair.rejected_from for pair in pairs)),
        "chosen_characters": round(fmean(chosen), 1),
        "rejected_characters": round(fmean(rejected), 1),
        "chosen_longer": round(fmean(c > r for c, r in zip(chosen, rejected, strict=True)), 4),
    }
