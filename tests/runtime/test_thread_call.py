"""`call_in_thread` runs one call in a new thread, even if all threads of the loop's pool are busy."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from retailrocket_async import AsyncTrackingClient, Batching, Buffer, Delivered, View
from retailrocket_async._runtime.thread_call import call_in_thread
from tests.support.raw_server import raw_server


async def test_it_returns_and_raises() -> None:
    """If a function is called in a thread, its result is returned or its error raised."""
    assert await call_in_thread(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await call_in_thread(lambda: 1 / 0)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await call_in_thread(lambda: next(iter(())))


async def test_it_sees_the_callers_context() -> None:
    """If the caller has set a context variable, the function sees the variable's value in its thread."""
    variable = contextvars.ContextVar("variable", default="none")
    variable.set("mine")

    assert await call_in_thread(variable.get) == "mine"


async def test_a_cancelled_caller_gets_no_result() -> None:
    """If the caller is cancelled, it stops waiting immediately, and the function's result is ignored."""
    go_on = threading.Event()
    calling = asyncio.create_task(call_in_thread(go_on.wait))
    await asyncio.sleep(0)
    calling.cancel()
    await asyncio.wait({calling})
    go_on.set()

    assert calling.cancelled()
    assert await call_in_thread(lambda: 1) == 1


def test_a_closed_loop_gets_no_result() -> None:
    """If a function returns after its loop was closed, no error is raised or logged."""
    go_on, ended = threading.Event(), threading.Event()

    def late() -> None:
        go_on.wait()
        threading.current_thread().__class__  # noqa: B018 - some work of the function
        ended.set()

    async def begin() -> None:
        asyncio.create_task(call_in_thread(late))  # noqa: RUF006 - nobody waits for the task
        await asyncio.sleep(0)

    asyncio.run(begin())
    go_on.set()

    assert ended.wait(60)


async def test_threads_that_wait_for_room_do_not_keep_the_client_from_opening() -> None:
    """If all threads of the loop's pool wait for space in the buffer, the client still opens its connections."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(2))
    async with raw_server() as server:
        batching, buffer = Batching(max_events=2, linger=0.0), Buffer(max_events=2)
        client = AsyncTrackingClient(lambda: "key", "partner", base_url=server.url, batching=batching, buffer=buffer)
        async with client:
            handle = client.threadsafe()

            def work() -> list[object]:
                return [handle.wait(handle.track(View(session_external_id="visitor", product_id=1))) for _ in range(5)]

            done = await asyncio.gather(*(asyncio.to_thread(work) for _ in range(4)))

    assert all(isinstance(outcome, Delivered) for outcomes in done for outcome in outcomes)
