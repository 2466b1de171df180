"""Plain asyncio: `python -m examples.workers.plain` takes paid orders from a list in Redis."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import TYPE_CHECKING

from redis.asyncio import Redis

from examples.workers.orders import rocket, track_order

if TYPE_CHECKING:
    from retailrocket_async import AsyncTrackingClient

QUEUE, TAKEN = "paid-orders", "paid-orders-taken"


async def work(client: AsyncTrackingClient, redis: Redis, stopping: asyncio.Event) -> None:
    """Take and track one order after the other; a taken order stays in Redis until it is tracked."""
    while await redis.lmove(TAKEN, QUEUE, "RIGHT", "RIGHT"):
        pass  # an order that an earlier worker took and did not track
    while not stopping.is_set():
        # The time-out of one second lets the loop check `stopping`.
        taken = await redis.blmove(QUEUE, TAKEN, 1, "RIGHT", "LEFT")
        if taken is not None:
            order = str(taken)
            await track_order(client, **json.loads(order))
            await redis.lrem(TAKEN, 1, order)


async def main() -> None:
    """Work until SIGINT or SIGTERM, then deliver the remaining events."""
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    redis = Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)
    async with redis, rocket.opened() as client:
        print("ready", flush=True)
        await work(client, redis, stopping)


if __name__ == "__main__":
    asyncio.run(main())
