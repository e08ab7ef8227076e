"""Stage 1 works in rounds: what finished rounds decided, kept in the run, and when to stop.

A round's requests follow from finished rounds and the seed, and its candidates are decided in request order. A finished
round is committed whole, so that the same command goes on after it without deciding anything again: the accepted
prompts are read from the journal, and the novelty index made of them. A round with failed requests stays open, and so
do those after it: the same command asks the failed ones again, and what follows from them may change.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from selfalign.data.records import Prompt, content_hash
from selfalign.quality.novelty import NoveltyIndex
from selfalign.run.context import Context
from selfalign.run.ledger import RowOutcome, StageCounts
from selfalign.system.atomic import file_hash
from selfalign.system.clock import Clock
from selfalign.system.version import __version__

Candidate = tuple[RowOutcome, Prompt | None]
"""A row of the ledger and, where no filter dropped it, the prompt that is left to be judged for novelty."""

_JUDGED = 200
"""Candidates over which the share of new ones is looked at, before a stage is said to have dried up."""

_BARREN = 500
"""Candidates of which none is accepted that end a stage."""


class Rounds:
    """The accepted prompts of a stage, round after round.

    Args:
        stage: its ledger.
        wanted: prompts to accept.
        known: texts that a prompt must be different from, beside the accepted ones.
        inputs: what the stage follows from, beside these, the recipe, the constitution and the model.
    """

    def __init__(self, context: Context, stage: str, wanted: int, known: Sequence[str], *inputs: object) -> None:
        self._context = context
        self._journal = context.journal
        self._stage = stage
        self._clock = Clock()
        self.wanted = wanted
        self.accepted: list[Prompt] = []
        self.asked: Counter[str] = Counter()
        """Requests so far, by what they were about."""
        self.number = 0
        """The round to come."""
        self.rows = 0
        """Rows of the ledger so far: the next one's position."""
        self.dried_up = ""
        """Why no more is to be expected; empty as long as there is."""
        self._judged: deque[tuple[int, int]] = deque()
        """(usable candidates, new ones) of the last rounds."""
        self._failed = False
        self.index = NoveltyIndex(context.recipe.prompts.novelty)
        for text in known:
            self.index.accept(text)
        recipe = context.recipe.model_dump(mode="json")
        self._inputs = content_hash(
            __version__,
            [recipe[key] for key in ("seed", "prompts", "filters")],
            context.run.constitution.digest(),
            context.identities()[None],
            content_hash(*known),
            [file_hash(Path(name)) for name in context.recipe.evaluate.benchmarks],
            *inputs,
        )
        self._go_on()

    @property
    def missing(self) -> int:
        return self.wanted - len(self.accepted)

    @property
    def requests(self) -> int:
        return sum(self.asked.values())

    def _go_on(self) -> None:
        """Take up the rounds that a process before this one finished."""
        results = self._journal.rounds(self._stage, self._inputs)
        if not results:
            self._journal.restart(self._stage)
            return
        for result in results:
            prompts = [Prompt(**value) for value in result["accepted"]]
            for prompt in prompts:
                self.index.accept(prompt.instruction)
            self._note(prompts, Counter(result["asked"]), result["rows"], result["judged"])
        self._journal.forget_rows(self._stage, self.rows)
        self._context.screen.say(
            f"  {self._stage}: {self.number} rounds are done, {len(self.accepted)} of {self.wanted} prompts", "dim"
        )

    def close(self, candidates: list[Candidate], asked: Counter[str]) -> None:
        """Decide a round's candidates in their order, and commit it.

        Args:
            asked: the round's requests, by what they were about.
        """
        outcomes, new, judged = self._decide(candidates)
        result = {"asked": dict(asked), "rows": len(outcomes), "judged": judged, "accepted": [asdict(p) for p in new]}
        # The same command retries a failed request, and then decides again on everything that follows from it.
        self._failed = self._failed or any(outcome.state == "failed" for outcome in outcomes)
        if self._failed:
            self._journal.record(self._stage, outcomes)
        else:
            self._journal.close_round(self._stage, self.number, self._inputs, outcomes, result)
        self._note(new, asked, len(outcomes), judged)
        self._context.screen.detail(
            f"  {self._stage}, round {self.number}: {sum(asked.values())} requests, {len(outcomes)} candidates, "
            f"{judged} usable, {len(new)} accepted"
        )

    def _note(self, accepted: list[Prompt], asked: Counter[str], rows: int, judged: int) -> None:
        self.accepted += accepted
        self.asked += asked
        self.rows += rows
        self.number += 1
        self._judged.append((judged, len(accepted)))
        while sum(j for j, _ in self._judged) - self._judged[0][0] >= _JUDGED:
            self._judged.popleft()
        looked_at, new = (sum(column) for column in zip(*self._judged, strict=True))
        least = self._context.recipe.prompts.steering.least_novel
        if self.rows >= _BARREN and not self.accepted and least:
            self.dried_up = f"none of {self.rows} candidates was accepted"
        elif looked_at >= _JUDGED and new < least * looked_at and self.missing > 0:
            self.dried_up = f"of the last {looked_at} usable candidates {new} were new, fewer than {least:.0%}"

    def _decide(self, candidates: list[Candidate]) -> tuple[list[RowOutcome], list[Prompt], int]:
        """Return the outcomes, the accepted prompts, and the number of usable candidates."""
        seen: set[str] = set()
        judged: list[int] = []
        for at, (_, prompt) in enumerate(candidates):
            # A text without words is near to nothing, but still only taken once.
            if prompt and prompt.instruction not in seen and prompt.instruction not in self.index:
                seen.add(prompt.instruction)
                judged.append(at)
        texts = [prompt.instruction for at in judged if (prompt := candidates[at][1])]
        before = len(self.index)
        nearest = dict(zip(judged, self.index.nearest_all(texts, enter=True), strict=True))
        outcomes: list[RowOutcome] = []
        new: list[Prompt] = []
        for at, (outcome, prompt) in enumerate(candidates):
            outcome = outcome._replace(position=self.rows + at)
            if prompt is None:
                pass
            elif at not in nearest:
                outcome = outcome._replace(state="dropped", reason="duplicate")
            elif near := nearest[at]:
                text = f"{outcome.text[:400]}\n~ {near.text[:200]} ({near.score:.2f})"
                outcome = outcome._replace(state="dropped", reason="not novel", text=text)
            elif len(new) >= self.missing:
                outcome = outcome._replace(state="dropped", reason="more than wanted")
            else:
                if self._context.recipe.prompts.mean_similarity:
                    mean = self.index.mean_similarity(prompt.instruction, before)
                    prompt = replace(prompt, mean_similarity=mean)
                new.append(prompt)
                outcome = outcome._replace(id=prompt.id)
            outcomes.append(outcome)
        # A duplicate counts as usable and not new, as does a prompt that is near to an accepted one.
        return outcomes, new, sum(prompt is not None for _, prompt in candidates)

    def finish(self, notes: dict[str, object]) -> StageCounts:
        """Close the ledger, and say so where prompts are missing. Raises as `Context.finish`."""
        if self.missing > 0:
            why = self.dried_up or f"{self.number} rounds are all that the recipe allows"
            self._context.screen.say(f"  only {len(self.accepted)} of {self.wanted} prompts: {why}", "yellow")
            notes = {**notes, "stopped": why}
        notes = {"rounds": self.number, "wanted": self.wanted, **notes}
        return self._context.finish(self._stage, self.rows, self._clock, notes)
