"""`NatsSource` on a real nats-server with JetStream: the contract of every source, and what is NATS's own."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async import ConfigurationError
from retailrocket_async.relay import Message, Publisher
from tests.contracts.source import SourceContract, bodies_of, numbered
from tests.nats_server import NatsServer, nats_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

nats = pytest.importorskip("nats")

from retailrocket_async.relay._nats import NatsSource, NatsSubject  # noqa: E402

_names = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    """A server for the tests of this module, each with a stream of its own."""
    with nats_server() as running:
        yield running


@pytest.fixture
def stream() -> str:
    """The name of a stream that no other test has."""
    return f"events{next(_names)}"


@pytest.mark.needs_server("nats-server")
class TestNatsSource(SourceContract):
    """The contract of every source."""

    @pytest.fixture(autouse=True)
    async def _stream(self, server: NatsServer, stream: str) -> AsyncIterator[None]:
        self.server, self.stream = server, stream
        # The stream has to be there before anything is published.
        source = await self.make()
        await source.open()
        await source.aclose()
        async with NatsSubject(server.url, stream) as self.subject:
            yield

    async def make(self, name: str = "relay-1", lease: float | None = None) -> NatsSource:
        """Return a source of this test's stream."""
        return NatsSource(self.server.url, self.stream, ack_wait=lease or 1.0)

    async def publish(self, bodies: Sequence[bytes]) -> None:
        """Publish to this test's stream."""
        await self.subject.publish(bodies)

    async def test_unsettled_comes_again(self) -> None:
        """What was handed out and not settled before a crash comes again, all of it, once its lease is over.

        Not first: to the server a relay in a new life is any relay, and what is newer does not wait for a lease.
        """
        await self.publish(numbered(10))
        source = await self.source()
        found = await self.collect(source, 10)
        settled = [*found[:3], found[6]]
        await source.settle(settled, [])
        await self.crash(source)
        await self.publish(numbered(2, first=10))
        left = [body for body in numbered(10) if body not in bodies_of(settled)]

        again = await self.all_of(await self.source(), left + numbered(2, first=10))
        assert sorted(bodies_of(again)) == sorted(left + numbered(2, first=10))
        assert {m.body: m.deliveries for m in again} == dict.fromkeys(left, 2) | dict.fromkeys(numbered(2, first=10), 1)
