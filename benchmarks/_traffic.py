"""Who keeps a client busy: at a pace, or without end."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

from _contestants import LIFTED, VISITORS, WARM_UP

from retailrocket_async import AsyncTrackingClient, RateLimit, Receipt, View

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

RATE = 20_000
"""Events a second of a shop that is busy: four fifths of what default caps and limit let through."""

EVERY = 0.005
"""Seconds between two chunks of events: as requests of many visitors come together."""

FULL_STREAM = 25_000
"""Events a second that default caps and limit let through at most: 50 requests with 500 events each."""

_WARM_UP_PRODUCT = 10**9
"""Warm-up events have products from here on, so that they are told from those that count."""


def client(port: int, *, lifted: bool = False, **options: Any) -> AsyncTrackingClient:
    """Return a client of the server at `port`; without its limit where that is not what is measured."""
    if lifted:
        options["rate_limit"] = RateLimit(requests=LIFTED)
    return AsyncTrackingClient("k", "p", base_url=f"http://127.0.0.1:{port}/1.0/", **options)


async def view(client: AsyncTrackingClient, number: int) -> Receipt:
    """Track the view that is known by `number`: its product."""
    return await client.view(session_external_id=VISITORS[number % len(VISITORS)], product_id=number)


async def warm(client: AsyncTrackingClient, events: int = WARM_UP) -> None:
    """Send some events, so that imports, caches and the connection are there."""
    for number in range(events):
        await view(client, _WARM_UP_PRODUCT + number)
    await client.flush()


async def paced(chunk: Callable[[range], Awaitable[None]], *, seconds: float, rate: int = RATE) -> int:
    """Call `chunk` with the numbers of the next events, `rate` a second; return how many there were.

    What is late is made up for, so that a slow client is not given less to do.
    """
    now = asyncio.get_running_loop().time
    begin, size = now(), round(rate * EVERY)
    for step in range(round(seconds / EVERY)):
        if (left := begin + step * EVERY - now()) > 0:
            await asyncio.sleep(left)
        await chunk(range(step * size, (step + 1) * size))
    return round(seconds / EVERY) * size


def fill(client: AsyncTrackingClient, events: int) -> None:
    """Put so many events in the buffer, at once."""
    for number in range(events):
        client.track_nowait(View(session_external_id=VISITORS[number % len(VISITORS)], product_id=number))


class Callers:
    """Tasks that each track one event after the other without end, so that a full buffer stays so.

    Args:
        client: whose buffer it is.
        count: how many of them.
    """

    def __init__(self, client: AsyncTrackingClient, count: int) -> None:
        self._client = client
        self._numbers = itertools.count()
        self._tasks = [asyncio.create_task(self._go_on()) for _ in range(count)]

    async def _go_on(self) -> None:
        while True:
            await view(self._client, next(self._numbers))

    async def stop(self) -> None:
        """End them all."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
