"""What telemetry costs: the same events with nobody looking, with an idle observer, and with OpenTelemetry.

With the SDK, and nothing exported: what an exporter costs is the application's own choice.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import _sink
from _child import call
from _contestants import BATCH, VISITORS, WARM_UP, client_of
from _process import running
from _progress import tell
from _section import Demand, Section, Table

if TYPE_CHECKING:
    from _section import Effort

_EVENTS = 200_000
_TENTH = 1.1

_PAGE = 5
"""Events that one page tracks."""

_TURN = 5_000
"""Events that one of the two clients tracks before it is the other's turn."""


class _Way(NamedTuple):
    """Who looks, and at what."""

    what: str
    idle: bool = False
    sampled: float | None = None
    """The part of the pages that is sampled; None where events come from no page."""


_WAYS = {
    "idle": _Way("an observer that does nothing", idle=True),
    "outside": _Way("OpenTelemetry, metrics and spans"),
    "tenth": _Way("OpenTelemetry, with links to pages, a tenth of them sampled", sampled=0.1),
    "all": _Way("OpenTelemetry, with links to pages, all of them sampled", sampled=1.0),
}


def measure(effort: Effort) -> Section:
    """Measure each way of looking beside nobody who looks, in turns."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in _WAYS}
    with running(_sink.main, _sink.Sink()) as (port, _):
        for number in range(effort.rounds):
            tell(f"otel: round {number + 1} of {effort.rounds}")
            for name in _WAYS:
                found[name].append(call("_otel:looked_at", port=port, events=effort.count(_EVENTS), by=name))

    def times(name: str, who: str = "looked") -> float:
        return statistics.median(one[who] / one["alone"] for one in found[name])

    return Section(
        name="otel",
        title="What telemetry costs",
        tables=(
            Table(
                title="An event by track",
                columns=("who looks", "CPU µs/event", "nobody looks", "times", "the least"),
                rows=tuple(
                    (
                        way.what,
                        *(statistics.median(one[who] for one in found[name]) for who in ("looked", "alone")),
                        times(name),
                        "" if way.idle else times(name, "least"),
                    )
                    for name, way in _WAYS.items()
                ),
                note=f"Medians; clients of one process in turns. Nothing is exported. {_PAGE} events in each page, "
                "which is a trace of its own; what makes it is in all figures. The least: nobody looks, and the SDK is "
                "called for the span of a page, and for a request's span, links and two recordings, with nothing of "
                "ours.",
            ),
        ),
        demands=(
            Demand(what="with OpenTelemetry, times nobody", figure=times("outside"), bound=_TENTH),
            Demand(what="with a tenth of the pages sampled, times nobody", figure=times("tenth"), bound=_TENTH),
            Demand(what="with all of the pages sampled, times nobody", figure=times("all"), bound=_TENTH),
        ),
    )


async def looked_at(port: int, events: int, by: str) -> dict[str, float]:
    """Track events with somebody looking and with nobody, in turns; return the CPU microseconds of an event."""
    from retailrocket_async import Observer, View  # noqa: PLC0415 - each process imports what it measures

    way = _WAYS[by]
    telemetry = _Telemetry(way.sampled)
    numbers = itertools.count()

    async def track(client: Any, count: int, least: _Least | None = None) -> float:
        began = time.process_time()
        for number in itertools.islice(numbers, count):
            if way.sampled is not None and not number % _PAGE:
                telemetry.enter()
                if least is not None:
                    least.page()
            await client.track(View(session_external_id=VISITORS[number % 1000], product_id=number))
            if least is not None and not number % BATCH:
                least.request()
        await client.flush()
        return time.process_time() - began

    counts = [_TURN] * (events // _TURN) or [events]
    observer = Observer() if way.idle else telemetry.observer()
    least = None if way.idle else _Least(telemetry)
    async with client_of(port, observer=observer) as looked, client_of(port) as alone:
        turns: list[tuple[str, Any, _Least | None]] = [("looked", looked, None), ("alone", alone, None)]
        if least is not None:
            turns.append(("least", alone, least))
        spent = {who: 0.0 for who, _, _ in turns}
        for _, client, looks in turns:
            await track(client, WARM_UP, looks)
        # Or a full collection would look at all of the SDK, in the turn of whoever happens to be at it.
        gc.collect()
        gc.freeze()
        for count in counts:
            for who, client, looks in turns:
                spent[who] += await track(client, count, looks)
            # Who comes second finds memory as the first has left it.
            turns.append(turns.pop(0))
    return {who: seconds / sum(counts) * 1e6 for who, seconds in spent.items()}


class _Telemetry:
    """The SDK of an application, which samples a part of its pages."""

    def __init__(self, sampled: float | None) -> None:
        from opentelemetry import context, trace  # noqa: PLC0415 - as above
        from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import TraceIdRatioBased  # noqa: PLC0415

        self.context, self.trace = context, trace
        self.tracers, self.meters = TracerProvider(), MeterProvider([InMemoryMetricReader()])
        self._shop = TracerProvider(TraceIdRatioBased(sampled or 0.0)).get_tracer("shop")

    def observer(self) -> Any:
        """Return an observer that tells it."""
        from retailrocket_async.otel import OpenTelemetryObserver  # noqa: PLC0415

        return OpenTelemetryObserver(self.tracers, self.meters)

    def enter(self) -> None:
        """Enter another page."""
        page = self._shop.start_span("page", self.context.Context())
        self.context.attach(self.trace.set_span_in_context(page, self.context.Context()))


class _Least:
    """What has to be asked of an SDK for spans of requests, with links to pages, and for two of their metrics."""

    def __init__(self, telemetry: _Telemetry) -> None:
        self._context, self._trace = telemetry.context, telemetry.trace
        self._tracer = telemetry.tracers.get_tracer("least")
        meter = telemetry.meters.get_meter("least")
        self._duration, self._batch = meter.create_histogram("duration"), meter.create_histogram("batch")
        self._pages: list[Any] = []

    def page(self) -> None:
        """Find out where events come from."""
        page = self._trace.get_current_span().get_span_context()
        if page.trace_flags.sampled:
            self._pages.append(page)

    def request(self) -> None:
        """Tell of a request."""
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
        told = {name: attributes[name] for name in named}
        self._duration.record(0.1, {**told, "http.response.status_code": 200}, inside)
        self._pages.clear()
