"""Measures the time, latency and memory that an event costs, and compares the figures with their bounds.

::

    python -m benchmarks.bench [--quick] [--rounds 5] [--only cost,scale,...] [--json FILE] [--docs FOLDER]
    python -m benchmarks.bench --from-json FILE [FILE ...] [--docs FOLDER]

Each section prints its tables when it is done; the last table shows all demands. The exit status is 1 if a demand is
missed, except with --quick, whose figures mean little. With --docs, the tables and plots of the documentation are
replaced. With --from-json nothing is measured: the sections come from the files, and if a section is in several files,
from the last of them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from benchmarks.report.machine import Machine
from benchmarks.report.pages import write_pages
from benchmarks.support.progress import report
from benchmarks.support.section import Demand, Effort, Section, Table, as_text, cell

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SECTIONS = ("cost", "latency", "lag", "memory", "scale", "micro", "profile", "file", "imports", "otel", "order")


def measured(name: str, effort: Effort) -> Section:
    """Run the section of this name, which is a module of `benchmarks.sections`; return its result.

    Raises:
        ModuleNotFoundError: there is no such section, or a module that it needs is not installed.
    """
    section: Section = importlib.import_module(f"benchmarks.sections.{name}").measure(effort)
    return section


def verdict(sections: Iterable[Section], machine: Machine) -> Table:
    """Return the table of all demands, with the machine in its note."""
    rows = tuple(
        (section.name, demand.what, demand.figure, _bound(demand), "met" if demand.met else "MISSED")
        for section in sections
        for demand in section.demands
    )
    return Table(
        title="Figures and their bounds",
        columns=("section", "figure", "is", "must be", ""),
        rows=rows,
        note=str(machine),
    )


def _bound(demand: Demand) -> str:
    return f"{'>=' if demand.at_least else '<='} {cell(demand.bound)} {demand.unit}".rstrip()


def as_json(sections: Iterable[Section], machine: Machine, effort: Effort) -> str:
    """Return a whole run as JSON."""
    run = {
        "machine": attrs.asdict(machine),
        "effort": attrs.asdict(effort),
        "sections": [
            # `met` can be computed from the figures; it is written for human readers.
            attrs.asdict(section) | {"demands": [attrs.asdict(each) | {"met": each.met} for each in section.demands]}
            for section in sections
        ],
    }
    return json.dumps(run, indent=1, ensure_ascii=False) + "\n"


def from_json(texts: Sequence[str]) -> tuple[list[Section], Machine]:
    """Return the sections of several runs, and the machine of the last run.

    If several runs have a section of the same name, the section of the last of these runs is returned.
    """
    runs = [json.loads(text) for text in texts]
    found = {section["name"]: _section(section) for run in runs for section in run["sections"]}
    return sorted(found.values(), key=lambda section: SECTIONS.index(section.name)), Machine(**runs[-1]["machine"])


def _section(found: dict[str, Any]) -> Section:
    return Section(
        name=found["name"],
        title=found["title"],
        tables=tuple(
            Table(
                title=table["title"],
                columns=tuple(table["columns"]),
                rows=tuple(map(tuple, table["rows"])),
                note=table["note"],
            )
            for table in found["tables"]
        ),
        demands=tuple(
            Demand(**{name: value for name, value in demand.items() if name != "met"}) for demand in found["demands"]
        ),
        series=found["series"],
    )


# --- the command ------------------------------------------------------------------------------------------------------


def _names(text: str) -> list[str]:
    unknown = set(names := text.split(",")) - set(SECTIONS)
    if unknown:
        raise argparse.ArgumentTypeError(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in names]


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="measure a tenth of everything, once, to see that it runs")
    parser.add_argument("--rounds", type=_rounds, help="how often each thing is measured (default: 5; quick: 1)")
    parser.add_argument(
        "--only", type=_names, default=list(SECTIONS), metavar="SECTION,...", help=f"some of {', '.join(SECTIONS)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the whole run to FILE")
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help="write tables and plots to FOLDER/benchmarks")
    parser.add_argument("--from-json", type=Path, nargs="+", metavar="FILE", help="measure nothing; read earlier runs")
    return parser.parse_args()


def _run(names: Sequence[str], effort: Effort) -> tuple[list[Section], list[str]]:
    """Measure the sections and print their tables; return their results, and the names of the failed sections."""
    sections, failed = [], []
    for name in names:
        begun = time.monotonic()
        try:
            section = measured(name, effort)
        except Exception as error:  # noqa: BLE001 - the other sections still run
            failed.append(name)
            report(f"{name}: FAILED: {type(error).__name__}: {error}")
            continue
        sections.append(section)
        report(f"{name}: done in {time.monotonic() - begun:.0f} s")
        print(f"\n=== {section.title}\n", *(f"{as_text(table)}\n" for table in section.tables), sep="\n", flush=True)
    return sections, failed


def main() -> int:
    """Run the command; return its exit status."""
    arguments = _arguments()
    effort = Effort(quick=arguments.quick, rounds=arguments.rounds or (1 if arguments.quick else Effort().rounds))
    failed: list[str] = []
    if arguments.from_json:
        sections, machine = from_json([path.read_text("utf-8") for path in arguments.from_json])
    else:
        machine = Machine.here()
        sections, failed = _run(arguments.only, effort)
    table = verdict(sections, machine)
    print(as_text(table), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(as_json(sections, machine, effort), encoding="utf-8")
    if arguments.docs is not None:
        write_pages(arguments.docs / "benchmarks", sections, table)
    if failed:
        report(f"could not be measured: {', '.join(failed)}")
    missed = any(not demand.met for section in sections for demand in section.demands)
    return int(bool(failed) or (missed and not arguments.quick))


if __name__ == "__main__":
    sys.exit(main())
