"""The protocol between the relay and a broker: messages, dead letters, and the methods of a source.

A source hands out messages. While a relay works on a message, the message is leased: no other relay gets the message.
The broker removes a message only after the relay has settled the message. If a message is not settled, the broker hands
out the message again, to the same relay or to another one. So every message is delivered at least once.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import attrs


# The class is not frozen, because to create an instance of a frozen class takes twice the time, and every event needs
# an instance.
@attrs.define(kw_only=True, eq=False)
class Message:
    """A message of a broker. The message contains one event as an envelope. Do not change the attributes.

    Attributes:
        id: the broker's id of the message, as text for people and logs, e.g. ``"1700000000000-0"`` or ``"3:1742"``.
        body: the envelope: UTF-8 JSON of an object with one key, e.g. ``b'{"view":{...}}'``.
        deliveries: how often the broker has handed out the message, this time included; 1 if the broker does not count.
        published_at: when the message was published, in seconds since the epoch; None if the broker does not report
            the time.
        handle: the source's reference to the message; only the source uses it.
    """

    id: str
    body: bytes = attrs.field(repr=False)
    deliveries: int = 1
    published_at: float | None = None
    handle: Any = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class DeadLetter:
    """A message that will not be delivered, stored with the reason.

    Attributes:
        id: the id of the dead letter at the broker.
        message_id: the broker's id of the original message.
        body: the message's body, or the beginning of the body if the whole body was too large for the broker.
        reason: one line that says why the message will not be delivered, e.g. ``"rejected: HTTP 400"`` or
            ``"undecodable: must be JSON"``; contains no secret.
        died_at: when the message became a dead letter, in seconds since the epoch.
        size: bytes of the whole body if `body` was shortened; else None (default).
        sha256: digest of the whole body in hexadecimal if `body` was shortened; else ``""`` (default).
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
    """The numbers of messages that were published and not settled (removed or acknowledged) yet.

    Attributes:
        waiting: number of messages that the broker has not handed out yet; None if the broker does not report this
            number.
        pending: number of messages that were handed out and not settled; None if the broker does not report this
            number.
    """

    waiting: int | None = None
    pending: int | None = None


@runtime_checkable
class Source(Protocol):
    """The methods through which a relay calls a broker.

    The relay calls one method at a time; only `extend` and `lag` may be called while another method is running. If a
    method raises, the relay logs that the broker failed (once per outage), waits, and calls the method again. A message
    counts as settled only after `settle` has returned.

    Attributes:
        lease: seconds after which a message that was neither settled nor extended may be handed to another relay;
            None if no message is handed to another relay while this relay is connected.
    """

    lease: float | None

    async def open(self) -> None:
        """Connect, and create group, consumer and dead-letter store if they are missing.

        Called at the start, and again after each failed call of another method.
        """
        ...

    async def fetch(self, most: int, wait: float) -> Sequence[Message]:
        """Return 1 to `most` messages, oldest first, or an empty sequence if no message arrives within `wait` seconds.

        Messages that were handed to this relay before a restart, and messages whose lease has expired, come first. If
        the call is cancelled, no message is lost: the broker hands out the messages of this call again.
        """
        ...

    async def settle(self, done: Sequence[Message], dead: Sequence[tuple[Message, str]]) -> None:
        """Acknowledge messages, so that the broker does not hand them out again.

        Args:
            done: messages that are not needed any more.
            dead: messages to store as dead letters, each with the reason. The dead letter must be stored before the
                message is acknowledged, or in the same step, so that the message cannot be lost.
        """
        ...

    async def extend(self, messages: Sequence[Message]) -> None:
        """Extend the leases of messages that are not settled yet.

        Called each time a third of `lease` has passed, or every 20 s if `lease` is None. Also called if there are no
        messages, because a source may have to send heartbeats to the broker while the relay fetches nothing.
        """
        ...

    async def release(self, messages: Sequence[Message]) -> None:
        """Return messages to the broker, so that another relay can fetch them soon; called once, during the shutdown.

        The method may do nothing: the broker hands out the messages again when their leases have expired.
        """
        ...

    async def lag(self) -> Lag:
        """Return how many messages are not settled yet."""
        ...

    async def aclose(self) -> None:
        """Disconnect. Called once."""
        ...


@runtime_checkable
class RecordsSending(Protocol):
    """A further method of a source whose broker does not count how often a message was handed out."""

    async def record_sending(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Record that these messages are about to be sent; return those that still belong to this relay.

        The relay calls the method only for events that must be sent at most once, and sends only the messages that
        were returned. If such a message is handed out again after a crash, its `deliveries` must be above 1.
        """
        ...


@runtime_checkable
class DeadLetters(Protocol):
    """Lists a source's dead letters, publishes them again, or removes them."""

    async def list_dead(self, most: int) -> Sequence[DeadLetter]:
        """Return the oldest dead letters, at most `most`."""
        ...

    async def replay_dead(self, most: int) -> int:
        """Publish the oldest dead letters again, at most `most`, then remove them; return the number published.

        A letter whose body was shortened is neither published nor removed.
        """
        ...

    async def purge_dead(self, most: int) -> int:
        """Remove the oldest dead letters, at most `most`; return the number removed."""
        ...
