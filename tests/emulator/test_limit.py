"""The emulator's request limit, its latency and its arrival jitter (a random delay), over real HTTP."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Any

import httpx
import orjson

from retailrocket_async.emulator import Emulator, Settings, running_emulator
from retailrocket_async.emulator._wire import WireProtocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

KEYS = {"apiKey": "dev-api-key", "partnerId": "dev-partner"}
VIEW: dict[str, Any] = {"sessionExternalId": "s1", "productId": 123456}


async def until(holds: Callable[[], object]) -> None:
    """Let the event loop run until `holds` returns True, for at most 10 s."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - the ledger has no event to wait for
            await asyncio.sleep(0)


async def test_the_limit_is_kept_to_the_request() -> None:
    """If more than `limit` requests arrive in one window, exactly `limit` are admitted; the other requests get 429."""
    async with (
        running_emulator(Settings(limit=5, per=60)) as emulator,
        httpx.AsyncClient(base_url=emulator.url, params=KEYS, trust_env=False) as client,
    ):
        responses = await asyncio.gather(*[client.post("view", json=VIEW) for _ in range(12)])
        statuses = sorted(response.status_code for response in responses)
        stats = emulator.stats()

    assert ([200] * 5 + [429] * 7, 7, 12, 5) == (
        statuses,
        stats["over_limit"],
        stats["worst_window"],
        stats["total_events"],
    )


async def test_requests_without_the_key_take_no_place_but_count_as_arrivals() -> None:
    """If the key is wrong, the request does not use up the limit but counts as an arrival; a GET does not count."""
    async with (
        running_emulator(Settings(limit=1, per=60)) as emulator,
        httpx.AsyncClient(base_url=emulator.url, trust_env=False) as client,
    ):
        await client.post("view", json=VIEW)
        await client.post("nothing", json=VIEW)
        await client.get("view")
        response = await client.post("view", params=KEYS, json=VIEW)

    assert (200, 3) == (response.status_code, emulator.stats()["worst_window"])


async def test_the_limit_is_decided_on_arrival() -> None:
    """If a request's head arrives, the request counts against the limit before its body is read."""
    body = orjson.dumps(VIEW)
    head = b"POST /1.0/view?apiKey=dev-api-key&partnerId=dev-partner HTTP/1.1\r\nHost: e\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with (
        running_emulator(Settings(limit=1, per=60)) as emulator,
        httpx.AsyncClient(base_url=emulator.url, params=KEYS, trust_env=False) as client,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(emulator.url).port)
        writer.write(head)
        await until(lambda: emulator.stats()["in_flight"])
        second = await client.post("view", json=VIEW)
        writer.write(body)
        first = await reader.readline()
        writer.close()
        await writer.wait_closed()

    assert (b"HTTP/1.1 200 OK\r\n", 429) == (first, second.status_code)


async def test_latency_comes_after_recording() -> None:
    """If `latency` is set, an event is recorded immediately and answered later."""
    async with (
        running_emulator(Settings(latency=0.05)) as emulator,
        httpx.AsyncClient(base_url=emulator.url, params=KEYS, trust_env=False) as client,
    ):
        begun = perf_counter()
        answer = asyncio.ensure_future(client.post("view", json=VIEW))
        await until(emulator.events)
        answered = answer.done()
        response = await answer

    assert (False, 200, True) == (answered, response.status_code, perf_counter() - begun >= 0.05)


async def test_jitter_puts_off_the_arrival() -> None:
    """If `arrival_jitter` is set, requests are counted after a random delay that the seed determines."""
    settings = Settings(arrival_jitter=0.1, seed=42)
    delay = Emulator(settings).jitter()
    async with (
        running_emulator(settings) as emulator,
        httpx.AsyncClient(base_url=emulator.url, params=KEYS, trust_env=False) as client,
    ):
        before = emulator.emulator.wall(emulator.emulator.now())
        await client.post("view", json=VIEW)
        (record,) = emulator.requests()

    assert record.time - before >= delay > 0


async def test_a_request_arrives_when_its_head_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the loop is busy after a request's head was read, the arrival time is still the time of the reading."""
    read: list[float] = []
    async with (
        running_emulator() as emulator,
        httpx.AsyncClient(base_url=emulator.url, params=KEYS, trust_env=False) as client,
    ):
        handle_events = WireProtocol.handle_events

        def noting(protocol: WireProtocol) -> None:
            handle_events(protocol)
            read.append(emulator.emulator.wall(emulator.emulator.now()))

        monkeypatch.setattr(WireProtocol, "handle_events", noting)
        begun = emulator.emulator.wall(emulator.emulator.now())
        await client.post("view", json=VIEW)
        (record,) = emulator.requests()

    assert begun <= record.time <= read[0]


def test_arrivals_never_run_backwards() -> None:
    """If a request's time is before the previous arrival, the request gets the time of the previous arrival."""
    emulator = Emulator(Settings())
    last = emulator.arrival(emulator.now() + 600)

    assert (last, last) == (emulator.arrival(last - 1), emulator.arrival(None))
