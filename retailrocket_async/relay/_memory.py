"""A broker in the process's memory, for tests and for trying a relay without a server."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs

from retailrocket_async import ConfigurationError
from retailrocket_async._runtime.uncopyable import Uncopyable
from retailrocket_async.relay._source import DeadLetter, Lag, Message

if TYPE_CHECKING:
    from collections.abc import Sequence


@attrs.define(eq=False)
class _Entry:
    """A message in the stream, and the message's lease.

    Attributes:
        id: the number of the message in the stream, as text.
        body: the envelope.
        published_at: when the message was published, in seconds since the epoch.
        owner: the name of the source that last handed out the message; ``""`` if the message was never handed out, or
            was released.
        until: when the lease ends, in seconds on the event loop's clock.
        deliveries: how often the message was handed out.
    """

    id: str
    body: bytes
    published_at: float
    owner: str = ""
    until: float = -math.inf
    deliveries: int = 0


@attrs.define(eq=False)
class _Store:
    """The contents of a stream.

    Attributes:
        waiting: messages that were not handed out yet, oldest first.
        pending: messages that were handed out and not settled, by id, oldest first.
        dead: dead letters, oldest first.
        waiters: one `asyncio.Event` per waiting fetch; set when a message may be available.
    """

    waiting: deque[_Entry] = attrs.field(factory=deque[_Entry])
    pending: dict[str, _Entry] = attrs.field(factory=dict[str, _Entry])
    dead: deque[DeadLetter] = attrs.field(factory=deque[DeadLetter])
    waiters: set[asyncio.Event] = attrs.field(factory=set[asyncio.Event])

    def wake(self) -> None:
        for waiter in self.waiters:
            waiter.set()


class MemoryStream(Uncopyable):
    """A stream of messages and dead letters. Any number of `MemorySource` in one event loop can read the stream."""

    _instead = "its messages are in the memory of one process"

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._store = _Store()

    async def publish(self, envelopes: Sequence[bytes]) -> None:
        """Publish envelopes in order."""
        for envelope in envelopes:
            self._store.waiting.append(_Entry(f"{next(self._numbers)}", bytes(envelope), time.time()))
        self._store.wake()


class MemorySource(Uncopyable):
    """Reads messages from a `MemoryStream` for one relay.

    Args:
        stream: the stream to read.
        name: the relay's name; two relays that run at the same time must have different names.
        lease: seconds after which a message that was neither settled nor extended may be handed to another relay;
            default 60.

    Raises:
        ConfigurationError: a value is out of range.
    """

    _instead = "its messages are in the memory of one process"

    def __init__(self, stream: MemoryStream, *, name: str = "relay", lease: float = 60.0) -> None:
        if not isinstance(lease, int | float) or not 0 < lease < math.inf:
            raise ConfigurationError(f"lease must be a number of seconds above 0, not {lease!r}")
        self.lease: float | None = float(lease)
        self._seconds = float(lease)
        self._stream = stream
        self._store = stream._store  # noqa: SLF001 - the two classes share it
        self._name = name
        # The ids of the messages that this source handed out. All other pending messages with this source's name as
        # owner were handed out before the relay was restarted.
        self._out: set[str] = set()

    async def open(self) -> None:
        """Do nothing: there is no connection."""

    async def fetch(self, most: int, wait: float) -> Sequence[Message]:
        """Return 1 to `most` messages, oldest first, or an empty list if no message arrives within `wait` seconds."""
        clock = asyncio.get_running_loop().time
        end = clock() + wait
        arrived = asyncio.Event()
        self._store.waiters.add(arrived)
        try:
            while not (found := self._take(most, clock())) and clock() < end:
                arrived.clear()
                ends = min((entry.until for entry in self._foreign()), default=math.inf)
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(min(end, ends)):
                        await arrived.wait()
        finally:
            self._store.waiters.discard(arrived)
        return found

    async def settle(self, done: Sequence[Message], dead: Sequence[tuple[Message, str]]) -> None:
        """Remove messages from the stream; store those in `dead` as dead letters."""
        pending = self._store.pending
        for message in done:
            self._out.discard(message.id)
            pending.pop(message.id, None)
        for message, reason in dead:
            self._out.discard(message.id)
            # A message that is not pending any more was settled earlier, so the dead letter exists already.
            if pending.pop(message.id, None) is not None:
                self._store.dead.append(
                    DeadLetter(
                        id=message.id, message_id=message.id, body=message.body, reason=reason, died_at=time.time()
                    )
                )

    async def extend(self, messages: Sequence[Message]) -> None:
        """Extend the leases of messages; skip messages that another relay has taken over."""
        until = asyncio.get_running_loop().time() + self._seconds
        for message in messages:
            entry = self._store.pending.get(message.id)
            if entry is not None and entry.owner == self._name:
                entry.until = until

    async def release(self, messages: Sequence[Message]) -> None:
        """End the leases of messages, so that any relay can fetch the messages at once."""
        for message in messages:
            self._out.discard(message.id)
            entry = self._store.pending.get(message.id)
            if entry is not None and entry.owner == self._name:
                entry.owner, entry.until = "", -math.inf
        self._store.wake()

    async def lag(self) -> Lag:
        """Return how many messages wait to be handed out, and how many were handed out and not settled."""
        return Lag(waiting=len(self._store.waiting), pending=len(self._store.pending))

    async def aclose(self) -> None:
        """Forget which messages were handed out. The messages' leases do not end early."""
        self._out.clear()

    async def list_dead(self, most: int) -> Sequence[DeadLetter]:
        """Return the oldest dead letters, at most `most`."""
        return list(itertools.islice(self._store.dead, most))

    async def replay_dead(self, most: int) -> int:
        """Publish the oldest dead letters again, at most `most`, then remove them; return the number published."""
        letters = await self.list_dead(most)
        await self._stream.publish([letter.body for letter in letters])
        return await self.purge_dead(len(letters))

    async def purge_dead(self, most: int) -> int:
        """Remove the oldest dead letters, at most `most`; return the number removed."""
        count = min(most, len(self._store.dead))
        for _ in range(count):
            self._store.dead.popleft()
        return count

    def _foreign(self) -> list[_Entry]:
        """Return the pending messages that were handed out by other sources, or by this source before a restart."""
        return [entry for entry in self._store.pending.values() if entry.id not in self._out]

    def _take(self, most: int, now: float) -> list[Message]:
        store = self._store
        left = [entry for entry in self._foreign() if entry.owner == self._name or entry.until <= now][:most]
        while len(left) < most and store.waiting:
            entry = store.waiting.popleft()
            store.pending[entry.id] = entry
            left.append(entry)
        for entry in left:
            entry.owner, entry.until = self._name, now + self._seconds
            entry.deliveries += 1
            self._out.add(entry.id)
        return [
            Message(id=entry.id, body=entry.body, deliveries=entry.deliveries, published_at=entry.published_at)
            for entry in left
        ]
