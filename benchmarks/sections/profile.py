"""Profiles the code that sends events: the ten functions that take most time, and the time of each library.

A profiler adds a cost to each call, so small functions look too slow, and calls into C look too fast. A profile shows
where to look; the section `micro` measures the real cost of each part.
"""

from __future__ import annotations

import cProfile
import pstats
import sysconfig
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import retailrocket_async
from benchmarks import contestants
from benchmarks.support import sink
from benchmarks.support.child_process import call
from benchmarks.support.progress import report
from benchmarks.support.section import Section, Table

if TYPE_CHECKING:
    from benchmarks.support.section import Effort

_EVENTS = 100_000
_MOST = 10
_PACKAGE = str(Path(retailrocket_async.__file__).parent)
_HTTP = ("httpx", "httpcore", "h11", "anyio", "sniffio")


def measure(effort: Effort) -> Section:
    """Profile the tracking of a hundred thousand events, once."""
    report("profile: one run")
    with sink.running() as server:
        found = call("benchmarks.sections.profile:profiled", port=server.port, events=effort.count(_EVENTS))
    whole = sum(part for _, part in found["areas"])
    return Section(
        name="profile",
        title="Where the time goes",
        tables=(
            Table(
                title="The sending path, by library",
                columns=("code of", "µs/event under the profiler", "%"),
                rows=tuple((name, part, 100 * part / whole) for name, part in found["areas"]),
                note="The own time of all functions, without the time spent waiting for the server.",
            ),
            Table(
                title="The ten functions that take most",
                columns=("function", "calls/event", "own time, µs/event under the profiler"),
                rows=tuple(map(tuple, found["functions"])),
                note="`await client.track(View(...))`, batches of 500, limit lifted; warm-up included.",
            ),
        ),
    )


async def profiled(port: int, events: int) -> dict[str, Any]:
    """Track events under the profiler; return the time spent in each library, and in each of the slowest functions."""
    profiler = cProfile.Profile()
    profiler.enable()
    await contestants.ours_by_track(port, events)
    profiler.disable()
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, Any]] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    areas: Counter[str] = Counter()
    for function, (_, _, own, _, _) in stats.items():
        areas[_area(function)] += own / events * 1e6  # type: ignore[assignment]
    # The time of waiting for the server is no CPU time of the client, so it is left out.
    areas.pop("waiting", None)
    most = sorted(stats.items(), key=lambda item: -item[1][2])
    return {
        "areas": areas.most_common(),
        "functions": [
            (_name(function), calls / events, own / events * 1e6)
            for function, (_, calls, own, _, _) in most
            if _area(function) != "waiting"
        ][:_MOST],
    }


def _area(function: tuple[str, int, str]) -> str:
    file, _, name = function
    if "epoll" in name or "'select'" in name:
        return "waiting"
    if "orjson" in name:
        return "orjson"
    if file == "~":
        return "builtins"
    if file.startswith((_PACKAGE, "<attrs generated methods retailrocket_async", "<cattrs generated")):
        return "the package, and the code that attrs and cattrs generate for it"
    if any(f"/{package}/" in file for package in _HTTP):
        return "httpx, httpcore, h11, anyio"
    standard = file.startswith(sysconfig.get_paths()["stdlib"])
    return "asyncio and the rest of the standard library" if standard else "the caller, and others"


def _name(function: tuple[str, int, str]) -> str:
    file, line, name = function
    if file == "~":
        return name.strip("<>")
    # The name of the folder is left out, because it depends on the installation.
    return f"{name} ({file.strip('<>')})" if file.startswith("<") else f"{name} ({Path(file).name}:{line})"
