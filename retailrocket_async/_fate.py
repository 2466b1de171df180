"""Defines `Fate`, which holds the outcomes of a group of events.

The events of a group usually get the same outcome at the same time, so one `Fate` for all of them is cheaper than an
object for each event. An event is identified by its fate and by its place: its index in the group.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from retailrocket_async._runtime.futures import set_done
from retailrocket_async._runtime.running import running_loop

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Sequence

    from retailrocket_async._outcome import Outcome

Share: TypeAlias = "tuple[Fate, Sequence[int] | None]"
"""A fate and the places of some of its events, in order; None instead of the places means all events of the fate."""


class Fate:
    """The outcomes of a group of events, and the tasks that wait for these outcomes.

    An outcome is set in one thread, the thread of the client's event loop. Any thread may read an outcome and may wait.

    Args:
        names: see the attribute.
        tags: see the attribute; default None.

    Attributes:
        names: the name of each event, by place.
        tags: what a spool stores with each event, by place; None without a spool.
        marks: what an observer returned for each event (the event's mark), by place; shorter than `names` if the last
            events have no mark. None if no event has a mark, or if all events have their outcome.
        waiters: the futures of the tasks that wait for an outcome, in the order in which they began to wait, each with
            the place of its event.
    """

    # Weak references let a spool forget the fates whose receipts nobody holds.
    __slots__ = ("__weakref__", "_apart", "_outcome", "marks", "names", "tags", "waiters")

    def __init__(self, names: list[str], tags: list[object] | None = None) -> None:
        self.names = names
        self.tags = tags
        self.marks: list[object] | None = None
        # The outcome of all events that are not in `_apart`.
        self._outcome: Outcome | None = None
        # The outcomes of single events, by place. None until such an outcome exists, which is rare.
        self._apart: dict[int, Outcome] | None = None
        # Thousands of tasks may wait. A dict removes a waiter in constant time and preserves the order. The dict is
        # never replaced, because other threads may add waiters at any time.
        self.waiters: dict[asyncio.Future[None], int] = {}

    def outcome_of(self, place: int) -> Outcome | None:
        """Return the outcome of the event at `place`; None if the event has no outcome yet."""
        # `_outcome` is read first. In the other order, a thread could miss an outcome in `_apart`, and then find in
        # `_outcome` the outcome that the other events got a moment later.
        outcome = self._outcome
        apart = self._apart
        return outcome if apart is None else apart.get(place, outcome)

    def settle(self, outcome: Outcome, places: Sequence[int] | None = None) -> None:
        """Set the outcome of the events at `places`, except for events that already have an outcome.

        Args:
            outcome: the outcome.
            places: the places of the events; default None: all places. No event may be added to the fate afterwards.
        """
        if self._outcome is not None:
            return
        if places is not None:
            self._settle_apart(outcome, places)
            return
        self._outcome = outcome
        self.marks = None
        if self.waiters:
            # Another thread may add a waiter after this copy. That thread checks the outcome again before it waits.
            waiters = self.waiters.copy()
            self.waiters.clear()
            _wake(waiters)

    def _settle_apart(self, outcome: Outcome, places: Sequence[int]) -> None:
        apart = self._apart or {}
        new = {place: outcome for place in places if place not in apart}
        if self._apart is None:
            self._apart = new
        else:
            self._apart.update(new)
        if self.marks is not None:
            self.marks = [None if place in new else mark for place, mark in enumerate(self.marks)]
        if self.waiters:
            waiters = [waiter for waiter, place in self.waiters.copy().items() if place in new]
            for waiter in waiters:
                self.waiters.pop(waiter, None)
            _wake(waiters)

    def mark_of(self, place: int) -> object:
        """Return the mark of the event at `place`; None if the event has no mark."""
        return self.marks[place] if self.marks is not None and place < len(self.marks) else None

    def mark(self, place: int, mark: object) -> None:
        """Store the mark of the event at `place`, unless the event already has its outcome."""
        if mark is None or self.outcome_of(place) is not None:
            return
        if self.marks is None:
            self.marks = []
        self.marks += [None] * (place + 1 - len(self.marks))
        self.marks[place] = mark


def places_of(share: Share) -> Sequence[int]:
    """Return the places of the events in a share (some events of one fate)."""
    fate, places = share
    return range(len(fate.names)) if places is None else places


def names_in(shares: Iterable[Share]) -> list[str]:
    """Return the names of the events in all `shares`, in order."""
    found: list[str] = []
    for fate, places in shares:
        found += fate.names if places is None else [fate.names[place] for place in places]
    return found


def marks_in(shares: Iterable[Share]) -> list[object]:
    """Return the marks of the events in all `shares`, in order; skip the fates in which no event has a mark."""
    return [fate.mark_of(place) for fate, places in shares if fate.marks for place in places_of((fate, places))]


def tags_in(shares: Iterable[Share]) -> list[object]:
    """Return the tags of the events in all `shares`, in order; skip the events that have no tag."""
    found: list[object] = []
    for fate, places in shares:
        if fate.tags is not None:
            found += fate.tags if places is None else [fate.tags[place] for place in places]
    return found


def _wake(waiters: Iterable[asyncio.Future[None]]) -> None:
    """Wake the tasks that wait on these futures."""
    here = running_loop()
    for waiter in waiters:
        loop = waiter.get_loop()
        if loop is here:
            set_done(waiter)
            continue
        # The waiter belongs to the event loop of another thread. That loop may be closed, which raises RuntimeError.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(set_done, waiter)
