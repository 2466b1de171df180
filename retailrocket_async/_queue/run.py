"""A run: waiting events that always leave the buffer together.

There are two kinds of runs. A *unit* holds the first waiting events of many visitors. A *trail* holds further events of
one visitor. A trail follows the run that holds the earlier events of its visitor, and becomes ready when that run is
settled. A `Hold` stands in the place of a run for a request that is sent without the buffer.
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
    """Counts the events of one visitor that wait in trails.

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
"""Stand in all runs without times or followers, because hundreds of thousands of events may wait. Always empty."""


class Run:
    """Waiting events that leave the buffer in one request. A run is never divided while it waits.

    An event that is evicted or expires leaves the run alone. The places of the other events stay the same.

    Args:
        opened_at: when the run was opened (seconds on the buffer's clock).
        generation: see the attribute.
        follows: see the attribute.
        backlog: see the attribute.
        most: see the attribute.
        serial: see the attribute.
        timed: whether the run stores the times of its events.

    Attributes:
        fate: gets the outcomes of the events, also of events that have left the run. Its `names` has the names of all
            events that were ever added to the run.
        places: the places of the events in `fate`; None if the run still has all its events.
        envelopes: the JSON of each event, in order.
        times: when each event was tracked (seconds on the buffer's clock); empty without `Buffer.max_age`.
        size: number of bytes of a request body with these events.
        opened_at: when the run was opened for its first event (seconds on the buffer's clock).
        alone: whether the run is a single event that no batch may hold together with others.
        serial: the serial number of the run's first event, in the order in which the runs were opened. The serial
            number of another event is greater by its place.
        generation: number of flushes that had begun when the run was opened. No event is added after the next flush has
            begun, so a flush waits for earlier events only.
        keys: the key of each visitor who has events in the run, each key once. While the run is in flight, the keys of
            settled visitors are removed.
        follows: the run that must be settled before this run is ready; None if there is no such run.
        followers: for each visitor who has further events, the run with the next of these events.
        backlog: counts the waiting events of a trail's visitor; None if the run is a unit.
        ready: whether the run waits, and no other run must be settled first.
        leaves: whether the run is ready, or can leave in the same batch as the ready run that it follows.
        ready_at: when the run became ready (seconds on the buffer's clock).
        departed: whether the run has left the buffer.
        full: whether no further event may be added to the run.
        most: number of events with which the run is full.
        hurried: whether the run is due as soon as it is ready, because a direct send waits for it.
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
        """The fate and the places of the events."""
        return self.fate, self.places

    def put_behind(self, key: int, follower: Run) -> None:
        """Make `follower` the run with the next events of the visitor `key`."""
        if self.followers is _NO_FOLLOWERS:
            self.followers = {}
        self.followers[key] = follower

    def cut(self, start: int, stop: int) -> Batch:
        """Remove the events from `start` to before `stop`, and return them as a batch."""
        places = list(places_of(self.share))
        cut = Batch(self.opened_at)
        cut.envelopes, cut.times = self.envelopes[start:stop], self.times[start:stop]
        cut.shares = [(self.fate, places[start:stop])]
        cut.size = 1 + sum(map(len, cut.envelopes)) + len(cut.envelopes)
        del self.envelopes[start:stop], self.times[start:stop], places[start:stop]
        self.places = places
        # A run with explicit places gets no further events, so that adding an event stays simple.
        self.full = True
        self.size -= cut.size - 1
        return cut

    def backlog_of(self, key: int) -> Backlog | None:  # noqa: ARG002 - for `Hold`
        """Return the object that counts the visitor's events that wait in trails; None if it is not known here."""
        return self.backlog


class Hold(Run):
    """Keeps the order of visitors for a request that is sent without the buffer. A hold contains no events.

    `departed` is true as soon as the request may be sent.

    Args:
        opened_at: when the hold was made (seconds on the buffer's clock).
        generation: number of flushes that had begun then.
        granted: see the attribute.

    Attributes:
        before: for each visitor of the hold who has earlier events without an outcome, the run with the last of them.
        backlogs: counts the waiting events of these visitors, by visitor.
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
        """Return the object that counts the visitor's events that wait in trails; None if there is none."""
        return self.backlogs.get(key)
