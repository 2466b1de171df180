"""Tests of `KafkaSource` on librdkafka's mock cluster: those that every source must pass, and tests for Kafka only.

tests/support/kafka_server.py lists the features that the mock cluster lacks; no test covers these features.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async import ConfigurationError
from retailrocket_async.relay import KafkaSource, KafkaTopic, Publisher
from retailrocket_async.relay._kafka.cluster import stop
from tests.contracts.source import SourceContract, bodies_of, numbered
from tests.support.cancelling import cancel_everywhere
from tests.support.kafka_server import INSTALLED, KafkaServer, kafka_server
from tests.support.source_internals import cluster_of, committed_by, consumer_of, idle_time, owns, revoke

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

aiokafka = pytest.importorskip("aiokafka")
pytestmark = [
    pytest.mark.skipif(not INSTALLED, reason="confluent-kafka is not installed"),
    pytest.mark.leaves_connections("aiokafka"),
]

_names = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[KafkaServer]:
    """Run a broker for the tests of this module; each test has its own topics."""
    with kafka_server() as running:
        yield running


@pytest.fixture
def topic(server: KafkaServer) -> str:
    """Create a topic of one partition for this test, and a topic for its dead letters; return the name."""
    name = f"events{next(_names)}"
    server.create_topic(name, 1)
    server.create_topic(f"{name}-dead", 1)
    return name


def make(server: KafkaServer, topic: str) -> KafkaSource:
    """Return a source (a reader of messages) of a topic, with a consumer group that is used for this topic only."""
    # A new member of the mock cluster waits for the session time-out minus one second, so the time-out is short.
    return KafkaSource(server.bootstrap_servers, topic, f"relay-{topic}", session_timeout=1.2)


async def fetch_all(source: KafkaSource, count: int, most: int = 500) -> list[Any]:
    """Fetch until there are `count` messages; connect again if the cluster fails, as the relay does.

    Unlike Kafka, the mock cluster refuses a consumer that joins a rebalance too late; then `fetch` raises an error.
    """
    found: list[Any] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            try:
                found += await source.fetch(most, 0.1)
            except aiokafka.errors.KafkaError:
                await source.open()
    return found


class TestKafkaSource(SourceContract):
    """Run the tests that every source must pass on a `KafkaSource`."""

    lease = None

    @pytest.fixture(autouse=True)
    async def _topic(self, server: KafkaServer, topic: str) -> AsyncIterator[None]:
        self.server, self.topic = server, topic
        async with KafkaTopic(server.bootstrap_servers, topic) as self.publisher:
            yield

    async def make(self, name: str = "relay-1", lease: float | None = None) -> KafkaSource:
        """Return a source (a reader of messages) of this test's topic."""
        return make(self.server, self.topic)

    async def publish(self, bodies: Sequence[bytes]) -> None:
        """Publish to this test's topic."""
        await self.publisher.publish(bodies)

    async def test_settled_is_gone(self) -> None:
        """If a message is settled, it is never fetched again, neither before nor after a restart.

        This replaces the inherited test, which opens another source without closing the first one. A topic with one
        partition gives messages to one source only, so the other source would get none.
        """
        await self.publish(numbered(10))
        source = await self.source()
        await source.settle(await self.collect(source, 10), [])
        await self.crash(source)

        source = await self.source()
        await self.nothing_left(source)
        await self.publish(numbered(1, first=10))
        assert bodies_of(await self.collect(source, 1)) == numbered(1, first=10)


@pytest.fixture
async def source(server: KafkaServer, topic: str) -> AsyncIterator[KafkaSource]:
    """Yield an open source of this test's topic."""
    made = make(server, topic)
    await made.open()
    yield made
    await made.aclose()


@pytest.fixture
async def publisher(server: KafkaServer, topic: str) -> AsyncIterator[KafkaTopic]:
    """Yield a publisher for this test's topic."""
    async with KafkaTopic(server.bootstrap_servers, topic) as made:
        yield made


@pytest.fixture
def wide(server: KafkaServer) -> str:
    """Create a topic of four partitions, and a topic for its dead letters; return the topic's name."""
    name = f"wide{next(_names)}"
    server.create_topic(name, 4)
    server.create_topic(f"{name}-dead", 4)
    return name


def by_visitors(visitors: int, each: int) -> list[bytes]:
    """Return encoded views in rounds: in each of `each` rounds, every one of `visitors` visitors has one view."""
    return [
        b'{"view":{"sessionExternalId":"v%d","productId":%d}}' % (visitor, number)
        for number in range(each)
        for visitor in range(visitors)
    ]


class TestPartitions:
    """Tests with several partitions and several relays."""

    async def test_visitors_stay_in_order(self, server: KafkaServer, wide: str) -> None:
        """Each visitor's events are in one partition and are fetched in order; all partitions are used."""
        envelopes = by_visitors(30, 10)
        async with KafkaTopic(server.bootstrap_servers, wide) as publisher:
            await publisher.publish(envelopes)
        source = make(server, wide)
        await source.open()
        found = await fetch_all(source, len(envelopes))
        await source.aclose()

        for visitor in range(30):
            mark = b'"v%d"' % visitor
            own = [message for message in found if mark in message.body]
            assert bodies_of(own) == [envelope for envelope in envelopes if mark in envelope]
            assert len({message.id.partition(":")[0] for message in own}) == 1
        assert len({message.id.partition(":")[0] for message in found}) == 4

    async def test_another_relay_comes(self, server: KafkaServer, wide: str) -> None:
        """If a second relay joins, it reads the partitions that it takes over; the first relay keeps the other ones.

        The unsettled messages of a partition that the first relay loses are settled by the second relay, and only the
        second relay stores their dead letters.
        """
        async with KafkaTopic(server.bootstrap_servers, wide) as publisher:
            await publisher.publish(by_visitors(30, 10))
        first, second = make(server, wide), make(server, wide)
        await first.open()
        held = await fetch_all(first, 300)
        await second.open()
        # Both sources fetch until the rebalance is over, because a consumer that does not poll cannot join again.
        theirs: list[Any] = []
        again: list[Any] = []
        async with asyncio.timeout(60):
            while not theirs or not consumer_of(first) or len(consumer_of(first).assignment()) != 2:
                for source, found in ((first, again), (second, theirs)):
                    try:
                        found.extend(await source.fetch(500, 0.1))
                    except aiokafka.errors.KafkaError:
                        await source.open()
        lost = [message for message in held if not owns(first, message)]
        theirs += await fetch_all(second, len(lost) - len(theirs))
        await first.settle([m for m in held if m not in lost[:1]], [(lost[0], "rejected: HTTP 400")])
        assert await first.list_dead(9) == []
        await second.settle(theirs[1:], [(theirs[0], "rejected: HTTP 400")])
        assert again == []
        assert sorted(bodies_of(theirs)) == sorted(bodies_of(lost))
        assert 0 < len(lost) < 300
        assert len(await second.list_dead(9)) == 1
        await first.aclose()
        await second.aclose()

        third = make(server, wide)
        await third.open()
        async with asyncio.timeout(60):
            while not consumer_of(third).assignment():
                with suppress(aiokafka.errors.KafkaError):
                    assert await third.fetch(500, 0.1) == []
        assert await third.fetch(500, 0.5) == []
        assert (await third.lag()).waiting == 0
        await third.aclose()

    async def test_dead_letters_of_several_partitions(self, server: KafkaServer, wide: str) -> None:
        """Dead letters in several partitions are listed by time, each once, and removed from all partitions."""
        async with KafkaTopic(server.bootstrap_servers, wide) as publisher:
            await publisher.publish(by_visitors(20, 1))
        source = make(server, wide)
        await source.open()
        for message in await fetch_all(source, 20):
            await source.settle([], [(message, "rejected: HTTP 400")])
        letters = await source.list_dead(99)
        assert len(letters) == 20
        assert [letter.died_at for letter in letters] == sorted(letter.died_at for letter in letters)
        assert len({letter.id.partition(":")[0] for letter in letters}) > 1
        assert await source.list_dead(7) == letters[:7]
        assert await source.purge_dead(7) == 7
        assert await source.list_dead(99) == letters[7:]
        assert await source.replay_dead(99) == 13
        assert sorted(bodies_of(await fetch_all(source, 13))) == sorted(bodies_of(letters[7:]))
        await source.aclose()


COMMIT, PRODUCE = 8, 0
REBALANCE, REFUSED, TOO_LARGE = 27, 30, 10


class TestRebalances:
    """Tests of the order of events when partitions go from one relay to another."""

    async def test_a_rebalance_waits_for_unsettled_messages(
        self, server: KafkaServer, source: KafkaSource, publisher: KafkaTopic, topic: str
    ) -> None:
        """Before its partitions go to another relay, a source waits until the messages it handed out are settled."""
        patient = KafkaSource(server.bootstrap_servers, topic, f"relay-{topic}", session_timeout=60)
        await source.aclose()
        await publisher.publish(numbered(3))
        await patient.open()
        found = await fetch_all(patient, 3)
        revoking = asyncio.create_task(revoke(patient))
        await patient.settle(found[1:], [])
        await asyncio.sleep(0)
        assert not revoking.done()

        await patient.settle(found[:1], [])
        await revoking
        await patient.aclose()

    async def test_a_source_that_closes_ends_the_wait(self, source: KafkaSource, publisher: KafkaTopic) -> None:
        """If a source closes while a rebalance waits for its messages, the wait ends."""
        await publisher.publish(numbered(3))
        await fetch_all(source, 3)
        async with asyncio.timeout(60):
            await asyncio.gather(revoke(source), source.aclose())


class TestNotes:
    """Tests of the note, a text that is committed with an offset and lists the settled messages above this offset."""

    async def test_settled_out_of_order(self, server: KafkaServer, topic: str, publisher: KafkaTopic) -> None:
        """After a restart only unsettled messages are fetched, and each dead letter is stored once."""
        await publisher.publish(numbered(20))
        source = make(server, topic)
        await source.open()
        found = await fetch_all(source, 20)
        await source.settle(found[1:4], [(message, "rejected: HTTP 400") for message in found[10:15]])
        await source.aclose()
        source = make(server, topic)
        await source.open()
        left = [found[0], *found[4:10], *found[15:]]
        again = await fetch_all(source, len(left))
        await source.settle(again, [])

        assert bodies_of(again) == bodies_of(left)
        assert await source.fetch(99, 0.3) == []
        assert (await committed_by(source, found[0].handle.partition)) == 20
        assert len(await source.list_dead(99)) == 5
        await source.aclose()

    async def test_what_may_have_been_sent(self, server: KafkaServer, topic: str, publisher: KafkaTopic) -> None:
        """If a reader recorded that it would send a message and ended, the next reader sees a second delivery."""
        await publisher.publish(numbered(6))
        source = make(server, topic)
        await source.open()
        found = await fetch_all(source, 6)
        assert list(await source.record_sending(found[1:4])) == found[1:4]
        await source.settle(found[:2], [])
        await source.aclose()
        assert list(await source.record_sending(found[1:4])) == []
        source = make(server, topic)
        await source.open()
        again = await fetch_all(source, 4)

        assert bodies_of(again) == bodies_of(found[2:])
        assert [message.deliveries for message in again] == [2, 2, 1, 1]
        await source.aclose()


class TestFailures:
    """Tests with a cluster that fails."""

    async def test_a_record_during_a_rebalance(
        self, server: KafkaServer, source: KafkaSource, publisher: KafkaTopic
    ) -> None:
        """If the group refuses to record a message that will be sent, an error is raised; the next call works."""
        await publisher.publish(numbered(3))
        found = await fetch_all(source, 3)
        server.fail(COMMIT, REBALANCE, 1)
        with pytest.raises(ConnectionError, match="at most once"):
            await source.record_sending(found[:1])
        assert list(await source.record_sending(found[:1])) == found[:1]

    async def test_commit_during_a_rebalance(
        self, server: KafkaServer, source: KafkaSource, publisher: KafkaTopic, topic: str
    ) -> None:
        """If the group refuses commits while messages are settled, the next `extend` commits the messages."""
        await publisher.publish(numbered(10))
        found = await fetch_all(source, 10)
        server.fail(COMMIT, REBALANCE, 1)
        await source.settle(found, [])
        assert (await committed_by(source, found[0].handle.partition)) == 0
        await source.extend([])
        assert (await committed_by(source, found[0].handle.partition)) == 10

    async def test_refused_commit(self, server: KafkaServer, source: KafkaSource, publisher: KafkaTopic) -> None:
        """If a commit is refused, `settle` raises, and the next `settle` commits; the dead letter is stored once."""
        await publisher.publish(numbered(10))
        found = await fetch_all(source, 10)
        server.fail(COMMIT, REFUSED, 1)
        with pytest.raises(aiokafka.errors.KafkaError):
            await source.settle(found[1:], [(found[0], "rejected: HTTP 400")])
        await source.open()
        await source.settle(found[1:], [(found[0], "rejected: HTTP 400")])

        assert (await committed_by(source, found[0].handle.partition)) == 10
        assert len(await source.list_dead(9)) == 1

    async def test_dead_letter_that_is_refused(
        self, server: KafkaServer, source: KafkaSource, publisher: KafkaTopic
    ) -> None:
        """If a dead letter cannot be stored, nothing is committed, and the next `settle` stores the dead letter."""
        await publisher.publish(numbered(3))
        found = await fetch_all(source, 3)
        server.fail(PRODUCE, TOO_LARGE, 1)
        with pytest.raises(aiokafka.errors.KafkaError):
            await source.settle(found[1:], [(found[0], "rejected: HTTP 400")])
        assert (await committed_by(source, found[0].handle.partition)) == 0
        await source.open()
        assert await source.fetch(9, 1.0) == []
        await source.settle(found[1:], [(found[0], "rejected: HTTP 400")])

        assert (await committed_by(source, found[0].handle.partition)) == 3
        assert len(await source.list_dead(9)) == 1

    async def test_broker_away(self, server: KafkaServer, source: KafkaSource, publisher: KafkaTopic) -> None:
        """If messages are settled while the broker is away, they are committed when it is back; fetching continues."""
        await publisher.publish(numbered(10))
        found = await fetch_all(source, 10)
        server.down()
        settling = asyncio.create_task(source.settle(found[1:], [(found[0], "rejected: HTTP 400")]))
        await asyncio.sleep(0.3)
        assert not settling.done()
        server.up()
        async with asyncio.timeout(30):
            await settling
        await publisher.publish(numbered(1, first=10))

        assert bodies_of(await fetch_all(source, 1)) == numbered(1, first=10)
        assert bodies_of(await source.list_dead(9)) == bodies_of(found[:1])

    async def test_no_broker(self) -> None:
        """If there is no broker, `open` raises, and every other method raises until `open` has succeeded."""
        source = KafkaSource("127.0.0.1:1", "events", user="bob", password="s3cret")
        with pytest.raises(aiokafka.errors.KafkaConnectionError) as failure:
            await source.open()
        assert "s3cret" not in "".join(traceback.format_exception(failure.value))
        for call in (source.fetch(1, 0.0), source.extend([]), source.lag()):
            with pytest.raises(ConnectionError, match="not connected"):
                await call
        await source.aclose()

    async def test_log_that_was_cut_off(self, source: KafkaSource, publisher: KafkaTopic) -> None:
        """If offsets start again at 0, the new messages are fetched, and settling the earlier ones commits nothing."""
        await publisher.publish(numbered(5))
        found = await fetch_all(source, 5)
        partition = found[0].handle.partition
        consumer_of(source).seek(partition, 0)
        again = await fetch_all(source, 5)
        await source.settle(found, [])
        assert (await committed_by(source, partition)) == 0
        await source.settle(again, [])
        assert (await committed_by(source, partition)) == 5

    async def test_extend_polls(self, source: KafkaSource, publisher: KafkaTopic) -> None:
        """If nothing is fetched for long, `extend` polls the broker instead, and no message is lost."""
        await publisher.publish(numbered(5))
        first = await fetch_all(source, 2, most=2)
        await asyncio.sleep(0.05)
        idle = idle_time(source)
        await source.extend(first)
        assert idle_time(source) < idle
        assert consumer_of(source).paused() == set()
        assert bodies_of(first + await fetch_all(source, 3)) == numbered(5)


class HangingClient:
    """A client of aiokafka whose `stop` never ends.

    Args:
        attribute: the name of the attribute that holds the connections: `client` in a producer, `_client` in a
            consumer.

    Attributes:
        stops: an event that is set when `stop` is called.
        closed: whether the connections were closed.
    """

    def __init__(self, attribute: str) -> None:
        self.stops = asyncio.Event()
        self.closed = False
        setattr(self, attribute, self)

    async def stop(self) -> None:
        """Record that `stop` was called, and hang."""
        self.stops.set()
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Close the connections."""
        self.closed = True


class TestCancelling:
    """Tests that cancel a method again and again, each time at a later await; no message may be lost."""

    async def test_open(self, server: KafkaServer, topic: str, publisher: KafkaTopic) -> None:
        """If `open` is cancelled, `open` can be called again."""
        source = make(server, topic)
        await cancel_everywhere(source.open)
        await publisher.publish(numbered(1))
        assert bodies_of(await fetch_all(source, 1)) == numbered(1)
        await source.aclose()

    @pytest.mark.parametrize("attribute", ["client", "_client"])
    async def test_stop(self, attribute: str) -> None:
        """If a producer or consumer hangs in `stop` and is cancelled, its connections are closed."""
        client = HangingClient(attribute)
        stopping = asyncio.create_task(stop(client))
        await client.stops.wait()
        stopping.cancel()
        await asyncio.wait({stopping})

        assert stopping.cancelled()
        assert client.closed

    async def test_settle(self, source: KafkaSource, publisher: KafkaTopic) -> None:
        """If `settle` is cancelled and called again, all messages are committed; a dead letter may be stored twice."""
        await publisher.publish(numbered(20))
        found = await fetch_all(source, 20)
        await cancel_everywhere(lambda: source.settle(found[:10], [(m, "rejected: HTTP 400") for m in found[10:]]))

        assert (await committed_by(source, found[0].handle.partition)) == 20
        assert {letter.message_id for letter in await source.list_dead(9999)} == {message.id for message in found[10:]}

    async def test_everything_else(self, source: KafkaSource, publisher: KafkaTopic) -> None:
        """If `extend`, `lag`, `release`, or a method for dead letters is cancelled, the source still works."""
        await publisher.publish(numbered(20))
        found = await fetch_all(source, 20)
        await source.settle(found[:18], [(m, "rejected: HTTP 400") for m in found[18:]])
        await cancel_everywhere(lambda: source.extend(found))
        await cancel_everywhere(source.lag)
        assert len(await cancel_everywhere(lambda: source.list_dead(9))) == 2
        await cancel_everywhere(lambda: source.purge_dead(2))
        await cancel_everywhere(lambda: source.release(found))
        assert await source.list_dead(9) == []
        await publisher.publish(numbered(5, first=20))
        assert bodies_of(await fetch_all(source, 5)) == numbered(5, first=20)


@pytest.mark.endurance
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_twice() -> None:
    """If a relay is killed twice, nothing is lost; per kill, at most the fetched, unsettled messages are sent twice.

    A dead letter may be stored twice: if a relay is killed after it has stored a dead letter and before it has
    committed the message, it stores the dead letter again after its restart.
    """
    from acceptance.fleet.crash import BROKERS, crash

    found = crash(BROKERS["kafka"], events=6_000, bad=3, kills=2)

    assert (found["lost"], found["dead_missing"], found["status"]) == (0, 0, 0)
    assert found["dead_wrong"] <= 2 * 6
    assert found["duplicates"] <= 2 * 500 * 8


class TestSettings:
    """Tests of the constructor's arguments and of the address from which a source is created; they need no broker."""

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("kafka://kafka:9092/events", "KafkaSource(kafka:9092, topic='events', group='relay')"),
            ("kafka://a:1,b:2/events?group=g&dead=x", "KafkaSource(a:1,b:2, topic='events', group='g')"),
            (
                "kafkas://bob:s3cret@a:9093/e?sasl=SCRAM-SHA-512&session_timeout=45",
                "KafkaSource(a:9093, topic='e', group='relay')",
            ),
        ],
    )
    def test_from_url(self, url: str, shown: str) -> None:
        """An address sets all options of the source, and the source's `repr` does not show the password."""
        assert repr(KafkaSource.from_url(url, name="pod-1")) == shown

    def test_account(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """User and password come from the environment or the address, and only aiokafka gets them."""
        options = cluster_of(KafkaSource.from_url("kafkas://b%40b:s%3Acret@a/e", name="pod-1")).options()
        assert options["sasl_plain_username"] == "b@b"
        assert options["sasl_plain_password"] == "s:cret"
        assert options["security_protocol"] == "SASL_SSL"
        assert options["client_id"] == "pod-1"
        monkeypatch.setenv("RETAILROCKET_RELAY_USER", "ann")
        monkeypatch.setenv("RETAILROCKET_RELAY_PASSWORD", "other")
        cluster = cluster_of(KafkaSource.from_url("kafka://a/e", name="pod-1"))
        assert cluster.options()["security_protocol"] == "SASL_PLAINTEXT"
        assert cluster.options()["sasl_plain_password"] == "other"
        assert "other" not in repr(cluster)

    def test_no_account(self) -> None:
        """If there is no user and password, SASL is not used."""
        assert cluster_of(KafkaSource("a", "e")).options()["security_protocol"] == "PLAINTEXT"

    @pytest.mark.parametrize(
        "url",
        [
            "kafka://u:s3cret@a/",
            "kafka://u:s3cret@/events",
            "http://u:s3cret@a/events",
            "kafka://s3cret@a/events",
            "kafka://u:s3cret@a/events?nonsense=1",
            "kafka://u:s3cret@a/events?sasl=NONE",
            "kafka://u:s3cret@a/events?session_timeout=soon",
            "kafka://u:s3cret@a/events?session_timeout=0",
            "kafka://u:s3cret@[a/events",
        ],
    )
    def test_bad_url(self, url: str) -> None:
        """If an address is invalid, the error does not show the address."""
        with pytest.raises(ConfigurationError) as refused:
            KafkaSource.from_url(url, name="pod-1")
        assert "s3cret" not in "".join(traceback.format_exception(refused.value))

    @pytest.mark.parametrize("settings", [{"topic": ""}, {"group": ""}, {"bootstrap_servers": ""}, {"user": "bob"}])
    def test_bad_settings(self, settings: dict[str, Any]) -> None:
        """If a setting is invalid, the error names the setting."""
        with pytest.raises(ConfigurationError, match=next(iter(settings))):
            KafkaSource(**{"bootstrap_servers": "a:9092", "topic": "events", **settings})

    async def test_publishes_only_when_connected(self) -> None:
        """Publishing outside `async with` raises, and an empty topic raises at construction."""
        publisher = KafkaTopic("a:9092", "events")
        assert isinstance(publisher, Publisher)
        with pytest.raises(RuntimeError, match="async with"):
            await publisher.publish([b"x"])
        with pytest.raises(ConfigurationError, match="topic"):
            KafkaTopic("a:9092", "")

    def test_without_the_library(self) -> None:
        """If aiokafka is missing, importing the module works, and the constructor says what to install."""
        program = (
            "import sys; sys.modules['aiokafka'] = None\n"
            "from retailrocket_async.relay._kafka import KafkaSource\n"
            "KafkaSource('a', 'events')"
        )
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert 'pip install "retailrocket-async[kafka]"' in ended.stderr.splitlines()[-1]
