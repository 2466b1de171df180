"""What the client said of every event, compared with what the server recorded."""

from __future__ import annotations

import enum
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from retailrocket_async import Abandoned, Delivered, Dropped, Rejected

if TYPE_CHECKING:
    from _fault import Report

    from retailrocket_async import Outcome


class Told(enum.IntEnum):
    """What the client said of an event; small, so that a million of them are a million bytes."""

    NEVER_TRACKED = 0
    PENDING = enum.auto()
    DELIVERED = enum.auto()
    DELIVERED_MAYBE_TWICE = enum.auto()
    REJECTED = enum.auto()
    REJECTED_WRONGLY = enum.auto()
    ABANDONED_UNRECORDED = enum.auto()
    ABANDONED_MAYBE_RECORDED = enum.auto()
    DROPPED = enum.auto()


_ALL = frozenset(Told)
_DELIVERED = frozenset({Told.DELIVERED, Told.DELIVERED_MAYBE_TWICE})
REJECTED = frozenset({Told.REJECTED, Told.REJECTED_WRONGLY})
_ABANDONED = frozenset({Told.ABANDONED_UNRECORDED, Told.ABANDONED_MAYBE_RECORDED})
_DROPPED = frozenset({Told.DROPPED})
_PENDING = frozenset({Told.PENDING})
_WRONGED = frozenset({Told.REJECTED_WRONGLY})
_MUST_BE_RECORDED = _DELIVERED | _PENDING
_MUST_NOT_BE_RECORDED = _ALL - _MUST_BE_RECORDED - {Told.ABANDONED_MAYBE_RECORDED}
_MAY_BE_RECORDED_TWICE = frozenset({Told.DELIVERED_MAYBE_TWICE, Told.ABANDONED_MAYBE_RECORDED})


def told(outcome: Outcome | None, *, bad: bool = False) -> Told:
    """Return what an outcome says of an event; `bad` where the event itself gives the server a reason to refuse it."""
    match outcome:
        case None:
            return Told.PENDING
        case Delivered():
            return Told.DELIVERED_MAYBE_TWICE if outcome.maybe_duplicate else Told.DELIVERED
        case Rejected(status=400 | 413, isolated=True) if not bad:
            # Said to be refused for what it is, alone: a wrong key's or path's refusal speaks of no event.
            return Told.REJECTED_WRONGLY
        case Rejected():
            return Told.REJECTED
        case Abandoned():
            return Told.ABANDONED_MAYBE_RECORDED if outcome.maybe_recorded else Told.ABANDONED_UNRECORDED
        case Dropped():
            return Told.DROPPED


class Audit(NamedTuple):
    """The comparison, in events.

    Attributes:
        tracked: those that the client accepted.
        recorded: those that the server recorded, once or more often.
        delivered, rejected, abandoned, dropped, pending: by what the client said.
        lost: not recorded, and the client said delivered, or nothing.
        duplicated: recorded more than once.
        unexplained: of those, the ones of which the client did not say that this may be.
        contradicted: recorded, and the client said that this is certainly not so.
        wronged: said to be refused alone for what they are, with nothing bad about them.
        misnamed: recorded as another event than the one that was tracked.
    """

    tracked: int
    recorded: int
    delivered: int
    rejected: int
    abandoned: int
    dropped: int
    pending: int
    lost: int
    duplicated: int
    unexplained: int
    contradicted: int
    wronged: int
    misnamed: int

    def complaints(self) -> list[str]:
        """Return a sentence for each promise that these numbers break."""
        broken = {
            "without an outcome": self.pending,
            "lost": self.lost,
            "duplicated without a word": self.unexplained,
            "recorded though said not to be": self.contradicted,
            "refused for nothing": self.wronged,
            "recorded as something else": self.misnamed,
        }
        return [f"{count} {what}" for what, count in broken.items() if count]


def audit(said: bytes, names: bytes, report: Report) -> Audit:
    """Compare; `said` and `names` hold a `Told` and an index in `NAMES` for each event by its number."""
    size = max(len(said), len(report.counts))
    said = said.ljust(size, b"\0")
    counts = report.counts.ljust(size, b"\0")
    pairs = Counter(zip(said, counts, strict=True))

    def total(which: frozenset[Told], least: int = 0, most: int = 255) -> int:
        return sum(events for (code, count), events in pairs.items() if code in which and least <= count <= most)

    return Audit(
        tracked=total(_ALL - {Told.NEVER_TRACKED}),
        recorded=total(_ALL, 1),
        delivered=total(_DELIVERED),
        rejected=total(REJECTED),
        abandoned=total(_ABANDONED),
        dropped=total(_DROPPED),
        pending=total(_PENDING),
        lost=total(_MUST_BE_RECORDED, 0, 0),
        duplicated=total(_ALL, 2),
        unexplained=total(_ALL - _MAY_BE_RECORDED_TWICE, 2),
        contradicted=total(_MUST_NOT_BE_RECORDED, 1),
        wronged=total(_WRONGED),
        misnamed=sum(
            count > 0 and ours != theirs
            for ours, theirs, count in zip(names, report.names, report.counts, strict=False)
        ),
    )
