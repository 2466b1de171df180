"""The protocol between the relay and a broker: messages, dead letters, and the methods that every broker offers.

A source hands out messages and keeps them leased while the relay works on them. It removes a message from the broker
only when the relay settles it. A message that was handed out and not settled is handed out again, to this relay or to
another one: delivery is at least once.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import attrs


# Not frozen: that would double the cost of making one, and there is one for every event.
@attrs.define(kw_only=True, eq=False)
class Message:
    """One wire envelope, as the broker holds it. Treat it as frozen.

    Attributes:
        id: the broker's id of the message, as text for people and logs, e.g. ``"1700000000000-0"`` or ``"3:1742"``.
        body: the envelope: UTF-8 JSON of an object with one key, e.g. ``b'{"view":{...}}'``.
        deliveries: how often the broker has handed it out, this time included, 1 or more; 1 if the broker does not
            count.
        published_at: when it was published, in seconds since the epoch; None if the broker does not report it.
        handle: the source's own reference to the message; only the source reads it.
    """

    id: str
    body: bytes = attrs.field(repr=False)
    deliveries: int = 1
    published_at: float | None = None
    handle: Any = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class DeadLetter:
    """A message that will not be delivered, kept with the reason.

    Attributes:
        id: the id of the dead letter in its store.
        message_id: the broker's id of the message.
        body: the message as it was, or its beginning if the broker could not keep all of it.
        reason: why it will not be delivered, in one line, e.g. ``"rejected: HTTP 400"`` or
            ``"undecodable: must be JSON"``; never a secret.
        died_at: when it became a dead letter, in seconds since the epoch.
        size: bytes of the whole message if `body` was shortened; None (default) if `body` is the whole.
        sha256: digest of the whole message in hexadecimal if `body` was shortened; else ``""``, the default.
    """

    id: str
    message_id: str
    body: bytes = attrs.field(repr=False)
    reason: str
    died_at: float
    size: int | None = None
    sha256: str = ""


@attrs.frozen(kw_only=True)
class Lag:
    """How far a relay is behind.

    Attributes:
        waiting: messages that the broker has not handed out yet; None if the broker does not report it.
        pending: messages handed out, to any relay, and not settled; None if the broker does not report it.
    """

    waiting: int | None = None
    pending: int | None = None


@runtime_checkable
class Source(Protocol):
    """A broker as the relay sees it. One task at a time calls its methods, except `extend` and `lag`.

    An exception of a method is a failure of the broker: the relay logs it once, waits, and calls again. A message
    counts as settled only when `settle` has returned.

    Attributes:
        lease: seconds after which a message that was neither settled nor extended may be handed to another relay;
            None if that never happens while this relay is connected.
    """

    lease: float | None

    async def open(self) -> None:
        """Connect, and create what is missing (group, consumer, dead-letter store); called again after a failure."""
        ...

    async def fetch(self, most: int, wait: float) -> Sequence[Message]:
        """Return 1 to `most` messages, oldest first; none after `wait` seconds without any.

        Messages that this relay was handed before a restart come first, and those whose lease has expired. A
        cancellation loses nothing: a message that was handed out and not returned is handed out again.
        """
        ...

    async def settle(self, done: Sequence[Message], dead: Sequence[tuple[Message, str]]) -> None:
        """Acknowledge messages: the broker does not hand them out again.

        Args:
            done: messages that are not needed any more.
            dead: messages, each with the reason, that are kept as dead letters first, or in the same step. So at no
                moment is a message neither in the stream nor among the dead letters.
        """
        ...

    async def extend(self, messages: Sequence[Message]) -> None:
        """Extend the leases of messages that are not settled yet; called every third of `lease`, or every 20 s.

        Also called without messages: a source may have to send the broker a heartbeat while nothing is fetched.
        """
        ...

    async def release(self, messages: Sequence[Message]) -> None:
        """Give messages back, so that any relay may get them soon; called once, at the end. It may do nothing."""
        ...

    async def lag(self) -> Lag:
        """Return how far the relay is behind."""
        ...

    async def aclose(self) -> None:
        """Disconnect; called once."""
        ...


@runtime_checkable
class DeadLetters(Protocol):
    """The dead letters of a source: to list them, publish them again, or remove them."""

    async def list_dead(self, most: int) -> Sequence[DeadLetter]:
        """Return the oldest dead letters, `most` at most."""
        ...

    async def replay_dead(self, most: int) -> int:
        """Publish the oldest dead letters again, each published before it is removed; return how many.

        A letter whose body was shortened is not published: it stays a dead letter.
        """
        ...

    async def purge_dead(self, most: int) -> int:
        """Remove the oldest dead letters for good; return how many."""
        ...
