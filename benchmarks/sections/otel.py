"""Measures the cost of telemetry: events without an observer, with an idle observer, and with OpenTelemetry.

OpenTelemetry's SDK is used without an exporter, whose cost depends on the application's choice.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.contestants import BATCH, VISITORS, WARM_UP, client_of
from benchmarks.support import sink
from benchmarks.support.child_process import call
from benchmarks.support.progress import report
from benchmarks.support.section import Demand, Section, Table

if TYPE_CHECKING:
    from benchmarks.support.section import Effort

_EVENTS = 200_000
_TENTH = 1.1

_PAGE = 5
"""Events that one page tracks."""

_TURN = 5_000
"""Number of events that one client tracks before the next client continues."""


class _Observation(NamedTuple):
    """One way to observe a client.

    Attributes:
        title: the name of the row in the table.
        idle: whether the observer does nothing.
        sampled: the fraction of pages whose traces are recorded; None if events are tracked outside of any page.
    """

    title: str
    idle: bool = False
    sampled: float | None = None


_OBSERVATIONS = {
    "idle": _Observation("an observer that does nothing", idle=True),
    "outside": _Observation("OpenTelemetry, metrics and spans"),
    "tenth": _Observation("OpenTelemetry, with links to pages, a tenth of them sampled", sampled=0.1),
    "all": _Observation("OpenTelemetry, with links to pages, all of them sampled", sampled=1.0),
}


def measure(effort: Effort) -> Section:
    """Measure each kind of observation beside a client without an observer, in turns."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in _OBSERVATIONS}
    with sink.running() as server:
        for number in range(effort.rounds):
            report(f"otel: round {number + 1} of {effort.rounds}")
            for name in _OBSERVATIONS:
                found[name].append(
                    call("benchmarks.sections.otel:observed", port=server.port, events=effort.count(_EVENTS), kind=name)
                )

    def times(name: str, who: str = "observed") -> float:
        return statistics.median(one[who] / one["alone"] for one in found[name])

    return Section(
        name="otel",
        title="What telemetry costs",
        tables=(
            Table(
                title="An event by track",
                columns=("observer", "CPU µs/event", "without observer", "times", "SDK alone, times"),
                rows=tuple(
                    (
                        way.title,
                        *(statistics.median(one[who] for one in found[name]) for who in ("observed", "alone")),
                        times(name),
                        "" if way.idle else times(name, "sdk"),
                    )
                    for name, way in _OBSERVATIONS.items()
                ),
                note=f"Medians; clients of one process in turns. Nothing is exported. A page has {_PAGE} events and "
                "is a trace of its own; all figures include the creation of the trace. SDK alone: the client has no "
                "observer, and the SDK is called directly for the page's span, the request's span, its links and two "
                "metrics.",
            ),
        ),
        demands=(
            Demand(what="with OpenTelemetry, times no observer", figure=times("outside"), bound=_TENTH),
            Demand(what="with a tenth of the pages sampled, times no observer", figure=times("tenth"), bound=_TENTH),
            Demand(what="with all of the pages sampled, times no observer", figure=times("all"), bound=_TENTH),
        ),
    )


async def observed(port: int, events: int, kind: str) -> dict[str, float]:
    """Track events with and without an observer, in turns; return the CPU microseconds of an event of each client."""
    from retailrocket_async import Observer, View  # noqa: PLC0415 - each process imports what it measures

    way = _OBSERVATIONS[kind]
    telemetry = _Telemetry(way.sampled)
    numbers = itertools.count()

    async def track(client: Any, count: int, sdk: _SdkCalls | None = None) -> float:
        began = time.process_time()
        for number in itertools.islice(numbers, count):
            if way.sampled is not None and not number % _PAGE:
                telemetry.enter()
                if sdk is not None:
                    sdk.page()
            await client.track(View(session_external_id=VISITORS[number % 1000], product_id=number))
            if sdk is not None and not number % BATCH:
                sdk.request()
        await client.flush()
        return time.process_time() - began

    counts = [_TURN] * (events // _TURN) or [events]
    observer = Observer() if way.idle else telemetry.observer()
    sdk = None if way.idle else _SdkCalls(telemetry)
    async with client_of(port, observer=observer) as observed_client, client_of(port) as alone:
        turns: list[tuple[str, Any, _SdkCalls | None]] = [("observed", observed_client, None), ("alone", alone, None)]
        if sdk is not None:
            turns.append(("sdk", alone, sdk))
        spent = {who: 0.0 for who, _, _ in turns}
        for _, client, calls in turns:
            await track(client, WARM_UP, calls)
        # Otherwise a full garbage collection of all objects of the SDK could run while one of the clients is measured.
        gc.collect()
        gc.freeze()
        for count in counts:
            for who, client, calls in turns:
                spent[who] += await track(client, count, calls)
            # The order of the clients changes, because each client finds the memory as the previous client left it.
            turns.append(turns.pop(0))
    return {who: seconds / sum(counts) * 1e6 for who, seconds in spent.items()}


class _Telemetry:
    """The OpenTelemetry SDK of an application, which records the traces of a fraction of its pages."""

    def __init__(self, sampled: float | None) -> None:
        from opentelemetry import context, trace  # noqa: PLC0415 - imported only where it is measured
        from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import TraceIdRatioBased  # noqa: PLC0415

        self.context, self.trace = context, trace
        self.tracers, self.meters = TracerProvider(), MeterProvider([InMemoryMetricReader()])
        self._shop = TracerProvider(TraceIdRatioBased(sampled or 0.0)).get_tracer("shop")

    def observer(self) -> Any:
        """Return an observer that records into this SDK."""
        from retailrocket_async.otel import OpenTelemetryObserver  # noqa: PLC0415

        return OpenTelemetryObserver(self.tracers, self.meters)

    def enter(self) -> None:
        """Start the span of another page and make it current."""
        page = self._shop.start_span("page", self.context.Context())
        self.context.attach(self.trace.set_span_in_context(page, self.context.Context()))


class _SdkCalls:
    """Calls the SDK directly and as little as possible: a span for each request, linked to pages, and two metrics."""

    def __init__(self, telemetry: _Telemetry) -> None:
        self._context, self._trace = telemetry.context, telemetry.trace
        self._tracer = telemetry.tracers.get_tracer("sdk")
        meter = telemetry.meters.get_meter("sdk")
        self._duration, self._batch = meter.create_histogram("duration"), meter.create_histogram("batch")
        self._pages: list[Any] = []

    def page(self) -> None:
        """Remember the current page if it is sampled."""
        page = self._trace.get_current_span().get_span_context()
        if page.trace_flags.sampled:
            self._pages.append(page)

    def request(self) -> None:
        """Record a request: its span, its duration and the number of its events."""
        context, trace = self._context, self._trace
        attributes: dict[str, str | int] = {
            "http.request.method": "POST",
            "url.template": "visitorEvents",
            "server.address": "127.0.0.1",
            "server.port": 80,
            "retailrocket.partner.id": "p",
            "retailrocket.request.events": BATCH,
            "http.request.body.size": 40_000,
        }
        links = [trace.Link(page) for page in self._pages]
        span = self._tracer.start_span("POST", context.Context(), trace.SpanKind.CLIENT, attributes, links)
        inside = trace.set_span_in_context(span, context.Context())
        self._batch.record(BATCH, {"retailrocket.partner.id": "p"}, inside)
        context.detach(context.attach(inside))
        span.set_attribute("http.response.status_code", 200)
        span.end()
        named = ("url.template", "server.address", "server.port", "retailrocket.partner.id")
        common = {name: attributes[name] for name in named}
        self._duration.record(0.1, {**common, "http.response.status_code": 200}, inside)
        self._pages.clear()
