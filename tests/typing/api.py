"""Uses the whole public API. This file is never run; mypy and pyright check its types in strict mode."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, assert_never, assert_type

import httpx
from redis.asyncio import Redis, RedisCluster

from retailrocket_async import (
    DEFAULT_RANKING,
    EVENT_TYPES,
    Abandoned,
    AbandonedError,
    AddToBasket,
    AsyncTrackingClient,
    Batching,
    Buffer,
    BufferFullError,
    CategoryView,
    CategoryViewByCategoryPath,
    CloseReport,
    Codec,
    ConfigurationError,
    CustomEvent,
    Delivered,
    DeliveryError,
    Dropped,
    EmailClick,
    Event,
    EventValidationError,
    FlushTimeoutError,
    GroupView,
    HandleTimeoutError,
    ImpressionContentClicked,
    ImpressionContentViewed,
    Kept,
    Limiter,
    LocalLimiter,
    Order,
    Outcome,
    Permit,
    RateLimit,
    Receipt,
    RecomAddToBasket,
    RecomBlockViewed,
    RecomTap,
    Rejected,
    RejectedError,
    RetailRocketError,
    RetryPolicy,
    Search,
    SetContact,
    StateChange,
    Stats,
    ThreadsafeHandle,
    UndeliveredEvent,
    View,
    WelcomeSequence,
    new_session_id,
    order_lines,
)
from retailrocket_async.redis import RedisLimiter, RedisUnreachableError

NOW = datetime.now(UTC)


def events() -> Sequence[Event]:
    """Construct every event, with all of its fields."""
    session = new_session_id()
    assert_type(session, str)
    lines = order_lines(
        [{"product_id": 1, "quantity": 2, "price": Decimal("9.90")}],
        session_external_id=session,
        transaction="135243",
        stock_id="NewYork",
        timestamp=NOW,
    )
    assert_type(lines, list[Order])
    contact = SetContact(
        session_external_id=session,
        contact_external_id="c1",
        email="a@example.com",
        phone="+79161234567",
        custom_data={"level": ["gold", {"since": 2020}]},
        stock_id=None,
        timestamp=NOW,
    )
    view = View(session_external_id=session, product_id=1, stock_id="NewYork", timestamp=NOW)
    assert_type(view.product_id, int)
    assert_type(view.stock_id, str | None)
    assert_type(view.timestamp, datetime)
    assert_type(view.event_name, str)
    group = GroupView(session_external_id=session, group_id=1, product_ids=[1, 2])
    assert_type(group.product_ids, tuple[int, ...])
    return [
        view,
        group,
        contact,
        *lines,
        AddToBasket(session_external_id=session, product_id=1),
        Order(session_external_id=session, product_id=1, quantity=1.5, price=0, transaction="1"),
        CategoryView(session_external_id=session, category_id=1),
        Search(session_external_id=session, search_phrase="чай"),
        RecomBlockViewed(session_external_id=session, recom_block_id="b"),
        RecomTap(session_external_id=session, product_id=1, recom_block_id="b"),
        RecomAddToBasket(session_external_id=session, product_id=1, recom_block_id="b"),
        ImpressionContentViewed(session_external_id=session, impression_content_id="i"),
        ImpressionContentClicked(session_external_id=session, impression_content_id="i"),
        EmailClick(session_external_id=session, mail_tracking_id="5b488f27", custom_data={"a": 1}),
        WelcomeSequence(session_external_id=session, email="a@example.com", extra={"link": {"name": "crm"}}),
        CategoryViewByCategoryPath(session_external_id=session, category_path="a/b", extra=None),
        CustomEvent(name="newEvent", fields={"sessionExternalId": session}),
    ]


def wrong(view: View) -> None:
    """Make mistakes that a type checker must find: a "type: ignore" on a line without a mistake is an error."""
    View(session_external_id="s")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    View(session_external_id="s", product_id="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    view.product_id = 2  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    AsyncTrackingClient("key", "shop", batching=Buffer())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Buffer(overflow="drop")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    View(session_external_id="s", product_id=1, extra=[1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    RetryPolicy(at_most_once=(int,))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncTrackingClient(lambda: 1, "shop")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportReturnType]


class FreeLimiter:
    """A caller's own limiter, which satisfies the protocol without inheriting from it."""

    async def acquire(self) -> Permit | None:
        """Return None, which means that the request may be sent at once."""
        return None

    def pause_until(self, deadline: float) -> None:
        """Do nothing."""

    def throttled(self, sent_at: float) -> None:
        """Do nothing."""


class CountingPermit:
    """A caller's own permit."""

    def sent(self) -> None:
        """Do nothing."""

    def done(self, *, answered: bool = False) -> None:
        """Do nothing."""


def protocols() -> tuple[Limiter, Limiter, Permit]:
    """Assign objects that satisfy the protocols."""
    return FreeLimiter(), LocalLimiter(RateLimit(requests=10)), CountingPermit()


async def shared() -> list[Limiter]:
    """Pass every argument of `RedisLimiter`, the limiter that several processes share."""
    redis, cluster = Redis(), RedisCluster(host="localhost")
    full = RedisLimiter(redis, RateLimit(requests=50), name="shop", replicas=4, on_unreachable="raise", timeout=0.25)
    assert_type(full.rate_limit, RateLimit)
    try:
        assert_type(await full.acquire(), Permit | None)
    except RedisUnreachableError as error:
        assert_type(error.args, tuple[Any, ...])
    waiting = RedisLimiter(cluster, on_unreachable="wait", replicas=None)
    return [full, waiting, RedisLimiter(redis, on_unreachable="share")]


def report(events: Sequence[UndeliveredEvent]) -> None:
    """Accept undelivered events."""
    for undelivered in events:
        assert_type(undelivered.event, Event)
        assert_type(undelivered.envelope, bytes)
        assert_type(undelivered.event_name, str)
        assert_type(undelivered.outcome, Rejected | Abandoned | Dropped)
        assert_type(undelivered.error, DeliveryError)


async def report_later(events: Sequence[UndeliveredEvent]) -> None:
    """Accept undelivered events in a coroutine function."""
    report(events)


def alarm(change: StateChange) -> None:
    """Accept a state change."""
    assert_type(change.state, Literal["sending", "down", "halted"])
    assert_type(change.previous, Literal["sending", "down", "halted"])
    assert_type(change.status, int | None)
    assert_type(change.failure, str | None)
    assert_type(change.advice, str)
    assert_type(change.lasted, float)


async def alarm_later(change: StateChange) -> None:
    """Accept a state change in a coroutine function."""
    alarm(change)


def strip(event: Event) -> Event | None:
    """Drop searches, and remove personal data from contacts."""
    match event:
        case Search():
            return None
        case SetContact(contact_external_id=contact):
            return SetContact(session_external_id=event.session_external_id, contact_external_id=contact)
        case _:
            return event


def read_key() -> str:
    """Return the key; the client calls this function in a thread."""
    return "key"


async def fetch_key() -> str:
    """Return the key; the client awaits this function in the event loop."""
    return "key"


def is_slow_down(status: int, body: bytes) -> bool:
    """Return whether an answer means the same as a 429."""
    return status == 403 and b"slow down" in body


def clients(mine: httpx.AsyncClient) -> list[AsyncTrackingClient]:
    """Pass every argument of the client's constructor."""
    full = AsyncTrackingClient(
        "key",
        "shop",
        base_url="https://example.com/1.0/",
        http_client=mine,
        http2=False,
        rate_limit=RateLimit(requests=50, per=1.0, burst=5, jitter=0.025),
        batching=Batching(max_events=500, max_bytes=65536, linger=0.1, max_in_flight=8, realtime=True),
        buffer=Buffer(
            max_events=1000,
            max_bytes=1 << 20,
            overflow="shed",
            ranking={**DEFAULT_RANKING, "search": 2},
            max_age=60,
        ),
        retry=RetryPolicy(
            max_attempts=3,
            max_elapsed=60,
            initial_backoff=0.5,
            max_backoff=5.0,
            at_most_once=(Order, "newEvent"),
            max_halt=30.0,
            is_throttled=is_slow_down,
        ),
        timeout=httpx.Timeout(5.0),
        timestamp_precision="milliseconds",
        before_send=strip,
        on_outcome=report,
        on_state_change=alarm,
        allow_insecure_http=False,
    )
    limited = AsyncTrackingClient("key", "shop", rate_limit=None, limiter=FreeLimiter(), timeout=3)
    renewed = AsyncTrackingClient(read_key, "shop", on_outcome=report_later, on_state_change=alarm_later)
    fetched = AsyncTrackingClient(fetch_key, "shop", before_send=lambda event: event, on_outcome=print)
    from_env = AsyncTrackingClient.from_env(on_outcome=report)
    assert_type(from_env, AsyncTrackingClient)
    return [full, limited, renewed, fetched, from_env]


def policies() -> list[Buffer | RetryPolicy]:
    """Use every allowed value of each setting that has several allowed values."""
    assert_type(DEFAULT_RANKING, Mapping[str, int])
    return [
        Buffer(overflow="wait", max_age=None),
        Buffer(overflow="raise"),
        Buffer(overflow="drop_newest"),
        Buffer(overflow="drop_oldest", max_age=0.5),
        Buffer(overflow="shed", ranking={"view": 0}),
        RetryPolicy(at_most_once=[Order]),
        RetryPolicy(at_most_once={"order", AddToBasket}),
        RetryPolicy(at_most_once={Order: True, WelcomeSequence: False}),
        RetryPolicy(is_throttled=lambda status, body: status == 503 and not body),
    ]


def described(outcome: Outcome) -> str:
    """Handle every type of outcome by `match`; a type checker must accept the cases as exhaustive."""
    match outcome:
        case Delivered(status=status, maybe_duplicate=twice):
            assert_type(status, int)
            assert_type(twice, bool)
            return "delivered"
        case Rejected(status=status, isolated=isolated):
            assert_type(status, int)
            assert_type(isolated, bool)
            assert_type(outcome.scope, Literal["event", "access"])
            assert_type(outcome.advice, str)
            return "rejected"
        case Abandoned(reason="at_most_once"):
            return "perhaps recorded, and not sent again"
        case Abandoned(maybe_recorded=recorded, failure=failure):
            assert_type(recorded, bool)
            assert_type(failure, str | None)
            return "abandoned"
        case Dropped(reason=reason):
            assert_type(reason, Literal["closed", "overflow", "expired", "before_send", "purged"])
            return "dropped"
        case Kept(maybe_recorded=recorded):
            assert_type(recorded, bool)
            return "in the spool"
        case _:
            assert_never(outcome)


async def many() -> AsyncIterator[Event]:
    """Yield events, for a method that takes an async iterator."""
    for event in events():
        yield event


async def calls(client: AsyncTrackingClient) -> CloseReport:
    """Call every method of the client."""
    async with client as entered:
        assert_type(entered, AsyncTrackingClient)
    view = View(session_external_id="s", product_id=1)
    receipt = await client.track(view)
    assert_type(receipt, Receipt)
    assert_type(receipt.event_name, str)
    assert_type(receipt.done(), bool)
    assert_type(receipt.outcome, Outcome | None)
    assert_type(await receipt, Outcome)
    assert_type(await receipt.delivered(), Delivered)
    assert_type(described(await receipt), str)
    assert_type(client.track_nowait(view), Receipt)
    assert_type(await client.track_many([view]), list[Receipt])
    assert_type(
        await client.track_envelopes([b"{}"], allow_custom=True, allow_extra=True), list[Receipt | EventValidationError]
    )
    assert_type(await client.track_many(many()), list[Receipt])
    assert_type(await client.send(view), Delivered)
    assert_type(await client.send_batch([view, view]), Delivered)
    await client.flush()
    await client.flush(timeout=5)
    stats = client.stats()
    assert_type(stats, Stats)
    assert_type(stats.requests_by_status, Mapping[int | str, int])
    assert_type(stats.state, Literal["sending", "down", "halted"])
    assert_type(stats.dropped_by, Mapping[str, Mapping[str, int]])
    assert_type(stats.splits, int)
    assert_type(stats.hook_errors, int)
    assert_type(stats.hook_missed, int)
    report = await client.aclose(timeout=None)
    assert_type(report, CloseReport)
    assert_type(report.undelivered, tuple[UndeliveredEvent, ...])
    assert_type(report.clean, bool)
    assert_type(report.error, DeliveryError | None)
    assert_type(report.save_undelivered("undelivered.jsonl"), int)
    assert_type(report.save_undelivered(Path("undelivered.jsonl")), int)
    return report


async def handed(client: AsyncTrackingClient) -> ThreadsafeHandle:
    """Return a handle through which other threads use the client."""
    handle = client.threadsafe()
    assert_type(handle, ThreadsafeHandle)
    return handle


def in_a_thread(handle: ThreadsafeHandle, view: View) -> Outcome:
    """Call every method of the handle, as another thread would."""
    try:
        receipt = handle.track(view, timeout=1.5)
    except HandleTimeoutError as error:
        assert_type(error.accepted, int)
        raise
    assert_type(receipt, Receipt)
    assert_type(handle.track(view), Receipt)
    assert_type(handle.track_many([view, view], timeout=3), list[Receipt])
    assert_type(handle.track_many(iter([view])), list[Receipt])
    handle.flush()
    handle.flush(timeout=2)
    assert_type(handle.wait(receipt), Outcome)
    return handle.wait(receipt, timeout=1)


async def typed_methods(client: AsyncTrackingClient) -> list[Receipt]:
    """Call the client's method for each event with all fields of the event."""
    session = new_session_id()
    return [
        await client.view(session_external_id=session, product_id=1, stock_id="s", timestamp=NOW),
        await client.group_view(
            session_external_id=session, group_id=1, product_ids=(1, 2), stock_id="s", timestamp=NOW
        ),
        await client.add_to_basket(session_external_id=session, product_id=1, stock_id="s", timestamp=NOW),
        await client.order(
            session_external_id=session,
            product_id=1,
            quantity=1,
            price=Decimal("1321.43"),
            transaction="135243",
            stock_id="s",
            timestamp=NOW,
        ),
        await client.category_view(session_external_id=session, category_id=1, timestamp=NOW),
        await client.search(session_external_id=session, search_phrase="чай", stock_id="s", timestamp=NOW),
        await client.set_contact(
            session_external_id=session,
            contact_external_id="c1",
            email="a@example.com",
            phone="+79161234567",
            custom_data={"level": "gold"},
            stock_id="s",
            timestamp=NOW,
        ),
        await client.recom_block_viewed(session_external_id=session, recom_block_id="b", timestamp=NOW),
        await client.recom_tap(
            session_external_id=session, product_id=1, recom_block_id="b", stock_id="s", timestamp=NOW
        ),
        await client.recom_add_to_basket(
            session_external_id=session, product_id=1, recom_block_id="b", stock_id="s", timestamp=NOW
        ),
        await client.impression_content_viewed(session_external_id=session, impression_content_id="i", timestamp=NOW),
        await client.impression_content_clicked(session_external_id=session, impression_content_id="i", timestamp=NOW),
        await client.email_click(
            session_external_id=session, mail_tracking_id="m", custom_data={"a": 1}, timestamp=NOW
        ),
        await client.welcome_sequence(session_external_id=session, email="a@example.com", timestamp=NOW),
        await client.category_view_by_category_path(
            session_external_id=session, category_path="a/b", timestamp=NOW, extra={"link": {"name": "crm"}}
        ),
    ]


async def errors(client: AsyncTrackingClient, view: View) -> None:
    """Read the attributes of every family of errors."""
    try:
        await client.send(view)
    except RejectedError as error:
        assert_type(error.outcome, Outcome)
        assert_type(error.status, int | None)
    except AbandonedError as error:
        assert_type(error.maybe_recorded, bool)
    except DeliveryError as error:
        assert_type(error.attempts, int)
        assert_type(error.elapsed, float)
    except EventValidationError as error:
        assert_type(error.event, str)
        assert_type(error.field, str)
        assert_type(error.rule, str)
        assert_type(error.value, object)
    except (ConfigurationError, BufferFullError, FlushTimeoutError, RetailRocketError):
        raise


def wire(view: View) -> None:
    """Encode and decode events."""
    codec = Codec("seconds")
    assert_type(codec.encode(view), bytes)
    assert_type(codec.encode_bare(view), bytes)
    assert_type(codec.decode(b"{}", allow_custom=True, allow_extra=True), Event)
    assert_type(codec.from_wire(codec.to_wire(view)), Event)
    for name, event_type in EVENT_TYPES.items():
        assert_type(name, str)
        assert_type(event_type.wire_name, str)
