"""Tests of `Relay` with a broker in memory and a server that answers by a script, on a virtual clock.

The table lists what may happen at each await of a relay, and the tests of it.

==============================  ==========================================  =======================================
await                           what is cancelled there, or fails           tested by
==============================  ==========================================  =======================================
`Relay.run`                     its task is cancelled, in any turn          `test_cancelled_in_any_turn`
`source.open`                   fails, or hangs                             `test_a_failing_call`, `test_a_hanging_call`
`source.fetch`                  fails, or hangs                             `test_a_failing_call`, `test_a_hanging_call`
`source.settle`                 fails, or hangs                             `test_a_failing_call`, `test_a_hanging_call`
`source.extend`                 fails, or hangs                             `test_a_failing_call`, `test_a_hanging_call`
`source.release`, `.aclose`     fails, or hangs, at the end                 `test_a_failing_end`
`client.track`                  waits for room                              `test_a_smaller_buffer`
`client.aclose`                 waits during the grace time                 `test_cancelled_while_it_ends`
==============================  ==========================================  =======================================
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from retailrocket_async import (
    Abandoned,
    Batching,
    Buffer,
    ConfigurationError,
    Delivered,
    Dropped,
    Kept,
    Order,
    Rejected,
    RetryPolicy,
    UsageError,
)
from retailrocket_async._http.reply import Reply
from retailrocket_async.relay import DeadLetter, Lag, MemorySource, MemoryStream, Message, Relay
from retailrocket_async.relay._disposition import disposition_of
from tests.support.fakes import (
    CODEC,
    NO_CONNECTION,
    OK,
    PARKED,
    TIMED_OUT,
    Request,
    ScriptedTransport,
    Step,
    event,
    make_client,
    now,
    run,
    tasks,
    turns,
)
from tests.support.relays import all_settled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from retailrocket_async import Outcome

HOURS = 900.0
"""Duration of an outage in seconds, many times longer than any time-out, lease or backoff."""
PATIENT = RetryPolicy(outlast=True)
JUNK = b'{"view":{"sessionExternalId":"a","productId":"1"}}'


def envelopes(numbers: range, visitors: int = 7) -> list[bytes]:
    """Return encoded events with these numbers; event number `n` belongs to visitor `n % visitors`."""
    return [CODEC.encode(event(number, f"v{number % visitors}")) for number in numbers]


class Scene:
    """A relay between a stream in memory and a scripted server.

    Attributes:
        running: the task that runs the relay; `start` sets it.
    """

    def __init__(
        self,
        transport: ScriptedTransport,
        *,
        stream: MemoryStream | None = None,
        source: Any = None,
        name: str = "relay-1",
        lease: float = 60.0,
        client: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.transport = transport
        self.stream = stream or MemoryStream()
        self.source = source or MemorySource(self.stream, name=name, lease=lease)
        settings: dict[str, Any] = {"batching": Batching(max_events=10), "retry": PATIENT}
        self.client = make_client(transport, **(settings | (client or {})))
        self.relay = Relay(self.source, self.client, **({"batch": 10, "window": 40} | options))
        self.running: asyncio.Task[bool]

    def start(self) -> Scene:
        """Start the relay in a task, and return this object."""
        self.running = asyncio.create_task(self.relay.run())
        return self

    async def stop(self) -> bool:
        """Stop the relay, check that its counters add up, and return the result of `Relay.run`."""
        self.relay.stop()
        clean = await self.running
        self.check()
        return clean

    def check(self) -> None:
        """Raise an error unless every message is counted exactly once."""
        stats = self.relay.stats()
        settled = stats.delivered + stats.filtered + sum(stats.dead.values()) + stats.released
        assert stats.received == settled + stats.in_hand, stats

    async def left(self) -> Lag:
        """Return the source's lag: how many messages wait at the broker, and how many are fetched but unsettled."""
        return await self.source.lag()

    async def until(self, condition: Callable[[], bool], seconds: float = 600.0) -> None:
        """Wait until `condition()` is true; fail after `seconds`."""
        end = now() + seconds
        while not condition():
            assert now() < end, self.relay.stats()
            await asyncio.sleep(0.01)

    async def until_delivered_besides(self, count: int, unsettled: int) -> None:
        """Wait until `count` messages are delivered and settled, and exactly `unsettled` other ones are not settled."""
        stats = self.relay.stats
        await self.until(lambda: stats().delivered >= count and stats().unsettled == unsettled)

    async def until_delivered(self, count: int, seconds: float = 600.0) -> None:
        """Wait until `count` messages are delivered, and all messages that were handed out are settled."""
        await self.until(lambda: self.relay.stats().delivered >= count and all_settled(self.relay, count), seconds)

    async def until_settled(self, count: int) -> None:
        """Wait until `count` messages were handed out, and all of them are settled."""
        await self.until(lambda: all_settled(self.relay, count))

    async def until_nothing_is_left(self) -> None:
        """Wait until all messages in the broker are settled, by this relay or another one."""
        async with asyncio.timeout(600):
            while await self.left() != Lag(waiting=0, pending=0):  # noqa: ASYNC110 - the stream has no event for this
                await asyncio.sleep(0.01)


# --- outcomes of messages ---


@pytest.mark.parametrize("realtime", [False, True])
def test_delivers_and_acknowledges(realtime: bool) -> None:  # noqa: FBT001
    """Every message is delivered once and acknowledged, and each visitor's messages are delivered in order."""

    async def test() -> None:
        transport = ScriptedTransport()
        scene = Scene(transport, client={"batching": Batching(max_events=10, realtime=realtime)}).start()
        await scene.stream.publish(envelopes(range(200)))
        await scene.until_delivered(200)
        assert realtime == any(request.path == "view" for request in transport.requests)
        assert await scene.left() == Lag(waiting=0, pending=0)
        assert sorted(transport.recorded_numbers) == list(range(200))
        for visitor in range(7):
            own = [number for name, number in transport.recorded if name == f"v{visitor}"]
            assert own == sorted(own)
        assert await scene.stop()
        assert scene.relay.stats().maybe_duplicates == 0
        assert tasks() == set()

    run(test())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\xff\x00", "undecodable: event must be JSON"),
        (b"", "undecodable: event must be JSON"),
        (b"[]", "undecodable: event must be an object"),
        (b'{"wishlist":{"sessionExternalId":"a"}}', "undecodable: event must have one of these names"),
        (JUNK, "undecodable: view.product_id must be"),
        (b'{"search":{"sessionExternalId":"a","searchPhrase":"%b"}}' % (b"x" * 600_000), "undecodable: search must be"),
        (b'{"view":{"sessionExternalId":"a\\nb","productId":1}}', "undecodable: view.session_external_id must be"),
    ],
)
def test_no_event_is_a_dead_letter(body: bytes, reason: str) -> None:
    """If a message is no valid event, it becomes a dead letter with a one-line reason; other messages are delivered."""

    async def test() -> None:
        scene = Scene(ScriptedTransport()).start()
        first, *rest = envelopes(range(5))
        await scene.stream.publish([first, body, *rest])
        await scene.until_delivered(5)
        [letter] = await scene.source.list_dead(10)
        assert (letter.body, letter.message_id) == (body, "2")
        assert letter.reason.startswith(reason)
        assert letter.reason.isprintable()
        assert await scene.left() == Lag(waiting=0, pending=0)
        assert await scene.stop()
        assert scene.relay.stats().dead == {"undecodable": 1}

    run(test())


def test_unknown_names_where_they_are_allowed() -> None:
    """If `allow_custom` is set, an event with an unknown name is delivered unchanged."""

    async def test() -> None:
        transport = ScriptedTransport()
        scene = Scene(transport, allow_custom=True).start()
        await scene.stream.publish([b'{"wishlist":{"sessionExternalId":"a","productId":1}}'])
        await scene.until_delivered(1)
        assert await scene.stop()
        assert b'"wishlist"' in transport.requests[0].body

    run(test())


def test_refused_is_a_dead_letter() -> None:
    """If the API refuses an event, its message becomes a dead letter; the other events of its batch are delivered."""

    async def test() -> None:
        transport = ScriptedTransport(then=lambda request: 400 if 7 in request.numbers else 200)
        scene = Scene(transport).start()
        await scene.stream.publish(envelopes(range(20)))
        await scene.until_settled(20)
        [letter] = await scene.source.list_dead(10)
        assert letter.body == envelopes(range(7, 8))[0]
        assert letter.reason == "rejected: HTTP 400"
        assert await scene.stop()
        assert scene.relay.stats().dead == {"rejected": 1}

    run(test())


def test_what_the_hook_drops_is_acknowledged() -> None:
    """If `before_send` drops an event, its message is acknowledged and does not become a dead letter."""

    async def test() -> None:
        scene = Scene(ScriptedTransport(), client={"before_send": lambda _: None}).start()
        await scene.stream.publish(envelopes(range(5)))
        await scene.until_settled(5)
        assert scene.relay.stats().filtered == 5
        assert await scene.left() == Lag(waiting=0, pending=0)
        assert await scene.source.list_dead(10) == []
        assert await scene.stop()

    run(test())


def test_too_old_is_a_dead_letter() -> None:
    """If an event is older than the client's `max_age`, its message becomes a dead letter."""

    async def test() -> None:
        scene = Scene(ScriptedTransport(then=NO_CONNECTION), client={"buffer": Buffer(max_age=30.0)}).start()
        await scene.stream.publish(envelopes(range(5)))
        await scene.until(lambda: sum(scene.relay.stats().dead.values()) == 5)
        assert scene.relay.stats().dead == {"expired": 5}
        await scene.stop()

    run(test())


def test_the_time_of_publication() -> None:
    """If an event has no timestamp, its message's time of publication is used; otherwise its timestamp is unchanged."""

    async def test() -> None:
        transport = ScriptedTransport()
        stream = MemoryStream()
        before = int(time.time())
        await stream.publish([b'{"view":{"sessionExternalId":"a","productId":1}}', *envelopes(range(2, 3))])
        await asyncio.sleep(HOURS)
        scene = Scene(transport, stream=stream).start()
        await scene.until_delivered(2)
        assert await scene.stop()
        events = [item["view"] for request in transport.requests for item in json.loads(request.body)]
        timestamps = {item["productId"]: item["timestamp"] for item in events}
        assert timestamps[2] == "2026-01-01T00:00:00+00:00"
        moments = {time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(before + late)) for late in range(5)}
        assert timestamps[1] in moments

    run(test())


@pytest.mark.parametrize("moment", [-1e18, 1e18, float("nan"), float("inf")])
def test_an_impossible_time_of_publication(moment: float) -> None:
    """If the time of publication is no valid date, the event is still delivered."""

    class Odd(Shaky):
        async def fetch(self, most: int, wait: float) -> Sequence[Message]:
            return [attrs.evolve(message, published_at=moment) for message in await super().fetch(most, wait)]

    async def test() -> None:
        stream = MemoryStream()
        scene = Scene(ScriptedTransport(), stream=stream, source=Odd(MemorySource(stream))).start()
        await stream.publish([b'{"view":{"sessionExternalId":"a","productId":1}}'])
        await scene.until_delivered(1)
        assert await scene.stop()

    run(test())


DISPOSITIONS: list[tuple[Outcome, str, str]] = [
    (Delivered(status=200), "delivered", ""),
    (Rejected(status=400), "dead", "rejected: HTTP 400"),
    (Rejected(status=422, isolated=False), "dead", "rejected: HTTP 422"),
    *((Rejected(status=status), "retry", "") for status in (301, 308, 401, 403, 404, 405, 407)),
    (Dropped(reason="closed"), "retry", ""),
    (Dropped(reason="overflow"), "retry", ""),
    (Dropped(reason="expired"), "dead", "expired: older than Buffer.max_age"),
    (Dropped(reason="before_send"), "filtered", ""),
    (Abandoned(reason="closed", maybe_recorded=True), "retry", ""),
    (Abandoned(reason="cancelled", maybe_recorded=True), "retry", ""),
    (Abandoned(reason="halted", maybe_recorded=False), "retry", ""),
    (
        Abandoned(reason="retries_exhausted", maybe_recorded=True, status=503),
        "dead",
        "retries_exhausted: HTTP 503, may have been recorded",
    ),
    (
        Abandoned(reason="at_most_once", maybe_recorded=True, failure="timeout: ReadTimeout"),
        "dead",
        "at_most_once: timeout: ReadTimeout, may have been recorded",
    ),
    (Abandoned(reason="not_retryable", maybe_recorded=False, status=409), "dead", "not_retryable: HTTP 409"),
    (Abandoned(reason="internal_error", maybe_recorded=False), "dead", "internal_error: no attempt"),
    (
        Abandoned(reason="expired", maybe_recorded=False, failure="connect: ConnectError"),
        "dead",
        "expired: connect: ConnectError",
    ),
]


@pytest.mark.parametrize(("outcome", "kind", "reason"), DISPOSITIONS, ids=str)
def test_dispositions(outcome: Outcome, kind: str, reason: str) -> None:
    """Each outcome leads to one action: acknowledge the message, make it a dead letter with a reason, or retry it."""
    disposition = disposition_of(outcome)

    assert (kind, reason) == (disposition.kind, disposition.reason)
    assert reason.startswith(disposition.cause)


@pytest.mark.parametrize(("outcome", "kind", "reason"), DISPOSITIONS, ids=str)
def test_dispositions_of_events_that_are_sent_at_most_once(outcome: Outcome, kind: str, reason: str) -> None:
    """If an event is sent at most once and may have been recorded, the message is never retried."""
    disposition = disposition_of(outcome, once=True)

    if kind == "retry" and isinstance(outcome, Abandoned | Kept) and outcome.maybe_recorded:
        assert (disposition.kind, disposition.cause) == ("dead", "at_most_once")
        assert disposition.reason.endswith(", may have been recorded")
    else:
        assert (kind, reason) == (disposition.kind, disposition.reason)


# --- the API fails ---


def test_nothing_is_acknowledged_before_its_outcome() -> None:
    """While no request is answered, no message is settled, and at most `window` messages are fetched."""

    async def test() -> None:
        transport = ScriptedTransport(then=PARKED)
        scene = Scene(transport).start()
        await scene.stream.publish(envelopes(range(100)))
        await asyncio.sleep(5.0)
        assert await scene.left() == Lag(waiting=60, pending=40)
        assert scene.relay.stats().in_hand == 40
        transport.then = OK
        transport.release()
        await scene.until_delivered(100)
        assert sorted(transport.recorded_numbers) == list(range(100))
        assert await scene.stop()

    run(test())


TROUBLES: dict[str, Step] = {
    "refused": NO_CONNECTION,
    "500": Step(reply=Reply(status=500)),
    "no answer": TIMED_OUT,
}


@pytest.mark.endurance
@pytest.mark.parametrize("trouble", TROUBLES)
def test_hours_of_outage(trouble: str) -> None:
    """In a long outage the relay fetches no more than `window` messages; after the outage it delivers all messages."""

    async def test() -> None:
        def then(request: Request) -> Step:
            return TROUBLES[trouble] if 1.0 <= request.at < HOURS else OK

        transport = ScriptedTransport(then=then)
        scene = Scene(transport, lease=30.0).start()
        for first in range(0, 300, 10):
            await scene.stream.publish(envelopes(range(first, first + 10)))
            await asyncio.sleep(0.1)
        await asyncio.sleep(HOURS - 100.0)
        stats = scene.relay.stats()
        assert stats.in_hand <= 40
        assert scene.relay.unready is None
        other = MemorySource(scene.stream, name="relay-2", lease=30.0)
        assert len(await other.fetch(500, 0.0)) == 300 - stats.received
        await other.release([Message(id=str(number), body=b"") for number in range(1, 301)])
        await asyncio.sleep(400.0)
        await scene.until_delivered(300)
        assert await scene.source.list_dead(10) == []
        assert Counter(transport.recorded_numbers) == Counter(range(300))
        assert await scene.stop()

    run(test())


@pytest.mark.endurance
@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("outlast", [True, False])
def test_a_wrong_key_makes_no_dead_letters(status: int, *, outlast: bool) -> None:
    """If the API refuses key, shop or address, the relay is unready, makes no dead letters, and later delivers all."""

    async def test() -> None:
        transport = ScriptedTransport(then=status)
        retry = RetryPolicy(max_halt=5.0, outlast=outlast)
        scene = Scene(transport, client={"retry": retry}).start()
        await scene.stream.publish(envelopes(range(100)))
        await asyncio.sleep(HOURS)
        assert scene.relay.unready == "sending is halted: the log says what to correct"
        assert scene.relay.stats().in_hand <= 40
        # The relay pauses between its attempts, so there is less than one request per second.
        assert len(transport.requests) < HOURS
        transport.then = OK
        await scene.until_delivered(100)
        assert scene.relay.unready is None
        assert await scene.source.list_dead(10) == []
        assert sorted(transport.recorded_numbers) == list(range(100))
        assert await scene.stop()

    run(test())


WELCOME = b'{"welcomeSequence":{"sessionExternalId":"v1","email":"a@b.ru","timestamp":"2026-03-01T10:15:00+00:00"}}'


@pytest.mark.parametrize(
    "body",
    [
        WELCOME,
        b" \n" + WELCOME.replace(b":{", b" : {", 1),
        WELCOME.replace(b"welcome", b"\\u0077elcome", 1),
        WELCOME.replace(b',"timestamp":"2026-03-01T10:15:00+00:00"', b""),
    ],
)
def test_a_crash_does_not_repeat_an_event_that_is_sent_at_most_once(body: bytes) -> None:
    """If a relay is killed during a request, the next relay sends all events but `WelcomeSequence`, which is dead."""

    async def test() -> None:
        transport = ScriptedTransport(PARKED)
        first = Scene(transport, lease=1.0).start()
        await first.stream.publish([body, *envelopes(range(3))])
        await first.until(lambda: transport.parked == 1)
        # The first relay never settles its messages: its process was killed.
        transport.then = OK
        second = Scene(transport, stream=first.stream, name="relay-2", lease=1.0)
        first.relay._source.connected = False
        first.source.extend = _fail
        first.source.settle = _fail
        second.start()
        await second.until(lambda: sum(second.relay.stats().dead.values()) == 1)
        await second.until_delivered(3)
        [letter] = await second.source.list_dead(10)
        assert letter.body == body
        assert letter.reason == "at_most_once: handed out before, may have been recorded"
        assert sum(b"elcomeSequence" in request.body for request in transport.requests) == 1
        assert await second.stop()
        transport.release()
        first.running.cancel()
        await asyncio.wait({first.running})

    run(test())


async def _fail(*_: object) -> None:
    raise ConnectionError("the process was killed")


def test_an_end_during_a_request_does_not_repeat_an_event_that_is_sent_at_most_once() -> None:
    """If a relay ends during a request, its `WelcomeSequence` becomes a dead letter, and other events are returned."""

    async def test() -> None:
        transport = ScriptedTransport(then=PARKED)
        scene = Scene(transport, grace=1.0).start()
        await scene.stream.publish([WELCOME, *envelopes(range(3))])
        await scene.until(lambda: transport.parked == 1)
        assert await scene.stop()
        [letter] = await scene.source.list_dead(10)
        assert (letter.body, letter.reason) == (WELCOME, "at_most_once: closed, may have been recorded")
        assert scene.relay.stats().released == 3

    run(test())


class Recording(MemorySource):
    """A source whose broker does not count deliveries.

    Attributes:
        recorded: the messages that the relay was about to send.
        lost: whether the messages belong to another relay now.
        fails: whether the next calls fail.
    """

    def __init__(self, stream: MemoryStream) -> None:
        super().__init__(stream)
        self.recorded: list[bytes] = []
        self.lost = self.fails = False

    async def record_sending(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Record the messages."""
        if self.fails:
            raise ConnectionError("away")
        self.recorded += [message.body for message in messages]
        return [] if self.lost else messages


def test_a_source_records_what_is_about_to_be_sent() -> None:
    """If a broker does not count deliveries, the source records each `WelcomeSequence` before it is sent."""

    async def test() -> None:
        transport = ScriptedTransport()
        stream = MemoryStream()
        source = Recording(stream)
        source.fails = True
        scene = Scene(transport, stream=stream, source=source).start()
        await stream.publish([*envelopes(range(3)), WELCOME])
        await scene.until(lambda: scene.relay.unready is not None)
        assert not any(b"welcomeSequence" in request.body for request in transport.requests)
        source.fails = False
        await scene.until_delivered(4)
        assert source.recorded == [WELCOME]
        assert scene.relay.unready is None
        assert await scene.stop()

    run(test())


def test_a_message_of_another_relay_is_not_sent() -> None:
    """If a `WelcomeSequence` belongs to another relay when it is about to be sent, this relay does not send it."""

    async def test() -> None:
        transport = ScriptedTransport()
        stream = MemoryStream()
        source = Recording(stream)
        source.lost = True
        scene = Scene(transport, stream=stream, source=source).start()
        await stream.publish([WELCOME, *envelopes(range(3))])
        await scene.until_delivered(3)
        assert not any(b"welcomeSequence" in request.body for request in transport.requests)
        assert await scene.stop()

    run(test())


@pytest.mark.parametrize("allowed", [False, True])
def test_allow_extra(*, allowed: bool) -> None:
    """If `allow_extra` is set, undocumented fields are delivered; otherwise their event becomes a dead letter."""

    async def test() -> None:
        transport = ScriptedTransport()
        scene = Scene(transport, allow_extra=allowed).start()
        await scene.stream.publish([b'{"view":{"sessionExternalId":"v1","productId":1,"link":{"name":"crm"}}}'])
        await scene.until(lambda: scene.relay.stats().delivered + sum(scene.relay.stats().dead.values()) == 1)
        assert any(b'"link":{"name":"crm"}' in request.body for request in transport.requests) is allowed
        assert await scene.stop()

    run(test())


def test_a_retry_with_nothing_in_flight() -> None:
    """If the API went down and no event is in flight, the relay still sends the next event."""

    async def test() -> None:
        transport = ScriptedTransport(*[TIMED_OUT] * 3, NO_CONNECTION, NO_CONNECTION)
        scene = Scene(transport, client={"retry": RetryPolicy(at_most_once=(Order,), max_elapsed=0.0)}).start()
        await scene.stream.publish([CODEC.encode(event(1, kind=Order))])
        await scene.until(lambda: scene.relay.stats().dead == {"at_most_once": 1})
        await scene.stream.publish(envelopes(range(2, 8)))
        await scene.until(lambda: sum(scene.relay.stats().dead.values()) + scene.relay.stats().delivered == 7)
        assert await scene.stop()

    run(test())


@pytest.mark.endurance
def test_a_stalled_api_and_two_relays() -> None:
    """If the API stalls for many leases, no relay gets messages that the other has fetched; each event is sent once."""

    async def test() -> None:
        transport = ScriptedTransport(then=lambda request: NO_CONNECTION if 1.0 <= request.at < 400.0 else OK)
        stream = MemoryStream()
        both = [Scene(transport, stream=stream, name=name, lease=6.0).start() for name in ("relay-1", "relay-2")]
        for first in range(0, 300, 10):
            await stream.publish(envelopes(range(first, first + 10)))
            await asyncio.sleep(0.1)
        await both[0].until(lambda: sum(scene.relay.stats().delivered for scene in both) == 300, 2000.0)
        assert Counter(transport.recorded_numbers) == Counter(range(300))
        assert [await scene.stop() for scene in both] == [True, True]

    run(test())


def test_order_amid_faults() -> None:
    """Even if requests fail and are repeated, each visitor's events are recorded in the order of the stream."""

    async def test() -> None:
        transport = ScriptedTransport(
            then=lambda request: (200, 500, 200, 429, NO_CONNECTION, 200)[len(transport.requests) % 6]
        )
        scene = Scene(transport).start()
        await scene.stream.publish(envelopes(range(300)))
        await scene.until_delivered(300, 5000.0)
        for visitor in range(7):
            own = [number for name, number in transport.recorded if name == f"v{visitor}"]
            assert own == sorted(own)
        assert await scene.stop()

    run(test())


# --- limits on what the relay holds ---


def test_the_window_in_bytes() -> None:
    """The relay's unsettled messages have at most `window_bytes` bytes, plus the bytes of one fetch."""

    async def test() -> None:
        large = [
            b'{"search":{"sessionExternalId":"v","searchPhrase":"%d"}}' % (10**3000 + number) for number in range(60)
        ]
        transport = ScriptedTransport(then=PARKED)
        scene = Scene(transport, window_bytes=20_000).start()
        await scene.stream.publish(large)
        await asyncio.sleep(5.0)
        assert 0 < scene.relay.stats().size <= 20_000 + 10 * len(large[0])
        transport.then = OK
        while scene.relay.stats().delivered < 60:
            transport.release()
            assert scene.relay.stats().size <= 20_000 + 10 * len(large[0])
            await asyncio.sleep(0.01)
        await scene.until_delivered(60)
        assert scene.relay.stats().size == 0
        assert await scene.stop()

    run(test())


@pytest.mark.parametrize("overflow", ["wait", "raise"])
def test_a_smaller_buffer(overflow: Any) -> None:
    """If the client's buffer is smaller than the relay's `window`, the relay waits for room and delivers all events."""

    async def test() -> None:
        transport = ScriptedTransport()
        buffer = Buffer(max_events=5, overflow=overflow)
        scene = Scene(transport, client={"buffer": buffer}).start()
        await scene.stream.publish(envelopes(range(100)))
        await scene.until_delivered(100)
        assert Counter(transport.recorded_numbers) == Counter(range(100))
        assert await scene.stop()

    run(test())


@pytest.mark.parametrize("overflow", ["wait", "raise"])
def test_stopped_while_it_waits_for_room(overflow: Any) -> None:
    """If a relay is stopped while it waits for room in the buffer, it gives its messages back to the broker."""

    async def test() -> None:
        transport = ScriptedTransport(then=PARKED)
        buffer = Buffer(max_events=5, overflow=overflow)
        scene = Scene(transport, client={"buffer": buffer}, grace=1.0).start()
        await scene.stream.publish(envelopes(range(100)))
        await asyncio.sleep(5.0)
        began = now()
        assert await scene.stop()
        assert now() - began <= 8.0
        stats = scene.relay.stats()
        assert stats.released == stats.received > 0
        assert (await scene.left()).pending == stats.released

    run(test())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch must be"),
        ({"batch": True}, "batch must be"),
        ({"batch": 50}, "window must be an int of 50 or more"),
        ({"window": 9}, "window must be an int of 10 or more"),
        ({"window_bytes": 0}, "window_bytes must be"),
        ({"grace": -1}, "grace must be"),
        ({"grace": float("nan")}, "grace must be"),
        ({"grace": float("inf")}, "grace must be"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    """If an option is out of range, the constructor raises an error that names the option."""

    async def test() -> None:
        with pytest.raises(ConfigurationError, match=message):
            Scene(ScriptedTransport(), **options)

    run(test())


# --- stopping the relay ---


def test_the_end_waits_for_what_was_fetched() -> None:
    """After `stop` the relay stops fetching, waits for the outcomes of its messages, and settles them."""

    async def test() -> None:
        transport = ScriptedTransport(then=Step(latency=2.0))
        scene = Scene(transport).start()
        await scene.stream.publish(envelopes(range(300)))
        await asyncio.sleep(1.0)
        assert scene.relay.unready is None
        scene.relay.stop()
        assert scene.relay.unready == "stopping"
        assert await scene.stop()
        stats = scene.relay.stats()
        assert stats.delivered == stats.received > 0
        assert await scene.left() == Lag(waiting=300 - stats.received, pending=0)
        assert tasks() == set()

    run(test())


def test_what_is_not_delivered_in_time_is_given_back() -> None:
    """If a message has no outcome at the end of the grace time, it is given back, and another relay delivers it."""

    async def test() -> None:
        transport = ScriptedTransport(then=NO_CONNECTION)
        scene = Scene(transport, grace=3.0).start()
        await scene.stream.publish(envelopes(range(30)))
        await asyncio.sleep(10.0)
        began = now()
        assert await scene.stop()
        assert 3.0 <= now() - began <= 4.0
        assert scene.relay.stats().released == 30
        transport.then = OK
        other = Scene(transport, stream=scene.stream, name="relay-2").start()
        await other.until_delivered(30, 5.0)
        assert await other.stop()
        assert Counter(transport.recorded_numbers) == Counter(range(30))

    run(test())


def test_no_call_after_the_source_is_closed() -> None:
    """After the relay has closed its source it calls no method of the source, because a call would connect again."""

    class Slow(MemorySource):
        calls: list[str]

        async def extend(self, messages: Sequence[Message]) -> None:
            self.calls.append("extend")

        async def aclose(self) -> None:
            self.calls.append("aclose")
            await asyncio.sleep(4.0)

    async def test() -> None:
        stream = MemoryStream()
        source = Slow(stream, lease=1.5)
        source.calls = []
        scene = Scene(ScriptedTransport(), stream=stream, source=source).start()
        await asyncio.sleep(2.2)
        assert await scene.stop()

        assert source.calls.count("extend") >= 4
        assert source.calls.index("aclose") == len(source.calls) - 1
        with pytest.raises(ConnectionError, match="the relay has ended"):
            await scene.relay.lag()

    run(test())


def test_runs_once() -> None:
    """If a relay has run, a second `run` raises, because its client is closed."""

    async def test() -> None:
        scene = Scene(ScriptedTransport()).start()
        await asyncio.sleep(1.0)
        assert await scene.stop()
        with pytest.raises(UsageError, match="runs once"):
            await scene.relay.run()

    run(test())


# --- the broker fails ---


class Shaky:
    """A wrapper of a `MemorySource`, in which one method fails or hangs.

    Attributes:
        fails: the name of the method that fails; None if no method fails.
        hangs: whether the method hangs instead of failing.
        after: whether the method fails after its work is done, as if the answer were lost.
    """

    def __init__(
        self, source: MemorySource, fails: str | None = None, *, hangs: bool = False, after: bool = False
    ) -> None:
        self._source = source
        self.lease = source.lease
        self.fails = fails
        self.hangs = hangs
        self.after = after
        self.opened = 0

    async def _do(self, method: str, *arguments: Any) -> Any:
        if method == self.fails:
            if self.hangs:
                await asyncio.sleep(1e9)
            if self.after:
                await getattr(self._source, method)(*arguments)
            raise ConnectionError(f"redis://user:s3cret@redis:6379/0 is away: {method}")
        return await getattr(self._source, method)(*arguments)

    async def open(self) -> None:
        """Connect, unless this method shall fail or hang."""
        await self._do("open")
        self.opened += 1

    async def fetch(self, most: int, wait: float) -> Sequence[Message]:
        """Fetch, unless this method shall fail or hang."""
        found: Sequence[Message] = await self._do("fetch", most, wait)
        return found

    async def settle(self, done: Sequence[Message], dead: Sequence[tuple[Message, str]]) -> None:
        """Settle the messages, unless this method shall fail or hang."""
        await self._do("settle", done, dead)

    async def extend(self, messages: Sequence[Message]) -> None:
        """Extend the leases of the messages, unless this method shall fail or hang."""
        await self._do("extend", messages)

    async def release(self, messages: Sequence[Message]) -> None:
        """Give the messages back, unless this method shall fail or hang."""
        await self._do("release", messages)

    async def lag(self) -> Lag:
        """Return the lag, unless this method shall fail or hang."""
        lag: Lag = await self._do("lag")
        return lag

    async def aclose(self) -> None:
        """Disconnect, unless this method shall fail or hang."""
        await self._do("aclose")

    async def list_dead(self, most: int) -> Sequence[DeadLetter]:
        """List the dead letters."""
        return await self._source.list_dead(most)


@pytest.mark.parametrize(
    ("method", "after"),
    # `fetch` is not tested with an error after its work, because each source itself returns the lost messages again.
    [
        ("open", False),
        ("open", True),
        ("fetch", False),
        *((call, late) for call in ("settle", "extend") for late in (False, True)),
    ],
)
def test_a_failing_call(method: str, caplog: pytest.LogCaptureFixture, *, after: bool) -> None:
    """If a call to the broker fails, the relay is unready and logs this once; then it continues and loses nothing."""

    async def test() -> None:
        transport = ScriptedTransport()
        stream = MemoryStream()
        # Messages in a lost answer are fetched again when their lease is over, so the lease is short.
        shaky = Shaky(MemorySource(stream, lease=6.0), method if method == "open" else None, after=after)
        scene = Scene(transport, stream=stream, source=shaky).start()
        await stream.publish([*envelopes(range(100)), JUNK])
        if method != "open":
            await asyncio.sleep(0.12)
            shaky.fails = method
            await stream.publish(envelopes(range(100, 120)))
        await asyncio.sleep(30.0)
        assert scene.relay.unready is not None
        assert "ConnectionError" in scene.relay.unready
        assert "s3cret" not in scene.relay.unready
        assert scene.relay.stats().connected is False
        shaky.fails = None
        events = 100 + 20 * (method != "open")
        await scene.until(lambda: len(set(transport.recorded_numbers)) == events)
        await scene.until(lambda: scene.relay.unready is None and all_settled(scene.relay, events + 1))
        assert [letter.body for letter in await shaky.list_dead(10)] == [JUNK]
        assert scene.relay.stats().broker_failures > 2
        assert await scene.stop()
        assert len(transport.recorded_numbers) == len(set(transport.recorded_numbers))

    with caplog.at_level(logging.INFO, "retailrocket_async"):
        run(test())
    logged = [record.getMessage() for record in caplog.records]
    assert [text.split(":")[0].split(",")[0] for text in logged] == ["the broker is lost", "the broker is back"]
    assert not any("s3cret" in text for text in logged)


@pytest.mark.parametrize("method", ["open", "fetch", "settle", "extend"])
def test_a_hanging_call(method: str) -> None:
    """If a call to the broker hangs, it fails after a time-out, and the relay can be stopped meanwhile."""

    async def test() -> None:
        transport = ScriptedTransport()
        stream = MemoryStream()
        shaky = Shaky(MemorySource(stream, lease=60.0), method, hangs=True)
        scene = Scene(transport, stream=stream, source=shaky, grace=1.0).start()
        await stream.publish(envelopes(range(50)))
        await asyncio.sleep(100.0)
        if method != "extend":
            assert scene.relay.stats().broker_failures > 0
        began = now()
        clean = await scene.stop()
        assert now() - began <= 20.0
        assert clean == (method != "settle")
        shaky.fails = None
        other = Scene(transport, stream=stream, name="relay").start()
        await other.until(lambda: len(set(transport.recorded_numbers)) == 50)
        assert await other.stop()

    run(test())


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("method", ["release", "aclose"])
def test_a_failing_end(method: str, *, hangs: bool) -> None:
    """If the broker fails while the relay ends, the relay still ends, but cannot give its messages back."""

    async def test() -> None:
        stream = MemoryStream()
        shaky = Shaky(MemorySource(stream), method, hangs=hangs)
        scene = Scene(ScriptedTransport(then=NO_CONNECTION), stream=stream, source=shaky, grace=0.0).start()
        await stream.publish(envelopes(range(5)))
        await asyncio.sleep(2.0)
        scene.relay.stop()
        assert await scene.running
        assert (await MemorySource(stream).lag()).pending == 5
        assert tasks() == set()

    run(test())


class Stubborn(Shaky):
    """A source of which one method ignores its first `swallows` cancellations and keeps hanging."""

    def __init__(self, source: MemorySource, method: str, swallows: int) -> None:
        super().__init__(source)
        self.method = method
        self.swallows = swallows
        self.let_go = asyncio.Event()

    async def _do(self, method: str, *arguments: Any) -> Any:
        while method == self.method and self.swallows:
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                self.swallows -= 1
                if not self.swallows:
                    raise
            else:
                break
        return await super()._do(method, *arguments)


@pytest.mark.parametrize("swallows", [2, 1000])
@pytest.mark.parametrize("method", ["open", "fetch", "settle", "extend", "release", "aclose"])
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_library_that_swallows_cancellations(
    method: str, swallows: int, caplog: pytest.LogCaptureFixture, *, cancelled: bool
) -> None:
    """If the broker's library swallows cancellations, a relay that is stopped or cancelled still ends."""

    async def test() -> None:
        stream = MemoryStream()
        source = Stubborn(MemorySource(stream, lease=6.0), method, swallows)
        scene = Scene(ScriptedTransport(), stream=stream, source=source, grace=1.0).start()
        await stream.publish([*envelopes(range(5)), JUNK])
        await asyncio.sleep(5.0)
        began = now()
        if cancelled:
            scene.running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await scene.running
        else:
            scene.relay.stop()
            await scene.running
        assert now() - began <= 45.0
        source.let_go.set()
        await turns(20)
        assert tasks() == set()

    run(test())
    assert ("goes on although it was cancelled" in caplog.text) == (swallows == 1000)


class Odd(BaseException):
    """An error that no library should raise."""


@pytest.mark.parametrize("raised", [asyncio.CancelledError, Odd])
@pytest.mark.parametrize("method", ["open", "fetch", "settle", "extend", "release", "aclose"])
def test_a_library_that_raises_anything(method: str, raised: type[BaseException]) -> None:
    """If the library raises `CancelledError` or another `BaseException`, the relay treats this as a broker failure."""

    class Raising(Shaky):
        async def _do(self, method: str, *arguments: Any) -> Any:
            if method == self.fails:
                raise raised
            return await super()._do(method, *arguments)

    async def test() -> None:
        transport = ScriptedTransport()
        stream = MemoryStream()
        source = Raising(MemorySource(stream, lease=6.0), method)
        scene = Scene(transport, stream=stream, source=source).start()
        await stream.publish([*envelopes(range(20)), JUNK])
        await asyncio.sleep(10.0)
        if method in ("open", "fetch", "settle", "extend"):
            assert raised.__name__ in (scene.relay.unready or "") or raised is asyncio.CancelledError
            assert scene.relay.unready is not None
            source.fails = None
        await scene.until_settled(21)
        assert await scene.stop()
        assert tasks() == set()

    run(test())


def test_outcomes_of_the_last_moment_are_settled() -> None:
    """If an outcome arrives while the stopped relay waits for the broker, the message of this outcome is settled."""

    class Slow(Shaky):
        async def settle(self, done: Sequence[Message], dead: Sequence[tuple[Message, str]]) -> None:
            if self.hangs:
                self.hangs = False
                await asyncio.sleep(1e9)
            await super().settle(done, dead)

    async def test() -> None:
        transport = ScriptedTransport(OK, then=Step(latency=3.0))
        stream = MemoryStream()
        source = Slow(MemorySource(stream), hangs=True)
        scene = Scene(transport, stream=stream, source=source, grace=10.0).start()
        await stream.publish(envelopes(range(20)))
        # The first batch is delivered, and settling it hangs; the second batch is in flight.
        await scene.until(lambda: scene.relay.stats().unsettled == 10 and scene.client.stats().in_flight == 10)
        assert await scene.stop()
        assert await scene.left() == Lag(waiting=0, pending=0)
        assert scene.relay.stats().delivered == 20

    run(test())


@pytest.mark.parametrize("after", [False, True])
def test_dead_letters_that_cannot_be_kept(*, after: bool) -> None:
    """If dead letters cannot be stored, the relay is unready, but delivers later messages while `window` allows it."""

    class Full(Shaky):
        async def settle(self, done: Sequence[Message], dead: Sequence[tuple[Message, str]]) -> None:
            if dead and self.hangs:
                if after:
                    await super().settle(done, dead)
                raise ConnectionError("there is no room")
            await super().settle(done, dead)

    async def test() -> None:
        transport = ScriptedTransport()
        stream = MemoryStream()
        source = Full(MemorySource(stream, lease=6.0), hangs=True)
        scene = Scene(transport, stream=stream, source=source).start()
        await stream.publish([JUNK, *envelopes(range(100)), JUNK])
        await scene.until_delivered_besides(100, 2)
        assert scene.relay.unready == "dead letters cannot be kept: ConnectionError: there is no room"
        await stream.publish([JUNK] * 100)
        await asyncio.sleep(60.0)
        assert scene.relay.stats().unsettled <= 40
        if not after:
            assert (await scene.left()).pending == scene.relay.stats().unsettled
            assert await source.list_dead(999) == []
        source.hangs = False
        await scene.until(lambda: sum(scene.relay.stats().dead.values()) == 102)
        await scene.until(lambda: scene.relay.unready is None and all_settled(scene.relay, 202))
        assert len(await source.list_dead(999)) == 102
        assert await scene.stop()
        assert await scene.left() == Lag(waiting=0, pending=0)
        assert Counter(transport.recorded_numbers) == Counter(range(100))

    run(test())


def test_what_cannot_be_settled_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """If the broker fails until the relay has ended, the log says that delivered messages will be delivered again."""

    async def test() -> None:
        stream = MemoryStream()
        shaky = Shaky(MemorySource(stream), "settle")
        scene = Scene(ScriptedTransport(), stream=stream, source=shaky, grace=2.0).start()
        await stream.publish(envelopes(range(5)))
        await asyncio.sleep(5.0)
        scene.relay.stop()
        assert await scene.running is False
        assert scene.relay.stats().unsettled == 5

    run(test())
    assert "5 messages could not be settled at the end, and will be delivered again" in caplog.text


def test_wrong_configuration_ends_it() -> None:
    """If `open` raises `ConfigurationError`, `run` raises this error instead of connecting again."""

    class Wrong(Shaky):
        async def open(self) -> None:
            raise ConfigurationError("the key 'events' holds no stream")

    async def test() -> None:
        scene = Scene(ScriptedTransport(), source=Wrong(MemorySource(MemoryStream()))).start()
        with pytest.raises(ConfigurationError, match="holds no stream"):
            await scene.running
        assert tasks() == set()

    run(test())


# --- cancellation ---


@pytest.mark.untraced
@pytest.mark.parametrize("turn", [*range(60), *range(60, 400, 11)])
def test_cancelled_in_any_turn(turn: int) -> None:
    """If a relay is cancelled in any turn of the event loop, the next relay delivers all unsettled messages."""

    async def test() -> None:
        transport = ScriptedTransport(
            then=lambda request: 503 if len(transport.requests) % 5 == 0 else 400 if 13 in request.numbers else 200
        )
        scene = Scene(transport).start()
        await scene.stream.publish([*envelopes(range(20)), JUNK, *envelopes(range(20, 60))])
        for _ in range(turn):
            await asyncio.sleep(0 if turn < 60 else 0.003)
        scene.running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await scene.running
        await turns(20)
        assert tasks() == set()
        other = Scene(transport, stream=scene.stream, name="relay-2").start()
        await other.until(lambda: len(set(transport.recorded_numbers)) == 59)
        await other.until_nothing_is_left()
        assert await other.stop()
        assert await other.left() == Lag(waiting=0, pending=0)
        assert {letter.body for letter in await other.source.list_dead(10)} == {JUNK, *envelopes(range(13, 14))}
        # Events that were in flight when the relay was cancelled may have been recorded twice.
        assert len(transport.recorded_numbers) - 59 <= 80

    run(test())


def test_cancelled_while_it_ends() -> None:
    """If a relay is cancelled during the grace time, it ends at once, after settling all messages with an outcome."""

    async def test() -> None:
        transport = ScriptedTransport(OK, then=PARKED)
        scene = Scene(transport).start()
        await scene.stream.publish(envelopes(range(30)))
        await asyncio.sleep(2.0)
        scene.relay.stop()
        await asyncio.sleep(1.0)
        scene.running.cancel()
        began = now()
        with pytest.raises(asyncio.CancelledError):
            await scene.running
        assert now() - began <= 1.0
        assert (await scene.left()).pending == 30 - len(transport.recorded)
        scene.check()

    run(test())
