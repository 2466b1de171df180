"""Simulated faults over real connections: what the client receives, and whether the request is recorded."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from retailrocket_async.emulator import Fault, RunningEmulator, Settings, create_app, running_emulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

KEYS = {"apiKey": "dev-api-key", "partnerId": "dev-partner"}
VIEW: dict[str, Any] = {"sessionExternalId": "s1", "productId": 123456}
REQUEST = (
    b"POST /1.0/view?apiKey=dev-api-key&partnerId=dev-partner HTTP/1.1\r\nHost: e\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
) % (len(orjson.dumps(VIEW)), orjson.dumps(VIEW))
BROKEN = ("reset_before", "reset_after", "close_before", "close_after", "close_idle", "truncate", "garbage")


async def until(holds: Callable[[], object]) -> None:
    """Let the event loop run until `holds` returns True, for at most 10 s."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - the ledger has no event to wait for
            await asyncio.sleep(0)


@pytest.fixture
async def emulator() -> AsyncIterator[RunningEmulator]:
    """Provide an emulator with the default settings, but without a limit."""
    async with running_emulator(Settings(limit=None)) as emulator:
        yield emulator


@pytest.fixture
async def client(emulator: RunningEmulator) -> AsyncIterator[httpx.AsyncClient]:
    """Provide an HTTP client for the emulator's API, with the right key and shop."""
    async with httpx.AsyncClient(base_url=emulator.url, params=KEYS, timeout=10, trust_env=False) as client:
        yield client


async def exchange(emulator: RunningEmulator, event: object = VIEW) -> bytes:
    """Post `event` over a plain socket. Return all bytes received until the connection ends."""
    body = orjson.dumps(event)
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(emulator.url).port)
    try:
        head = "POST /1.0/view?apiKey=dev-api-key&partnerId=dev-partner HTTP/1.1\r\nHost: e\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


@pytest.mark.parametrize("status", [204, 304, 307, 408, 429, 500, 502, 503, 504, 599])
async def test_any_status_is_answered_without_recording(
    emulator: RunningEmulator, client: httpx.AsyncClient, status: int
) -> None:
    """If the fault is `status`, one request gets this status and is not recorded; the next request succeeds."""
    emulator.fail_with("status", status=status)
    statuses = [(await client.post("view", json=VIEW)).status_code for _ in range(2)]

    assert ([status, 200], 1, {str(status): 1, "200": 1}) == (
        statuses,
        emulator.ledger.total_events,
        emulator.stats()["statuses"],
    )


@pytest.mark.parametrize("retry_after", ["2", "0.5", "Wed, 21 Oct 2015 07:28:00 GMT", "soon"])
async def test_retry_after_is_sent_as_it_is(
    emulator: RunningEmulator, client: httpx.AsyncClient, retry_after: str
) -> None:
    """If the fault has `retry_after`, the answer's header Retry-After has this text."""
    emulator.fail_with("status", status=429, retry_after=retry_after)
    response = await client.post("view", json=VIEW)

    assert (429, retry_after) == (response.status_code, response.headers["retry-after"])


async def test_a_redirect_tells_where(emulator: RunningEmulator, client: httpx.AsyncClient) -> None:
    """If the fault has a `location`, the answer's header Location has this text."""
    emulator.fail_with("status", status=307, location="http://elsewhere.example/")
    response = await client.post("view", json=VIEW)

    assert (307, "http://elsewhere.example/") == (response.status_code, response.headers["location"])


@pytest.mark.parametrize(("status", "body"), [(403, "нет <b>"), (429, ""), (503, '{"error": 1}'), (200, "no JSON")])
async def test_a_status_may_have_a_body(
    emulator: RunningEmulator, client: httpx.AsyncClient, status: int, body: str
) -> None:
    """If the fault has a `body`, the answer has this text as plain text."""
    emulator.fail_with("status", status=status, body=body)
    response = await client.post("view", json=VIEW)

    assert (status, body, "text/plain; charset=utf-8", 0) == (
        response.status_code,
        response.text,
        response.headers["content-type"],
        emulator.ledger.total_events,
    )


async def test_a_status_without_content_has_no_body(emulator: RunningEmulator, client: httpx.AsyncClient) -> None:
    """If the status is 204, the answer has no body, even if the fault has a `body`."""
    emulator.fail_with("status", status=204, body="text")
    responses = [await client.post("view", json=VIEW) for _ in range(2)]

    assert [(204, b""), (200, b"{}")] == [(response.status_code, response.content) for response in responses]


async def test_a_poisoned_event_is_refused_for_ever(emulator: RunningEmulator, client: httpx.AsyncClient) -> None:
    """If a fault has `contains` and `times` is None, every batch with this text is refused, and no other batch is."""
    emulator.fail_with("status", status=400, contains="777", times=None)
    poison, good = {"view": VIEW | {"productId": 777}}, {"view": VIEW}
    batches: list[list[dict[str, Any]]] = [[good, poison], [good], [poison], [poison, good], [good, good]]
    statuses = [(await client.post("visitorEvents", json=batch)).status_code for batch in batches]

    assert ([400, 200, 400, 400, 200], [VIEW] * 3) == (statuses, [event.fields for event in emulator.events()])


async def test_an_ambiguous_status_records_first(emulator: RunningEmulator, client: httpx.AsyncClient) -> None:
    """If a fault of kind `status` has `record`, the events are recorded before the answer with this status."""
    emulator.fail_with("status", status=500, record=True)
    response = await client.post("view", json=VIEW)

    assert (500, 1) == (response.status_code, emulator.ledger.total_events)


async def test_a_fault_strikes_whatever_the_request_is(emulator: RunningEmulator) -> None:
    """If a fault is pending, it also decides the answer to a request with a wrong key, path or method."""
    emulator.fail_with("status", times=3)
    async with httpx.AsyncClient(base_url=emulator.url, trust_env=False) as client:
        responses = [await client.post("view"), await client.post("nothing"), await client.get("view")]

    assert ([503] * 3, 0, ["status"] * 3) == (
        [response.status_code for response in responses],
        emulator.stats()["refused"],
        [record.fault for record in emulator.requests()],
    )


async def test_a_struck_request_keeps_its_place_under_the_limit() -> None:
    """If a fault applies to a request, the request still counts against the limit and as an arrival."""
    async with (
        running_emulator(Settings(limit=1, per=60)) as emulator,
        httpx.AsyncClient(base_url=emulator.url, params=KEYS, trust_env=False) as client,
    ):
        emulator.fail_with("status")
        statuses = [(await client.post("view", json=VIEW)).status_code for _ in range(2)]

    assert ([503, 429], 2) == (statuses, emulator.window.worst)


async def test_latency_puts_the_recording_off(emulator: RunningEmulator, client: httpx.AsyncClient) -> None:
    """If the fault is `latency`, the emulator waits, then records and answers as usual."""
    emulator.fail_with("latency", seconds=0.05)
    begun = perf_counter()
    answer = asyncio.ensure_future(client.post("view", json=VIEW))
    await until(lambda: emulator.requests() and emulator.requests()[0].fault)
    recorded_early = bool(emulator.events())
    response = await answer

    assert (False, 200, 1, True) == (
        recorded_early,
        response.status_code,
        emulator.ledger.total_events,
        perf_counter() - begun >= 0.05,
    )


async def test_any_fault_may_wait_first(emulator: RunningEmulator, client: httpx.AsyncClient) -> None:
    """If a fault has `seconds`, the fault takes effect after this number of seconds."""
    emulator.fail_with("status", seconds=0.05)
    begun = perf_counter()
    response = await client.post("view", json=VIEW)

    assert (503, True) == (response.status_code, perf_counter() - begun >= 0.05)


@pytest.mark.parametrize(("kind", "events"), [("reset_before", 0), ("reset_after", 1)])
async def test_a_reset_is_a_tcp_reset(emulator: RunningEmulator, kind: Any, events: int) -> None:
    """If the fault is `reset_before` or `reset_after`, the connection ends with RST before or after the recording."""
    emulator.fail_with(kind)
    with pytest.raises(ConnectionResetError):
        await exchange(emulator)

    assert (events, {"none": 1}) == (emulator.ledger.total_events, emulator.stats()["statuses"])


@pytest.mark.parametrize(("kind", "events"), [("close_before", 0), ("close_after", 1)])
async def test_a_close_is_an_orderly_end(emulator: RunningEmulator, kind: Any, events: int) -> None:
    """If the fault is `close_before` or `close_after`, the connection ends with FIN before or after the recording."""
    emulator.fail_with(kind)
    answer = await exchange(emulator)

    assert (b"", events) == (answer, emulator.ledger.total_events)


async def test_a_truncated_answer_promises_more_than_it_keeps(emulator: RunningEmulator) -> None:
    """If the fault is `truncate`, the request is recorded, but the answer ends before its announced length."""
    emulator.fail_with("truncate")
    head, _, body = (await exchange(emulator)).partition(b"\r\n\r\n")

    assert (True, True, b'{"', 1) == (
        head.startswith(b"HTTP/1.1 200 OK\r\n"),
        b"Content-Length: 100" in head,
        body,
        emulator.ledger.total_events,
    )


@pytest.mark.parametrize(("record", "events"), [(None, 0), (True, 1)])
async def test_garbage_is_no_http(emulator: RunningEmulator, record: bool | None, events: int) -> None:  # noqa: FBT001
    """If the fault is `garbage`, bytes that are not HTTP are sent; the request is recorded if `record` is set."""
    emulator.fail_with("garbage", record=record)
    answer = await exchange(emulator)

    assert (True, False, events) == (bool(answer), answer.startswith(b"HTTP/"), emulator.ledger.total_events)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("reset_before", httpx.ReadError),
        ("reset_after", httpx.ReadError),
        ("close_before", httpx.RemoteProtocolError),
        ("close_after", httpx.RemoteProtocolError),
        ("truncate", httpx.RemoteProtocolError),
        ("garbage", httpx.RemoteProtocolError),
    ],
)
async def test_broken_connections_are_errors_to_httpx(
    emulator: RunningEmulator, client: httpx.AsyncClient, kind: Any, error: type[Exception]
) -> None:
    """If a fault breaks the connection, httpx raises the matching error, and the client's next request succeeds."""
    emulator.fail_with(kind)
    with pytest.raises(error):
        await client.post("view", json=VIEW)
    response = await client.post("view", json=VIEW)

    assert 200 == response.status_code


@pytest.mark.parametrize("reused", [False, True])
async def test_a_kept_connection_breaks_as_a_new_one(
    emulator: RunningEmulator,
    client: httpx.AsyncClient,
    reused: bool,  # noqa: FBT001
) -> None:
    """If a fault applies to a later request of a connection, its effect is the same as on the first request."""
    if reused:
        await client.post("view", json=VIEW)
    emulator.fail_with("reset_after")
    with pytest.raises(httpx.ReadError):
        await client.post("view", json=VIEW)

    assert 1 + reused == emulator.ledger.total_events


async def begin(emulator: RunningEmulator, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """Open a connection and write `sent`. Return the reader, the writer, and the first answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(emulator.url).port)
    writer.write(sent)
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n{}"), 10)
    return reader, writer, answer


@pytest.mark.parametrize("rest", [b"P", REQUEST[:-1], REQUEST])
async def test_a_connection_may_close_as_it_is_reused(emulator: RunningEmulator, rest: bytes) -> None:
    """If the fault is `close_idle`, the request succeeds; the next request's first bytes close the connection."""
    emulator.fail_with("close_idle")
    reader, writer, answer = await begin(emulator, REQUEST)
    writer.write(rest)
    end = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    stats = emulator.stats()

    assert (True, b"", 1, 1, 1, {"200": 1}) == (
        answer.startswith(b"HTTP/1.1 200 OK\r\n"),
        end,
        stats["requests"],
        stats["worst_window"],
        stats["total_events"],
        stats["statuses"],
    )


async def test_a_request_sent_too_early_is_lost_as_well(emulator: RunningEmulator) -> None:
    """If a second request is sent before the answer to a request with `close_idle`, the second is not handled."""
    emulator.fail_with("close_idle", seconds=0.01)
    reader, writer, _ = await begin(emulator, REQUEST * 2)
    end = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()

    assert (b"", 1, 1) == (end, emulator.stats()["requests"], emulator.ledger.total_events)


async def test_a_connection_closed_on_reuse_is_an_error_to_httpx(
    emulator: RunningEmulator, client: httpx.AsyncClient
) -> None:
    """If the fault is `close_idle`, the client's next request fails, and later requests succeed."""
    emulator.fail_with("close_idle")
    first = await client.post("view", json=VIEW)
    with pytest.raises(httpx.TransportError):
        await client.post("view", json=VIEW)
    third = await client.post("view", json=VIEW)

    assert (200, 200, 2) == (first.status_code, third.status_code, emulator.ledger.total_events)


@pytest.mark.parametrize(("record", "events"), [(None, 0), (True, 1)])
async def test_a_stall_lasts_until_the_client_leaves(
    emulator: RunningEmulator,
    client: httpx.AsyncClient,
    record: bool | None,  # noqa: FBT001
    events: int,
) -> None:
    """If the fault is `stall`, no answer is sent; the request ends when the client gives up."""
    emulator.fail_with("stall", record=record)
    with pytest.raises(httpx.ReadTimeout):
        await client.post("view", json=VIEW, timeout=0.2)
    await until(lambda: not emulator.stats()["in_flight"])

    assert (events, {"none": 1}) == (emulator.ledger.total_events, emulator.stats()["statuses"])


async def test_a_stall_delays_no_other_request(emulator: RunningEmulator, client: httpx.AsyncClient) -> None:
    """If one request stalls, other requests are still answered."""
    emulator.fail_with("stall", contains="777")
    stalled = asyncio.ensure_future(client.post("view", json=VIEW | {"productId": 777}))
    await until(lambda: emulator.stats()["in_flight"])
    response = await client.post("view", json=VIEW)
    pending = not stalled.done()
    stalled.cancel()
    await asyncio.gather(stalled, return_exceptions=True)

    assert (200, True) == (response.status_code, pending)


@pytest.mark.parametrize("kind", ["reset_after", "close_after", "truncate"])
async def test_recording_judges_as_ever(emulator: RunningEmulator, kind: Any) -> None:
    """If a request is invalid and gets a fault that records requests, the request is recorded as refused."""
    emulator.fail_with(kind)
    await asyncio.gather(exchange(emulator, {}), return_exceptions=True)

    assert (0, [["sessionExternalId: is missing", "productId: is missing"]]) == (
        emulator.ledger.total_events,
        [record.reasons for record in emulator.refused()],
    )


async def test_a_wrong_fault_is_refused_by_the_helper(emulator: RunningEmulator) -> None:
    """If `fail_with` gets wrong values, it raises an error and adds no fault."""
    with pytest.raises(ValueError, match="has no colour"):
        emulator.fail_with("status", colour="red")

    assert [] == emulator.faults.pending()


@pytest.mark.parametrize("kind", BROKEN)
async def test_breaking_needs_the_own_server(kind: Any) -> None:
    """If another server runs the application, a fault that breaks connections raises an error."""
    app = create_app()
    app.state.emulator.faults.add(Fault(kind=kind))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://e/1.0/") as client:
        with pytest.raises(RuntimeError, match="needs the emulator's own server"):
            await client.post("view", params=KEYS, json=VIEW)
