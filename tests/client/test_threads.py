"""Other threads use the client through a handle, whose methods work as the client's own methods do."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async import (
    AsyncTrackingClient,
    Batching,
    Buffer,
    BufferFullError,
    ClientClosedError,
    Delivered,
    Dropped,
    EventValidationError,
    FlushTimeoutError,
    HandleTimeoutError,
    Receipt,
    Rejected,
    ThreadsafeHandle,
    View,
    WrongLoopError,
)
from retailrocket_async._receipt import single_receipt
from retailrocket_async.emulator import Settings, emulator_process
from tests.support.fakes import OK, ScriptedTransport, event, make_client
from tests.support.full_shop import AT_ONCE, ONE_BY_ONE, PARKED, full_shop, until
from tests.support.raw_server import OK as RAW_OK
from tests.support.raw_server import Arrived, raw_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from retailrocket_async import Event, Outcome

# --- what the handle promises ---


@pytest.mark.parametrize("kind", [list, iter])
async def test_a_threads_events_stay_in_order(kind: Callable[[list[Event]], Any]) -> None:
    """If one thread tracks events, singly or in lists, the events are accepted in the order of the calls."""
    transport = ScriptedTransport(then=AT_ONCE)
    async with make_client(transport, batching=Batching(max_in_flight=1)) as client:
        handle = client.threadsafe()

        def work() -> list[Receipt]:
            some = [handle.track(event(number)) for number in range(300)]
            return some + handle.track_many(kind([event(number) for number in range(300, 777)]))

        receipts = await asyncio.to_thread(work)

    assert list(range(777)) == transport.recorded_numbers
    assert [Delivered] * 777 == [type(receipt.outcome) for receipt in receipts]


@pytest.mark.untraced
async def test_every_event_of_every_thread_is_recorded_once() -> None:
    """If eight threads track 2,000 events each, singly or in lists, the server records each event exactly once."""

    def work(handle: ThreadsafeHandle, number: int) -> int:
        events = [View(session_external_id=f"thread{number}", product_id=product) for product in range(2_000)]
        if number % 2:
            return len(handle.track_many(events))
        return len([handle.track(event) for event in events])

    with emulator_process(Settings(limit=None)) as emulator:
        async with AsyncTrackingClient("dev-api-key", "dev-partner", base_url=emulator.url, rate_limit=None) as client:
            handle = client.threadsafe()
            accepted = await asyncio.gather(*(asyncio.to_thread(work, handle, number) for number in range(8)))
            await asyncio.to_thread(handle.flush)
            delivered = client.stats().delivered
        recorded = Counter(
            (record["fields"]["sessionExternalId"], record["fields"]["productId"]) for record in emulator.events()
        )

    assert ([2_000] * 8, 16_000) == (accepted, delivered)
    assert {(f"thread{number}", product): 1 for number in range(8) for product in range(2_000)} == recorded


async def test_a_slow_server_slows_the_threads_down() -> None:
    """If the buffer is full, threads wait, the buffer does not exceed its limit, and all events are delivered."""
    gate = asyncio.Event()
    most = 0

    def look() -> None:
        nonlocal most
        most = max(most, client.stats().pending)

    async def respond(_: Arrived, __: object) -> bytes:
        look()
        await gate.wait()
        look()
        return RAW_OK

    async with raw_server() as server:
        server.respond = respond
        client = AsyncTrackingClient(
            "key",
            "partner",
            base_url=server.url,
            rate_limit=None,
            batching=Batching(max_events=2, linger=0.0, max_in_flight=1),
            buffer=Buffer(max_events=4),
        )
        handle = client.threadsafe()
        threads = [
            asyncio.create_task(asyncio.to_thread(handle.track_many, [event(n, f"v{who}") for n in range(50)]))
            for who in range(3)
        ]
        await until(lambda: server.arrived and (client.stats().waiting, client.stats().pending) == (3, 4))
        accepted_until_then = client.stats().tracked
        gate.set()
        await asyncio.gather(*threads)
        report = await client.aclose()

    sent = [view["view"] for request in server.arrived for view in request.json]
    assert accepted_until_then <= 6
    assert most == 4
    assert report.stats.delivered == 150
    for who in range(3):
        assert list(range(50)) == [view["productId"] for view in sent if view["sessionExternalId"] == f"v{who}"]


async def test_the_hook_runs_in_the_calling_thread() -> None:
    """If a thread tracks an event, `before_send` runs in that thread and may change or drop the event, or raise."""
    asked_in: set[int] = set()

    def before_send(given: Event) -> Event | None:
        asked_in.add(threading.get_ident())
        match given:
            case View(product_id=1):
                return event(100)
            case View(product_id=2):
                return None
            case _:
                raise LookupError

    transport = ScriptedTransport()
    async with make_client(transport, before_send=before_send) as client:
        handle = client.threadsafe()

        def work() -> tuple[int, list[Receipt]]:
            return threading.get_ident(), handle.track_many([event(1), event(2), event(3)])

        thread, receipts = await asyncio.to_thread(work)
        await client.flush()

    assert {thread} == asked_in
    assert [Delivered, Dropped, Delivered] == [type(receipt.outcome) for receipt in receipts]
    assert [100, 3] == transport.recorded_numbers
    assert (3, 1) == (client.stats().tracked, client.stats().hook_errors)


@pytest.mark.parametrize(
    ("overflow", "expected"), [("raise", BufferFullError), ("drop_newest", Dropped(reason="overflow"))]
)
async def test_a_full_buffer_may_mean_something_else(overflow: Any, expected: object) -> None:
    """If the buffer is full and `overflow` is not ``"wait"``, a thread's `track` raises or drops the new event."""
    transport = ScriptedTransport(then=PARKED)
    bounds = Buffer(max_events=1, overflow=overflow)
    client = make_client(transport, batching=ONE_BY_ONE, buffer=bounds)
    await client.track(event(0))
    await until(lambda: transport.parked)
    await client.track(event(1))
    track = asyncio.to_thread(client.threadsafe().track, event(2))
    [result] = await asyncio.gather(track, return_exceptions=True)
    transport.then = AT_ONCE
    transport.release()
    await client.aclose()

    assert expected == (result.outcome if isinstance(result, Receipt) else type(result))


# --- outcomes ---


async def test_waiting_for_an_outcome() -> None:
    """If a thread calls `wait` with a receipt, `wait` returns the outcome, immediately if it is already set."""
    transport = ScriptedTransport(200, 400)
    async with make_client(transport, batching=ONE_BY_ONE) as client:
        handle = client.threadsafe()

        def work() -> list[Outcome]:
            return [handle.wait(handle.track(event(number))) for number in (1, 2)]

        outcomes = await asyncio.to_thread(work)
        there = await client.track(event(3))
        outcome = await there

        assert handle.wait(there) is outcome
    assert [Delivered, Rejected] == [type(outcome) for outcome in outcomes]
    assert handle.wait(there) is outcome


# --- mistakes ---


async def test_the_loops_own_thread_is_refused() -> None:
    """If the loop's own thread uses the handle, `WrongLoopError` is raised: the call would block the loop for ever."""
    async with make_client(ScriptedTransport(then=OK)) as client:
        handle = client.threadsafe()
        uses: list[Callable[[], object]] = [
            lambda: handle.track(event(1)),
            lambda: handle.track_many([event(1)]),
            lambda: handle.wait(single_receipt("view")),
            handle.flush,
        ]
        for use in uses:
            with pytest.raises(WrongLoopError, match=r"own thread.* await the client's own methods"):
                use()

    assert 0 == client.stats().tracked


def test_a_handle_is_made_in_the_loop() -> None:
    """If no event loop runs, `threadsafe` raises `WrongLoopError`."""
    with pytest.raises(WrongLoopError, match="no event loop runs"):
        make_client(ScriptedTransport()).threadsafe()


async def test_a_bad_event_is_refused_in_its_thread() -> None:
    """If an event of a list is invalid, the calling thread gets the error; the list's earlier events are accepted."""
    transport = ScriptedTransport()
    async with make_client(transport) as client:
        handle = client.threadsafe()
        no_event: Any = "no event"

        def broken() -> Iterator[Event]:
            yield event(3)
            raise LookupError

        with pytest.raises(EventValidationError):
            await asyncio.to_thread(handle.track, no_event)
        with pytest.raises(EventValidationError):
            await asyncio.to_thread(handle.track_many, [event(1), event(2), no_event, event(9)])
        with pytest.raises(LookupError):
            await asyncio.to_thread(handle.track_many, broken())
        assert [] == await asyncio.to_thread(handle.track_many, [])

    assert [1, 2, 3] == transport.recorded_numbers


async def test_a_closed_client_is_refused() -> None:
    """If the client is closed, the handle raises `ClientClosedError`, also in threads that wait for space."""
    async with full_shop() as shop:
        threads = [asyncio.create_task(asyncio.to_thread(shop.handle.track, event(n))) for n in (2, 3, 4)]
        await until(lambda: shop.waiting == 3)
        closing = asyncio.create_task(shop.client.aclose())
        waited = await asyncio.gather(*threads, return_exceptions=True)
        with pytest.raises(ClientClosedError):
            await asyncio.to_thread(shop.handle.track, event(5))
        shop.open()
        await closing
        await asyncio.to_thread(shop.handle.flush)

    assert [ClientClosedError] * 3 == [type(error) for error in waited]
    assert [0, 1] == shop.transport.recorded_numbers


async def test_an_unclosed_client_warns_with_its_handle() -> None:
    """If an open client and then its handle are deleted, deleting the handle causes a `ResourceWarning`."""
    client = make_client(ScriptedTransport(then=PARKED), batching=ONE_BY_ONE, buffer=Buffer(max_events=1))
    handle = client.threadsafe()

    def work(handle: ThreadsafeHandle) -> None:
        with pytest.raises(HandleTimeoutError):
            handle.track_many([event(1), event(2), event(3)], 0.01)
        with pytest.raises(FlushTimeoutError):
            handle.flush(0.01)
        with pytest.raises(EventValidationError):
            handle.track("no event")  # type: ignore[arg-type]

    # The end of this block waits until the thread has ended, because a running thread may still refer to the handle.
    with ThreadPoolExecutor(1) as thread:
        await asyncio.get_running_loop().run_in_executor(thread, work, handle)
    with pytest.raises(WrongLoopError):
        handle.flush()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del client
        with pytest.warns(ResourceWarning, match="unclosed <AsyncTrackingClient"):
            del handle
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, StopIteration])
@pytest.mark.parametrize("kind", [list, iter])
async def test_an_iterable_may_raise_anything(error: type[BaseException], kind: Callable[[list[Event]], Any]) -> None:
    """If the iterable raises any error, `track_many` raises this error; the events before the error are accepted."""

    class Breaking(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield from (event(number) for number in range(3))
            raise error

    events: Any = Breaking([None] * 4) if kind is list else iter(Breaking())
    transport = ScriptedTransport(then=AT_ONCE)
    async with make_client(transport) as client:
        handle = client.threadsafe()
        caught: list[type[BaseException]] = []

        def work() -> None:
            try:
                handle.track_many(events)
            except BaseException as raised:  # noqa: BLE001 - the test raises any error
                caught.append(type(raised))

        await asyncio.to_thread(work)

    assert list(range(3)) == transport.recorded_numbers
    # `Breaking.__iter__` is a generator, and Python turns a `StopIteration` in a generator into a `RuntimeError`.
    assert [RuntimeError if error is StopIteration else error] == caught
