"""FastStream: `python -m examples.workers.faststream_worker` takes paid orders from a list in Redis."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

from faststream import Context, ContextRepo, FastStream
from faststream.redis import RedisBroker

from examples.workers.orders import Line, rocket, track_order
from retailrocket_async import AsyncTrackingClient

QUEUE = "paid-orders"

# When it ends, it waits up to 5 s for the orders that it has taken.
broker = RedisBroker(os.environ.get("REDIS_URL", "redis://localhost:6379"), graceful_timeout=5)


@broker.subscriber(list=QUEUE)
async def paid(
    visitor: str, transaction: str, lines: list[Line], tracking: Annotated[AsyncTrackingClient, Context()]
) -> None:
    """Track a paid order."""
    await track_order(tracking, visitor, transaction, lines)


@asynccontextmanager
async def lifespan(context: ContextRepo) -> AsyncGenerator[None]:
    """Open the client before the first order is taken, and close it after the last one."""
    async with rocket.opened() as client:
        context.set_global("tracking", client)
        yield


app = FastStream(broker, lifespan=lifespan)


@app.after_startup
async def ready() -> None:
    """Print that the worker is ready."""
    print("ready", flush=True)


if __name__ == "__main__":
    asyncio.run(app.run())
