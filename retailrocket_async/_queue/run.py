"""A run: waiting events that always leave the buffer together.

There are two kinds of runs. A *unit* holds the first waiting events of many visitors. A *trail* holds further events of
one visitor. A trail follows the run that holds the earlier events of its visitor, and becomes ready when that run is
settled. A `Hold` stands in the place of a run for a request that is sent without the buffer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from retailrocket_async._queue.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Callable

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


class Run(Batch):
    """Waiting events that leave the buffer in one request. A run is never divided while it waits.

    Args:
        opened_at: when the run was opened (seconds on the buffer's clock).
        generation: see the attribute.
        follows: see the attribute.
        backlog: see the attribute.
        most: see the attribute.

    Attributes:
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
        "backlog",
        "departed",
        "followers",
        "follows",
        "full",
        "generation",
        "hurried",
        "keys",
        "leaves",
        "most",
        "ready",
        "ready_at",
    )

    def __init__(
        self, opened_at: float, generation: int, follows: Run | None, backlog: Backlog | None, *, most: int
    ) -> None:
        super().__init__(opened_at)
        self.generation = generation
        self.opened_in.append(generation)
        self.keys: list[int] = []
        self.follows = follows
        self.followers: dict[int, Run] = {}
        self.backlog = backlog
        self.most = most
        self.ready = self.leaves = self.departed = self.full = self.hurried = False
        self.ready_at = opened_at


class Hold(Run):
    """Keeps the order of visitors for a request that is sent without the buffer. A hold contains no events.

    Args:
        opened_at: when the hold was made (seconds on the buffer's clock).
        generation: number of flushes that had begun then.
        granted: see the attribute.

    Attributes:
        waits_for: number of visitors of the hold who have earlier events without an outcome.
        granted: called once, when `waits_for` becomes 0. Later events of the hold's visitors wait until the hold ends.
    """

    __slots__ = ("granted", "waits_for")

    def __init__(self, opened_at: float, generation: int, granted: Callable[[], None]) -> None:
        super().__init__(opened_at, generation, None, None, most=0)
        self.full = True
        self.waits_for = 0
        self.granted = granted
