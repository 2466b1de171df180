"""A client whose buffer is full, so that callers of `track` must wait."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from retailrocket_async import Batching, Buffer
from tests.support.fakes import ScriptedTransport, Step, event, make_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

AT_ONCE = Step(latency=0.0)
PARKED = Step(latency=0.0, parked=True)
ONE_BY_ONE = Batching(max_events=1, linger=0.0, max_in_flight=1)


async def until(holds: Callable[[], object]) -> None:
    """Wait until `holds` returns a true value, for at most 60 seconds."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - a change by a thread sets no event
            await asyncio.sleep(0.001)


class Shop:
    """Makes a client whose server does not answer before `open` is called, and whose buffer has space for one event."""

    def __init__(self) -> None:
        self.transport = ScriptedTransport(then=PARKED)
        self.client = make_client(self.transport, batching=ONE_BY_ONE, buffer=Buffer(max_events=1))
        self.handle = self.client.threadsafe()

    def open(self) -> None:
        """Answer all requests from now on, waiting requests included."""
        self.transport.then = AT_ONCE
        self.transport.release()

    @property
    def waiting(self) -> int:
        """The number of calls that wait for space in the buffer."""
        return self.client.stats().waiting


@asynccontextmanager
async def full_shop() -> AsyncIterator[Shop]:
    """Yield a `Shop` whose event 0 is in flight and whose event 1 fills the buffer; close the client at the end."""
    shop = Shop()
    await shop.client.track(event(0))
    await until(lambda: shop.transport.parked)
    await shop.client.track(event(1))
    yield shop
    shop.open()
    await shop.client.aclose()
