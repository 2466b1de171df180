"""What one part of the benchmarks has found: tables, demands, and the points of its plots."""

from __future__ import annotations

from typing import Any, TypeAlias

import attrs

Cell: TypeAlias = str | int | float | None


@attrs.frozen(kw_only=True)
class Table:
    """Rows under one title.

    Attributes:
        title: what they show.
        columns: what each column holds, with its unit.
        rows: one cell for each column; None where there is nothing to tell.
        note: how to read them.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@attrs.frozen(kw_only=True)
class Demand:
    """A figure that has to be reached.

    Attributes:
        what: the figure.
        figure: what it is.
        bound: what it may be at most, or must be at least.
        unit: of both.
        at_least: whether the bound is a lower one.
    """

    what: str
    figure: float
    bound: float
    unit: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        return self.figure >= self.bound if self.at_least else self.figure <= self.bound


@attrs.frozen(kw_only=True)
class Section:
    """One part of the benchmarks.

    Attributes:
        name: by which it is asked for.
        title: what it is about.
        tables: what it has found.
        demands: what it had to reach.
        series: the points of its plots, by the plot's name: plain JSON.
    """

    name: str
    title: str
    tables: tuple[Table, ...]
    demands: tuple[Demand, ...] = ()
    series: dict[str, Any] = attrs.field(factory=dict[str, Any])


@attrs.frozen(kw_only=True)
class Effort:
    """How much is measured.

    Attributes:
        quick: a tenth of everything, to see that it runs; its figures are worth little.
        rounds: how often each thing is measured, one after the other, so that what disturbs a moment disturbs all.
    """

    quick: bool = False
    rounds: int = 5

    def count(self, full: int) -> int:
        """Return how many events to use where `full` are used otherwise."""
        return max(1, full // 10) if self.quick else full


def cell(value: Cell) -> str:
    """Return a cell as it is shown: three significant figures, thousands apart."""
    match value:
        case None:
            return ""
        case float():
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
        case int():
            return f"{value:,}"
        case _:
            return value


def as_text(table: Table) -> str:
    """Return a table as it is printed: aligned, numbers to the right."""
    rows = [table.columns, *(tuple(map(cell, row)) for row in table.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.columns))]
    numeric = [any(isinstance(row[column], int | float) for row in table.rows) for column in range(len(widths))]
    lines = [
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([table.title, *lines, *([table.note] if table.note else [])])


def as_markdown(table: Table) -> str:
    """Return a table as Markdown."""
    numeric = [any(isinstance(row[column], int | float) for row in table.rows) for column in range(len(table.columns))]
    lines = [
        "| " + " | ".join(table.columns) + " |",
        "|" + "|".join("---:" if right else "---" for right in numeric) + "|",
        *("| " + " | ".join(map(cell, row)) + " |" for row in table.rows),
    ]
    return "\n".join([f"**{table.title}**", "", *lines, *(["", table.note] if table.note else [])])
