"""Compares the outcome that the client reported for every event with the events that the server recorded."""

from __future__ import annotations

import enum
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from retailrocket_async import Abandoned, Delivered, Dropped, Rejected

if TYPE_CHECKING:
    from acceptance.support.fault import Report
    from retailrocket_async import Outcome


class Reported(enum.IntEnum):
    """The outcome that the client reported for an event, as one byte, so a million outcomes take a megabyte."""

    NEVER_TRACKED = 0
    PENDING = enum.auto()
    DELIVERED = enum.auto()
    DELIVERED_MAYBE_TWICE = enum.auto()
    REJECTED = enum.auto()
    REJECTED_WRONGLY = enum.auto()
    ABANDONED_UNRECORDED = enum.auto()
    ABANDONED_MAYBE_RECORDED = enum.auto()
    DROPPED = enum.auto()


_ALL = frozenset(Reported)
_DELIVERED = frozenset({Reported.DELIVERED, Reported.DELIVERED_MAYBE_TWICE})
REJECTED = frozenset({Reported.REJECTED, Reported.REJECTED_WRONGLY})
_ABANDONED = frozenset({Reported.ABANDONED_UNRECORDED, Reported.ABANDONED_MAYBE_RECORDED})
_DROPPED = frozenset({Reported.DROPPED})
_PENDING = frozenset({Reported.PENDING})
_WRONGLY_REJECTED = frozenset({Reported.REJECTED_WRONGLY})
_MUST_BE_RECORDED = _DELIVERED | _PENDING
_MUST_NOT_BE_RECORDED = _ALL - _MUST_BE_RECORDED - {Reported.ABANDONED_MAYBE_RECORDED}
_MAY_BE_RECORDED_TWICE = frozenset({Reported.DELIVERED_MAYBE_TWICE, Reported.ABANDONED_MAYBE_RECORDED})


def reported(outcome: Outcome | None, *, bad: bool = False) -> Reported:
    """Return the byte of an outcome; if `bad` is True, the server has a reason to refuse the event for its content."""
    match outcome:
        case None:
            return Reported.PENDING
        case Delivered():
            return Reported.DELIVERED_MAYBE_TWICE if outcome.maybe_duplicate else Reported.DELIVERED
        case Rejected(status=400 | 413, isolated=True) if not bad:
            # A 400 or 413 with `isolated` means: the server calls the content of this event wrong. The content is right
            # (`not bad`), so the rejection is a mistake. Other refusals, for example of the key, say nothing about it.
            return Reported.REJECTED_WRONGLY
        case Rejected():
            return Reported.REJECTED
        case Abandoned():
            return Reported.ABANDONED_MAYBE_RECORDED if outcome.maybe_recorded else Reported.ABANDONED_UNRECORDED
        case Dropped():
            return Reported.DROPPED
        case _:
            raise ValueError(f"{outcome!r} needs a spool, which these runs do not have")


class Reconciliation(NamedTuple):
    """The result of the comparison, in numbers of events.

    Attributes:
        tracked: accepted by the client.
        recorded: recorded by the server at least once.
        delivered, rejected, abandoned, dropped, pending: by the outcome that the client reported.
        lost: reported as delivered or pending, and not recorded.
        duplicated: recorded more than once.
        unannounced: recorded more than once, although the reported outcome says that this did not happen.
        contradicted: recorded, although the reported outcome says that the event was not recorded.
        wrongly_rejected: reported as refused for their content, which was good.
        misnamed: recorded under another event name than the tracked one.
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
    unannounced: int
    contradicted: int
    wrongly_rejected: int
    misnamed: int

    def violations(self) -> list[str]:
        """Return a sentence for each promise that these numbers break."""
        broken = {
            "without an outcome": self.pending,
            "lost": self.lost,
            "duplicated, and reported as recorded once": self.unannounced,
            "recorded, and reported as not recorded": self.contradicted,
            "rejected for their content, which was good": self.wrongly_rejected,
            "recorded under another name": self.misnamed,
        }
        return [f"{count} {what}" for what, count in broken.items() if count]


def reconcile(outcomes: bytes, names: bytes, report: Report) -> Reconciliation:
    """Compare the reported outcomes with the server's report.

    Args:
        outcomes: byte n is the `Reported` code of event number n.
        names: byte n is the position in `NAMES` of the name of event number n.
        report: what the server recorded.
    """
    size = max(len(outcomes), len(report.counts))
    outcomes = outcomes.ljust(size, b"\0")
    counts = report.counts.ljust(size, b"\0")
    pairs = Counter(zip(outcomes, counts, strict=True))

    def total(which: frozenset[Reported], least: int = 0, most: int = 255) -> int:
        return sum(events for (code, count), events in pairs.items() if code in which and least <= count <= most)

    return Reconciliation(
        tracked=total(_ALL - {Reported.NEVER_TRACKED}),
        recorded=total(_ALL, 1),
        delivered=total(_DELIVERED),
        rejected=total(REJECTED),
        abandoned=total(_ABANDONED),
        dropped=total(_DROPPED),
        pending=total(_PENDING),
        lost=total(_MUST_BE_RECORDED, 0, 0),
        duplicated=total(_ALL, 2),
        unannounced=total(_ALL - _MAY_BE_RECORDED_TWICE, 2),
        contradicted=total(_MUST_NOT_BE_RECORDED, 1),
        wrongly_rejected=total(_WRONGLY_REJECTED),
        misnamed=sum(
            count > 0 and tracked != recorded
            for tracked, recorded, count in zip(names, report.names, report.counts, strict=False)
        ),
    )
