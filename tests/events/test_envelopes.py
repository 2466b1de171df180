"""`track_envelopes` gets events as JSON bytes, and gives the same results as tracking the events one by one."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailrocket_async import (
    AsyncTrackingClient,
    Batching,
    Buffer,
    BufferFullError,
    ClientClosedError,
    Codec,
    Delivered,
    Dropped,
    EventValidationError,
    Receipt,
    SqliteSpool,
)
from retailrocket_async._events.passthrough import Passthrough
from retailrocket_async.emulator import Settings, running_emulator
from tests.support.effort import most
from tests.support.fakes import CODEC, check_balance, event
from tests.support.strategies import events as any_events

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from retailrocket_async import Event
    from retailrocket_async.emulator import RunningEmulator


@pytest.fixture
async def emulator() -> AsyncGenerator[RunningEmulator]:
    """Provide an emulator of the API in the test's loop."""
    async with running_emulator(Settings(limit=None)) as running:
        yield running


def client_of(url: str, **options: Any) -> AsyncTrackingClient:
    """Return a client of the emulator, without a rate limit by default."""
    return AsyncTrackingClient("dev-api-key", "dev-partner", base_url=url, **{"rate_limit": None, **options})


def envelopes(numbers: Any, visitors: int = 3) -> list[bytes]:
    """Return one envelope (JSON bytes) per number, of alternating visitors."""
    return [CODEC.encode(event(number, visitor=f"visitor{number % visitors}")) for number in numbers]


@pytest.mark.parametrize("max_in_flight", [1, 100])
async def test_all_are_delivered_in_order(emulator: RunningEmulator, max_in_flight: int) -> None:
    """If many envelopes are tracked, each has a receipt, and each visitor's events are recorded in order."""
    async with client_of(emulator.url, batching=Batching(max_events=7, max_in_flight=max_in_flight)) as client:
        receipts = await client.track_envelopes(envelopes(range(1, 501)))
        assert len(receipts) == 500
        await client.flush()
        assert all(isinstance(each, Receipt) and isinstance(each.outcome, Delivered) for each in receipts)
        check_balance(client.stats())
    seen: dict[str, list[int]] = {}
    for record in emulator.events():
        seen.setdefault(record.fields["sessionExternalId"], []).append(record.fields["productId"])
    assert all(numbers == sorted(numbers) for numbers in seen.values())
    assert sum(map(len, seen.values())) == 500


async def test_an_invalid_envelope_gives_its_error_in_place(emulator: RunningEmulator) -> None:
    """If an envelope is invalid, the result contains an error in its place; all other envelopes are tracked."""
    async with client_of(emulator.url, batching=Batching(max_bytes=1024)) as client:
        good = envelopes([1])[0]
        large = CODEC.encode(event(2)).replace(b'"productId"', b'"x":"%b","productId"' % (b"y" * 2000))
        given = [good, b"no json", good, b'{"view":{}}', b'{"unknown":{"a":1}}', large, good]
        results = await client.track_envelopes(given)
        kinds = [type(each) for each in results]
        assert kinds == [Receipt, EventValidationError, Receipt, *[EventValidationError] * 3, Receipt]
        custom = b'{"unknown":{"text":"%b"}}' % (b"y" * 2000)
        [too_large] = await client.track_envelopes([custom], allow_custom=True)
        assert "Batching.max_bytes" in str(too_large)
        [taken] = await client.track_envelopes([b'{"unknown":{"a":1}}'], allow_custom=True)
        assert isinstance(taken, Receipt)
        await client.aclose(0)


@settings(max_examples=most(200), deadline=None)
@given(any_events())
def test_the_envelope_sent_describes_the_event_given(given_event: Event) -> None:
    """If `examined` checks an envelope, the envelope that it returns for sending describes the same event."""
    data = CODEC.encode(given_event)
    name, visitor, envelope = CODEC.examined(data, allow_custom=True)
    read = CODEC.decode(data, allow_custom=True)
    assert CODEC.decode(envelope, allow_custom=True) == read
    assert name == read.event_name
    assert visitor == getattr(read, "session_external_id", visitor)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=60)
    | st.just("2026-01-01"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=most(400), deadline=None)
@given(any_events(), st.data())
def test_an_envelope_that_passes_is_valid(given_event: Event, data: st.DataObject) -> None:
    """If an envelope is passed on unchanged, decoding it returns the same event without an error."""
    [(name, fields)] = orjson.loads(CODEC.encode(given_event)).items()
    if type(fields) is dict:
        field = data.draw(st.sampled_from([*fields, "unknown", "timestamp", "stockId", "price"]))
        if data.draw(st.booleans()):
            fields[field] = data.draw(JSON)
        else:
            fields.pop(field, None)
    with suppress(TypeError):  # an integer that orjson does not encode
        envelope = orjson.dumps({name: fields})
        label = Passthrough().label_of(orjson.loads(envelope))
        if label is not None:
            read = CODEC.decode(envelope)
            assert label == (read.event_name, getattr(read, "session_external_id", None))
            assert CODEC.decode(CODEC.encode(read)) == read


@pytest.mark.parametrize(
    ("given_text", "sent"),
    [
        ("2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00"),
        ("2026-01-01T00:00:00.123456+00:00", "2026-01-01T00:00:00+00:00"),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00+00:00"),
        ("20260101T030000+0300", "2026-01-01T03:00:00+03:00"),
    ],
)
def test_moments_are_sent_in_the_one_form(given_text: str, sent: str) -> None:
    """If a timestamp has another format than that of the API document, it is sent in the document's format."""
    data = orjson.dumps({"view": {"sessionExternalId": "visitor", "productId": 1, "timestamp": given_text}})
    _, _, envelope = Codec().examined(data)
    assert orjson.loads(envelope)["view"]["timestamp"] == sent


async def test_a_full_buffer_is_waited_for(emulator: RunningEmulator) -> None:
    """If the buffer has no space for all envelopes, `track_envelopes` waits until each of them has space."""
    async with client_of(emulator.url, buffer=Buffer(max_events=30), batching=Batching(max_events=10)) as client:
        receipts = await client.track_envelopes(envelopes(range(1, 301)))
        await client.flush()
        assert client.stats().delivered == len(receipts) == 300


async def test_results_end_with_the_last_accepted_event(emulator: RunningEmulator) -> None:
    """If the buffer fills up, only accepted envelopes have results; if no envelope was accepted, an error is raised."""
    buffer = Buffer(max_events=5, overflow="raise")
    client = client_of(emulator.url, buffer=buffer, batching=Batching(linger=100.0))
    results = await client.track_envelopes(envelopes(range(1, 11)))
    assert len(results) == client.stats().tracked == 5
    with pytest.raises(BufferFullError):
        await client.track_envelopes(envelopes([11]))
    await client.aclose(0)
    with pytest.raises(ClientClosedError):
        await client.track_envelopes(envelopes([12]))


async def test_a_client_that_closes_in_mid_way(emulator: RunningEmulator) -> None:
    """If the client closes during the call, each accepted envelope has its receipt, and the counters agree."""
    client = client_of(emulator.url)
    tracking = asyncio.create_task(client.track_envelopes(envelopes(range(1, 1001))))
    await asyncio.sleep(0)
    report = await client.aclose()
    results = await tracking
    assert 0 < len(results) == report.stats.tracked < 1000


async def test_a_client_with_a_spool_that_closes_in_mid_way(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If a client with a spool closes during the call, exactly the accepted envelopes have receipts."""
    client = client_of(emulator.url, spool=SqliteSpool(tmp_path / "spool"))
    tracking = asyncio.create_task(client.track_envelopes(envelopes(range(1, 5001))))
    async with asyncio.timeout(30):
        while not client.stats().tracked:  # noqa: ASYNC110 - the first group is enough
            await asyncio.sleep(0)
    report = await client.aclose()
    results = await tracking
    assert 0 < len(results) == report.stats.tracked < 5000
    assert all(isinstance(each, Receipt) and each.done() for each in results)
    with pytest.raises(ClientClosedError):
        await client.track_envelopes(envelopes([1]))


async def test_a_spool_that_fails_in_mid_way(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If a spool accepts only the first envelopes, their receipts are returned, and the next call raises an error."""
    spool = SqliteSpool(tmp_path / "spool", max_bytes=1 << 20, full_timeout=0.2)
    client = client_of("http://127.0.0.1:9/", spool=spool)
    results = await client.track_envelopes(envelopes(range(1, 20_001)))
    assert 0 < len(results) < 20_000
    assert client.stats().tracked == len(results)
    with pytest.raises(BufferFullError):
        await client.track_envelopes([*envelopes(range(1, 1001)), b"no json"])
    await client.aclose(0)


async def test_hooks_and_spools_see_each(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If the client has `before_send` or a spool, the results are the same as for events that are tracked singly."""
    odd = lambda each: each if each.product_id % 2 else None  # noqa: E731
    async with client_of(emulator.url, before_send=odd) as client:
        results = await client.track_envelopes([*envelopes([1, 2]), b"no json"])
        assert results[1].outcome == Dropped(reason="before_send")  # type: ignore[union-attr]
        assert isinstance(results[2], EventValidationError)
    async with client_of(emulator.url, spool=SqliteSpool(tmp_path / "spool")) as client:
        results = await client.track_envelopes([*envelopes([3]), b"no json"])
        assert isinstance(results[0], Receipt)
        assert isinstance(results[1], EventValidationError)
        await client.flush()
    assert [record.fields["productId"] for record in emulator.events()] == [1, 3]
