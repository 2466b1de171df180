"""Connects the client to an aiohttp application.

::

    rocket = RetailRocket()  # in a module of the application; creates no client, reads no environment


    async def product(request: web.Request) -> web.Response:
        await rocket.client(request).view(session_external_id=session_id(request), product_id=1)
        return web.Response(text="a product page")


    app = web.Application()
    app.router.add_get("/", product)
    app.cleanup_ctx.append(rocket.cleanup_ctx)  # before other entries: the first entry is closed last
    add_session_cookie(app)

The client is stored in the application under `RetailRocket.key`, so sub-applications can use the client too. In a test,
start the application inside ``with rocket.using(RecordingClient()) as recorded: ...``. This module needs the extra
``aiohttp``.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Final

from retailrocket_async import AsyncTrackingClient, UsageError
from retailrocket_async._runtime.extras import needing
from retailrocket_async.application import RetailRocket as Anywhere
from retailrocket_async.session import DEFAULT_COOKIE, Session, checked_cookie_name

with needing("aiohttp"):
    from aiohttp import web
    from aiohttp.web import AppKey, RequestKey

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["RetailRocket", "add_session_cookie", "session_id"]

_COOKIE: Final = AppKey("retailrocket_cookie", str)
_SESSION: Final = RequestKey("retailrocket_session", Session)


class RetailRocket(Anywhere):
    """Creates and closes one shop's client with an aiohttp application, and returns the client to request handlers.

    The arguments are those of `retailrocket_async.application.RetailRocket`; `name` is used in error messages.
    """

    @cached_property
    def key(self) -> web.AppKey[AsyncTrackingClient]:
        """The key under which the application stores the client."""
        return web.AppKey(self.name, AsyncTrackingClient)

    async def cleanup_ctx(self, app: web.Application) -> AsyncGenerator[None]:
        """Create the client when the application starts, and close the client when the application ends.

        The client is closed within `grace` seconds.
        """
        async with self.opened() as client:
            app[self.key] = client
            yield

    def client(self, request: web.Request) -> AsyncTrackingClient:
        """Return the client of the request's application, or of its parent application.

        Raises:
            UsageError: `RetailRocket.cleanup_ctx` was not appended to `cleanup_ctx` of the application or its parent.
        """
        client = request.config_dict.get(self.key)
        if client is None:
            raise UsageError(f"no client {self.name!r}: call app.cleanup_ctx.append(rocket.cleanup_ctx)")
        return client


def add_session_cookie(app: web.Application, name: str = DEFAULT_COOKIE) -> None:
    """Store the visitor's session id in a cookie.

    The cookie lasts one year and is HttpOnly, SameSite=Lax and, with https, Secure. If a visitor has no session yet,
    the first call of `session_id` creates a session, and the response to that request sets the cookie. This also works
    in sub-applications.

    Args:
        app: the application, before it starts.
        name: the cookie's name, ASCII letters, digits, ``-`` and ``_``; default ``"retailrocket_session"``.

    Raises:
        ConfigurationError: the name cannot be a cookie's name.
    """
    app[_COOKIE] = checked_cookie_name(name)
    app.on_response_prepare.append(_set_cookie)


def session_id(request: web.Request) -> str:
    """Return the visitor's session id, from the request's cookie or newly created.

    Raises:
        UsageError: `add_session_cookie` was not called for the request's application or its parent.
    """
    session = request.get(_SESSION)
    if session is None:
        name = request.config_dict.get(_COOKIE)
        if name is None:
            raise UsageError("no session for this request: call add_session_cookie(app)")
        session = request[_SESSION] = Session(name, request.cookies.get(name))
    return session.id


async def _set_cookie(request: web.Request, response: web.StreamResponse) -> None:
    session = request.get(_SESSION)
    header = None if session is None else session.set_cookie(https=request.secure)
    if header is not None:
        # `response.set_cookie` would be too late: aiohttp has already copied the response's cookies into the headers.
        response.headers.add("Set-Cookie", header)
