"""One self-contained page about a run, and the same in JSON.   journal, scores, answers -> report/

No scripts, nothing loaded from elsewhere; every text is escaped, since most of it was written by a model.
"""

from __future__ import annotations

import json
import math
import time
from importlib import resources
from pathlib import Path
from typing import Any

from selfalign import __version__, atomic
from selfalign.context import Context
from selfalign.counts import StageCounts
from selfalign.errors import UserError
from selfalign.progress import plain
from selfalign.records import Answer, Score, read_jsonl
from selfalign.report import data
from selfalign.run import RunDir

TITLES = {
    "self_instruct": "1a Self-Instruct",
    "topics": "1b topics",
    "red_team": "1b red-teaming",
    "align": "2 self-align",
    "engrave": "3 engrave",
    "verbose": "4 verbose answers",
    "clone": "4 clone",
    "evaluate": "5 evaluate",
    "probes": "5 probes",
}
"""What the ledgers are called in tables."""

_SHOWN = 12
"""Held-out prompts on the page."""
_VERBS = 12


def run(context: Context) -> list[Path]:
    """Publish report/index.html and report/report.json; returns the files."""
    found = gather(context.run)
    if context.has_weights:
        found["notice"] = context.model.notice
    atomic.write_text(context.run.report_json, json.dumps(_finite(found), indent=1, ensure_ascii=False) + "\n")
    atomic.write_text(context.run.report, render(found))
    return [context.run.report, context.run.report_json]


def gather(run: RunDir) -> dict[str, Any]:
    """Everything the report says, as plain values."""
    stages = [run.journal.counts(s) for s in run.journal.stages()]
    scores = read_scores(run)
    answers = read_jsonl(run.jsonl("answers"), Answer) if run.jsonl("answers").exists() else []
    return {
        "format": 1,
        "selfalign": __version__,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "run": run.path.name,
        "model": run.recipe.model,
        "engine": run.recipe.engine.kind,
        "constitution": run.constitution.name,
        "assistant": run.constitution.assistant.name,
        "stages": [{**c.as_dict(), "title": TITLES.get(c.stage, c.stage)} for c in stages],
        "scores": scores,
        "principles": _principles(run, stages),
        "side_by_side": side_by_side(answers),
        "data": data.gather(run),
        "story": _story(run),
        "notice": "",
    }


def _story(run: RunDir) -> str:
    """What the run did, in a sentence: of the stages that its recipe has."""
    own, given = run.recipe.prompts.file is not None, run.recipe.align.form == "given"
    steps = {
        "prompts": "was given prompts" if own else "wrote its own prompts",
        "align": "was given answers to them" if given else "answered them under the constitution",
        "engrave": "learnt the answers" if given else "learnt the answers without it",
        "clone": "learnt its own verbose mode",
    }
    done = [text for stage, text in steps.items() if stage in run.recipe.stages]
    told = ", ".join(done[:-1]) + (" and " if len(done) > 1 else "") + done[-1] if done else "was measured"
    text = f"The base model {told}. Below is what came of each step"
    if "evaluate" in run.recipe.stages:
        text += ", and what the models say to prompts that none of them was trained on"
    return f"{text}."


def read_scores(run: RunDir) -> list[dict[str, Any]]:
    """scores.json as it stands; empty before the evaluation."""
    if not run.scores.exists():
        return []
    try:
        value = json.loads(run.scores.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{run.scores} is not JSON ({error}): delete it, `selfalign evaluate` makes it again") from None
    return [dict(v) for v in value] if isinstance(value, list) else []


def side_by_side(answers: list[Answer]) -> list[dict[str, Any]]:
    """[{message, answers: {model: Answer}}] in the order of the file."""
    rows: dict[str, dict[str, Any]] = {}
    for answer in answers:
        row = rows.setdefault(answer.id, {"message": answer.message, "answers": {}})
        row["answers"][answer.model] = {"text": answer.answer, "ended": answer.ended, "words": answer.words}
    return list(rows.values())


def _principles(run: RunDir, stages: list[StageCounts]) -> list[dict[str, Any]]:
    used: dict[str, int] = next((c.notes.get("principles", {}) for c in stages if c.stage == "align"), {})
    return [{"id": p.id, "name": p.name, "used": used.get(str(p.id), 0)} for p in run.constitution.principles]


def score_text(score: dict[str, Any] | Score) -> tuple[str, str, str]:
    """(value, interval, difference) of a score as people read it."""
    s = score if isinstance(score, dict) else {k: getattr(score, k) for k in score.__slots__}
    percent = s["measure"].startswith(("run-on", "empty"))

    def number(v: float | None) -> str:
        if v is None or not math.isfinite(v):
            return "–"
        return f"{v:.0%}" if percent else f"{v:.0f}" if s["measure"].endswith("words") else f"{v:.3f}"

    interval = f"{number(s['low'])} to {number(s['high'])}" if s["low"] is not None else ""
    difference = ""
    if s["difference"] is not None:
        sign = "+" if s["difference"] > 0 else ""
        difference = (
            f"{sign}{number(s['difference'])} vs {s['vs']} "
            f"({number(s['difference_low'])} to {number(s['difference_high'])})"
        )
    return number(s["value"]), interval, difference


def render(found: dict[str, Any]) -> str:
    """The page."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, finalize=_harmless
    )
    environment.filters["plain"] = plain
    environment.globals["score_text"] = score_text
    template = (resources.files("selfalign") / "report/page.html.jinja").read_text("utf-8")
    cited = [(f"{p['id']} {p['name']}", p["used"]) for p in found["principles"]]
    tagged = found["data"]["diversity"].get("prompts", {}).get("verb_objects", {"commonest": []})
    verbs = [(f"{verb} {noun}".strip(), number) for verb, noun, number in tagged["commonest"][:_VERBS]]
    shown = found["side_by_side"][:_SHOWN]
    return environment.from_string(template).render(**found, shown=shown, cited=cited, verbs=verbs)


def _harmless(value: Any) -> Any:
    # What has __html__ is a macro's output: the texts in it went through here already.
    return plain(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value
