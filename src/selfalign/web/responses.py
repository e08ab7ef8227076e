"""Build the responses that both servers send: JSON, and the files of their pages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from selfalign.web.guard import static_file


def to_json(value: Any) -> bytes:
    """Encode a value as JSON in UTF-8; lone surrogates become "?"."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def json_response(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")


def is_json(request: Request) -> bool:
    """Return whether the content type is JSON, which forms on other sites cannot send."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def page_routes(page: str, files: Mapping[str, str]) -> list[Route]:
    """Return routes that serve a page at / and its files (name -> media type) under /static/ from memory."""

    def route(path: str, name: str, media_type: str) -> Route:
        body = static_file(name)
        return Route(path, lambda request: Response(body, media_type=media_type))

    return [route("/", page, "text/html"), *(route(f"/static/{name}", name, kind) for name, kind in files.items())]
