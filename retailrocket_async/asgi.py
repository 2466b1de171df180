"""Retail Rocket in an ASGI application of any framework, such as Django, which has no lifespan of its own.

::

    rocket = RetailRocket()  # in a module of the application; creates no client, reads no environment


    async def product(request):
        await rocket.client(request.scope).view(session_external_id=session_id(request.scope), product_id=1)


    app = SessionCookie(rocket.around(get_asgi_application()))

The client is in the lifespan's state, where mounted applications find it as well. Needs no extra.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from retailrocket_async import AsyncTrackingClient, ConfigurationError, ThreadsafeHandle, UsageError
from retailrocket_async.application import RetailRocket as Anywhere
from retailrocket_async.session import DEFAULT_COOKIE, Session, checked_cookie_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    Scope: TypeAlias = MutableMapping[str, Any]
    Message: TypeAlias = MutableMapping[str, Any]
    Receive: TypeAlias = Callable[[], Awaitable[Message]]
    Send: TypeAlias = Callable[[Message], Awaitable[None]]
    App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

__all__ = ["RetailRocket", "SessionCookie", "client_of", "lifespan_state", "session_id", "threadsafe_of"]

_SESSION: Final = "retailrocket_async.session"

T = TypeVar("T")


class RetailRocket(Anywhere):
    """One shop's client in one ASGI application.

    It takes the arguments of `retailrocket_async.application.RetailRocket`; `name` is the client's name in the
    lifespan's state.
    """

    def around(self, app: App) -> App:
        """Return an application that adds a lifespan to one that has none.

        The client is created when the server starts, and closed within `grace` when it ends. If it cannot be created,
        the server gets ``lifespan.startup.failed``, and ends.

        Args:
            app: an ASGI application; it gets no lifespan events.
        """

        async def with_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await self._live(scope, receive, send)
            else:
                await app(scope, receive, send)

        return with_lifespan

    def client(self, scope: Scope) -> AsyncTrackingClient:
        """Return the application's client for a request, by its ASGI scope.

        Raises:
            UsageError: the lifespan of this `RetailRocket` was not run.
        """
        return client_of(scope, self.name)

    def threadsafe(self, scope: Scope) -> ThreadsafeHandle:
        """Return a thread-safe handle of the application's client, for code that a framework runs in a thread.

        Raises:
            UsageError: the lifespan of this `RetailRocket` was not run.
        """
        return threadsafe_of(scope, self.name)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        phase = "startup"
        try:
            async with self.opened() as client:
                if "state" not in scope:
                    raise ConfigurationError("the server has no lifespan state: take a newer one")  # noqa: TRY301
                scope["state"].update(lifespan_state(self.name, client))
                await send({"type": "lifespan.startup.complete"})
                phase = "shutdown"
                await receive()
        except Exception as error:
            # Without this message the server would assume that the application has no lifespan, and go on.
            await send({"type": f"lifespan.{phase}.failed", "message": f"{type(error).__name__}: {error}"})
            raise
        await send({"type": "lifespan.shutdown.complete"})


def lifespan_state(name: str, client: AsyncTrackingClient) -> dict[str, AsyncTrackingClient | ThreadsafeHandle]:
    """Return the lifespan's state: the client and its handle for threads. Call it in the client's event loop."""
    return {name: client, f"{name}_threadsafe": client.threadsafe()}


def client_of(scope: Scope, name: str = "tracking") -> AsyncTrackingClient:
    """Return the application's client by its name; for code without access to the `RetailRocket`.

    Args:
        scope: the ASGI scope of a request or a websocket.
        name: the name of the `RetailRocket`; default ``"tracking"``.

    Raises:
        UsageError: there is no such client, since its lifespan was not run.
    """
    return _in_state(scope, name, name, AsyncTrackingClient)


def threadsafe_of(scope: Scope, name: str = "tracking") -> ThreadsafeHandle:
    """Return a thread-safe handle of the application's client; arguments and errors as of `client_of`."""
    return _in_state(scope, name, f"{name}_threadsafe", ThreadsafeHandle)


class SessionCookie:
    """ASGI middleware that keeps the visitor's session in a cookie.

    The cookie lasts one year and is HttpOnly, SameSite=Lax and, with https, Secure. If a visitor has no session yet,
    the first call of `session_id` creates one, and the answer to that request sets the cookie, whatever kind of answer
    it is. A websocket sets it with its `accept`, so call `session_id` before that.

    Args:
        app: the ASGI application.
        name: the cookie's name, ASCII letters, digits, ``-`` and ``_``; default ``"retailrocket_session"``.

    Raises:
        ConfigurationError: the name cannot be a cookie's name.
    """

    def __init__(self, app: App, name: str = DEFAULT_COOKIE) -> None:
        self._app = app
        self._name = checked_cookie_name(name)
        self._pattern = re.compile(rf"(?:^|;)\s*{self._name}=\"?([^;\"]*)")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        session = Session(self._name, self._cookie(scope["headers"]))
        https = scope.get("scheme") in ("https", "wss")

        async def send_with_cookie(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                header = session.set_cookie(https=https)
                if header is not None:
                    given = message.get("headers", ())
                    message = {**message, "headers": [*given, (b"set-cookie", header.encode("ascii"))]}
            await send(message)

        # Not in a copy of the scope: middleware outside of this one may read what the application writes into it.
        scope[_SESSION] = session
        await self._app(scope, receive, send_with_cookie)

    def _cookie(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        # Not with http.cookies, which returns no cookie at all if one of them is malformed.
        for name, value in headers:
            if name == b"cookie" and (found := self._pattern.search(value.decode("latin-1"))):
                return found[1].strip()
        return None


def session_id(scope: Scope) -> str:
    """Return the visitor's session id: the one in the request's cookie, or a new one.

    Args:
        scope: the request's ASGI scope.

    Raises:
        UsageError: the application lacks the middleware `SessionCookie`.
    """
    session = scope.get(_SESSION)
    if not isinstance(session, Session):
        raise UsageError("no session for this request: add the middleware SessionCookie to the application")
    return session.id


def _in_state(scope: Scope, name: str, key: str, kind: type[T]) -> T:
    found = scope.get("state", {}).get(key)
    if not isinstance(found, kind):
        raise UsageError(
            f"no client {name!r}: its RetailRocket's lifespan was not run. Give it to the outermost application, as "
            "those of mounted ones are not run; in a test enter the test client: with TestClient(app) as browser"
        )
    return found
