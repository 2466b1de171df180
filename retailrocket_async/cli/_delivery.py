"""Sending inputs: reads, tracks, waits, and comes to an orderly end however it is ended.

::

    Reader --chunks--> Lines --events--> client.track --> ... --> on_outcome (undelivered) --> Rejects
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

import attrs

from retailrocket_async import ClientClosedError, Stats
from retailrocket_async.cli._explain import explain, is_hopeless
from retailrocket_async.cli._lines import BadLine, events_of
from retailrocket_async.cli._reading import Reader
from retailrocket_async.cli._signals import ending_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from retailrocket_async import AsyncTrackingClient, StateChange, UndeliveredEvent
    from retailrocket_async.cli._lines import Lines
    from retailrocket_async.cli._reading import Source
    from retailrocket_async.cli._rejects import Rejects
    from retailrocket_async.cli._terminal import Meter

_TOLD = 20
"""Bad lines that are listed; the rest is counted, and ``--dry-run`` lists them all."""

_BREATH = 200
"""Bad lines in a row before other tasks run; `track` does the same for events."""

_LOOK = 0.1
"""Seconds between two looks at the progress."""


@attrs.define
class Result:
    """What became of the inputs.

    Attributes:
        events: events read and taken over, one for each good line.
        bad: lines that are no event.
        unreadable: inputs that could not be read to their end.
        stopped_at: where reading was stopped before the end, as ``FILE:LINE``; None where all was read.
        interrupted_by: the number of the signal that interrupted; None for none.
        hopeless: whether it ended by itself, since nothing was delivered and nothing would be.
        reasons: undelivered events by why they are undelivered.
        maybe_recorded: undelivered events that the API may have recorded all the same.
        stats: the client's final counters.
        elapsed: seconds.
    """

    events: int = 0
    bad: int = 0
    unreadable: int = 0
    stopped_at: str | None = None
    interrupted_by: int | None = None
    hopeless: bool = False
    reasons: Counter[str] = attrs.field(factory=Counter[str])
    maybe_recorded: int = 0
    stats: Stats = attrs.field(factory=Stats)
    elapsed: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether every line of every input was an event, and every event is delivered."""
        return self.complete and not self.stopped_at

    @property
    def complete(self) -> bool:
        """Whether every line that was read was an event, and every event is delivered."""
        return not (self.bad or self.unreadable) and self.stats.delivered == self.events


class Delivery:
    """Sends the events of `sources`.

    Args:
        sources: the inputs, in order.
        lines_of: makes the reader of an input's lines.
        rejects: takes what is not delivered.
        meter: draws the progress, and prints above it.
        drain: seconds that what was read gets to be delivered after an interruption.
        first: the number of the first line that is sent.
    """

    def __init__(  # noqa: PLR0913 - keywords
        self,
        sources: Sequence[Source],
        *,
        lines_of: Callable[[Source], Lines],
        rejects: Rejects,
        meter: Meter,
        drain: float,
        first: int = 1,
    ) -> None:
        self._sources = sources
        self._lines_of = lines_of
        self._rejects = rejects
        self._meter = meter
        self._drain = drain
        self._first = first
        self._reader = Reader(sources)
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._heard = asyncio.Event()
        self._bytes = 0
        self._client: AsyncTrackingClient
        self.result = Result()

    async def run(self, client_of: Callable[..., AsyncTrackingClient]) -> Result:
        """Send everything through a client, close it, and return what became of it.

        The first SIGINT or SIGTERM stops the reading and gives what was read `drain` seconds; the second ends at
        once. Either way every event that was read has its outcome in the end.

        Args:
            client_of: makes the client from the keywords `on_outcome` and `on_state_change`.
        """
        client = self._client = client_of(on_outcome=self._on_outcome, on_state_change=self._on_state_change)
        begun = time.monotonic()
        feeding = asyncio.create_task(self._feed())
        drawing = asyncio.create_task(self._draw(begun))
        with ending_signals(self._interrupt):
            await _first_of(feeding, self._stop.wait())
            self._reader.stop()
            closing = asyncio.create_task(client.aclose(self._drain))
            await _first_of(closing, self._hurry.wait())
            # Cancelling a close makes it give every event its outcome now; closing again tells the same report.
            closing.cancel()
            report = await client.aclose(0)
        drawing.cancel()
        await asyncio.wait({feeding, closing, drawing})
        feeding.result()
        stats = report.stats
        # A close that is cut short does not wait for the hook, and the file of rejects has to be complete.
        while self.result.reasons.total() < stats.rejected + stats.abandoned + stats.dropped:
            self._heard.clear()
            await self._heard.wait()
        self.result.stats = report.stats
        self.result.elapsed = time.monotonic() - begun
        return self.result

    async def _feed(self) -> None:
        client, result, stored = self._client, self.result, 0
        lines: Lines | None = None
        place: str | None = None
        left = len(self._sources)
        try:
            async for chunk in self._reader.chunks():
                lines = lines or self._lines_of(chunk.source)
                for found in events_of(lines, chunk):
                    if lines.number < self._first and not (isinstance(found, BadLine) and found.ends_input):
                        continue
                    if isinstance(found, BadLine):
                        self._reject(found)
                        if not result.bad % _BREATH:
                            await asyncio.sleep(0)
                    else:
                        await client.track(found)
                        result.events += 1
                self._bytes = stored + chunk.position
                place = f"{chunk.source.name}:{lines.number}"
                if not chunk.data:
                    stored, lines, left = self._bytes, None, left - 1
            if left:
                result.stopped_at = place or "the very beginning"
            else:
                await client.flush()
        except ClientClosedError:
            # Closed while the event of this line waited for room: it was read, and is not taken over.
            result.stopped_at = f"{lines.source}:{lines.number - 1}" if lines is not None else place

    async def _on_outcome(self, undelivered: Sequence[UndeliveredEvent]) -> None:
        """Take events that were not delivered, for whatever reasons."""
        for event in undelivered:
            self.result.reasons[explain(event.outcome)] += 1
            self.result.maybe_recorded += event.outcome.maybe_recorded
        self._heard.set()
        self._rejects.add_undelivered(event.envelope for event in undelivered)
        if any(is_hopeless(event.outcome) for event in undelivered):
            self._give_up()

    async def _on_state_change(self, change: StateChange) -> None:
        if change.state == "halted":
            self._give_up()

    def _give_up(self) -> None:
        # With nothing delivered yet, nothing is lost by asking for a repair before a million events are refused.
        # Later on the rest is tried all the same, so that the rejects are complete.
        if not self._client.stats().delivered and not self._stop.is_set():
            self.result.hopeless = True
            self._stop.set()

    def _reject(self, bad: BadLine) -> None:
        if bad.ends_input:
            self.result.unreadable += 1
        else:
            self.result.bad += 1
        self._rejects.add_bad(bad)
        told = self.result.bad + self.result.unreadable
        if told <= _TOLD or bad.ends_input:
            self._meter.note(f"bad line {bad}")
        elif told == _TOLD + 1:
            self._meter.note("... and more bad lines: --dry-run lists them all")

    def _interrupt(self, number: int) -> None:
        if self.result.interrupted_by is None:
            self.result.interrupted_by = number
            self._meter.note(f"interrupted: delivering what was read, {self._drain:g} s at most; again to stop at once")
            self._stop.set()
        else:
            self._hurry.set()

    async def _draw(self, begun: float) -> None:
        while True:
            stats = self._client.stats()
            settled = stats.tracked - stats.pending - stats.in_flight
            # What was read and still waits is no progress.
            done = self._bytes * settled / max(1, stats.tracked)
            self._meter.show(done, settled, time.monotonic() - begun)
            await asyncio.sleep(_LOOK)


async def _first_of(task: asyncio.Task[object], event: Coroutine[object, object, object]) -> None:
    """Wait until the task or the event is there; the task goes on."""
    waiting = asyncio.create_task(event)
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
