"""Uses the framework integrations. This file is never run; mypy and pyright check its types in strict mode."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, assert_type

from aiohttp import web
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, Response

from retailrocket_async import AsyncTrackingClient, Batching, Receipt, ThreadsafeHandle, application
from retailrocket_async.aiohttp import RetailRocket as AiohttpRetailRocket
from retailrocket_async.aiohttp import add_session_cookie
from retailrocket_async.aiohttp import session_id as aiohttp_session_id
from retailrocket_async.fastapi import RetailRocket, SessionCookie, SessionId, ThreadsafeTracking, Tracking
from retailrocket_async.starlette import RetailRocket as StarletteRetailRocket
from retailrocket_async.starlette import session_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request


class Recorder(AsyncTrackingClient):
    """A subclass of the client, such as a test may define."""

    recorded: list[str]


@asynccontextmanager
async def own(app: FastAPI) -> AsyncGenerator[dict[str, str]]:
    """An application's own lifespan, which yields a state."""
    yield {"title": app.title}


@asynccontextmanager
async def stateless(app: Starlette) -> AsyncGenerator[None]:
    """An application's own lifespan, which yields no state."""
    assert_type(app, Starlette)
    yield


rocket = RetailRocket(batching=Batching(linger=1), grace=5)
other = RetailRocket(lambda: AsyncTrackingClient("key", "other"), name="other")
fast = FastAPI(lifespan=rocket.lifespan)
fast_with_own = FastAPI(lifespan=rocket.lifespan_with(own))
shops = FastAPI(lifespan=rocket.lifespan_with(other.lifespan))
fast.add_middleware(SessionCookie, name="visitor")


@fast.get("/")
async def endpoint(
    tracking: Tracking, visitor: SessionId, kazakhstan: Annotated[AsyncTrackingClient, Depends(other)]
) -> None:
    """Use the client and the session id in an async endpoint."""
    assert_type(tracking, AsyncTrackingClient)
    assert_type(visitor, str)
    assert_type(await kazakhstan.view(session_external_id=visitor, product_id=1), Receipt)


@fast.get("/thread")
def endpoint_in_a_thread(tracking: ThreadsafeTracking) -> None:
    """Use the thread-safe handle in an endpoint that the framework runs in a thread."""
    assert_type(tracking, ThreadsafeHandle)


stars = StarletteRetailRocket()
starlette = Starlette(lifespan=stars.lifespan, middleware=[Middleware(SessionCookie)])
starlette_with_own = Starlette(lifespan=stars.lifespan_with(stateless))


async def page(request: Request) -> Response:
    """Use the client and the session id in a Starlette endpoint."""
    assert_type(stars.client(request), AsyncTrackingClient)
    return PlainTextResponse(session_id(request))


ships = AiohttpRetailRocket()
site = web.Application()
site.cleanup_ctx.append(ships.cleanup_ctx)
add_session_cookie(site, name="visitor")


async def handler(request: web.Request) -> web.Response:
    """Use the client and the session id in an aiohttp handler."""
    assert_type(ships.client(request), AsyncTrackingClient)
    assert_type(request.config_dict[ships.key], AsyncTrackingClient)
    return web.Response(text=aiohttp_session_id(request))


async def worker() -> None:
    """Use a client without a web server, and replace the application's client as a test would."""
    with rocket.using(Recorder("key", "shop")) as recorder:
        assert_type(recorder, Recorder)
    async with application.RetailRocket().opened() as client:
        assert_type(client, AsyncTrackingClient)
