"""Build the responses that server and viewer share: JSON, and the files of the pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from selfalign.web.guard import static_file

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route


def to_json(value: Any) -> bytes:
    """Encode as UTF-8; lone surrogates become "?"."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def json_response(value: Any, status: int = 200) -> Response:
    from starlette.responses import Response

    return Response(to_json(value), status, media_type="application/json")


def is_json(request: Request) -> bool:
    """Return whether the body is declared as JSON. Forms of other sites cannot declare that."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def page_routes(page: str, files: Mapping[str, str]) -> list[Route]:
    """Return routes that serve a page at / and its files under /static/ from memory.

    Args:
        files: file name -> media type.
    """
    from starlette.routing import Route

    return [
        Route("/", _fixed(page, "text/html")),
        *(Route(f"/static/{name}", _fixed(name, media_type)) for name, media_type in files.items()),
    ]


def _fixed(name: str, media_type: str) -> Callable[[Request], Response]:
    from starlette.responses import Response

    body = static_file(name)

    def route(request: Request) -> Response:
        return Response(body, media_type=media_type)

    return route
