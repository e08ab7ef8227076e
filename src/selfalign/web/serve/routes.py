"""The routes of `selfalign serve`: OpenAI's API and the chat page. No route names a file."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from selfalign.constitution.citations import check_citations
from selfalign.errors import UserError
from selfalign.run import feedback
from selfalign.web.guard import Guard, Message, Policy, Receive, Refused, Scope, Send, part
from selfalign.web.serve import openai_answer as shape
from selfalign.web.serve import openai_request as asked
from selfalign.web.serve.job_queue import Done, Generation, Job, Left, Running
from selfalign.web.serve.models import PROMPTED, Served
from selfalign.web.serve.openai_answer import Choice, Head
from selfalign.web.serve.openai_request import Limits, Options

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

PARTS = {"chat.css": "text/css", "chat.js": "text/javascript", "icon.svg": "image/svg+xml"}
"""What the page consists of besides base.css, which the guard serves."""
FEEDBACK_BYTES = 1 << 18
"""The most that a mark on an answer may take: the dialogue, the answer and a note."""
READ_S = 60.0
"""Seconds in which a client must take the next part of its answer."""


def build(served: Served, generation: Generation, policy: Policy, limits: Limits) -> Guard:
    """The guarded application."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    api = Api(served, generation, limits)
    routes = [
        Route("/", _fixed("chat.html", "text/html")),
        Route("/about", api.about),
        Route("/feedback", api.feedback, methods=["POST"]),
        Route("/v1/models", api.models),
        Route("/v1/models/{name}", api.model),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.text, methods=["POST"]),
        *(Route(f"/static/{name}", _fixed(name, kind)) for name, kind in PARTS.items()),
    ]
    handlers: dict[Any, Any] = {Refused: _refused, HTTPException: _http_error, Exception: _fault}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Guard(app, policy)


class Api:
    """The answers of the routes."""

    def __init__(self, served: Served, generation: Generation, limits: Limits) -> None:
        self._served = served
        self._generation = generation
        self._limits = limits

    async def about(self, request: Request) -> Response:
        """What the page shows of the run."""
        return _json({**self._served.about(), "limits": {"max_tokens": self._limits.tokens}})

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return _json(shape.models([(m.name, m.created) for m in self._served.models.values()]))

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        found = self._served.model(request.path_params["name"])
        return _json(shape.model(found.name, found.created))

    async def chat(self, request: Request) -> Answer:
        """POST /v1/chat/completions."""
        wanted = asked.chat(await _json_body(request), self._limits)
        return self._answer(wanted.options, self._served.chat_jobs(wanted), "chatcmpl", 1)

    async def text(self, request: Request) -> Answer:
        """POST /v1/completions."""
        wanted = asked.text(await _json_body(request), self._limits)
        return self._answer(wanted.options, self._served.text_jobs(wanted), "cmpl", len(wanted.prompts))

    async def feedback(self, request: Request) -> Response:
        """POST /feedback: an answer marked good or bad, or its mark taken back (an empty verdict)."""
        from starlette.concurrency import run_in_threadpool

        body = await _json_body(request)
        if len(body) > FEEDBACK_BYTES:
            raise Refused(413, f"a mark takes at most {FEEDBACK_BYTES:,} bytes", code="too_large")
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise Refused(400, "a JSON object is expected")
        try:
            return _json(await run_in_threadpool(self._mark, value))
        except UserError as error:
            raise Refused(400, str(error)) from None

    def _mark(self, value: dict[str, Any]) -> dict[str, Any]:
        """Keep or withdraw a mark; what the page may not know or choose is put in here."""
        if unknown := value.keys() - _OF_A_MARK:
            raise UserError(f"unknown key {min(unknown)!r:.80}; known are {', '.join(sorted(_OF_A_MARK))}")
        model, prompt = value.get("model"), value.get("prompt")
        if not isinstance(model, str) or model not in self._served.models:
            raise UserError(f"the model is none of this run's: {', '.join(self._served.models)}")
        if prompt != ("constitution" if model == PROMPTED else prompt) or prompt not in _PROMPTS:
            raise UserError(f"the prompt is none of {', '.join(_PROMPTS)}")
        thoughts = value.pop("thoughts", "")
        if not isinstance(thoughts, str):
            raise UserError("thoughts are text")
        cited, _ = check_citations(thoughts, self._served.constitution.principle_names())
        run = self._served.context.run
        told = {**value, "source": "page", "principles": cited}
        if value.get("verdict") == "":
            gone = feedback.withdraw(run, feedback.parse({**told, "verdict": "bad"}).id)
            return {"verdict": "", "found": gone is not None}
        made = feedback.mark(run, told)
        return {"id": made.id, "verdict": made.verdict, "note": made.note}

    def _answer(self, options: Options, jobs: Sequence[Job], kind: str, prompts: int) -> Answer:
        head = Head(f"{kind}-{secrets.token_hex(12)}", int(time.time()), options.model, kind == "chatcmpl")
        return Answer(self._generation.start(jobs), head, options, len(jobs), prompts)


_OF_A_MARK = {"verdict", "note", "turns", "answer", "model", "prompt", "system", "settings", "thoughts"}
_PROMPTS = (*asked.STYLES, "own", "constitution")


class Answer:
    """What a request's jobs make of it, as one object or as a stream; they end when the client leaves."""

    def __init__(self, running: Running, head: Head, options: Options, jobs: int, prompts: int) -> None:
        self._running = running
        self._head = head
        self._options = options
        self._choices: list[Choice | None] = [None] * jobs
        self._prompts = prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(self._watch(receive))
        send = _impatient(send)
        try:
            await (self._stream(send) if self._options.stream else self._whole(send))
        except (Left, TimeoutError):
            # Where the server ends, or a client does not read, it sees the connection close.
            pass
        except Refused as refused:
            await _start(send, refused.status, refused.headers())
            await send({"type": "http.response.body", "body": refused.body()})
        finally:
            self._running.cancel()
            watch.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._running.cancel()

    async def _whole(self, send: Send) -> None:
        async for event in self._running:
            if isinstance(event, Done):
                self._choices[event.number] = event.choice
        body = shape.as_json(self._head.whole(self._done(), self._prompts))
        await _start(send, 200, [(b"content-type", b"application/json")])
        await send({"type": "http.response.body", "body": body})

    def _done(self) -> list[Choice]:
        return [choice for choice in self._choices if choice]

    async def _stream(self, send: Send) -> None:
        """Events as they come. What fails before the first one is an error with a status of its own."""
        begun: set[int] = set()
        try:
            async for event in self._running:
                chunks = []
                if event.number not in begun and self._head.is_chat:
                    chunks.append(self._head.chunk(event.number, None))
                if isinstance(event, Done):
                    self._choices[event.number] = event.choice
                    chunks.append(self._head.chunk(event.number, None, event.choice.finish))
                else:
                    chunks.append(self._head.chunk(event.number, event.text, thought=event.thought))
                if not begun:
                    await _start(send, 200, [(b"content-type", b"text/event-stream; charset=utf-8")])
                begun.add(event.number)
                await self._send(send, *chunks)
        except Refused as refused:
            if not begun:
                raise
            await send({"type": "http.response.body", "body": b"data: " + refused.body() + b"\n\n", "more_body": True})
        else:
            if self._options.include_usage:
                await self._send(send, self._head.last(self._done(), self._prompts))
            await send({"type": "http.response.body", "body": shape.END, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _send(self, send: Send, *chunks: dict[str, Any]) -> None:
        if self._options.include_usage:
            chunks = tuple({"usage": None, **chunk} for chunk in chunks)
        body = b"".join(shape.event(chunk) for chunk in chunks)
        await send({"type": "http.response.body", "body": body, "more_body": True})


def _impatient(send: Send) -> Send:
    """Clients that do not read must not keep their answers in memory for ever."""

    async def sending(message: Message) -> None:
        async with asyncio.timeout(READ_S):
            await send(message)

    return sending


async def _start(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _json_body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "send JSON, with the header content-type: application/json")
    return await request.body()


def _json(value: Any) -> Response:
    from starlette.responses import Response

    return Response(shape.as_json(value), media_type="application/json")


def _fixed(name: str, kind: str) -> Any:
    """A route to a part of the page, from memory."""
    body = part(name)

    async def answer(request: Request) -> Response:
        from starlette.responses import Response

        return Response(body, media_type=kind)

    return answer


async def _refused(request: Request, error: Refused) -> Response:
    from starlette.responses import Response

    headers = {key.decode(): value.decode() for key, value in error.headers()}
    return Response(error.body(), error.status, headers=headers)


async def _http_error(request: Request, error: Any) -> Response:
    what = {404: "there is nothing here", 405: "this method is not answered here"}.get(error.status_code, error.detail)
    found = await _refused(request, Refused(error.status_code, str(what)))
    found.headers.update(error.headers or {})  # which methods are
    return found


async def _fault(request: Request, error: Exception) -> Response:
    traceback.print_exception(error)
    return await _refused(request, Refused(500, "a fault of the server; its terminal shows more", "server_error"))
