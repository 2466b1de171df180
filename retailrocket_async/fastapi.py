"""Retail Rocket in a FastAPI application.

::

    rocket = RetailRocket()  # in a module of the application; makes nothing, reads nothing
    app = FastAPI(lifespan=rocket.lifespan)  # or rocket.lifespan_with(your own)
    app.add_middleware(SessionCookie)


    @app.get("/")
    async def product(tracking: Tracking, visitor: SessionId) -> str:
        await tracking.view(session_external_id=visitor, product_id=1)
        return "a product page"

`Tracking` is the client named ``"tracking"``, in any router, sub-application, websocket or dependency. With several
shops each is a dependency: ``Annotated[AsyncTrackingClient, Depends(other_rocket)]``. In a test: ``with
rocket.using(RecordingClient()) as recorded, TestClient(app) as browser: ...``. Needs the extra ``fastapi``.
"""

# FastAPI reads the annotations of dependencies at run time.
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
    """One shop's client in one FastAPI application, and a dependency: ``Depends(rocket)`` is the client.

    Args:
        make: returns the client when the application starts; default `AsyncTrackingClient.from_env`.
        name: the client's name in the lifespan's state; default ``"tracking"``, which is what `Tracking` asks for.
        grace: seconds for what is left when the application ends; default 15.
        options: the keywords for `make`.

    Raises:
        ConfigurationError: an argument that cannot work.
    """

    async def __call__(self, connection: HTTPConnection) -> AsyncTrackingClient:
        """Return the application's client; FastAPI calls this.

        Raises:
            UsageError: the lifespan of this `RetailRocket` was not run.
        """
        return self.client(connection)


async def tracking(connection: HTTPConnection) -> AsyncTrackingClient:
    """The dependency behind `Tracking`.

    Raises:
        UsageError: no lifespan of a `RetailRocket` with this name was run.
    """
    return client_of(connection.scope)


Tracking: TypeAlias = Annotated[AsyncTrackingClient, Depends(tracking)]
"""The application's client, for a parameter of an ``async def`` endpoint or dependency."""


async def _threadsafe(connection: HTTPConnection) -> ThreadsafeHandle:
    return threadsafe_of(connection.scope)


ThreadsafeTracking: TypeAlias = Annotated[ThreadsafeHandle, Depends(_threadsafe)]
"""A handle of the application's client, for a parameter of a ``def`` endpoint, which FastAPI runs in a thread."""


async def session_id(connection: HTTPConnection) -> str:
    """The dependency behind `SessionId`.

    Raises:
        UsageError: the application lacks the middleware `SessionCookie`.
    """
    return session_of(connection.scope)


SessionId: TypeAlias = Annotated[str, Depends(session_id)]
"""The visitor's session, for a parameter of an endpoint or dependency: the cookie's, or a new one."""
