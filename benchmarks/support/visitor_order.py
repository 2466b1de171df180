"""Checks that no two requests with events of one visitor overlap, and that each visitor's events are in order.

This code shares no code with the client and sees only what a server sees. Events of one visitor must have increasing
numbers in the order in which the events were tracked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Numbered: TypeAlias = tuple[str, int]
"""A visitor's id and the number of one event."""


class UnderWay:
    """A request that the client may still wait for.

    Args:
        began: when its first bytes arrived, in seconds.
        visitors: the visitors with an event in it.
        abandoned: returns whether the client has closed the connection of this request.
    """

    __slots__ = ("abandoned", "began", "visitors")

    def __init__(self, began: float, visitors: frozenset[str], abandoned: Callable[[], bool]) -> None:
        self.began = began
        self.visitors = visitors
        self.abandoned = abandoned


class Overlaps:
    """Counts requests that began while another request with an event of the same visitor was under way.

    A request is under way from its first bytes until its answer is written, or until the client closes its connection.

    Attributes:
        count: number of requests that began while another request of the same visitor was under way.
    """

    def __init__(self) -> None:
        self.count = 0
        self._under_way: dict[str, UnderWay] = {}
        self._answered_at: dict[str, float] = {}

    def begin(self, began: float, visitors: Iterable[str], abandoned: Callable[[], bool] = lambda: False) -> UnderWay:
        """Check a request whose body is complete; return the object that `end` needs.

        Args:
            began: when its first bytes arrived, in seconds.
            visitors: the visitors with an event in it.
            abandoned: returns whether the client has closed the connection of this request. Asked only if another
                request seems to overlap, because the server may learn of the end of a connection late.
        """
        request = UnderWay(began, frozenset(visitors), abandoned)
        for visitor in request.visitors & self._under_way.keys():
            # `other` may be None: an earlier step of this loop may have ended the same request for another visitor.
            if (other := self._under_way.get(visitor)) is not None and other.abandoned():
                self.end(other, None)
        answered_at = self._answered_at
        if not self._under_way.keys().isdisjoint(request.visitors) or any(
            answered_at.get(visitor, began) > began for visitor in request.visitors
        ):
            self.count += 1
        self._under_way |= dict.fromkeys(request.visitors, request)
        return request

    def end(self, request: UnderWay, answered_at: float | None) -> None:
        """Note the end of a request; a second call for the same request does nothing.

        Args:
            request: the object that `begin` returned.
            answered_at: when the answer was written, in seconds; None if the client closed the connection, because the
                time of closing is not known exactly.
        """
        under_way = self._under_way
        mine = [visitor for visitor in request.visitors if under_way.get(visitor) is request]
        for visitor in mine:
            del under_way[visitor]
        if answered_at is not None:
            self._answered_at |= dict.fromkeys(mine, answered_at)


class Order:
    """Finds visitors whose events were recorded in another order than the one in which they were tracked.

    Recording a request, or a part of it, a second time is no fault. An event is out of order if a later event of its
    visitor was recorded before the event's first recording, or if the event is recorded again after a request that had
    only later events of its visitor.

    Attributes:
        disordered: the visitors with an event out of order.
    """

    def __init__(self) -> None:
        self.disordered: set[str] = set()
        self._recorded: set[int] = set()
        self._latest: dict[str, int] = {}
        # For each visitor: each request has a first event of this visitor; the largest number of these first events.
        self._floor: dict[str, int] = {}

    def record(self, events: Sequence[Numbered]) -> None:
        """Check the events of one recorded request, which are given in the order of the request's body."""
        latest, recorded = self._latest, self._recorded
        first: dict[str, int] = {}
        previous: dict[str, int] = {}
        for visitor, number in events:
            if number <= latest.get(visitor, -1) and (
                number not in recorded or number < self._floor[visitor] or number <= previous.get(visitor, -1)
            ):
                self.disordered.add(visitor)
            first.setdefault(visitor, number)
            previous[visitor] = number
            latest[visitor] = max(number, latest.get(visitor, number))
        recorded.update([number for _, number in events])
        for visitor, number in first.items():
            self._floor[visitor] = max(number, self._floor.get(visitor, number))
