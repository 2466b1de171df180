"""What a relay tells of itself."""

from collections.abc import Mapping

import attrs


@attrs.frozen(kw_only=True)
class RelayStats:
    """A snapshot of a relay's counters; all count messages unless they say otherwise.

    The counts add up: ``received == delivered + filtered + sum(dead.values()) + released + in_hand``.

    Attributes:
        received: handed out by the broker.
        fetches: times that the broker handed out any.
        redelivered: of `received`, handed out before, to this relay or to another.
        delivered: accepted by the API.
        filtered: not sent, as the client's `before_send` wants it.
        dead: those that become dead letters, by the reason's first word, e.g. ``{"undecodable": 2}``.
        released: given back to the broker at the end.
        maybe_duplicates: delivered, and perhaps not for the first time: handed out before, or sent twice as an answer
            was lost.
        in_hand: handed out, and without an outcome yet.
        unsettled: with an outcome that the broker has not confirmed yet.
        size: bytes of those two.
        oldest_age: seconds since the oldest of those in hand was published; 0 where there is none, or the broker does
            not tell.
        broker_failures: calls of the broker that failed.
        connected: whether the broker is there.
    """

    received: int = 0
    fetches: int = 0
    redelivered: int = 0
    delivered: int = 0
    filtered: int = 0
    dead: Mapping[str, int] = attrs.field(factory=dict[str, int])
    released: int = 0
    maybe_duplicates: int = 0
    in_hand: int = 0
    unsettled: int = 0
    size: int = 0
    oldest_age: float = 0.0
    broker_failures: int = 0
    connected: bool = False
