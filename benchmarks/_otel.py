"""What telemetry costs: the same events with nobody looking, with an idle observer, and with OpenTelemetry.

With the SDK, and nothing exported: what an exporter costs is the application's own choice.
"""

from __future__ import annotations

import functools
import statistics
from typing import TYPE_CHECKING, Any

import _sink
from _child import Meter, call
from _contestants import VISITORS, WARM_UP, client_of, ours_by_track
from _process import running
from _progress import tell
from _section import Demand, Section, Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from _section import Effort

_EVENTS = 200_000
_TENTH = 1.1

_WAYS = {
    "nobody": ("nobody looks", "nobody"),
    "idle": ("an observer that does nothing", "nobody"),
    "outside": ("OpenTelemetry, metrics and spans", "nobody"),
    "nobody_in_pages": ("nobody looks; events from pages, a tenth of them sampled", "nobody_in_pages"),
    "inside": ("OpenTelemetry, with links to the pages", "nobody_in_pages"),
    "nobody_in_sampled": ("nobody looks; events from pages, all of them sampled", "nobody_in_sampled"),
    "inside_sampled": ("OpenTelemetry, with links to the pages", "nobody_in_sampled"),
}
"""What each is, and what it is compared with."""

_PAGE = 5
"""Events that one page tracks."""


def measure(effort: Effort) -> Section:
    """Measure each way of looking, in turns."""
    found: dict[str, list[float]] = {name: [] for name in _WAYS}
    with running(_sink.main, _sink.Sink()) as (port, _):
        for number in range(effort.rounds):
            tell(f"otel: round {number + 1} of {effort.rounds}")
            for name in _WAYS:
                found[name].append(call("_otel:looked_at", port=port, events=effort.count(_EVENTS), by=name)["cpu"])
    # What disturbs a round disturbs all that is in it.
    times = {
        name: statistics.median(one / alone for one, alone in zip(found[name], found[base], strict=True))
        for name, (_, base) in _WAYS.items()
    }
    return Section(
        name="otel",
        title="What telemetry costs",
        tables=(
            Table(
                title="An event by track",
                columns=("who looks", "CPU µs/event", "times nobody"),
                rows=tuple((what, statistics.median(found[name]), times[name]) for name, (what, _) in _WAYS.items()),
                note=f"Medians; the ratios are those of runs side by side. Nothing is exported. {_PAGE} events in each "
                "page. The SDK is loaded in all of them.",
            ),
        ),
        demands=(
            Demand(what="with OpenTelemetry, times nobody", figure=times["outside"], bound=_TENTH),
            Demand(what="with a tenth of the pages sampled, times nobody", figure=times["inside"], bound=_TENTH),
            Demand(what="with all of the pages sampled, times nobody", figure=times["inside_sampled"], bound=_TENTH),
        ),
    )


async def looked_at(port: int, events: int, by: str) -> Any:
    """Track events with somebody looking, or nobody."""
    how: dict[str, Callable[[int, int], Any]] = {
        "nobody": _nobody,
        "idle": _idle,
        "outside": _outside,
        "nobody_in_pages": functools.partial(_in_pages, part=0.1, looked_at=False),
        "inside": functools.partial(_in_pages, part=0.1, looked_at=True),
        "nobody_in_sampled": functools.partial(_in_pages, part=1.0, looked_at=False),
        "inside_sampled": functools.partial(_in_pages, part=1.0, looked_at=True),
    }
    return await how[by](port, events)


async def _nobody(port: int, events: int) -> Any:
    # The SDK is there in all of them, as the application's: Python's collector looks through its objects, too.
    _observer()
    return await ours_by_track(port, events)


async def _idle(port: int, events: int) -> Any:
    from retailrocket_async import Observer  # noqa: PLC0415 - each process imports what it measures

    _observer()
    return await ours_by_track(port, events, observer=Observer())


async def _outside(port: int, events: int) -> Any:
    return await ours_by_track(port, events, observer=_observer()[0])


async def _in_pages(port: int, events: int, *, part: float, looked_at: bool) -> Any:
    from opentelemetry import context, trace  # noqa: PLC0415 - as above

    from retailrocket_async import View  # noqa: PLC0415

    observer, tracer = _observer(part)
    options = {"observer": observer} if looked_at else {}
    async with client_of(port, **options) as client:

        async def send(count: int) -> None:
            for number in range(count):
                if not number % _PAGE:
                    context.attach(trace.set_span_in_context(tracer.start_span("page")))
                await client.track(View(session_external_id=VISITORS[number % 1000], product_id=number))
            await client.flush()

        await send(WARM_UP)
        with Meter() as meter:
            await send(events)
    return {"cpu": meter.cpu / events * 1e6}


def _observer(part: float = 1.0) -> tuple[Any, Any]:
    """Return an observer, and the application's tracer, which samples so many of its pages."""
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415 - as above
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.sampling import TraceIdRatioBased  # noqa: PLC0415

    from retailrocket_async.otel import OpenTelemetryObserver  # noqa: PLC0415

    observer = OpenTelemetryObserver(TracerProvider(), MeterProvider([InMemoryMetricReader()]))
    return observer, TracerProvider(TraceIdRatioBased(part)).get_tracer("shop")
