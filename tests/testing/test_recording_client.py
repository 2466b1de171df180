"""`RecordingClient` has all methods of the real client, records events, and fails on demand."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import threading
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any, get_args

import pytest

from retailrocket_async import (
    Abandoned,
    AsyncTrackingClient,
    Batching,
    Buffer,
    BufferFullError,
    ClientClosedError,
    ConfigurationError,
    CustomEvent,
    Delivered,
    DroppedError,
    Event,
    EventValidationError,
    GroupView,
    NoAnswerError,
    Order,
    RateLimit,
    Rejected,
    RetryPolicy,
    Search,
    ServerError,
    SqliteSpool,
    View,
    WrongLoopError,
)
from retailrocket_async.emulator import FaultKind as EmulatorKind
from retailrocket_async.testing import FaultKind, RecordingClient
from tests.support.raw_server import raw_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path


def view(product_id: int = 1) -> View:
    """Return a view of a product."""
    return View(session_external_id="visitor", product_id=product_id)


def order(transaction: str = "T-1", quantity: int = 1) -> Order:
    """Return an order of one line."""
    return Order(session_external_id="visitor", product_id=1, quantity=quantity, price=10, transaction=transaction)


async def each(*events: Event) -> AsyncIterator[Event]:
    """Yield events asynchronously."""
    for event in events:
        yield event


async def cancelled(task: asyncio.Task[Any], turns: int = 1) -> None:
    """Cancel a task after `turns` turns of the loop, and wait for its end."""
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


class Gate:
    """A limiter that grants no permit until the event `opened` is set."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def acquire(self) -> None:
        """Wait until the event `opened` is set."""
        await self.opened.wait()

    def pause_until(self, deadline: float) -> None:
        """Ignore the call, which the limiter's protocol requires."""

    def throttled(self, sent_at: float) -> None:
        """Ignore the call, which the limiter's protocol requires."""


# --- the client's surface ---

MEMBERS = [name for name in dir(AsyncTrackingClient) if not name.startswith("_")]


@pytest.mark.parametrize("name", MEMBERS)
def test_the_whole_surface_is_there(name: str) -> None:
    """If the client has a public method, the recording client has it with the same signature."""
    theirs, ours = (inspect.getattr_static(cls, name) for cls in (AsyncTrackingClient, RecordingClient))

    assert type(theirs) is type(ours)
    if callable(theirs):
        assert inspect.signature(theirs) == inspect.signature(ours)
        assert inspect.iscoroutinefunction(theirs) == inspect.iscoroutinefunction(ours)


def test_it_takes_what_the_client_takes() -> None:
    """If the client has an argument, the recording client has it, too, except `http_client`."""
    theirs, ours = (inspect.signature(cls).parameters for cls in (AsyncTrackingClient, RecordingClient))

    assert [name for name in theirs if name != "http_client"] == list(ours)
    assert [each.name for each in ours.values() if each.default is inspect.Parameter.empty] == []
    assert [name for name in ours if theirs[name].kind is not ours[name].kind] == []


def test_what_the_client_refuses_is_refused() -> None:
    """If an argument is invalid for the client, the recording client refuses it, too."""

    async def hook(event: Event) -> Event:
        return event

    for wrong in ({"buffer": Batching()}, {"before_send": hook}, {"before_send": 5}, {"timeout": 0}):
        arguments: dict[str, Any] = wrong
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            RecordingClient(**arguments)


async def test_nothing_leaves_the_process() -> None:
    """If a server listens at the `base_url`, the recording client sends no request to it and needs no credentials."""
    async with raw_server() as server, RecordingClient(base_url=server.url) as tracked:
        receipt = await tracked.track(view())
        outcome = await receipt

    assert (Delivered, 200, 0) == (type(outcome), outcome.status, server.connections)


# --- what is recorded ---


def _in_a_thread(work: Callable[[Any], object]) -> Callable[[RecordingClient], Awaitable[object]]:
    return lambda client: asyncio.to_thread(work, client.threadsafe())


METHODS: dict[str, Callable[[RecordingClient], Awaitable[object]]] = {
    "a method of its own": lambda client: client.view(session_external_id="visitor", product_id=1),
    "track": lambda client: client.track(view()),
    "track_nowait": lambda client: asyncio.sleep(0, client.track_nowait(view())),
    "track_many": lambda client: client.track_many([view()]),
    "track_many, async": lambda client: client.track_many(each(view())),
    "track_envelopes": lambda client: client.track_envelopes(
        [b'{"view":{"sessionExternalId":"visitor","productId":1}}', b'{"view":{}}']
    ),
    "send": lambda client: client.send(view()),
    "send_batch": lambda client: client.send_batch([view()]),
    "a thread's track": _in_a_thread(lambda handle: handle.track(view())),
    "a thread's track_many": _in_a_thread(lambda handle: handle.track_many([view()])),
}


@pytest.mark.parametrize("spooled", [False, True], ids=["in memory", "with a spool"])
async def test_whichever_way_an_event_comes(tmp_path: Path, *, spooled: bool) -> None:
    """If an event is tracked by any method, it is recorded once, in order, with or without a spool."""
    spool = SqliteSpool(tmp_path / "events.db") if spooled else None
    async with RecordingClient(spool=spool) as tracked:
        for number, method in enumerate(METHODS.values()):
            await tracked.track(order(str(number)))
            await method(tracked)

        names = [event.event_name for event in tracked.events]
        assert ["order", "view"] * len(METHODS) == names
        assert [str(number) for number in range(len(METHODS))] == [each.transaction for each in tracked.of(Order)]


@pytest.mark.parametrize("method", METHODS)
async def test_what_is_refused_is_not_recorded(method: str) -> None:
    """If the client is closed, every method raises, and nothing is recorded."""
    tracked = RecordingClient()
    handle = tracked.threadsafe()
    await tracked.aclose()
    call = functools.partial(asyncio.to_thread, handle.track, view()) if "thread" in method else METHODS[method]
    with pytest.raises(ClientClosedError):
        await call(*() if "thread" in method else (tracked,))

    assert tracked.events == []


async def test_what_is_too_large_or_no_event_is_not_recorded() -> None:
    """If the client raises for an event, this event is not recorded, but earlier events are."""
    large = Search(session_external_id="visitor", search_phrase="x" * 2000)
    nothing: Any = "view"
    async with RecordingClient(batching=Batching(max_bytes=1024)) as tracked:
        await tracked.track(view())
        for wrong in (large, nothing):
            for call in (tracked.track, tracked.send):
                with pytest.raises(EventValidationError):
                    await call(wrong)
            for many in (tracked.track_many, tracked.send_batch):
                with pytest.raises(EventValidationError):
                    await many([view(2), wrong])
            with pytest.raises(EventValidationError):
                tracked.track_nowait(wrong)

        assert [1, 2, 2] == [each.product_id for each in tracked.of(View)]
        assert [] == tracked.of(Search)


async def test_an_event_that_waits_for_room_is_not_recorded_yet() -> None:
    """If a call for a full buffer raises, or is cancelled while it waits for space, the event is not recorded."""
    gate = Gate()
    async with RecordingClient(buffer=Buffer(max_events=1), limiter=gate) as tracked:
        tracked.track_nowait(view(1))
        with pytest.raises(BufferFullError):
            tracked.track_nowait(view(2))
        await cancelled(asyncio.create_task(tracked.track(view(3))))
        waiting = asyncio.create_task(tracked.track(view(4)))
        await asyncio.sleep(0)
        recorded = tracked.of(View)
        gate.opened.set()
        await waiting

    assert [1] == [each.product_id for each in recorded]
    assert [1, 4] == [each.product_id for each in tracked.of(View)]


async def test_a_send_is_recorded_before_its_answer() -> None:
    """If an event is sent by `send`, it is recorded when it is sent, even if the call fails afterwards."""
    async with RecordingClient() as tracked:
        tracked.fail_with(status=503, times=None)
        with pytest.raises(ServerError):
            await tracked.send(order())
        await cancelled(asyncio.create_task(tracked.send_batch([view(1), view(2)])))

        assert ["order", "view", "view"] == [event.event_name for event in tracked.events]


async def test_before_send_decides_what_is_recorded() -> None:
    """If `before_send` returns an event, this event is recorded; if it drops the event, nothing is recorded."""

    def without_searches(event: Event) -> Event | None:
        if isinstance(event, Order):
            raise LookupError  # noqa: TRY004 - any error will do
        return view(7) if isinstance(event, View) else None

    async with RecordingClient(before_send=without_searches) as tracked:
        search = Search(session_external_id="visitor", search_phrase="tea")
        for event in (view(1), search, order()):
            await tracked.track(event)
            await asyncio.to_thread(tracked.threadsafe().track, event)
        with pytest.raises(DroppedError):
            await tracked.send(search)
        await tracked.send_batch([search, view(1)])

        assert ["view", "view", "order", "order", "view"] == [event.event_name for event in tracked.events]
        assert {7} == {each.product_id for each in tracked.of(View)}
        assert (2, 4) == (tracked.stats().hook_errors, tracked.stats().dropped)


async def test_other_tasks_do_not_mix_events_up() -> None:
    """If several tasks and threads track at the same time, the events of each are recorded once, in order."""
    async with RecordingClient() as tracked:
        handle = tracked.threadsafe()

        async def work(task: int) -> None:
            for number in range(600):
                await tracked.track(view(task * 1000 + number))

        def work_in_a_thread() -> None:
            handle.track_many([view(9000 + number) for number in range(600)])

        await asyncio.gather(work(1), work(2), asyncio.to_thread(work_in_a_thread))
        recorded = [each.product_id for each in tracked.of(View)]

    for task in (1, 2, 9):
        assert [task * 1000 + number for number in range(600)] == [each for each in recorded if each // 1000 == task]


def test_one_client_is_for_one_loop() -> None:
    """If a second event loop uses the client, an error is raised, as with the real client."""
    tracked = RecordingClient()
    asyncio.run(_track(tracked))

    with pytest.raises(WrongLoopError):
        asyncio.run(_track(tracked))
    assert 1 == len(tracked.events)


async def _track(tracked: RecordingClient) -> None:
    await tracked.track(view())


def test_a_client_that_is_not_closed_warns_of_nothing() -> None:
    """If the client is not closed, there is no warning and no thread is left, even with events in flight."""

    async def forget() -> None:
        idle, busy = RecordingClient(), RecordingClient(batching=Batching(linger=60))
        await (await idle.track(view()))
        busy.fail_with(status=503, times=None)
        await busy.track(view())
        asyncio.create_task(busy.send(view()))  # noqa: RUF006 - abandoned on purpose
        await asyncio.sleep(0)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # A thread of an earlier test may still be ending, so it is not counted.
        before = set(threading.enumerate())
        asyncio.run(forget())
        gc.collect()

    assert set(threading.enumerate()) <= before


# --- finding events ---


async def test_events_are_found_by_class_and_fields() -> None:
    """If events are recorded, `of`, `one` and `none` find them by class and fields; `clear` removes all."""
    async with RecordingClient() as tracked:
        group = GroupView(session_external_id="visitor", group_id=1, product_ids=[1, 2])
        custom = CustomEvent(name="newEvent", fields={"sessionExternalId": "visitor"})
        events = [view(1), view(2), order(), group, custom]
        await tracked.track_many(events)

        assert events == tracked.events
        assert [view for view in events if isinstance(view, View)] == tracked.of(View)
        assert events[1] is tracked.one(View, product_id=2)
        assert group is tracked.one(GroupView, product_ids=[1, 2])
        assert group is tracked.one(GroupView, product_ids=(1, 2))
        assert custom is tracked.one(CustomEvent, name="newEvent")
        assert events[:4] == tracked.of(Event, session_external_id="visitor")
        assert events[2] is tracked.one(Order, price=pytest.approx(10), transaction="T-1")
        tracked.none(Search)
        tracked.none(View, product_id=3)
        tracked.clear()
        assert [] == tracked.events
        tracked.none(Event)


def error_lines(call: Callable[..., object], *arguments: Any, **fields: object) -> list[str]:
    """Return the lines of a failed assertion's error."""
    with pytest.raises(AssertionError) as caught:
        call(*arguments, **fields)
    return str(caught.value).splitlines()


async def test_a_failed_assertion_shows_what_was_tracked() -> None:
    """If an assertion fails, its error names the wanted event, lists the tracked events, and shows differing fields."""
    async with RecordingClient() as tracked:
        assert ["expected exactly one Order(transaction='T-1'), but nothing was tracked"] == error_lines(
            tracked.one, Order, transaction="T-1"
        )
        await tracked.track_many([view(1), view(2)])
        assert [
            "expected exactly one Order(), but none of 2 tracked events matched:",
            "  View(product_id=1, session_external_id='visitor')",
            "  View(product_id=2, session_external_id='visitor')",
        ] == error_lines(tracked.one, Order)
        await tracked.track(order("T-2", quantity=2))
        shown = "Order(product_id=1, quantity=2, price=10, transaction='T-2', session_external_id='visitor')"
        assert [
            "expected exactly one Order(transaction='T-1', quantity=1), but none of 3 tracked events matched:",
            f"  {shown}  <- transaction is 'T-2', not 'T-1', quantity is 2, not 1",
            "tracked in all: 2 View, 1 Order",
        ] == error_lines(tracked.one, Order, transaction="T-1", quantity=1)
        assert [
            "expected no View(product_id=2), but 1 of 3 tracked events matched:",
            "  View(product_id=2, session_external_id='visitor')",
            "tracked in all: 2 View, 1 Order",
        ] == error_lines(tracked.none, View, product_id=2)
        await tracked.track_many([view(number) for number in range(30)])
        several = error_lines(tracked.one, View)
        assert "expected exactly one View(), but 32 of 33 tracked events matched:" == several[0]
        assert ["  ... and 22 more of them", "tracked in all: 32 View, 1 Order"] == several[-2:]
        assert 13 == len(several)


async def test_an_error_stays_short() -> None:
    """If a text is long, the error shortens it; a timestamp is shown only if the test asked for it."""
    async with RecordingClient() as tracked:
        await tracked.track(Search(session_external_id="visitor", search_phrase="tea " * 500))
        [_, line] = error_lines(tracked.none, Search)
        with_moment = error_lines(tracked.one, Search, timestamp=None)

        assert len(line) < 200
        assert "timestamp is datetime" in with_moment[1]


async def test_a_mistyped_question_is_an_error() -> None:
    """If a field or class is unknown, `TypeError` is raised, because `none` would otherwise always pass."""
    async with RecordingClient() as tracked:
        for call in (tracked.of, tracked.one, tracked.none):
            ask: Callable[..., object] = call
            with pytest.raises(TypeError, match="View has no produkt_id; it has extra, product_id, session"):
                ask(View, produkt_id=1)
            with pytest.raises(TypeError, match="an event class"):
                ask("view")
        assert "0 event" in repr(tracked)


# --- failing on demand ---


async def test_an_outage_that_ends_delivers() -> None:
    """If the API answers two requests with 503, the event is retried without delay and then delivered."""
    async with RecordingClient() as tracked:
        tracked.fail_with(status=503, times=2)
        outcome = await (await tracked.track(view()))

    assert isinstance(outcome, Delivered)
    assert (3, True) == (outcome.attempts, outcome.maybe_duplicate)
    assert {503: 2, 200: 1} == tracked.stats().requests_by_status


@pytest.mark.parametrize(
    ("kind", "status", "recorded"),
    [
        ("status", 503, True),
        ("status", 429, False),
        ("connect", 503, False),
        ("reset_after", 503, True),
        ("stall", 503, True),
    ],
)
async def test_an_outage_that_does_not_end_abandons(kind: FaultKind, status: int, *, recorded: bool) -> None:
    """If every request fails, the event is `Abandoned`, and `maybe_recorded` is as expected for this failure."""
    async with RecordingClient() as tracked:
        tracked.fail_with(kind, status=status, times=None)
        outcome = await (await tracked.track(view()))

        assert isinstance(outcome, Abandoned)
        assert ("retries_exhausted", recorded, 5) == (outcome.reason, outcome.maybe_recorded, outcome.attempts)
        assert (status if kind == "status" else None) == outcome.status
        tracked.clear_faults()
        assert isinstance(await (await tracked.track(view())), Delivered)


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_wrong_key_rejects(status: int) -> None:
    """If key, shop or address is refused, waiting events are rejected at once, and not after `max_halt`."""
    async with RecordingClient() as tracked:
        tracked.fail_with(status=status, times=None)
        outcome = await (await tracked.track(view()))

        assert isinstance(outcome, Rejected)
        assert (status, "halted") == (outcome.status, tracked.stats().state)


@pytest.mark.parametrize("rejected", [Order, "order"])
async def test_one_kind_of_event_is_rejected(rejected: type[Event] | str) -> None:
    """If `rejected` is set, events of that class are refused, alone or in a batch; other events are delivered."""
    async with RecordingClient(batching=Batching(linger=60)) as tracked:
        tracked.fail_with(rejected=rejected)
        receipts = await tracked.track_many([view(1), order("T-1"), view(2), order("T-2")])
        await tracked.flush()
        with pytest.raises(Exception, match="malformed"):
            await tracked.send(order("T-3"))
        await tracked.send(view(3))

    assert [Delivered, Rejected, Delivered, Rejected] == [type(receipt.outcome) for receipt in receipts]


async def test_faults_strike_in_order_and_where_they_fit() -> None:
    """If several faults are set, each request gets the first fault that fits it; the other faults stay."""
    async with RecordingClient(retry=RetryPolicy(max_attempts=1)) as tracked:
        tracked.fail_with(status=400, contains="777")
        tracked.fail_with("reset_after")
        with pytest.raises(NoAnswerError):
            await tracked.send(view(1))
        await tracked.send(view(1))
        with pytest.raises(Exception, match="malformed"):
            await tracked.send(view(777))
        await tracked.send(view(777))


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"kind": "nonsense"}, "kind must be one of status, connect"),
        ({"status": 99}, "status must be"),
        ({"times": 0}, "times must be"),
        ({"contains": 7}, "contains must be"),
        ({"rejected": CustomEvent}, "rejected must be"),
        ({"rejected": 7}, "rejected must be"),
        ({"rejected": Order, "times": 2}, "rejected excludes"),
    ],
)
def test_a_fault_that_cannot_be_meant_is_refused(facts: dict[str, Any], says: str) -> None:
    """If a fault is invalid, `fail_with` raises an error that names the allowed values."""
    with pytest.raises(ConfigurationError, match=says):
        RecordingClient().fail_with(**facts)


def test_faults_have_the_emulators_names() -> None:
    """If a kind of fault exists, the emulator has it under the same name, except ``"connect"``."""
    assert {"connect"} == set(get_args(FaultKind)) - set(get_args(EmulatorKind))


async def test_a_limit_of_ones_own_is_kept() -> None:
    """If a `rate_limit` is set, the recording client waits for permits as the real client does."""
    begin = asyncio.get_running_loop().time()
    async with RecordingClient(rate_limit=RateLimit(requests=1, per=0.05)) as tracked:
        for number in range(3):
            await tracked.send(view(number))

    assert asyncio.get_running_loop().time() - begin >= 0.1


# --- test mode ---


def test_the_switch_keeps_clients_from_the_real_api(monkeypatch: pytest.MonkeyPatch) -> None:
    """If test mode is on, a client for another host raises when constructed; a client for this host works."""
    monkeypatch.setenv("RETAILROCKET_TEST_MODE", "1")
    with pytest.raises(ConfigurationError, match=r"RETAILROCKET_TEST_MODE is set.*RecordingClient.*emulator"):
        AsyncTrackingClient("key", "shop")
    with pytest.raises(ConfigurationError, match="RETAILROCKET_TEST_MODE"):
        AsyncTrackingClient("key", "shop", base_url="http://emulator:8080/1.0/", allow_insecure_http=True)

    for host in ("127.0.0.1:8080", "localhost", "[::1]:8080"):
        assert host in repr(AsyncTrackingClient("key", "shop", base_url=f"http://{host}/1.0/"))
    RecordingClient()


@pytest.mark.parametrize("value", ["", "0"])
def test_the_switch_can_be_off(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the variable is empty or 0, test mode is off."""
    monkeypatch.setenv("RETAILROCKET_TEST_MODE", value)

    assert "retailrocket.net" in repr(AsyncTrackingClient("key", "shop"))
