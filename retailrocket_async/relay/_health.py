"""Serves a relay's health and metrics over HTTP: ``/livez``, ``/readyz``, ``/metrics``, in the relay's event loop."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from retailrocket_async._runtime.extras import needing

with needing("relay"):
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route
    from uvicorn import Config
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.server import ServerState

    from retailrocket_async.relay._metrics import CONTENT_TYPE, RelayMetrics

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request

    from retailrocket_async import AsyncTrackingClient
    from retailrocket_async.relay._relay import Relay

_GRACE = 1.0
"""Seconds that the server, when it stops, waits for requests that are still being answered."""


def health_app(relay: Relay, client: AsyncTrackingClient) -> Starlette:
    """Return an ASGI application that serves ``/livez``, ``/readyz`` and ``/metrics``.

    ``/livez`` answers 200 as long as the event loop runs. ``/readyz`` answers 200 if `Relay.unready` is None;
    otherwise 503 with the reason. ``/metrics`` returns the counters in Prometheus's text format.
    """
    metrics = RelayMetrics(relay, client)

    async def livez(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_: Request) -> Response:
        reason = relay.unready
        return PlainTextResponse("ready\n") if reason is None else PlainTextResponse(f"{reason}\n", 503)

    async def show(_: Request) -> Response:
        return Response(await metrics.text(), media_type=CONTENT_TYPE)

    return Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", show)])


@asynccontextmanager
async def serving_health(
    relay: Relay, client: AsyncTrackingClient, host: str = "127.0.0.1", port: int = 8081
) -> AsyncGenerator[str]:
    """Serve `health_app` in the current event loop while the `async with` block runs; yield the server's URL.

    Args:
        relay: the relay.
        client: the relay's client.
        host: the address to listen on; default ``"127.0.0.1"``, which only this machine can reach.
        port: the port to listen on; default 8081; 0 for any free port.

    Raises:
        OSError: the server cannot listen on this address and port.
    """
    # uvicorn's Server is not used, because it would handle the process's signals and could exit the process.
    config = Config(
        health_app(relay, client), ws="none", lifespan="off", log_config=None, access_log=False, proxy_headers=False
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: H11Protocol(config, state, {}, loop), host, port)
    try:
        bound: tuple[str, int] = server.sockets[0].getsockname()[:2]
        yield f"http://[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"http://{bound[0]}:{bound[1]}"
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        if state.tasks:
            await asyncio.wait(list(state.tasks), timeout=_GRACE)
