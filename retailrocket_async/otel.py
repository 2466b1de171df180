"""OpenTelemetry: metrics of a client, and a span for each of its requests, linked to where their events came from.

::

    client = AsyncTrackingClient.from_env(observer=OpenTelemetryObserver())

Only the API of OpenTelemetry is needed (extra ``otel``); without an SDK in the application nothing is recorded. The key
is in no attribute: a request's URL, which holds it, is not among them. The instrumentation of HTTP clients sees nothing
of the requests, which would be the same spans a second time, with the URL.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from opentelemetry import context as contexts
from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from retailrocket_async import (
    Abandoned,
    ConfigurationError,
    Dropped,
    ObservedClient,
    ObservedRequest,
    Observer,
    Rejected,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider

    from retailrocket_async import Outcome, Stats

__all__ = ["OpenTelemetryObserver"]

_NAME: Final = "retailrocket_async"

_MOST_LINKS: Final = 128
"""The SDK's own default; of more it would drop those that came first."""

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The bounds that the semantic conventions advise for the duration of HTTP requests."""

_EVENTS: Final = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000)
_BYTES: Final = tuple(1024 * 4**power for power in range(7))

_SAMPLED: Final = TraceFlags.SAMPLED

_SUPPRESS: Final = (
    "suppress_instrumentation",
    *(
        getattr(contexts, name)
        for name in ("_SUPPRESS_INSTRUMENTATION_KEY", "_SUPPRESS_HTTP_INSTRUMENTATION_KEY")
        if hasattr(contexts, name)
    ),
)
"""Keys that instrumentations look at: the one of old, and those that the API has for itself."""

_Attributes: TypeAlias = "dict[str, str | int]"


class _Begun(NamedTuple):
    """A request on its way."""

    span: Span
    token: Any
    at: float
    attributes: _Attributes


class OpenTelemetryObserver(Observer):
    """Metrics and spans of one client; the names are in the documentation's page on telemetry.

    Args:
        tracer_provider: where spans go; default the application's.
        meter_provider: where metrics go; default the application's.
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        told = version("retailrocket-async")
        self._tracer = trace.get_tracer(_NAME, told, tracer_provider)
        self._meter = metrics.get_meter(_NAME, told, meter_provider)
        self._common: _Attributes | None = None
        self._server: _Attributes = {}
        self._found: tuple[contexts.Context | None, SpanContext | None] = (None, None)
        self._stats: Callable[[], Stats | None] = _gone
        meter = self._meter
        self._events = meter.create_counter(
            "retailrocket.client.events", "{event}", "Events that have their outcome, by name and outcome."
        )
        self._duration = meter.create_histogram(
            "retailrocket.client.request.duration",
            "s",
            "How long requests took, by what came back.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._batch = meter.create_histogram(
            "retailrocket.client.request.events",
            "{event}",
            "Events in a request.",
            explicit_bucket_boundaries_advisory=_EVENTS,
        )
        self._size = meter.create_histogram(
            "retailrocket.client.request.body.size",
            "By",
            "Bytes of a request's body.",
            explicit_bucket_boundaries_advisory=_BYTES,
        )

    def opened(self, client: ObservedClient) -> None:
        """Take note of the client.

        Raises:
            ConfigurationError: there is one already: an observer belongs to one client.
        """
        if self._common is not None:
            raise ConfigurationError("an observer belongs to one client: make another one for this client")
        self._common = {"retailrocket.partner.id": client.partner_id}
        where = urlsplit(client.base_url)
        self._server = {"server.address": where.hostname or ""}
        port = where.port if where.port is not None else {"https": 443, "http": 80}.get(where.scheme)
        if port is not None:
            self._server["server.port"] = port
        self._stats = client.stats
        for name, unit, told, value in _LEVELS:
            self._meter.create_observable_gauge(name, [self._reading(value)], unit, told)
        for name, unit, told, value in _TOTALS:
            self._meter.create_observable_counter(name, [self._reading(value)], unit, told)

    def tracked(self) -> SpanContext | None:
        """Return the context of the current span, if it is sampled: a link to what nobody keeps leads nowhere."""
        # The same context has the same span: one comparison for most events of a page, and for all outside of pages.
        around = contexts.get_current()
        before, found = self._found
        if around is not before:
            context = trace.get_current_span(around).get_span_context()
            found = context if context.trace_flags & _SAMPLED else None
            # At once, as this is called in any thread.
            self._found = (around, found)
        return found

    def request_began(self, request: ObservedRequest) -> _Begun:
        """Begin a span, and have other instrumentations look away."""
        attributes: _Attributes = {
            "http.request.method": "POST",
            "url.template": request.path,
            **self._server,
            **(self._common or {}),
            "retailrocket.request.events": request.events,
            "http.request.body.size": request.size,
        }
        if request.attempt > 1:
            attributes["http.request.resend_count"] = request.attempt - 1
        # A batch is nobody's child: its task was begun by whichever call came first. Who waits for a request is its
        # parent.
        around = contexts.get_current() if request.direct else contexts.Context()
        links = [Link(context) for context in request.tracked if isinstance(context, SpanContext)][:_MOST_LINKS]
        span = self._tracer.start_span(f"POST {request.path}", around, SpanKind.CLIENT, attributes, links)
        inside = trace.set_span_in_context(span, around)
        for key in _SUPPRESS:
            inside = contexts.set_value(key, True, inside)  # noqa: FBT003 - as instrumentations look for it
        self._batch.record(request.events, self._common)
        self._size.record(request.size, self._common)
        return _Begun(span, contexts.attach(inside), time.perf_counter(), {"url.template": request.path})

    def request_ended(self, begun: object, *, status: int | None, failure: str | None) -> None:
        """End the span."""
        if not isinstance(begun, _Begun):
            return
        took = time.perf_counter() - begun.at
        contexts.detach(begun.token)
        came: _Attributes = {}
        if status is not None:
            came["http.response.status_code"] = status
        if status is None or status >= 400:
            came["error.type"] = str(status) if status is not None else failure or "_OTHER"
            begun.span.set_status(Status(StatusCode.ERROR))
        for name, value in came.items():
            begun.span.set_attribute(name, value)
        begun.span.end()
        self._duration.record(took, {**begun.attributes, **self._server, **(self._common or {}), **came})

    def settled(self, names: Mapping[str, int], outcome: Outcome) -> None:
        """Count events."""
        told: _Attributes = {**(self._common or {}), "retailrocket.outcome": type(outcome).__name__.lower()}
        if isinstance(outcome, Abandoned | Dropped):
            told["retailrocket.outcome.reason"] = outcome.reason
        if isinstance(outcome, Abandoned | Rejected) and outcome.status is not None:
            told["http.response.status_code"] = outcome.status
        for name, count in names.items():
            self._events.add(count, {**told, "retailrocket.event.name": name})

    def _reading(self, value: Callable[[Stats], float]) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(_: CallbackOptions) -> Iterable[Observation]:
            stats = self._stats()
            return [] if stats is None else [Observation(value(stats), self._common)]

        return read


def _gone() -> None:
    return None


_Reading: TypeAlias = "tuple[str, str, str, Callable[[Stats], float]]"

_LEVELS: tuple[_Reading, ...] = (
    ("retailrocket.client.queue.events", "{event}", "Events that wait in the buffer.", lambda stats: stats.pending),
    ("retailrocket.client.queue.size", "By", "Bytes of the events that wait.", lambda stats: stats.pending_bytes),
    ("retailrocket.client.queue.oldest_age", "s", "Age of the event that waits longest.", lambda s: s.oldest_age),
    ("retailrocket.client.in_flight", "{event}", "Events on their way.", lambda stats: stats.in_flight),
    ("retailrocket.client.callers", "{call}", "Calls that wait for room in the buffer.", lambda stats: stats.waiting),
    (
        "retailrocket.client.sending",
        "1",
        "1 while requests go out; 0 while the API is down, or sending is halted.",
        lambda stats: int(stats.state == "sending"),
    ),
)

_TOTALS: tuple[_Reading, ...] = (
    ("retailrocket.client.tracked", "{event}", "Events that were accepted.", lambda stats: stats.tracked),
    ("retailrocket.client.retries", "{request}", "Requests that repeated another.", lambda stats: stats.retries),
    ("retailrocket.client.limiter.wait", "s", "Time that requests waited for permits.", lambda s: s.limiter_wait),
    (
        "retailrocket.client.throttled",
        "{request}",
        "Requests that were answered 429.",
        lambda stats: stats.requests_by_status.get(429, 0),
    ),
    ("retailrocket.client.hook_errors", "{error}", "Errors of the user's hooks.", lambda stats: stats.hook_errors),
)
