"""If a call of a client's method is cancelled, no event is lost or sent twice, and no task or permit is left over."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async._outcome import Abandoned, Delivered
from retailrocket_async._queue.options import Batching, Buffer
from tests.support.cancelling import cancel
from tests.support.fakes import (
    OK,
    PARKED,
    RecordingLimiter,
    ScriptedTransport,
    event,
    make_client,
    tasks,
    turns,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from retailrocket_async import AsyncTrackingClient
    from tests.support.virtual_time import CheckedLoop


async def endless() -> AsyncIterator[Any]:
    """Yield an event, and then sleep for a very long time."""
    yield event(1)
    await asyncio.sleep(1e9)


METHODS: dict[str, Callable[[AsyncTrackingClient], Coroutine[Any, Any, Any]]] = {
    "track": lambda client: client.track(event(3)),
    "view": lambda client: client.view(session_external_id="a", product_id=3),
    "track_many": lambda client: client.track_many([event(3), event(4)]),
    "send": lambda client: client.send(event(3)),
    "send_batch": lambda client: client.send_batch([event(3), event(4)]),
    "flush": lambda client: client.flush(),
}


@pytest.mark.parametrize("method", METHODS)
async def test_client_method_cancelled(virtual_clock: CheckedLoop, method: str) -> None:
    """If a method is cancelled while it waits, its event is not sent; events accepted before the call are delivered."""
    transport = ScriptedTransport(then=PARKED)
    client = make_client(
        transport,
        batching=Batching(max_events=2, max_in_flight=1, linger=0.0),
        buffer=Buffer(max_events=1),
        limiter=(limiter := RecordingLimiter()),
    )
    receipts = [await client.track(event(1)), await client.track(event(2))]
    await asyncio.sleep(1.0)
    task = asyncio.create_task(METHODS[method](client))
    # The unanswered request times out after 10 s, so the sleeps must add up to less.
    await asyncio.sleep(1.0)
    await cancel(task)
    transport.then = OK
    transport.release()
    report = await client.aclose()

    assert [type(receipt.outcome) for receipt in receipts] == [Delivered, Delivered]
    assert sorted(transport.sent_numbers) == [1, 2]
    assert report.stats.tracked == 2 + {"send": 1, "send_batch": 2}.get(method, 0)
    assert limiter.open == 0
    assert tasks() == set()


@pytest.mark.parametrize("leave", ["aclose", "async with"])
async def test_client_close_cancelled(virtual_clock: CheckedLoop, leave: str) -> None:
    """If the closing of a client is cancelled, every event still gets an outcome."""
    client = make_client(ScriptedTransport(then=PARKED))

    async def block() -> None:
        async with client:
            pass

    receipt = await client.track(event(1))
    await asyncio.sleep(1.0)
    closing = asyncio.create_task(block() if leave == "async with" else client.aclose(None))
    await asyncio.sleep(1.0)
    await cancel(closing)
    assert isinstance(receipt.outcome, Abandoned)
    assert (receipt.outcome.reason, receipt.outcome.maybe_recorded) == ("closed", True)
    await turns(20)

    assert tasks() == set()


async def test_track_many_cancelled_in_the_feed(virtual_clock: CheckedLoop) -> None:
    """If `track_many` is cancelled while it waits for the caller's iterator, the events read before are delivered."""
    transport = ScriptedTransport()
    async with make_client(transport) as client:
        task = asyncio.create_task(client.track_many(endless()))
        await asyncio.sleep(1.0)
        await cancel(task)

    assert transport.recorded_numbers == [1]
