"""Conditions that tests of a relay wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retailrocket_async.relay import Relay


def all_settled(relay: Relay, count: int) -> bool:
    """Return whether a relay has received at least `count` messages, and the broker has confirmed settling all of them.

    `unsettled` alone is also 0 before a message arrives, and while a message has no outcome yet.
    """
    stats = relay.stats()
    return stats.received >= count and not stats.in_hand and not stats.unsettled
