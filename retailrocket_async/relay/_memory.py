"""A broker in the memory of the process: for tests, and for trying a relay without a server."""

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
    """A message in the stream, and who has it.

    Attributes:
        owner: the name of the source that was handed it last.
        until: when its lease ends, on the event loop's clock.
    """

    id: str
    body: bytes
    published_at: float
    owner: str = ""
    until: float = -math.inf
    deliveries: int = 0


@attrs.define(eq=False)
class _Shelf:
    """What a stream holds.

    Attributes:
        waiting: messages that nobody has been handed yet.
        pending: those handed out and not settled, by id, oldest first.
        dead: dead letters, oldest first.
        sleepers: set where something may be there for who waits.
    """

    waiting: deque[_Entry] = attrs.field(factory=deque[_Entry])
    pending: dict[str, _Entry] = attrs.field(factory=dict[str, _Entry])
    dead: deque[DeadLetter] = attrs.field(factory=deque[DeadLetter])
    sleepers: set[asyncio.Event] = attrs.field(factory=set[asyncio.Event])

    def wake(self) -> None:
        for sleeper in self.sleepers:
            sleeper.set()


class MemoryStream(Uncopyable):
    """A stream of messages with dead letters, which any number of `MemorySource` of one event loop share."""

    _instead = "its messages are in the memory of one process"

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._shelf = _Shelf()

    async def publish(self, envelopes: Sequence[bytes]) -> None:
        """Publish envelopes in order."""
        for envelope in envelopes:
            self._shelf.waiting.append(_Entry(f"{next(self._numbers)}", bytes(envelope), time.time()))
        self._shelf.wake()


class MemorySource(Uncopyable):
    """A relay's view of a `MemoryStream`.

    Args:
        stream: where the messages are.
        name: what the stream knows this relay by; two that run at once must have different names.
        lease: seconds after which a message that was neither settled nor extended may be handed to another; default 60.

    Raises:
        ConfigurationError: a value out of range.
    """

    _instead = "its messages are in the memory of one process"

    def __init__(self, stream: MemoryStream, *, name: str = "relay", lease: float = 60.0) -> None:
        if not isinstance(lease, int | float) or not 0 < lease < math.inf:
            raise ConfigurationError(f"lease must be a number of seconds above 0, not {lease!r}")
        self.lease: float | None = float(lease)
        self._seconds = float(lease)
        self._stream = stream
        self._shelf = stream._shelf  # noqa: SLF001 - one thing in two classes
        self._name = name
        # What this relay holds; whatever else is pending in its name is from an earlier life.
        self._out: set[str] = set()

    async def open(self) -> None:
        """Nothing to connect to."""

    async def fetch(self, most: int, wait: float) -> Sequence[Message]:
        """Return 1 to `most` messages, oldest first; none after `wait` seconds without any."""
        clock = asyncio.get_running_loop().time
        end = clock() + wait
        arrived = asyncio.Event()
        self._shelf.sleepers.add(arrived)
        try:
            while not (found := self._take(most, clock())) and clock() < end:
                arrived.clear()
                ends = min((entry.until for entry in self._foreign()), default=math.inf)
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(min(end, ends)):
                        await arrived.wait()
        finally:
            self._shelf.sleepers.discard(arrived)
        return found

    async def settle(self, done: Sequence[Message], dead: Sequence[tuple[Message, str]]) -> None:
        """Take messages back for good; the dead are kept as dead letters."""
        pending = self._shelf.pending
        for message in done:
            self._out.discard(message.id)
            pending.pop(message.id, None)
        for message, reason in dead:
            self._out.discard(message.id)
            # Settled before, by this relay or by one that took it over: kept once.
            if pending.pop(message.id, None) is not None:
                self._shelf.dead.append(
                    DeadLetter(
                        id=message.id, message_id=message.id, body=message.body, reason=reason, died_at=time.time()
                    )
                )

    async def extend(self, messages: Sequence[Message]) -> None:
        """Renew the lease on what this relay still has."""
        until = asyncio.get_running_loop().time() + self._seconds
        for message in messages:
            entry = self._shelf.pending.get(message.id)
            if entry is not None and entry.owner == self._name:
                entry.until = until

    async def release(self, messages: Sequence[Message]) -> None:
        """Let anybody have them, at once."""
        for message in messages:
            self._out.discard(message.id)
            entry = self._shelf.pending.get(message.id)
            if entry is not None and entry.owner == self._name:
                entry.owner, entry.until = "", -math.inf
        self._shelf.wake()

    async def lag(self) -> Lag:
        """Return how far the relay is behind."""
        return Lag(waiting=len(self._shelf.waiting), pending=len(self._shelf.pending))

    async def aclose(self) -> None:
        """Forget what this relay holds; it stays leased in its name."""
        self._out.clear()

    async def list_dead(self, most: int) -> Sequence[DeadLetter]:
        """Return the oldest dead letters, `most` at most."""
        return list(itertools.islice(self._shelf.dead, most))

    async def replay_dead(self, most: int) -> int:
        """Publish the oldest dead letters again; return how many."""
        letters = await self.list_dead(most)
        await self._stream.publish([letter.body for letter in letters])
        return await self.purge_dead(len(letters))

    async def purge_dead(self, most: int) -> int:
        """Remove the oldest dead letters for good; return how many."""
        count = min(most, len(self._shelf.dead))
        for _ in range(count):
            self._shelf.dead.popleft()
        return count

    def _foreign(self) -> list[_Entry]:
        """Return what is pending and not held by this relay."""
        return [entry for entry in self._shelf.pending.values() if entry.id not in self._out]

    def _take(self, most: int, now: float) -> list[Message]:
        shelf = self._shelf
        left = [entry for entry in self._foreign() if entry.owner == self._name or entry.until <= now][:most]
        while len(left) < most and shelf.waiting:
            entry = shelf.waiting.popleft()
            shelf.pending[entry.id] = entry
            left.append(entry)
        for entry in left:
            entry.owner, entry.until = self._name, now + self._seconds
            entry.deliveries += 1
            self._out.add(entry.id)
        return [
            Message(id=entry.id, body=entry.body, deliveries=entry.deliveries, published_at=entry.published_at)
            for entry in left
        ]
