"""Stores, counts and limits the messages that the broker has handed out and the relay has not settled yet.

::

    source --fetch--> held --track--> open --outcome--> done, dead --settle--> source
                       ^                :
                       :.... retry .....:

A message is in exactly one of these states.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from itertools import islice
from typing import TYPE_CHECKING

from retailrocket_async import Delivered, EventValidationError
from retailrocket_async.relay._disposition import disposition_of
from retailrocket_async.relay._stats import RelayStats

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from retailrocket_async import Outcome, Receipt
    from retailrocket_async.relay._at_most_once import AtMostOnce
    from retailrocket_async.relay._source import Message

_UNCHANGED = 100
"""A quick sweep (see `Window.sweep`) stops after this number of messages in a row that have no outcome."""

_THOROUGH = 0.25
"""Seconds after which `sweep` checks all open messages again."""

_REASON = 500
"""Largest number of characters of a dead letter's reason, which may quote the message and be long."""


class Window:
    """Stores the messages that are handed out and not settled.

    Args:
        messages: largest number of messages.
        size: largest total size of the messages' bodies in bytes; the last fetch may exceed this size.
        once: tells which events must be sent at most once.

    Attributes:
        held: messages that wait to be tracked, or to be returned to the broker.
        open: messages whose events the client is delivering, each with its receipt.
        done: messages that have to be acknowledged.
        dead: messages that have to be stored as dead letters, each with its reason.
    """

    def __init__(self, messages: int, size: int, once: AtMostOnce) -> None:
        self.held: deque[Message] = deque()
        self.open: list[tuple[Message, Receipt]] = []
        self.done: list[Message] = []
        self.dead: list[tuple[Message, str]] = []
        self._max_messages = messages
        self._max_size = size
        self._once = once
        self._size = 0
        # The average size of a message in the last fetch, in bytes.
        self._typical = 1
        self._counts: Counter[str] = Counter()
        self._dead_counts: Counter[str] = Counter()
        self._thorough_at = -math.inf

    @property
    def unsettled(self) -> int:
        """The number of messages that have an outcome and are not settled."""
        return len(self.done) + len(self.dead)

    @property
    def room(self) -> int:
        """The number of messages that may be fetched now, estimated from the average size in the last fetch."""
        count = len(self.open) + self.unsettled
        if not count:
            return min(self._max_messages, max(1, self._max_size // self._typical))
        return min(self._max_messages - count, (self._max_size - self._size) // self._typical)

    def has_room(self, batch: int) -> bool:
        """Return whether there is room for `batch` messages, or for half a window if that is less.

        A fetch of few messages takes as much time as a fetch of many, so the relay fetches only if there is this much
        room.
        """
        most = min(self._max_messages, self._max_size // self._typical)
        return self.room >= max(1, min(batch, most // 2))

    def messages(self) -> list[Message]:
        """Return all messages that were handed out and are not settled, whatever their state."""
        return [*(message for message, _ in self.open), *self.held, *self.done, *(message for message, _ in self.dead)]

    def add(self, messages: Sequence[Message]) -> None:
        """Add messages that the broker handed out.

        A message whose event must be sent at most once becomes a dead letter if the message was handed out before.
        """
        if not messages:
            return
        for message in messages:
            if message.deliveries > 1 and self._once.forbids(message):
                self._add_dead(message, "at_most_once", "at_most_once: handed out before, may have been recorded")
            else:
                self.held.append(message)
        size = _size(messages)
        self._size += size
        self._typical = max(1, size // len(messages))
        self._counts["received"] += len(messages)
        self._counts["fetches"] += 1
        self._counts["redelivered"] += sum(message.deliveries > 1 for message in messages)

    def first_held(self, count: int) -> list[Message]:
        """Return the first `count` messages in `held` without removing them."""
        return list(islice(self.held, count))

    def tracked(self, results: Iterable[Receipt | EventValidationError]) -> None:
        """Move the first messages in `held` to `open` or, if a message is not a valid event, to `dead`.

        Args:
            results: the result of tracking each message, in the order of `held`.
        """
        # The messages are moved one by one, so every message is in exactly one state even if iterating over `results`
        # raises.
        for result in results:
            message = self.held.popleft()
            if isinstance(result, EventValidationError):
                self._add_dead(message, "undecodable", f"undecodable: {result}")
            else:
                self.open.append((message, result))

    def sweep(self, *, thorough: bool = False) -> None:
        """Move the messages in `open` that have an outcome to `done`, to `dead`, or back to `held`.

        Events get their outcomes in about the order of the messages. So after 100 messages in a row without an outcome,
        few later messages have an outcome, and a quick sweep stops there. Checking the whole window for every batch
        would take as much time as the HTTP requests.

        Args:
            thorough: check all open messages. If False (default), the sweep is a quick one, except every `_THOROUGH`
                seconds.
        """
        now = time.monotonic()
        stop_after: float = _UNCHANGED
        if thorough or now >= self._thorough_at:
            stop_after, self._thorough_at = math.inf, now + _THOROUGH
        still: list[tuple[Message, Receipt]] = []
        delivered = maybe_duplicates = 0
        looked_at = unchanged = 0
        for pair in self.open:
            looked_at += 1
            message, receipt = pair
            outcome = receipt.outcome
            if outcome is None:
                still.append(pair)
                unchanged += 1
                if unchanged > stop_after:
                    break
                continue
            unchanged = 0
            if type(outcome) is Delivered:
                self.done.append(message)
                delivered += 1
                maybe_duplicates += outcome.maybe_duplicate or message.deliveries > 1
            else:
                self._dispose(message, outcome, once=receipt.event_name in self._once.names)
        self.open[:looked_at] = still
        self._counts["delivered"] += delivered
        self._counts["maybe_duplicates"] += maybe_duplicates

    def _dispose(self, message: Message, outcome: Outcome, *, once: bool) -> None:
        disposition = disposition_of(outcome, once=once)
        if disposition.kind == "retry":
            self.held.append(message)
        elif disposition.kind == "dead":
            self._add_dead(message, disposition.cause, disposition.reason)
        else:
            self.done.append(message)
            self._counts[disposition.kind] += 1

    def _add_dead(self, message: Message, cause: str, reason: str) -> None:
        self.dead.append((message, " ".join(reason.split())[:_REASON]))
        self._dead_counts[cause] += 1

    def done_settled(self) -> None:
        """Remove the messages in `done`: the broker has confirmed their acknowledgement."""
        self._size -= _size(self.done)
        self.done = []

    def dead_settled(self) -> None:
        """Remove the messages in `dead`: the broker has stored them as dead letters."""
        self._size -= _size(message for message, _ in self.dead)
        self.dead = []

    def first_held_lost(self, messages: Sequence[Message]) -> None:
        """Remove messages from `held` that belong to another relay now; the broker ignores their acknowledgement."""
        lost = set(messages)
        self.done += [message for message in self.held if message in lost]
        self.held = deque(message for message in self.held if message not in lost)
        self._counts["released"] += len(lost)

    def held_released(self) -> None:
        """Remove the messages in `held`: they were returned to the broker."""
        self._counts["released"] += len(self.held)
        self._size -= _size(self.held)
        self.held.clear()

    def stats(self, *, broker_failures: int, connected: bool) -> RelayStats:
        """Return a snapshot of the counters.

        Args:
            broker_failures: calls of the broker that failed.
            connected: whether the broker answers.
        """
        first = (self.open[0][0] if self.open else self.held[0]).published_at if self.open or self.held else None
        return RelayStats(
            **self._counts,
            dead=dict(self._dead_counts),
            in_hand=len(self.open) + len(self.held),
            unsettled=self.unsettled,
            size=self._size,
            oldest_age=0.0 if first is None else max(0.0, time.time() - first),
            broker_failures=broker_failures,
            connected=connected,
        )


def _size(messages: Iterable[Message]) -> int:
    return sum(len(message.body) for message in messages)
