"""The visitor's session in a cookie: one per browser, read where a page is asked for and made where there is none.

For every ASGI framework; nothing is needed but the package::

    app = SessionCookie(app)  # or as the framework adds a middleware

    async def page(request):
        await client.view(session_external_id=session_id(request.scope), product_id=1)

`retailrocket_async.fastapi`, `.starlette` and `.aiohttp` have a `session_id` that takes what their handlers have.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from retailrocket_async import CategoryView, ConfigurationError, EventValidationError, UsageError, new_session_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    _Scope: TypeAlias = MutableMapping[str, Any]
    _Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
    _Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
    _App: TypeAlias = Callable[[_Scope, _Receive, _Send], Awaitable[None]]

__all__ = ["Session", "SessionCookie", "checked_cookie_name", "session_id"]

DEFAULT_COOKIE: Final = "retailrocket_session"
_YEAR: Final = 365 * 24 * 60 * 60
_KEY: Final = "retailrocket_async.session"


class Session:
    """The session of one request's visitor: the cookie's, or a new one where somebody asks for it.

    Args:
        name: the cookie's name.
        value: what the browser sent, None where it sent nothing. What is no id of a session by the API's rule, 1-50
            ASCII letters and digits, counts as nothing.
    """

    __slots__ = ("_id", "_name", "_new")

    def __init__(self, name: str, value: str | None) -> None:
        self._name = name
        self._id = value if value is not None and _is_session_id(value) else None
        self._new = False

    @property
    def id(self) -> str:
        """The id for `session_external_id`, the same however often it is asked for."""
        if self._id is None:
            self._id, self._new = new_session_id(), True
        return self._id

    def set_cookie(self, *, https: bool) -> str | None:
        """Return the value of the header ``Set-Cookie`` for a new session, the first time; else None.

        Args:
            https: whether the request came over TLS: then the browser keeps the cookie for such requests alone.
        """
        if not self._new:
            return None
        self._new = False
        secure = "; Secure" if https else ""
        return f"{self._name}={self._id}; HttpOnly; Max-Age={_YEAR}; Path=/; SameSite=Lax{secure}"


class SessionCookie:
    """ASGI middleware: the visitor's session in a cookie of one year, HttpOnly, SameSite=Lax, and Secure with https.

    The cookie is set by the answer to the request that first asked for the session, with `session_id`, whatever kind of
    answer it is; who never asks sets none. A websocket's is set by its `accept`, so ask before that.

    Args:
        app: the ASGI application.
        name: the cookie's name, ASCII letters, digits, ``-`` and ``_``; default ``"retailrocket_session"``.

    Raises:
        ConfigurationError: not a cookie's name.
    """

    def __init__(self, app: _App, name: str = DEFAULT_COOKIE) -> None:
        self._app = app
        self._name = checked_cookie_name(name)
        self._pattern = re.compile(rf"(?:^|;)\s*{self._name}=\"?([^;\"]*)")

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        session = Session(self._name, self._cookie(scope["headers"]))
        https = scope.get("scheme") in ("https", "wss")

        async def send_with_cookie(message: MutableMapping[str, Any]) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                header = session.set_cookie(https=https)
                if header is not None:
                    given = message.get("headers", ())
                    message = {**message, "headers": [*given, (b"set-cookie", header.encode("ascii"))]}
            await send(message)

        # Not in a copy: what the application writes into the scope is for those around it to read.
        scope[_KEY] = session
        await self._app(scope, receive, send_with_cookie)

    def _cookie(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        # Not with http.cookies: one odd cookie of another's would cost all of them.
        for name, value in headers:
            if name == b"cookie" and (found := self._pattern.search(value.decode("latin-1"))):
                return found[1].strip()
        return None


def session_id(scope: _Scope) -> str:
    """Return the session of the visitor who sent a request; a new one where the request brought none.

    Args:
        scope: the request's ASGI scope.

    Raises:
        UsageError: the application lacks the middleware `SessionCookie`.
    """
    session = scope.get(_KEY)
    if not isinstance(session, Session):
        raise UsageError("no session for this request: add the middleware SessionCookie to the application")
    return session.id


def checked_cookie_name(name: str) -> str:
    """Return the name of a cookie.

    Raises:
        ConfigurationError: not a cookie's name.
    """
    if type(name) is not str or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigurationError(f"name must be a cookie's: ASCII letters, digits, - and _, not {name!r}")
    return name


def _is_session_id(value: str) -> bool:
    # The one rule for ids is that of the events.
    try:
        CategoryView(session_external_id=value, category_id=0)
    except EventValidationError:
        return False
    return True
