"""The crowd of the soak: many events of all kinds and sizes, tracked as fast as they are taken."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import TYPE_CHECKING

from _shop import Shop

from retailrocket_async import BufferFullError, DeliveryError, RejectedError

if TYPE_CHECKING:
    from retailrocket_async import AsyncTrackingClient, Event, Receipt

_OPEN = 50_000
"""Receipts kept at once: more than the buffer and the batches on their way hold."""

_DIRECT = 8
"""Direct sends at once."""


class Crowd:
    """Tracks events, and notes what becomes of each without keeping its receipt.

    Args:
        events: how many.
        seed: of their kinds and sizes.

    Attributes:
        shop: the books.
        settled: events that have their outcome.
        poisoned: events made so that the server refuses them.
        direct: events sent past the buffer.
        raised: of these, the ones that were not delivered.
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
        self._over = False
        self._places = asyncio.Semaphore(_DIRECT)

    async def run(self, client: AsyncTrackingClient) -> None:
        """Track them all; return when the last one is accepted or sent."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._events):
                number, event = self._next()
                chance = self._random.random()
                if chance < 0.001:
                    await self._places.acquire()
                    group.create_task(self._send(client, number, event))
                    continue
                if len(self._receipts) >= _OPEN:
                    self._fewer.clear()
                    await self._fewer.wait()
                self._receipts.append((number, await self._track(client, event, nowait=chance < 0.2)))
                self._more.set()

    async def settle(self) -> None:
        """Note one outcome after the other; return when all have theirs and `finish` was called."""
        while not self._over or self._receipts:
            if not self._receipts:
                self._more.clear()
                await self._more.wait()
                continue
            number, receipt = self._receipts[0]
            self.shop.settle(number, await receipt)
            self._receipts.popleft()
            self.settled += 1
            if self.settled % 200 == 0:
                # To await what is there already lets nobody else run.
                self._fewer.set()
                await asyncio.sleep(0)

    def finish(self) -> None:
        """Say that no more events come."""
        self._over = True
        self._more.set()

    def give_up(self) -> None:
        """Note that the events left have no outcome."""
        for number, receipt in self._receipts:
            self.shop.settle(number, receipt.outcome)

    def _next(self) -> tuple[int, Event]:
        chance = self._random.random()
        if chance < 1 / 3000:
            self.poisoned += 1
            return self.shop.event(poison=True)
        # One in fifty is larger than most, up to what is a large event here.
        return self.shop.event(padding=self._random.randrange(200, 4000) if chance > 0.98 else 0)

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
                # It does not wait until a key is mended, as batches do; the refusal says nothing of the event.
                self.shop.bad.add(number)
            self.shop.settle(number, error.outcome)
            self.raised += 1
        finally:
            self._places.release()
        self.settled += 1
        self.direct += 1
