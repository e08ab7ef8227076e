"""Run stage 1 in rounds: select novel prompts, store finished rounds, and decide when to stop.

The requests of a round depend only on the finished rounds and the seed, and its candidates are decided in the order of
the requests. A finished round is committed in one transaction. A resumed stage reads its accepted prompts from the
journal and builds the novelty index from them. A round with failed requests stays unfinished, and so do the rounds
after it, because they may change when the same command retries the requests.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from selfalign.data import scenarios
from selfalign.data.records import Prompt, content_hash, write_jsonl
from selfalign.generation.loop import GenerationResult, RowRequest
from selfalign.quality import instruction_filters
from selfalign.quality.novelty import NoveltyIndex
from selfalign.run.context import Context
from selfalign.run.ledger import RowOutcome, StageCounts, not_judged_note
from selfalign.system.atomic import file_hash
from selfalign.system.clock import Clock
from selfalign.system.signals import STOP
from selfalign.system.version import __version__

Candidate = tuple[RowOutcome, Prompt | None]
"""(a row's outcome, its prompt). The prompt is None if a filter dropped it; its novelty is not checked yet."""

_NOVELTY_WINDOW = 200
"""A stage stops if too small a fraction of this number of usable candidates, the last ones, is new."""

_MAX_BARREN = 500
"""A stage stops after this number of candidates if none was accepted."""


class Rounds:
    """The accepted prompts of a stage, round after round.

    Args:
        stage: its ledger.
        target: number of prompts to accept.
        known: texts that a prompt must differ from, in addition to the accepted prompts.
        inputs: what the stage depends on, in addition to `known`, the recipe, the constitution and the model.
    """

    def __init__(self, context: Context, stage: str, target: int, known: Sequence[str], *inputs: object) -> None:
        self._context = context
        self._journal = context.journal
        self._stage = stage
        self._clock = Clock()
        self.target = target
        self.accepted: list[Prompt] = []
        self.subjects: Counter[str] = Counter()
        """Number of requests so far, by subject."""
        self.number = 0
        """Number of the next round."""
        self.rows = 0
        """Number of rows in the ledger, which is the position of the next one."""
        self.stop_reason = ""
        """Why more rounds would add too little; empty while the stage should continue."""
        self._recent: deque[tuple[int, int]] = deque()
        """(usable candidates, accepted ones) of the last rounds."""
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
            scenarios.digest(),
            *inputs,
        )
        self._resume()

    @property
    def missing(self) -> int:
        return self.target - len(self.accepted)

    @property
    def requests(self) -> int:
        return sum(self.subjects.values())

    def _resume(self) -> None:
        """Read the rounds that an earlier process finished."""
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
            f"  {self._stage}: resumed after {self.number} rounds with {len(self.accepted)} of {self.target} prompts",
            "dim",
        )

    def run(
        self,
        title: str,
        max_rounds: int,
        make_requests: Callable[[], list[RowRequest]],
        parse: Callable[[RowRequest, GenerationResult], list[Candidate]],
    ) -> Path:
        """Generate rounds until the target is reached or more rounds would add too little; return the prompts' file.

        Args:
            make_requests: returns the requests of the next round; the item of each is its subject.
            parse: returns the candidates in a result.

        Raises:
            TooManyFailed: more requests failed than the recipe allows.
        """
        with self._context.screen.bar(title, self.target, self._stage) as bar:
            bar.set(len(self.accepted))
            while self.missing > 0 and self.number < max_rounds and not self.stop_reason:
                requests = make_requests()
                engine = self._context.journaled_engine(self._stage, lambda rows, tokens: bar.add(0, tokens))
                results = zip(requests, engine.generate(requests), strict=True)
                candidates = [candidate for request, result in results for candidate in parse(request, result)]
                self.close(candidates, Counter(request.item for request in requests))
                bar.set(len(self.accepted))
                if self.accepted:
                    bar.sample(self.accepted[-1].message)
                STOP.check()
        path = self._context.run.jsonl(self._stage)
        write_jsonl(path, self.accepted)
        self._context.check_failures(self._finish())
        return path

    def close(self, candidates: list[Candidate], subjects: Counter[str]) -> None:
        """Decide on a round's candidates in their order, and commit the round.

        Args:
            subjects: number of the round's requests, by subject.
        """
        outcomes, new, usable = self._decide(candidates)
        result = {
            "asked": dict(subjects),
            "rows": len(outcomes),
            "judged": usable,
            "accepted": [asdict(p) for p in new],
        }
        # The same command retries a failed request, and then decides again on everything after it.
        self._failed = self._failed or any(outcome.state == "failed" for outcome in outcomes)
        if self._failed:
            self._journal.record(self._stage, outcomes)
        else:
            self._journal.close_round(self._stage, self.number, self._inputs, outcomes, result)
        self._note(new, subjects, len(outcomes), usable)
        self._context.screen.detail(
            f"  {self._stage}, round {self.number}: {sum(subjects.values())} requests, {len(outcomes)} candidates, "
            f"{usable} usable, {len(new)} accepted"
        )

    def _note(self, accepted: list[Prompt], subjects: Counter[str], rows: int, usable: int) -> None:
        self.accepted += accepted
        self.subjects += subjects
        self.rows += rows
        self.number += 1
        self._recent.append((usable, len(accepted)))
        while sum(n for n, _ in self._recent) - self._recent[0][0] >= _NOVELTY_WINDOW:
            self._recent.popleft()
        candidates, new = (sum(column) for column in zip(*self._recent, strict=True))
        least = self._context.recipe.prompts.steering.least_novel
        if self.rows >= _MAX_BARREN and not self.accepted and least:
            self.stop_reason = f"none of {self.rows} candidates was accepted"
        elif candidates >= _NOVELTY_WINDOW and new < least * candidates and self.missing > 0:
            self.stop_reason = f"of the last {candidates} usable candidates only {new} were new, fewer than {least:.0%}"

    def _decide(self, candidates: list[Candidate]) -> tuple[list[RowOutcome], list[Prompt], int]:
        """Return the outcomes, the accepted prompts, and the number of usable candidates."""
        seen: set[str] = set()
        checked: list[int] = []
        for at, (_, prompt) in enumerate(candidates):
            # A text without words is not similar to any text, so its exact duplicates are dropped here.
            if prompt and prompt.instruction not in seen and prompt.instruction not in self.index:
                seen.add(prompt.instruction)
                checked.append(at)
        texts = [prompt.instruction for at in checked if (prompt := candidates[at][1])]
        before = len(self.index)
        nearest = dict(zip(checked, self.index.nearest_all(texts, enter=True), strict=True))
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
        # Duplicates, and prompts that are similar to an accepted one, count as usable but not new.
        return outcomes, new, sum(prompt is not None for _, prompt in candidates)

    def _finish(self) -> StageCounts:
        """Finish the ledger. If prompts are missing, print why."""
        notes: dict[str, object] = {"rounds": self.number, "wanted": self.target}
        if self.missing > 0:
            why = self.stop_reason or f"the recipe allows {self.number} rounds"
            self._context.screen.say(f"  only {len(self.accepted)} of {self.target} prompts: {why}", "yellow")
            notes["stopped"] = why
        texts = [prompt.message for prompt in self.accepted]
        unjudged = instruction_filters.not_judged(texts, self._context.recipe.filters.prompts)
        return self._context.finish(self._stage, self.rows, self._clock, {**notes, **not_judged_note(unjudged)})
