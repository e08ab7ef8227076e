"""Show one row in full: its path through the stages, exact prompt, training tokens, mark and feedback."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from typing import Any

from selfalign.data.prompt_text import BOS, Control
from selfalign.data.records import Prompt
from selfalign.errors import UserError
from selfalign.evaluation.models import ADAPTERS
from selfalign.evaluation.tasks import heldout
from selfalign.generation.engines.base import Completion, Request
from selfalign.generation.guided import split
from selfalign.generation.loop import RowRequest, request_key
from selfalign.model.dialogue import Encoded, Tokenizer, encode_example
from selfalign.pipeline import step2_self_align, step4_verbose_cloning
from selfalign.run import feedback, marks
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.system.console import Screen
from selfalign.web.view.index import RESPONSES, Index
from selfalign.web.view.index_file import read_only
from selfalign.web.view.query import CITED, DIMENSIONS

SINGLE_REQUEST = ("align", "verbose_responses", "evaluate")
"""Stages whose rows have one request, or in stage 2 one of several, that can be rebuilt from the row."""
_RESPONDERS = {"align": ("prompted-base", "constitution"), "verbose_responses": ("engraved", "verbose")}
"""Stage -> the model that responds, and the name of its system prompt."""
TRAINED = {"align": "standard", "engrave": "standard", "verbose_cloning": ""}
"""Stage whose rows become training examples -> their system prompt; empty if it varies."""


class RowDetails:
    """Reads the rows of a run in full. Threads may share it."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.context = Context(RunDir.load(index.run), Screen(-1))
        self._lock = threading.RLock()
        """Guards the context, which loads the model's files once and is not thread-safe."""

    # -- the path through the stages -------------------------------------------------------------------------------

    def detail(self, stage: str, row_id: str) -> dict[str, Any] | None:
        """Return the row and all others about the same prompt, in pipeline order; None if it does not exist."""
        with self._index.reading() as db:
            query = "SELECT about FROM rows WHERE id = ? AND stage = ?"
            if (about := db.execute(query, (row_id, stage)).fetchone()) is None:
                return None
            names = ("id", *(f"kinds.{name}" for name in DIMENSIONS))
            texts = ("topic", "prompt", "message", "thoughts", "answer")
            query = (
                f"SELECT n, {', '.join((*names, *texts))} FROM rows JOIN texts USING (n) "  # noqa: S608
                "JOIN kinds USING (kind) WHERE about = ? ORDER BY place, n LIMIT 100"
            )
            keys = ("n", "id", *DIMENSIONS, *texts)
            steps = [dict(zip(keys, row, strict=True)) for row in db.execute(query, about)]
            for step in steps:
                mark = db.execute("SELECT mark, answer FROM marks WHERE n = ?", (step["n"],)).fetchone()
                step["mark"], step["edited"] = mark or ("", "")
                step["principles"] = [p for (p,) in db.execute(CITED, (step.pop("n"),))]
        self._add_feedback(steps)
        with closing(read_only(self._index.run / "journal.sqlite")) as journal:
            for step in steps:
                query = "SELECT text FROM rows WHERE stage = ? AND id = ?"
                step["ledger"] = next((t for (t,) in journal.execute(query, (step["stage"], step["id"]))), "")
                step["candidates"] = _candidates(journal, step["stage"], step["id"])
        self._add_texts(about[0], steps)
        return {"stage": stage, "id": row_id, "about": about[0], "steps": steps}

    def _add_texts(self, prompt_id: str, steps: list[dict[str, Any]]) -> None:
        """Add the internal thoughts and the response of each candidate, from its raw output."""
        name = self.context.run.constitution.assistant.name
        for step in steps:
            if not step["candidates"]:
                continue
            with self._lock:
                prompt = self._prompt_of({**step, "about": prompt_id})
                form = step2_self_align.form(self.context)
            for candidate in step["candidates"]:
                number = candidate["sample"]
                request = step2_self_align.request(self.context, prompt, form, number)
                work_id = step2_self_align.sample_id(prompt, number)
                raw, _ = self._output(step["stage"], work_id, self._key(step["stage"], work_id, request)[0])
                completion = Completion.from_json(json.loads(raw)) if raw else None
                thoughts, text, _ = split(completion, request, name) if completion else ("", "", False)
                candidate |= {"thoughts": thoughts, "answer": text.strip()}

    def _row(self, stage: str, row_id: str) -> dict[str, Any]:
        """Return the row. Raises UserError if it does not exist."""
        detail = self.detail(stage, row_id)
        for step in detail["steps"] if detail else ():
            if (step["stage"], step["id"]) == (stage, row_id):
                return {**step, "about": detail["about"] if detail else ""}
        raise UserError("there is no such row")

    # -- the exact prompt ------------------------------------------------------------------------------------------

    def prompt(self, stage: str, row_id: str) -> dict[str, Any]:
        """Return the exact text that the engine got for the row, and its output, in parts.

        `proved` is true if the journal has an output under the hash of this request, its settings and weights.

        Raises:
            UserError: the request cannot be rebuilt from the row.
        """
        if stage not in SINGLE_REQUEST or (stage == "align" and self.context.recipe.align.form == "given"):
            raise UserError("the exact prompts of this stage are not shown")
        row = self._row(stage, row_id)
        with self._lock:
            request, work_id = self._request(stage, row), row_id
            if stage == "align":
                request, work_id = self._sample(row, request)
            key, why = self._key(stage, work_id, request)
        raw, proved = self._output(stage, work_id, key)
        completion = Completion.from_json(json.loads(raw)) if raw else Completion()
        parts = [("control" if isinstance(p, Control) else "text", _displayed(p)) for p in request.prompt]
        for number, step in enumerate(request.steps):
            if number > len(completion.parts):
                break
            if step.cue:
                parts.append(("cue", step.cue))
            if number < len(completion.parts):
                parts.append(("output", completion.parts[number].text))
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

    def _prompt_of(self, row: dict[str, Any]) -> Prompt:
        exemplar_type = self._index.prompt_row(row["about"]).get("exemplar_type") or ""
        return Prompt(row["about"], row["message"], question_type=row["type"], exemplar_type=str(exemplar_type))

    def _sample(self, row: dict[str, Any], first: Request) -> tuple[Request, str]:
        """Return the request of the sample that stage 2 chose for the row, and the request's id in the journal."""
        context, prompt = self.context, self._prompt_of(row)
        samples = context.recipe.align.samples
        form, name = step2_self_align.form(context), context.run.constitution.assistant.name
        for sample in range(samples if samples > 1 else 0):
            work_id, request = step2_self_align.sample_id(prompt, sample), first
            if sample:
                request = step2_self_align.request(context, prompt, form, sample)
            raw, _ = self._output("align", work_id, self._key("align", work_id, request)[0])
            if raw:
                thoughts, text, _ = split(Completion.from_json(json.loads(raw)), request, name)
                if thoughts == row["thoughts"] and text.strip().startswith(row["answer"]):
                    return request, work_id
        return first, prompt.id

    def _request(self, stage: str, row: dict[str, Any]) -> Request:
        context, prompt = self.context, self._prompt_of(row)
        if stage == "align":
            return step2_self_align.request(context, prompt, step2_self_align.form(context))
        if stage == "verbose_responses":
            return step4_verbose_cloning.request(context, prompt)
        return heldout.request(context, prompt, ADAPTERS.get(row["model"]))

    def _key(self, stage: str, row_id: str, request: Request) -> tuple[str, str]:
        """Return (the request's key in the journal, the reason if it cannot be computed)."""
        try:
            adapters = (request.adapter,) if request.adapter else ()
            identities = self.context.identities(adapters)
        except (UserError, OSError) as error:
            return "", str(error)
        return request_key(stage, RowRequest(row_id, request), identities), ""

    def _output(self, stage: str, row_id: str, key: str) -> tuple[str, bool]:
        """Return (the row's output as JSON, empty if missing; whether it was saved under this key)."""
        saved = "SELECT raw FROM work WHERE state = 'raw_saved' AND "
        with closing(read_only(self._index.run / "journal.sqlite")) as journal:
            row = journal.execute(f"{saved} key = ?", (key,)).fetchone()
            if row:
                return row[0], True
            row = journal.execute(f"{saved} stage = ? AND row_id = ?", (stage, row_id)).fetchone()
        return (row[0] if row else ""), False

    # -- marks ---------------------------------------------------------------------------------------------------

    def mark(self, stage: str, row_id: str, mark: str, answer: str = "") -> None:
        """Mark a row as excluded from training, or as edited for training, or remove its mark.

        Args:
            mark: drop, edit, or an empty string to remove the mark.
            answer: the edited response.

        Raises:
            UserError: the row is not trained on, or an edit has no text.
        """
        training = next((t for t, ledger in RESPONSES.items() if stage in (t, ledger)), None)
        row = self._row(stage, row_id)
        if training is None or row["split"] == "heldout" or not row["answer"]:
            raise UserError("this row is not trained on")
        if row["state"] != "kept" and row["reason"] != marks.DROPPED_MANUALLY:
            raise UserError("this row was already dropped")
        if mark not in ("drop", "edit", "") or (mark == "edit" and not answer.strip()):
            raise UserError("mark must be drop, edit (with an answer) or empty")
        run = self.context.run
        with self._lock, run.user_files_lock():
            run_marks = marks.read(run)
            run_marks.pop((training, row_id), None)
            if mark and not (mark == "edit" and answer.strip() == self._response(RESPONSES[training], row_id)):
                text = answer.strip() if mark == "edit" else ""
                run_marks[training, row_id] = marks.Mark(training, row_id, mark, text, row["message"][:200])
            marks.write(run, run_marks)
        self._index.refresh()

    def _response(self, ledger: str, row_id: str) -> str | None:
        """Return the model's own response, which may have been edited in the example."""
        try:
            return str(self._row(ledger, row_id)["answer"]).strip()
        except UserError:
            return None

    # -- feedback -------------------------------------------------------------------------------------------------

    def give_feedback(self, stage: str, row_id: str, verdict: str, note: str = "") -> None:
        """Store or withdraw feedback on a response. Training ignores feedback.

        Args:
            verdict: good, bad, or an empty string to withdraw.

        Raises:
            UserError: the row is not a model's response, or the feedback cannot be stored.
        """
        row = self._row(stage, row_id)
        if not _is_response(row):
            raise UserError("this row is not a model's response")
        run, entry = self.context.run, self._feedback_entry(row, verdict or "bad")
        if verdict:
            feedback.mark(run, {**entry, "note": note})
        else:
            feedback.withdraw(run, feedback.parse(entry).id)

    def _add_feedback(self, steps: list[dict[str, Any]]) -> None:
        """Add the feedback on each response, or an error if the feedback file is malformed."""
        try:
            entries = feedback.read(self.context.run)
            for step in steps:
                entry = None
                if _is_response(step):
                    entry = entries.get(feedback.parse(self._feedback_entry(step, "bad")).id)
                step["feedback"] = {"verdict": entry.verdict, "note": entry.note} if entry else {}
        except UserError as error:
            for step in steps:
                step["feedback"] = {"error": str(error)}

    def _feedback_entry(self, row: dict[str, Any], verdict: str) -> dict[str, Any]:
        """Return feedback on the row's response, without a note, as the feedback file stores it."""
        stage, recipe = row["stage"], self.context.recipe
        settings = {"align": recipe.align, "verbose_responses": recipe.verbose_cloning, "evaluate": recipe.evaluate}
        model, prompt = _RESPONDERS.get(stage, (row["model"], "standard"))
        if stage == "align" and recipe.align.form == "given":
            model, prompt = "user", "standard"
        return {
            "verdict": verdict, "source": "view", "stage": stage, "row": row["id"], "answer": row["answer"],
            "model": model, "prompt": prompt, "turns": [{"role": "user", "content": row["message"]}],
            "principles": row["principles"] if stage == "align" else [],
            "settings": {k: getattr(settings[stage], k) for k in ("temperature", "top_p", "max_new_tokens")},
        }  # fmt: skip

    # -- training tokens -------------------------------------------------------------------------------------------

    def tokens(self, stage: str, row_id: str) -> dict[str, Any]:
        """Return the tokens of the row's training example: text, ids, and whether they are in the loss.

        Raises:
            UserError: the row is not trained on, or the model's tokenizer is missing.
        """
        if stage not in TRAINED:
            raise UserError("rows of this stage are not trained on")
        row = self._row(stage, row_id)
        if row["state"] != "kept" or not row["answer"]:
            raise UserError("this row is not trained on")
        if row["split"] == "heldout":
            raise UserError("this row is held out for the evaluation and never trained on")
        if row["mark"] == "drop":
            raise UserError("this row is marked to be excluded from training")
        prompt = row["prompt"] or TRAINED[stage] or "standard"
        return self._encode(row["message"], row["edited"] or row["answer"], prompt)

    def _encode(self, user: str, assistant: str, prompt: str) -> dict[str, Any]:
        context = self.context
        context.model.check_weights("this run has no tokens")
        constitution = context.run.constitution
        with self._lock:
            tokenizer, template = context.model.tokenizer(), context.model.template
        system = constitution.system_prompt("concise" if prompt == "concise" else "standard")
        row = encode_example(tokenizer, template, system, user, assistant, constitution.assistant.name)
        tokens = split_tokens(row, tokenizer)
        return {"tokens": tokens, "trained": sum(row.mask), "all": len(row.ids), "prompt": prompt}


def _candidates(journal: sqlite3.Connection, stage: str, row_id: str) -> list[dict[str, Any]]:
    """Return the outcomes of the samples among which the stage chose; none if there was one, or in older runs."""
    if not journal.execute("SELECT 1 FROM sqlite_master WHERE name = 'candidates'").fetchone():
        return []
    columns = ("sample", "state", "reason", "score")
    query = f"SELECT {', '.join(columns)} FROM candidates WHERE stage = ? AND id = ? ORDER BY sample"  # noqa: S608
    return [dict(zip(columns, row, strict=True)) for row in journal.execute(query, (stage, row_id))]


def _is_response(row: dict[str, Any]) -> bool:
    """Return whether the row is a model's response to a message."""
    return row["stage"] in SINGLE_REQUEST and bool(row["answer"]) and bool(row["message"].strip())


def split_tokens(row: Encoded, tokenizer: Tokenizer) -> list[tuple[str, list[int], bool]]:
    """Return (text, ids, in the loss) of each token. Tokens that together form one character are not separated.

    The texts add up to the text of the row.
    """
    # Many decoders remove a leading space, so decode with a token in front.
    anchor = tokenizer.ids("a")
    start = len(tokenizer.text(anchor))
    tokens: list[tuple[str, list[int], bool]] = []
    pending: list[int] = []
    for number, (token, is_trained) in enumerate(zip(row.ids, row.mask, strict=True)):
        pending.append(token)
        text = tokenizer.text([*anchor, *pending])[start:]
        is_last = number + 1 == len(row.ids) or row.mask[number + 1] != is_trained
        if text.endswith("\ufffd") and len(pending) < 8 and not is_last:
            continue
        tokens.append((text, pending, is_trained))
        pending = []
    return tokens


def _displayed(piece: str) -> str:
    return "⟨start⟩" if isinstance(piece, Control) and piece == BOS else str(piece)
