"""What becomes of a message, by the outcome of its event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from retailrocket_async import Abandoned, Delivered, Dropped, Kept, Rejected

if TYPE_CHECKING:
    from retailrocket_async import Outcome

Kind: TypeAlias = Literal["delivered", "filtered", "dead", "back"]


class Disposition(NamedTuple):
    """What becomes of a message.

    Attributes:
        kind: ``"delivered"``, ``"filtered"`` (`before_send` does not want it sent), ``"dead"`` (no delivery will
            succeed), or ``"back"`` (nothing is wrong with it: it is tried again, or stays in the broker).
        why: of the dead, in one word, for counting.
        reason: the same in one line, for the dead letter.
    """

    kind: Kind
    why: str = ""
    reason: str = ""


def disposition_of(outcome: Outcome) -> Disposition:  # noqa: PLR0911 - a table
    """Return what becomes of the message whose event had this outcome."""
    match outcome:
        case Delivered():
            return Disposition("delivered")
        case Rejected(scope="access"):
            # Nothing is wrong with this event: the API would have refused any other as well.
            return Disposition("back")
        case Rejected(status=status):
            return Disposition("dead", "rejected", f"rejected: HTTP {status}")
        case Dropped(reason="before_send"):
            return Disposition("filtered")
        case Dropped(reason="expired"):
            return Disposition("dead", "expired", "expired: older than Buffer.max_age")
        case Abandoned(reason=("closed" | "cancelled" | "halted")) | Dropped() | Kept():
            return Disposition("back")
        case Abandoned(reason=why):
            told = f"HTTP {outcome.status}" if outcome.status is not None else outcome.failure or "no attempt"
            known = ", may have been recorded" if outcome.maybe_recorded else ""
            return Disposition("dead", why, f"{why}: {told}{known}")
