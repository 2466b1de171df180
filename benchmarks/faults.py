"""What becomes of events when the API fails: every fault, against a server that counts each event.

::

    python benchmarks/faults.py [--only NAME ...] [--list] [--json FILE]

Demanded of every scenario: no event is lost, that is neither recorded nor told to be undelivered; none is recorded that
was said not to be; none is recorded twice without a word; the client's counters, the receipts and the server agree; no
more than 50 requests arrive in any one second; and what the scenario's own promise says. The exit status is 1 where one
of these is broken.

The columns count events, but for `requests`, and `worst`: the most requests in one second, with a `~` where the server
was late itself, by more than `RateLimit.jitter`, so that there is nothing to judge by. `first` is the time in
seconds from the end of the fault to the first event that is recorded after it, `settled` to the last outcome of the
events that were tracked before its end; `lag` the longest time in milliseconds by which the event loop was late, to
which a busy machine adds.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import logging
import sys
from pathlib import Path

from _fault import Conditions
from _faulty_server import running
from _meters import LagMeter
from _scenario import SCENARIOS, Scenario
from _stage import Row, Stage

for room in ("content", "ambiguity", "access", "outage", "overload", "caller"):
    # Each enters its scenarios into the list, in this order.
    importlib.import_module(f"_{room}_scenarios")

_LONGEST = 60.0
"""Seconds for a scenario, three times what the longest one should take."""

_COLUMNS = ("tracked", "recorded", "delivered", "rejected", "abandoned", "dropped", "lost", "duplicated", "requests")


async def play(scenario: Scenario) -> Row:
    """Run one scenario; what it raises breaks its promise."""
    async with running(Conditions()) as server, LagMeter() as meter:
        stage = Stage(server, meter)
        try:
            async with asyncio.timeout(_LONGEST):
                await scenario.run(stage)
        except Exception as error:  # noqa: BLE001 - the other scenarios go on
            stage.expect(kept=False, complaint=f"{type(error).__name__}: {error}")
            await stage.close(0.0)
        return await stage.row(scenario.name)


def line(row: Row) -> str:
    """Return the row as a line of the table."""
    counts = " ".join(f"{getattr(row, column):>{len(column)}}" for column in _COLUMNS)
    times = " ".join(f"{'-' if value is None else format(value, '.2f'):>7}" for value in (row.first, row.settled))
    broken = f"  BROKEN: {'; '.join(row.broken)}" if row.broken else ""
    return (
        f"{row.scenario:<22} {counts} {row.worst:>5}{' ' if row.judged else '~'}{times} {row.lag * 1000:>5.0f}{broken}"
    )


def _arguments() -> argparse.Namespace:
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", default=names, help="these scenarios, or all that begin so"
    )
    parser.add_argument("--list", action="store_true", help="name the scenarios and what they promise, and run none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here, too")
    arguments = parser.parse_args()
    for name in arguments.only:
        if not any(known.startswith(name) for known in names):
            parser.error(f"no scenario is called {name}: --list names them")
    return arguments


def main() -> int:
    arguments = _arguments()
    chosen = [scenario for scenario in SCENARIOS if scenario.name.startswith(tuple(arguments.only))]
    if arguments.list:
        for scenario in chosen:
            print(f"{scenario.name:<22} {scenario.promise}")
        return 0
    # What fails is in the table.
    logging.getLogger("retailrocket_async").addHandler(logging.NullHandler())
    print(f"{'scenario':<22} {' '.join(_COLUMNS)} worst   first settled   lag")
    rows = []
    for scenario in chosen:
        row = asyncio.run(play(scenario))
        rows.append(row)
        print(line(row), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([row._asdict() for row in rows], indent=2) + "\n", encoding="utf-8")
    return int(any(row.broken for row in rows))


if __name__ == "__main__":
    sys.exit(main())
