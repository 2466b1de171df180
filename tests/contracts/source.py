"""Tests that every source must pass; the test class of each broker inherits them, and runs them on the real broker.

::

    @pytest.mark.needs_server("redis-server")
    class TestRedisStreamSource(SourceContract):
        async def make(self, name="relay-1", lease=None): ...
        async def publish(self, bodies): ...

`self.source(...)` returns an open source, which is closed at the end of the test.
"""

from __future__ import annotations

import abc
import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async.relay import DeadLetters, Message, Source

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

BODIES = [
    b'{"view":{"sessionExternalId":"a1","productId":1}}',
    '{"search":{"sessionExternalId":"a2","searchPhrase":"чайник"}}'.encode(),
    b"not JSON at all",
    b"\xff\xfe\x00 no text either",
]


def numbered(count: int, first: int = 0) -> list[bytes]:
    """Return `count` envelopes with the numbers `first`, `first` + 1, and so on."""
    return [b'{"view":{"sessionExternalId":"a","productId":%d}}' % number for number in range(first, first + count)]


def bodies_of(messages: Sequence[Message]) -> list[bytes]:
    """Return the messages' bodies."""
    return [message.body for message in messages]


class SourceContract(abc.ABC):
    """Tests that a source must pass. A subclass sets the attributes if its broker guarantees less than others do."""

    lease: float | None = 1.0
    """The lease in seconds; None if a relay keeps its messages as long as the relay is connected."""

    patience: float = 20.0
    """Seconds after which a waiting test fails: more than the broker's own time-outs on a slow machine."""

    settles_each: bool = True
    """Whether single messages can be settled; False if only all messages below an offset can be settled (Kafka)."""

    keeps_dead_once: bool = True
    """Whether a message that is settled as dead twice, as after a lost answer, becomes only one dead letter."""

    @abc.abstractmethod
    async def make(self, name: str = "relay-1", lease: float | None = None) -> Any:
        """Return a new source of this test's stream and group; the source is not open.

        Args:
            name: the relay's name. Two sources with the same name are one relay before and after a restart.
            lease: the lease in seconds; None for `self.lease`.
        """

    @abc.abstractmethod
    async def publish(self, bodies: Sequence[bytes]) -> None:
        """Publish messages to this test's stream, in order."""

    async def crash(self, source: Any) -> None:
        """Close a source as if its process were killed: its messages are neither settled nor released."""
        await source.aclose()
        self._sources.remove(source)

    # --- helpers ---

    @pytest.fixture(autouse=True)
    async def _close_sources(self) -> AsyncIterator[None]:
        self._sources: list[Any] = []
        yield
        for source in self._sources:
            await source.aclose()

    async def source(self, name: str = "relay-1", lease: float | None = None) -> Any:
        """Return an open source, which is closed at the end of the test."""
        source = await self.make(name, lease if lease is not None else self.lease)
        self._sources.append(source)
        await source.open()
        return source

    async def collect(self, source: Any, count: int, most: int = 500) -> list[Message]:
        """Fetch until `count` messages have arrived, at most `most` in one fetch; return the messages."""
        found: list[Message] = []
        async with asyncio.timeout(self.patience):
            while len(found) < count:
                found += await source.fetch(min(most, count - len(found)), 0.2)
        return found

    async def all_of(self, source: Any, bodies: Sequence[bytes]) -> list[Message]:
        """Fetch until each of `bodies` has arrived at least once; return the messages."""
        found: list[Message] = []
        async with asyncio.timeout(self.patience):
            while set(bodies_of(found)) < set(bodies):
                found += await source.fetch(500, 0.2)
        return found

    async def nothing_left(self, source: Any, seconds: float = 0.3) -> None:
        """Check that a fetch that waits for `seconds` returns no message."""
        assert list(await source.fetch(500, seconds)) == []

    # --- fetching ---

    async def test_is_a_source(self) -> None:
        """The source has the methods of `Source` and of `DeadLetters`, and the lease that it was made with."""
        source = await self.source()
        assert isinstance(source, Source)
        assert isinstance(source, DeadLetters)
        assert source.lease == self.lease

    async def test_hands_out_what_was_there_before(self) -> None:
        """If messages are published before the first relay starts, the relay gets them unchanged and in order."""
        await self.publish(BODIES)
        found = await self.collect(await self.source(), len(BODIES))

        assert bodies_of(found) == BODIES
        assert len({message.id for message in found}) == len(BODIES)
        assert all(type(message.id) is str and message.id for message in found)
        assert all(message.deliveries >= 1 for message in found)

    async def test_tells_when_it_was_published(self) -> None:
        """If the broker reports when a message was published, this is the time on the real clock."""
        before = time.time()
        await self.publish(numbered(1))
        [message] = await self.collect(await self.source(), 1)

        assert message.published_at is None or before - 2.0 <= message.published_at <= time.time() + 2.0

    async def test_never_more_than_asked_for(self) -> None:
        """No fetch returns more than `most` messages, and all fetches together return all messages in order."""
        await self.publish(numbered(50))
        source = await self.source()
        found: list[Message] = []
        async with asyncio.timeout(self.patience):
            while len(found) < 50:
                some = await source.fetch(7, 0.5)
                assert len(some) <= 7
                found += some

        assert bodies_of(found) == numbered(50)

    async def test_waits_in_vain(self) -> None:
        """If there are no messages, a fetch returns an empty list after its wait."""
        source = await self.source()
        async with asyncio.timeout(self.patience):
            assert list(await source.fetch(10, 0.0)) == []
            assert list(await source.fetch(10, 0.2)) == []

    async def test_is_woken(self) -> None:
        """If a message is published while a fetch waits, the fetch returns the message at once."""
        source = await self.source()
        fetch = asyncio.create_task(source.fetch(10, 10 * self.patience))
        await asyncio.sleep(0.1)
        await self.publish(numbered(1))
        async with asyncio.timeout(self.patience):
            assert bodies_of(await fetch) == numbered(1)

    async def test_many_in_order(self) -> None:
        """If thousands of messages are published, each is handed out once, in order."""
        await self.publish(numbered(3000))
        source = await self.source()
        found: list[Message] = []
        async with asyncio.timeout(self.patience):
            while len(found) < 3000:
                some = await source.fetch(500, 0.5)
                await source.settle(some, [])
                found += some

        assert bodies_of(found) == numbered(3000)

    async def test_large_message(self) -> None:
        """If a message has half a MiB, it is handed out unchanged."""
        body = b'{"search":{"sessionExternalId":"a","searchPhrase":"%b"}}' % (b"x" * 500_000)
        await self.publish([body])
        [message] = await self.collect(await self.source(), 1)

        assert message.body == body

    async def test_cancelled_fetch_loses_nothing(self) -> None:
        """If fetches are cancelled at any moment, all messages are still handed out, even without a restart."""
        source = await self.source()
        found: list[Message] = []
        for round_ in range(20):
            fetch = asyncio.create_task(source.fetch(10, 1.0))
            for _ in range(round_):
                await asyncio.sleep(0)
            await self.publish(numbered(1, first=round_))
            for _ in range(round_ % 5):
                await asyncio.sleep(0)
            fetch.cancel()
            with suppress(asyncio.CancelledError):
                found += await fetch
        left = [body for body in numbered(20) if body not in bodies_of(found)]
        found += await self.all_of(source, left) if left else []

        assert set(bodies_of(found)) == set(numbered(20))

    # --- settling ---

    async def test_settled_is_gone(self) -> None:
        """If a message is settled, it is not fetched again after a restart of the relay."""
        await self.publish(numbered(10))
        source = await self.source()
        await source.settle(await self.collect(source, 10), [])
        await self.crash(source)

        await self.nothing_left(await self.source())
        await self.publish(numbered(1, first=10))
        assert bodies_of(await self.collect(await self.source(), 1)) == numbered(1, first=10)

    async def test_settling_nothing(self) -> None:
        """If no messages are given, settling does nothing."""
        await (await self.source()).settle([], [])

    async def test_settling_twice(self) -> None:
        """If messages are settled a second time, as after a lost answer, nothing changes."""
        await self.publish(numbered(4))
        source = await self.source()
        done = await self.collect(source, 4)
        await source.settle(done[:2], [(done[2], "rejected: HTTP 400")])
        await source.settle(done, [(done[2], "rejected: HTTP 400")] if self.keeps_dead_once else [])

        await self.nothing_left(source)
        assert len(await source.list_dead(10)) == 1

    async def test_unsettled_comes_again(self) -> None:
        """If a relay crashes, its unsettled messages are handed out after the restart, before newer messages."""
        await self.publish(numbered(10))
        source = await self.source()
        found = await self.collect(source, 10)
        settled = found[:3] + ([found[6]] if self.settles_each else [])
        await source.settle(settled, [])
        await self.crash(source)
        await self.publish(numbered(2, first=10))
        left = [body for body in numbered(10) if body not in bodies_of(settled)]

        again = await self.all_of(await self.source(), left + numbered(2, first=10))
        assert bodies_of(again) == left + numbered(2, first=10)

    async def test_settling_out_of_order(self) -> None:
        """If messages are settled in any order, some of them as dead, all of them are settled in the end."""
        await self.publish(numbered(9))
        source = await self.source()
        found = await self.collect(source, 9)
        await source.settle(found[6:], [])
        await source.settle([], [(found[0], "undecodable: a"), (found[4], "undecodable: b")])
        await source.settle([found[5], *found[1:4]], [])
        await self.crash(source)

        source = await self.source()
        await self.nothing_left(source)
        assert sorted(bodies_of(await source.list_dead(10))) == [found[0].body, found[4].body]

    # --- leases ---

    async def test_another_takes_over(self) -> None:
        """If a relay has crashed, another relay gets the unsettled messages when their lease is over."""
        await self.publish(numbered(10))
        first = await self.source("relay-1")
        found = await self.collect(first, 10)
        await first.settle(found[:4], [])
        await self.crash(first)

        again = await self.all_of(await self.source("relay-2"), numbered(6, first=4))
        assert set(bodies_of(again)) == set(numbered(6, first=4))

    async def test_takes_over_at_about_the_end_of_the_lease(self) -> None:
        """If a lease is not extended, another relay gets the message soon after the end of the lease, not before."""
        if self.lease is None:
            pytest.skip("a lease without an end")
        clock = asyncio.get_running_loop().time
        await self.publish(numbered(5))
        first = await self.source("relay-1")
        second = await self.source("relay-2")
        began = clock()
        await self.collect(first, 5)
        ended = clock()
        await self.all_of(second, numbered(5))

        assert clock() - began >= 0.9 * self.lease
        # A source looks for expired leases twice in the time of a lease. A slow machine gets two seconds more.
        assert clock() - ended <= 1.6 * self.lease + 2.0

    async def test_extended_stays(self) -> None:
        """If a lease is extended before its end, no other relay gets the message."""
        if self.lease is None:
            pytest.skip("a lease without an end")
        await self.publish(numbered(10))
        first = await self.source("relay-1")
        found = await self.collect(first, 10)
        second = await self.source("relay-2")
        end = asyncio.get_running_loop().time() + 2.5 * self.lease
        while asyncio.get_running_loop().time() < end:
            await first.extend(found)
            await self.nothing_left(second, self.lease / 5)
        await first.settle(found, [])
        await self.nothing_left(second, 1.2 * self.lease)

    async def test_extending_takes_nothing_back(self) -> None:
        """If another relay has taken over a message, extending the lease does not take the message back."""
        if self.lease is None:
            pytest.skip("a lease without an end")
        await self.publish(numbered(5))
        first = await self.source("relay-1")
        found = await self.collect(first, 5)
        second = await self.source("relay-2")
        taken = await self.all_of(second, numbered(5))
        await first.extend(found)
        await second.settle(taken, [])
        await first.extend(found)

        await self.nothing_left(first, 1.2 * self.lease)
        await self.nothing_left(second, 1.2 * self.lease)

    async def test_extending_nothing(self) -> None:
        """If `extend` gets no messages, it does nothing, whether or not the source has fetched messages."""
        source = await self.source()
        await source.extend([])
        await self.publish(numbered(1))
        await self.collect(source, 1)
        await source.extend([])

    async def test_extending_while_fetching(self) -> None:
        """While a fetch waits, leases of other messages can be extended, and the lag can be read."""
        await self.publish(numbered(3))
        source = await self.source()
        found = await self.collect(source, 3)
        fetch = asyncio.create_task(source.fetch(10, 10 * self.patience))
        async with asyncio.timeout(self.patience):
            await source.extend(found)
            await source.lag()
            await self.publish(numbered(1, first=3))
            assert bodies_of(await fetch) == numbered(1, first=3)

    async def test_released_is_there_for_another(self) -> None:
        """If a relay releases messages before it ends, another relay gets these messages."""
        await self.publish(numbered(6))
        first = await self.source("relay-1")
        found = await self.collect(first, 6)
        await first.settle(found[:2], [])
        await first.release(found[2:])
        await self.crash(first)

        again = await self.all_of(await self.source("relay-2"), numbered(4, first=2))
        assert set(bodies_of(again)) == set(numbered(4, first=2))

    async def test_opened_again(self) -> None:
        """If an open source is opened again, as after a failure, it returns the remaining messages, and none twice."""
        await self.publish(numbered(6))
        source = await self.source()
        found = await self.collect(source, 3)
        await source.open()
        found += await self.collect(source, 3)

        assert sorted(bodies_of(found)) == numbered(6)
        await source.settle(found, [])
        await self.nothing_left(source)

    # --- lag ---

    async def test_lag(self) -> None:
        """If the broker reports its lag, the lag counts the waiting messages and the fetched, unsettled messages."""
        source = await self.source()
        await self.publish(numbered(10))
        found = await self.collect(source, 4, most=4)
        lag = await source.lag()
        assert lag.waiting in (None, 6)
        assert lag.pending in (None, 4)
        await source.settle(found, [])
        assert (await source.lag()).pending in (None, 0)

    # --- dead letters ---

    async def test_dead_letters_tell(self) -> None:
        """If a message is settled as dead, its dead letter has its body, id and reason, and it is not fetched again."""
        await self.publish(BODIES)
        source = await self.source()
        found = await self.collect(source, len(BODIES))
        before = time.time()
        await source.settle(found[:2], [(found[2], "undecodable: must be JSON"), (found[3], "rejected: HTTP 400")])
        await self.crash(source)

        source = await self.source()
        await self.nothing_left(source)
        letters = await source.list_dead(10)
        assert [(letter.message_id, letter.body, letter.reason) for letter in letters] == [
            (found[2].id, found[2].body, "undecodable: must be JSON"),
            (found[3].id, found[3].body, "rejected: HTTP 400"),
        ]
        assert all(before - 2.0 <= letter.died_at <= time.time() + 2.0 for letter in letters)

    async def make_dead(self, source: Any, count: int) -> list[bytes]:
        """Publish `count` messages and settle them as dead; return their bodies, oldest first."""
        await self.publish(numbered(count))
        found = await self.collect(source, count)
        for message in found:
            await source.settle([], [(message, "rejected: HTTP 400")])
        return bodies_of(found)

    async def test_dead_letters_are_listed_oldest_first(self) -> None:
        """Listing dead letters returns at most the wanted number, oldest first, and removes no dead letter."""
        source = await self.source()
        dead = await self.make_dead(source, 5)

        assert bodies_of(await source.list_dead(2)) == dead[:2]
        assert bodies_of(await source.list_dead(100)) == dead

    async def test_dead_letters_are_replayed(self) -> None:
        """If dead letters are replayed, the oldest are published again unchanged, and removed from the dead letters."""
        source = await self.source()
        dead = await self.make_dead(source, 5)

        assert await source.replay_dead(3) == 3
        assert bodies_of(await self.collect(source, 3)) == dead[:3]
        assert bodies_of(await source.list_dead(10)) == dead[3:]
        assert await source.replay_dead(10) == 2
        assert bodies_of(await self.collect(source, 2)) == dead[3:]
        assert await source.replay_dead(10) == 0

    async def test_dead_letters_are_purged(self) -> None:
        """If dead letters are purged, the oldest are removed, and their messages are not handed out again."""
        source = await self.source()
        dead = await self.make_dead(source, 5)

        assert await source.purge_dead(3) == 3
        assert bodies_of(await source.list_dead(10)) == dead[3:]
        assert await source.purge_dead(10) == 2
        assert await source.purge_dead(10) == 0
        await self.nothing_left(source)
