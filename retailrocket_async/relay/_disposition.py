"""What the relay does with a message, given the outcome of its event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from retailrocket_async import Abandoned, Delivered, Dropped, Kept, Rejected

if TYPE_CHECKING:
    from retailrocket_async import Outcome

Kind: TypeAlias = Literal["delivered", "filtered", "dead", "retry"]


class Disposition(NamedTuple):
    """What the relay does with a message.

    Attributes:
        kind: ``"delivered"``: acknowledge it. ``"filtered"``: acknowledge it, as `before_send` dropped the event.
            ``"dead"``: keep it as a dead letter, as no attempt will succeed. ``"retry"``: track it again, or give it
            back to the broker at the end, as nothing is wrong with it.
        cause: of a dead letter, the first word of `reason`, for counting.
        reason: of a dead letter, why, in one line.
    """

    kind: Kind
    cause: str = ""
    reason: str = ""


def disposition_of(outcome: Outcome) -> Disposition:  # noqa: PLR0911 - a table
    """Return what the relay does with a message whose event had this outcome."""
    match outcome:
        case Delivered():
            return Disposition("delivered")
        case Rejected(scope="access"):
            # The API refused the key, the shop or the address, so it would refuse any other event as well.
            return Disposition("retry")
        case Rejected(status=status):
            return Disposition("dead", "rejected", f"rejected: HTTP {status}")
        case Dropped(reason="before_send"):
            return Disposition("filtered")
        case Dropped(reason="expired"):
            return Disposition("dead", "expired", "expired: older than Buffer.max_age")
        case Abandoned(reason=("closed" | "cancelled" | "halted")) | Dropped() | Kept():
            return Disposition("retry")
        case Abandoned(reason=cause):
            last = f"HTTP {outcome.status}" if outcome.status is not None else outcome.failure or "no attempt"
            recorded = ", may have been recorded" if outcome.maybe_recorded else ""
            return Disposition("dead", cause, f"{cause}: {last}{recorded}")
