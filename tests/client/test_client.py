"""These tests use the client as a shop does: public methods send requests to a real HTTP server on loopback."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import traceback
import warnings
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import attrs
import httpx
import pytest

from retailrocket_async import (
    EVENT_TYPES,
    Abandoned,
    AccessDeniedError,
    AddToBasket,
    AsyncTrackingClient,
    AuthenticationError,
    BadRequestError,
    Batching,
    Buffer,
    ClientClosedError,
    ConfigurationError,
    CustomEvent,
    Delivered,
    DeliveryError,
    Event,
    EventValidationError,
    LocalLimiter,
    NoAnswerError,
    NotFoundError,
    Order,
    RateLimit,
    Rejected,
    RejectedError,
    RetailRocketError,
    RetryPolicy,
    ServerError,
    ThrottledError,
    View,
    order_lines,
)
from tests.support.internals import engine_of
from tests.support.raw_server import OK, Arrived, RawServer, answer, raw_server, reset

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEY = "s3cr3tk3y"
QUICK = RetryPolicy(max_attempts=2, initial_backoff=0.0, max_backoff=0.0)


def _client(server: RawServer, **options: Any) -> AsyncTrackingClient:
    options.setdefault("retry", QUICK)
    return AsyncTrackingClient(KEY, "partner", base_url=server.url, **options)


def _views(count: int) -> list[Event]:
    return [View(session_external_id="visitor", product_id=number) for number in range(count)]


def _ids(server: RawServer) -> list[int]:
    return [next(iter(envelope.values()))["productId"] for request in server.arrived for envelope in request.json]


async def test_the_example_of_the_readme_holds() -> None:
    """If an event is tracked, the call does not wait for the request; awaiting the receipt returns the outcome."""
    async with raw_server() as server, _client(server) as client:
        await client.view(session_external_id="visitor", product_id=123456)
        receipt = await client.order(
            session_external_id="visitor", product_id=1, quantity=1, price=Decimal("1321.43"), transaction="135243"
        )
        outcome = await receipt

        assert isinstance(outcome, Delivered)
        assert ["view", "order"] == [next(iter(envelope)) for envelope in server.arrived[0].json]


async def test_a_thousand_events_leave_in_two_batches() -> None:
    """If a thousand events are tracked, each is sent exactly once, in order, in two full batches."""
    async with raw_server() as server, _client(server) as client:
        await client.track_many(_views(1000))
        await client.flush()

        assert (2, list(range(1000))) == (len(server.arrived), _ids(server))


async def test_track_many_takes_iterables_of_both_kinds() -> None:
    """`track_many` accepts lists, generators and async generators, and returns a receipt for every event."""

    async def generate() -> AsyncIterator[Event]:
        for event in _views(3):
            await asyncio.sleep(0)
            yield event

    async with raw_server() as server, _client(server) as client:
        receipts = [
            *await client.track_many(_views(3)),
            *await client.track_many(iter(_views(3))),
            *await client.track_many(generate()),
        ]

        assert [True] * 9 == [isinstance(await receipt, Delivered) for receipt in receipts]


async def test_the_lines_of_an_order_can_be_tracked_together() -> None:
    """If `order_lines` is passed to `track_many`, every line of the basket is sent with the order's transaction."""
    lines = [{"product_id": 1, "quantity": 2, "price": 10}, {"product_id": 2, "quantity": 1, "price": Decimal("0.5")}]
    async with raw_server() as server, _client(server) as client:
        await client.track_many(order_lines(lines, session_external_id="visitor", transaction="T-1"))
        await client.flush()

        sold = [(line["order"]["transaction"], line["order"]["price"]) for line in server.arrived[0].json]
        assert [("T-1", 10), ("T-1", 0.5)] == sold


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, BadRequestError),
        (401, AuthenticationError),
        (403, AccessDeniedError),
        (404, NotFoundError),
        (409, RejectedError),
        (307, RejectedError),
        (429, ThrottledError),
        (503, ServerError),
        (501, ServerError),
    ],
)
async def test_each_status_raises_its_typed_error(status: int, error: type[DeliveryError]) -> None:
    """If the server answers with an error status, `send`, `send_batch` and `delivered` all raise the same error."""
    retry = RetryPolicy(max_attempts=1, max_halt=0.0)
    async with raw_server() as server, _client(server, retry=retry) as client:
        server.always(answer(status))
        receipt = await client.track(_views(1)[0])
        await receipt
        for attempt in (client.send(_views(1)[0]), client.send_batch(_views(2)), receipt.delivered()):
            with pytest.raises(error) as caught:
                await attempt

            assert (status, error) == (caught.value.status, type(caught.value))
        assert isinstance(await receipt, Rejected | Abandoned)


async def test_a_server_that_resets_gives_no_answer_error() -> None:
    """If the server resets every attempt, `NoAnswerError` is raised and says that the event may have been recorded."""

    async def rst(_: Arrived, writer: asyncio.StreamWriter) -> None:
        reset(writer)

    async with raw_server() as server, _client(server) as client:
        server.respond = rst
        with pytest.raises(NoAnswerError) as caught:
            await client.send(_views(1)[0])

        assert (True, 2, None) == (caught.value.maybe_recorded, caught.value.attempts, caught.value.status)


async def test_retries_are_counted_in_one_delivery() -> None:
    """If the server answers 503, then 429, then 200, the event counts as one delivery and two retries."""
    retry = RetryPolicy(initial_backoff=0.0, max_backoff=0.0)
    async with raw_server() as server, _client(server, retry=retry) as client:
        server.in_turn(answer(503), answer(429))
        outcome = await (await client.track(_views(1)[0]))

        assert isinstance(outcome, Delivered)
        assert (3, True) == (outcome.attempts, outcome.maybe_duplicate)
        stats = client.stats()
        assert ({503: 1, 429: 1, 200: 1}, 2) == (stats.requests_by_status, stats.retries)


async def test_a_connection_closed_while_idle_is_not_noticed() -> None:
    """If the server closes each connection after its answer, every event is still delivered and no error is raised."""

    async def answer_and_close(_: Arrived, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await writer.drain()

    async with raw_server() as server, _client(server) as client:
        server.respond = answer_and_close
        for event in _views(5):
            await client.send(event)

        assert (5, 5) == (client.stats().delivered, len(server.arrived))


async def test_no_exception_carries_the_key_or_a_foreign_exception() -> None:
    """If a method raises, the traceback with all local variables contains neither the key nor an exception of httpx."""

    async def rst(_: Arrived, writer: asyncio.StreamWriter) -> None:
        reset(writer)

    async def stall(_: Arrived, __: asyncio.StreamWriter) -> bytes:
        await asyncio.get_running_loop().create_future()
        return OK

    raised: list[BaseException] = []
    async with raw_server() as server:
        client = _client(server, timeout=5.0)
        for respond in (rst, stall):
            server.respond = respond
            try:
                async with asyncio.timeout(0.3):
                    await client.send(_views(1)[0])
            except (DeliveryError, TimeoutError) as error:
                raised.append(error)
        server.always(answer(401))
        sends = [asyncio.ensure_future(send) for send in (client.send(_views(1)[0]), client.send_batch(_views(1)))]
        raised += [error for error in await asyncio.gather(*sends, return_exceptions=True) if error is not None]
        await client.aclose()

    assert 4 == len(raised)
    for error in raised:
        text = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
        # The traceback shows the local variables of every frame, so no frame may have a variable that contains the key.
        assert not [word for word in (KEY, "httpx.", "httpcore") if word in text]


async def test_no_log_record_has_the_key(caplog: pytest.LogCaptureFixture) -> None:
    """If every logger is at DEBUG, no log record contains the key, whatever the server answers."""

    async def rst(_: Arrived, writer: asyncio.StreamWriter) -> None:
        reset(writer)

    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(enabled=True)
    async with raw_server() as server, _client(server, retry=RetryPolicy(max_attempts=1, max_halt=0.0)) as client:
        for status in (200, 401, 429, 503):
            server.always(answer(status))
            await (await client.track(_views(1)[0]))
        server.respond = rst
        await (await client.track(_views(1)[0]))

    text = "\n".join(record.getMessage() + repr(vars(record)) for record in caplog.records)
    assert "retailrocket_async" in {record.name for record in caplog.records}
    assert KEY not in text
    assert "visitor" not in "\n".join(
        r.getMessage() for r in caplog.records if r.levelno >= logging.INFO and r.name != "httpx"
    )


async def test_each_kind_of_failure_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """If ten batches are refused for one cause, one log record is written, and the record says what to correct."""
    async with raw_server() as server, _client(server, batching=Batching(max_events=1, linger=0.0)) as client:
        server.always(answer(400))
        for event in _views(10):
            await (await client.track(event))

    records = [record for record in caplog.records if record.name == "retailrocket_async"]
    assert 1 == len(records)
    assert "malformed" in records[0].getMessage()


async def test_undelivered_events_reach_the_hook_in_a_form_to_send_again() -> None:
    """If events are rejected, `on_outcome` gets a record for each event, with the outcome and the original event."""
    reported: list[Any] = []
    events = _views(3)
    async with raw_server() as server, _client(server, on_outcome=reported.extend) as client:
        server.always(answer(400))
        await client.track_many(events)
        await client.flush()

    assert [400] * 3 == [undelivered.outcome.status for undelivered in reported]
    whole_seconds = [attrs.evolve(event, timestamp=event.timestamp.replace(microsecond=0)) for event in events]
    assert whole_seconds == [undelivered.event for undelivered in reported]


async def test_a_lost_wire_is_reported_at_close() -> None:
    """If `aclose` times out, events in flight are reported as maybe recorded, and waiting events as dropped."""
    arrived = asyncio.Event()

    async def stall(_: Arrived, __: asyncio.StreamWriter) -> bytes:
        arrived.set()
        await asyncio.get_running_loop().create_future()
        return OK

    batching = Batching(max_events=2, max_in_flight=1)
    async with raw_server() as server:
        server.respond = stall
        client = _client(server, batching=batching)
        receipts = await client.track_many(_views(5))
        await arrived.wait()
        report = await client.aclose(timeout=0.1)

    outcomes = [receipt.outcome for receipt in receipts]
    assert ["Abandoned"] * 2 + ["Dropped"] * 3 == [type(outcome).__name__ for outcome in outcomes]
    assert [True, True] == [outcome.maybe_recorded for outcome in outcomes[:2] if outcome]
    assert (5, 2, 3) == (report.stats.tracked, report.stats.abandoned, report.stats.dropped)
    assert [0, 1, 2, 3, 4] == [undelivered.event.product_id for undelivered in report.undelivered]  # type: ignore[attr-defined]


async def test_after_the_close_calls_are_refused() -> None:
    """If the client is closed, tracking and sending raise `ClientClosedError`, but `stats` still works."""
    async with raw_server() as server:
        client = _client(server)
        await client.track(_views(1)[0])
        first = await client.aclose()
        for attempt in (client.track(_views(1)[0]), client.send(_views(1)[0]), client.send_batch(_views(1))):
            with pytest.raises(ClientClosedError, match="closed"):
                await attempt
        with pytest.raises(ClientClosedError):
            client.track_nowait(_views(1)[0])

        assert first is await client.aclose()
        assert (1, True, "closed") == (client.stats().delivered, first.clean, repr(client).split()[-1].rstrip(">"))


async def test_an_error_in_the_block_still_delivers() -> None:
    """If the block of `async with` raises, the tracked events are delivered and the exception is propagated."""
    async with raw_server() as server:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is the subject
            async with _client(server) as client:
                await client.track(_views(1)[0])
                raise ZeroDivisionError

        assert [0] == _ids(server)


async def test_a_callers_client_serves_two_shops_and_survives_both() -> None:
    """If two clients share one `httpx.AsyncClient`, closing both leaves the `httpx.AsyncClient` open."""
    async with raw_server() as server, httpx.AsyncClient() as shared:
        for partner in ("one", "two"):
            async with AsyncTrackingClient("key", partner, base_url=server.url, http_client=shared) as client:
                await client.send(_views(1)[0])

        assert (["one", "two"], False) == ([r.query["partnerId"][0] for r in server.arrived], shared.is_closed)


async def test_the_limit_counts_batches_direct_sends_and_retries() -> None:
    """Every request acquires one permit, whether the request is a batch, a direct send or a retry."""

    class Counting(LocalLimiter):
        asked = 0

        async def acquire(self) -> Any:
            self.asked += 1
            return await super().acquire()

    limiter = Counting(RateLimit())
    async with raw_server() as server, _client(server, limiter=limiter, rate_limit=None) as client:
        server.in_turn(answer(503))
        await (await client.track(_views(1)[0]))
        await client.send(_views(1)[0])
        await client.send_batch(_views(1))

        assert (4, 4) == (limiter.asked, len(server.arrived))


async def test_send_uses_the_events_own_endpoint_for_every_type() -> None:
    """If `send` sends an event, the request's path ends with the event's name, also for a custom event."""
    async with raw_server() as server, _client(server) as client:
        await client.send(CustomEvent(name="somethingNew", fields={"sessionExternalId": "visitor", "x": [1, None]}))
        await client.send(AddToBasket(session_external_id="visitor", product_id=1))

        assert ["/1.0/somethingNew", "/1.0/addToBasket"] == [request.path for request in server.arrived]
        assert {"sessionExternalId": "visitor", "x": [1, None]} == server.arrived[0].json


async def test_a_custom_event_travels_in_batches() -> None:
    """If a `CustomEvent` is tracked, it is sent in a batch like any other event."""
    async with raw_server() as server, _client(server) as client:
        receipt = await client.track(CustomEvent(name="somethingNew", fields={"a": "б"}))
        await receipt.delivered()

        assert ("somethingNew", [{"somethingNew": {"a": "б"}}]) == (receipt.event_name, server.arrived[0].json)


@pytest.mark.parametrize("not_an_event", [None, {"view": {}}, "view", View], ids=["none", "dict", "str", "class"])
async def test_a_value_that_is_no_event_is_refused(not_an_event: Any) -> None:
    """If the value is not an event of the package, the method raises `EventValidationError` and counts nothing."""
    async with raw_server() as server, _client(server) as client:
        for attempt in (client.track(not_an_event), client.send(not_an_event), client.track_many([not_an_event])):
            with pytest.raises(EventValidationError, match="must be an event of this package"):
                await attempt

        assert 0 == client.stats().tracked


async def test_an_event_larger_than_a_batch_is_refused_at_the_call() -> None:
    """If an event is larger than `Batching.max_bytes`, tracking it raises an error that names the limit."""
    event = CustomEvent(name="large", fields={"x": "a" * 2000})
    async with raw_server() as server, _client(server, batching=Batching(max_bytes=1024)) as client:
        with pytest.raises(EventValidationError, match=r"large must be at most 1024 bytes .*Batching\.max_bytes"):
            await client.track(event)
        with pytest.raises(EventValidationError, match="at most 1024 bytes"):
            client.track_nowait(event)

        assert 0 == client.stats().tracked


async def test_an_explicit_batch_keeps_to_the_caps() -> None:
    """If `send_batch` gets no events, too many events or too many bytes, it raises an error that names the limit."""
    async with raw_server() as server, _client(server, batching=Batching(max_events=20, max_bytes=1024)) as client:
        for events, says in (([], "1 to 20"), (_views(21), "1 to 20"), (_views(15), "1024 bytes")):
            with pytest.raises(EventValidationError, match=says):
                await client.send_batch(events)

        assert [] == server.arrived


def test_every_event_has_its_typed_method() -> None:
    """Each field of an event class is a keyword of the event's client method, required if the field is required."""
    for name, cls in EVENT_TYPES.items():
        method = getattr(AsyncTrackingClient, "".join(f"_{c.lower()}" if c.isupper() else c for c in name))
        parameters = inspect.signature(method).parameters
        required = {f.name for f in attrs.fields(cls) if f.default is attrs.NOTHING}

        assert {f.name for f in attrs.fields(cls)} == set(parameters) - {"self"}
        assert required == {p.name for p in parameters.values() if p.default is p.empty} - {"self"}


@pytest.mark.parametrize("name", EVENT_TYPES)
async def test_every_typed_method_tracks_its_event(name: str) -> None:
    """If a method such as `client.view` is called, the tracked event equals the one created from the same values."""
    values: dict[str, Any] = {
        "session_external_id": "visitor", "product_id": 1, "group_id": 2, "product_ids": [3], "quantity": 1,
        "price": 9.5, "transaction": "T", "category_id": 4, "search_phrase": "диван", "contact_external_id": "c1",
        "email": "a@b.ru", "phone": "+79161234567", "custom_data": {"k": [1]}, "recom_block_id": "r",
        "impression_content_id": "i", "stock_id": "Moscow", "timestamp": datetime.now(UTC),
        "mail_tracking_id": "m", "category_path": "Кухня/Вилки", "extra": {"link": {"name": "crm"}},
    }  # fmt: skip
    cls = EVENT_TYPES[name]
    fields = {field.name: values[field.name] for field in attrs.fields(cls)}
    tracked: list[Event] = []

    class Recorder(AsyncTrackingClient):
        async def track(self, event: Event) -> Any:
            tracked.append(event)

    method = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
    await getattr(Recorder("key", "partner"), method)(**fields)

    assert [cls(**fields)] == tracked


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batching": 500}, r"batching must be a Batching"),
        ({"buffer": {}}, r"buffer must be a Buffer"),
        ({"retry": 3}, r"retry must be a RetryPolicy"),
        ({"rate_limit": 50}, r"rate_limit must be a RateLimit\(\.\.\.\) or None"),
        ({"limiter": object()}, "acquire, pause_until and throttled"),
        ({"limiter": LocalLimiter(None), "rate_limit": RateLimit(requests=5)}, "either rate_limit or limiter"),
        ({"buffer": Buffer(max_bytes=1024)}, r"at least Batching\.max_bytes"),
        ({"timestamp_precision": "hours"}, "'seconds', 'milliseconds', 'microseconds'"),
        ({"on_outcome": 5}, "on_outcome must be a function"),
        ({"on_state_change": 5}, "on_state_change must be a function"),
        ({"before_send": 5}, "before_send must be a plain function"),
        ({"base_url": "http://example.com/"}, "https://"),
        ({"timeout": 0}, "timeout"),
        ({"http_client": object()}, "http_client"),
    ],
)
def test_wrong_configuration_fails_at_construction(options: dict[str, Any], says: str) -> None:
    """If an argument is invalid, the constructor raises `ConfigurationError` with a message that says what to write."""
    with pytest.raises(ConfigurationError, match=says):
        AsyncTrackingClient("key", "partner", **options)


def test_from_env_reads_the_three_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """`from_env` reads three environment variables; arguments override them; an error names a missing variable."""
    for name in ("API_KEY", "PARTNER_ID", "BASE_URL"):
        monkeypatch.delenv(f"RETAILROCKET_{name}", raising=False)
    with pytest.raises(ConfigurationError, match="RETAILROCKET_API_KEY"):
        AsyncTrackingClient.from_env()
    monkeypatch.setenv("RETAILROCKET_API_KEY", KEY)
    with pytest.raises(ConfigurationError, match="RETAILROCKET_PARTNER_ID"):
        AsyncTrackingClient.from_env()
    monkeypatch.setenv("RETAILROCKET_PARTNER_ID", "shop")
    assert "https://apptracking.retailrocket.net/1.0/" in repr(AsyncTrackingClient.from_env())
    monkeypatch.setenv("RETAILROCKET_BASE_URL", "http://localhost:1/1.0")

    assert "<AsyncTrackingClient partner_id='shop' base_url='http://localhost:1/1.0/' new>" == repr(
        AsyncTrackingClient.from_env()
    )
    assert "partner_id='other'" in repr(AsyncTrackingClient.from_env(partner_id="other"))


async def test_an_unclosed_client_warns() -> None:
    """If an open client is garbage-collected, a `ResourceWarning` names `aclose`, unless the client was never used."""
    async with raw_server() as server, httpx.AsyncClient() as connections:
        unused = _client(server)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del unused
            gc.collect()
        client = _client(server, http_client=connections)
        await (await client.track(_views(1)[0]))
        warns = pytest.warns(ResourceWarning, match=r"unclosed <AsyncTrackingClient.*aclose")
        with warns as caught:
            del client
            gc.collect()

    assert KEY not in str(caught[0].message)


def test_a_constructor_that_raises_leaves_nothing_to_warn_about() -> None:
    """If the constructor raised, garbage collection of the client gives no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConfigurationError):
            AsyncTrackingClient("", "partner")
        with pytest.raises(TypeError):
            AsyncTrackingClient("key", "partner", ratelimit=None)  # type: ignore[call-arg]
        gc.collect()


async def test_the_key_is_in_no_repr() -> None:
    """If `repr` shows the client or any of the client's attributes, the text does not contain the key."""
    async with raw_server() as server, _client(server) as client:
        await client.send(_views(1)[0])
        parts = [client, *vars(client).values(), client.stats(), *vars(engine_of(client)).values()]

        assert KEY not in "".join(map(repr, parts))


async def test_ordered_batching_keeps_every_visitors_order_through_failures() -> None:
    """If `ordered` is set and every third request gets a 503, each visitor's events still arrive in order."""
    seen: list[tuple[str, int]] = []
    requests = 0

    async def flaky(request: Arrived, _: asyncio.StreamWriter) -> bytes:
        nonlocal requests
        requests += 1
        if requests % 3 == 0:
            return answer(503)
        seen.extend((e["view"]["sessionExternalId"], e["view"]["productId"]) for e in request.json)
        return OK

    retry = RetryPolicy(initial_backoff=0.001, max_backoff=0.01)
    batching = Batching(max_events=7)
    async with raw_server() as server, _client(server, retry=retry, batching=batching, rate_limit=None) as client:
        server.respond = flaky
        await client.track_many(View(session_external_id=f"v{n % 13}", product_id=n) for n in range(500))
        await client.flush()

    by_visitor: dict[str, list[int]] = {}
    for visitor, number in seen:
        by_visitor.setdefault(visitor, []).append(number)
    assert 500 == len(seen)
    assert all(numbers == sorted(numbers) for numbers in by_visitor.values())


def test_two_runs_of_a_program_need_two_clients() -> None:
    """If a client is used in a second `asyncio.run`, its methods raise an error instead of hanging."""

    async def use(client: AsyncTrackingClient) -> None:
        await client.aclose()

    client = AsyncTrackingClient("key", "partner")
    asyncio.run(use(client))
    with pytest.raises(RetailRocketError, match="one client for each loop"):
        asyncio.run(use(client))


async def test_equal_orders_stay_equal_on_the_wire() -> None:
    """If a price is an int, a float or a Decimal of equal value, the same number is sent."""
    async with raw_server() as server, _client(server) as client:
        for price in (1321.43, Decimal("1321.43"), 7, Decimal("7.00")):
            await client.track(
                Order(session_external_id="v", product_id=1, quantity=Decimal(2), price=price, transaction="T")
            )
        await client.flush()

        sold = [(e["order"]["price"], e["order"]["quantity"]) for e in server.arrived[0].json]
        assert [(1321.43, 2), (1321.43, 2), (7, 2), (7, 2)] == sold


async def test_many_flushes_do_not_make_many_requests() -> None:
    """If two hundred tasks track and flush at the same time, at most ten requests are sent."""
    async with raw_server() as server, _client(server) as client:

        async def handler(number: int) -> None:
            await client.view(session_external_id="visitor", product_id=number)
            await client.flush()

        await asyncio.gather(*map(handler, range(200)))

        assert list(range(200)) == sorted(_ids(server))
        assert len(server.arrived) <= 10


async def test_a_log_handler_that_raises_stops_nothing() -> None:
    """If a log handler raises, receipts, `flush` and `aclose` still work."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError(record.name)

    handler = Broken()
    logging.getLogger("retailrocket_async").addHandler(handler)
    try:
        async with raw_server() as server, _client(server) as client:
            server.always(answer(400))
            receipt = await client.track(_views(1)[0])
            await client.flush()
            report = await client.aclose()
    finally:
        logging.getLogger("retailrocket_async").removeHandler(handler)

    assert (Rejected, 1) == (type(receipt.outcome), report.stats.rejected)


async def test_a_receipt_may_be_awaited_in_another_threads_loop() -> None:
    """If a receipt is awaited in another thread's loop, the outcome is returned there and in the client's loop."""
    async with raw_server() as server, _client(server) as client:
        first, second = await client.track_many(_views(2))

        async def there() -> Any:
            return await first

        outcome = await asyncio.to_thread(asyncio.run, there())

        assert [True, True] == [isinstance(got, Delivered) for got in (outcome, await second)]


@pytest.mark.parametrize("seconds", [float("nan"), -1, "5", True])
async def test_a_deadline_that_is_none_is_refused(seconds: Any) -> None:
    """If the timeout is not a valid number of seconds, `flush` and `aclose` raise, and the client still works."""
    async with raw_server() as server, _client(server) as client:
        for attempt in (client.flush(seconds), client.aclose(seconds)):
            with pytest.raises(ConfigurationError, match="timeout must be None or a number of seconds"):
                await attempt
        receipt = await client.track(_views(1)[0])

        assert isinstance(await receipt, Delivered)


def test_an_async_before_send_is_refused() -> None:
    """If `before_send` is a coroutine function, the constructor raises, because the client would never await it."""

    async def hook(event: Any) -> Any:
        return event

    with pytest.raises(ConfigurationError, match="plain function"):
        AsyncTrackingClient("key", "partner", before_send=hook)


@pytest.mark.parametrize(
    "options",
    [{"api_key": KEY + "\n"}, {"partner_id": ""}, {"base_url": "ftp://x"}, {"timeout": None}, {"retry": 1}],
)
@pytest.mark.parametrize("how", [AsyncTrackingClient, AsyncTrackingClient.from_env])
def test_a_failed_construction_keeps_no_key(how: Any, options: dict[str, Any]) -> None:
    """If the constructor raises `ConfigurationError`, no local variable in the package's frames contains the key."""
    given = {"api_key": KEY, "partner_id": "partner", **options}
    with pytest.raises(ConfigurationError) as caught:
        how(**given)
    frames = list(traceback.walk_tb(caught.value.__traceback__))[1:]

    assert len(frames) >= 1
    assert KEY not in "".join(repr(frame.f_locals) for frame, _ in frames)


def test_custom_data_is_bounded() -> None:
    """If event fields contain more than 5,000 values, nested or shared, `EventValidationError` is raised."""
    shared: Any = {}
    for _ in range(20):
        shared = {"a": shared, "b": shared}
    for fields in ({"x": [0] * 5000}, shared):
        with pytest.raises(EventValidationError, match="at most 5,000 values"):
            CustomEvent(name="large", fields=fields)


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="needs Python 3.12")
async def test_an_eager_task_factory_changes_nothing() -> None:
    """If the loop starts tasks eagerly and every answer comes immediately, every event still gets its outcome."""
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    transport = httpx.MockTransport(lambda _: httpx.Response(200))
    async with httpx.AsyncClient(transport=transport) as http_client:
        client = AsyncTrackingClient(KEY, "partner", base_url="http://127.0.0.1:9/", http_client=http_client)
        await client.send(_views(1)[0])
        # The first call must not keep back the same visitor's second call.
        await client.send(_views(1)[0])
        await client.track_many(_views(1000))
        report = await client.aclose()

    assert (1002, 1002) == (report.stats.tracked, report.stats.delivered)
