"""The contract of every source; the tests of each broker inherit `SourceContract`, and run it on the real broker.

::

    @pytest.mark.needs_server("redis-server")
    class TestRedisStreamSource(SourceContract):
        async def make(self, name="relay-1", lease=None): ...
        async def publish(self, bodies): ...

`self.source(...)` returns an open source, and closes it at the test's end.
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
    """Return `count` different envelopes."""
    return [b'{"view":{"sessionExternalId":"a","productId":%d}}' % number for number in range(first, first + count)]


def bodies_of(messages: Sequence[Message]) -> list[bytes]:
    """Return the messages' bodies."""
    return [message.body for message in messages]


class SourceContract(abc.ABC):
    """The tests. Attributes say in which points a broker promises less than the others."""

    lease: float | None = 1.0
    """Seconds of lease that the tests use; None if a message stays with its relay as long as that is connected."""

    patience: float = 20.0
    """Seconds after which a test gives up waiting: above the broker's own time-outs on a slow machine."""

    settles_each: bool = True
    """Whether messages are settled one by one; False if only all below an offset can be settled (Kafka)."""

    keeps_dead_once: bool = True
    """Whether a message that is settled as dead twice, as after a lost answer, is one dead letter."""

    @abc.abstractmethod
    async def make(self, name: str = "relay-1", lease: float | None = None) -> Any:
        """Return a new source of this test's stream and group, not open.

        Args:
            name: the relay's name; the same name again is the same relay after a restart.
            lease: seconds; None for `self.lease`.
        """

    @abc.abstractmethod
    async def publish(self, bodies: Sequence[bytes]) -> None:
        """Publish messages to this test's stream, in order."""

    async def crash(self, source: Any) -> None:
        """End a source as a killed process would: nothing is settled, and nothing given back."""
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
        """Return a source that is open, and closed at the test's end."""
        source = await self.make(name, lease if lease is not None else self.lease)
        self._sources.append(source)
        await source.open()
        return source

    async def collect(self, source: Any, count: int, most: int = 500) -> list[Message]:
        """Fetch until there are `count` messages."""
        found: list[Message] = []
        async with asyncio.timeout(self.patience):
            while len(found) < count:
                found += await source.fetch(min(most, count - len(found)), 0.2)
        return found

    async def all_of(self, source: Any, bodies: Sequence[bytes]) -> list[Message]:
        """Fetch until every one of `bodies` has come at least once."""
        found: list[Message] = []
        async with asyncio.timeout(self.patience):
            while set(bodies_of(found)) < set(bodies):
                found += await source.fetch(500, 0.2)
        return found

    async def nothing_left(self, source: Any, seconds: float = 0.3) -> None:
        """Assert that for a while nothing is handed out."""
        assert list(await source.fetch(500, seconds)) == []

    # --- fetching ---

    async def test_is_a_source(self) -> None:
        """It is a `Source`, and a `DeadLetters`."""
        source = await self.source()
        assert isinstance(source, Source)
        assert isinstance(source, DeadLetters)
        assert source.lease == self.lease

    async def test_hands_out_what_was_there_before(self) -> None:
        """Messages that were published before the first relay ran are handed out, in order and byte for byte."""
        await self.publish(BODIES)
        found = await self.collect(await self.source(), len(BODIES))

        assert bodies_of(found) == BODIES
        assert len({message.id for message in found}) == len(BODIES)
        assert all(type(message.id) is str and message.id for message in found)
        assert all(message.deliveries >= 1 for message in found)

    async def test_tells_when_it_was_published(self) -> None:
        """The time of publication, if the broker reports it, is a time of the real clock."""
        before = time.time()
        await self.publish(numbered(1))
        [message] = await self.collect(await self.source(), 1)

        assert message.published_at is None or before - 2.0 <= message.published_at <= time.time() + 2.0

    async def test_never_more_than_asked_for(self) -> None:
        """No fetch returns more than `most`, and together they return all, in order."""
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
        """Without messages a fetch returns nothing after its wait."""
        source = await self.source()
        async with asyncio.timeout(self.patience):
            assert list(await source.fetch(10, 0.0)) == []
            assert list(await source.fetch(10, 0.2)) == []

    async def test_is_woken(self) -> None:
        """A message that is published while a fetch waits ends the wait."""
        source = await self.source()
        fetch = asyncio.create_task(source.fetch(10, 10 * self.patience))
        await asyncio.sleep(0.1)
        await self.publish(numbered(1))
        async with asyncio.timeout(self.patience):
            assert bodies_of(await fetch) == numbered(1)

    async def test_many_in_order(self) -> None:
        """Thousands of messages come in order, each once."""
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
        """A message of half a MiB is handed out unchanged."""
        body = b'{"search":{"sessionExternalId":"a","searchPhrase":"%b"}}' % (b"x" * 500_000)
        await self.publish([body])
        [message] = await self.collect(await self.source(), 1)

        assert message.body == body

    async def test_cancelled_fetch_loses_nothing(self) -> None:
        """Fetches that are cancelled at any moment lose no message, even without a restart."""
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
        """A settled message is never handed out again, neither to its relay, restarted or not, nor to another."""
        await self.publish(numbered(10))
        source = await self.source()
        await source.settle(await self.collect(source, 10), [])
        await self.crash(source)

        await self.nothing_left(await self.source())
        await self.publish(numbered(1, first=10))
        assert bodies_of(await self.collect(await self.source(), 1)) == numbered(1, first=10)

    async def test_settling_nothing(self) -> None:
        """Settling no messages does nothing."""
        await (await self.source()).settle([], [])

    async def test_settling_twice(self) -> None:
        """Settling messages a second time, as after a lost answer, changes nothing."""
        await self.publish(numbered(4))
        source = await self.source()
        done = await self.collect(source, 4)
        await source.settle(done[:2], [(done[2], "rejected: HTTP 400")])
        await source.settle(done, [(done[2], "rejected: HTTP 400")] if self.keeps_dead_once else [])

        await self.nothing_left(source)
        assert len(await source.list_dead(10)) == 1

    async def test_unsettled_comes_again(self) -> None:
        """Messages that were handed out and not settled before a crash are handed out after the restart, and first."""
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
        """Messages settled in any order, some of them dead, are all settled in the end."""
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
        """The unsettled messages of a relay that has ended are handed to another one, once their lease is over."""
        await self.publish(numbered(10))
        first = await self.source("relay-1")
        found = await self.collect(first, 10)
        await first.settle(found[:4], [])
        await self.crash(first)

        again = await self.all_of(await self.source("relay-2"), numbered(6, first=4))
        assert set(bodies_of(again)) == set(numbered(6, first=4))

    async def test_takes_over_at_about_the_end_of_the_lease(self) -> None:
        """A message that is not extended is handed to another relay about when its lease is over, and not before."""
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
        # A source looks for what has ended every half lease; a slow machine has some seconds more.
        assert clock() - ended <= 1.6 * self.lease + 2.0

    async def test_extended_stays(self) -> None:
        """A message whose lease is extended in time is handed to no other relay."""
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
        """Extending a message that another relay has taken over does not take it back."""
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
        """Extending no messages does nothing, whether or not messages are handed out."""
        source = await self.source()
        await source.extend([])
        await self.publish(numbered(1))
        await self.collect(source, 1)
        await source.extend([])

    async def test_extending_while_fetching(self) -> None:
        """Leases can be extended, and the lag read, while a fetch waits."""
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
        """A message that a relay gives back at its end is handed to another one."""
        await self.publish(numbered(6))
        first = await self.source("relay-1")
        found = await self.collect(first, 6)
        await first.settle(found[:2], [])
        await first.release(found[2:])
        await self.crash(first)

        again = await self.all_of(await self.source("relay-2"), numbered(4, first=2))
        assert set(bodies_of(again)) == set(numbered(4, first=2))

    async def test_opened_again(self) -> None:
        """A source that is opened again, as after a failure, hands out the messages that it had not, and none twice."""
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
        """The lag, if the broker reports it, counts the messages that wait and those that are handed out."""
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
        """A dead letter holds the message, its id and the reason, and is not handed out again."""
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
        """Make dead letters, and return their bodies, oldest first."""
        await self.publish(numbered(count))
        found = await self.collect(source, count)
        for message in found:
            await source.settle([], [(message, "rejected: HTTP 400")])
        return bodies_of(found)

    async def test_dead_letters_are_listed_oldest_first(self) -> None:
        """The list begins with the oldest dead letter, is no longer than asked for, and removes none."""
        source = await self.source()
        dead = await self.make_dead(source, 5)

        assert bodies_of(await source.list_dead(2)) == dead[:2]
        assert bodies_of(await source.list_dead(100)) == dead

    async def test_dead_letters_are_replayed(self) -> None:
        """The oldest dead letters are published again unchanged, and are dead letters no longer."""
        source = await self.source()
        dead = await self.make_dead(source, 5)

        assert await source.replay_dead(3) == 3
        assert bodies_of(await self.collect(source, 3)) == dead[:3]
        assert bodies_of(await source.list_dead(10)) == dead[3:]
        assert await source.replay_dead(10) == 2
        assert bodies_of(await self.collect(source, 2)) == dead[3:]
        assert await source.replay_dead(10) == 0

    async def test_dead_letters_are_purged(self) -> None:
        """The oldest dead letters are removed for good."""
        source = await self.source()
        dead = await self.make_dead(source, 5)

        assert await source.purge_dead(3) == 3
        assert bodies_of(await source.list_dead(10)) == dead[3:]
        assert await source.purge_dead(10) == 2
        assert await source.purge_dead(10) == 0
        await self.nothing_left(source)
