"""Filter and store the responses of stages 2 and 4."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

from selfalign.data.records import Prompt, Response, line
from selfalign.generation.loop import GenerationResult
from selfalign.quality.response_filters import ResponseJudge, Verdict
from selfalign.run.journal import LedgerWriter
from selfalign.run.ledger import CandidateOutcome, RowOutcome

UNACCEPTED = "does not show what its type asks for"
UNCHOSEN = "another response was chosen"


def response_to(prompt: Prompt, text: str, thoughts: str = "", principles: Sequence[int] = ()) -> Response:
    """Return the record of a response to the prompt."""
    return Response(
        prompt.id,
        prompt.instruction,
        prompt.input,
        text,
        thoughts,
        list(principles),
        prompt.source,
        prompt.question_type,
        prompt.split,
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the responses to a prompt."""

    response: Response
    truncated: bool = False
    """Whether the token limit cut the response."""
    reason: str = ""
    """Why it is dropped before the filters; empty if it is not."""
    sample: int = 0
    """The number of the sample."""
    score: float | None = None
    """How good it is relative to the prompt's other candidates; None if it was not ranked."""


class ResponseWriter:
    """Write the responses that the filters keep, and record the outcome of every row.

    Add the rows in order, because the cap on refusals depends on the earlier rows.

    Args:
        file: gets the kept responses as JSON lines.
        ledger: gets the outcomes.
        sample: gets message and response of rows that are kept, for the progress.
    """

    def __init__(
        self,
        file: BinaryIO,
        ledger: LedgerWriter,
        judge: ResponseJudge,
        sample: Callable[[str, str], None] = lambda message, response: None,
    ) -> None:
        self._file = file
        self._ledger = ledger
        self._judge = judge
        self._sample = sample
        self._position = 0
        self.principles: Counter[str] = Counter()
        """The number of citations of each principle in the kept responses."""

    def add(self, response: Response, truncated: bool = False, refusal_is_wanted: bool = False) -> None:
        """Filter the only response to a prompt, and write it if it is kept.

        Args:
            truncated: the token limit cut the response.
            refusal_is_wanted: see `add_best`.
        """
        self.add_best([Candidate(response, truncated)], refusal_is_wanted=refusal_is_wanted)

    def add_best(
        self,
        candidates: Sequence[Candidate],
        accepts: Callable[[str], bool] = lambda text: True,
        refusal_is_wanted: bool = False,
        failures: Mapping[int, GenerationResult] | None = None,
    ) -> None:
        """Filter the responses to a prompt, and write the one with the best score, or the first one, that is kept.

        Args:
            candidates: at least one; the ledger shows the first one if none is kept.
            accepts: text -> whether it shows what the prompt's type asks for.
            refusal_is_wanted: the cap on stock refusals does not count this prompt. Otherwise it counts refusals, and
                also admissions of ignorance if the prompt has a type.
            failures: number of a sample -> its result, for the samples without a completion.
        """
        verdicts = [self._check(c, accepts) for c in candidates]
        passed = [i for i, v in enumerate(verdicts) if not v.reason]
        chosen = max(passed, key=lambda i: _score(candidates[i]), default=0)  # of equal ones, the first
        response, verdict = candidates[chosen].response, verdicts[chosen]
        if not refusal_is_wanted:
            verdict = self._judge.cap(verdict, admissions=bool(response.question_type))
        if not verdict.reason:
            self._judge.count(verdict, response.message)
            self._sample(response.message, verdict.text)
            self._file.write(line(replace(response, response=verdict.text)).encode("utf-8"))
            self.principles.update(map(str, response.principles))
        reasons = [v.reason or UNCHOSEN for v in verdicts]
        reasons[chosen] = verdict.reason
        outcomes = [
            CandidateOutcome(response.id, c.sample, "dropped" if reason else "kept", reason, c.score)
            for c, reason in zip(candidates, reasons, strict=True)
        ]
        outcomes += _failed(response.id, failures or {})
        self._record(response.id, verdict.reason, verdict.ledger_text(_ledger_text(response)), outcomes)

    @property
    def not_judged(self) -> dict[str, int]:
        """Filter -> number of kept responses that it cannot judge."""
        return dict(self._judge.not_judged)

    def kept_text(self, candidate: Candidate, accepts: Callable[[str], bool]) -> str:
        """Return the text of a candidate that passes the filters and is accepted, otherwise an empty string.

        The cap on refusals may still drop it.
        """
        verdict = self._check(candidate, accepts)
        if verdict.reason:
            return ""
        self._sample(candidate.response.message, verdict.text)
        return verdict.text

    def _check(self, candidate: Candidate, accepts: Callable[[str], bool]) -> Verdict:
        response = candidate.response
        if candidate.reason:
            return Verdict(response.response, candidate.reason)
        verdict = self._judge.check(response.response, candidate.truncated, response.message)
        if not verdict.reason and not accepts(verdict.text):
            return Verdict(verdict.text, UNACCEPTED)
        return verdict

    def drop_prompt(self, prompt: Prompt, reason: str) -> None:
        """Record a prompt without a response."""
        self._record(prompt.id, reason, prompt.message)

    def add_failures(self, prompt: Prompt, failures: Mapping[int, GenerationResult]) -> None:
        """Record a prompt none of whose requests has a completion, by the reason of the first one."""
        result = next(iter(failures.values()))
        outcome = RowOutcome(prompt.id, self._position, result.state, result.reason, prompt.message)
        self._add_outcome(outcome, _failed(prompt.id, failures))

    def _record(self, row_id: str, reason: str, text: str, candidates: Sequence[CandidateOutcome] = ()) -> None:
        self._add_outcome(RowOutcome.judged(row_id, self._position, reason, text), candidates)

    def _add_outcome(self, outcome: RowOutcome, candidates: Sequence[CandidateOutcome]) -> None:
        """Record the outcome of a row, and those of its candidates if there are several."""
        self._ledger.record(outcome, candidates if len(candidates) > 1 else ())
        self._position += 1


def _score(candidate: Candidate) -> float:
    return -math.inf if candidate.score is None else candidate.score


def _failed(row_id: str, failures: Mapping[int, GenerationResult]) -> list[CandidateOutcome]:
    return [CandidateOutcome(row_id, sample, r.state, r.reason) for sample, r in failures.items()]


def _ledger_text(response: Response) -> str:
    thoughts = f"[{response.thoughts}]\n" if response.thoughts else ""
    return f"{response.message}\n{thoughts}{response.response}"
