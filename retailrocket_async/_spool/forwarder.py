"""Moves events from a spool's file to the engine, while this process is the one that sends, and back what they met.

::

    file --read--> window --feed--> engine --keep--> settlement --write--> file --log--> every process's own events

An event that this process has just written itself goes to the engine at once, where nothing else waits before it.

One process at a time holds the drain lock; the others look every half second whether it is free. Only a window of
events is in memory, however many wait in the file. Ids rise, and the window's end is written down before anything of
it is sent: whoever comes after a crash knows which events may have been recorded.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final

import attrs

from retailrocket_async._errors import SpoolError
from retailrocket_async._events.codec import label_of, name_of
from retailrocket_async._outcome import Abandoned, Delivered, Dropped, Kept, Outcome, Rejected
from retailrocket_async._receipt import Receipt
from retailrocket_async._spool.file import Rows, Settlement, now, ranges
from retailrocket_async._spool.spool import encode_outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from retailrocket_async._delivery.dispatcher import Dispatcher
    from retailrocket_async._delivery.rate_limiter import Limiter, Permit
    from retailrocket_async._queue.batch import Batch
    from retailrocket_async._spool.file import Range, SpoolFile
    from retailrocket_async._spool.writer import Entry, SpoolWriter

_AT_ONCE: Final = 500
"""Events that are read at once: a millisecond for the loop."""

_READ_BYTES: Final = 1 << 20

_ELECTION: Final = 0.5
"""Seconds between two looks whether the process that sends is gone."""

_IDLE: Final = 0.05, 0.25
"""Seconds between two looks for events of other processes: at first, and later on."""

_TELLING: Final = 0.1
"""Seconds between two looks for what became of own events, where another process sends them."""


_LOOK: Final = 0.05
"""Seconds between two looks whether this process is still the one that sends, after it was stopped."""


class LeasedLimiter:
    """A limiter that grants nothing while another process may send from the spool in the place of this one.

    Args:
        limiter: whose permits are granted.
        may_send: whether no other process sends, as far as this one knows; asked once the permit is there.
    """

    def __init__(self, limiter: Limiter, may_send: Callable[[], bool]) -> None:
        self._limiter = limiter
        self._may_send = may_send

    async def acquire(self) -> Permit | None:
        """Wait for a permit, and until this process may send."""
        permit = await self._limiter.acquire()
        try:
            while not self._may_send():  # noqa: ASYNC110 - the thread of the spool finds out
                await asyncio.sleep(_LOOK)
        except BaseException:
            if permit is not None:
                permit.done()
            raise
        return permit

    def pause_until(self, deadline: float) -> None:
        """Pause the limiter."""
        self._limiter.pause_until(deadline)

    def throttled(self, sent_at: float) -> None:
        """Tell the limiter of a 429."""
        self._limiter.throttled(sent_at)


class SpooledReceipt(Receipt):
    """Stands for an event of the file while it is with the engine.

    Attributes:
        id: its id.
        before: whether a process that died may have sent it.
    """

    __slots__ = ("before", "id")

    def __init__(self, event_name: str, number: int, *, before: bool) -> None:
        super().__init__(event_name)
        self.id = number
        self.before = before


class Forwarder:
    """Feeds the engine; see the module's text.

    Args:
        writer: the way to the file.
        engine: where events go.
        once: names of events that are not sent again once they may have been recorded.
        keyed: whether the engine tells visitors from each other.
        window: events with the engine at most.
        window_bytes: bytes of their JSON at most.
        max_age: seconds after which an event is not fed any more.
        lease: seconds for which this process may send after it was last sure that no other one does.
        clock: returns the loop's time in seconds, in any thread.

    Attributes:
        leads: whether this process is the one that sends.
        hurries: whether what is fed is to leave before its linger is over.
        kept: what became of events that were fed and did not get as far as an answer: they stay in the file, or were
            lost with it.
        gone: whether the file is not there any more, so that nothing stays in it.
        read_before: up to this id another process may have sent events.
    """

    def __init__(  # noqa: PLR0913 - what it has to keep
        self,
        writer: SpoolWriter,
        engine: Dispatcher,
        *,
        once: frozenset[str],
        keyed: bool,
        window: int,
        window_bytes: int,
        max_age: float,
        lease: float,
        clock: Callable[[], float],
    ) -> None:
        self._lease = lease
        self._clock = clock
        self._writer = writer
        self._engine = engine
        self._once = once
        self._keyed = keyed
        self._window = window
        self._window_bytes = window_bytes
        self._max_age = max_age
        self._events = self._bytes = 0
        # The writer's thread reads on behind it; nobody else touches it while this process leads.
        self._cursor = 0
        self._led = False
        self._alive_at = -math.inf
        self._damaged = 0
        self.read_before = 0
        self._came_at = 0.0
        self._maybe_left = False
        self._stopped = False
        self._wake: asyncio.Future[None] | None = None
        self.leads = False
        self.hurries = False
        self.kept: list[tuple[list[Range], Kept | Abandoned]] = []
        self._yields = False
        self.gone = False

    # --- feeding ------------------------------------------------------------------------------------------------------

    async def run(self, waits: Callable[[], bool]) -> None:
        """Feed the engine until `stop` is called; `waits` says whether own events wait to be told of."""
        idle = _IDLE[0]
        while not self._stopped:
            try:
                if not self.leads:
                    await self._follow(waits)
                elif not self._has_room():
                    await self._sleep(_IDLE[1])
                elif (await self._writer.ask(self._read, self._was_read)).ids:
                    idle = _IDLE[0]
                else:
                    idle = min(idle * 1.5, _IDLE[1])
                    await self._sleep(idle)
            except SpoolError:
                # Told by the writer, which opens the file again.
                await self._sleep(_ELECTION)

    async def _follow(self, waits: Callable[[], bool]) -> None:
        if await self._writer.ask(_lead, self._elected) is None:
            until = asyncio.get_running_loop().time() + _ELECTION
            while (left := until - asyncio.get_running_loop().time()) > 0.0 and not self._stopped:
                if waits():
                    self._writer.look()
                await self._sleep(min(_TELLING, left))

    def _elected(self, found: int | None) -> None:
        """Note in the writer's thread whether this process sends from now on; `found`: up to where another one did."""
        if found is not None and not self._led:
            self.read_before = found
            self._cursor = 0
            self._led = True
            self._alive_at = self._clock()
            self._writer.call(self._leads_now)

    def _leads_now(self) -> None:
        self.leads = not self._stopped

    def alive(self, moment: float) -> None:
        """Note, in the writer's thread, that no other process sent at this moment."""
        self._alive_at = moment

    def lost(self) -> None:
        """Read no more, in the writer's thread: another process sends, or another file is there."""
        self._led = False

    def may_send(self) -> bool:
        """Whether no other process can have taken the place of this one: it was not stopped for too long."""
        return not self.leads or self._clock() - self._alive_at <= self._lease

    def lose(self) -> None:
        """Give up what is with the engine: another process sends it, or it was lost with its file (`gone`)."""
        self.leads = False
        self._maybe_left = False
        self._yields = True
        try:
            self._engine.recall()
        finally:
            self._yields = False
        self._rouse()

    def _read(self, file: SpoolFile) -> Rows:
        """Read on, in the writer's thread, and write down that what was read is on its way."""
        if not self._led:
            return Rows([], [], [])
        most = min(_AT_ONCE, self._window - self._events)
        rows = file.read(self._cursor, most, min(_READ_BYTES, max(1, self._window_bytes - self._bytes)))
        if rows.ids:
            file.mark_read(max(rows.ids[-1], self.read_before))
        self._damaged = len(file.damaged)
        for before in (False, True):
            # Nothing good comes of sending them: the API would refuse the whole batch.
            ids = [number for number in file.damaged if (number <= self.read_before) is before]
            if ids:
                outcome = Abandoned(reason="damaged", maybe_recorded=before, attempts=0)
                file.settle(Settlement(ranges(ids), encode_outcome(outcome), "damaged", before), now())
        return rows

    def _was_read(self, rows: Rows) -> None:
        """Go on behind what was read, in the writer's thread, now that it is written down."""
        if self._damaged:
            self._writer.call(self._report_damage, self._damaged)
        if rows.ids:
            self._cursor = rows.ids[-1]
            # Not by who asked: what is written after it must not reach the engine before it.
            self._writer.call(self._feed_rows, rows)

    def _report_damage(self, count: int) -> None:
        self._engine.spool_failed(
            SpoolError(
                f"{count} event(s) of the spool were damaged on disk, and are dead letters now, with the reason"
                " 'damaged': check the disk; 'retailrocket-async spool dead list' shows what is left of them"
            )
        )

    def takes(self, file: SpoolFile, first: int, last: int) -> bool:
        """Whether events that are being written go to the engine from here, in the writer's thread; write it down."""
        if (
            not (self.leads and self._led)
            or self._cursor != first - 1
            or self._window - self._events < last - first + 1
        ):
            return False
        file.mark_read(max(last, self.read_before))
        return True

    def taken(self, last: int) -> None:
        """Go on behind events that go to the engine from here, in the writer's thread, now that they are written."""
        self._cursor = last

    def _feed_rows(self, rows: Rows) -> None:
        if self._stopped:
            return
        time, here = now(), self._engine.affinity.now()
        late = time - self._max_age
        for number, at, body in zip(*rows, strict=True):
            # The clocks of processes differ a little, and may be set back.
            came_at = max(self._came_at, min(here, here - (time - at)))
            self._feed(number, name_of(body), body, came_at, expired=at <= late)
            self._came_at = came_at
        self._fed(len(rows.ids), sum(map(len, rows.bodies)))

    def feed_own(self, entries: Sequence[Entry], last: int) -> None:
        """Feed events that this process has just written; `last` is the id of the last of them."""
        if self._stopped:
            return
        self._came_at = here = max(self._came_at, self._engine.affinity.now())
        for number, (envelope, receipt, _) in enumerate(entries, last - len(entries) + 1):
            self._feed(number, receipt.event_name, envelope, here, expired=False)
        self._fed(len(entries), sum([len(entry[0]) for entry in entries]))

    def _feed(self, number: int, name: str, body: bytes, came_at: float, *, expired: bool) -> None:
        before = number <= self.read_before
        receipt = SpooledReceipt(name, number, before=before)
        if before and name in self._once:
            outcome = Abandoned(reason="at_most_once", maybe_recorded=True, attempts=0)
            self._engine.intake.end(body, receipt, outcome)
        elif expired:
            self._engine.intake.end(body, receipt, Dropped(reason="expired"))
        else:
            self._engine.intake.feed(body, receipt, label_of(body)[1] if self._keyed else "", came_at)

    def _fed(self, count: int, size: int) -> None:
        self._events += count
        self._bytes += size
        if self.hurries:
            self._engine.hurry()

    def _has_room(self) -> bool:
        """Whether there is room for so many events that reading them is worth while."""
        least = min(_AT_ONCE, self._window // 2)
        return self._window - self._events >= least and self._bytes < self._window_bytes

    def appended(self) -> None:
        """Tell that there is something to read."""
        if self.leads and self._has_room():
            self._rouse()

    async def _sleep(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        wake = self._wake = loop.create_future()
        timer = loop.call_later(seconds, self._rouse)
        try:
            await wake
        finally:
            self._wake = None
            timer.cancel()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # --- what became of them ------------------------------------------------------------------------------------------

    def keep(self, batch: Batch, outcome: Outcome) -> Outcome:
        """Write down what became of events that were fed, or keep them; return their outcome."""
        receipts = [receipt for receipt in batch.receipts if isinstance(receipt, SpooledReceipt)]
        if not receipts:
            return outcome
        self._events -= len(receipts)
        self._bytes -= sum(map(len, batch.envelopes))
        if self._has_room():
            self._rouse()
        if isinstance(outcome, Kept | Dropped | Abandoned) and _is_cut_short(outcome):
            maybe = outcome.maybe_recorded or any(each.before for each in receipts)
            self._maybe_left = self._maybe_left or maybe
            kept: Kept | Abandoned = Kept(maybe_recorded=maybe, attempts=outcome.attempts)
            if self.gone:
                kept = Abandoned(reason="lost", maybe_recorded=maybe, attempts=outcome.attempts)
            if self.gone or not self._yields:
                self.kept.append((ranges(receipt.id for receipt in receipts), kept))
            return kept
        for before in (False, True):
            ids = [receipt.id for receipt in receipts if receipt.before is before]
            if ids:
                self._settle(ids, receipts, _as_known(outcome) if before else outcome, before=before)
        return outcome

    def _settle(self, ids: list[int], receipts: Sequence[SpooledReceipt], outcome: Outcome, *, before: bool) -> None:
        dead = None if isinstance(outcome, Delivered) else reason_of(outcome)
        by_name: dict[str, list[int]] = {"": ids}
        if isinstance(outcome, Dropped):
            # Those are counted by their names.
            chosen = set(ids)
            by_name = {}
            for receipt in receipts:
                if receipt.id in chosen:
                    by_name.setdefault(receipt.event_name, []).append(receipt.id)
        for name, same in by_name.items():
            self._writer.settle(
                Settlement(ranges(same), encode_outcome(outcome, name), dead, before or outcome.maybe_recorded)
            )

    # --- the end ------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Feed no more."""
        self._stopped = True
        self._rouse()

    def resign(self) -> None:
        """Let another process send, now that everything that was fed has ended, as soon as that is written down."""
        if self.leads:
            self.leads = False
            certain = not self._maybe_left
            self._writer.tell(lambda file: _resign(file, certain=certain), leading=True)


def _lead(file: SpoolFile) -> int | None:
    """Become the process that sends; return up to which id another one may have sent, None where one still does."""
    return file.read_to() if file.lead() else None


def _resign(file: SpoolFile, *, certain: bool) -> None:
    if certain:
        file.mark_read(0)
    file.stop_leading()


def _is_cut_short(outcome: Kept | Dropped | Abandoned) -> bool:
    return isinstance(outcome, Kept) or outcome.reason in ("closed", "cancelled")


def _as_known(outcome: Outcome) -> Outcome:
    """Return the outcome of events that a process that died may have sent."""
    match outcome:
        case Delivered():
            return attrs.evolve(outcome, maybe_duplicate=True)
        case Abandoned():
            return attrs.evolve(outcome, maybe_recorded=True)
        case Dropped(reason="expired"):
            return Abandoned(reason="expired", maybe_recorded=True, attempts=0)
        case _:
            return outcome


def reason_of(outcome: Outcome) -> str:
    """Return why events became dead letters, in a few words."""
    match outcome:
        case Rejected(status=status):
            return f"rejected: HTTP {status}"
        case Abandoned(reason=reason, status=None, failure=failure):
            return f"{reason}: {failure}" if failure else reason
        case Abandoned(reason=reason, status=status):
            return f"{reason}: HTTP {status}"
        case Dropped(reason=reason):
            return reason
        case _:
            return type(outcome).__name__.lower()
