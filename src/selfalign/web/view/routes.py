"""Define the routes of `selfalign view`: the page and its JSON API. No route takes the name of a file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from selfalign.errors import UserError
from selfalign.generation import engines
from selfalign.run import marks
from selfalign.run.directory import RunDir
from selfalign.run.ledger import TITLES
from selfalign.system.version import __version__
from selfalign.web.guard import Guard, Policy
from selfalign.web.responses import is_json, json_response, page_routes
from selfalign.web.view.compare import Comparison
from selfalign.web.view.index import RESPONSES, Index
from selfalign.web.view.progress import RunProgress
from selfalign.web.view.query import counts, page, parse
from selfalign.web.view.row_detail import SINGLE_REQUEST, TRAINED, RowDetails

STATIC_FILES = {
    "view.css": "text/css",
    **dict.fromkeys(("view.js", "dom.js", "row.js", "watch.js", "compare.js"), "text/javascript"),
    "icon.svg": "image/svg+xml",
}
"""The files of the page, except base.css, which the guard serves."""

Query = Mapping[str, str]


class Viewer:
    """Answers the requests of the page about a run, and about another one to compare it with."""

    def __init__(self, index: Index, other: Index | None = None) -> None:
        self.index = index
        self.other = other
        self.rows = RowDetails(index)
        self.run = self.rows.context.run
        self._progress = RunProgress(self.run, index)
        self._other_progress = RunProgress(RunDir.load(other.run), other) if other else None

    def about(self, query: Query) -> dict[str, Any]:
        """Return the facts about the run that stay the same while the viewer runs."""
        constitution = self.run.constitution
        return {
            "name": self.run.path.resolve().name,
            "other": self.other.run.resolve().name if self.other else None,
            "model": self.run.recipe.model,
            "assistant": constitution.assistant.name,
            "version": __version__,
            "titles": TITLES,
            "principles": {p.id: p.name for p in constitution.principles},
            "with_prompt": [s for s in SINGLE_REQUEST if s != "align" or self.run.recipe.align.form != "given"],
            "with_feedback": list(SINGLE_REQUEST),
            "trained": [] if engines.kind(self.run.recipe.engine) == "fake" else list(TRAINED),
            "mark_reason": marks.DROPPED_MANUALLY,
            "markable": [stage for pair in RESPONSES.items() for stage in pair],
        }

    def progress(self, query: Query) -> dict[str, Any]:
        """Return the run's progress, and refresh the index in the background."""
        self.index.refresh_in_background()
        return self._progress.now()

    def page(self, query: Query) -> dict[str, Any]:
        """Return the rows after (or before) a place that match the filter."""
        with self.index.reading() as db:
            return {"rows": page(db, parse(query), _place(query), _limit(query), back="back" in query)}

    def counts(self, query: Query) -> dict[str, Any]:
        """Return how many rows match the filter, in total and by value."""
        with self.index.reading() as db:
            return counts(db, parse(query))

    def row(self, query: Query) -> dict[str, Any]:
        """Return a row and all other rows about the same prompt."""
        row = self.rows.detail(query.get("stage", ""), query.get("id", ""))
        if row is None:
            raise UserError("there is no such row; the run may have changed")
        return row

    def prompt(self, query: Query) -> dict[str, Any]:
        """Return the exact prompt of a row and the model's output."""
        return self.rows.prompt(query.get("stage", ""), query.get("id", ""))

    def tokens(self, query: Query) -> dict[str, Any]:
        """Return a row's tokens with their loss mask."""
        return self.rows.tokens(query.get("stage", ""), query.get("id", ""))

    def compare(self, query: Query) -> dict[str, Any]:
        """Return the ledgers of both runs, and how many of their rows differ."""
        comparison, other = self._comparison()
        return {"rows": comparison.counts(), "here": self._progress.now()["stages"], "there": other.now()["stages"]}

    def differences(self, query: Query) -> dict[str, Any]:
        """Return rows about the same prompt that differ, or rows that are in one run only."""
        comparison, _ = self._comparison()
        stage, which = query.get("stage", ""), query.get("which", "differ")
        return {"rows": comparison.page(stage, which, _place(query), _limit(query))}

    def _comparison(self) -> tuple[Comparison, RunProgress]:
        if self.other is None or self._other_progress is None:
            raise UserError("there is no other run: start selfalign view RUN OTHER")
        self.other.refresh()
        return Comparison(self.index, self.other), self._other_progress

    def mark(self, body: Mapping[str, object]) -> dict[str, Any]:
        """Mark a row; return the row with its mark."""
        texts = {k: str(body.get(k) or "") for k in ("stage", "id", "mark", "answer")}
        self.rows.mark(texts["stage"], texts["id"], texts["mark"], texts["answer"])
        return self.row(texts)

    def feedback(self, body: Mapping[str, object]) -> dict[str, Any]:
        """Store feedback on a response; return the row with its feedback."""
        texts = {k: str(body.get(k) or "") for k in ("stage", "id", "verdict", "note")}
        self.rows.give_feedback(texts["stage"], texts["id"], texts["verdict"], texts["note"])
        return self.row(texts)


def _place(query: Query) -> tuple[int, int] | None:
    """Parse the place that a page begins after."""
    place, _, n = query.get("at", "").partition(".")
    return (int(place[:18]), int(n[:18])) if place or n else None


def _limit(query: Query) -> int:
    return int(query.get("limit", "50")[:4])


def build(viewer: Viewer, policy: Policy) -> Guard:
    """Return the application, guarded by the policy."""
    getters: dict[str, Callable[[Query], Any]] = {
        "run": viewer.about,
        "progress": viewer.progress,
        "rows": viewer.page,
        "counts": viewer.counts,
        "row": viewer.row,
        "prompt": viewer.prompt,
        "tokens": viewer.tokens,
        "compare": viewer.compare,
        "differences": viewer.differences,
    }
    routes = [
        *page_routes("view.html", STATIC_FILES),
        *(Route(f"/api/{name}", _get(getter)) for name, getter in getters.items()),
        Route("/api/mark", _post(viewer.mark), methods=["POST"]),
        Route("/api/feedback", _post(viewer.feedback), methods=["POST"]),
    ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    return Guard(app, policy)


def _get(getter: Callable[[Query], Any]) -> Callable[[Request], Response]:
    def route(request: Request) -> Response:
        return _respond(getter, request.query_params)

    return route


def _post(setter: Callable[[Mapping[str, object]], Any]) -> Callable[[Request], Awaitable[Response]]:
    async def route(request: Request) -> Response:
        if not is_json(request):
            return json_response({"error": "the body must be JSON"}, 415)
        try:
            body = json.loads(await request.body())
            json.dumps(body, ensure_ascii=False).encode()  # refuses lone surrogates
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            return json_response({"error": "the body must be a JSON object"}, 400)
        return await run_in_threadpool(_respond, setter, body)

    return route


def _respond(handler: Callable[[Any], Any], argument: object) -> Response:
    try:
        return json_response(handler(argument))
    except UserError as error:
        return json_response({"error": str(error)}, 404)
    except ValueError:
        return json_response({"error": "at, limit and principle must be numbers"}, 400)
    except (sqlite3.Error, OSError) as error:
        return json_response({"error": f"the run cannot be read or written now ({error})"}, 503)
