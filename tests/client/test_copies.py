"""Public records can be copied and pickled; clients and similar objects refuse copying and say what to do instead."""

from __future__ import annotations

import asyncio
import copy
import importlib
import inspect
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import redis.asyncio

import retailrocket_async as rr
from retailrocket_async import AsyncTrackingClient, UncopyableError
from retailrocket_async._errors import REDACTED, error_for
from retailrocket_async._receipt import single_receipt
from retailrocket_async.asgi import RetailRocket
from retailrocket_async.emulator import (
    EmulatorProcess,
    EventRecord,
    Fault,
    OrderViolation,
    RequestRecord,
    RunningEmulator,
    Settings,
)
from retailrocket_async.otel import OpenTelemetryObserver
from retailrocket_async.redis import RedisLimiter, RedisUnreachableError
from retailrocket_async.relay import (
    DeadLetter,
    KafkaSource,
    KafkaTopic,
    Lag,
    MemorySource,
    MemoryStream,
    Message,
    NatsSource,
    NatsSubject,
    RedisStream,
    RedisStreamSource,
    Relay,
    RelaySettings,
    RelayStats,
)
from retailrocket_async.testing import RecordingClient
from tests.runtime.test_extras import public_modules

if TYPE_CHECKING:
    from collections.abc import Callable

SESSION = "a1"
REDIS = redis.asyncio.Redis()
ABANDONED = rr.Abandoned(reason="closed", maybe_recorded=True)


def throttled(status: int, body: bytes) -> bool:
    """Stand for a user's function. The function is at module level, because pickle finds functions by name."""
    return False


def _filled(cls: type[Any]) -> Any:
    """Return a record in which the value of each field is the field's name; the classes used here check no values."""
    return cls(**{field.name: f"{field.name}" for field in attrs.fields(cls) if field.init})


def _observed() -> Any:
    observer = _Observer()
    RecordingClient(observer=observer)
    return observer.client


class _Observer(rr.Observer):
    client: rr.ObservedClient

    def opened(self, client: rr.ObservedClient) -> None:
        self.client = client


RECORDS: dict[str, Callable[[], Any]] = {
    "Abandoned": lambda: ABANDONED,
    "AddToBasket": lambda: rr.AddToBasket(session_external_id=SESSION, product_id=1),
    "Batching": lambda: rr.Batching(max_events=5),
    "Buffer": lambda: rr.Buffer(overflow="shed", ranking={"view": 5}),
    "CategoryView": lambda: rr.CategoryView(session_external_id=SESSION, category_id=1),
    "CloseReport": lambda: rr.CloseReport(
        stats=rr.Stats(tracked=1), undelivered=(RECORDS["UndeliveredEvent"](),), elapsed=1.0, error=error_for(ABANDONED)
    ),
    "CustomEvent": lambda: rr.CustomEvent(name="wish", fields={"sessionExternalId": SESSION, "n": [1]}),
    "DeadEvent": lambda: _filled(rr.DeadEvent),
    "Delivered": lambda: rr.Delivered(status=200),
    "Dropped": lambda: rr.Dropped(reason="closed"),
    "GroupView": lambda: rr.GroupView(session_external_id=SESSION, group_id=1, product_ids=[1, 2]),
    "ImpressionContentClicked": lambda: rr.ImpressionContentClicked(
        session_external_id=SESSION, impression_content_id="i"
    ),
    "ImpressionContentViewed": lambda: rr.ImpressionContentViewed(
        session_external_id=SESSION, impression_content_id="i"
    ),
    "Kept": lambda: rr.Kept(attempts=2),
    "EmailClick": lambda: rr.EmailClick(session_external_id=SESSION, mail_tracking_id="5b", custom_data={"a": 1}),
    "WelcomeSequence": lambda: rr.WelcomeSequence(session_external_id=SESSION, email="a@b", extra={"link": {"a": 1}}),
    "CategoryViewByCategoryPath": lambda: rr.CategoryViewByCategoryPath(
        session_external_id=SESSION, category_path="a/b"
    ),
    "ObservedClient": _observed,
    "ObservedRequest": lambda: rr.ObservedRequest(
        path="view", attempt=1, events=1, size=2, direct=True, tracked=("span",)
    ),
    "Order": lambda: rr.Order(session_external_id=SESSION, product_id=1, quantity=1, price=2, transaction="T"),
    "RateLimit": lambda: rr.RateLimit(requests=5),
    "RecomAddToBasket": lambda: rr.RecomAddToBasket(session_external_id=SESSION, product_id=1, recom_block_id="b"),
    "RecomBlockViewed": lambda: rr.RecomBlockViewed(session_external_id=SESSION, recom_block_id="b"),
    "RecomTap": lambda: rr.RecomTap(session_external_id=SESSION, product_id=1, recom_block_id="b"),
    "Rejected": lambda: rr.Rejected(status=400),
    "RetryPolicy": lambda: rr.RetryPolicy(is_throttled=throttled),
    "Search": lambda: rr.Search(session_external_id=SESSION, search_phrase="чай"),
    "SetContact": lambda: rr.SetContact(
        session_external_id=SESSION, contact_external_id="c", email="a@b", custom_data={"a": {"b": 1}}
    ),
    "SpoolContents": lambda: _filled(rr.SpoolContents),
    "SpoolStats": lambda: rr.SpoolStats(events=3),
    "SpooledEvent": lambda: _filled(rr.SpooledEvent),
    "SqliteSpool": lambda: rr.SqliteSpool("/nowhere"),
    "StateChange": lambda: rr.StateChange(state="down", previous="sending", advice="wait"),
    "Stats": lambda: rr.Stats(tracked=1, dropped=1, dropped_by={"overflow": {"view": 1}}, requests_by_status={200: 1}),
    "UndeliveredEvent": lambda: rr.UndeliveredEvent(event_name="view", envelope=b'{"view":{}}', outcome=ABANDONED),
    "View": lambda: rr.View(session_external_id=SESSION, product_id=1, timestamp=datetime(2026, 1, 2, tzinfo=UTC)),
    "EmulatorProcess": lambda: EmulatorProcess("http://127.0.0.1:1", 1),
    "EventRecord": lambda: _filled(EventRecord),
    "Fault": lambda: Fault(kind="status", status=503),
    "OrderViolation": lambda: _filled(OrderViolation),
    "RequestRecord": lambda: _filled(RequestRecord),
    "Settings": lambda: Settings(limit=3),
    "DeadLetter": lambda: _filled(DeadLetter),
    "Lag": lambda: _filled(Lag),
    "Message": lambda: Message(id="1", body=b"{}", handle=("a", 1)),
    "RelaySettings": lambda: RelaySettings(source="redis://h", limiter="redis://h"),
    "RelayStats": lambda: _filled(RelayStats),
}
"""Functions that create one instance of each public attrs class, by class name."""

ERRORS: dict[str, Callable[[], Exception]] = {
    "EventValidationError": lambda: rr.EventValidationError("view", "product_id", "must be an int", "x"),
    "HandleTimeoutError": lambda: rr.HandleTimeoutError("no room", 3),
}
"""Functions that create the errors whose constructors take more than a message and an outcome."""


def public_classes(kind: Callable[[type[Any]], bool]) -> dict[str, type[Any]]:
    """Return a dict from name to class, with each class that a public module exports and for which `kind` is true."""
    found = {}
    for name in public_modules():
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            cls = getattr(module, public)
            if inspect.isclass(cls) and cls.__module__.startswith("retailrocket_async") and kind(cls):
                found[public] = cls
    return found


def copies(original: Any) -> list[Any]:
    """Return copies of an object, made by `copy`, `deepcopy` and the pickle protocols from 2 up."""
    pickled = [pickle.loads(pickle.dumps(original, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    return [copy.copy(original), copy.deepcopy(original), *pickled]


# `Event` is abstract, and `RunningEmulator` contains a whole running server, so neither is copied.
NO_RECORDS = {rr.Event, RunningEmulator}


@pytest.mark.parametrize("name", sorted(public_classes(attrs.has)))
def test_a_record(name: str) -> None:
    """If a public record is copied or unpickled, the copy equals the original."""
    if public_classes(attrs.has)[name] in NO_RECORDS:
        return
    record = RECORDS[name]()

    if type(record).__eq__ is object.__eq__:
        assert [attrs.asdict(record)] * 7 == [attrs.asdict(record), *map(attrs.asdict, copies(record))]
    else:
        assert [record] * 6 == copies(record)
    assert {type(record)} == {type(copied) for copied in copies(record)}


@pytest.mark.parametrize("name", sorted(public_classes(lambda cls: issubclass(cls, Exception))))
def test_an_error(name: str) -> None:
    """If a public error is copied or pickled, the copy has the same type, message and attributes."""
    cls = public_classes(lambda cls: issubclass(cls, Exception))[name]
    if name in ERRORS:
        error = ERRORS[name]()
    else:
        error = cls("message", ABANDONED) if issubclass(cls, rr.DeliveryError) else cls("message")

    assert [(type(error), str(error), vars(error))] * 6 == [
        (type(copied), str(copied), vars(copied)) for copied in copies(error)
    ]


def test_a_withheld_value_stays_so() -> None:
    """If an error hides its value, each copy of the error has the same `REDACTED` object in place of the value."""
    error = rr.EventValidationError("view", "email", "must be one")

    assert all(copied.value is REDACTED for copied in copies(error))


def test_the_default_ranking() -> None:
    """`DEFAULT_RANKING`, which says how important each event type is, is immutable, and its copies are equal to it."""
    assert all(copied == rr.DEFAULT_RANKING for copied in copies(rr.DEFAULT_RANKING))
    assert not hasattr(rr.DEFAULT_RANKING, "__setitem__")


def test_a_codec() -> None:
    """If a codec is copied, the copy encodes an event to the same bytes."""
    codec, event = rr.Codec("milliseconds"), RECORDS["View"]()

    assert {codec.encode(event)} == {copied.encode(event) for copied in copies(codec)}


def test_an_observed_client_elsewhere() -> None:
    """If an `ObservedClient` is unpickled, its `stats()` returns None, because the copy has no client."""
    assert pickle.loads(pickle.dumps(_observed())).stats() is None


async def _handle() -> Any:
    return AsyncTrackingClient("key", "shop").threadsafe()


def _client() -> AsyncTrackingClient:
    return AsyncTrackingClient("key", "shop")


KAFKA = ("127.0.0.1:9", "topic")
NATS = ("nats://127.0.0.1:9", "stream")
UNCOPYABLE: dict[str, Callable[[], Any]] = {
    "AsyncTrackingClient": _client,
    "RecordingClient": RecordingClient,
    "ThreadsafeHandle": lambda: asyncio.run(_handle()),
    "Receipt": lambda: single_receipt("view"),
    "LocalLimiter": lambda: rr.LocalLimiter(rr.RateLimit()),
    "RedisLimiter": lambda: RedisLimiter(REDIS),
    "Relay": lambda: Relay(MemorySource(MemoryStream()), _client()),
    "MemoryStream": MemoryStream,
    "MemorySource": lambda: MemorySource(MemoryStream()),
    "KafkaSource": lambda: KafkaSource(*KAFKA),
    "KafkaTopic": lambda: KafkaTopic(*KAFKA),
    "NatsSource": lambda: NatsSource(*NATS),
    "NatsSubject": lambda: NatsSubject(*NATS),
    "RedisStream": lambda: RedisStream(REDIS, "stream"),
    "RedisStreamSource": lambda: RedisStreamSource(REDIS, stream="s", group="g", name="n"),
    "RetailRocket": lambda: RetailRocket(api_key="key"),
    "OpenTelemetryObserver": OpenTelemetryObserver,
}


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in UNCOPYABLE.items()])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_objects_of_one_process_refuse_copies(make: Callable[[], Any]) -> None:
    """If a client, or another object that belongs to one process, is copied, an error says what to do instead."""
    thing = make()

    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(UncopyableError, match=rf"^{type(thing).__name__} cannot be copied or pickled: \w+ .*"):
            attempt(thing)


@pytest.mark.parametrize("name", sorted(public_classes(lambda cls: not attrs.has(cls))))
def test_nothing_is_forgotten(name: str) -> None:
    """If a class is public, this file covers it as a record, an error, a protocol, uncopyable, or known as copyable."""
    cls = public_classes(lambda cls: not attrs.has(cls))[name]
    known = {"Codec", "Observer", "SessionCookie", "Session", "Ranking", "Emulator", "FaultScript", "Ledger"}

    assert (
        issubclass(cls, Exception)
        or getattr(cls, "_is_protocol", False)
        or name in {*UNCOPYABLE, *known, "SlidingWindow"}
    )


def test_a_child_that_is_spawned() -> None:
    """If a client or one of its methods is passed to a spawned process, `start` raises `UncopyableError`."""
    client = _client()
    spawning = multiprocessing.get_context("spawn")

    for work, arguments in ((print, (client,)), (client.stats, ())):
        process = spawning.Process(target=work, args=arguments)
        with pytest.raises(UncopyableError, match="make a client in each process"):
            process.start()


def test_a_pool_of_processes() -> None:
    """If a client is passed to a process pool, the future raises `UncopyableError`."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        future = pool.submit(print, _client())

        with pytest.raises(UncopyableError, match="make a client in each process"):
            future.result()


def test_the_limiter_of_redis_is_an_error_of_its_own() -> None:
    """If the Redis limiter's error is pickled and unpickled, the message is preserved."""
    assert "away" in str(pickle.loads(pickle.dumps(RedisUnreachableError("away"))))
