"""The counters of a relay."""

from collections.abc import Mapping

import attrs


@attrs.frozen(kw_only=True)
class RelayStats:
    """A snapshot of a relay's counters; all count messages unless they say otherwise.

    The counts add up: ``received == delivered + filtered + sum(dead.values()) + released + in_hand``.

    Attributes:
        received: handed out by the broker.
        fetches: fetches that returned messages.
        redelivered: of `received`, those that were handed out before, to this relay or to another.
        delivered: accepted by the API.
        filtered: not sent, as the client's `before_send` dropped the event.
        dead: those that become dead letters, by the reason's first word, e.g. ``{"undecodable": 2}``.
        released: given back to the broker at the end.
        maybe_duplicates: of `delivered`, those that the API may have recorded before: they were handed out before, or
            sent twice as an answer was lost.
        in_hand: handed out, and without an outcome yet.
        unsettled: with an outcome, and not yet settled.
        size: bytes of the messages in hand or unsettled.
        oldest_age: seconds since the oldest message in hand was published; 0 if there is none, or if the broker does
            not report the time.
        broker_failures: calls of the broker that failed.
        connected: whether the broker answers.
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
