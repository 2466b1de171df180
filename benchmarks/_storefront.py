"""One replica of a shop: a FastAPI application under uvicorn, which tracks a view for every product page."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, NamedTuple

import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from redis.asyncio import Redis

from retailrocket_async import AsyncTrackingClient, Batching, new_session_id
from retailrocket_async.redis import RedisLimiter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from _process import Pipe

    from retailrocket_async import Stats


class Settings(NamedTuple):
    """What a replica is told.

    Attributes:
        api: the API's base URL.
        redis: the URL of the Redis that the replicas share.
        replicas: how many there are.
    """

    api: str
    redis: str
    replicas: int


class Told(NamedTuple):
    """What became of a replica's events.

    Attributes:
        tracked: how many it has tracked.
        delivered: how many of them were delivered.
        requests: requests that it has made.
        refused: how many of them were answered 429.
    """

    tracked: int
    delivered: int
    requests: int
    refused: int


def main(pipe: Pipe, settings: Settings) -> None:
    """Serve on a free port, which is sent first; close when told to, and tell what became of the events."""
    stats = asyncio.run(_serve(pipe, settings))
    refused = stats.requests_by_status.get(429, 0)
    pipe.send(Told(stats.tracked, stats.delivered, stats.requests, refused))


async def _serve(pipe: Pipe, settings: Settings) -> Stats:
    clients: list[AsyncTrackingClient] = []

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with Redis.from_url(settings.redis) as redis:
            limiter = RedisLimiter(redis, replicas=settings.replicas)
            client = AsyncTrackingClient(
                "dev-api-key",
                "dev-partner",
                base_url=settings.api,
                limiter=limiter,
                # Batches leave as soon as they may: it is the limit alone that lets them grow.
                batching=Batching(linger=0.0),
            )
            async with client:
                clients.append(client)
                yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/products/{number}", response_class=PlainTextResponse)
    async def product(number: int) -> str:
        await clients[0].view(session_external_id=new_session_id(), product_id=number)
        return "a product page"

    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(server.serve([listening]))
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn sets no event
            await asyncio.sleep(0.01)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(pipe.fileno(), stop.set)
        pipe.send(listening.getsockname()[1])
        await stop.wait()
        loop.remove_reader(pipe.fileno())
        server.should_exit = True
        await serving
    return clients[0].stats()
