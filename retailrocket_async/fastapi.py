"""Connects the client to a FastAPI application.

::

    rocket = RetailRocket()  # in a module of the application; creates no client, reads no environment
    app = FastAPI(lifespan=rocket.lifespan)  # or rocket.lifespan_with(your own)
    app.add_middleware(SessionCookie)


    @app.get("/")
    async def product(tracking: Tracking, visitor: SessionId) -> str:
        await tracking.view(session_external_id=visitor, product_id=1)
        return "a product page"

A parameter of type `Tracking` gets the client with the default name, ``"tracking"``, in any router, sub-application,
websocket or dependency. For several shops, write ``Annotated[AsyncTrackingClient, Depends(other_rocket)]`` for each.
In a test: ``with rocket.using(RecordingClient()) as recorded, TestClient(app) as browser: ...``. This module needs the
extra ``fastapi``.
"""

# FastAPI reads the annotations of dependencies at run time, so the imports below are needed at run time.
from typing import Annotated, TypeAlias

from retailrocket_async import AsyncTrackingClient, ThreadsafeHandle
from retailrocket_async._runtime.extras import needing
from retailrocket_async.asgi import SessionCookie, client_of, threadsafe_of
from retailrocket_async.asgi import session_id as session_of

with needing("fastapi"):
    from fastapi import Depends
    from starlette.requests import HTTPConnection

    from retailrocket_async.starlette import RetailRocket as InStarlette

__all__ = ["RetailRocket", "SessionCookie", "SessionId", "ThreadsafeTracking", "Tracking", "session_id", "tracking"]


class RetailRocket(InStarlette):
    """Creates and closes one shop's client with a FastAPI application; ``Depends(rocket)`` provides the client.

    The arguments are those of `retailrocket_async.application.RetailRocket`; `name` is the key of the client in the
    lifespan's state. `Tracking` works for the default name only.
    """

    async def __call__(self, connection: HTTPConnection) -> AsyncTrackingClient:
        """Return the application's client; FastAPI calls this for a dependency.

        Raises:
            UsageError: the lifespan of this `RetailRocket` was not run.
        """
        return self.client(connection)


async def tracking(connection: HTTPConnection) -> AsyncTrackingClient:
    """Return the client; FastAPI calls this for parameters of type `Tracking`.

    Raises:
        UsageError: no lifespan of a `RetailRocket` with the default name was run.
    """
    return client_of(connection.scope)


Tracking: TypeAlias = Annotated[AsyncTrackingClient, Depends(tracking)]
"""The application's client, for a parameter of an ``async def`` endpoint or dependency."""


async def _threadsafe(connection: HTTPConnection) -> ThreadsafeHandle:
    return threadsafe_of(connection.scope)


ThreadsafeTracking: TypeAlias = Annotated[ThreadsafeHandle, Depends(_threadsafe)]
"""A thread-safe handle of the client, for a parameter of a ``def`` endpoint, which FastAPI runs in a thread."""


async def session_id(connection: HTTPConnection) -> str:
    """Return the visitor's session id; FastAPI calls this for parameters of type `SessionId`.

    Raises:
        UsageError: the application lacks the middleware `SessionCookie`.
    """
    return session_of(connection.scope)


SessionId: TypeAlias = Annotated[str, Depends(session_id)]
"""The visitor's session id, for a parameter of an endpoint or dependency: from the cookie, or newly created."""
