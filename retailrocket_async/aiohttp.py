"""Retail Rocket in an aiohttp application.

::

    rocket = RetailRocket()  # in a module of the application; makes nothing, reads nothing


    async def product(request: web.Request) -> web.Response:
        await rocket.client(request).view(session_external_id=session_id(request), product_id=1)
        return web.Response(text="a product page")


    app = web.Application()
    app.router.add_get("/", product)
    app.cleanup_ctx.append(rocket.cleanup_ctx)  # first: what is first is closed last
    add_session_cookie(app)

The client is in the application under `RetailRocket.key`, and its sub-applications find it, too. In a test: ``with
rocket.using(RecordingClient()) as recorded: ...`` around what starts the application. Needs the extra ``aiohttp``.
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
    """One shop's client in one aiohttp application; see `retailrocket_async.application.RetailRocket`.

    Args:
        make: returns the client when the application starts; default `AsyncTrackingClient.from_env`.
        name: what errors call the client; default ``"tracking"``.
        grace: seconds for what is left when the application ends; default 15.
        options: the keywords for `make`.

    Raises:
        ConfigurationError: an argument that cannot work.
    """

    @cached_property
    def key(self) -> web.AppKey[AsyncTrackingClient]:
        """Where the application holds the client."""
        return web.AppKey(self.name, AsyncTrackingClient)

    async def cleanup_ctx(self, app: web.Application) -> AsyncGenerator[None]:
        """Make the client when the application starts, and close it within `grace` when it ends."""
        async with self.opened() as client:
            app[self.key] = client
            yield

    def client(self, request: web.Request) -> AsyncTrackingClient:
        """Return the client of the request's application, or of the one that it is a sub-application of.

        Raises:
            UsageError: `cleanup_ctx` was given to none of them.
        """
        client = request.config_dict.get(self.key)
        if client is None:
            raise UsageError(f"no client {self.name!r}: say app.cleanup_ctx.append(rocket.cleanup_ctx)")
        return client


def add_session_cookie(app: web.Application, name: str = DEFAULT_COOKIE) -> None:
    """Keep the visitor's session in a cookie of one year, HttpOnly, SameSite=Lax, and Secure with https.

    The cookie is set by the answer to the request that first asked for the session, with `session_id`; who never asks
    sets none. Sub-applications have part in it.

    Args:
        app: the application, before it starts.
        name: the cookie's name, ASCII letters, digits, ``-`` and ``_``; default ``"retailrocket_session"``.

    Raises:
        ConfigurationError: not a cookie's name.
    """
    app[_COOKIE] = checked_cookie_name(name)
    app.on_response_prepare.append(_set_cookie)


def session_id(request: web.Request) -> str:
    """Return the session of the visitor who sent a request; a new one where the request brought none.

    Raises:
        UsageError: `add_session_cookie` was called for no application of the request.
    """
    session = request.get(_SESSION)
    if session is None:
        name = request.config_dict.get(_COOKIE)
        if name is None:
            raise UsageError("no session for this request: say add_session_cookie(app)")
        session = request[_SESSION] = Session(name, request.cookies.get(name))
    return session.id


async def _set_cookie(request: web.Request, response: web.StreamResponse) -> None:
    session = request.get(_SESSION)
    header = None if session is None else session.set_cookie(https=request.secure)
    if header is not None:
        # The response's own cookies are among its headers already.
        response.headers.add("Set-Cookie", header)
