"""Runs the fault scenarios against a server that counts each event, and checks the outcome of every event.

::

    python -m acceptance.faults [--only NAME ...] [--list] [--json FILE]

Every scenario must keep these promises:

- No event is lost: each event is recorded by the server, or the client reports that it was not delivered.
- If an event's outcome says that the event was not recorded, or was recorded only once, this is true.
- The client's counters, the receipts and the server agree.
- At most 50 requests arrive in any one second.
- No request begins while another request with an event of the same visitor has no answer.
- Each visitor's events are recorded in the order in which they were tracked.

In addition, each scenario has one more promise, which `--list` prints. The exit status is 1 if any promise is broken.

The columns count events, with these exceptions:

- `requests` counts requests.
- `overlaps` counts requests that began while another one with an event of the same visitor had no answer; after a
  time-out a request is under way until the client closes its connection.
- `out_of_order` counts visitors with an event recorded after a later one. Sending a batch or a part of it again is no
  fault, unless later events of the visitor were sent before that.
- `worst` is the most requests in one second. A `~` after it says that the server's own event loop was late by more than
  `RateLimit.jitter`, so that the figure proves nothing.
- `first` is the time in seconds from the end of the fault to the first event recorded after it.
- `settled` is the time in seconds from the end of the fault to the last outcome of the events tracked before it.
- `lag` is the longest delay of the client's event loop in milliseconds; a busy machine adds to it.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import logging
import sys
from pathlib import Path

from acceptance.faults.scenario import SCENARIOS, Scenario
from acceptance.faults.testbed import CONDITIONS, Row, Testbed
from acceptance.support import faulty_server
from benchmarks.support.meters import LagMeter

for name in ("content", "ambiguity", "access", "outage", "overload", "caller", "latency"):
    # Each module adds its scenarios to `SCENARIOS`, in this order.
    importlib.import_module(f"acceptance.faults.{name}")

_LONGEST = 60.0
"""Seconds after which a scenario fails; the longest scenario should take a third of this time."""

_COLUMNS = (
    "tracked",
    "recorded",
    "delivered",
    "rejected",
    "abandoned",
    "dropped",
    "lost",
    "duplicated",
    "overlaps",
    "out_of_order",
    "requests",
)


async def run_scenario(scenario: Scenario) -> Row:
    """Run one scenario. If it raises an exception, the exception is reported as a broken promise."""
    async with faulty_server.running(CONDITIONS) as server, LagMeter() as meter:
        testbed = Testbed(server, meter)
        try:
            async with asyncio.timeout(_LONGEST):
                await scenario.run(testbed)
        except Exception as error:  # noqa: BLE001 - the other scenarios still run
            testbed.expect(kept=False, violation=f"{type(error).__name__}: {error}")
            await testbed.close(0.0)
        return await testbed.row(scenario.name)


def line(row: Row) -> str:
    """Return one row as a line of the printed table."""
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
        "--only",
        nargs="+",
        metavar="NAME",
        default=names,
        help="only these scenarios; NAME may be the beginning of several names",
    )
    parser.add_argument("--list", action="store_true", help="print the scenarios and their promises, and run none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    arguments = parser.parse_args()
    for name in arguments.only:
        if not any(known.startswith(name) for known in names):
            parser.error(f"no scenario is called {name}: --list names them")
    return arguments


def main() -> int:
    """Run the chosen scenarios; return the exit status."""
    arguments = _arguments()
    chosen = [scenario for scenario in SCENARIOS if scenario.name.startswith(tuple(arguments.only))]
    if arguments.list:
        for scenario in chosen:
            print(f"{scenario.name:<22} {scenario.promise}")
        return 0
    # The table shows the failures, so the client's log records are discarded. Without this handler they would be
    # printed.
    logging.getLogger("retailrocket_async").addHandler(logging.NullHandler())
    print(f"{'scenario':<22} {' '.join(_COLUMNS)} worst   first settled   lag")
    rows = []
    for scenario in chosen:
        row = asyncio.run(run_scenario(scenario))
        rows.append(row)
        print(line(row), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([row._asdict() for row in rows], indent=2) + "\n", encoding="utf-8")
    return int(any(row.broken for row in rows))


if __name__ == "__main__":
    sys.exit(main())
