"""Serves the live page at the emulator's address: `page.html`, and the styles, scripts and icon that the page loads."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.responses import RedirectResponse, Response
from starlette.routing import Match, Route

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Scope

__all__ = ["page_routes"]

_FOLDER: Final = Path(__file__).parent / "page"
_TYPES: Final = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
# By this policy, the browser loads nothing from another host, runs no inline scripts, and does not let a script turn
# text into markup.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # The next emulator on the same port may belong to another version of the package, with other files, so the browser
    # must ask again before a cached file is used.
    "Cache-Control": "no-cache",
}


class _Get(Route):
    """A route that matches only GET. Requests with other methods go to the API, as if the route did not exist."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        return (match, child) if match is Match.FULL and scope["method"] == "GET" else (Match.NONE, {})


def page_routes() -> list[Route]:
    """Return the routes of the page, ``/``, and of the files that the page loads, ``/_control/page/``."""
    return [
        _Get("/", _page),
        Route("/_control/", _to_the_page),
        Route("/_control/page/{name}", _file),
    ]


async def _page(_: Request) -> Response:
    return Response(_read(_FOLDER / "page.html"), media_type="text/html", headers=_HEADERS)


async def _to_the_page(_: Request) -> Response:
    return RedirectResponse("/")


async def _file(request: Request) -> Response:
    if (path := _files().get(request.path_params["name"])) is None:
        return Response(status_code=404)
    return Response(_read(path), media_type=_TYPES[path.suffix], headers=_HEADERS)


@cache
def _files() -> dict[str, Path]:
    # A name from a request is only looked up in this dict, so the name never becomes part of a path.
    return {path.name: path for path in _FOLDER.iterdir() if path.suffix in _TYPES}


@cache
def _read(path: Path) -> bytes:
    return path.read_bytes()
