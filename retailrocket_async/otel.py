"""Records OpenTelemetry metrics and spans of a client.

Each request gets one span, with links to the spans in which the events of the request were tracked.

::

    client = AsyncTrackingClient.from_env(observer=OpenTelemetryObserver())

Only the OpenTelemetry API is needed (extra ``otel``); nothing is recorded unless the application has set up an SDK. The
API key is in no attribute, because the URL, which contains the key, is not recorded. Instrumentations of HTTP clients
are suppressed for these requests, because such an instrumentation would record each request again, with the URL.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, defaultdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeAlias
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary, WeakValueDictionary

from retailrocket_async import (
    Abandoned,
    ConfigurationError,
    Dropped,
    ObservedClient,
    ObservedRequest,
    Observer,
    Rejected,
)
from retailrocket_async._runtime.extras import needing
from retailrocket_async._runtime.uncopyable import Uncopyable

with needing("otel"):
    from opentelemetry import context as contexts
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import CallbackOptions, Observation
    from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextvars import ContextVar

    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import Span, TracerProvider

    from retailrocket_async import Outcome, Stats

__all__ = ["OpenTelemetryObserver"]

_NAME: Final = "retailrocket_async"
_PARTNER: Final = "retailrocket.partner.id"

_MOST_LINKS: Final = 128
"""The largest number of links of a span. The SDK's default limit is the same; if there are more links, the SDK drops
the first links."""

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""Histogram boundaries in seconds, as the semantic conventions recommend for the duration of HTTP requests."""

_EVENTS: Final = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000)

_SAMPLED: Final = TraceFlags.SAMPLED

_SUPPRESS: Final = (
    "suppress_instrumentation",
    *(
        getattr(contexts, name)
        for name in ("_SUPPRESS_INSTRUMENTATION_KEY", "_SUPPRESS_HTTP_INSTRUMENTATION_KEY")
        if hasattr(contexts, name)
    ),
)
"""Context keys that suppress other instrumentations: the old public key, and two private keys of the API."""


def _suppressed(context: contexts.Context) -> contexts.Context:
    """Return a context in which other instrumentations are suppressed."""
    for key in _SUPPRESS:
        context = contexts.set_value(key, True, context)  # noqa: FBT003 - instrumentations expect True
    return context


_NO_PARENT: Final = _suppressed(contexts.Context())

_Attributes: TypeAlias = "dict[str, str | int]"


class _Begun(NamedTuple):
    """The span and the start time of a request in flight, passed from `request_began` to `request_ended`."""

    span: Span
    inside: contexts.Context
    token: Any
    at: float
    path: str


class OpenTelemetryObserver(Observer, Uncopyable):
    """Records metrics and spans of one client; the telemetry page of the documentation lists the names.

    Args:
        tracer_provider: gets the spans; default the application's global provider.
        meter_provider: gets the metrics; default the application's global provider.
    """

    _instead = "make one for each client"

    def __init__(
        self, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        our_version = version("retailrocket-async")
        self._tracer = trace.get_tracer(_NAME, our_version, tracer_provider)
        meter = metrics.get_meter(_NAME, our_version, meter_provider)
        self._readings = _Readings.of(meter_provider, meter)
        self._client: ObservedClient | None = None
        self._partner_id = ""
        self._common: _Attributes = {}
        self._server: _Attributes = {}
        # OpenTelemetry has no public name for the context variable of the current context, so read a private one.
        self.origin = _variable_of(getattr(contexts, "_RUNTIME_CONTEXT", None))
        self._duration = meter.create_histogram(
            "retailrocket.client.request.duration",
            "s",
            "Duration of requests, by their reply.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._batch = meter.create_histogram(
            "retailrocket.client.request.events",
            "{event}",
            "Events in a request.",
            explicit_bucket_boundaries_advisory=_EVENTS,
        )

    def opened(self, client: ObservedClient) -> None:
        """Register the client, so that its counters are read for the metrics.

        Raises:
            ConfigurationError: the observer already belongs to a client.
        """
        if self._client is not None:
            raise ConfigurationError("an observer belongs to one client: make another one for this client")
        # `_Readings` refers to the `ObservedClient` only weakly. The client refers to this observer, and this observer
        # to the `ObservedClient`. So the counters are read as long as the client exists.
        self._client = client
        self._partner_id = client.partner_id
        self._common = {_PARTNER: client.partner_id}
        where = urlsplit(client.base_url)
        self._server = {"server.address": where.hostname or ""}
        port = where.port if where.port is not None else {"https": 443, "http": 80}.get(where.scheme)
        if port is not None:
            self._server["server.port"] = port
        self._readings.add(client)

    def tracked(self) -> SpanContext | None:
        """Return the current span's context, or None if the span is not sampled.

        A span that is not sampled is not stored, so a link to that span would lead nowhere.
        """
        context = trace.get_current_span().get_span_context()
        return context if context.trace_flags & _SAMPLED else None

    def request_began(self, request: ObservedRequest) -> _Begun:
        """Start a span for the request, and suppress other instrumentations until `request_ended`."""
        attributes: _Attributes = {
            "http.request.method": "POST",
            "url.template": request.path,
            **self._server,
            **self._common,
            "retailrocket.request.events": request.events,
            "http.request.body.size": request.size,
        }
        if request.attempt > 1:
            attributes["http.request.resend_count"] = request.attempt - 1
        # The parent span of a direct send is the caller's span, because the caller waits for the request. A batch has
        # no parent span.
        around = _suppressed(contexts.get_current()) if request.direct else _NO_PARENT
        pages = (context for context in request.tracked if isinstance(context, SpanContext))
        links = [Link(context) for context in itertools.islice(pages, _MOST_LINKS)]
        span = self._tracer.start_span(f"POST {request.path}", around, SpanKind.CLIENT, attributes, links)
        # A connection that the request opens stores this context, so the context must not contain other objects of the
        # caller.
        inside = trace.set_span_in_context(span, _NO_PARENT)
        self._batch.record(request.events, self._common, inside)
        self._readings.sent(self._partner_id, request.size)
        return _Begun(span, inside, contexts.attach(inside), time.perf_counter(), request.path)

    def request_ended(self, begun: object, *, status: int | None, failure: str | None) -> None:
        """End the span of the request, and record the duration."""
        if not isinstance(begun, _Begun):
            return
        took = time.perf_counter() - begun.at
        contexts.detach(begun.token)
        result: _Attributes = {}
        if status is not None:
            result["http.response.status_code"] = status
        if status is None or status >= 400:
            result["error.type"] = str(status) if status is not None else failure or "_OTHER"
            begun.span.set_status(Status(StatusCode.ERROR))
        for name, value in result.items():
            begun.span.set_attribute(name, value)
        begun.span.end()
        attributes = {"url.template": begun.path, **self._server, **self._common, **result}
        self._duration.record(took, attributes, begun.inside)

    def settled(self, names: Mapping[str, int], outcome: Outcome) -> None:
        """Count the events that got an outcome."""
        reason = outcome.reason if isinstance(outcome, Abandoned | Dropped) else None
        status = outcome.status if isinstance(outcome, Abandoned | Rejected) else None
        self._readings.settled(self._partner_id, names, type(outcome).__name__.lower(), reason, status)


class _Readings:
    """Counts events and bytes of all clients of one meter provider, and reports the counts when the provider asks.

    All clients share the instruments, because an SDK uses only the first callback of each instrument name. Counting
    in this class is also much faster than counting in an SDK.
    """

    _of_providers: ClassVar[WeakKeyDictionary[object, _Readings]] = WeakKeyDictionary()
    _of_the_application: ClassVar[_Readings | None] = None
    _making = threading.Lock()

    def __init__(self, meter: Meter) -> None:
        self._lock = threading.Lock()
        # The keys of this dict are the ids of the objects, because two `ObservedClient` objects of the same shop are
        # equal.
        self._clients: WeakValueDictionary[int, ObservedClient] = WeakValueDictionary()
        self._events: Counter[tuple[str, str, str, str | None, int | None]] = Counter()
        self._bytes: Counter[str] = Counter()
        meter.create_observable_counter(
            "retailrocket.client.events",
            [self._read_events],
            "{event}",
            "Events that have their outcome, by name and outcome.",
        )
        meter.create_observable_counter(
            "retailrocket.client.sent", [self._read_bytes], "By", "Bytes of the bodies of all requests."
        )
        for name, unit, description, value, combine in _LEVELS:
            meter.create_observable_gauge(name, [self._reading(value, combine)], unit, description)
        for name, unit, description, value, combine in _TOTALS:
            meter.create_observable_counter(name, [self._reading(value, combine)], unit, description)

    @classmethod
    def of(cls, provider: MeterProvider | None, meter: Meter) -> _Readings:
        """Return the one `_Readings` of a provider; None means the application's provider, which may be set later."""
        with cls._making:
            if provider is None or provider is metrics.get_meter_provider():
                if cls._of_the_application is None:
                    cls._of_the_application = cls(meter)
                return cls._of_the_application
            if provider not in cls._of_providers:
                cls._of_providers[provider] = cls(meter)
            return cls._of_providers[provider]

    def add(self, client: ObservedClient) -> None:
        """Include the counters of a client in the metrics for as long as the client exists."""
        with self._lock:
            self._clients[id(client)] = client

    def sent(self, partner_id: str, size: int) -> None:
        """Count the bytes of a request's body."""
        with self._lock:
            self._bytes[partner_id] += size

    def settled(
        self, partner_id: str, names: Mapping[str, int], outcome: str, reason: str | None, status: int | None
    ) -> None:
        """Count events that got an outcome."""
        with self._lock:
            for name, count in names.items():
                self._events[partner_id, name, outcome, reason, status] += count

    def _read_events(self, _: CallbackOptions) -> Iterable[Observation]:
        with self._lock:
            events = dict(self._events)
        for key, count in events.items():
            attributes = zip(_KEYS, key, strict=True)
            yield Observation(count, {name: value for name, value in attributes if value is not None})

    def _read_bytes(self, _: CallbackOptions) -> Iterable[Observation]:
        with self._lock:
            sizes = dict(self._bytes)
        return [Observation(size, {_PARTNER: partner_id}) for partner_id, size in sizes.items()]

    def _reading(
        self, value: Callable[[Stats], float], combine: Callable[[Iterable[float]], float]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(_: CallbackOptions) -> Iterable[Observation]:
            with self._lock:
                clients = list(self._clients.values())
            found: defaultdict[str, list[float]] = defaultdict(list)
            for client in clients:
                stats = client.stats()
                if stats is not None:
                    found[client.partner_id].append(value(stats))
            # Clients of the same shop have the same attributes, so combine the values of these clients into one.
            return [Observation(combine(values), {_PARTNER: partner_id}) for partner_id, values in found.items()]

        return read


_KEYS: Final = (
    _PARTNER,
    "retailrocket.event.name",
    "retailrocket.outcome",
    "retailrocket.outcome.reason",
    "http.response.status_code",
)


def _variable_of(runtime: object) -> ContextVar[Any] | None:
    """Return the context variable that holds OpenTelemetry's current context; None if the context is stored elsewhere.

    The same context object always has the same span, so the variable serves as `Observer.origin`.
    """
    variable: ContextVar[Any] | None = getattr(runtime, "_current_context", None)
    try:
        return variable if variable is not None and variable.get() is contexts.get_current() else None
    except LookupError:
        return None


_Reading: TypeAlias = "tuple[str, str, str, Callable[[Stats], float], Callable[[Iterable[float]], float]]"

_LEVELS: tuple[_Reading, ...] = (
    ("retailrocket.client.queue.events", "{event}", "Events that wait in the buffer.", lambda s: s.pending, sum),
    ("retailrocket.client.queue.size", "By", "Bytes of the events that wait.", lambda s: s.pending_bytes, sum),
    ("retailrocket.client.queue.oldest_age", "s", "Age of the event that waits longest.", lambda s: s.oldest_age, max),
    ("retailrocket.client.in_flight", "{event}", "Events in flight.", lambda s: s.in_flight, sum),
    ("retailrocket.client.callers", "{call}", "Calls that wait for room in the buffer.", lambda s: s.waiting, sum),
    (
        "retailrocket.client.sending",
        "1",
        "1 while requests go out; 0 while the API is down, or sending is halted.",
        lambda s: int(s.state == "sending"),
        min,
    ),
)

_TOTALS: tuple[_Reading, ...] = (
    ("retailrocket.client.tracked", "{event}", "Events that were accepted.", lambda s: s.tracked, sum),
    ("retailrocket.client.retries", "{request}", "Requests that repeated another.", lambda s: s.retries, sum),
    ("retailrocket.client.limiter.wait", "s", "Time that requests waited for permits.", lambda s: s.limiter_wait, sum),
    (
        "retailrocket.client.throttled",
        "{request}",
        "Requests that were answered 429.",
        lambda s: s.requests_by_status.get(429, 0),
        sum,
    ),
    ("retailrocket.client.hook_errors", "{error}", "Errors of the user's hooks.", lambda s: s.hook_errors, sum),
)
