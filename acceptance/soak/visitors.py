"""The events of the soak: all kinds and sizes, tracked as fast as the client accepts them."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import TYPE_CHECKING

from acceptance.support.shop import Shop
from retailrocket_async import BufferFullError, DeliveryError, RejectedError

if TYPE_CHECKING:
    from retailrocket_async import AsyncTrackingClient, Event, Receipt

_RECEIPTS = 50_000
"""Greatest number of stored receipts: more than the events in the buffer and in flight."""

_DIRECT = 8
"""Greatest number of direct sends in flight."""


class Visitors:
    """Tracks events, and stores each outcome as one byte instead of a receipt.

    Args:
        events: the number of events.
        seed: the seed of the events' random kinds and sizes.

    Attributes:
        shop: makes the events and keeps their outcomes.
        settled: the number of events that have an outcome.
        poisoned: the number of events that the server refuses.
        direct: the number of events sent without the buffer.
        raised: the number of direct sends that were not delivered.
    """

    def __init__(self, events: int, seed: int) -> None:
        self.shop = Shop(seed)
        self.settled = 0
        self.poisoned = 0
        self.direct = 0
        self.raised = 0
        self._events = events
        self._random = random.Random(seed)
        self._receipts: deque[tuple[int, Receipt]] = deque()
        self._fewer = asyncio.Event()
        self._more = asyncio.Event()
        self._finished = False
        self._places = asyncio.Semaphore(_DIRECT)

    async def run(self, client: AsyncTrackingClient) -> None:
        """Track all events; return when the last one is accepted or sent."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._events):
                chance = self._random.random()
                direct = chance < 0.001
                # A direct send begins in a task, so a later event may be tracked before it. The server judges the order
                # by the events' numbers, so direct sends have other visitors than tracked events.
                number, event = self._next("direct" if direct else "")
                if direct:
                    await self._places.acquire()
                    group.create_task(self._send(client, number, event))
                    continue
                if len(self._receipts) >= _RECEIPTS:
                    self._fewer.clear()
                    await self._fewer.wait()
                self._receipts.append((number, await self._track(client, event, nowait=chance < 0.2)))
                self._more.set()

    async def settle(self) -> None:
        """Store the outcomes in order; return when `finish` was called and all events have outcomes."""
        while not self._finished or self._receipts:
            if not self._receipts:
                self._more.clear()
                await self._more.wait()
                continue
            number, receipt = self._receipts[0]
            self.shop.settle(number, await receipt)
            self._receipts.popleft()
            self.settled += 1
            if self.settled % 200 == 0:
                # Awaiting a receipt that is already settled does not let other tasks run, so the loop yields here.
                self._fewer.set()
                await asyncio.sleep(0)

    def finish(self) -> None:
        """Announce that no more events will be tracked."""
        self._finished = True
        self._more.set()

    def give_up(self) -> None:
        """Store the present outcomes of all remaining events: None for events that have no outcome yet."""
        for number, receipt in self._receipts:
            self.shop.settle(number, receipt.outcome)

    def _next(self, group: str) -> tuple[int, Event]:
        chance = self._random.random()
        if chance < 1 / 3000:
            self.poisoned += 1
            return self.shop.event(poison=True, group=group)
        # One event in fifty is large.
        padding = self._random.randrange(200, 4000) if chance > 0.98 else 0
        return self.shop.event(padding=padding, group=group)

    async def _track(self, client: AsyncTrackingClient, event: Event, *, nowait: bool) -> Receipt:
        if nowait:
            try:
                return client.track_nowait(event)
            except BufferFullError:
                pass
        return await client.track(event)

    async def _send(self, client: AsyncTrackingClient, number: int, event: Event) -> None:
        try:
            self.shop.settle(number, await client.send(event))
        except DeliveryError as error:
            if isinstance(error, RejectedError) and error.status not in (400, 413):
                # Unlike a batch, a direct send does not wait until the key is valid again, so the refusal may be right.
                self.shop.bad.add(number)
            self.shop.settle(number, error.outcome)
            self.raised += 1
        finally:
            self._places.release()
        self.settled += 1
        self.direct += 1
