"""Finds the requests that violate the order of a visitor's events.

The API's contract: two requests with events of one visitor are never under way at once, and the second is sent only
after the first was answered with success. There are two kinds of violations:

============  ======================================================================================================
kind          what was found
============  ======================================================================================================
``overlap``   a request has events of a visitor, and another request with events of this visitor is under way
``backward``  an event of a request is older, by its timestamp, than an event of the same visitor in an earlier request
============  ======================================================================================================

A request is under way from the arrival of its head until it is answered or its connection breaks. So a client that
lost an answer may send the request again. For the same reason ``backward`` compares only with requests that were
recorded and answered with success, or are still under way.

Equal timestamps are in order. Events without a timestamp are not compared, and events without a visitor are ignored.
The events of one request are not compared with each other, because the API saves them in the order of the list.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

from ._records import OrderViolation

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._judge import Events
    from ._records import ViolationKind

__all__ = ["OpenRequest", "VisitorOrder", "spans_of"]

_VIOLATIONS: Final = 1_000
_REASONS: Final = 1_000
_LONGEST_NAME: Final = 50  # the API accepts no longer name of a visitor, so remembering one would only use memory

Span: TypeAlias = "tuple[float, float] | None"
"""The earliest and the latest timestamp of a visitor's events, in seconds since 1970; None if no event has one."""

Origin: TypeAlias = "tuple[int, float]"
"""The number of a request, and when the request arrived, in seconds since 1970."""

# What is remembered of a visitor: the latest timestamp, the request with this timestamp, the time at which the last
# answered request ended, and that request. This is a plain tuple, because the garbage collector does not check tuples
# that contain only numbers and tuples of numbers.
_Seen: TypeAlias = "tuple[float, Origin, float, Origin]"

_NEVER: Final = float("-inf")
_UNSEEN: Final[_Seen] = (_NEVER, (0, 0.0), _NEVER, (0, 0.0))


@attrs.define(eq=False)
class OpenRequest:
    """A request with events, from its arrival until its end.

    Attributes:
        origin: the number of the request, and when the request arrived, in seconds since 1970.
        arrived: when the head of the request was read, on the monotonic clock of the emulator's rate limit window.
        spans: the earliest and the latest timestamp of each visitor's events, by visitor.
        is_gone: returns whether the connection was closed or lost.
        recorded: whether the events were recorded.
        ended: when the emulator answered the request or broke the connection, on the same clock as `arrived`; None
            before that.
        violations: the violations of this request.
    """

    origin: Origin
    arrived: float
    spans: dict[str, Span]
    is_gone: Callable[[], bool]
    recorded: bool = False
    ended: float | None = None
    violations: list[OrderViolation] = attrs.Factory(list[OrderViolation])

    @property
    def is_under_way(self) -> bool:
        """Whether the client still waits for an answer."""
        return self.ended is None and not self.is_gone()

    def reasons(self) -> list[str]:
        """Return the reasons to refuse the request: a sentence for each violation, at most 1,000."""
        more = ["... and more"] if len(self.violations) > _REASONS else []
        return [*map(_reason, islice(self.violations, _REASONS)), *more]


class VisitorOrder:
    """Finds violations of the order of visitors' events, counts the violations, and lists the last 1,000 of them.

    The caller calls `open` when the body of a request was read, `check` when its events are about to be recorded, and
    `close` when the request has ended. A request that was opened before `clear` is neither checked nor remembered.

    Args:
        keep: number of visitors whose timestamps are remembered; the visitors who were absent longest are forgotten
            first.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._requests: set[OpenRequest] = set()
        self._by_visitor: dict[str, list[OpenRequest]] = {}
        self._visitors: OrderedDict[str, _Seen] = OrderedDict()
        self._violations: deque[OrderViolation] = deque(maxlen=_VIOLATIONS)
        self._counts: Counter[ViolationKind] = Counter()

    @property
    def total(self) -> int:
        """Number of violations found since the last `clear`, including violations that are no longer listed."""
        return self._counts.total()

    def open(self, request: OpenRequest) -> None:
        """Add a request whose body was read, and find the visitors who have another request under way."""
        self._requests.add(request)
        for visitor in request.spans:
            others = self._by_visitor.setdefault(visitor, [])
            if (other := self._overlapped(request, visitor, others)) is not None:
                self._add("overlap", visitor, request, other)
            others.append(request)

    def check(self, request: OpenRequest) -> None:
        """Compare the timestamps of a request that is about to be recorded with the timestamps of earlier requests."""
        if request not in self._requests or request.is_gone():
            # A client that closed this connection may already have sent the same events, and later ones, on another
            # connection, so an old timestamp is no violation.
            return
        for visitor, span in request.spans.items():
            if span is None:
                continue
            newest, origin = self._newest(request, visitor)
            if span[0] < newest:
                self._add("backward", visitor, request, origin, span[0], newest)

    def close(self, request: OpenRequest, now: float | None, *, succeeded: bool) -> None:
        """Remove a request that has ended, and remember its timestamps and its end.

        Args:
            request: the request.
            now: the current time, on the clock of `OpenRequest.arrived`; None if the request got no answer.
            succeeded: whether the request was answered with success.
        """
        if request not in self._requests:
            return
        self._requests.remove(request)
        if request.ended is None:
            request.ended = now
        for visitor, span in request.spans.items():
            others = self._by_visitor[visitor]
            others.remove(request)
            if not others:
                del self._by_visitor[visitor]
            self._remember(visitor, request, span if succeeded and request.recorded else None)

    def violations(self, limit: int | None = None) -> list[OrderViolation]:
        """Return the last violations, oldest first: at most *limit*, and never more than 1,000."""
        return self.after(0 if limit is None else self.total - limit)

    def after(self, number: int) -> list[OrderViolation]:
        """Return the listed violations with a higher number than *number*, oldest first."""
        before = self.total - len(self._violations)
        return list(islice(self._violations, max(0, number - before), None))

    def stats(self) -> dict[str, int]:
        """Return the counters since the last `clear`: ``overlaps`` and ``backward_steps``."""
        return {"overlaps": self._counts["overlap"], "backward_steps": self._counts["backward"]}

    def clear(self) -> None:
        """Forget everything, requests under way included. The numbers of later violations start at 1 again."""
        for held in (self._requests, self._by_visitor, self._visitors, self._violations, self._counts):
            held.clear()

    def _overlapped(self, request: OpenRequest, visitor: str, others: list[OpenRequest]) -> Origin | None:
        for other in others:
            if other.is_under_way or (other.ended is not None and other.ended > request.arrived):
                return other.origin
        # The other request may have ended after this request arrived, but before this request's body was read.
        *_, ended, origin = self._visitors.get(visitor, _UNSEEN)
        return origin if ended > request.arrived else None

    def _newest(self, request: OpenRequest, visitor: str) -> tuple[float, Origin]:
        newest, origin, *_ = self._visitors.get(visitor, _UNSEEN)
        for other in self._by_visitor[visitor]:
            span = other.spans[visitor]
            if other is not request and other.recorded and other.is_under_way and span is not None and span[1] > newest:
                newest, origin = span[1], other.origin
        return newest, origin

    def _remember(self, visitor: str, request: OpenRequest, span: Span) -> None:
        newest, newest_in, ended, ended_in = self._visitors.pop(visitor, _UNSEEN)
        if span is not None and span[1] > newest:
            newest, newest_in = span[1], request.origin
        if request.ended is not None:
            ended, ended_in = request.ended, request.origin
        if newest == ended == _NEVER:
            return
        self._visitors[visitor] = (newest, newest_in, ended, ended_in)
        if len(self._visitors) > self._keep:
            self._visitors.popitem(last=False)

    def _add(  # noqa: PLR0913, PLR0917 - the attributes of a violation
        self,
        kind: ViolationKind,
        visitor: str,
        request: OpenRequest,
        other: Origin,
        timestamp: float | None = None,
        other_timestamp: float | None = None,
    ) -> None:
        self._counts[kind] += 1
        violation = OrderViolation(self.total, kind, visitor, *request.origin, *other, timestamp, other_timestamp)
        self._violations.append(violation)
        request.violations.append(violation)


def spans_of(events: Events) -> dict[str, Span]:
    """Return the earliest and latest timestamp of each visitor in *events*; ignore invalid visitors and timestamps."""
    spans: dict[str, Span] = {}
    for _, fields in events:
        visitor = fields.get("sessionExternalId")
        if type(visitor) is not str or not 0 < len(visitor) <= _LONGEST_NAME:
            continue
        moment, span = _moment(fields.get("timestamp")), spans.get(visitor)
        if moment is None:
            spans[visitor] = span
        elif span is None:
            spans[visitor] = (moment, moment)
        else:
            spans[visitor] = (min(span[0], moment), max(span[1], moment))
    return spans


def _moment(value: object) -> float | None:
    if type(value) is not str:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return None if moment.tzinfo is None else moment.timestamp()


def _reason(violation: OrderViolation) -> str:
    other = f"request #{violation.other}"
    if violation.timestamp is None or violation.other_timestamp is None:
        return f"visitor {violation.visitor}: {other} with events of this visitor is under way"
    older = violation.other_timestamp - violation.timestamp
    return f"visitor {violation.visitor}: an event is {older:.6g} s older than one of {other}"
