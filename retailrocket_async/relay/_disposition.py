"""Decides what the relay does with a message after the message's event has got an outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from retailrocket_async import Abandoned, Delivered, Dropped, Kept, Rejected

if TYPE_CHECKING:
    from retailrocket_async import Outcome

Kind: TypeAlias = Literal["delivered", "filtered", "dead", "retry"]


class Disposition(NamedTuple):
    """Says what the relay does with a message.

    Attributes:
        kind: ``"delivered"``: acknowledge the message. ``"filtered"``: acknowledge the message, because `before_send`
            dropped its event. ``"dead"``: store the message as a dead letter, because no attempt will succeed.
            ``"retry"``: nothing is wrong with the event, so track the event again, or return the message to the broker
            if the relay is stopping.
        cause: the first word of `reason`, under which dead letters are counted; ``""`` unless `kind` is ``"dead"``.
        reason: one line that says why the message is a dead letter; ``""`` unless `kind` is ``"dead"``.
    """

    kind: Kind
    cause: str = ""
    reason: str = ""


def disposition_of(outcome: Outcome, *, once: bool = False) -> Disposition:  # noqa: PLR0911 - a table
    """Return what the relay does with a message whose event had this outcome.

    Args:
        outcome: the outcome.
        once: whether the event must be sent at most once (`RetryPolicy.at_most_once`); default False.
    """
    match outcome:
        case Abandoned(reason=("closed" | "cancelled" | "halted") as cause, maybe_recorded=True) if once:
            # A message that is retried may be sent again, by this relay or by another one.
            return Disposition("dead", "at_most_once", f"at_most_once: {cause}, may have been recorded")
        case Kept(maybe_recorded=True) if once:
            return Disposition("dead", "at_most_once", "at_most_once: kept in the spool, may have been recorded")
        case Delivered():
            return Disposition("delivered")
        case Rejected(scope="access"):
            # The API refused the key, the shop or the address. The API would refuse every other event, too, so nothing
            # is wrong with this event.
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
