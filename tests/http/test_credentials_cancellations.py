"""If tasks are cancelled while a client waits for its key, every event still gets its outcome."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from retailrocket_async._outcome import Delivered
from tests.support.cancelling import cancel
from tests.support.fakes import (
    ScriptedTransport,
    event,
    make_client,
    tasks,
)

if TYPE_CHECKING:
    from retailrocket_async import AsyncTrackingClient
    from tests.support.virtual_time import CheckedLoop


class Asked:
    """A function for `api_key` that returns the key only after the event `given` is set."""

    def __init__(self) -> None:
        self.given = asyncio.Event()
        self.times = 0

    async def ask(self) -> str:
        """Wait, and return the key."""
        self.times += 1
        await self.given.wait()
        return "key"


async def client_that_asks(asked: Asked) -> tuple[AsyncTrackingClient, list[asyncio.Task[Any]], ScriptedTransport]:
    """Return a client, the tasks of two sends that wait for the client's key, and the client's transport."""
    transport = ScriptedTransport()
    client = make_client(transport, api_key=asked.ask)
    sends = [asyncio.create_task(client.send(event(number))) for number in (1, 2)]
    await asyncio.sleep(1.0)
    return client, sends, transport


async def test_cancelled_while_the_key_is_asked_for(virtual_clock: CheckedLoop) -> None:
    """If a request is cancelled while it waits for the key, it is not sent, and the other request gets the key."""
    asked = Asked()
    client, (first, second), transport = await client_that_asks(asked)
    await cancel(first)
    asked.given.set()
    assert isinstance(await second, Delivered)
    assert transport.recorded_numbers == [2]
    assert asked.times == 1
    report = await client.aclose()

    assert (report.stats.abandoned, report.stats.delivered) == (1, 1)
    assert tasks() == set()


async def test_asking_task_cancelled(virtual_clock: CheckedLoop) -> None:
    """If the call that fetches the key is cancelled, the waiting requests fetch the key again."""
    asked = Asked()
    client, sends, transport = await client_that_asks(asked)
    for task in tasks() - set(sends):
        if getattr(task.get_coro(), "__name__", "") == "_ask_now":
            await cancel(task)
    asked.given.set()
    assert [type(each) for each in await asyncio.gather(*sends)] == [Delivered] * 2
    assert sorted(transport.recorded_numbers) == [1, 2]
    assert asked.times == 2
    await client.aclose()

    assert tasks() == set()
