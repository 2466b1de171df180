"""Measures each step of processing an event alone, beside the least possible cost of this step.

pyperf runs every part of `benchmarks.parts` in fresh processes, and chooses the number of loops.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.support import child_process, sink
from benchmarks.support.progress import report
from benchmarks.support.section import Section, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.support.section import Effort

_FULL = ("--processes", "2", "--values", "3", "--warmups", "1")
_QUICK = ("--processes", "1", "--values", "1", "--warmups", "0", "--min-time", "0.005")


def measure(effort: Effort) -> Section:
    """Measure every part of `benchmarks.parts`.

    pyperf decides how often each part is called; `effort` decides only whether the run is quick.
    """
    # pyperf is imported only here, because no other section needs it.
    import pyperf  # noqa: PLC0415

    from benchmarks.parts import PARTS, PORT  # noqa: PLC0415

    report("micro: one part after the other, by pyperf")
    with tempfile.TemporaryDirectory(prefix="retailrocket-bench-") as folder, sink.running() as server:
        found = Path(folder) / "parts.json"
        options = (*(_QUICK if effort.quick else _FULL), "--inherit-environ", PORT, "-o", str(found))
        child_process.run("benchmarks.parts", *options, env={PORT: str(server.port)})
        suite = pyperf.BenchmarkSuite.load(str(found))
    costs = {
        group: {name: suite.get_benchmark(f"{group}: {name}").median() * 1e6 for name in parts}
        for group, parts in PARTS.items()
    }
    return Section(
        name="micro",
        title="Where the cost comes from",
        tables=(
            Table(
                title="Each part alone",
                columns=("part", "what", "CPU µs", "x the first"),
                rows=tuple(_rows(costs)),
                note="Medians of pyperf's values. The first line of a part is its floor. The limiter is asked without "
                "end at 50 requests a second, on a clock that jumps instead of waiting.",
            ),
        ),
        series={"micro": costs},
    )


def _rows(costs: dict[str, dict[str, float]]) -> Iterator[tuple[str, str, float, float]]:
    for group, parts in costs.items():
        floor = next(iter(parts.values()))
        for number, (name, cost) in enumerate(parts.items()):
            yield "" if number else group, name, cost, cost / floor
