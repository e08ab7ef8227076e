"""One row in full: its way through the stages, what the engine was asked and said, the tokens that training sees."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from typing import Any

from selfalign.data.prompt_text import BOS, Control
from selfalign.data.records import Prompt
from selfalign.errors import UserError
from selfalign.evaluation.models import ADAPTERS
from selfalign.evaluation.tasks import heldout
from selfalign.generation.engines.base import Completion, Request
from selfalign.generation.loop import RowRequest, request_key
from selfalign.model.dialogue import Encoded, Tokenizer, encode_example
from selfalign.pipeline import step2_self_align, step4_verbose_cloning
from selfalign.run import feedback, marks
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.system.console import Screen
from selfalign.web.view.index import ANSWERS, Index, read_only
from selfalign.web.view.query import CITED, DIMENSIONS

ASKED = ("align", "verbose_responses", "evaluate")
"""Stages whose requests can be put together again from the row alone."""
_SPEAKERS = {"align": ("prompted-base", "constitution"), "verbose_responses": ("engraved", "verbose")}
"""Who answers in a stage, and under which prompt."""
TRAINED = {"align": "standard", "engrave": "standard", "verbose_cloning": ""}
"""Stages whose rows are or become training text, with the system prompt where it is always the same."""


class Rows:
    """Rows of a run, one at a time. Threads may share it."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._context = Context(RunDir.look(index.run), Screen(-1))
        self._lock = threading.Lock()
        """The model is resolved, and its tokenizer read, once."""

    @property
    def context(self) -> Context:
        return self._context

    # -- a row's way ---------------------------------------------------------------------------------------------

    def detail(self, stage: str, row_id: str) -> dict[str, Any] | None:
        """The row and all others about the same prompt, in the order of the pipeline; None where there is none."""
        with self._index.reading() as db:
            query = "SELECT about FROM rows WHERE id = ? AND stage = ?"
            if (found := db.execute(query, (row_id, stage)).fetchone()) is None:
                return None
            names = ("id", *(f"kinds.{name}" for name in DIMENSIONS))
            texts = ("topic", "prompt", "message", "thoughts", "answer")
            query = (
                f"SELECT n, {', '.join((*names, *texts))} FROM rows JOIN texts USING (n) "  # noqa: S608
                "JOIN kinds USING (kind) WHERE about = ? ORDER BY place, n LIMIT 100"
            )
            keys = ("n", "id", *DIMENSIONS, *texts)
            steps = [dict(zip(keys, row, strict=True)) for row in db.execute(query, found)]
            for step in steps:
                mark = db.execute("SELECT mark, answer FROM marks WHERE n = ?", (step["n"],)).fetchone()
                step["mark"], step["edited"] = mark or ("", "")
                step["principles"] = [p for (p,) in db.execute(CITED, (step.pop("n"),))]
        self._add_feedback(steps)
        with closing(read_only(self._index.run / "journal.sqlite")) as journal:
            for step in steps:
                query = "SELECT text FROM rows WHERE stage = ? AND id = ?"
                step["ledger"] = next((t for (t,) in journal.execute(query, (step["stage"], step["id"]))), "")
        return {"stage": stage, "id": row_id, "about": found[0], "steps": steps}

    def _one(self, stage: str, row_id: str) -> dict[str, Any]:
        """Raises UserError where there is no such row."""
        found = self.detail(stage, row_id)
        step = next((s for s in found["steps"] if (s["stage"], s["id"]) == (stage, row_id)), None) if found else None
        if step is None:
            raise UserError("there is no such row")
        return {**step, "about": found["about"] if found else ""}

    # -- what the engine was asked -------------------------------------------------------------------------------

    def asked(self, stage: str, row_id: str) -> dict[str, Any]:
        """The exact text that went to the engine for the row, and what came back, stretch by stretch.

        `proved`: the journal has an answer under the hash of just this request, settings and weights.

        Raises:
            UserError: the row has no request that can be put together again.
        """
        if stage not in ASKED or (stage == "align" and self._context.recipe.align.form == "given"):
            raise UserError("the request of this row is not shown")
        row = self._one(stage, row_id)
        with self._lock:
            request = self._request(stage, row)
            key, why = self._key(stage, row_id, request)
        raw, proved = self._raw(stage, row_id, key)
        completion = Completion.from_json(json.loads(raw)) if raw else Completion()
        parts = [("control" if isinstance(p, Control) else "text", _named(p)) for p in request.prompt]
        for number, step in enumerate(request.steps):
            if number > len(completion.parts):
                break
            if step.cue:
                parts.append(("cue", step.cue))
            if number < len(completion.parts):
                parts.append(("said", completion.parts[number].text))
        sampling = request.steps[-1].sampling
        return {
            "parts": parts,
            "proved": proved,
            "why": why,
            "model": row["model"] or request.adapter or "base",
            "finish": [part.finish for part in completion.parts],
            "generated_tokens": sum(part.generated_tokens for part in completion.parts),
            "settings": {
                "temperature": sampling.temperature, "top_p": sampling.top_p, "seed": request.seed,
                "max_new_tokens": [step.sampling.max_new_tokens for step in request.steps],
            },
        }  # fmt: skip

    def _request(self, stage: str, row: dict[str, Any]) -> Request:
        context = self._context
        prompt = Prompt(row["about"], row["message"], question_type=row["type"])
        if stage == "align":
            return step2_self_align.request(context, prompt, step2_self_align.form(context))
        if stage == "verbose_responses":
            return step4_verbose_cloning.request(context, prompt)
        return heldout.request(context, prompt, ADAPTERS.get(row["model"]))

    def _key(self, stage: str, row_id: str, request: Request) -> tuple[str, str]:
        """(the journal's key of the request, or why it is not known)."""
        try:
            adapters = (request.adapter,) if request.adapter else ()
            identities = self._context.identities(adapters)
        except (UserError, OSError) as error:
            return "", str(error)
        return request_key(stage, RowRequest(row_id, request), identities), ""

    def _raw(self, stage: str, row_id: str, key: str) -> tuple[str, bool]:
        """(raw output as JSON, or nothing; whether the key found it)."""
        with closing(read_only(self._index.run / "journal.sqlite")) as journal:
            found = journal.execute("SELECT raw FROM work WHERE key = ? AND state = 'raw_saved'", (key,)).fetchone()
            if found:
                return found[0], True
            query = "SELECT raw FROM work WHERE stage = ? AND state = 'raw_saved' AND row_id = ?"
            found = journal.execute(query, (stage, row_id)).fetchone()
        return (found[0] if found else ""), False

    # -- marks ---------------------------------------------------------------------------------------------------

    def mark(self, stage: str, row_id: str, wanted: str, answer: str = "") -> None:
        """Mark a row to be dropped or edited before training, or take its mark away.

        Args:
            wanted: drop, edit or nothing.
            answer: of an edit: what is to be learnt.

        Raises:
            UserError: the row is not trained on, or an edit has no text.
        """
        training = next((t for t, ledger in ANSWERS.items() if stage in (t, ledger)), None)
        row = self._one(stage, row_id)
        if training is None or row["split"] == "heldout" or not row["answer"]:
            raise UserError("this row is not trained on")
        if row["state"] != "kept" and row["reason"] != marks.BY_HAND:
            raise UserError("this row was dropped already")
        if wanted not in ("drop", "edit", "") or (wanted == "edit" and not answer.strip()):
            raise UserError("a mark is drop, or edit with an answer, or nothing")
        run = self._context.run
        with self._lock, run.by_hand():
            found = marks.read(run)
            found.pop((training, row_id), None)
            if wanted and not (wanted == "edit" and answer.strip() == self._own(ANSWERS[training], row_id)):
                text = answer.strip() if wanted == "edit" else ""
                found[training, row_id] = marks.Mark(training, row_id, wanted, text, row["message"][:200])
            marks.write(run, found)
        self._index.refresh()

    def _own(self, ledger: str, row_id: str) -> str | None:
        """The model's own answer; an example's is another one once it was edited."""
        found = self.detail(ledger, row_id)
        steps = found["steps"] if found else []
        return next((s["answer"].strip() for s in steps if (s["stage"], s["id"]) == (ledger, row_id)), None)

    # -- feedback -------------------------------------------------------------------------------------------------

    def tell(self, stage: str, row_id: str, verdict: str, note: str = "") -> None:
        """Keep what somebody thinks of an answer, or forget it. Training is not changed by it.

        Args:
            verdict: good, bad or nothing.

        Raises:
            UserError: the row is no model's answer, or the mark cannot be kept.
        """
        row = self._one(stage, row_id)
        if not _asked_of(row):
            raise UserError("this row is no answer")
        run, told = self._context.run, self._opinion(row, verdict or "bad")
        if verdict:
            feedback.mark(run, {**told, "note": note})
        else:
            feedback.withdraw(run, feedback.parse(told).id)

    def _add_feedback(self, steps: list[dict[str, Any]]) -> None:
        """Put what was thought of each answer beside it; a file that was broken by hand hides no row."""
        try:
            found = feedback.read(self._context.run)
            for step in steps:
                mark = found.get(feedback.parse(self._opinion(step, "bad")).id) if _asked_of(step) else None
                step["feedback"] = {"verdict": mark.verdict, "note": mark.note} if mark else {}
        except UserError as error:
            for step in steps:
                step["feedback"] = {"wrong": str(error)}

    def _opinion(self, row: dict[str, Any], verdict: str) -> dict[str, Any]:
        """A mark on the row's answer without its note: who was asked what, under which prompt and settings."""
        stage, recipe = row["stage"], self._context.recipe
        drawn = {"align": recipe.align, "verbose_responses": recipe.verbose_cloning, "evaluate": recipe.evaluate}[stage]
        model, prompt = _SPEAKERS.get(stage, (row["model"], "standard"))
        if stage == "align" and recipe.align.form == "given":
            model, prompt = "user", "standard"
        return {
            "verdict": verdict, "source": "view", "stage": stage, "row": row["id"], "answer": row["answer"],
            "model": model, "prompt": prompt, "turns": [{"role": "user", "content": row["message"]}],
            "principles": row["principles"] if stage == "align" else [],
            "settings": {k: getattr(drawn, k) for k in ("temperature", "top_p", "max_new_tokens")},
        }  # fmt: skip

    # -- what training sees --------------------------------------------------------------------------------------

    def tokens(self, stage: str, row_id: str) -> dict[str, Any]:
        """The row as training encodes it: each token with its text, its id and whether it is learnt.

        Raises:
            UserError: the row is no training text, or the model's tokenizer is missing.
        """
        if stage not in TRAINED:
            raise UserError("rows of this stage are not trained on")
        row = self._one(stage, row_id)
        if row["state"] != "kept" or not row["answer"]:
            raise UserError("this row is not trained on")
        if row["split"] == "heldout":
            raise UserError("this row is held out for the evaluation and never trained on")
        if row["mark"] == "drop":
            raise UserError("this row is marked to be dropped")
        return self.encoded(
            row["message"], row["edited"] or row["answer"], row["prompt"] or TRAINED[stage] or "standard"
        )

    def encoded(self, user: str, assistant: str, prompt: str) -> dict[str, Any]:
        """As `tokens`, of any text."""
        context = self._context
        context.model.check_weights("this run has no tokens")
        constitution = context.run.constitution
        with self._lock:
            tokenizer, template = context.model.tokenizer(), context.model.template
        system = constitution.system_prompt("concise" if prompt == "concise" else "standard")
        row = encode_example(tokenizer, template, system, user, assistant, constitution.assistant.name)
        return {"tokens": stretches(row, tokenizer), "learnt": sum(row.mask), "all": len(row.ids), "prompt": prompt}


def _asked_of(row: dict[str, Any]) -> bool:
    """Whether the row is what a model answered to a message, so that there is something to have a view on."""
    return row["stage"] in ASKED and bool(row["answer"]) and bool(row["message"].strip())


def stretches(row: Encoded, tokenizer: Tokenizer) -> list[tuple[str, list[int], bool]]:
    """(text, ids, learnt) of each token; tokens that only together make a character stand together.

    The texts, one after the other, are the row's text.
    """
    # Many decoders take the space off a text's beginning: an anchor before it keeps it.
    anchor = tokenizer.ids("a")
    start = len(tokenizer.text(anchor))
    found: list[tuple[str, list[int], bool]] = []
    held: list[int] = []
    for number, (token, learnt) in enumerate(zip(row.ids, row.mask, strict=True)):
        held.append(token)
        text = tokenizer.text([*anchor, *held])[start:]
        last = number + 1 == len(row.ids) or row.mask[number + 1] != learnt
        if text.endswith("\ufffd") and len(held) < 8 and not last:
            continue
        found.append((text, held, learnt))
        held = []
    return found


def _named(piece: str) -> str:
    return "⟨start⟩" if isinstance(piece, Control) and piece == BOS else str(piece)
