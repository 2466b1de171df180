"""The live page: three files and an icon, served to whoever opens the emulator's address in a browser."""

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
_FILES: Final = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
# Nothing from another host, nothing inline, and no text that becomes markup: whatever an event holds stays text.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # A newer version of the package on the same port has newer files.
    "Cache-Control": "no-cache",
}


class _Get(Route):
    """A route for GET alone: any other method to its path is the API's to judge, as it is with no route at all."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        return (match, child) if match is Match.FULL and scope["method"] == "GET" else (Match.NONE, {})


def page_routes() -> list[Route]:
    """Return the routes of the page, ``/``, and of what it loads, ``/_control/page/``."""
    return [
        _Get("/", _page),
        Route("/_control/", _to_the_page),
        Route("/_control/page/{name}", _file),
    ]


async def _page(_: Request) -> Response:
    return Response(_read("page.html"), media_type="text/html", headers=_HEADERS)


async def _to_the_page(_: Request) -> Response:
    return RedirectResponse("/")


async def _file(request: Request) -> Response:
    name: str = request.path_params["name"]
    if name not in _FILES:
        return Response(status_code=404)
    return Response(_read(name), media_type=_FILES[name], headers=_HEADERS)


@cache
def _read(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()
