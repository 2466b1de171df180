"""Measures one section alone, and prints what it has found.

::

    python benchmarks/_latency.py [--quick] [--rounds 5]

The exit status is 1 where a demand is missed.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from _section import Effort, Section, Table, as_text

if TYPE_CHECKING:
    from collections.abc import Callable


def run(measure: Callable[[Effort], Section]) -> None:
    """Measure as the arguments of the command say, print, and exit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, once: to see that it runs")
    parser.add_argument("--rounds", type=int, help="how often each thing is measured (default: 5; 1 with --quick)")
    arguments = parser.parse_args()
    rounds: int = arguments.rounds or (1 if arguments.quick else 5)
    section = measure(Effort(quick=arguments.quick, rounds=rounds))
    for table in section.tables:
        print(as_text(table), end="\n\n")
    rows = tuple(
        (each.what, each.figure, "at least" if each.at_least else "at most", each.bound, each.unit, _word(met=each.met))
        for each in section.demands
    )
    if rows:
        print(as_text(Table(title="Demands", columns=("what", "figure", "", "bound", "unit", ""), rows=rows)))
    sys.exit(not all(each.met for each in section.demands))


def _word(*, met: bool) -> str:
    return "met" if met else "MISSED"
