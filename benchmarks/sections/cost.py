"""Measures the cost of an event in each of the clients in `benchmarks.contestants`, each in its own process."""

from __future__ import annotations

import statistics
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeAlias

import attrs

from benchmarks import contestants
from benchmarks.support import sink
from benchmarks.support.child_process import call
from benchmarks.support.progress import report
from benchmarks.support.section import Demand, Section, Table

if TYPE_CHECKING:
    from benchmarks.support.section import Effort
    from benchmarks.support.sink import Sink

_FLOOR_SHARE = 1.6
"""Greatest allowed CPU time of an event by `track`, as a multiple of that of `floor`, the least possible code."""

_RECEIPTS_SHARE = 2.2
"""Greatest allowed CPU time of an event whose receipt is awaited, as a multiple of that of `floor`."""

_CHEAPEST_PEER_SHARE = 1 / 5
_ASYNC_PEER_SHARE = 1 / 30

Figures: TypeAlias = dict[str, float]
"""The figures of one run of a contestant by name: those that it returns, and those that `_measured` adds."""


@attrs.frozen
class _Contestant:
    """A contestant (a client that is compared) and the number of its events.

    Attributes:
        name: the name of the contestant's function in `benchmarks.contestants`.
        events: the number of events that the contestant sends, chosen so that a run takes some seconds.
        needs: the module that must be installed; None if the contestant needs no further module.
        warm_up: the number of events that the contestant sends before the measurement.
        peer: whether the contestant is the client library of another service.
    """

    name: str
    events: int
    needs: str | None = None
    warm_up: int = contestants.WARM_UP
    peer: bool = False


_CONTESTANTS = (
    _Contestant("floor", 100_000),
    _Contestant("bare_events", 100_000),
    _Contestant("ours_by_track", 100_000),
    _Contestant("ours_by_track_many", 100_000),
    _Contestant("ours_with_receipts", 100_000),
    _Contestant("segment", 20_000, "segment", peer=True),
    _Contestant("rudderstack", 20_000, "rudderstack", peer=True),
    _Contestant("posthog", 20_000, "posthog", peer=True),
    _Contestant("posthog_async", 20_000, "posthog", peer=True),
    _Contestant("amplitude", 20_000, "amplitude", peer=True),
    _Contestant("snowplow", 20_000, "snowplow_tracker", peer=True),
    _Contestant("mixpanel", 20_000, "mixpanel", peer=True),
    _Contestant("aiohttp_by_hand", 5_000, "aiohttp", warm_up=100),
    _Contestant("httpx_by_hand", 1_000, warm_up=100),
)

_COLUMNS = (
    "contestant",
    "CPU µs/event",
    "x floor",
    "events/s",
    "caller's µs/event",
    "peak MiB",
    "events",
    "requests",
    "body bytes/event",
    "arrived %",
)
_NOTE = (
    "Medians. CPU: user and system time of the client's process, all threads. Caller: the time inside the caller's own "
    "calls if the library sends from another thread, otherwise all time until the last answer. "
    "Bodies before compression. Requests and bytes include the warm-up of at most 2,000 events. "
    "The floor encodes lists of 500 ready dicts and posts each."
)


def measure(effort: Effort) -> Section:
    """Measure all installed contestants in turns, once in each round."""
    present = [each for each in _CONTESTANTS if each.needs is None or find_spec(each.needs) is not None]
    absent = [each.name for each in _CONTESTANTS if each not in present]
    found: dict[str, list[Figures]] = {each.name: [] for each in present}
    with sink.running() as server:
        for number in range(effort.rounds):
            report(f"cost: round {number + 1} of {effort.rounds}")
            for each in present:
                found[each.name].append(_measured(each, effort, server))
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()
    }
    floor = medians["floor"]["cpu"]
    rows = tuple(
        (
            each.name,
            (figures := medians[each.name])["cpu"],
            figures["cpu"] / floor,
            figures["rate"],
            figures["caller"],
            figures["peak"],
            effort.count(each.events),
            int(figures["requests"]),
            figures["bytes"],
            figures["arrived"],
        )
        for each in present
    )
    missing = f" Not installed, so left out: {', '.join(absent)}." if absent else ""
    return Section(
        name="cost",
        title="What an event costs",
        tables=(
            Table(title="Cost of an event", columns=_COLUMNS, rows=rows, note=_NOTE + missing),
            Table(
                title="The contestants",
                columns=("contestant", "what it does"),
                rows=tuple((each.name, _description(each)) for each in present),
            ),
        ),
        demands=_demands(medians, present),
        series={"cost": {name: figures["cpu"] for name, figures in medians.items()}},
    )


def _measured(contestant: _Contestant, effort: Effort, server: Sink) -> Figures:
    """Run one contestant, and add the figures that the server counted."""
    events = effort.count(contestant.events)
    server.take()
    figures: Figures = call(f"benchmarks.contestants:{contestant.name}", port=server.port, events=events)
    counted = server.take()
    # The contestant `floor` uses its first events for the warm-up; the other contestants make additional events.
    sent = events + (min(events, contestant.warm_up) if contestant.name == "floor" else contestant.warm_up)
    return figures | {
        "requests": counted["requests"],
        "bytes": counted["size"] / max(1, counted["events"]),
        "arrived": counted["events"] / sent * 100,
    }


def _description(contestant: _Contestant) -> str:
    text: str = getattr(contestants, contestant.name).__doc__
    return text.partition("\n")[0].removesuffix(".")


def _demands(medians: dict[str, Figures], present: list[_Contestant]) -> tuple[Demand, ...]:
    cpu = {name: figures["cpu"] for name, figures in medians.items()}
    demands = [
        Demand(
            what="an event by track, times the floor", figure=cpu["ours_by_track"] / cpu["floor"], bound=_FLOOR_SHARE
        ),
        Demand(
            what="an event with its receipt awaited, times the floor",
            figure=cpu["ours_with_receipts"] / cpu["floor"],
            bound=_RECEIPTS_SHARE,
        ),
        Demand(
            what="events of ours that arrived",
            figure=min(figures["arrived"] for name, figures in medians.items() if name.startswith("ours")),
            bound=100,
            unit="%",
            at_least=True,
        ),
    ]
    peers = {each.name: cpu[each.name] for each in present if each.peer}
    if peers:
        cheapest = min(peers, key=lambda name: peers[name])
        what = f"an event by track, times the cheapest peer ({cheapest})"
        demands.append(Demand(what=what, figure=cpu["ours_by_track"] / peers[cheapest], bound=_CHEAPEST_PEER_SHARE))
    if "posthog_async" in peers:
        what = "an event by track, times the asyncio peer (posthog_async)"
        demands.append(Demand(what=what, figure=cpu["ours_by_track"] / peers["posthog_async"], bound=_ASYNC_PEER_SHARE))
    return tuple(demands)
