"""`WelcomeSequence` is sent at most once by default, and `CategoryViewByCategoryPath` is sent alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from retailrocket_async import (
    Abandoned,
    AbandonedError,
    AsyncTrackingClient,
    CategoryViewByCategoryPath,
    Delivered,
    EmailClick,
    Event,
    EventValidationError,
    Order,
    RetryPolicy,
    SqliteSpool,
    View,
    WelcomeSequence,
)
from retailrocket_async._events.codec import bare, name_of
from retailrocket_async._events.models import UNBATCHABLE
from retailrocket_async.emulator import Settings, running_emulator
from retailrocket_async.testing import RecordingClient
from tests.support.fakes import CODEC, TIMED_OUT, ScriptedTransport, make_client, run

if TYPE_CHECKING:
    from pathlib import Path

PATH = CategoryViewByCategoryPath(session_external_id="a", category_path="Товары для дома/Кухня/Вилки")
WELCOME = WelcomeSequence(session_external_id="a", email="a@b.ru")
ALONE = "categoryViewByCategoryPath must be sent alone, because no batch may hold this event"


# --- at most once ---


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ((), {"welcomeSequence"}),
        ((Order,), {"welcomeSequence", "order"}),
        ({"view"}, {"welcomeSequence", "view"}),
        ({Order: True}, {"welcomeSequence", "order"}),
        ({Order: True, WelcomeSequence: False}, {"order"}),
        ({"welcomeSequence": False, "view": False}, set[str]()),
        ({Order: True, "order": False}, {"welcomeSequence", "order"}),
    ],
)
def test_events_that_are_sent_at_most_once(listed: Any, names: set[str]) -> None:
    """If `at_most_once` lists events, `WelcomeSequence` is added, unless a mapping permits to send it again."""
    assert names == RetryPolicy(at_most_once=listed).once_names
    client = AsyncTrackingClient("key", "shop", retry=RetryPolicy(at_most_once=listed))
    assert names == client.at_most_once


@pytest.mark.parametrize("retry", [RetryPolicy(), RetryPolicy(at_most_once=(Order,))])
def test_the_welcome_letters_are_not_sent_twice(retry: RetryPolicy) -> None:
    """If the answer to a batch is lost, its `WelcomeSequence` is abandoned, and its other events are sent again."""

    async def test() -> None:
        transport = ScriptedTransport(TIMED_OUT)
        async with make_client(transport, retry=retry) as client:
            welcome = await client.track(WELCOME)
            view = await client.view(session_external_id="a", product_id=1)
            assert isinstance(await view, Delivered)
            outcome = await welcome
        assert isinstance(outcome, Abandoned)
        assert (outcome.reason, outcome.maybe_recorded) == ("at_most_once", True)
        assert [b"welcomeSequence" in request.body for request in transport.requests] == [True, False]

    run(test())


def test_a_direct_welcome_is_not_sent_twice() -> None:
    """If `send` gets no answer to a `WelcomeSequence`, the event is not sent again, and the error says why."""

    async def test() -> None:
        transport = ScriptedTransport(TIMED_OUT)
        async with make_client(transport) as client:
            with pytest.raises(AbandonedError, match="at_most_once"):
                await client.send(WELCOME)
        assert len(transport.requests) == 1

    run(test())


def test_a_refused_request_is_sent_again() -> None:
    """If a request with a `WelcomeSequence` was surely not recorded, e.g. after a 429, the request is made again."""

    async def test() -> None:
        transport = ScriptedTransport(429)
        async with make_client(transport) as client:
            assert isinstance(await client.send(WELCOME), Delivered)
        assert len(transport.requests) == 2

    run(test())


# --- events that must be sent in a request of their own ---


async def test_every_event_has_its_own_endpoint() -> None:
    """If an event of any type is sent by `send`, its own endpoint accepts it, and the API records the event."""
    events: list[Event] = [PATH, WELCOME, EmailClick(session_external_id="a", mail_tracking_id="m", extra={"b": [1]})]
    async with running_emulator(Settings(allow_unknown_fields=True)) as emulator:
        async with AsyncTrackingClient("dev-api-key", "dev-partner", base_url=emulator.url) as client:
            for event in events:
                await client.send(event)
        recorded = emulator.events()

    assert [event.event_name for event in events] == [event.name for event in recorded]
    assert [CODEC.to_wire(event)[event.event_name] for event in events] == [event.fields for event in recorded]


@pytest.mark.parametrize("spooled", [False, True])
async def test_an_event_that_no_batch_may_hold_travels_alone(tmp_path: Path, *, spooled: bool) -> None:
    """If no batch may hold an event, each tracking method sends it to its own endpoint, in the visitor's order."""
    spool = SqliteSpool(tmp_path / "spool") if spooled else None
    view = View(session_external_id=PATH.session_external_id, product_id=1)
    async with (
        running_emulator(Settings(batch_latency=0.01)) as emulator,
        AsyncTrackingClient("dev-api-key", "dev-partner", base_url=emulator.url, spool=spool) as client,
    ):
        await client.track_many([view, PATH, view])
        await client.track_envelopes([CODEC.encode(PATH), CODEC.encode(view)])
        await client.category_view_by_category_path(session_external_id=PATH.session_external_id, category_path="b")
        await client.flush()
        with pytest.raises(EventValidationError, match=ALONE):
            await client.send_batch([PATH])
        assert (6, 6) == (client.stats().tracked, client.stats().delivered)

    own = PATH.event_name
    assert ["view", own, "view", own, "view", own] == [event.name for event in emulator.events()]
    assert [] == emulator.refused()
    assert 0 == emulator.stats()["overlaps"]


def test_a_hook_that_returns_such_an_event() -> None:
    """If `before_send` returns an event that no batch may hold, `track` and `send` send it to its own endpoint."""

    async def test() -> None:
        transport = ScriptedTransport()
        async with make_client(transport, before_send=lambda _: PATH) as client:
            view = View(session_external_id="a", product_id=1)
            assert isinstance(await (await client.track(view)), Delivered)
            assert isinstance(await client.send(view), Delivered)
        assert [request.path for request in transport.requests] == ["categoryViewByCategoryPath"] * 2

    run(test())


async def test_the_recording_client_records_it() -> None:
    """If a `RecordingClient` gets an event that no batch may hold, the client records the event like any other."""
    async with RecordingClient() as client:
        await client.send(PATH)

        assert client.one(CategoryViewByCategoryPath, category_path=PATH.category_path) == PATH


@pytest.mark.parametrize("event", [PATH, WELCOME], ids=lambda event: event.event_name)
@pytest.mark.parametrize("form", [b"%b", b" \n%b\t", b'{ "%b'])
def test_an_envelope_reveals_its_endpoint(event: Event, form: bytes) -> None:
    """If an envelope is valid, the event's name and the body for the event's own endpoint can be read from the JSON."""
    envelope = CODEC.encode(event)
    spelt = form % (envelope.removeprefix(b'{"') if form.startswith(b"{") else envelope)

    assert name_of(spelt) == event.event_name
    assert orjson.loads(bare(spelt)) == CODEC.to_wire(event)[event.event_name]
    assert bare(envelope) == CODEC.encode_bare(event)
    assert (event.event_name in UNBATCHABLE) is (not event.batchable)
