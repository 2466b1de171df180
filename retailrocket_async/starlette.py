"""Retail Rocket in a Starlette application.

::

    rocket = RetailRocket()  # in a module of the application; makes nothing, reads nothing


    async def product(request: Request) -> Response:
        await rocket.client(request).view(session_external_id=session_id(request), product_id=1)
        return HTMLResponse("a product page")


    app = Starlette(
        routes=[Route("/", product)],
        lifespan=rocket.lifespan,  # or rocket.lifespan_with(your own)
        middleware=[Middleware(SessionCookie)],
    )

In a test: ``with rocket.using(RecordingClient()) as recorded, TestClient(app) as browser: ...``. The client is in the
lifespan's state, under the name of its `RetailRocket`, so applications mounted in this one find it, too, and
``request.state.tracking`` is the same client. Needs the extra ``starlette``.
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
    from starlette.requests import HTTPConnection  # noqa: TC002 - it is missed here, not in an application's request

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import Lifespan, StatefulLifespan

__all__ = ["RetailRocket", "SessionCookie", "session_id"]

A = TypeVar("A")


class RetailRocket(Anywhere):
    """One shop's client in one Starlette application; see `retailrocket_async.application.RetailRocket`.

    Args:
        make: returns the client when the application starts; default `AsyncTrackingClient.from_env`.
        name: the client's name in the lifespan's state; default ``"tracking"``.
        grace: seconds for what is left when the application ends; default 15.
        options: the keywords for `make`.

    Raises:
        ConfigurationError: an argument that cannot work.
    """

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncGenerator[dict[str, Any]]:  # noqa: ARG002 - Starlette's
        """The application's lifespan: makes the client, holds it in the state, closes it within `grace`.

        In a lifespan of one's own: ``async with rocket.lifespan(app) as state: yield {**state, ...}``.
        """
        async with self.opened() as client:
            yield lifespan_state(self.name, client)

    def lifespan_with(self, own: Lifespan[A]) -> StatefulLifespan[A]:
        """Return a lifespan that runs the application's own inside this one, and has the state of both.

        The client is there before the application's own lifespan begins, and until after it has ended. Several shops:
        ``one.lifespan_with(other.lifespan)``.

        Args:
            own: a function that takes the application and returns an async context manager, as Starlette has it.

        Raises:
            ConfigurationError: `own` is no such function; or, when the application starts, it gives something else the
                name of this client.
        """
        if not callable(own) or inspect.isasyncgenfunction(own) or inspect.iscoroutinefunction(own):
            raise ConfigurationError("own must return an async context manager: put @asynccontextmanager above it")

        @asynccontextmanager
        async def lifespan(app: A) -> AsyncGenerator[dict[str, Any]]:
            async with self.opened() as client, own(app) as given:
                state, others = lifespan_state(self.name, client), given or {}
                if both := state.keys() & others.keys():
                    raise ConfigurationError(f"the lifespan's state has two {min(both)!r}: RetailRocket(name=...)")
                yield {**state, **others}

        return lifespan

    def client(self, connection: HTTPConnection) -> AsyncTrackingClient:
        """Return the application's client for a request or a websocket, also in an application that is mounted.

        Raises:
            UsageError: the lifespan of this `RetailRocket` was not run.
        """
        return client_of(connection.scope, self.name)

    def threadsafe(self, connection: HTTPConnection) -> ThreadsafeHandle:
        """Return a handle of the application's client, for a ``def`` endpoint, which Starlette runs in a thread.

        Raises:
            UsageError: the lifespan of this `RetailRocket` was not run.
        """
        return threadsafe_of(connection.scope, self.name)


def session_id(connection: HTTPConnection) -> str:
    """Return the session of the visitor who sent a request; a new one where the request brought none.

    Raises:
        UsageError: the application lacks the middleware `SessionCookie`.
    """
    return session_of(connection.scope)
