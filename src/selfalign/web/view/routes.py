"""The routes of `selfalign view`: the page, and what it asks. No route names a file; all texts leave as JSON."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from selfalign.errors import UserError
from selfalign.run.directory import RunDir
from selfalign.run.ledger import TITLES
from selfalign.system.version import __version__
from selfalign.web.guard import Guard, Policy
from selfalign.web.responses import is_json, json_response, page_routes
from selfalign.web.view import query
from selfalign.web.view.compare import Pair
from selfalign.web.view.index import ANSWERS, Index
from selfalign.web.view.progress import Watch
from selfalign.web.view.row_detail import ASKED, TRAINED, Rows

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

PARTS = {
    "view.css": "text/css",
    **dict.fromkeys(("view.js", "dom.js", "row.js", "watch.js", "compare.js"), "text/javascript"),
    "icon.svg": "image/svg+xml",
}
"""What the page consists of besides base.css, which the guard serves."""

Answer = Callable[[Mapping[str, str]], Any]


class Viewer:
    """What the page asks for, as plain values."""

    def __init__(self, index: Index, other: Index | None = None) -> None:
        self.index = index
        self.other = other
        self.rows = Rows(index)
        self.run = self.rows.context.run
        self.watch = Watch(self.run, index)
        self.beside = Watch(RunDir.look(other.run), other) if other else None

    def about(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """What does not change while the viewer runs."""
        texts = self.run.constitution
        return {
            "name": self.run.path.resolve().name,
            "other": self.other.run.resolve().name if self.other else None,
            "model": self.run.recipe.model,
            "assistant": texts.assistant.name,
            "version": __version__,
            "titles": TITLES,
            "principles": {p.id: p.name for p in texts.principles},
            "asked": [s for s in ASKED if s != "align" or self.run.recipe.align.form != "given"],
            "asked_of": list(ASKED),
            "trained": [] if self.rows.context.model.is_fake else list(TRAINED),
            "marked": [stage for pair in ANSWERS.items() for stage in pair],
        }

    def progress(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """How far the run is. What is new in it is read meanwhile."""
        self.index.refresh_soon()
        return self.watch.now()

    def page(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """A page of rows: those after (or before) a place, that the filter lets through."""
        with self.index.reading() as db:
            return {"rows": query.page(db, query.parse(asked), _at(asked), _limit(asked), back="back" in asked)}

    def counts(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """How many rows the filter lets through, and how many of each value."""
        with self.index.reading() as db:
            return query.counts(db, query.parse(asked))

    def row(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """A row and all others about the same prompt."""
        found = self.rows.detail(asked.get("stage", ""), asked.get("id", ""))
        if found is None:
            raise UserError("there is no such row: the run may have been changed")
        return found

    def asked(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """The text that the engine got for a row, and what it said."""
        return self.rows.asked(asked.get("stage", ""), asked.get("id", ""))

    def tokens(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """A row's tokens with their loss mask."""
        return self.rows.tokens(asked.get("stage", ""), asked.get("id", ""))

    def compare(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """Both runs' ledgers, and how many of their rows differ."""
        pair, beside = self._pair()
        return {"rows": pair.counts(), "here": self.watch.now()["stages"], "there": beside.now()["stages"]}

    def compared(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """Rows of both runs about the same prompt that differ, or those of one run alone."""
        pair, _ = self._pair()
        return {"rows": pair.page(asked.get("stage", ""), asked.get("which", "differ"), _at(asked), _limit(asked))}

    def _pair(self) -> tuple[Pair, Watch]:
        if self.other is None or self.beside is None:
            raise UserError("there is no other run: selfalign view RUN OTHER")
        self.other.refresh()
        return Pair(self.index, self.other), self.beside

    def mark(self, told: Mapping[str, object]) -> dict[str, Any]:
        """Mark a row; answers with the row as it stands then."""
        texts = {k: str(told.get(k) or "") for k in ("stage", "id", "mark", "answer")}
        self.rows.mark(texts["stage"], texts["id"], texts["mark"], texts["answer"])
        return self.row(texts)

    def tell(self, told: Mapping[str, object]) -> dict[str, Any]:
        """Keep what somebody thinks of an answer; answers with the row as it stands then."""
        texts = {k: str(told.get(k) or "") for k in ("stage", "id", "verdict", "note")}
        self.rows.tell(texts["stage"], texts["id"], texts["verdict"], texts["note"])
        return self.row(texts)


def _at(asked: Mapping[str, str]) -> tuple[int, int] | None:
    """The place that a page begins after."""
    place, _, n = asked.get("at", "").partition(".")
    return (int(place[:18]), int(n[:18])) if place or n else None


def _limit(asked: Mapping[str, str]) -> int:
    return int(asked.get("limit", "50")[:4])


def build(viewer: Viewer, policy: Policy) -> Guard:
    """The guarded application."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    answers: dict[str, Answer] = {
        "run": viewer.about,
        "progress": viewer.progress,
        "rows": viewer.page,
        "counts": viewer.counts,
        "row": viewer.row,
        "asked": viewer.asked,
        "tokens": viewer.tokens,
        "compare": viewer.compare,
        "compared": viewer.compared,
    }
    routes = [
        *page_routes("view.html", PARTS),
        *(Route(f"/api/{name}", _json(answer)) for name, answer in answers.items()),
        Route("/api/mark", _told(viewer.mark), methods=["POST"]),
        Route("/api/feedback", _told(viewer.tell), methods=["POST"]),
    ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    return Guard(app, policy)


def _told(answer: Callable[[Mapping[str, object]], Any]) -> Callable[[Request], Awaitable[Response]]:
    """A route that is told a JSON object. Forms of other sites cannot send one."""
    from starlette.concurrency import run_in_threadpool

    async def route(request: Request) -> Response:
        if not is_json(request):
            return json_response({"error": "JSON is expected"}, 415)
        try:
            told = json.loads(await request.body())
            json.dumps(told, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            return json_response({"error": "a JSON object is expected"}, 400)
        return await run_in_threadpool(_tried, answer, told)

    return route


def _json(answer: Answer) -> Callable[[Request], Response]:
    """A route that answers with a value; a mistake of who asks is said in one line."""

    def route(request: Request) -> Response:
        return _tried(answer, request.query_params)

    return route


def _tried(answer: Callable[[Any], Any], asked: object) -> Response:
    try:
        return json_response(answer(asked), 200)
    except UserError as error:
        return json_response({"error": str(error)}, 404)
    except ValueError:
        return json_response({"error": "a number was expected"}, 400)
    except (sqlite3.Error, OSError) as error:
        return json_response({"error": f"the run cannot be read or written now ({error})"}, 503)
