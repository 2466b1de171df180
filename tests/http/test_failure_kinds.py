"""For each way in which a real request can fail: whether the event may be recorded, and whether it is sent again."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import httpx
import pytest
import trustme

from retailrocket_async import (
    Abandoned,
    AsyncTrackingClient,
    Batching,
    Delivered,
    Order,
    RetryPolicy,
    View,
    new_session_id,
)
from retailrocket_async.emulator import Fault, RunningEmulator, Settings, running_emulator
from tests.support.fakes import OK, TIMED_OUT, Engine, ScriptedTransport, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from retailrocket_async import Outcome

ONCE = RetryPolicy(max_attempts=1)
PATIENT = 60.0
"""Timeout in seconds that is always enough, even to open a client, which is part of its first request."""
IMPATIENT = httpx.Timeout(PATIENT, read=0.5)
"""Only the wait for an answer times out soon; connecting and sending may take `PATIENT` seconds."""
QUICK = RetryPolicy(initial_backoff=0.01, max_backoff=0.01)


@attrs.frozen
class Kind:
    """One way in which a request fails."""

    fault: Fault
    failure: str | None
    recorded: bool
    perhaps: bool


KINDS = {
    "reset before recording": Kind(Fault(kind="reset_before"), "broken", recorded=False, perhaps=True),
    "reset after recording": Kind(Fault(kind="reset_after"), "broken", recorded=True, perhaps=True),
    "closed before recording": Kind(Fault(kind="close_before"), "broken", recorded=False, perhaps=True),
    "closed after recording": Kind(Fault(kind="close_after"), "broken", recorded=True, perhaps=True),
    "stalled": Kind(Fault(kind="stall"), "timeout", recorded=False, perhaps=True),
    "stalled after recording": Kind(Fault(kind="stall", record=True), "timeout", recorded=True, perhaps=True),
    "garbage": Kind(Fault(kind="garbage"), "broken", recorded=False, perhaps=True),
    "garbage after recording": Kind(Fault(kind="garbage", record=True), "broken", recorded=True, perhaps=True),
    "500": Kind(Fault(kind="status", status=500), None, recorded=False, perhaps=True),
    "502 after recording": Kind(Fault(kind="status", status=502, record=True), None, recorded=True, perhaps=True),
    "503": Kind(Fault(kind="status", status=503), None, recorded=False, perhaps=True),
    "504 after recording": Kind(Fault(kind="status", status=504, record=True), None, recorded=True, perhaps=True),
    "408": Kind(Fault(kind="status", status=408), None, recorded=False, perhaps=False),
    "429": Kind(Fault(kind="status", status=429), None, recorded=False, perhaps=False),
}


@asynccontextmanager
async def shop(
    fault: Fault | None = None, **options: Any
) -> AsyncIterator[tuple[RunningEmulator, AsyncTrackingClient]]:
    """Run an emulator in which the first request gets this fault. Yield the emulator and a client that sends to it."""
    async with running_emulator(Settings(limit=None)) as emulator:
        if fault is not None:
            emulator.faults.add(fault)
        timeout = IMPATIENT if fault is not None and fault.kind == "stall" else PATIENT
        async with AsyncTrackingClient(
            "dev-api-key", "dev-partner", base_url=emulator.url, timeout=timeout, **options
        ) as client:
            yield emulator, client


def times_recorded(emulator: RunningEmulator, kind: Kind) -> int:
    """Return how often the server recorded each event: by each later request, and by the first if the fault records."""
    requests: int = emulator.stats()["requests"]
    # On a slow machine the short timeout may cause further requests.
    assert requests == 2 or kind.failure == "timeout"
    return requests - 1 + kind.recorded


def order(number: int) -> Order:
    """Return an order of the product with this number."""
    return Order(session_external_id="visitor", product_id=number, quantity=1, price=1, transaction=f"T{number}")


@pytest.mark.parametrize("name", KINDS)
async def test_given_up(name: str) -> None:
    """If a failed request is not retried, the outcome says whether the event may be recorded."""
    kind = KINDS[name]
    async with shop(kind.fault, retry=ONCE) as (emulator, client):
        outcome = await (await client.view(session_external_id="visitor", product_id=1))

        assert isinstance(outcome, Abandoned)
        assert (outcome.maybe_recorded, len(emulator.events())) == (kind.perhaps, int(kind.recorded))
        assert kind.failure is None or (outcome.failure or "").startswith(kind.failure + ":")


@pytest.mark.parametrize("name", KINDS)
async def test_at_least_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """If a failed request is retried, no event is lost, and possible duplicates are reported."""
    kind = KINDS[name]
    async with shop(kind.fault, retry=QUICK) as (emulator, client):
        receipts = await client.track_many([View(session_external_id="visitor", product_id=n) for n in range(20)])
        outcomes = [await receipt for receipt in receipts]

        assert all(isinstance(outcome, Delivered) for outcome in outcomes)
        assert {outcome.maybe_duplicate for outcome in outcomes if isinstance(outcome, Delivered)} == {kind.perhaps}
        counts = Counter(event.fields["productId"] for event in emulator.events())
        assert counts == dict.fromkeys(range(20), times_recorded(emulator, kind))
    assert [record for record in caplog.records if record.name == "retailrocket_async"] == []


@pytest.mark.parametrize("name", KINDS)
async def test_at_most_once(name: str) -> None:
    """If an event is sent at most once, it is never recorded twice; other events of the same batch are retried."""
    kind = KINDS[name]
    retry = attrs.evolve(QUICK, at_most_once=(Order,))
    async with shop(kind.fault, retry=retry) as (emulator, client):
        view = await client.view(session_external_id="visitor", product_id=1)
        receipt = await client.track(order(2))
        outcome = await receipt

        assert isinstance(await view, Delivered)
        recorded = Counter(event.name for event in emulator.events())
        if kind.perhaps:
            assert isinstance(outcome, Abandoned)
            assert (outcome.reason, outcome.maybe_recorded, outcome.attempts) == ("at_most_once", True, 1)
            assert recorded["order"] == int(kind.recorded)
        else:
            assert isinstance(outcome, Delivered)
            assert recorded["order"] == 1
        assert recorded["view"] == times_recorded(emulator, kind)


async def test_a_truncated_answer_is_an_answer() -> None:
    """If the status arrives but the body is truncated, the event counts as delivered."""
    async with shop(Fault(kind="truncate"), retry=ONCE) as (emulator, client):
        assert isinstance(await (await client.view(session_external_id="visitor", product_id=1)), Delivered)
        assert len(emulator.events()) == 1


async def test_a_connection_closed_as_it_is_reused(caplog: pytest.LogCaptureFixture) -> None:
    """If the server closes a connection when a request reuses it, every event is delivered, and no error is logged."""
    batching = Batching(max_in_flight=1)
    async with shop(Fault(kind="close_idle", times=5), retry=QUICK, batching=batching) as (emulator, client):
        for number in range(12):
            assert isinstance(await (await client.view(session_external_id="visitor", product_id=number)), Delivered)

        assert sorted(event.fields["productId"] for event in emulator.events()) == list(range(12))
        assert client.stats().retries >= 1
    assert [record for record in caplog.records if record.name == "retailrocket_async"] == []


# --- before any byte is sent ---


def unused_port() -> int:
    """Return a port of this machine on which no server listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def outcome_at(url: str, **options: Any) -> Outcome:
    """Return the outcome of one event that is sent to `url` without retries."""
    async with AsyncTrackingClient("key", "partner", base_url=url, retry=ONCE, timeout=PATIENT, **options) as client:
        return await (await client.view(session_external_id=new_session_id(), product_id=1))


async def test_no_listener() -> None:
    """If no server listens, the outcome says that the event was not recorded."""
    outcome = await outcome_at(f"http://127.0.0.1:{unused_port()}/1.0/")

    assert isinstance(outcome, Abandoned)
    assert (outcome.maybe_recorded, outcome.failure) == (False, "connect: ConnectError")


class NoNames(asyncio.SelectorEventLoop):
    """An event loop that cannot resolve any host name."""

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        """Raise the error of an unknown host name."""
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_an_unknown_name() -> None:
    """If the host name is unknown, the event was not recorded, and the failure is `name`."""
    with asyncio.Runner(loop_factory=NoNames) as runner:
        outcome = runner.run(outcome_at("http://shop.localhost/1.0/", allow_insecure_http=True))

    assert isinstance(outcome, Abandoned)
    assert (outcome.maybe_recorded, outcome.failure) == (False, "name: ConnectError")


async def test_an_untrusted_certificate() -> None:
    """If the server's certificate is untrusted, no byte of the request is sent, and the failure is `tls`."""
    got = bytearray()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.extend(await reader.read())
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    async with server:
        outcome = await outcome_at(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/1.0/")

    assert isinstance(outcome, Abandoned)
    assert (outcome.maybe_recorded, outcome.failure, bytes(got)) == (False, "tls: ConnectError", b"")


async def test_no_free_connection() -> None:
    """If a caller's client has no free connection, the event was not recorded, and the failure is `pool`."""
    async with running_emulator(Settings()) as emulator:
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(limits=limits, timeout=httpx.Timeout(PATIENT, pool=0.05)) as http:
            await http.get(emulator.url)
            holding = await http.send(http.build_request("POST", emulator.url), stream=True)
            timeout = httpx.Timeout(PATIENT, pool=0.05)
            client = AsyncTrackingClient(
                "dev-api-key", "dev-partner", base_url=emulator.url, http_client=http, retry=ONCE, timeout=timeout
            )
            async with client:
                outcome = await (await client.view(session_external_id="visitor", product_id=1))
            await holding.aclose()

    assert isinstance(outcome, Abandoned)
    assert (outcome.maybe_recorded, outcome.failure) == (False, "pool: PoolTimeout")


async def test_no_key() -> None:
    """If the function for the key raises, no request is sent, and the failure is `key`."""

    def no_key() -> str:
        raise KeyError

    async with shop() as (emulator, _):
        client = AsyncTrackingClient(no_key, "dev-partner", base_url=emulator.url, retry=ONCE)
        async with client:
            outcome = await (await client.view(session_external_id="visitor", product_id=1))

        assert isinstance(outcome, Abandoned)
        assert (outcome.maybe_recorded, outcome.failure) == (False, "key: KeyError")
        assert emulator.stats()["requests"] == 0


# --- at most once, through the engine ---


def test_direct_sends_follow_the_rule() -> None:
    """If a direct send of an at-most-once event may have been recorded, it is not retried."""

    async def test() -> None:
        engine = Engine(ScriptedTransport(429, TIMED_OUT, then=OK), retry=RetryPolicy(at_most_once={"view"}))
        with pytest.raises(Exception, match="at_most_once") as caught:
            await engine.send(1)
        assert (caught.value.attempts, caught.value.maybe_recorded) == (2, True)  # type: ignore[attr-defined]

    run(test())


def test_certain_failures_do_not_count() -> None:
    """If an at-most-once event was certainly not recorded, it is retried."""

    async def test() -> None:
        engine = Engine(ScriptedTransport(429, 408, 429, then=OK), retry=RetryPolicy(at_most_once={"view"}))
        outcome = await (await engine.track(1))
        assert isinstance(outcome, Delivered)
        assert not outcome.maybe_duplicate

    run(test())
