"""Checks the promises for several processes: a spool on one host, a shared limit, and relays on several hosts.

::

    python -m acceptance.fleet [--quick] [--only SECTION ...]

The command starts its own servers on loopback, so `redis-server` and `nats-server` must be installed. Every section
prints its tables when it is done. The last lines compare each figure with its demand; the exit status is 1 if a demand
is missed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import TYPE_CHECKING

from benchmarks.support.section import Effort, as_text, cell

if TYPE_CHECKING:
    from benchmarks.support.section import Section

SECTIONS = ("spool", "torture", "limit", "shops", "relay", "crash")
"""The modules of this package that have a function `run(effort: Effort) -> Section`, in the order of a run."""


def main() -> int:
    """Run the chosen sections; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="run a tenth of everything, to see that it runs")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all")
    options = parser.parse_args()
    sections: list[Section] = []
    for name in options.only:
        section = importlib.import_module(f"acceptance.fleet.{name}").run(Effort(quick=options.quick))
        sections.append(section)
        print(f"\n=== {section.title} ===")
        for table in section.tables:
            print(f"\n{as_text(table)}", flush=True)
    print("\n=== demands ===\n")
    for section in sections:
        for demand in section.demands:
            bound = f"{'at least' if demand.at_least else 'at most'} {cell(demand.bound)} {demand.unit}".rstrip()
            verdict = "met" if demand.met else "MISSED"
            print(f"{verdict:6}  {demand.what}: {cell(demand.figure)} {demand.unit}".rstrip() + f" ({bound})")
    return int(not all(demand.met for section in sections for demand in section.demands))


if __name__ == "__main__":
    sys.exit(main())
