"""The result of one section of a run: its tables, its demands (figures with bounds), and the points of plots."""

from __future__ import annotations

from typing import Any, TypeAlias

import attrs

Cell: TypeAlias = str | int | float | None


@attrs.frozen(kw_only=True)
class Table:
    """A table with a title.

    Attributes:
        title: the subject of the table.
        columns: the heading of each column, with its unit.
        rows: one cell for each column; None leaves the cell empty.
        note: how to read the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@attrs.frozen(kw_only=True)
class Demand:
    """A measured figure and the bound that it must not exceed or fall below.

    Attributes:
        what: the name of the figure.
        figure: the measured value.
        bound: the largest value allowed, or the smallest one if `at_least` is set.
        unit: the unit of both values.
        at_least: whether `bound` is a lower bound; default False.
    """

    what: str
    figure: float
    bound: float
    unit: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the figure is within its bound."""
        return self.figure >= self.bound if self.at_least else self.figure <= self.bound


@attrs.frozen(kw_only=True)
class Section:
    """The result of one section.

    Attributes:
        name: the section's name on the command line.
        title: the section's subject.
        tables: the tables with the measured values.
        demands: the figures that must keep a bound.
        series: the points of the section's plots as plain JSON, by the name of the plot.
    """

    name: str
    title: str
    tables: tuple[Table, ...]
    demands: tuple[Demand, ...] = ()
    series: dict[str, Any] = attrs.field(factory=dict[str, Any])


@attrs.frozen(kw_only=True)
class Effort:
    """How much a run measures.

    Attributes:
        quick: whether only about a tenth is measured, to see that everything runs; the figures mean little then.
        rounds: how often each value is measured. One round measures all values once, so that a disturbance of the
            machine influences all of them.
    """

    quick: bool = False
    rounds: int = 5

    def count(self, full: int) -> int:
        """Return the number of events to use: `full`, or a tenth of it in a quick run."""
        return max(1, full // 10) if self.quick else full


def cell(value: Cell) -> str:
    """Return the text of a cell: numbers with three significant figures or whole, and thousands separated by commas."""
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
    """Return a table as aligned plain text, with columns of numbers aligned to the right."""
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
