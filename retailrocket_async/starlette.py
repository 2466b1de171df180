"""Connects the client to a Starlette application.

::

    rocket = RetailRocket()  # in a module of the application; creates no client, reads no environment


    async def product(request: Request) -> Response:
        await rocket.client(request).view(session_external_id=session_id(request), product_id=1)
        return HTMLResponse("a product page")


    app = Starlette(
        routes=[Route("/", product)],
        lifespan=rocket.lifespan,  # or rocket.lifespan_with(your own)
        middleware=[Middleware(SessionCookie)],
    )

In a test: ``with rocket.using(RecordingClient()) as recorded, TestClient(app) as browser: ...``. The client is stored
in the lifespan's state under the name of its `RetailRocket`. So mounted applications can use the client too, and
``request.state.tracking`` is the same client. This module needs the extra ``starlette``.
"""

from __future__ import annotations

import inspect
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from retailrocket_async import AsyncTrackingClient, ConfigurationError, ThreadsafeHandle
from retailrocket_async._runtime.extras import needing
from retailrocket_async.application import RetailRocket as Anywhere
from retailrocket_async.asgi import SessionCookie, client_of, lifespan_state, threadsafe_of
from retailrocket_async.asgi import session_id as session_of

with needing("starlette"):
    from starlette.requests import HTTPConnection  # noqa: TC002 - a missing library must fail at this import, not in a request

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import Lifespan, StatefulLifespan

__all__ = ["RetailRocket", "SessionCookie", "session_id"]

A = TypeVar("A")


class RetailRocket(Anywhere):
    """Creates and closes one shop's client with a Starlette application, and returns the client to request handlers.

    The arguments are those of `retailrocket_async.application.RetailRocket`; `name` is the key of the client in the
    lifespan's state.
    """

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncGenerator[dict[str, Any]]:  # noqa: ARG002 - Starlette's
        """The lifespan for Starlette: creates the client, and closes the client within `grace` seconds at the end.

        Inside a lifespan of your own, write ``async with rocket.lifespan(app) as state: yield {**state, ...}``.
        """
        async with self.opened() as client:
            yield lifespan_state(self.name, client)

    def lifespan_with(self, own: Lifespan[A]) -> StatefulLifespan[A]:
        """Return a lifespan that runs the application's own lifespan inside `lifespan`, with the state of both.

        The client is created before the application's own lifespan begins, and closed after the application's own
        lifespan has ended. For several shops: ``one.lifespan_with(other.lifespan)``.

        Args:
            own: a function that takes the application and returns an async context manager, as in Starlette.

        Raises:
            ConfigurationError: `own` is not such a function. Also raised when the application starts, if the
                state of `own` already has an entry with the name of this client.
        """
        if not callable(own) or inspect.isasyncgenfunction(own) or inspect.iscoroutinefunction(own):
            raise ConfigurationError("own must return an async context manager: put @asynccontextmanager above it")

        @asynccontextmanager
        async def lifespan(app: A) -> AsyncGenerator[dict[str, Any]]:
            async with self.opened() as client, own(app) as given:
                state, others = lifespan_state(self.name, client), given or {}
                if both := state.keys() & others.keys():
                    raise ConfigurationError(
                        f"both lifespans define {min(both)!r}: choose another RetailRocket(name=...)"
                    )
                yield {**state, **others}

        return lifespan

    def client(self, connection: HTTPConnection) -> AsyncTrackingClient:
        """Return the application's client for a request or a websocket, also in a mounted application.

        Raises:
            UsageError: the lifespan of this `RetailRocket` was not run.
        """
        return client_of(connection.scope, self.name)

    def threadsafe(self, connection: HTTPConnection) -> ThreadsafeHandle:
        """Return a thread-safe handle of the client, for a ``def`` endpoint, which Starlette runs in a thread.

        Raises:
            UsageError: the lifespan of this `RetailRocket` was not run.
        """
        return threadsafe_of(connection.scope, self.name)


def session_id(connection: HTTPConnection) -> str:
    """Return the visitor's session id, from the request's cookie or newly created.

    Raises:
        UsageError: the application lacks the middleware `SessionCookie`.
    """
    return session_of(connection.scope)
