"""Define the routes of `selfalign serve`: OpenAI's API and the chat page. No route takes the name of a file."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import traceback
from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from selfalign.constitution.citations import check_citations
from selfalign.errors import UserError
from selfalign.run import feedback
from selfalign.web.guard import Guard, Policy, RequestError
from selfalign.web.responses import is_json, json_response, page_routes
from selfalign.web.serve import openai_api
from selfalign.web.serve.job_queue import INTERNAL_ERROR, Cancelled, Done, Job, JobGroup, JobQueue
from selfalign.web.serve.models import PROMPTED, ServedModels
from selfalign.web.serve.openai_api import ChatRequest, Choice, CompletionRequest, GenerationRequest, ResponseBuilder

STATIC_FILES = {"chat.css": "text/css", "chat.js": "text/javascript", "icon.svg": "image/svg+xml"}
"""The files of the chat page, except base.css, which the guard serves."""
FEEDBACK_BYTES = 1 << 18
"""Maximum size of a POST to /feedback: the dialogue, the response and a note."""
SEND_TIMEOUT_S = 60.0
"""Seconds within which a client must accept the next part of its response."""
_MAX_REPORTS = 100
"""Maximum ignored fields that are reported."""
_FEEDBACK_KEYS = {"verdict", "note", "turns", "answer", "model", "prompt", "system", "settings", "thoughts"}
_FEEDBACK_PROMPTS = (*openai_api.STYLES, "own", "constitution")


def build(models: ServedModels, queue: JobQueue, policy: Policy, max_tokens: int) -> Guard:
    """Return the application, guarded by the policy. No request may set a larger limit than `max_tokens`."""
    api = Api(models, queue, max_tokens)
    routes = [
        *page_routes("chat.html", STATIC_FILES),
        Route("/health", api.health),
        Route("/about", api.about),
        Route("/feedback", api.feedback, methods=["POST"]),
        Route("/v1/models", api.list_models),
        Route("/v1/models/{name}", api.get_model),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.complete, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {RequestError: _request_error, HTTPException: _http_error, Exception: _internal_error}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Guard(_WithoutSlashes(app), policy)


class _WithoutSlashes:
    """ASGI middleware that ignores superfluous slashes: clients join an address that ends with one and a path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = "/" + "/".join(part for part in scope["path"].split("/") if part)
        await self._app({**scope, "path": path, "raw_path": path.encode()}, receive, send)


class Api:
    """The handlers of the routes."""

    def __init__(self, models: ServedModels, queue: JobQueue, max_tokens: int) -> None:
        self._models = models
        self._queue = queue
        self._max_tokens = max_tokens
        self._ignored: set[str] = set()
        """Ignored fields that were reported."""

    async def health(self, request: Request) -> Response:
        """Handle GET /health: the server is ready, since it starts after its engine."""
        return json_response({"status": "ok"})

    async def about(self, request: Request) -> Response:
        """Return what the chat page shows about the run."""
        return json_response({**self._models.about(), "limits": {"max_tokens": self._max_tokens}})

    async def list_models(self, request: Request) -> Response:
        """Handle GET /v1/models."""
        entries = [openai_api.model(m.name, m.created) for m in self._models.models.values()]
        return json_response({"object": "list", "data": entries})

    async def get_model(self, request: Request) -> Response:
        """Handle GET /v1/models/NAME."""
        model = self._models.model(request.path_params["name"])
        return json_response(openai_api.model(model.name, model.created))

    async def chat(self, request: Request) -> CompletionResponse:
        """Handle POST /v1/chat/completions."""
        parsed = openai_api.parse(ChatRequest, await _json_body(request), self._max_tokens, self._report_ignored)
        return self._start(parsed, self._models.chat_jobs(parsed))

    async def complete(self, request: Request) -> CompletionResponse:
        """Handle POST /v1/completions."""
        parsed = openai_api.parse(CompletionRequest, await _json_body(request), self._max_tokens, self._report_ignored)
        return self._start(parsed, self._models.completion_jobs(parsed))

    def _report_ignored(self, name: str) -> None:
        """Report once that clients send a field that is ignored; a client could invent names without end."""
        if name not in self._ignored and len(self._ignored) < _MAX_REPORTS:
            self._ignored.add(name)
            self._models.context.screen.say(f"ignored from now on, without effect on responses: {name:.60}", "dim")

    def _start(self, request: GenerationRequest, jobs: Sequence[Job]) -> CompletionResponse:
        is_chat = isinstance(request, ChatRequest)
        identity = f"{'chatcmpl' if is_chat else 'cmpl'}-{secrets.token_hex(12)}"
        builder = ResponseBuilder(identity, int(time.time()), request.model, is_chat)
        return CompletionResponse(self._queue.start(jobs), builder, request, len(jobs) // request.n)

    async def feedback(self, request: Request) -> Response:
        """Handle POST /feedback: mark a response as good or bad, or withdraw its mark if the verdict is empty."""
        body = await _json_body(request)
        if len(body) > FEEDBACK_BYTES:
            raise RequestError(413, f"a mark may have at most {FEEDBACK_BYTES:,} bytes", code="too_large")
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise RequestError(400, "the body must be a JSON object")
        try:
            return json_response(await run_in_threadpool(self._mark, value))
        except UserError as error:
            raise RequestError(400, str(error)) from None

    def _mark(self, value: dict[str, Any]) -> dict[str, Any]:
        """Store or withdraw a mark. The server itself adds the source and the cited principles."""
        if unknown := value.keys() - _FEEDBACK_KEYS:
            raise UserError(f"unknown key {min(unknown)!r:.80}; known are {', '.join(sorted(_FEEDBACK_KEYS))}")
        model, prompt = value.get("model"), value.get("prompt")
        if not isinstance(model, str) or model not in self._models.models:
            raise UserError(f"the model must be one of this run's: {', '.join(self._models.models)}")
        if prompt != ("constitution" if model == PROMPTED else prompt) or prompt not in _FEEDBACK_PROMPTS:
            raise UserError(f"the prompt must be one of {', '.join(_FEEDBACK_PROMPTS)}")
        thoughts = value.pop("thoughts", "")
        if not isinstance(thoughts, str):
            raise UserError("thoughts must be a string")
        cited, _ = check_citations(thoughts, self._models.constitution.principle_names())
        run = self._models.context.run
        entry = {**value, "source": "page", "principles": cited}
        if value.get("verdict") == "":
            withdrawn = feedback.withdraw(run, feedback.parse({**entry, "verdict": "bad"}).id)
            return {"verdict": "", "found": withdrawn is not None}
        mark = feedback.mark(run, entry)
        return {"id": mark.id, "verdict": mark.verdict, "note": mark.note}


class CompletionResponse:
    """The ASGI response to a request: one object, or a stream. If the client disconnects, the jobs are cancelled."""

    def __init__(self, jobs: JobGroup, builder: ResponseBuilder, request: GenerationRequest, prompts: int) -> None:
        self._jobs = jobs
        self._builder = builder
        self._request = request
        self._prompts = prompts
        self._choices: dict[int, Choice] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(self._watch(receive))

        async def send_in_time(message: Message) -> None:
            # A client that does not read must not keep its response in memory.
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send(message)

        try:
            if self._request.stream:
                await self._stream(send_in_time)
            else:
                await self._whole(scope, receive, send_in_time)
        except (Cancelled, TimeoutError):
            # The server is stopping, or the client does not read: the connection closes.
            pass
        except RequestError as error:
            await error.response()(scope, receive, send_in_time)
        finally:
            self._jobs.cancel()
            watch.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._jobs.cancel()

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        async for event in self._jobs:
            if isinstance(event, Done):
                self._choices[event.index] = event.choice
        response = json_response(self._builder.response(self._sorted_choices(), self._prompts))
        await response(scope, receive, send)

    def _sorted_choices(self) -> list[Choice]:
        return [self._choices[index] for index in sorted(self._choices)]

    async def _stream(self, send: Send) -> None:
        """Send events as they arrive. If a job fails before the first event, the response has an error status."""
        begun: set[int] = set()
        try:
            async for event in self._jobs:
                chunks = []
                if event.index not in begun and self._builder.is_chat:
                    chunks.append(self._builder.chunk(event.index, None))
                if isinstance(event, Done):
                    self._choices[event.index] = event.choice
                    chunks.append(self._builder.chunk(event.index, None, event.choice.finish))
                else:
                    chunks.append(self._builder.chunk(event.index, event.text, is_thought=event.is_thought))
                if not begun:
                    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                begun.add(event.index)
                await self._send(send, *chunks)
        except RequestError as error:
            if not begun:
                raise
            await send({"type": "http.response.body", "body": b"data: " + error.body() + b"\n\n", "more_body": True})
        else:
            if self._request.include_usage:
                await self._send(send, self._builder.usage_chunk(self._sorted_choices(), self._prompts))
            await send({"type": "http.response.body", "body": openai_api.END, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _send(self, send: Send, *chunks: dict[str, Any]) -> None:
        usage = {"usage": None} if self._request.include_usage else {}
        body = b"".join(openai_api.event({**usage, **chunk}) for chunk in chunks)
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def _json_body(request: Request) -> bytes:
    if not is_json(request):
        raise RequestError(415, "the body must be JSON, with the header content-type: application/json")
    return await request.body()


async def _request_error(request: Request, error: RequestError) -> Response:
    return error.response()


async def _http_error(request: Request, error: Any) -> Response:
    messages = {
        404: "there is no such route: the API has /v1/models, /v1/chat/completions and /v1/completions",
        405: "this route does not support the method",
    }
    message = messages.get(error.status_code, str(error.detail))
    response = RequestError(error.status_code, message).response()
    response.headers.update(error.headers or {})  # the methods that the route supports
    return response


async def _internal_error(request: Request, error: Exception) -> Response:
    traceback.print_exception(error)
    return RequestError(500, INTERNAL_ERROR, "server_error").response()
