"""A run: a group of waiting events that always leave the buffer in the same request.

There are two kinds of runs. A *unit* has the first waiting events of many visitors. A *trail* has further events of one
visitor. A trail follows the run with the previous events of its visitor, and becomes ready (may leave) when the events
of that run have outcomes. For a request that bypasses the buffer, a `Hold` takes the place of a run in this order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from retailrocket_async._fate import Fate, places_of
from retailrocket_async._queue.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Callable

    from retailrocket_async._fate import Share
    from retailrocket_async._queue.eviction import Ranks


class Backlog:
    """Counts the events of one visitor that wait for earlier events of this visitor.

    Attributes:
        events: number of these events.
        ranks: chooses which of these events to evict first; None if a full buffer evicts no event.
    """

    __slots__ = ("events", "ranks")

    def __init__(self, ranks: Ranks[Run] | None) -> None:
        self.events = 0
        self.ranks = ranks


_NO_TIMES: Final[list[float]] = []
_NO_FOLLOWERS: Final[dict[int, Run]] = {}
"""An empty list and an empty dict that many runs share, to save memory: hundreds of thousands of events may wait. No
item is ever added to them."""


class Run:
    """Waiting events that leave the buffer in one request. A run is never divided while it waits.

    If an event is evicted or expires, only this event leaves the run. The place of an event is its index in `fate`, and
    does not change when other events leave.

    Args:
        opened_at: when the run was opened (seconds on the buffer's clock).
        generation: see the attribute.
        follows: see the attribute.
        backlog: see the attribute.
        most: see the attribute.
        serial: see the attribute.
        timed: whether the run stores the times of its events.

    Attributes:
        fate: stores the outcomes of the events, also of events that have left the run. `fate.names` has the names of
            all events that were ever added to the run.
        places: the places of the events in `fate`; None if the run still has all its events.
        envelopes: the JSON of each event, in order.
        times: when each event was tracked (seconds on the buffer's clock); empty without `Buffer.max_age`.
        size: number of bytes of a request body with these events.
        opened_at: when the run was opened for its first event (seconds on the buffer's clock).
        alone: whether the run is a single event that must be sent in a request of its own.
        serial: the serial number of the run's first event; runs that were opened later have higher numbers. The serial
            number of any other event is `serial` plus the place of that event.
        generation: number of flushes that had begun when the run was opened. No event is added after the next flush has
            begun, so a flush waits for earlier events only.
        keys: the key of each visitor who has events in the run, each key once. While the run is in flight, the keys of
            settled visitors are removed.
        follows: the run whose events must have outcomes before this run may leave; None if there is no such run.
        followers: for each visitor (by key) who has further events, the run with the next of these events.
        backlog: counts the waiting events of a trail's visitor; None if the run is a unit.
        ready: whether the run waits, and no other run has to leave first.
        leaves: whether the run is ready, or can leave in the same batch as the ready run that it follows.
        ready_at: when the run became ready (seconds on the buffer's clock).
        departed: whether the run has left the buffer.
        full: whether no further event may be added to the run.
        most: number of events with which the run is full.
        hurried: whether the run leaves without linger as soon as it is ready, because a call of `send` waits for it.
    """

    __slots__ = (
        "alone",
        "backlog",
        "departed",
        "envelopes",
        "fate",
        "followers",
        "follows",
        "full",
        "generation",
        "hurried",
        "keys",
        "leaves",
        "most",
        "opened_at",
        "places",
        "ready",
        "ready_at",
        "serial",
        "size",
        "times",
    )

    def __init__(  # noqa: PLR0913 - a record
        self,
        opened_at: float,
        generation: int,
        follows: Run | None,
        backlog: Backlog | None,
        *,
        serial: int,
        timed: bool,
        most: int,
    ) -> None:
        self.fate = Fate([])
        self.envelopes: list[bytes] = []
        self.times: list[float] = [] if timed else _NO_TIMES
        self.size: int = 1
        self.opened_at = self.ready_at = opened_at
        self.generation = generation
        self.serial = serial
        self.keys: list[int] = []
        self.follows = follows
        self.followers: dict[int, Run] = _NO_FOLLOWERS
        self.backlog = backlog
        self.most = most
        self.alone = self.ready = self.leaves = self.departed = self.full = self.hurried = False
        self.places: list[int] | None = None

    def __len__(self) -> int:
        return len(self.envelopes)

    @property
    def share(self) -> Share:
        """The object that stores the outcomes of the events, and the places of the events in this object."""
        return self.fate, self.places

    def put_behind(self, key: int, follower: Run) -> None:
        """Make `follower` the run with the next events of the visitor `key`."""
        if self.followers is _NO_FOLLOWERS:
            self.followers = {}
        self.followers[key] = follower

    def cut(self, start: int, stop: int) -> Batch:
        """Remove the events from position `start` to before position `stop`, and return these events as a batch."""
        places = list(places_of(self.share))
        cut = Batch(self.opened_at)
        cut.envelopes, cut.times = self.envelopes[start:stop], self.times[start:stop]
        cut.shares = [(self.fate, places[start:stop])]
        cut.size = 1 + sum(map(len, cut.envelopes)) + len(cut.envelopes)
        del self.envelopes[start:stop], self.times[start:stop], places[start:stop]
        self.places = places
        # No event is added to this run any more, because the code that adds events does not extend `places`.
        self.full = True
        self.size -= cut.size - 1
        return cut

    def backlog_of(self, key: int) -> Backlog | None:  # noqa: ARG002 - for `Hold`
        """Return the counter of the visitor's events that wait for earlier events; None if this run has no counter."""
        return self.backlog


class Hold(Run):
    """Keeps the order of visitors' events for a request that bypasses the buffer. A hold contains no events.

    `departed` is true as soon as the request may be sent.

    Args:
        opened_at: when the hold was made (seconds on the buffer's clock).
        generation: number of flushes that had begun when the hold was made.
        granted: see the attribute.

    Attributes:
        before: for each visitor who has earlier events without an outcome, the run with the last of these events.
        backlogs: the counters of the waiting events of these visitors, by visitor.
        granted: called once, when `before` becomes empty.
    """

    __slots__ = ("backlogs", "before", "granted")

    def __init__(self, opened_at: float, generation: int, granted: Callable[[], None]) -> None:
        super().__init__(opened_at, generation, None, None, serial=0, timed=False, most=0)
        self.full = True
        self.before: dict[int, Run] = {}
        self.backlogs: dict[int, Backlog] = {}
        self.granted = granted

    def backlog_of(self, key: int) -> Backlog | None:
        """Return the counter of the visitor's events that wait for earlier events; None if no such events wait."""
        return self.backlogs.get(key)
