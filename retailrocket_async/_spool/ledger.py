"""Counts the events of a client with a spool, including events that are sent without being written to the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from retailrocket_async._delivery.counts import OutcomeCounts, merged
from retailrocket_async._outcome import Abandoned, Kept
from retailrocket_async._spool.file import Usage, now
from retailrocket_async._spool.outcome_codec import decode_outcome
from retailrocket_async._spool.process_events import ProcessEvents
from retailrocket_async._stats import SpoolStats

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from retailrocket_async._errors import SpoolError
    from retailrocket_async._outcome import Outcome
    from retailrocket_async._spool.file import Settlement
    from retailrocket_async._spool.id_ranges import Range
    from retailrocket_async._spool.outcome_log import LogEntry
    from retailrocket_async._stats import Stats

_LOST: Final = Abandoned(reason="lost", maybe_recorded=True, attempts=0)

_HIGHEST_ID: Final = 1 << 62


class SpoolLedger:
    """Sets the outcomes of the events that this process has tracked, and counts the events by outcome.

    Attributes:
        process_events: the events in the file that this process has tracked.
        usage: the numbers of events and bytes in the file, as last measured.
        failure: the error because of which the file cannot be used; None if the file can be used.
        ended: whether a defect in this package has ended the writer's thread.
    """

    def __init__(self) -> None:
        self.process_events = ProcessEvents()
        self.usage = Usage(0, 0, 0, None)
        self.failure: SpoolError | None = None
        self.ended = False
        # The next two attributes count events that were never in the file: events that were sent directly, and events
        # that were dropped before they were written.
        self._direct = OutcomeCounts()
        self._direct_tracked = 0

    # --- events that never were in the file ---------------------------------------------------------------------------

    def track_direct(self, count: int) -> None:
        """Count events that are sent without being written to the file, and that have no outcome yet."""
        self._direct_tracked += count

    def settle_direct(self, outcome: Outcome, names: Sequence[str]) -> None:
        """Count the outcome of events that `track_direct` has counted; `names` has the name of each event."""
        self._direct.add(outcome, len(names), names)

    def drop_direct(self, outcome: Outcome, names: Sequence[str]) -> None:
        """Count events that were dropped before they were written to the file; `names` has the name of each event."""
        self.track_direct(len(names))
        self.settle_direct(outcome, names)

    # --- events in the file -------------------------------------------------------------------------------------------

    def settle_log(self, log: Iterable[LogEntry]) -> None:
        """Give events of this process the outcomes in `log`, which has new entries of the outcome log."""
        for entry in log:
            self.process_events.settled(entry.ids, *decode_outcome(entry.outcome))

    def settle_kept(self, kept: Iterable[tuple[list[Range], Kept | Abandoned]]) -> None:
        """Set the outcomes of events for which the engine got no answer from the API; see `Forwarder.kept`."""
        for ids, outcome in kept:
            self.process_events.settled(ids, outcome)

    def settle_unknown(self, waiting: Iterable[int]) -> None:
        """Set the outcome `Abandoned` for events whose outcomes the log does not contain any more.

        Args:
            waiting: the ids of the events that still wait. All other events without an outcome get the outcome
                `Abandoned`.
        """
        self.process_events.forget(waiting, Abandoned(reason="untold", maybe_recorded=True, attempts=0))

    def settle_pending(self, settlements: Iterable[tuple[Settlement, bool]], *, file_gone: bool) -> None:
        """Set the outcomes that were passed to the writer, but were not read from the log yet.

        Args:
            settlements: the outcomes, each with a flag that is True if the outcome is in the file.
            file_gone: whether the file is lost. If the file is not lost, events whose outcomes are not in the file will
                be sent again, so these events get the outcome `Kept`.
        """
        for settlement, written in settlements:
            outcome, name = decode_outcome(settlement.outcome)
            if not written and not file_gone:
                outcome = Kept(maybe_recorded=outcome.maybe_recorded, attempts=outcome.attempts)
            self.process_events.settled(settlement.ids, outcome, name)

    def lose(self) -> int:
        """Give all events without an outcome the outcome `Abandoned`, because the file is lost; return their number.

        The reason in the outcome is ``"lost"``.
        """
        lost = self.process_events.pending
        self.process_events.forget([], _LOST)
        return lost

    def keep(self, sent_to: int | None) -> None:
        """Set the outcome `Kept` for all events without an outcome, because these events stay in the file.

        Args:
            sent_to: the id up to which another process may have sent events; 0 if no event was sent, None if the id is
                not known.
        """
        if sent_to is None or sent_to > 0:
            self.process_events.settled([(1, sent_to or _HIGHEST_ID)], Kept(maybe_recorded=True))
        self.process_events.keep(Kept())

    # --- counters -----------------------------------------------------------------------------------------------------

    def stats(self, engine: Stats, *, waiting: int, sends: bool) -> Stats:
        """Return the counters of a client.

        Args:
            engine: the counters of the engine, which counts the events that this process sends.
            waiting: number of events that are not written yet.
            sends: whether this process sends the events of the spool.
        """
        process_events, direct, usage = self.process_events, self._direct, self.usage
        counts = process_events.counts
        return attrs.evolve(
            engine,
            tracked=process_events.tracked + self._direct_tracked,
            delivered=counts.delivered + direct.delivered,
            rejected=counts.rejected + direct.rejected,
            abandoned=counts.abandoned + direct.abandoned,
            dropped=counts.dropped + direct.dropped,
            dropped_by=merged(counts.dropped_copy(), direct.dropped_copy()),
            kept=counts.kept + direct.kept,
            pending=process_events.pending,
            in_flight=self._direct_tracked - direct.total,
            state="halted" if self.ended else engine.state,
            waiting=waiting,
            spool=SpoolStats(
                sends=sends,
                events=usage.events,
                size=usage.bytes,
                dead=usage.dead,
                oldest_age=0.0 if usage.oldest_at is None else max(0.0, now() - usage.oldest_at),
                failure=None if self.failure is None else str(self.failure),
            ),
        )
