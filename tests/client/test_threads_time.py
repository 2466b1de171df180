"""If a thread's call times out, events that were not accepted in time are never accepted."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async import Buffer, ConfigurationError, Delivered, FlushTimeoutError, HandleTimeoutError
from retailrocket_async._receipt import single_receipt
from retailrocket_async._runtime.loop_call import LoopCall, TimeIsUpError
from tests.support.fakes import ScriptedTransport, Step, event, make_client, turns
from tests.support.full_shop import AT_ONCE, ONE_BY_ONE, PARKED, full_shop
from tests.support.internals import waiters_of

if TYPE_CHECKING:
    from collections.abc import Callable


async def test_no_room_in_time() -> None:
    """If there is no space in time, the call raises `HandleTimeoutError`, and the event is never accepted."""
    async with full_shop() as shop:
        with pytest.raises(HandleTimeoutError, match=r"no room within 0\.01 s: 0 event") as caught:
            await asyncio.to_thread(shop.handle.track, event(2), timeout=0.01)
        assert (0, 2, 0) == (caught.value.accepted, shop.client.stats().tracked, shop.waiting)
        shop.open()
        await asyncio.to_thread(shop.handle.track, event(3))

    assert [0, 1, 3] == shop.transport.recorded_numbers


async def test_no_room_for_some_in_time() -> None:
    """If `track_many` times out, the error says how many events were accepted; the rest is never accepted."""
    transport = ScriptedTransport(then=PARKED)
    client = make_client(transport, batching=ONE_BY_ONE, buffer=Buffer(max_events=4))
    handle = client.threadsafe()
    with pytest.raises(HandleTimeoutError, match="of this call were accepted, the next was not") as caught:
        await asyncio.to_thread(handle.track_many, [event(number) for number in range(9)], timeout=0.2)
    transport.then = AT_ONCE
    transport.release()
    await client.aclose()

    assert caught.value.accepted == client.stats().tracked <= 5
    assert list(range(caught.value.accepted)) == transport.recorded_numbers


async def test_timeout_zero_is_enough_if_there_is_room() -> None:
    """If the timeout is 0, an event is accepted if there is space, and refused otherwise."""
    transport = ScriptedTransport()
    async with make_client(transport) as client:
        receipt = await asyncio.to_thread(client.threadsafe().track, event(1), timeout=0)
    async with full_shop() as shop:
        with pytest.raises(HandleTimeoutError):
            await asyncio.to_thread(shop.handle.track, event(2), timeout=0)

    assert isinstance(receipt.outcome, Delivered)


async def test_time_that_passes_at_every_moment() -> None:
    """If calls time out at random points, the server records exactly the events whose calls did not time out."""
    transport = ScriptedTransport(then=Step(latency=0.001))
    client = make_client(transport, batching=ONE_BY_ONE, buffer=Buffer(max_events=1))
    handle = client.threadsafe()

    def work(who: int) -> set[int]:
        accepted = set()
        for number in range(who * 1_000, who * 1_000 + 150):
            try:
                handle.track(event(number), timeout=number % 10 / 2_000)
            except HandleTimeoutError:
                continue
            accepted.add(number)
        return accepted

    accepted = await asyncio.gather(*(asyncio.to_thread(work, who) for who in range(4)))
    await client.aclose()

    assert sorted(set().union(*accepted)) == sorted(transport.recorded_numbers)
    assert client.stats().tracked == client.stats().delivered


async def test_accepted_in_the_moment_in_which_the_time_passes() -> None:
    """If a call is withdrawn and already has a result, the result is returned; if not, the call is cancelled."""
    loop = asyncio.get_running_loop()
    room: list[asyncio.Future[str]] = []

    async def work() -> str:
        room.append(loop.create_future())
        return await room[-1]

    come, waits = LoopCall(loop, work), LoopCall(loop, work)
    for call in (come, waits):
        call.begin()
        await turns()
    room[0].set_result("accepted")
    for call in (come, waits):
        call.withdraw()
    await turns()

    assert come.answer.result(0) == "accepted"
    assert isinstance(waits.answer.exception(0), TimeIsUpError)
    assert room[1].cancelled()


async def test_waiting_has_an_end() -> None:
    """If `wait` or `flush` times out, it raises an error, and the events are still sent."""
    async with full_shop() as shop:
        receipt = single_receipt("view")
        with pytest.raises(HandleTimeoutError, match="goes on being sent"):
            await asyncio.to_thread(shop.handle.wait, receipt, 0.01)
        assert not waiters_of(receipt)
        with pytest.raises(FlushTimeoutError, match="go on being sent"):
            await asyncio.to_thread(shop.handle.flush, 0.01)
        shop.open()
        await asyncio.to_thread(shop.handle.flush, 60)
        assert shop.client.stats().delivered == 2


async def test_a_call_into_a_blocked_loop_ends_in_time() -> None:
    """If the loop is blocked, a call still times out, and its event is not accepted."""
    async with make_client(ScriptedTransport()) as client:
        handle = client.threadsafe()
        blocking, ended = threading.Event(), threading.Event()
        errors: list[Exception] = []

        def work() -> None:
            blocking.wait(60)
            try:
                handle.track(event(1), timeout=0.01)
            except HandleTimeoutError as error:
                errors.append(error)
            ended.set()

        thread = threading.Thread(target=work)
        thread.start()
        blocking.set()
        ended.wait(60)
        thread.join()
        await turns()

    assert 1 == len(errors)
    assert 0 == client.stats().tracked


@pytest.mark.parametrize("nonsense", [-1, float("nan"), "1", True])
async def test_a_timeout_is_a_number_of_seconds(nonsense: Any) -> None:
    """If the timeout is not a valid number of seconds, every method raises an error and changes nothing."""
    async with make_client(ScriptedTransport()) as client:
        handle = client.threadsafe()
        uses: list[Callable[[], object]] = [
            lambda: handle.track(event(1), timeout=nonsense),
            lambda: handle.track_many([event(1)], nonsense),
            lambda: handle.wait(single_receipt("view"), nonsense),
            lambda: handle.flush(nonsense),
        ]
        for use in uses:
            with pytest.raises(ConfigurationError, match="number of seconds"):
                await asyncio.to_thread(use)

    assert 0 == client.stats().tracked
