"""Draws the plots of the documentation from the series of the sections; needs matplotlib.

The plots are SVG files in which text is stored as text and not as shapes; the same series give the same file. The
background is white, so that a plot is readable on a dark page, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes

    Plot = Callable[[dict[str, Any]], Figure | None]

_OURS, _FLOOR, _OTHER, _LINE = "#0b7a75", "#444444", "#b5a48b", "#b3261e"

_LIMIT = 50
"""Requests a second: the API's limit."""

_PLAIN = "{x:,g}"
"""The number format of logarithmic axes, in place of matplotlib's powers of ten."""

mpl.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "retailrocket-async",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "white",
        "legend.frameon": False,
    }
)


def draw(series: dict[str, Any], folder: Path) -> dict[str, str]:
    """Draw each plot whose series is given; return the title of each plot by its file name."""
    drawn: dict[str, str] = {}
    for name, (title, plot) in _PLOTS.items():
        figure = plot(series)
        if figure is not None:
            figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
            drawn[f"{name}.svg"] = title
    return drawn


def _axes(height: float = 3.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, height))
    axes = figure.subplots()
    axes.set_axisbelow(True)
    axes.grid(visible=True, color="#e3e3e3", linewidth=0.6)
    return figure, axes


def _cost(series: dict[str, Any]) -> Figure | None:
    costs: dict[str, float] = series.get("cost", {})
    if not costs:
        return None
    figure, axes = _axes(0.33 * len(costs) + 0.8)
    names = sorted(costs, key=lambda name: costs[name], reverse=True)
    colours = [_OURS if name.startswith("ours") else _FLOOR if name == "floor" else _OTHER for name in names]
    bars = axes.barh(names, [costs[name] for name in names], color=colours, height=0.7)
    axes.bar_label(
        bars, [f"{costs[name]:,.3g}" if costs[name] < 100 else f"{costs[name]:,.0f}" for name in names], padding=3
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_PLAIN)
    axes.set_xlim(min(costs.values()) / 2, max(costs.values()) * 2)
    axes.set_xlabel("CPU µs per event (log scale)")
    axes.grid(visible=False, axis="y")
    return figure


def _batch(series: dict[str, Any]) -> Figure | None:
    points: list[list[float]] = series.get("scale", {}).get("batch", [])
    if not points:
        return None
    figure, axes = _axes()
    for column, name, colour in ((1, "ours", _OURS), (2, "floor", _FLOOR)):
        known = [(point[0], point[column]) for point in points if len(point) > column and point[column] is not None]
        axes.plot([x for x, _ in known], [y for _, y in known], marker="o", color=colour, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_PLAIN)
    axes.set_xlabel("events in a batch, at most (log scale)")
    axes.set_ylabel("CPU µs per event (log scale)")
    axes.legend()
    return figure


def _histograms(lag: dict[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    """Return the bin edges and the counts of each load's histogram; edges are common to all loads or given for each."""
    if (edges := lag.get("edges_ms")) is not None:
        return {name: (edges, counts) for name, counts in lag.items() if name != "edges_ms" and counts}
    return {name: (found["edges"], found["counts"]) for name, found in lag.items() if found}


def _lag(series: dict[str, Any]) -> Figure | None:
    histograms = _histograms(series.get("lag", {}))
    if not histograms:
        return None
    figure, axes = _axes()
    for (name, (edges, found)), colour in zip(histograms.items(), (_FLOOR, _OURS, _LINE, _OTHER), strict=False):
        # There is one count for each space between two edges; values above the last edge go into the last count.
        counts = [*found[: len(edges) - 2], sum(found[len(edges) - 2 :])]
        counts += [0.0] * (len(edges) - 1 - len(counts))
        total = sum(counts) or 1.0
        # A logarithmic scale cannot show zero.
        shown = [edges[0] or edges[1] / 2, *edges[1:]]
        axes.stairs([count / total * 100 for count in counts], shown, color=colour, label=name, linewidth=1.6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_PLAIN)
    axes.set_xlabel("lag of the event loop, ms (log scale)")
    axes.set_ylabel("% of the sleeps (log scale)")
    axes.legend()
    return figure


def _streams(pace: Any) -> dict[str, list[list[float]]]:
    """Return the streams of requests by name: lists of pairs of a second and the number of requests in this second."""
    if isinstance(pace, dict):
        requests = pace.get("requests", [])
        seconds = pace.get("seconds") or range(len(requests))
        return {"requests in one second": list(map(list, zip(seconds, requests, strict=False)))} if requests else {}
    return {f"callers: {each['callers']}": each["points"] for each in pace if each["points"]}


def _pace(series: dict[str, Any]) -> Figure | None:
    pace = series.get("pace", {})
    streams = _streams(pace)
    if not streams:
        return None
    limit: float = pace.get("limit", _LIMIT) if isinstance(pace, dict) else _LIMIT
    figure, axes = _axes()
    for (name, points), colour in zip(streams.items(), (_OURS, _FLOOR, _OTHER), strict=False):
        axes.plot([second for second, _ in points], [y for _, y in points], color=colour, marker=".", label=name)
    axes.axhline(limit, color=_LINE, linestyle="--", label="the limit")
    axes.set_ylim(0, max([limit, *(y for points in streams.values() for _, y in points)]) * 1.15)
    axes.set_xlabel("seconds")
    axes.set_ylabel("requests per second")
    axes.legend(loc="lower right")
    return figure


_PLOTS: dict[str, tuple[str, Plot]] = {
    "cost": ("CPU time of an event by contestant", _cost),
    "batch": ("CPU time of an event by the size of its batch", _batch),
    "lag": ("Lag of the event loop", _lag),
    "pace": ("Requests per second under demand without end", _pace),
}
