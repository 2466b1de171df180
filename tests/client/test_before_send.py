"""The hook `before_send` runs in the caller's task and may change or drop an event; if it raises, no event is lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from retailrocket_async._errors import ClientClosedError, ConfigurationError, DroppedError, EventValidationError
from retailrocket_async._events.models import EVENT_TYPES, Event, Order, SetContact, View
from retailrocket_async._outcome import Delivered, Dropped
from retailrocket_async._queue.options import Batching
from tests.support.fakes import ScriptedTransport, event, into, make_client, number_of, run
from tests.support.ids import shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from retailrocket_async import AsyncTrackingClient
    from retailrocket_async._receipt import Receipt
    from retailrocket_async._stats import UndeliveredEvent

DROPPED = Dropped(reason="before_send")


async def _nowait(client: AsyncTrackingClient, what: Event) -> Receipt:
    return client.track_nowait(what)


async def _first_of_many(client: AsyncTrackingClient, what: Event) -> Receipt:
    return (await client.track_many([what]))[0]


WAYS: dict[str, Callable[[AsyncTrackingClient, Event], Awaitable[Receipt]]] = {
    "track": lambda client, what: client.track(what),
    "track_nowait": _nowait,
    "track_many": _first_of_many,
    "view": lambda client, what: client.view(session_external_id="visitor", product_id=number_of(what)),
}
SENDING: dict[str, Callable[[AsyncTrackingClient, Event], Awaitable[Delivered]]] = {
    "send": lambda client, what: client.send(what),
    "send_batch": lambda client, what: client.send_batch([what]),
}


async def through(way: str, client: AsyncTrackingClient, what: Event) -> Any:
    """Send the event by the method called `way`. Return the outcome of the receipt, or the result of a direct send."""
    return await (await WAYS[way](client, what)) if way in WAYS else await SENDING[way](client, what)


def changed(what: Event) -> Event:
    """Return the event with 100 added to its product id."""
    assert isinstance(what, View)
    return attrs.evolve(what, product_id=what.product_id + 100)


@pytest.mark.parametrize("way", [*WAYS, *SENDING])
def test_changed(way: str) -> None:
    """If the hook returns another event, that event is sent, and the hook is called once for each event."""

    async def test() -> None:
        transport = ScriptedTransport()
        seen: list[Event] = []

        def hook(what: Event) -> Event:
            seen.append(what)
            return changed(what)

        async with make_client(transport, before_send=hook) as client:
            assert isinstance(await through(way, client, event(1)), Delivered)
        assert transport.recorded_numbers == [101]
        assert [number_of(what) for what in seen] == [1]

    run(test())


@pytest.mark.parametrize("way", [*WAYS, *SENDING])
def test_dropped(way: str, caplog: pytest.LogCaptureFixture) -> None:
    """If the hook drops an event, the event is settled, counted and reported at once, but neither sent nor logged."""

    async def test() -> None:
        undelivered: list[UndeliveredEvent] = []
        transport = ScriptedTransport()
        client = make_client(transport, before_send=lambda _: None, on_outcome=into(undelivered))
        if way in WAYS:
            receipt = await WAYS[way](client, event(1))
            assert receipt.outcome == DROPPED
            assert receipt.event_name == "view"
        else:
            with pytest.raises(DroppedError, match="before_send") as raised:
                await through(way, client, event(1))
            assert raised.value.outcome == DROPPED
        report = await client.aclose()
        assert transport.requests == []
        assert (report.stats.tracked, report.stats.dropped, report.stats.hook_errors) == (1, 1, 0)
        assert report.stats.dropped_by == {"before_send": {"view": 1}}
        # `send` and `send_batch` raise `DroppedError`, so their caller knows, and `on_outcome` is not called as well.
        assert [(number_of(kept), kept.outcome) for kept in undelivered] == ([(1, DROPPED)] if way in WAYS else [])

    run(test())

    assert caplog.records == []


def _raises(_: Event) -> Event:
    raise ZeroDivisionError


def _returns_a_dict(_: Event) -> Any:
    return {"view": {}}


def _returns_the_class(_: Event) -> Any:
    return View


@pytest.mark.parametrize("way", [*WAYS, *SENDING])
@pytest.mark.parametrize(
    ("hook", "name"),
    [(_raises, "ZeroDivisionError"), (_returns_a_dict, "TypeError"), (_returns_the_class, "TypeError")],
)
def test_broken(way: str, hook: Callable[[Event], Event], name: str, caplog: pytest.LogCaptureFixture) -> None:
    """If the hook raises or returns a wrong type, the original event is sent; only the first error is logged."""

    async def test() -> None:
        transport = ScriptedTransport()
        async with make_client(transport, before_send=hook) as client:
            for number in range(3):
                assert isinstance(await through(way, client, event(number)), Delivered)
            assert client.stats().hook_errors == 3
        assert transport.recorded_numbers == [0, 1, 2]

    run(test())

    assert [record.message.split(";")[0] for record in caplog.records] == [f"before_send raised {name}"]


def test_each_for_itself() -> None:
    """If the hook drops some events of a list, `track_many` and `send_batch` still send the other events."""

    def hook(what: Event) -> Event | None:
        number = number_of(what)
        return None if number == 1 else changed(what) if number == 2 else what

    async def test() -> None:
        transport = ScriptedTransport()
        async with make_client(transport, before_send=hook, batching=Batching(max_events=4)) as client:
            receipts = await client.track_many(event(number) for number in range(4))
            sent = await client.send_batch([event(number, f"other{number}") for number in range(4)])
            assert isinstance(sent, Delivered)
            assert [receipt.outcome for receipt in receipts if receipt.done()] == [DROPPED]
            await client.flush()
            assert client.stats().dropped_by == {"before_send": {"view": 2}}
            assert client.stats().tracked == 8
        assert sorted(request.numbers for request in transport.requests) == [[0, 102, 3]] * 2

    run(test())


def test_personal_data_is_stripped() -> None:
    """If the hook removes personal data from an event, the request does not contain the data."""

    def hook(what: Event) -> Event:
        return attrs.evolve(what, email=None, phone=None) if isinstance(what, SetContact) else what

    async def test() -> None:
        transport = ScriptedTransport()
        async with make_client(transport, before_send=hook) as client:
            await client.set_contact(session_external_id="a", contact_external_id="1", email="ann@example.com")
        assert transport.recorded_numbers == [1]
        assert b"ann@example.com" not in transport.requests[0].body

    run(test())


def test_another_type() -> None:
    """If the hook returns an event of another type, the event is sent under the new name, to the new endpoint."""

    def hook(what: Event) -> Event:
        return Order(session_external_id="a", product_id=number_of(what), quantity=1, price=1, transaction="t")

    async def test() -> None:
        transport = ScriptedTransport()
        async with make_client(transport, before_send=hook) as client:
            assert (await client.track(event(1))).event_name == "order"
            await client.send(event(2))
        assert [request.path for request in transport.requests if request.numbers == [2]] == ["order"]

    run(test())


@pytest.mark.parametrize("way", ["track", "track_nowait", "track_many", "send", "send_batch"])
def test_not_called_with_a_value_that_is_no_event(way: str) -> None:
    """If the value is not an event, the hook is not called and the method raises `EventValidationError`."""

    async def test() -> None:
        seen: list[Event] = []

        def hook(what: Event) -> Event:
            seen.append(what)
            return what

        async with make_client(ScriptedTransport(), before_send=hook) as client:
            with pytest.raises(EventValidationError):
                await through(way, client, "view")  # type: ignore[arg-type]
        assert seen == []

    run(test())


@pytest.mark.parametrize("way", [*WAYS, *SENDING])
def test_drops_nothing_after_the_close(way: str) -> None:
    """If the client is closed, tracking and sending raise `ClientClosedError`, even if the hook drops every event."""

    async def test() -> None:
        client = make_client(ScriptedTransport(), before_send=lambda _: None)
        await client.aclose()
        with pytest.raises(ClientClosedError):
            await through(way, client, event(1))
        assert client.stats().tracked == 0

    run(test())


def test_feed_that_is_dropped_lets_others_run() -> None:
    """If the hook drops every event of a long iterable, other tasks still run at least once per 250 events."""

    async def test() -> None:
        client = make_client(ScriptedTransport(), before_send=lambda _: None)
        ticks = 0

        async def ticker() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(ticker())
        await client.track_many(event(number) for number in range(10_000))
        ticking.cancel()
        assert ticks >= 10_000 // 250
        await client.aclose()

    run(test())


async def _coroutine(what: Event) -> Event:
    return what


@pytest.mark.parametrize("hook", ["strip", 1, _coroutine], ids=shown)
def test_impossible_hook(hook: Any) -> None:
    """If the hook is not a plain function, the constructor raises `ConfigurationError`."""
    with pytest.raises(ConfigurationError, match="before_send must be a plain function"):
        make_client(ScriptedTransport(), before_send=hook)


def test_every_typed_method_is_seen() -> None:
    """If an event is tracked by the method of its type, such as `client.view`, the hook is called with the event."""
    fields: dict[str, Any] = {
        "group_id": 1,
        "product_id": 1,
        "product_ids": [1],
        "category_id": 1,
        "quantity": 1,
        "price": 1,
        "transaction": "t",
        "search_phrase": "x",
        "contact_external_id": "c",
        "recom_block_id": "r",
        "impression_content_id": "i",
        "mail_tracking_id": "m",
        "email": "a@b.ru",
        "category_path": "a/b",
    }

    async def test() -> set[str]:
        seen: set[str] = set()
        client = make_client(ScriptedTransport(), before_send=lambda what: seen.add(what.event_name))
        for name, kind in EVENT_TYPES.items():
            method = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
            needed = {field.name: fields[field.name] for field in attrs.fields(kind) if field.name in fields}
            assert (await getattr(client, method)(session_external_id="a", **needed)).outcome == DROPPED
        await client.aclose()
        return seen

    assert run(test()) == EVENT_TYPES.keys()
