"""Connects the client to an ASGI application of any framework, for example Django, which handles no lifespan.

::

    rocket = RetailRocket()  # in a module of the application; creates no client, reads no environment


    async def product(request):
        await rocket.client(request.scope).view(session_external_id=session_id(request.scope), product_id=1)


    app = SessionCookie(rocket.around(get_asgi_application()))

The client is stored in the lifespan's state, so mounted applications can use the client too. This module needs no
extra.
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
    """Creates and closes one shop's client with an ASGI application, and returns the client to request handlers.

    The arguments are those of `retailrocket_async.application.RetailRocket`; `name` is the key of the client in the
    lifespan's state.
    """

    def around(self, app: App) -> App:
        """Return an application that handles the lifespan and passes everything else to `app`.

        The client is created when the server starts, and closed within `grace` seconds when the server ends. If the
        client cannot be created, the server gets ``lifespan.startup.failed`` and ends.

        Args:
            app: an ASGI application that does not handle the lifespan; `app` gets no lifespan events.
        """

        async def with_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await self._live(scope, receive, send)
            else:
                await app(scope, receive, send)

        return with_lifespan

    def client(self, scope: Scope) -> AsyncTrackingClient:
        """Return the application's client.

        Args:
            scope: the ASGI scope of the request.

        Raises:
            UsageError: the lifespan of this `RetailRocket` was not run.
        """
        return client_of(scope, self.name)

    def threadsafe(self, scope: Scope) -> ThreadsafeHandle:
        """Return a thread-safe handle of the client, for code that the framework runs in a thread.

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
            # Without this message the server would assume that the application has no lifespan, and would start anyway.
            await send({"type": f"lifespan.{phase}.failed", "message": f"{type(error).__name__}: {error}"})
            raise
        await send({"type": "lifespan.shutdown.complete"})


def lifespan_state(name: str, client: AsyncTrackingClient) -> dict[str, AsyncTrackingClient | ThreadsafeHandle]:
    """Return the lifespan's state: the client and its handle for threads. Call this in the client's event loop."""
    return {name: client, f"{name}_threadsafe": client.threadsafe()}


def client_of(scope: Scope, name: str = "tracking") -> AsyncTrackingClient:
    """Return the application's client by name, for code that has no access to the `RetailRocket` object.

    Args:
        scope: the ASGI scope of a request or a websocket.
        name: the name of the `RetailRocket`; default ``"tracking"``.

    Raises:
        UsageError: there is no client of this name, because the lifespan was not run.
    """
    return _in_state(scope, name, name, AsyncTrackingClient)


def threadsafe_of(scope: Scope, name: str = "tracking") -> ThreadsafeHandle:
    """Return a thread-safe handle of the application's client; see `client_of` for the arguments and errors."""
    return _in_state(scope, name, f"{name}_threadsafe", ThreadsafeHandle)


class SessionCookie:
    """ASGI middleware that stores the visitor's session id in a cookie.

    The cookie lasts one year and is HttpOnly, SameSite=Lax and, with https, Secure. If a visitor has no session yet,
    the first call of `session_id` creates a session, and the response to that request sets the cookie, also if the
    response is an error. A websocket gets the cookie when `accept` is called, so call `session_id` before `accept`.

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
        """Handle one request or websocket; pass any other scope to the application unchanged."""
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

        # Change the scope itself and not a copy: outer middleware may read what the application writes into the scope.
        scope[_SESSION] = session
        await self._app(scope, receive, send_with_cookie)

    def _cookie(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        # `http.cookies` is not used, because that module returns no cookie at all if one cookie is malformed.
        for name, value in headers:
            if name == b"cookie" and (found := self._pattern.search(value.decode("latin-1"))):
                return found[1].strip()
        return None


def session_id(scope: Scope) -> str:
    """Return the visitor's session id, from the request's cookie or newly created.

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
