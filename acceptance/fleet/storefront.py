"""One replica of the shop in `acceptance.fleet.shops`: a FastAPI application that tracks a view of every page."""

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

    from benchmarks.support.server_process import Pipe
    from retailrocket_async import Stats


class Settings(NamedTuple):
    """The settings of a replica.

    Attributes:
        api: the base URL of the API.
        redis: the URL of the shared Redis.
        replicas: the number of replicas.
    """

    api: str
    redis: str
    replicas: int


class Result(NamedTuple):
    """The counters of a replica when it ends.

    Attributes:
        tracked: the number of events that the replica tracked.
        delivered: the number of events that were delivered.
        requests: the number of requests that the replica sent.
        refused: the number of requests that were answered with 429.
    """

    tracked: int
    delivered: int
    requests: int
    refused: int


def main(pipe: Pipe, settings: Settings) -> None:
    """Serve on a free port, and send the port through `pipe`; when a message arrives, close and send the `Result`."""
    stats = asyncio.run(_serve(pipe, settings))
    refused = stats.requests_by_status.get(429, 0)
    pipe.send(Result(stats.tracked, stats.delivered, stats.requests, refused))


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
                # Batches are sent as soon as the limit allows, so only the limit makes them grow.
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
