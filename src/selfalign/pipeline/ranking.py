"""Rank the responses to a prompt by how much the constitution raises their likelihood (`align.rank: contrast`).

A response's score is the mean over its tokens of log p(token | principles, exemplars, message) minus
log p(token | message), both under the base. The internal thoughts are in neither context. A sum would grow with the
length of the response, because the constitution makes nearly every token a little likelier; the mean does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from selfalign.constitution.rendering import direct_query
from selfalign.data.prompt_text import BOS
from selfalign.data.records import Prompt, content_hash
from selfalign.evaluation.models import scorers_of_run
from selfalign.evaluation.scoring import Work, parse_scores, score_works, work
from selfalign.generation.guided import Form
from selfalign.run.context import Context
from selfalign.system.clock import Clock

STAGE = "align_scores"
"""The stage of the scores in the journal, which has no ledger."""
_BATCH = 240
"""Responses that are looked up in the journal at once."""


def is_on(context: Context) -> bool:
    """Return whether stage 2 ranks the responses. The random words of the fake engine are not ranked."""
    config = context.recipe.align
    return config.rank == "contrast" and config.samples > 1 and not context.model.is_fake


class Contrast:
    """Scores responses, with their token log-probabilities in the journal."""

    def __init__(self, context: Context, form: Form) -> None:
        self._context, self._form = context, form
        self._name = context.run.constitution.assistant.name
        (self._group,) = scorers_of_run(context, ["base"], [], "standard")

    def _works(self, prompt: Prompt, text: str) -> tuple[Work, Work]:
        """Return the works of scoring a response with and without the constitution."""
        (model,) = self._group.models
        message, answer = direct_query(self._name, prompt.message), f" {text}"
        contexts = ((*self._form.prefix(prompt.exemplar_type), message), (BOS, message))
        named, plain = (work(content_hash(prompt.id, text), model, ((pieces, answer),)) for pieces in contexts)
        return named, plain

    def compute(self, responses: Iterable[tuple[Prompt, str]]) -> None:
        """Score responses that the journal has no scores of.

        Prompts of the same type must follow each other: the keys and values of their prefix are then computed once.

        Raises:
            UserError: the scorer cannot be started, or is broken.
            Interrupted: a signal arrived; finished scores are saved.
        """
        session = (self._context.journal.begin_session(STAGE, 1), Clock())
        batch: list[tuple[Work, Work]] = []
        kind = ""
        try:
            for prompt, text in responses:
                prefix_type = self._form.prefix_type(prompt.exemplar_type)
                if batch and (prefix_type != kind or len(batch) >= _BATCH):
                    self._score(batch, session)
                    batch = []
                kind = prefix_type
                batch.append(self._works(prompt, text))
            self._score(batch, session)
        finally:
            self._group.close()

    def _score(self, batch: Sequence[tuple[Work, Work]], session: tuple[int, Clock]) -> None:
        (model,) = self._group.models
        for works in zip(*batch, strict=True):  # those that share a prefix together
            score_works(self._context.journal, lambda *_: None, STAGE, works, self._group, model, session)

    def scores(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
        """Return the score of each response to a prompt; None for one that was too long or is not in the journal."""
        pairs = [self._works(prompt, text) for text in texts]
        raw = self._context.journal.saved(w.key for pair in pairs for w in pair)
        scores: list[float | None] = []
        for pair in pairs:
            named, plain = (parse_scores(raw[w.key]) if w.key in raw else None for w in pair)
            scores.append(round(named[0].per_token - plain[0].per_token, 4) if named and plain else None)
        return scores
