"""Where the cost of an event comes from: each part of its way alone, against its own floor.

pyperf runs each in fresh processes, and finds out how many loops it takes; see `_parts`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import _sink
from _process import running
from _progress import tell
from _section import Section, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _section import Effort

_PARTS = Path(__file__).resolve().with_name("_parts.py")
_FULL = ("--processes", "2", "--values", "3", "--warmups", "1")
_QUICK = ("--processes", "1", "--values", "1", "--warmups", "0", "--min-time", "0.005")


def measure(effort: Effort) -> Section:
    """Measure every part; pyperf, not `effort`, knows how often."""
    # Only here: this section alone needs it.
    import pyperf  # noqa: PLC0415
    from _parts import PARTS, PORT  # noqa: PLC0415

    tell("micro: a part at a time, by pyperf")
    with (
        tempfile.TemporaryDirectory(prefix="retailrocket-bench-") as folder,
        running(_sink.main, _sink.Sink()) as (port, _),
    ):
        found = Path(folder) / "parts.json"
        command = [sys.executable, str(_PARTS), *(_QUICK if effort.quick else _FULL), "--inherit-environ", PORT]
        done = subprocess.run(
            [*command, "-o", str(found)],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {PORT: str(port)},
        )
        if done.returncode:
            raise RuntimeError(f"pyperf failed:\n{done.stderr[-2000:]}")
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
                "end at 50 requests a second, on a clock that jumps where it would wait.",
            ),
        ),
        series={"micro": costs},
    )


def _rows(costs: dict[str, dict[str, float]]) -> Iterator[tuple[str, str, float, float]]:
    for group, parts in costs.items():
        floor = next(iter(parts.values()))
        for number, (name, cost) in enumerate(parts.items()):
            yield "" if number else group, name, cost, cost / floor
