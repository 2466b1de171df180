"""Writes the generated part of the documentation: tables and plots, which ``docs/benchmarks.md`` includes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.support.section import as_markdown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.support.section import Section, Table

_MADE = "<!-- Made by benchmarks/bench.py; do not edit. -->"
_PLOTTED_IN = {"cost": ("cost",), "batch": ("scale",), "lag": ("lag",), "pace": ("lag", "latency")}
"""For each plot the sections that may show it; the first of them that was measured shows the plot."""


def write_pages(folder: Path, sections: Sequence[Section], demands: Table) -> None:
    """Write ``tables.md`` and the plots into `folder`.

    The page shows only the sections of this run, and old plots are deleted.
    """
    # This import needs matplotlib, which need not be installed unless plots are drawn.
    from benchmarks.report.plots import draw  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    series: dict[str, Any] = {}
    for section in sections:
        series |= section.series
    names = [section.name for section in sections]
    shown: dict[str, list[str]] = {name: [] for name in names}
    for file, title in draw(series, folder).items():
        where = next((name for name in _PLOTTED_IN[file.removesuffix(".svg")] if name in names), names[0])
        shown[where].append(f"![{title}]({file})")
    parts = [_MADE, "## Demands", as_markdown(demands)]
    for section in sections:
        parts += [f"## {section.title}", *shown[section.name], *map(as_markdown, section.tables)]
    (folder / "tables.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
