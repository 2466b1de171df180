"""If a client, its loop or its process ends with undelivered events, their number is logged once."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import weakref
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from retailrocket_async import AsyncTrackingClient, Batching, RateLimit, SqliteSpool, View
from retailrocket_async.testing import RecordingClient

ROOT = Path(__file__).parents[2]
VIEW = View(session_external_id="a", product_id=1)
# No server listens at this address; the linger keeps the client from sending within the test.
NOWHERE = "http://127.0.0.1:9/"
LATE = Batching(linger=60.0)


def made(**options: Any) -> AsyncTrackingClient:
    """Return a client that sends nothing for a minute."""
    return AsyncTrackingClient("THE-KEY", "shop", base_url=NOWHERE, batching=LATE, **options)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages of all errors that were logged, except asyncio's own."""
    return [
        record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR and record.name != "asyncio"
    ]


async def tracked(client: AsyncTrackingClient, count: int = 7) -> AsyncTrackingClient:
    """Track `count` events, and return the client."""
    for _ in range(count):
        await client.track(VIEW)
    return client


def reported(how: str, count: int, what: str = "are lost") -> list[str]:
    """Return the list of messages that the log must contain."""
    return [
        f"{how} before the client was closed: {count} undelivered event(s) {what}; use 'async with', or await aclose()"
    ]


pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


def test_the_loop_is_closed_by_run(caplog: pytest.LogCaptureFixture) -> None:
    """If `asyncio.run` ends with events in the buffer, there is one record, and the client's own end adds none."""
    client = made()
    asyncio.run(tracked(client))

    assert reported("its event loop was closed", 7) == errors(caplog)
    del client
    gc.collect()
    assert len(errors(caplog)) == 1
    assert "THE-KEY" not in caplog.text


def test_the_loop_is_closed_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    """If a loop is closed and its tasks are not cancelled, the undelivered events are one record."""
    loop = asyncio.new_event_loop()
    client = made()
    loop.run_until_complete(tracked(client))
    loop.close()

    assert reported("its event loop was closed", 7) == errors(caplog)
    assert client.stats().pending == 7


async def test_the_client_is_collected(caplog: pytest.LogCaptureFixture) -> None:
    """If a client is garbage-collected while its loop runs, there is one record."""
    client = await tracked(made())
    del client
    gc.collect()

    assert reported("the client was garbage-collected", 7) == errors(caplog)


async def test_nothing_is_left(caplog: pytest.LogCaptureFixture) -> None:
    """If a client was closed, was never used, or has no undelivered event, nothing is logged."""
    async with made() as client:
        await client.track(VIEW)
        await client.aclose(timeout=0)
    before = len(errors(caplog))
    unused = made()
    used = made()
    used.threadsafe()
    del client, unused, used
    gc.collect()

    assert before == len(errors(caplog))


def test_what_was_in_flight_is_counted_in(caplog: pytest.LogCaptureFixture) -> None:
    """If the loop ends during a request, one log record counts the request's events and those that still wait."""

    async def main(client: AsyncTrackingClient) -> None:
        listening = await asyncio.start_server(lambda *_: asyncio.sleep(60), "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        client = clients[0] = AsyncTrackingClient(
            "key",
            "shop",
            base_url=f"http://127.0.0.1:{port}/",
            batching=Batching(max_events=5, max_in_flight=1, linger=0.0),
            rate_limit=RateLimit(requests=50),
        )
        await tracked(client, 12)
        while not client.stats().requests:  # noqa: ASYNC110 - nothing signals the beginning of a request
            await asyncio.sleep(0)

    clients: list[Any] = [None]
    asyncio.run(main(clients[0]))

    assert reported("its event loop was closed", 12) == errors(caplog)
    assert clients[0].stats().abandoned == 5


def test_a_spool_keeps_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If a client has a spool, the record says that the events are kept."""
    client = made(spool=SqliteSpool(tmp_path))
    asyncio.run(tracked(client))

    expected = reported("its event loop was closed", 7, "are in the spool, whose next user sends them")
    assert expected == errors(caplog)


def test_the_events_of_other_threads(caplog: pytest.LogCaptureFixture) -> None:
    """If threads track events by a handle, the record counts these events as well."""

    async def main() -> None:
        clients.append(made())
        await asyncio.to_thread(clients[0].threadsafe().track_many, [VIEW] * 3)

    clients: list[AsyncTrackingClient] = []
    asyncio.run(main())

    assert reported("its event loop was closed", 3) == errors(caplog)


def test_a_test_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """If a `RecordingClient` is open when its loop ends, no event is lost, and nothing is logged."""

    async def main() -> None:
        RecordingClient(batching=LATE).track_nowait(VIEW)

    asyncio.run(main())
    gc.collect()

    assert errors(caplog) == []


async def test_tasks_are_cancelled_and_the_loop_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """If other code cancels every task and the loop continues, the interrupted events are soon logged."""
    listening = await asyncio.start_server(lambda *_: asyncio.sleep(60), "127.0.0.1", 0)
    address = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
    client = AsyncTrackingClient("key", "shop", base_url=address, batching=Batching(linger=0.0))
    await tracked(client)
    while not client.stats().requests:  # noqa: ASYNC110 - nothing signals the beginning of a request
        await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    while not errors(caplog):  # noqa: ASYNC110 - nothing signals that a record was logged
        await asyncio.sleep(0.01)
    await client.aclose()
    listening.close()

    assert ["7 event(s): given up, cancelled: other code cancelled the tasks that sent them"] == [
        line.partition(" (logged once")[0] for line in errors(caplog)
    ]


def test_a_log_handler_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """If a log handler raises, the loop is still closed, and the events stay counted as pending."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError

    broken, logger = Broken(), logging.getLogger("retailrocket_async")
    logger.addHandler(broken)
    client = made()
    try:
        asyncio.run(tracked(client))
    finally:
        logger.removeHandler(broken)

    assert client.stats().pending == 7


def test_no_context_is_kept() -> None:
    """If a visitor's context is current at the first use, the object that watches the loop does not keep it."""

    class Visitor:
        pass

    variable: ContextVar[Visitor] = ContextVar("visitor")

    async def first(client: AsyncTrackingClient) -> weakref.ref[Visitor]:
        variable.set(visitor := Visitor())
        client.threadsafe()
        return weakref.ref(visitor)

    async def main() -> object:
        client = made()
        visitor = await asyncio.create_task(first(client))
        await asyncio.sleep(0)
        gc.collect()
        return visitor()

    assert asyncio.run(main()) is None


AT_EXIT = """
import asyncio, logging, os, sys, threading, warnings
warnings.simplefilter("ignore")
logging.basicConfig(format="%(levelname)s %(message)s")
from retailrocket_async import AsyncTrackingClient, Batching, View
VIEW = View(session_external_id="a", product_id=1)

def made():
    return AsyncTrackingClient("key", "shop", base_url="http://127.0.0.1:9/", batching=Batching(linger=60))

async def tracked(client, count=7):
    for _ in range(count):
        await client.track(VIEW)

client, loop = made(), asyncio.new_event_loop()
"""
EXITS = {
    "a loop that is left": ("loop.run_until_complete(tracked(client))", 1),
    "a loop in a daemon thread": (
        (
            "threading.Thread(target=loop.run_forever, daemon=True).start();"
            "asyncio.run_coroutine_threadsafe(tracked(client), loop).result()"
        ),
        1,
    ),
    "closed by a handler of the application": (
        (
            "import atexit; loop.run_until_complete(tracked(client));"
            "atexit.register(lambda: loop.run_until_complete(client.aclose(0)))"
        ),
        0,
    ),
    "a copy in a forked child": (
        (
            "loop.run_until_complete(tracked(client)); pid = os.fork();\n"
            "if pid == 0: sys.exit()\n"
            "os.waitpid(pid, 0); loop.run_until_complete(client.aclose(0))"
        ),
        0,
    ),
}


@pytest.mark.parametrize("name", sorted(EXITS))
def test_the_process_ends(name: str) -> None:
    """If the process ends with events left, there is one record, unless an exit handler closes the client first."""
    code, records = EXITS[name]

    done = subprocess.run([sys.executable, "-c", AT_EXIT + code], capture_output=True, text=True, check=True, cwd=ROOT)

    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR the process ended")]
    assert [f"ERROR {line}" for line in reported("the process ended", 7) * records] == lines
