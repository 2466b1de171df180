"""Holds the events that wait to be sent: events are appended one by one, and taken in batches.

The API limits the number of requests, not of events. Each request needs a permit of the rate limiter, and a batch is
taken from the buffer *after* its permit is granted, so the batch can grow until then. If permits are scarce, batches
are large; if permits are free, an event is sent after `Batching.linger`.

Two requests with events of one visitor must never be in flight at once (contract, "What a batch promises"). So events
wait in runs: groups of events that always leave in the same batch (see `Run`). A *unit* is a run with the first waiting
events of many visitors. A *trail* is a run with further events of one visitor. A run is settled when its events have
outcomes. `_last` maps each visitor to the last run with events of this visitor:

- If a visitor has no entry in `_last`, no event of this visitor waits or is in flight. The visitor's next event is
  added to the open unit.
- Otherwise the next event is added to the visitor's last run. If that run is full or in flight, a new trail is opened
  for the event. The trail follows that run.
- A run is ready if no other run must be settled first. A unit is ready as soon as the unit has an event. A trail is
  ready when the run that the trail follows is settled.
- `take` fills a batch with ready runs, and with trails that follow runs of the same batch. The run that became ready
  first leaves first. `take` handles whole runs and looks at no single event.
- `release` settles the runs of a batch. The trails that follow these runs become ready, and the entries of visitors who
  have no further events are removed.

With `Batching.realtime` the pump (the task that takes batches) switches between batches and single events (`singles`).
For single events the buffer opens runs of one event, and `take` returns one run. A run of one event can still leave in
a batch after a switch.

No code here awaits, and the clock is an argument.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
import sys
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from retailrocket_async._fate import places_of
from retailrocket_async._queue.body_limit import BodyLimit
from retailrocket_async._queue.run import Backlog, Hold, Run
from retailrocket_async._queue.taken_batch import TakenBatch
from retailrocket_async._receipt import Receipt
from retailrocket_async._runtime.foreign_code import ensure_stack

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from retailrocket_async._fate import Share
    from retailrocket_async._queue.batch import Batch
    from retailrocket_async._queue.options import Batching, Buffer

_SHORT_BATCH_SPAN: Final = 0.25
"""Largest time span in seconds if `short_batches` is set: no event is added to a run that was opened longer ago, and
runs whose opening times differ by more do not share a batch."""

_LOOKED_AT: Final = 32
"""`take` stops filling a batch when this number of ready runs (groups of events that may leave) did not fit in it."""

_RUN_EVENTS: Final = 50
"""Largest number of events in a run (a group of events that leave together). Longer runs cost less per event; shorter
runs fill a batch of 500 better."""

_RUNS_IN_A_BATCH: Final = 10
"""A run (a group of events) is so small that at least this number of full runs fit in one batch, also by bytes."""

_SINGLE_RUNS: Final = 100
"""If this many runs (groups of events) are ready to leave, new runs may get several events even if `singles` is set.
While no permit is granted, for example in an outage, a run for each waiting event would need too much memory."""

_CHAIN: Final = 15
"""If this many events of one visitor wait, these events leave in a batch even if `singles` is set. A batch takes 1.5 s,
as long as 15 single events that are sent one after the other."""


class EventBuffer:
    """Holds the waiting events in groups (runs), and returns them in batches; the module's docstring explains how.

    Args:
        batching: largest size of a batch.
        buffer: bounds of all waiting events, and of one visitor's waiting events.
        clock: returns the time in seconds; only the difference between two times matters.

    Attributes:
        cap: the current limit of a request body; see `BodyLimit`.
        generation: number of flushes that have begun.
        singles: whether each event is sent alone and without the linger; set only if `Batching.realtime` is set.
        events: number of waiting events.
        bytes: number of bytes of the JSON of the waiting events.
        sooner: whether, because of the event appended last, a batch may be due sooner than the last call of `due_in`
            returned.
    """

    def __init__(self, batching: Batching, buffer: Buffer, clock: Callable[[], float]) -> None:
        self._max_events = batching.max_events
        self._linger = batching.linger
        self._realtime = batching.realtime
        self._bounds = buffer
        self._clock = clock
        self._timed = buffer.max_age is not None
        self._ranks = buffer.ranks()
        # Whether neither times nor ranks are stored with the events.
        self._plain = not self._timed and self._ranks is None
        self._most_events = buffer.max_events
        self._most_bytes = buffer.max_bytes
        self._most_of_visitor = buffer.max_visitor_events
        self._run_events = _run_length(batching.max_events)
        self.cap = BodyLimit(batching.max_bytes)
        self._run_bytes = 1 + max(1, batching.max_bytes // _RUNS_IN_A_BATCH)
        self._last: dict[int | None, Run] = {}
        # The open unit: the run (group of events) to which the first waiting event of a visitor is added.
        self._unit: Run | None = None
        # All waiting runs (groups of events), oldest first, each with the time of its first event. Unlike a dict, an
        # OrderedDict finds and removes its first entry in constant time.
        self._order: OrderedDict[Run, float] = OrderedDict()
        # A heap of the runs (groups of events) by the time of their first event, for `max_age`. The heap may still
        # contain runs that have left the buffer.
        self._ages: list[tuple[float, int, Run]] = []
        # Returns the serial number of the first event of each new run.
        self._serials = itertools.count(0, _RUN_EVENTS)
        self._ready: OrderedDict[Run, None] = OrderedDict()
        # Events and bytes of the runs that could be taken now: ready runs, and the later events of their visitors.
        self._ready_events = 0
        self._ready_bytes = 0
        # Number of ready runs that must be sent without waiting for `linger`, because a flush or a call of `send` waits
        # for their events.
        self._urgent = 0
        self._bytes_in_flight = 0
        self._short = False
        self.singles = batching.realtime
        self.generation = 0
        self.events = 0
        self.bytes = 0
        self.sooner = False

    @staticmethod
    def key_of(session: str) -> int | None:
        """Return the key of a visitor; None for the empty id of events without a visitor, which need no order."""
        return hash(session) if session else None

    @property
    def batches(self) -> int:
        """Number of waiting runs. A flush waits until the events of each of these runs have outcomes."""
        return len(self._order)

    @property
    def short_batches(self) -> bool:
        """Whether each batch holds only events of a short time span.

        If old events are given up, no younger events are then given up together with them.
        """
        return self._short

    @short_batches.setter
    def short_batches(self, value: bool) -> None:
        self._short = value

    def fits(self, size: int) -> bool:
        """Whether the buffer has space for one more envelope of `size` bytes; `admits` checks the visitor's bound."""
        return self.holds(1, size)

    def holds(self, count: int, size: int) -> bool:
        """Whether the buffer has space for `count` more events of `size` bytes together.

        The bytes of events in flight count, too, so that one bound limits the memory.
        """
        bounds = self._bounds
        return (
            self.events + count <= bounds.max_events and self.bytes + self._bytes_in_flight + size <= bounds.max_bytes
        )

    def admits(self, key: int | None, count: int = 1) -> bool:
        """Whether `count` more events of this visitor may wait; see `Buffer.max_visitor_events`."""
        backlog = self._backlog_of(key)
        return backlog is None or backlog.events + count <= self._most_of_visitor

    def _backlog_of(self, key: int | None) -> Backlog | None:
        """Return the counter of a visitor's events that wait for earlier events; None if there is no counter yet."""
        last = None if key is None else self._last.get(key)
        return None if last is None or key is None else last.backlog_of(key)

    def offer(self, envelope: builtins.bytes, name: str, key: int | None, *, alone: bool = False) -> Receipt | None:
        """Append one event if neither the bounds of the buffer nor the bound of the visitor forbid this.

        Returns:
            The receipt of the event; None if a bound forbids the event, which is then not appended.
        """
        length = len(envelope) + 1
        events, size = self.events + 1, self.bytes + length
        if events > self._most_events or size + self._bytes_in_flight > self._most_bytes:
            return None
        last = run = self._last.get(key)
        if last is None:
            run = self._unit
        elif last.backlog is not None and last.backlog.events >= self._most_of_visitor:
            return None
        if (
            run is None
            or run.full
            or alone
            or run.generation != self.generation
            or run.size + length > self._run_bytes
            or not self._plain
            or self._short
        ):
            return self.append(envelope, name, key, alone=alone) if self.admits(key) else None
        # The code below repeats the code of `append` for the simplest and most frequent case; a call would cost time.
        names = run.fate.names
        place = len(names)
        receipt = Receipt(run.fate, place)
        if last is None and key is not None:
            self._last[key] = run
            run.keys.append(key)
        names.append(name)
        run.envelopes.append(envelope)
        run.size += length
        if place + 1 >= run.most:
            run.full = True
        if run.backlog is not None:
            run.backlog.events += 1
        self.events = events
        self.bytes = size
        if run.leaves:
            ready = self._ready_events = self._ready_events + 1
            ready_bytes = self._ready_bytes = self._ready_bytes + length
            self.sooner = ready == self._max_events or 0 <= ready_bytes - self.cap.bytes < length or events == 1
        else:
            self.sooner = events == 1
        return receipt

    def append(  # noqa: C901, PLR0912, PLR0913 - inlined, because it runs for every event
        self,
        envelope: builtins.bytes,
        name: str,
        key: int | None,
        *,
        came_at: float | None = None,
        alone: bool = False,
        tag: object = None,
    ) -> Receipt:
        """Append one event, set `sooner`, and return the receipt. Events must be appended in the order of their times.

        Args:
            envelope: the event's JSON.
            name: the event's name as the API spells it.
            key: the key of the event's visitor; see `key_of`.
            came_at: when the event was tracked, if the event had to wait for space; default None: now.
            alone: whether the event must be sent in a request of its own, because no batch may hold it.
            tag: what a spool stores with the event; default None.
        """
        length = len(envelope) + 1
        run = self._last.get(key)
        sooner = False
        if run is None:
            run = self._unit
            if run is None or alone or self._is_closed(run, length, came_at):
                sooner = not self._ready
                run = self._open_unit(came_at, alone=alone)
            if key is not None:
                self._last[key] = run
                run.keys.append(key)
        elif alone or self._is_closed(run, length, came_at):
            run = self._open_trail(run, key, came_at, alone=alone)
        names = run.fate.names
        place = len(names)
        # Everything that may raise RecursionError comes before the event is put in the run.
        receipt = Receipt(run.fate, place)
        if self._timed and came_at is None:
            came_at = self._clock()
        if self._ranks is not None:
            self._ranks.add(run.serial + place, run, name, length)
            if run.backlog is not None and run.backlog.ranks is not None:
                run.backlog.ranks.add(run.serial + place, run, name, length)
        names.append(name)
        run.envelopes.append(envelope)
        run.size += length
        if self._timed and came_at is not None:
            run.times.append(came_at)
        if tag is not None:
            run.fate.tags = run.fate.tags or []
            run.fate.tags.append(tag)
        if alone or place + 1 >= run.most:
            run.full = True
        if run.backlog is not None:
            run.backlog.events += 1
        self.events += 1
        self.bytes += length
        if run.leaves:
            self._ready_events += 1
            self._ready_bytes += length
            full = self._ready_events == self._max_events or 0 <= self._ready_bytes - self.cap.bytes < length
            self.sooner = sooner or full or self.events == 1
        else:
            self.sooner = self.events == 1
        return receipt

    def _is_closed(self, run: Run, size: int, came_at: float | None) -> bool:
        """Whether an event of `size` bytes must not be added to `run`, a group of events that leave together."""
        return (
            run.full
            # An event that had to wait for space may be older than events of other visitors. The times of a run are
            # sorted, so that its oldest events can be found.
            or (came_at is not None and bool(run.times) and came_at < run.times[-1])
            or run.generation != self.generation
            or run.size + size > self._run_bytes
            or (self._short and self._clock() - run.opened_at > _SHORT_BATCH_SPAN)
        )

    def _open_unit(self, came_at: float | None, *, alone: bool) -> Run:
        ensure_stack()
        single = self.singles and len(self._ready) < _SINGLE_RUNS
        run = self._new_run(None, None, alone=alone, single=single)
        self._store(run, came_at)
        if not alone:
            self._unit = run
        self._make_ready(run)
        return run

    def _open_trail(self, follows: Run, key: int | None, came_at: float | None, *, alone: bool) -> Run:
        assert key is not None  # noqa: S101 - an event without a visitor follows no run
        backlog = follows.backlog or follows.backlog_of(key) or Backlog(self._bounds.ranks())
        run = self._new_run(follows, backlog, alone=alone, single=self.singles and backlog.events < _CHAIN)
        run.keys.append(key)
        run.leaves = follows.leaves
        # If too few stack frames are left, `_store` raises RecursionError before anything has changed. `ensure_stack`
        # would check this, too, but would cost as much time as this whole method, which runs often: most events of a
        # busy shop wait in trails (runs with further events of a visitor).
        self._store(run, came_at)
        follows.full = True
        if follows.followers:
            follows.followers[key] = run
        else:
            follows.followers = {key: run}
        self._last[key] = run
        return run

    def _new_run(self, follows: Run | None, backlog: Backlog | None, *, alone: bool, single: bool) -> Run:
        run = Run(
            self._clock(),
            self.generation,
            follows,
            backlog,
            serial=next(self._serials),
            timed=self._timed,
            most=1 if single else self._run_events,
        )
        run.alone = alone
        return run

    def _store(self, run: Run, came_at: float | None) -> None:
        """Add a new run (a group of events) to the waiting runs."""
        first_at = run.opened_at if came_at is None else came_at
        self._order[run] = first_at
        if self._timed:
            heapq.heappush(self._ages, (first_at, run.serial, run))

    def due_in(self) -> float | None:
        """Return the seconds until a batch should be taken (0 means now); None if no event may be sent yet."""
        for oldest in self._ready:
            if self._urgent or self._ready_events >= self._max_events or self._ready_bytes >= self.cap.bytes:
                return 0.0
            return max(0.0, oldest.ready_at + self._present_linger - self._clock())
        return None

    @property
    def _present_linger(self) -> float:
        return 0.0 if self.singles else self._linger

    def overdue(self) -> float:
        """Return for how many seconds the first ready run (group of events) has waited since its linger ended, or 0."""
        for oldest in self._ready:
            return max(0.0, self._clock() - oldest.ready_at - self._present_linger)
        return 0.0

    def ready_visitors(self, most: int) -> int:
        """Return the number of visitors whose events may be sent now; above `most`, the number is not exact.

        Each event without a visitor counts as one visitor.
        """
        count = 0
        for run in self._ready:
            count += len(run.keys) or len(run)
            if count > most:
                break
        return count

    def take(self) -> TakenBatch | None:
        """Remove and return the next batch; None if no event may be sent now.

        Further events of the batch's visitors wait until `release` is called with this batch.
        """
        first = next(iter(self._ready), None)
        if first is None:
            return None
        batch = TakenBatch(first)
        if not self.singles:
            self._fill(batch, first)
        elif len(first) > 1 or _waiting_behind(first) >= _CHAIN:
            self._add_trails(batch, first)
        # A request with one event needs the same permit as a batch.
        batch.alone |= self._realtime and len(batch) == 1
        for run in batch.runs:
            self._depart(run)
        for run in batch.runs:
            for trail in run.followers.values():
                if trail.leaves:
                    self._count_chain(trail, leaves=False)
        self._bytes_in_flight += batch.size - 1
        return batch

    def _fill(self, batch: TakenBatch, first: Run) -> None:
        """Add to a batch with the run `first` later events of the same visitors (trails), and other ready runs."""
        self._add_trails(batch, first)
        misses = 0
        for run in self._ready:
            if misses >= _LOOKED_AT or len(batch) >= self._max_events:
                break
            if run is first:
                continue
            if self._fits_in(run, batch):
                batch.add(run)
                self._add_trails(batch, run)
            else:
                misses += 1

    def _add_trails(self, batch: TakenBatch, run: Run) -> None:
        """Add to a batch with the run `run` later events of the same visitors (trails), in order, if the events fit."""
        for key, first in run.followers.items():
            trail: Run | None = first
            while trail is not None and not isinstance(trail, Hold) and self._fits_in(trail, batch):
                batch.add(trail)
                trail = trail.followers.get(key)
            if len(batch) >= self._max_events:
                return

    def _fits_in(self, run: Run, batch: TakenBatch) -> bool:
        """Whether a run (a group of events that leave together) may be added to a batch."""
        # While sending is halted, all events of a batch are rejected together when they have become too old, so a batch
        # must not contain both old and new events.
        apart = self._short and abs(run.opened_at - batch.opened_at) > _SHORT_BATCH_SPAN
        return (
            not apart
            and not run.alone
            and not batch.alone
            and len(batch) + len(run) <= self._max_events
            and batch.size + run.size - 1 <= self.cap.bytes
        )

    def _depart(self, run: Run) -> None:
        run.departed = run.full = True
        if run is self._unit:
            self._unit = None
        if run.ready:
            self._unready(run)
        events = len(run.envelopes)
        self._ready_events -= events
        self._ready_bytes -= run.size - 1
        run.leaves = False
        if run.backlog is not None:
            run.backlog.events -= events
        self._forget(run)

    def hold(self, keys: Iterable[int | None], granted: Callable[[], None]) -> Hold:
        """Keep the order of visitors' events for a request that bypasses the buffer.

        The request may be sent when `Hold.departed` is true: all earlier events of these visitors then have their
        outcomes. Later events of these visitors wait until `end_hold` is called.

        Args:
            keys: the keys of the visitors in the request.
            granted: called once, when the request may be sent; not called if the request may be sent as soon as `hold`
                returns. This function must call no code of users, because the buffer may be in the middle of a change.
        """
        ensure_stack()
        hold = Hold(self._clock(), self.generation, granted)
        for key in dict.fromkeys(keys):
            if key is None:
                continue
            hold.keys.append(key)
            last = self._last.get(key)
            if last is not None:
                hold.before[key] = last
                if (backlog := last.backlog_of(key)) is not None:
                    hold.backlogs[key] = backlog
                last.full = True
                last.put_behind(key, hold)
                self._hurry(last)
            self._last[key] = hold
        hold.departed = not hold.before
        return hold

    def end_hold(self, hold: Hold) -> bool:
        """End a hold, because its request has ended or was cancelled; return whether waiting events may leave now."""
        if hold.departed:
            return self._settle(hold)
        return self._unlink(hold)

    def _hurry(self, run: Run | None) -> None:
        """Let the events of `run`, and of the waiting runs before `run`, leave without linger once they may be sent."""
        while run is not None and not run.departed and not run.hurried:
            if run.ready and not self._is_urgent(run):
                self._urgent += 1
            run.hurried = True
            run = run.follows

    def _is_urgent(self, run: Run) -> bool:
        return run.hurried or run.generation != self.generation

    def release(self, batch: TakenBatch, held: Collection[int | None] = ()) -> bool:
        """Let the next events be sent of each visitor whose events in `batch` all have outcomes.

        Args:
            batch: a batch that `take` returned.
            held: keys of visitors with events in the batch that have no outcome yet. Further events of these visitors
                wait until `release` is called again for this batch.

        Returns:
            Whether other waiting events may be sent now because of this.
        """
        became_ready = False
        for run in batch.runs:
            became_ready |= self._settle(run, held)
            if not held:
                self._bytes_in_flight -= run.size - 1
        return became_ready

    def _settle(self, run: Run, held: Collection[int | None] = ()) -> bool:
        if held:
            freed = [key for key in run.keys if key not in held]
            run.keys = [key for key in run.keys if key in held]
        else:
            freed, run.keys = run.keys, []
        became_ready = False
        last = self._last
        for key in freed:
            if last.get(key) is run:
                # The run is the visitor's last one, so no run follows for this visitor.
                del last[key]
            else:
                became_ready |= self._free(run, key)
        return became_ready

    def _free(self, run: Run, key: int) -> bool:
        """Let the events that a visitor has after `run` be sent next; return whether waiting events may leave now."""
        if self._last.get(key) is run:
            del self._last[key]
        follower = run.followers.pop(key, None)
        if follower is None or follower.departed:
            return False
        if not isinstance(follower, Hold):
            follower.follows = None
            self._make_ready(follower)
            return True
        del follower.before[key]
        if not follower.before:
            follower.departed = True
            follower.granted()
        return False

    def begin_flush(self) -> int:
        """Let all waiting events leave without linger; return the highest `Run.generation` that the flush waits for."""
        self.generation += 1
        self._urgent = len(self._ready)
        return self.generation - 1

    def drain(self, most: int) -> Iterator[TakenBatch]:
        """Remove and yield all waiting events, oldest first, in batches of about `most` events.

        Each event counts as waiting until its batch is yielded.
        """
        waiting = list(self._order)
        # Events that are appended while this method yields are not drained: after `begin_flush`, new events are added
        # to new runs, which are not in `waiting`.
        self.begin_flush()
        batch: TakenBatch | None = None
        for run in waiting:
            if batch is not None and len(batch) + len(run) > most:
                yield batch
                batch = None
            if run not in self._order:
                # The run has left the buffer while this method yielded.
                continue
            self._withdraw(run)
            if batch is None:
                batch = TakenBatch(run)
            else:
                batch.add(run)
        if batch is not None:
            yield batch

    def longest_backlog(self) -> int:
        """Return how many events of one visitor wait for earlier events of this visitor: the largest number, or 0."""
        return max((run.backlog.events for run in self._order if run.backlog is not None), default=0)

    def oldest_age(self) -> float:
        """Return the age of the oldest waiting event in seconds; 0 if no event waits."""
        # Another thread may call this method while the loop's thread changes the runs.
        with suppress(RuntimeError, IndexError):
            for oldest in self._order:
                came_at = oldest.times[0] if self._timed else oldest.opened_at
                return max(0.0, self._clock() - came_at)
        return 0.0

    # --- events that leave without being taken ------------------------------------------------------------------------

    def make_room(self, size: int, event_name: str) -> Iterator[Batch]:
        """Evict and yield events, one by one, until an envelope of `size` bytes fits.

        If the envelope would not fit even after all evictions, evict no event.
        """
        ranks = self._ranks
        held = self._bytes_in_flight
        # If the new event cannot fit even after all evictions, the new event will be dropped, so no waiting event is
        # evicted.
        if ranks is None or self.bytes + held - ranks.yielding(event_name) + size > self._bounds.max_bytes:
            return
        while not self.fits(size) and (found := ranks.first(event_name)) is not None:
            yield self._evict(*found)

    def make_room_of(self, key: int | None, event_name: str) -> Iterator[Batch]:
        """Evict and yield events of one visitor until another event, `event_name`, of this visitor may wait."""
        backlog = self._backlog_of(key)
        if backlog is None or backlog.ranks is None:
            return
        while not self.admits(key) and (found := backlog.ranks.first(event_name)) is not None:
            yield self._evict(*found)

    def _evict(self, serial: int, run: Run) -> Batch:
        position = places_of(run.share).index(serial - run.serial)
        return self._remove(run, run.cut(position, position + 1))

    def expire(self, moment: float, most: int = sys.maxsize) -> Iterator[Batch]:
        """Remove and yield events that were tracked at `moment` or before, in batches of at most `most` events.

        Without `max_age` the times of single events are not stored, so all events of a run count as old as the oldest
        event of the run.
        """
        while (run := self._oldest_by(moment)) is not None:
            count = bisect.bisect_right(run.times, moment) if self._timed else len(run)
            yield self._remove(run, run.cut(0, min(count, most)))

    def _oldest_by(self, moment: float) -> Run | None:
        """Return the run (group of events) with the oldest waiting event; None if this event is later than `moment`."""
        if not self._timed:
            run, came_at = next(iter(self._order.items()), (None, math.inf))
            return run if came_at <= moment else None
        while self._ages and self._ages[0][0] <= moment:
            _, serial, run = self._ages[0]
            if run not in self._order:
                heapq.heappop(self._ages)
            elif run.times[0] <= moment:
                return run
            else:
                # The first events of this run have left the buffer, so the entry in the heap is updated.
                heapq.heapreplace(self._ages, (run.times[0], serial, run))
        return None

    def _remove(self, run: Run, removed: Batch) -> Batch:
        """Subtract `removed`, the events that were cut out of a waiting run, from the counters; return `removed`.

        If the run is empty now, remove the run, too.
        """
        size = removed.size - 1
        self.events -= len(removed)
        self.bytes -= size
        if run.backlog is not None:
            run.backlog.events -= len(removed)
        if self._ranks is not None:
            self._forget_ranks(run, removed.shares[0], removed.envelopes)
        if run.leaves:
            self._ready_events -= len(removed)
            self._ready_bytes -= size
        if run:
            return removed
        removed.opened_in.append(run.generation)
        self._withdraw(run)
        return removed

    def _withdraw(self, run: Run) -> None:
        """Remove a waiting run (group of events); the runs that followed it then follow the run before it."""
        run.full = True
        if run is self._unit:
            self._unit = None
        if run.leaves:
            self._ready_events -= len(run)
            self._ready_bytes -= run.size - 1
            run.leaves = False
        self._forget(run)
        if run.backlog is not None:
            run.backlog.events -= len(run)
        if run.ready:
            self._unready(run)
            self._settle(run)
        else:
            self._unlink(run)

    def _unlink(self, run: Run) -> bool:
        """Remove a waiting run or hold from its visitors' order; return whether waiting events may leave now."""
        keys, run.keys = run.keys, []
        became_ready = False
        for key in keys:
            before = run.before.pop(key, None) if isinstance(run, Hold) else run.follows
            if before is None:
                became_ready |= self._free(run, key)
                continue
            following = run.followers.pop(key, None)
            if following is None:
                del before.followers[key]
                self._last[key] = before
                continue
            before.put_behind(key, following)
            if isinstance(following, Hold):
                following.before[key] = before
                continue
            following.follows = before
            if before.leaves:
                self._count_chain(following, leaves=True)
        return became_ready

    def _forget(self, run: Run) -> None:
        """Remove a run that has left the buffer from the tables of waiting runs, and its events from the counters."""
        del self._order[run]
        if self._ranks is not None:
            self._forget_ranks(run, run.share, run.envelopes)
        # Most runs leave in the order of their ages. Two are removed at a time, so that one step is short.
        for _ in range(2):
            if self._ages and self._ages[0][2] not in self._order:
                heapq.heappop(self._ages)
        if len(self._ages) > 2 * len(self._order) + _LOOKED_AT:
            self._ages = [age for age in self._ages if age[2] in self._order]
            heapq.heapify(self._ages)
        self.events -= len(run)
        self.bytes -= run.size - 1

    def _forget_ranks(self, run: Run, share: Share, envelopes: Sequence[builtins.bytes]) -> None:
        """Remove events that have left `run` from the tables of events that may be evicted."""
        for ranks in (self._ranks, None if run.backlog is None else run.backlog.ranks):
            if ranks is not None:
                for place, envelope in zip(places_of(share), envelopes, strict=True):
                    ranks.remove(run.serial + place, run.fate.names[place], len(envelope) + 1)

    def _make_ready(self, run: Run) -> None:
        run.ready = True
        run.ready_at = self._clock()
        self._ready[run] = None
        self._count_chain(run, leaves=True)
        self._urgent += self._is_urgent(run)

    def _count_chain(self, first: Run, *, leaves: bool) -> None:
        """Add the events of a run, and of all runs that follow this run, to the counters of events that may leave now.

        Args:
            first: the run.
            leaves: True to add the events; False to subtract them instead.
        """
        events = size = 0
        chain = [first]
        while chain:
            run = chain.pop()
            if run.departed or run.leaves == leaves or isinstance(run, Hold):
                continue
            run.leaves = leaves
            events += len(run.envelopes)
            size += run.size - 1
            if run.followers:
                chain += run.followers.values()
        self._ready_events += events if leaves else -events
        self._ready_bytes += size if leaves else -size

    def _unready(self, run: Run) -> None:
        run.ready = False
        del self._ready[run]
        self._urgent -= self._is_urgent(run)


def _waiting_behind(run: Run) -> int:
    """Return the number of events that wait for events of `run`: of the visitor who has the most such events."""
    return max((each.backlog.events for each in run.followers.values() if each.backlog is not None), default=0)


def _run_length(max_events: int) -> int:
    """Return the largest number of events in a run (group); if possible, whole runs fill a batch exactly."""
    most = min(_RUN_EVENTS, max(1, max_events // _RUNS_IN_A_BATCH))
    dividing = next(length for length in range(most, 0, -1) if max_events % length == 0)
    return dividing if dividing * 2 > most else most
