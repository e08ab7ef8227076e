"""Collect the state of a run for `selfalign status`: the counts of every stage, scores and marks."""

from __future__ import annotations

from typing import Any

from selfalign.errors import UserError
from selfalign.report.scores import read_scores, readings_of_test_half
from selfalign.run import feedback
from selfalign.run.directory import RunDir, is_locked


def status(run: RunDir) -> dict[str, Any]:
    """Return the counts of every stage with open requests and an example for each reason, the scores and the marks."""
    journal = run.journal
    stages = [
        {
            **journal.counts(s).as_dict(),
            "open": journal.open_work(s),
            "examples": journal.drop_examples(s),
            "neutralised_rows": journal.escaped(s),  # old name
        }
        for s in journal.stages()
    ]
    try:
        marks = feedback.counts(run)
    except UserError:  # a broken feedback file must not hide the state of the run
        marks = {}
    return {
        "run": run.path.name,
        "state": "finished" if run.manifest.exists() else "running" if is_locked(run.path) else "stopped",
        "finished": run.manifest.exists(),
        "stages": stages,
        "scores": read_scores(run),
        "test_half_read": readings_of_test_half(run),
        "feedback": marks,
    }
