"""Where a relay's messages come from: what every broker must offer, and no more.

A source hands out messages, keeps them leased while they are worked on, and takes them back for good only together
with what became of them. Whatever it has handed out and not got back is handed out again, to this relay or another:
delivery is at least once.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import attrs


# Not frozen, as that doubles what one costs, and there is one for every event.
@attrs.define(kw_only=True, eq=False)
class Message:
    """One wire envelope, as the broker holds it. Nobody changes one.

    Attributes:
        id: what the broker calls it, as text for people and logs, e.g. ``"1700000000000-0"`` or ``"3:1742"``.
        body: the envelope: UTF-8 JSON of an object with one key, e.g. ``b'{"view":{...}}'``.
        deliveries: how often the broker has handed it out, this time included, 1 or more; 1 where it does not count.
        published_at: when it was published, in seconds since the epoch; None where the broker does not tell.
        handle: what the source needs to find it again; nobody else's business.
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
        id: what the dead-letter store calls it.
        message_id: what the broker called the message.
        body: the message as it was, or its beginning if the broker could not keep all of it.
        reason: why, in one line, e.g. ``"rejected: HTTP 400"`` or ``"undecodable: must be JSON"``; never a secret.
        died_at: when, in seconds since the epoch.
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
        waiting: messages that nobody has been handed yet; None where the broker does not tell.
        pending: messages handed out, to whichever relay, and not settled; None where the broker does not tell.
    """

    waiting: int | None = None
    pending: int | None = None


@runtime_checkable
class Source(Protocol):
    """A broker as the relay sees it. Methods are called from one task at a time, but for `extend` and `lag`.

    What a method raises is a failure of the broker: the relay logs it once, waits, and calls again; nothing that was
    fetched counts as settled until `settle` has returned.

    Attributes:
        lease: seconds after which a message that was neither settled nor extended may be handed to another relay;
            None where it never is while this one is connected.
    """

    lease: float | None

    async def open(self) -> None:
        """Connect, and create what is missing (group, consumer, dead-letter store); called again after a failure."""
        ...

    async def fetch(self, most: int, wait: float) -> Sequence[Message]:
        """Return 1 to `most` messages, oldest first; none after `wait` seconds without any.

        What this relay was handed in an earlier life, or another one has let its lease run out on, comes first.
        Cancelling it loses nothing: what was handed out and not returned is handed out again.
        """
        ...

    async def settle(self, done: Sequence[Message], dead: Sequence[tuple[Message, str]]) -> None:
        """Take messages back for good.

        `dead` are kept as dead letters, each with its reason, and only then, or in the same step, acknowledged: at no
        moment is a message in neither place.
        """
        ...

    async def extend(self, messages: Sequence[Message]) -> None:
        """Renew the lease on everything that is still being worked on; called every third of `lease`, or every 20 s.

        Also called with no messages: a source may have to show the broker that it is alive while nothing is fetched.
        """
        ...

    async def release(self, messages: Sequence[Message]) -> None:
        """Give back what will not be worked on, for anybody, soon; called once, at the end, and may do nothing."""
        ...

    async def lag(self) -> Lag:
        """Return how far the relay is behind."""
        ...

    async def aclose(self) -> None:
        """Disconnect; called once."""
        ...


@runtime_checkable
class DeadLetters(Protocol):
    """The dead letters of a source, for people who look into what went wrong."""

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
