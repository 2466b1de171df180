"""What holds beyond one process: on one host a spool, on many a shared limit and a relay.

::

    python benchmarks/fleet.py [--quick] [--only SECTION ...]

Servers are started for the purpose, on loopback; `redis-server` and `nats-server` must be installed. Every section
prints its tables as soon as it has them; at the end stands what was demanded and what it is. The exit status is 1
where a demand is missed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import TYPE_CHECKING

from _section import Effort, as_text, cell

if TYPE_CHECKING:
    from _section import Section

SECTIONS = {
    "spool": "_fleet_spool",
    "torture": "_fleet_torture",
    "limit": "_fleet_limit",
    "shops": "_fleet_shops",
    "relay": "_fleet_relay",
    "crash": "_fleet_crash",
}
"""Modules with a function `run(effort: Effort) -> Section`."""


def main() -> int:
    """Run the sections asked for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, to see that it runs")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all")
    options = parser.parse_args()
    sections: list[Section] = []
    for name in options.only:
        section = importlib.import_module(SECTIONS[name]).run(Effort(quick=options.quick))
        sections.append(section)
        print(f"\n=== {section.title} ===")
        for table in section.tables:
            print(f"\n{as_text(table)}", flush=True)
    print("\n=== what was demanded ===\n")
    for section in sections:
        for demand in section.demands:
            bound = f"{'at least' if demand.at_least else 'at most'} {cell(demand.bound)} {demand.unit}".rstrip()
            verdict = "met" if demand.met else "MISSED"
            print(f"{verdict:6}  {demand.what}: {cell(demand.figure)} {demand.unit}".rstrip() + f" ({bound})")
    return int(not all(demand.met for section in sections for demand in section.demands))


if __name__ == "__main__":
    sys.exit(main())
