"""taskiq: `taskiq worker examples.workers.taskiq_worker:broker` takes paid orders from a list in Redis."""

import os
from contextlib import AsyncExitStack
from typing import Annotated

from taskiq import Context, TaskiqDepends, TaskiqEvents, TaskiqState
from taskiq_redis import ListQueueBroker

from examples.workers.orders import Line, rocket, track_order
from retailrocket_async import AsyncTrackingClient

broker = ListQueueBroker(os.environ.get("REDIS_URL", "redis://localhost:6379"), queue_name="paid-orders-of-taskiq")


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def start(state: TaskiqState) -> None:
    """Open the client before the first order is taken."""
    state.opened = AsyncExitStack()
    state.tracking = await state.opened.enter_async_context(rocket.opened())


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def end(state: TaskiqState) -> None:
    """Close the client after the last order, which delivers the remaining events."""
    await state.opened.aclose()


def tracking(context: Annotated[Context, TaskiqDepends()]) -> AsyncTrackingClient:
    """Return the worker's client."""
    client: AsyncTrackingClient = context.state.tracking
    return client


@broker.task
async def paid(
    visitor: str,
    transaction: str,
    lines: list[Line],
    client: Annotated[AsyncTrackingClient, TaskiqDepends(tracking)],
) -> None:
    """Track a paid order."""
    await track_order(client, visitor, transaction, lines)
