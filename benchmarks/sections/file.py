"""Measures `retailrocket-async send` on a file like the public clickstream data set, and each step of it alone."""

from __future__ import annotations

import json
import random
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from benchmarks.contestants import LIFTED
from benchmarks.support import sink
from benchmarks.support.child_process import call
from benchmarks.support.meters import CostMeter
from benchmarks.support.progress import report
from benchmarks.support.section import Demand, Section, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.support.section import Effort
    from benchmarks.support.sink import Sink

Form: TypeAlias = Literal["rows", "envelopes"]
"""The format of a file: the clickstream's CSV, or JSON Lines with the envelopes of the API's batches."""

_LINES: dict[Form, int] = {"rows": 2_800_000, "envelopes": 700_000}
"""The number of lines: as many as the public clickstream has (2,756,101), and a quarter of that."""

_VISITORS = 1_400_000
_ITEMS = 235_000
_BASKETS, _ORDERS = 0.0252, 0.0081
"""The shares of basket events and orders; the other events, 96.67 %, are views."""

_BEGIN = 1_430_622_000_000
"""The time of the first event in milliseconds since 1970."""

_HEADER = "timestamp,visitorid,event,itemid,transactionid"
_CHUNK = 10_000
"""The number of lines that are written together."""

Figures: TypeAlias = dict[str, float]


def measure(effort: Effort) -> Section:
    """Send one file of each format, once: millions of lines need no second round."""
    rows: list[tuple[str | float | None, ...]] = []
    notes = []
    demands = []
    with (
        tempfile.TemporaryDirectory(prefix="retailrocket-bench-") as folder,
        sink.running() as server,
    ):
        for form, full in _LINES.items():
            lines = full // 20 if effort.quick else full
            path = str(Path(folder) / form)
            report(f"file: writing {lines:,} {form}")
            written = call("benchmarks.sections.file:write", path=path, form=form, lines=lines)
            report(f"file: sending {written['size'] / 2**20:,.0f} MiB of {form}")
            sent, arrived = _sent(path, server)
            report(f"file: reading, structuring and encoding {form} without sending")
            alone = call("benchmarks.sections.file:alone", path=path)
            rows += _rows(form, lines, sent, alone)
            notes.append(f"{lines:,} {form} of {written['size'] / 2**20:,.0f} MiB")
            demands.append(
                Demand(what=f"{form} that arrived", figure=arrived / lines * 100, bound=100, unit="%", at_least=True)
            )
    return Section(
        name="file",
        title="Sending a file",
        tables=(
            Table(
                title="A file like the public clickstream",
                columns=("", "CPU µs/event", "events/s", "seconds", "peak MiB"),
                rows=tuple(rows),
                note=f"{', '.join(notes)}. The command's limit is lifted. The steps are measured in one process, "
                "without an event loop. The seconds of the steps are CPU time, the seconds of the command are "
                "elapsed time. One run each.",
            ),
        ),
        demands=tuple(demands),
    )


def _rows(form: str, lines: int, sent: Figures, alone: Figures) -> Iterator[tuple[str | float | None, ...]]:
    yield f"{form}: send", sent["cpu"] / lines * 1e6, lines / sent["wall"], sent["wall"], sent["peak"]
    for step in ("read", "structure", "encode"):
        yield f"{form}: {step} alone", alone[step] / lines * 1e6, lines / alone[step], alone[step], None
    whole = sum(alone[step] for step in ("read", "structure", "encode"))
    yield f"{form}: all three", whole / lines * 1e6, lines / whole, whole, alone["peak"]


def _sent(path: str, server: Sink) -> tuple[Figures, int]:
    """Send a file; return the figures of the command, and the number of events that arrived."""
    server.take()
    figures: Figures = call(
        "benchmarks.sections.file:send", env={"RETAILROCKET_API_KEY": "k"}, path=path, port=server.port
    )
    return figures, server.take()["events"]


# --- functions that run in their own process --------------------------------------------------------------------------


def write(path: str, form: Form, lines: int) -> dict[str, int]:
    """Write a file whose content depends on the arguments alone; return its size in bytes."""
    chance = random.Random(0)
    mark = sink.MARK.decode()
    moment = _BEGIN
    with Path(path).open("w", encoding="ascii", newline="\n") as file:
        if form == "rows":
            file.write(_HEADER + "\n")
        for start in range(0, lines, _CHUNK):
            made = []
            for number in range(start, min(start + _CHUNK, lines)):
                moment += chance.randrange(8_000)
                which = chance.random()
                # Visitors have two events on average, as in the clickstream.
                visitor, item = f"{mark}{chance.randrange(_VISITORS)}", chance.randrange(_ITEMS)
                order = which < _ORDERS
                basket = not order and which < _ORDERS + _BASKETS
                if form == "rows":
                    name = "transaction" if order else "addtocart" if basket else "view"
                    made.append(f"{moment},{visitor},{name},{item},{number if order else ''}\n")
                else:
                    made.append(_envelope(moment, visitor, item, number if order else None, basket=basket))
            file.writelines(made)
    return {"size": Path(path).stat().st_size}


def _envelope(moment: int, visitor: str, item: int, order: int | None, *, basket: bool) -> str:
    fields: dict[str, Any] = {
        "sessionExternalId": visitor,
        "timestamp": datetime.fromtimestamp(moment // 1000, UTC).isoformat(),
        "productId": item,
    }
    if order is not None:
        fields |= {"quantity": 1, "price": 9.9, "transaction": str(order)}
    name = "order" if order is not None else "addToBasket" if basket else "view"
    return json.dumps({name: fields}, separators=(",", ":")) + "\n"


def send(path: str, port: int) -> Figures:
    """Run the command; return its CPU seconds, its elapsed seconds and its peak memory in MiB."""
    from retailrocket_async.cli._app import app

    options = ["--base-url", f"http://127.0.0.1:{port}/1.0/", "--partner-id", "p", "--rate", str(LIFTED)]
    with CostMeter() as meter:
        status = app(["send", path, *options], standalone_mode=False)
    assert not status, f"exit status {status}"
    return {"cpu": meter.cpu, "wall": meter.wall, "peak": meter.peak / 2**20}


def alone(path: str) -> Figures:
    """Read, parse and encode the file as the command does; return the CPU seconds of each step."""
    from retailrocket_async import Codec, Event
    from retailrocket_async.cli._clickstream import Clickstream
    from retailrocket_async.cli._lines import Lines, events_of
    from retailrocket_async.cli._reading import Source

    lines = Lines(path, Clickstream(1, 1), allow_custom=False)
    encode = Codec().encode
    read = structure = encoded = 0.0
    with CostMeter() as meter:
        begun = time.process_time()
        # The file is read in chunks, because a list of all events would cost memory that the command does not use.
        for chunk in Source(Path(path)).chunks():
            read_at = time.process_time()
            events = list(events_of(lines, chunk))
            structured_at = time.process_time()
            for event in events:
                assert isinstance(event, Event)
                encode(event)
            ended = time.process_time()
            read += read_at - begun
            structure += structured_at - read_at
            encoded += ended - structured_at
            begun = ended
    return {"read": read, "structure": structure, "encode": encoded, "peak": meter.peak / 2**20}
