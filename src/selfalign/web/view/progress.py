"""Report a run's progress: its state, ledgers, funnel and requests. Nothing is locked."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from functools import cached_property
from typing import Any

from selfalign.report import run_summary
from selfalign.run import ledger
from selfalign.run.directory import RunDir, is_locked
from selfalign.run.journal import LEDGER, WITHOUT_LEDGER
from selfalign.web.view.index import Index
from selfalign.web.view.index_file import read_only

_LEDGERS: dict[str, tuple[str, ...]] = {
    "prompts": ("self_instruct", "topics", "red_team"),
    "align": ("align",),
    "engrave": ("pairs", "on_policy", "engrave"),
    "verbose_cloning": ("verbose_responses", "verbose_cloning"),
    "evaluate": ("evaluate",),
}
"""Stage -> its ledgers, in order."""


class RunProgress:
    """The progress of a run. Threads may share it."""

    def __init__(self, run: RunDir, index: Index) -> None:
        self._run = run
        self._index = index

    @cached_property
    def _human(self) -> dict[str, int]:
        counts: dict[str, int] = run_summary.supervision(self._run)["counts"]
        return counts

    def now(self) -> dict[str, Any]:
        """Return the state, ledgers and funnel, and how much of the run is in the index."""
        run, generation = self._run, self._index.generation()
        state = "finished" if run.manifest.exists() else "running" if is_locked(run.path) else "stopped"
        stages = self._stages(state == "running")
        return {
            "state": state,
            "generation": generation,
            "reading": dict(self._index.progress),
            "error": self._index.error,
            "stages": stages,
            "funnel": run_summary.funnel(run, stages, self._human),
        }

    def _stages(self, running: bool) -> list[dict[str, Any]]:
        """Join the ledgers' counts from the index with timings and requests from the journal.

        Args:
            running: also return the current ledger if it has no rows yet (a training stage adds its rows at the end).
        """
        ledgers: dict[str, dict[str, Any]] = {}
        with closing(read_only(self._index.run / "journal.sqlite")) as journal:
            self._read_journal(journal, ledgers)
        with self._index.reading() as db:
            query = (
                "SELECT stage, state, reason, SUM(number) FROM cube JOIN kinds USING (kind) WHERE principle = 0 "
                "GROUP BY stage, state, reason ORDER BY SUM(number) DESC, reason"
            )
            for stage, state, reason, number in db.execute(query):
                ledger = ledgers.setdefault(stage, _empty(stage))
                if state == "kept":
                    ledger["kept"] += number
                else:
                    ledger[state][reason] = number
        for ledger in ledgers.values():
            decided = ledger["kept"] + sum(ledger["dropped"].values()) + sum(ledger["failed"].values())
            ledger["decided"] = decided
            ledger["rows_in"] = max(ledger["rows_in"], decided)
        names = [ledger for stage in self._run.recipe.stages for ledger in _LEDGERS.get(stage, ())]
        used = {"dpo": "pairs", "on_policy": "on_policy"}.get(self._run.recipe.engrave.method)
        names = [name for name in names if name not in ("pairs", "on_policy") or name == used]
        current = next((name for name in names if name not in ledgers or not ledgers[name]["finished"]), None)
        if running and current is not None:
            ledgers.setdefault(current, _empty(current))
        order = [s for s in LEDGER if s in ledgers] + sorted(set(ledgers) - set(LEDGER))
        return [ledgers[stage] for stage in order]

    def _read_journal(self, journal: sqlite3.Connection, ledgers: dict[str, dict[str, Any]]) -> None:
        for stage, finished, rows_in, seconds, notes in journal.execute(
            "SELECT stage, finished, rows_in, seconds, notes FROM stages"
        ):
            ledger = ledgers.setdefault(stage, _empty(stage))
            ledger |= {"finished": bool(finished), "rows_in": rows_in, "seconds": seconds}
            values = json.loads(notes)
            ledger["notes"] = {k: values[k] for k in ("steps", "loss_first", "loss_last") if k in values}
        for stage, state, number in journal.execute("SELECT stage, state, COUNT(*) FROM work GROUP BY stage, state"):
            if stage in WITHOUT_LEDGER:
                continue
            ledger = ledgers.setdefault(stage, _empty(stage))
            ledger["answered" if state == "raw_saved" else "lost" if state == "failed" else "open"] += number
        query = "SELECT stage, TOTAL(seconds), TOTAL(busy), TOTAL(seconds * parallel) FROM sessions GROUP BY stage"
        for stage, seconds, busy, offered in journal.execute(query):
            if stage in ledgers:
                ledgers[stage] |= {"generation_seconds": seconds, "busy": min(1.0, busy / offered) if offered else 0.0}
        prompts = self._run.recipe.prompts
        for stage, count in (("self_instruct", prompts.self_instruct.count), ("red_team", prompts.red_team.count)):
            if stage in ledgers and not prompts.file:
                ledgers[stage]["goal"] = count


def _empty(stage: str) -> dict[str, Any]:
    return {
        "stage": stage, "title": ledger.TITLES.get(stage, stage), "finished": False, "rows_in": 0, "decided": 0,
        "kept": 0, "dropped": {}, "failed": {}, "seconds": 0.0, "generation_seconds": 0.0, "busy": 0.0, "answered": 0,
        "open": 0, "lost": 0, "goal": None, "notes": {},
    }  # fmt: skip
