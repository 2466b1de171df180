"""OpenTelemetry gets metrics, and one span per request, with links to the spans in which its events were tracked."""

from __future__ import annotations

from collections import defaultdict
from contextlib import AsyncExitStack
from contextvars import ContextVar
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.context import get_current
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from retailrocket_async import (
    AsyncTrackingClient,
    Batching,
    Buffer,
    ConfigurationError,
    RejectedError,
    RetryPolicy,
    View,
)
from retailrocket_async.emulator import Settings, running_emulator
from retailrocket_async.otel import OpenTelemetryObserver, _variable_of
from retailrocket_async.testing import RecordingClient
from tests.support.fakes import event

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from opentelemetry.sdk.trace import ReadableSpan


class Telemetry:
    """An OpenTelemetry SDK that stores all spans and metrics in memory."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])
        self.tracer = self.tracers.get_tracer("shop")

    def observer(self) -> OpenTelemetryObserver:
        """Return an observer that reports to this SDK."""
        return OpenTelemetryObserver(self.tracers, self.meters)

    def spans(self, kind: SpanKind = SpanKind.CLIENT) -> list[ReadableSpan]:
        """Return the ended spans of this kind."""
        return [span for span in self.exporter.get_finished_spans() if span.kind is kind]

    def metrics(self) -> dict[str, list[tuple[dict[str, Any], Any]]]:
        """Return the points of each metric as pairs of attributes and value (for a histogram: count)."""
        found: dict[str, list[tuple[dict[str, Any], Any]]] = defaultdict(list)
        data = self.reader.get_metrics_data()
        assert data is not None
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        value = getattr(point, "value", None)
                        found[metric.name].append(
                            (dict(point.attributes or {}), getattr(point, "count", None) if value is None else value)
                        )
        return found


@pytest.fixture
def telemetry() -> Generator[Telemetry]:
    """Provide a separate SDK for each test."""
    telemetry = Telemetry()
    yield telemetry
    telemetry.tracers.shutdown()
    telemetry.meters.shutdown()


def value(points: list[tuple[dict[str, Any], Any]], **wanted: object) -> Any:
    """Return the sum of the points that have these attributes; in names, "__" stands for "."."""
    named = {name.replace("__", "."): it for name, it in wanted.items()}
    return sum(it for attributes, it in points if named.items() <= attributes.items())


def attributes_of(span: ReadableSpan) -> Mapping[str, Any]:
    """Return a span's attributes."""
    assert span.attributes is not None
    return span.attributes


async def test_a_batch_is_linked_to_the_pages_of_its_events(telemetry: Telemetry) -> None:
    """If a batch is sent, its span has no parent, and one link to each span that tracked some of its events."""
    batching = Batching(linger=0.05)
    async with RecordingClient(observer=telemetry.observer(), batching=batching) as client:
        pages: list[int] = []
        for number in range(3):
            with telemetry.tracer.start_as_current_span(f"page {number}") as page:
                pages.append(page.get_span_context().span_id)
                await client.track_many([event(2 * number + 1), event(2 * number + 2)])
        await client.track(event(9))
        await client.flush()

    [span] = telemetry.spans()
    assert ("POST visitorEvents", None) == (span.name, span.parent)
    assert pages == [link.context.span_id for link in span.links]
    assert {
        "http.request.method": "POST",
        "url.template": "visitorEvents",
        "server.address": "localhost",
        "server.port": 80,
        "http.response.status_code": 200,
        "retailrocket.request.events": 7,
        "retailrocket.partner.id": "test-partner",
    }.items() <= attributes_of(span).items()


async def test_a_direct_request_is_a_child(telemetry: Telemetry) -> None:
    """If `send` is called, each of its requests has a span under the caller's span; failures have an error status."""
    async with RecordingClient(observer=telemetry.observer()) as client:
        with telemetry.tracer.start_as_current_span("page") as page:
            client.fail_with("connect")
            await client.send(event(1))
            client.fail_with(rejected=View)
            with pytest.raises(RejectedError):
                await client.send(event(2))
    failed, repeated, refused = telemetry.spans()
    assert {page.get_span_context().span_id} == {span.parent.span_id for span in telemetry.spans() if span.parent}
    assert "http.request.resend_count" not in attributes_of(failed)
    assert 1 == attributes_of(repeated)["http.request.resend_count"]
    assert ("connect", "400") == (attributes_of(failed)["error.type"], attributes_of(refused)["error.type"])
    assert [StatusCode.ERROR, StatusCode.UNSET, StatusCode.ERROR] == [
        span.status.status_code for span in telemetry.spans()
    ]


async def test_links_are_bounded(telemetry: Telemetry) -> None:
    """If a batch has events of many pages, its span links only the first 128, the SDK's maximum."""
    async with RecordingClient(observer=telemetry.observer(), batching=Batching(linger=0.05)) as client:
        for number in range(1, 200):
            with telemetry.tracer.start_as_current_span("page"):
                await client.track(event(number))
        await client.flush()
    [span] = telemetry.spans()
    assert (128, 0) == (len(span.links), span.dropped_links)


async def test_metrics_add_up(telemetry: Telemetry) -> None:
    """If events are sent, the metrics equal the counters of `stats`."""
    async with RecordingClient(observer=telemetry.observer(), buffer=Buffer(overflow="drop_newest")) as client:
        client.fail_with(status=503)
        await client.track_many([event(number) for number in range(1, 11)])
        await client.flush()
        client.fail_with(rejected=View)
        await client.track(event(11))
        await client.flush()
        stats = client.stats()
        found = telemetry.metrics()

    events = found["retailrocket.client.events"]
    assert 10 == value(events, retailrocket__event__name="view", retailrocket__outcome="delivered")
    assert 1 == value(events, retailrocket__outcome="rejected", http__response__status_code=400)
    requests = found["retailrocket.client.request.duration"]
    assert stats.requests == value(requests)
    assert 1 == value(requests, http__response__status_code=503, error__type="503")
    assert stats.requests == value(found["retailrocket.client.request.events"])
    assert stats.retries == value(found["retailrocket.client.retries"])
    assert 11 == value(found["retailrocket.client.tracked"])
    assert 0 == value(found["retailrocket.client.queue.events"])
    assert 1 == value(found["retailrocket.client.sending"])


async def test_what_is_dropped_has_its_reason(telemetry: Telemetry) -> None:
    """If an event is dropped, it is counted by reason and name."""
    client = RecordingClient(observer=telemetry.observer(), before_send=lambda _: None)
    await client.track(event(1))
    await client.aclose()
    points = telemetry.metrics()["retailrocket.client.events"]
    assert 1 == value(points, retailrocket__outcome="dropped", retailrocket__outcome__reason="before_send")


async def test_clients_of_one_provider_are_told_apart(telemetry: Telemetry) -> None:
    """If clients have different shops, their metrics are separate; the numbers of two clients of one shop are added."""
    shops = ["a", "b", "b"]
    async with AsyncExitStack() as stack:
        for number, shop in enumerate(shops, 1):
            client = RecordingClient(partner_id=shop, observer=telemetry.observer())
            await stack.enter_async_context(client)
            await client.track_many([event(one) for one in range(1, number + 1)])
            await client.flush()
        found = telemetry.metrics()
    for name in ["retailrocket.client.tracked", "retailrocket.client.events"]:
        assert [1, 5] == [value(found[name], retailrocket__partner__id=shop) for shop in "ab"]
        assert 2 == len(found[name])
    for name, points in found.items():
        assert {"a", "b"} == {attributes["retailrocket.partner.id"] for attributes, _ in points}, name
    assert [1, 1] == [value(found["retailrocket.client.sending"], retailrocket__partner__id=shop) for shop in "ab"]


async def test_events_are_counted_when_the_client_is_gone(telemetry: Telemetry) -> None:
    """If the client has ended, the metrics still include its last events and bytes."""
    client = RecordingClient(observer=telemetry.observer())
    await client.track(event(1))
    await client.aclose()
    del client
    for _ in range(2):
        found = telemetry.metrics()
        assert 1 == value(found["retailrocket.client.events"], retailrocket__outcome="delivered")
        assert 20 < value(found["retailrocket.client.sent"]) < 200


def test_the_current_context_is_told_by_its_variable() -> None:
    """If OpenTelemetry stores its context in a variable, the observer finds this variable and uses it as `origin`."""
    origin = OpenTelemetryObserver().origin
    assert origin is not None
    assert origin.get() is get_current()


@pytest.mark.parametrize("variable", [None, ContextVar[Any]("without"), ContextVar[Any]("another", default=None)])
def test_what_does_not_hold_the_current_context_is_not_taken(variable: ContextVar[Any] | None) -> None:
    """If no variable with the current context is found, the observer looks up the span for every event."""
    assert _variable_of(SimpleNamespace(_current_context=variable)) is None
    assert _variable_of(SimpleNamespace()) is None


async def test_another_runtime_for_contexts_serves_as_well(telemetry: Telemetry) -> None:
    """If OpenTelemetry's context variable is not found, every event is still linked to the span of its page."""
    observer = telemetry.observer()
    observer.origin = None
    async with RecordingClient(observer=observer, batching=Batching(linger=0.05)) as client:
        for number in [1, 2]:
            with telemetry.tracer.start_as_current_span("page"):
                await client.track(event(number))
        await client.flush()
    [span] = telemetry.spans()
    assert 2 == len(span.links)


async def test_a_client_that_is_gone_is_silent(telemetry: Telemetry) -> None:
    """If a client is closed and deleted, its metrics end, because they do not keep the client alive."""

    async def short_life() -> None:
        async with RecordingClient(observer=telemetry.observer()) as client:
            await client.track(event(1))

    await short_life()
    assert [] == telemetry.metrics().get("retailrocket.client.tracked", [])


async def test_no_span_but_ours_and_no_key(telemetry: Telemetry) -> None:
    """If httpx is instrumented, a request still has only the package's span, and no span or metric has the key."""
    HTTPXClientInstrumentor().instrument(tracer_provider=telemetry.tracers, meter_provider=telemetry.meters)
    try:
        async with running_emulator(Settings(api_key="s3cr3t-key")) as emulator:
            emulator.fail_with("reset_after")
            async with AsyncTrackingClient(
                "s3cr3t-key",
                "dev-partner",
                base_url=emulator.url,
                observer=telemetry.observer(),
                retry=RetryPolicy(initial_backoff=0.01),
            ) as client:
                with telemetry.tracer.start_as_current_span("page"):
                    await client.track(event(1))
                    await client.flush()
                    await client.send(event(2))
    finally:
        HTTPXClientInstrumentor().uninstrument()

    assert ["POST visitorEvents", "POST visitorEvents", "POST view"] == [span.name for span in telemetry.spans()]
    exported = "".join(span.to_json() for span in telemetry.exporter.get_finished_spans())
    assert "s3cr3t" not in exported
    assert "s3cr3t" not in str(telemetry.metrics())
    assert not [name for name in telemetry.metrics() if name.startswith("http.")]


def test_an_observer_belongs_to_one_client(telemetry: Telemetry) -> None:
    """If a second client uses an observer, an error is raised, because the numbers would be mixed."""
    observer = telemetry.observer()
    RecordingClient(observer=observer)
    with pytest.raises(ConfigurationError, match="belongs to one client"):
        RecordingClient(observer=observer)


async def test_without_an_sdk_nothing_happens() -> None:
    """If OpenTelemetry has no SDK, events are delivered and nothing is recorded."""
    async with RecordingClient(observer=OpenTelemetryObserver()) as client:
        await client.track(event(1))
        await client.flush()
        assert 1 == client.stats().delivered
