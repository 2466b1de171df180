"""If the loop ends or stops, waiting threads get an error; if a call is interrupted, its event is not accepted."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from retailrocket_async import Buffer, ClientClosedError, ThreadsafeHandle, WrongLoopError
from retailrocket_async._receipt import single_receipt
from tests.support.fakes import ScriptedTransport, event, make_client, turns
from tests.support.full_shop import ONE_BY_ONE, PARKED, Shop, full_shop, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Provide a pool of threads. After the test, wait until all threads have ended."""
    with ThreadPoolExecutor(4) as threads:
        yield threads


async def begun() -> None:
    """Wait until this loop has a task that runs the call of another thread."""
    await until(lambda: any("_Watched" in repr(task.get_coro()) for task in asyncio.all_tasks()))
    await turns()


def gets_the_error(waiting: Future[object]) -> bool:
    """Check that the waiting thread gets the `WrongLoopError` of a loop that does not run any more. Return True."""
    with pytest.raises(WrongLoopError, match="does not run, or has just ended"):
        waiting.result(60)
    return True


USES: dict[str, Callable[[ThreadsafeHandle], object]] = {
    "track": lambda handle: handle.track(event(2)),
    "track_many": lambda handle: handle.track_many([event(2), event(3)]),
    "wait": lambda handle: handle.wait(single_receipt("view")),
    "flush": lambda handle: handle.flush(),
}


@pytest.mark.filterwarnings("ignore:unclosed <AsyncTrackingClient:ResourceWarning")
@pytest.mark.parametrize("use", USES)
def test_the_loop_ends_while_a_thread_waits(use: str, threads: ThreadPoolExecutor) -> None:
    """If the loop ends while the client is open, waiting threads and later calls get an error."""

    async def main() -> tuple[ThreadsafeHandle, Future[object]]:
        client = make_client(ScriptedTransport(then=PARKED), batching=ONE_BY_ONE, buffer=Buffer(max_events=1))
        handle = client.threadsafe()
        await client.track(event(0))
        await until(lambda: client.stats().in_flight)
        await client.track(event(1))
        waiting = threads.submit(USES[use], handle)
        await begun()
        return handle, waiting

    handle, waiting = asyncio.run(main())

    assert gets_the_error(waiting)
    assert gets_the_error(threads.submit(USES[use], handle))
    # The open client is garbage-collected here, because its `ResourceWarning` would make a later test fail.
    del handle, waiting
    gc.collect()


def test_the_loop_is_closed_while_a_thread_waits(threads: ThreadPoolExecutor) -> None:
    """If the loop is closed without cancelling its tasks, a waiting thread gets an error."""

    async def main() -> Future[object]:
        async with make_client(ScriptedTransport()) as client:
            waiting = threads.submit(USES["wait"], client.threadsafe())
            await begun()
        return waiting

    loop = asyncio.new_event_loop()
    waiting = loop.run_until_complete(main())
    loop.close()

    assert gets_the_error(waiting)


def test_the_loop_stops_while_a_thread_waits(threads: ThreadPoolExecutor) -> None:
    """If the loop stops, a waiting thread gets an error; its event is not accepted even if the loop runs again."""

    async def first() -> tuple[Shop, Future[object]]:
        shop = Shop()
        await shop.client.track(event(0))
        await until(lambda: shop.transport.parked)
        await shop.client.track(event(1))
        waiting = threads.submit(USES["track"], shop.handle)
        await until(lambda: shop.waiting)
        return shop, waiting

    async def second(shop: Shop) -> None:
        await until(lambda: not shop.waiting)
        shop.open()
        await shop.client.aclose()

    with asyncio.Runner() as runner:
        shop, waiting = runner.run(first())
        # Between the two `run` calls the loop is stopped, but not closed.
        assert gets_the_error(waiting)
        runner.run(second(shop))

    assert [0, 1] == shop.transport.recorded_numbers


def test_after_a_close_the_end_of_the_loop_is_no_news(threads: ThreadPoolExecutor) -> None:
    """If client and loop have ended, `track` raises `ClientClosedError` and `flush` raises `WrongLoopError`."""

    async def main() -> ThreadsafeHandle:
        async with make_client(ScriptedTransport()) as client:
            return client.threadsafe()

    handle = asyncio.run(main())

    with pytest.raises(ClientClosedError):
        threads.submit(handle.track, event(1)).result(60)
    assert gets_the_error(threads.submit(USES["flush"], handle))


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signal for a thread")
def test_an_interrupted_call_is_withdrawn(threads: ThreadPoolExecutor) -> None:
    """If a signal handler raises in a waiting thread (like Celery's soft time limit), the event is not accepted."""
    made: Future[ThreadsafeHandle] = Future()

    class SoftTimeLimit(Exception):  # noqa: N818 - as Celery has it
        pass

    def interrupt(*_: object) -> None:
        raise SoftTimeLimit

    async def main() -> list[int]:
        async with full_shop() as shop:
            made.set_result(shop.handle)
            await until(lambda: shop.waiting)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            await until(lambda: not shop.waiting)
        return shop.transport.recorded_numbers

    previous = signal.signal(signal.SIGUSR1, interrupt)
    try:
        running = threads.submit(asyncio.run, main())
        with pytest.raises(SoftTimeLimit):
            made.result(60).track(event(2))
        recorded = running.result(60)
    finally:
        signal.signal(signal.SIGUSR1, previous)

    assert [0, 1] == recorded
