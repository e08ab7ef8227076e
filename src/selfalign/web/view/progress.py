"""How far a run is, for those who watch: the ledgers, the funnel, what is with the engine. Nothing is locked for it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from functools import cached_property
from typing import Any

from selfalign.report import about
from selfalign.run import ledger
from selfalign.run.directory import RunDir, held
from selfalign.run.journal import LEDGER
from selfalign.web.view.index import Index, read_only

_LEDGERS: dict[str, tuple[str, ...]] = {
    "prompts": ("self_instruct", "topics", "red_team"),
    "align": ("align",),
    "engrave": ("engrave",),
    "verbose_cloning": ("verbose_responses", "verbose_cloning"),
    "evaluate": ("evaluate",),
}
"""Stage -> its ledgers, in their order."""


class Watch:
    """A run's progress. Threads may share it."""

    def __init__(self, run: RunDir, index: Index) -> None:
        self._run = run
        self._index = index

    @cached_property
    def _human(self) -> dict[str, int]:
        found: dict[str, int] = about.supervision(self._run)["counts"]
        return found

    def now(self) -> dict[str, Any]:
        """State, ledgers, funnel, and how far the cache has been filled."""
        run, reading = self._run, self._index.progress()
        state = "finished" if run.manifest.exists() else "running" if held(run.path) else "stopped"
        stages = self._stages(state == "running")
        return {
            "state": state,
            "generation": reading.generation,
            "reading": {"busy": reading.busy, "done": reading.done, "total": reading.total},
            "trouble": self._index.trouble,
            "stages": stages,
            "funnel": about.funnel(run, stages, self._human),
        }

    def _stages(self, running: bool) -> list[dict[str, Any]]:
        """The ledgers as the cache has them, with what only the journal knows.

        Args:
            running: the next one is at work, even where it has entered nothing yet (a training does so at its end).
        """
        found: dict[str, dict[str, Any]] = {}
        with closing(read_only(self._index.run / "journal.sqlite")) as journal:
            self._from_journal(journal, found)
        with self._index.reading() as db:
            query = (
                "SELECT stage, state, reason, SUM(number) FROM cube JOIN kinds USING (kind) WHERE principle = 0 "
                "GROUP BY stage, state, reason ORDER BY SUM(number) DESC, reason"
            )
            for stage, fate, reason, number in db.execute(query):
                ledger = found.setdefault(stage, _empty(stage))
                if fate == "kept":
                    ledger["kept"] += number
                else:
                    ledger[fate][reason] = number
        for ledger in found.values():
            decided = ledger["kept"] + sum(ledger["dropped"].values()) + sum(ledger["failed"].values())
            ledger["decided"] = decided
            ledger["rows_in"] = max(ledger["rows_in"], decided)
        ledgers = [ledger for stage in self._run.recipe.stages for ledger in _LEDGERS.get(stage, ())]
        waits = next((s for s in ledgers if s not in found or not found[s]["finished"]), None)
        if running and waits is not None:
            found.setdefault(waits, _empty(waits))
        order = [s for s in LEDGER if s in found] + sorted(set(found) - set(LEDGER))
        return [found[stage] for stage in order]

    def _from_journal(self, journal: sqlite3.Connection, found: dict[str, dict[str, Any]]) -> None:
        for stage, finished, rows_in, seconds, notes in journal.execute(
            "SELECT stage, finished, rows_in, seconds, notes FROM stages"
        ):
            ledger = found.setdefault(stage, _empty(stage))
            ledger |= {"finished": bool(finished), "rows_in": rows_in, "seconds": seconds}
            said = json.loads(notes)
            ledger["notes"] = {k: said[k] for k in ("steps", "loss_first", "loss_last") if k in said}
        for stage, state, number in journal.execute("SELECT stage, state, COUNT(*) FROM work GROUP BY stage, state"):
            if stage == "ablation":
                continue
            ledger = found.setdefault(stage, _empty(stage))
            ledger["answered" if state == "raw_saved" else "lost" if state == "failed" else "open"] += number
        query = "SELECT stage, TOTAL(seconds), TOTAL(busy), TOTAL(seconds * parallel) FROM sittings GROUP BY stage"
        for stage, seconds, busy, offered in journal.execute(query):
            if stage in found:
                found[stage] |= {"generation_seconds": seconds, "busy": min(1.0, busy / offered) if offered else 0.0}
        wanted = self._run.recipe.prompts
        for stage, count in (("self_instruct", wanted.self_instruct.count), ("red_team", wanted.red_team.count)):
            if stage in found and not wanted.file:
                found[stage]["wanted"] = count


def _empty(stage: str) -> dict[str, Any]:
    return {
        "stage": stage, "title": ledger.TITLES.get(stage, stage), "finished": False, "rows_in": 0, "decided": 0,
        "kept": 0, "dropped": {}, "failed": {}, "seconds": 0.0, "generation_seconds": 0.0, "busy": 0.0, "answered": 0,
        "open": 0, "lost": 0, "wanted": None, "notes": {},
    }  # fmt: skip
