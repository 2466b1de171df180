"""The counters of a relay."""

from collections.abc import Mapping

import attrs


@attrs.frozen(kw_only=True)
class RelayStats:
    """A snapshot of a relay's counters.

    It is always true that ``received == delivered + filtered + sum(dead.values()) + released + in_hand``.

    Attributes:
        received: messages that the broker handed out.
        fetches: fetches that returned messages.
        redelivered: messages among `received` that had been handed out before, to this relay or to another relay.
        delivered: messages whose events the API accepted.
        filtered: messages that were not sent, because the client's `before_send` dropped the event.
        dead: messages that became dead letters, by the first word of the reason, e.g. ``{"undecodable": 2}``.
        released: messages that were returned to the broker during the shutdown.
        maybe_duplicates: messages among `delivered` that the API may have recorded before: the message had been handed
            out before, or the event was sent twice because an answer was lost.
        in_hand: messages that were handed out and have no outcome yet.
        unsettled: messages that have an outcome and are not settled yet.
        size: bytes of the messages that are in hand or unsettled.
        oldest_age: seconds since the oldest message in hand was published; 0 if no message is in hand, or if the
            broker does not report the time.
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
