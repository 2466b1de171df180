"""Checking inputs without sending anything: ``send --dry-run``."""

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
    """What the lines turned out to be.

    Attributes:
        events: good lines.
        bad: lines that are no event, and inputs that could not be read to their end.
    """

    events: int = 0
    bad: int = 0


def validate(
    sources: Sequence[Source], lines_of: Callable[[Source], Lines], rejects: Rejects, meter: Meter
) -> Validation:
    """Read everything, print every bad line, send nothing."""
    checked, begun, stored = Validation(), time.monotonic(), 0
    for source in sources:
        lines = lines_of(source)
        for chunk in source.chunks():
            for found in events_of(lines, chunk):
                if isinstance(found, BadLine):
                    checked.bad += 1
                    rejects.add_bad(found)
                    if not meter.say(str(found)):
                        # Who reads has gone, as head does, or the disk is full: the rest would be read for nobody.
                        raise typer.Exit(FAILED)
                else:
                    checked.events += 1
            meter.show(stored + chunk.position, checked.events, time.monotonic() - begun)
        stored += source.position
    return checked
