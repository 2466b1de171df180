"""Emulators in the current event loop: `running_emulator` runs one during a block, and `serve` until a signal."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest

import retailrocket_async.emulator as package
from retailrocket_async.emulator import Fault, RunningEmulator, Settings, running_emulator, serve

if TYPE_CHECKING:
    from collections.abc import Callable

KEYS = {"apiKey": "dev-api-key", "partnerId": "dev-partner"}
VIEW: dict[str, Any] = {"sessionExternalId": "s1", "productId": 123456}


async def post(emulator: RunningEmulator, **options: Any) -> httpx.Response:
    """Post one view over a new connection. Return the response."""
    async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
        return await client.post(f"{emulator.url}view", params=KEYS, json=VIEW, **options)


async def until(holds: Callable[[], object]) -> None:
    """Let the event loop run until `holds` returns True, for at most 10 s."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - the ledger has no event to wait for
            await asyncio.sleep(0)


def test_public_names_are_sorted_and_there() -> None:
    """The package's `__all__` is sorted, and every name in `__all__` exists."""
    names = [name for name in package.__all__ if hasattr(package, name)]

    assert sorted(names) == package.__all__


async def test_urls_lead_to_both_sides() -> None:
    """If the emulator runs, its handle has the base URLs of the API and of the control side."""
    async with running_emulator() as emulator:
        port = httpx.URL(emulator.root).port

    assert (f"http://127.0.0.1:{port}/1.0/", f"http://127.0.0.1:{port}/_control/") == (
        emulator.url,
        emulator.control_url,
    )


async def test_many_emulators_run_side_by_side() -> None:
    """If several emulators run in one process, they have separate ports and states."""
    async with running_emulator() as one, running_emulator(Settings(forbidden=True)) as two:
        statuses = ((await post(one)).status_code, (await post(two)).status_code)

    assert (200, 403, 1, 0) == (*statuses, one.ledger.total_events, two.ledger.total_events)


async def test_the_handle_steers() -> None:
    """If the handle changes the settings or resets the emulator, the next requests are handled accordingly."""
    async with running_emulator() as emulator:
        emulator.configure(forbidden=True)
        refused = (await post(emulator)).status_code
        emulator.reset()
        emulator.configure(forbidden=False)
        accepted = (await post(emulator)).status_code

    assert (403, 200, False, [1]) == (
        refused,
        accepted,
        emulator.settings.forbidden,
        [record.number for record in emulator.requests(limit=5)],
    )


async def test_a_rotated_key_holds_at_once() -> None:
    """If the key is changed, the next request with the old key gets a 401, even on an open connection."""
    async with (
        running_emulator() as emulator,
        httpx.AsyncClient(base_url=emulator.url, timeout=10, trust_env=False) as client,
    ):

        async def status(key: str) -> int:
            return (await client.post("view", params=KEYS | {"apiKey": key}, json=VIEW)).status_code

        before = [await status("dev-api-key"), await status("new")]
        emulator.configure(api_key="new")
        after = [await status("dev-api-key"), await status("new"), await status("dev-api-key")]

    assert ([200, 401], [401, 200, 401], 2, ["apiKey is wrong"]) == (
        before,
        after,
        emulator.ledger.total_events,
        emulator.refused()[-1].reasons,
    )


async def test_a_key_is_judged_on_arrival() -> None:
    """If a request arrives before a change of the key, its old key is accepted, even if its body comes later."""
    async with running_emulator() as emulator:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(emulator.root).port)
        body = b'{"sessionExternalId": "s1", "productId": 1}'
        writer.write(
            b"POST /1.0/view?apiKey=dev-api-key&partnerId=dev-partner HTTP/1.1\r\nHost: e\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        await until(lambda: emulator.stats()["in_flight"])
        emulator.configure(api_key="new")
        late = (await post(emulator)).status_code
        writer.write(body)
        answer = await reader.readline()
        writer.close()
        await writer.wait_closed()

    assert (b"HTTP/1.1 200 OK\r\n", 401) == (answer, late)


async def test_a_taken_port_is_an_error() -> None:
    """If the port is in use, `OSError` is raised."""
    async with running_emulator() as emulator:
        with pytest.raises(OSError, match="address already in use"):
            async with running_emulator(port=httpx.URL(emulator.root).port or 0):
                pass


async def test_the_port_is_free_afterwards() -> None:
    """If the block has ended, the port is closed and can be used again immediately."""
    async with running_emulator() as emulator:
        await post(emulator)
    port = httpx.URL(emulator.root).port or 0
    with pytest.raises(httpx.ConnectError):
        await post(emulator)
    async with running_emulator(port=port) as again:
        response = await post(again)

    assert 200 == response.status_code


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (Settings(latency=600), None),
        (Settings(arrival_jitter=600, seed=1), None),
        (Settings(), {"kind": "stall"}),
        (Settings(), {"kind": "latency", "seconds": 600}),
        (Settings(), {"kind": "status", "seconds": 600}),
    ],
)
async def test_the_end_ends_every_wait(settings: Settings, fault: dict[str, Any] | None) -> None:
    """If the block ends, the connection of a pending request is broken within a second."""
    async with running_emulator(settings) as emulator:
        if fault is not None:
            emulator.faults.add(Fault.from_dict(fault))
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(emulator.root).port)
        writer.write(
            b"POST /1.0/view?apiKey=dev-api-key&partnerId=dev-partner HTTP/1.1\r\nHost: e\r\n"
            b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        )
        if settings.arrival_jitter:
            # The request is recorded only after its random delay, so the test cannot see its arrival. The answer to a
            # later request shows that the server has also read the first one.
            async with httpx.AsyncClient(trust_env=False) as client:
                await client.get(f"{emulator.control_url}stats")
        else:
            await until(lambda: emulator.stats()["in_flight"])
        begun = perf_counter()
    took = perf_counter() - begun
    answer = await asyncio.gather(reader.read(), return_exceptions=True)
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)

    assert (True, True) == (took < 1, answer[0] == b"" or isinstance(answer[0], ConnectionError))


async def test_the_end_closes_idle_connections() -> None:
    """If the block ends, idle connections are closed with FIN immediately."""
    async with running_emulator() as emulator:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(emulator.root).port)
        await post(emulator)
        begun = perf_counter()
    took = perf_counter() - begun
    rest = await reader.read()
    writer.close()
    await writer.wait_closed()

    assert (b"", True) == (rest, took < 1)


@pytest.mark.parametrize("turns", range(8))
async def test_the_end_leaves_no_connection_half_accepted(turns: int) -> None:
    """If a connection is accepted while the emulator ends, this connection is closed, too."""
    with socket.socket() as late:
        async with running_emulator() as emulator:
            late.connect(("127.0.0.1", httpx.URL(emulator.root).port))
            for _ in range(turns):
                await asyncio.sleep(0)
        late.setblocking(False)  # noqa: FBT003 - the socket's own interface
        async with asyncio.timeout(1):
            rest = await asyncio.gather(asyncio.get_running_loop().sock_recv(late, 1), return_exceptions=True)

    assert rest[0] == b"" or isinstance(rest[0], ConnectionResetError)


@pytest.mark.parametrize(("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("localhost", None), ("::1", "[::1]")])
async def test_the_url_can_be_reached(host: str, shown: str | None) -> None:
    """If the emulator listens on all addresses, on a host name or on IPv6, requests to its URL arrive."""
    try:
        async with running_emulator(host=host) as emulator:
            response = await post(emulator)
    except OSError:
        pytest.skip(f"{host} is no address of this machine")

    assert (200, True) == (response.status_code, shown is None or emulator.root.startswith(f"http://{shown}:"))


async def test_signals_and_loggers_are_left_alone() -> None:
    """If an emulator runs in the current loop, signal handlers and uvicorn's loggers are unchanged."""

    def state() -> list[object]:
        loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access")]
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return [*handlers, *[(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]]

    before = state()
    async with running_emulator() as emulator:
        await post(emulator)
        during = state()

    assert before == during


async def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """If requests and faults are handled, nothing is logged."""
    caplog.set_level(logging.INFO)
    async with running_emulator() as emulator:
        for kind in ("reset_before", "close_after", "garbage", "truncate"):
            emulator.faults.add(Fault.from_dict({"kind": kind}))
            await asyncio.gather(post(emulator), return_exceptions=True)
        await post(emulator)

    assert [] == [record for record in caplog.records if record.name.startswith("uvicorn")]


async def test_serving_ends_when_cancelled() -> None:
    """If `serve` is called, it calls `ready` and runs until it is cancelled."""
    running: list[RunningEmulator] = []
    task = asyncio.ensure_future(serve(ready=running.append))
    await until(lambda: running)
    response = await post(running[0])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert 200 == response.status_code


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself these signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_serving_ends_with_a_signal(number: signal.Signals) -> None:
    """If SIGINT or SIGTERM arrives, `serve` returns and restores the signal handlers that were set before."""
    before = signal.getsignal(number)
    running: list[RunningEmulator] = []
    task = asyncio.ensure_future(serve(ready=running.append))
    await until(lambda: running)
    os.kill(os.getpid(), number)
    await asyncio.wait_for(task, 10)

    assert before == signal.getsignal(number)


def test_serving_works_in_any_thread() -> None:
    """If `serve` runs outside the main thread, it sets no signal handlers."""
    running: list[RunningEmulator] = []

    async def briefly() -> None:
        task = asyncio.ensure_future(serve(ready=running.append))
        await until(lambda: running)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(briefly()))
    thread.start()
    thread.join(10)

    assert 1 == len(running)


async def test_ready_is_optional() -> None:
    """If `serve` is called without `ready`, the emulator still runs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    task = asyncio.ensure_future(serve(port=port))
    root = f"http://127.0.0.1:{port}"
    async with asyncio.timeout(10), httpx.AsyncClient(trust_env=False) as client:
        response = None
        while response is None:
            with suppress(httpx.ConnectError):
                response = await client.get(f"{root}/_control/stats")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert 200 == response.status_code
