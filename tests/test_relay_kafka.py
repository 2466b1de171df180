"""`KafkaSource` on librdkafka's mock cluster: the contract of every source, and what is Kafka's own.

tests/kafka_server.py tells what the mock cluster cannot do, and so is not tested.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from tests.contracts.source import SourceContract
from tests.kafka_server import INSTALLED, KafkaServer, kafka_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

pytest.importorskip("aiokafka")
pytestmark = pytest.mark.skipif(not INSTALLED, reason="confluent-kafka is not installed")

from retailrocket_async.relay._kafka import KafkaSource, KafkaTopic  # noqa: E402

_names = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[KafkaServer]:
    """A broker for the tests of this module, each with topics of its own."""
    with kafka_server() as running:
        yield running


@pytest.fixture
def topic(server: KafkaServer) -> str:
    """A topic that no other test has, of one partition, and one for its dead letters."""
    name = f"events{next(_names)}"
    server.create_topic(name, 1)
    server.create_topic(f"{name}-dead", 1)
    return name


class TestKafkaSource(SourceContract):
    """The contract of every source."""

    lease = None
    settles_each = False

    @pytest.fixture(autouse=True)
    async def _topic(self, server: KafkaServer, topic: str) -> AsyncIterator[None]:
        self.server, self.topic = server, topic
        async with KafkaTopic(server.bootstrap_servers, topic) as self.publisher:
            yield

    async def make(self, name: str = "relay-1", lease: float | None = None) -> KafkaSource:
        """Return a source of this test's topic."""
        return KafkaSource(self.server.bootstrap_servers, self.topic, f"relay-{self.topic}")

    async def publish(self, bodies: Sequence[bytes]) -> None:
        """Publish to this test's topic."""
        await self.publisher.publish(bodies)
