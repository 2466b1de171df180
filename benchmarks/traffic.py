"""Tracks events with a client, at a fixed rate or without a pause."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

from benchmarks.contestants import LIFTED, VISITORS, WARM_UP
from retailrocket_async import AsyncTrackingClient, RateLimit, Receipt, View

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

RATE = 20_000
"""Events a second of a busy shop: four fifths of the greatest rate at the default batch size and limit."""

EVERY = 0.005
"""Seconds between two chunks of events: requests of many visitors come in groups."""

FULL_STREAM = 25_000
"""The most events a second at the default batch size and limit: 50 requests of 500 events."""

_WARM_UP_PRODUCT = 10**9
"""The first product of the warm-up events; measured events have smaller products."""


def client(port: int, *, lifted: bool = False, **options: Any) -> AsyncTrackingClient:
    """Return our client for the server at `port`; if `lifted` is True, the request limit is too high to matter."""
    if lifted:
        options["rate_limit"] = RateLimit(requests=LIFTED)
    return AsyncTrackingClient("k", "p", base_url=f"http://127.0.0.1:{port}/1.0/", **options)


async def view(client: AsyncTrackingClient, number: int) -> Receipt:
    """Track a view of product `number`."""
    return await client.view(session_external_id=VISITORS[number % len(VISITORS)], product_id=number)


async def warm(client: AsyncTrackingClient, events: int = WARM_UP) -> None:
    """Send some events to warm up imports, caches and the connection."""
    for number in range(events):
        await view(client, _WARM_UP_PRODUCT + number)
    await client.flush()


async def paced(chunk: Callable[[range], Awaitable[None]], *, seconds: float, rate: int = RATE) -> int:
    """Call `chunk` with the numbers of the next events, `rate` a second; return the number of events.

    If a chunk is late, the next ones follow without a pause, so a slow client gets as many events as a fast one.
    """
    now = asyncio.get_running_loop().time
    begin, size = now(), round(rate * EVERY)
    for step in range(round(seconds / EVERY)):
        if (left := begin + step * EVERY - now()) > 0:
            await asyncio.sleep(left)
        await chunk(range(step * size, (step + 1) * size))
    return round(seconds / EVERY) * size


def fill(client: AsyncTrackingClient, events: int) -> None:
    """Put `events` events into the buffer without a pause."""
    for number in range(events):
        client.track_nowait(View(session_external_id=VISITORS[number % len(VISITORS)], product_id=number))


class Callers:
    """Runs tasks that track events one after the other without end, so that a full buffer stays full.

    Args:
        client: the client to track with.
        count: the number of tasks.
    """

    def __init__(self, client: AsyncTrackingClient, count: int) -> None:
        self._client = client
        self._numbers = itertools.count()
        self._tasks = [asyncio.create_task(self._track_forever()) for _ in range(count)]

    async def _track_forever(self) -> None:
        while True:
            await view(self._client, next(self._numbers))

    async def stop(self) -> None:
        """Cancel all tasks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
