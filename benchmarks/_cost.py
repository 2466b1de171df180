"""What an event costs: ours, the floor, the peers and what people write by hand, each in a process of its own."""

from __future__ import annotations

import statistics
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeAlias

import _contestants
import _sink
import attrs
from _child import call
from _process import running
from _progress import tell
from _section import Demand, Section, Table

if TYPE_CHECKING:
    from _process import Pipe
    from _section import Effort

_FLOOR_SHARE = 1.6
"""Times the floor's CPU time that an event may cost by `track`."""

_RECEIPTS_SHARE = 2.2
"""The same where each receipt is awaited."""

_CHEAPEST_PEER_SHARE = 1 / 5
_ASYNC_PEER_SHARE = 1 / 30

Figures: TypeAlias = dict[str, float]
"""What one run of a contestant has found, by name; see `_contestants`, and `_measured` for the others."""


@attrs.frozen
class _Contestant:
    """Who takes part.

    Attributes:
        name: of its function in `_contestants`.
        events: how many it sends, so that each takes a second or a few.
        needs: the module that must be there; None where it is there anyway.
        warm_up: events that its function sends before those.
        peer: whether it is a library that does the same for another service.
    """

    name: str
    events: int
    needs: str | None = None
    warm_up: int = _contestants.WARM_UP
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
    "Medians. CPU: user and system time of the client's process, all threads. Caller: the time that the caller's own "
    "calls take; of who sends from another thread only theirs, of all others everything until the last answer. "
    "Bodies before compression. Requests and bytes with the warm-up, at most 2,000 events. "
    "The floor dumps lists of 500 ready dicts and posts each."
)


def measure(effort: Effort) -> Section:
    """Measure all contestants that are installed, one after the other, as often as asked for."""
    present = [each for each in _CONTESTANTS if each.needs is None or find_spec(each.needs) is not None]
    absent = [each.name for each in _CONTESTANTS if each not in present]
    found: dict[str, list[Figures]] = {each.name: [] for each in present}
    with running(_sink.main, _sink.Sink()) as (port, pipe):
        for number in range(effort.rounds):
            tell(f"cost: round {number + 1} of {effort.rounds}")
            for each in present:
                found[each.name].append(_measured(each, effort, port, pipe))
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
                title="Who they are",
                columns=("contestant", "what it does"),
                rows=tuple((each.name, _told(each)) for each in present),
            ),
        ),
        demands=_demands(medians, present),
        series={"cost": {name: figures["cpu"] for name, figures in medians.items()}},
    )


def _measured(contestant: _Contestant, effort: Effort, port: int, pipe: Pipe) -> Figures:
    """Run one contestant, and add what has arrived of it."""
    events = effort.count(contestant.events)
    _sink.taken(pipe)
    figures: Figures = call(f"_contestants:{contestant.name}", port=port, events=events)
    books = _sink.taken(pipe)
    # What is sent first is never more than what is sent then, where it is taken from that.
    sent = events + (min(events, contestant.warm_up) if contestant.name == "floor" else contestant.warm_up)
    return figures | {
        "requests": books["requests"],
        "bytes": books["size"] / max(1, books["events"]),
        "arrived": books["events"] / sent * 100,
    }


def _told(contestant: _Contestant) -> str:
    text: str = getattr(_contestants, contestant.name).__doc__
    return text.removesuffix(".")


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
