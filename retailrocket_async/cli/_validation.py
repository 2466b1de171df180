"""``send --dry-run``: checks inputs without sending anything."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import attrs
import typer

from retailrocket_async.cli._lines import BadLine, events_of
from retailrocket_async.cli._terminal import FAILED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from retailrocket_async.cli._lines import Lines
    from retailrocket_async.cli._reading import Source
    from retailrocket_async.cli._rejects import Rejects
    from retailrocket_async.cli._terminal import Meter


@attrs.define
class Validation:
    """The result of a dry run.

    Attributes:
        events: the number of lines that are an event.
        bad: the number of lines that are no event, plus the number of inputs that could not be read completely.
    """

    events: int = 0
    bad: int = 0


def validate(
    sources: Sequence[Source], lines_of: Callable[[Source], Lines], rejects: Rejects, meter: Meter
) -> Validation:
    """Read all inputs, print every bad line, and return the counts. Nothing is sent."""
    checked, begun, stored = Validation(), time.monotonic(), 0
    for source in sources:
        lines = lines_of(source)
        for chunk in source.chunks():
            for found in events_of(lines, chunk):
                if isinstance(found, BadLine):
                    checked.bad += 1
                    rejects.add_bad(found)
                    if not meter.print_out(str(found)):
                        # The program that reads the output has ended (as `head` does), or the disk is full, so stop.
                        raise typer.Exit(FAILED)
                else:
                    checked.events += 1
            meter.show(stored + chunk.position, checked.events, time.monotonic() - begun)
        stored += source.position
    return checked
