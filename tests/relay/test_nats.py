"""Tests of `NatsSource` on a real nats-server with JetStream: those that every source must pass, and tests for NATS."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async import AsyncTrackingClient, ConfigurationError
from retailrocket_async.relay import NatsSource, NatsSubject, Publisher, Relay
from tests.contracts.source import SourceContract, bodies_of, numbered
from tests.support.cancelling import cancel_everywhere
from tests.support.nats_server import NatsServer, nats_server
from tests.support.source_internals import (
    arrived,
    ignore_statuses,
    inbox_state,
    jetstream_of,
    keep_dead,
    replay_id,
    request_messages,
    servers_of,
    without_flusher,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

nats = pytest.importorskip("nats")

pytestmark = pytest.mark.leaves_connections("nats-py")

_names = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    """Run one server for all tests of this module; each test has its own stream."""
    with nats_server() as running:
        yield running


@pytest.fixture
def stream() -> str:
    """Return the name of a stream that only this test uses."""
    return f"events{next(_names)}"


@pytest.mark.needs_server("nats-server")
class TestNatsSource(SourceContract):
    """Run the tests that every source must pass on a `NatsSource`."""

    @pytest.fixture(autouse=True)
    async def _stream(self, server: NatsServer, stream: str) -> AsyncIterator[None]:
        self.server, self.stream = server, stream
        # `open` creates the stream, which must exist before messages are published.
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
        """If messages were not settled before a crash, they are fetched again when their lease is over.

        Newer messages may be fetched first, because they need not wait for the end of a lease. The server does not
        recognize the restarted relay, so it does not send it the unsettled messages at once.
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


@pytest.fixture
async def source(server: NatsServer, stream: str) -> AsyncIterator[NatsSource]:
    """Yield an open source of this test's stream, with a lease that is longer than any test."""
    made = NatsSource(server.url, stream, ack_wait=60)
    await made.open()
    yield made
    await made.aclose()


async def fetch_all(source: NatsSource, count: int, most: int = 500) -> list[Any]:
    """Fetch until there are `count` messages; if the server fails, connect again."""
    found: list[Any] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            try:
                found += await source.fetch(most, 0.2)
            except (OSError, nats.errors.Error):
                await asyncio.sleep(0.05)
    return found


async def fetch_for_ever(source: NatsSource) -> None:
    """Fetch until a fetch raises an error."""
    while True:
        await source.fetch(1, 0.05)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition()` is true; raise `TimeoutError` after 60 seconds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the condition depends on another task or process
            await asyncio.sleep(0.005)


async def reopen(source: NatsSource) -> None:
    """Call `open` again and again until it succeeds."""
    async with asyncio.timeout(60):
        while True:
            try:
                await source.open()
            except (OSError, nats.errors.Error):
                await asyncio.sleep(0.05)
            else:
                return


@pytest.mark.needs_server("nats-server")
class TestRestarts:
    """Tests in which the server is killed and restarted with its stored data."""

    @pytest.fixture
    def server(self) -> Iterator[NatsServer]:
        """Run a server for this test only."""
        with nats_server() as running:
            yield running

    async def test_what_is_in_hand_stays_in_hand(self, server: NatsServer, source: NatsSource, stream: str) -> None:
        """Messages fetched before an outage can be settled after it; no message is lost or fetched twice."""
        async with NatsSubject(server.url, stream) as subject:
            await subject.publish(numbered(20))
        held = await fetch_all(source, 10, most=10)
        await server.restart(0.5)
        await reopen(source)
        rest = await fetch_all(source, 10)
        await source.settle([*held, *rest[1:]], [(rest[0], "rejected: HTTP 400")])

        assert bodies_of(held + rest) == numbered(20)
        assert await source.fetch(10, 0.3) == []
        assert bodies_of(await source.list_dead(9)) == bodies_of(rest[:1])
        assert (await source.lag()).pending == 0

    async def test_lease_that_ran_out_meanwhile(self, server: NatsServer, stream: str) -> None:
        """If the server sends a message again that the source has returned before, `fetch` leaves this message out."""
        source = NatsSource(server.url, stream, ack_wait=0.5)
        await source.open()
        async with NatsSubject(server.url, stream) as subject:
            await subject.publish(numbered(10))
            held = await fetch_all(source, 10)
            await server.restart(1.0)
            await reopen(source)
            assert await source.fetch(10, 2.0) == []
            await source.settle(held, [])
            assert await source.fetch(10, 1.0) == []
            assert await source.lag() == await source.lag()
            assert (await source.lag()).pending == 0
        await source.aclose()

    async def test_fails_while_the_server_is_away(self, server: NatsServer, source: NatsSource, stream: str) -> None:
        """If there is no server, every method raises `ConnectionError` within seconds."""
        async with NatsSubject(server.url, stream) as subject:
            await subject.publish(numbered(1))
        held = await fetch_all(source, 1)
        server.kill()
        async with asyncio.timeout(30):
            # The source first has to notice that the connection has ended.
            with pytest.raises(ConnectionError, match="NATS"):
                await fetch_for_ever(source)
            for call in (source.settle(held, []), source.extend(held), source.lag(), source.release(held)):
                with pytest.raises(ConnectionError, match="not connected"):
                    await call
            fresh = NatsSource(server.url, stream)
            with pytest.raises(ConnectionError, match="cannot be reached"):
                await fresh.open()
            await fresh.aclose()

    async def test_every_restart_in_a_run(self, server: NatsServer, stream: str) -> None:
        """If the server restarts several times, every message is fetched once and settled.

        Messages that the server had sent into a killed connection are sent again when their lease is over.
        """
        source = NatsSource(server.url, stream, ack_wait=5)
        await source.open()
        async with NatsSubject(server.url, stream) as subject:
            await subject.publish(numbered(2000))
        seen: list[bytes] = []

        async def work() -> None:
            held: Sequence[Any] = []
            while held or len(set(seen)) < 2000:
                try:
                    if not held:
                        held = await source.fetch(50, 0.2)
                        seen.extend(bodies_of(held))
                    await source.settle(held, [])
                    held = []
                except (OSError, nats.errors.Error):
                    await reopen(source)

        task = asyncio.create_task(work())
        try:
            for part in (500, 1000, 1500):
                await until(lambda part=part: task.done() or len(set(seen)) >= part)  # type: ignore[misc]
                await server.restart()
            done, _ = await asyncio.wait({task}, timeout=60)
            assert done, f"{len(set(seen))} of 2000, {inbox_state(source)}"
            await task
        finally:
            # The task is cancelled repeatedly, because nats-py may swallow a cancellation.
            while not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=1)

        assert sorted(seen) == sorted(numbered(2000))
        assert await source.fetch(50, 0.3) == []
        await source.aclose()

    @pytest.mark.parametrize("cancelled", [False, True])
    async def test_the_end_with_a_server_that_hangs(self, server: NatsServer, stream: str, *, cancelled: bool) -> None:
        """If the server has stopped answering, a relay that is stopped or cancelled still ends."""
        async with NatsSubject(server.url, stream) as subject:
            source = NatsSource(server.url, stream, ack_wait=5)
            await source.open()
            await subject.publish(numbered(500))
        client = AsyncTrackingClient("key", "shop", base_url="http://127.0.0.1:1/", allow_insecure_http=True)
        relay = Relay(source, client, grace=0.5)
        running = asyncio.create_task(relay.run())
        await until(lambda: relay.stats().received >= 500)
        server.process.send_signal(signal.SIGSTOP)
        try:
            if cancelled:
                running.cancel()
            else:
                relay.stop()
            done, _ = await asyncio.wait({running}, timeout=60)
            assert done == {running}
            assert running.cancelled() == cancelled
        finally:
            server.process.send_signal(signal.SIGCONT)

    async def test_the_library_swallows_a_cancellation(self, server: NatsServer) -> None:
        """nats-py swallows a cancellation that arrives while it flushes; so the relay runs each call in a new task."""
        connection: Any = await nats.connect(server.url)
        flushing = await without_flusher(connection)
        await asyncio.sleep(0.1)
        flushing.cancel()
        await asyncio.wait({flushing})

        assert not flushing.cancelled()
        await connection.close()

    async def test_failure_is_logged_once(
        self, server: NatsServer, source: NatsSource, caplog: pytest.LogCaptureFixture
    ) -> None:
        """If the connection is lost and comes back, both are logged once, however many attempts to connect fail."""
        caplog.set_level(logging.INFO, "retailrocket_async")
        await server.restart(2.5)
        await until(lambda: any("is there again" in message for message in caplog.messages))

        assert [record.levelname for record in caplog.records if "NATS" in record.message] == ["WARNING", "INFO"]


@pytest.mark.needs_server("nats-server")
class TestJetStream:
    """Tests of behaviour that only JetStream, the storage of NATS, has."""

    async def test_dead_letter_of_a_crash_is_kept_once(self, server: NatsServer, stream: str) -> None:
        """If a relay crashes after it has stored a dead letter, handling the message again stores no second one."""
        source = NatsSource(server.url, stream, ack_wait=0.5)
        await source.open()
        async with NatsSubject(server.url, stream) as subject:
            await subject.publish(numbered(1))
        [message] = await fetch_all(source, 1)
        await keep_dead(source, [(message, "rejected: HTTP 400")])
        await source.aclose()
        await source.open()
        [again] = await fetch_all(source, 1)
        await source.settle([], [(again, "rejected: HTTP 400")])

        assert again.deliveries == 2
        assert [letter.message_id for letter in await source.list_dead(9)] == [message.id]
        await source.aclose()

    async def test_replay_that_broke_off_publishes_nothing_twice(self, source: NatsSource, stream: str) -> None:
        """If a replay publishes a dead letter but cannot remove it, the next replay does not publish it again."""
        await jetstream_of(source).publish(stream, b"x")
        await source.settle([], [(message, "undecodable") for message in await fetch_all(source, 1)])
        [letter] = await source.list_dead(1)
        await jetstream_of(source).publish(stream, letter.body, headers={"Nats-Msg-Id": replay_id(source, letter)})

        assert await source.replay_dead(1) == 1
        assert len(await fetch_all(source, 1)) == 1
        assert await source.fetch(1, 0.3) == []

    async def test_reason_with_odd_letters(self, source: NatsSource, stream: str) -> None:
        """If a reason has non-ASCII characters, it is stored as one line of ASCII, with escape sequences."""
        await jetstream_of(source).publish(stream, b"x")
        await source.settle([], [(message, "плохо: a=b; c") for message in await fetch_all(source, 1)])

        [letter] = await source.list_dead(1)
        assert letter.reason == "\\u043f\\u043b\\u043e\\u0445\\u043e: a=b; c"

    async def test_what_arrived_late_is_given_back(self, server: NatsServer, stream: str) -> None:
        """If messages arrive after the last fetch, `release` gives them back to the server.

        The server of these tests delivers some of these messages again only when their lease is over.
        """
        source, other = NatsSource(server.url, stream, ack_wait=1), NatsSource(server.url, stream, ack_wait=1)
        await source.open()
        await other.open()
        await request_messages(source, 10, 60.0)
        async with NatsSubject(server.url, stream) as subject:
            await subject.publish(numbered(3))
        await until(lambda: arrived(source) == 3)
        await source.release([])
        found = await fetch_all(other, 3)

        assert sorted(bodies_of(found)) == numbered(3)
        assert arrived(source) == 0
        await source.aclose()
        await other.aclose()

    async def test_consumer_that_was_removed(self, server: NatsServer, source: NatsSource, stream: str) -> None:
        """If the consumer is removed, calls raise `ConnectionError`, and the next `open` creates the consumer again."""
        await jetstream_of(source).delete_consumer(stream, "relay")
        with pytest.raises(ConnectionError, match="does not answer"):
            await asyncio.wait_for(fetch_for_ever(source), 20)
        await source.open()
        async with NatsSubject(server.url, stream) as subject:
            await subject.publish(numbered(1))
        assert bodies_of(await fetch_all(source, 1)) == numbered(1)

    async def test_creates_nothing_without_create(self, server: NatsServer, stream: str) -> None:
        """If `create` is False and the stream is missing, `open` fails and does not create the stream."""
        source = NatsSource(server.url, stream, create=False)
        with pytest.raises(nats.js.errors.NotFoundError):
            await source.open()
        with pytest.raises(nats.js.errors.NotFoundError):
            await jetstream_of(source).stream_info(stream)
        await source.aclose()

    async def test_consumer_with_too_short_a_lease(self, server: NatsServer, source: NatsSource, stream: str) -> None:
        """If the server's consumer has a shorter lease (`ack_wait`) than the source wants, `open` raises."""
        other = NatsSource(server.url, stream, ack_wait=120)
        with pytest.raises(ConfigurationError, match="ack_wait of 60 s"):
            await other.open()
        await other.aclose()

    async def test_push_consumer_is_refused(self, server: NatsServer, source: NatsSource, stream: str) -> None:
        """If the consumer is a push consumer, `open` raises."""
        stream_ = jetstream_of(source)
        await stream_.add_stream(name=f"{stream}x", subjects=[f"{stream}x"])
        await stream_.add_consumer(f"{stream}x", durable_name="relay", deliver_subject="somewhere")
        other = NatsSource(server.url, f"{stream}x")
        with pytest.raises(ConfigurationError, match="pull consumer"):
            await other.open()
        await other.aclose()

    async def test_window_of_the_consumer(self, server: NatsServer, stream: str) -> None:
        """At most `max_ack_pending` unsettled messages are fetched; further messages follow when these are settled."""
        source = NatsSource(server.url, stream, ack_wait=60, max_ack_pending=10)
        await source.open()
        async with NatsSubject(server.url, stream) as subject:
            await subject.publish(numbered(25))
        first = await fetch_all(source, 10)
        assert len(first) == 10
        assert await source.fetch(10, 0.2) == []
        await source.settle(first, [])
        assert len(await fetch_all(source, 10)) == 10
        await source.aclose()

    async def test_a_request_whose_end_is_not_reported(self, server: NatsServer, stream: str) -> None:
        """If the server sends some messages, and does not report that the request ends, the next request follows."""
        source = NatsSource(server.url, stream)
        ignore_statuses(source)
        await source.open()
        async with NatsSubject(server.url, stream) as subject:
            await subject.publish(numbered(3))
            first = await fetch_all(source, 3)
            assert await source.fetch(500, 0.2) == []
            await subject.publish(numbered(3, first=3))
        assert bodies_of([*first, *await fetch_all(source, 3)]) == numbered(6)
        await source.aclose()

    async def test_publishing_fails_loudly(self, server: NatsServer) -> None:
        """`publish` raises if no stream stores the subject, and if it is called outside `async with`."""
        async with NatsSubject(server.url, "nobody.listens") as subject:
            assert isinstance(subject, Publisher)
            with pytest.raises(nats.js.errors.NoStreamResponseError):
                await subject.publish([b"x"])
        with pytest.raises(RuntimeError, match="async with"):
            await subject.publish([b"x"])


@pytest.mark.needs_server("nats-server")
class TestCancelling:
    """Tests that cancel a method again and again, each time at a later await; no message may be lost."""

    async def test_open(self, server: NatsServer, stream: str) -> None:
        """If `open` is cancelled, `open` can be called again."""
        source = NatsSource(server.url, stream)
        await cancel_everywhere(source.open)
        await jetstream_of(source).publish(stream, b"x")
        assert bodies_of(await fetch_all(source, 1)) == [b"x"]
        await source.aclose()

    async def test_settle(self, server: NatsServer, source: NatsSource, stream: str) -> None:
        """If `settle` is cancelled and called again, all messages are settled, and each dead letter is stored once."""
        async with NatsSubject(server.url, stream) as subject:
            await subject.publish(numbered(20))
        found = await fetch_all(source, 20)
        await cancel_everywhere(lambda: source.settle(found[:10], [(m, "rejected: HTTP 400") for m in found[10:]]))

        assert sorted(bodies_of(await source.list_dead(99))) == sorted(bodies_of(found[10:]))
        assert (await source.lag()).pending == 0

    async def test_everything_else(self, server: NatsServer, stream: str) -> None:
        """If any method other than `open`, `fetch` and `settle` is cancelled, the source still works."""
        source = NatsSource(server.url, stream, ack_wait=1)
        await source.open()
        async with NatsSubject(server.url, stream) as subject:
            await subject.publish(numbered(20))
            found = await fetch_all(source, 20)
            await source.settle(found[:18], [(m, "rejected: HTTP 400") for m in found[18:]])
            await subject.publish(numbered(5, first=20))
        found = await fetch_all(source, 5)
        await cancel_everywhere(lambda: source.extend(found))
        await cancel_everywhere(source.lag)
        assert len(await cancel_everywhere(lambda: source.list_dead(9))) == 2
        await cancel_everywhere(lambda: source.replay_dead(1))
        await cancel_everywhere(lambda: source.purge_dead(1))
        await cancel_everywhere(lambda: source.release(found))
        await cancel_everywhere(source.open)

        assert await source.list_dead(9) == []
        # The replayed message is fetched as well: once, or twice if a cancelled `replay_dead` had already published it.
        seen: set[bytes] = set()
        async with asyncio.timeout(60):
            while not set(numbered(5, first=20)) <= seen:
                seen.update(bodies_of(await source.fetch(9, 0.2)))
        await source.aclose()


@pytest.mark.needs_server("nats-server")
@pytest.mark.endurance
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_twice() -> None:
    """If a relay is killed twice, nothing is lost; per kill, at most the fetched, unsettled messages are sent twice."""
    from acceptance.fleet.crash import BROKERS, crash

    found = crash(BROKERS["nats"], events=6_000, bad=3, kills=2)

    assert (found["lost"], found["dead"], found["dead_wrong"], found["status"]) == (0, 6, 0, 0)
    assert found["duplicates"] <= 2 * 500 * 8


class TestSettings:
    """Tests of the constructors' arguments and of the address from which a source is created; they need no server."""

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("nats://nats/events", "NatsSource(nats://nats, stream='events', durable='relay')"),
            (
                "nats://a:1,b:2/events?durable=d&dead=x",
                "NatsSource(nats://a:1, nats://b:2, stream='events', durable='d')",
            ),
            ("tls://bob:s3cret@a:4222/e?create=no", "NatsSource(tls://a:4222, stream='e', durable='relay')"),
            ("nats://bob:s3cret@[::1]:4222/e?ack_wait=5", "NatsSource(nats://[::1]:4222, stream='e', durable='relay')"),
        ],
    )
    def test_from_url(self, url: str, shown: str) -> None:
        """An address sets all options of the source, and the source's `repr` does not show the password."""
        assert repr(NatsSource.from_url(url, name="pod-1")) == shown

    def test_account(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """User and password come from the environment or the address."""
        servers = servers_of(NatsSource.from_url("nats://b%40b:s%3Acret@a/e", name=""))
        assert (servers.user, servers.password) == ("b@b", "s:cret")
        monkeypatch.setenv("RETAILROCKET_RELAY_USER", "ann")
        monkeypatch.setenv("RETAILROCKET_RELAY_PASSWORD", "other")
        servers = servers_of(NatsSource.from_url("nats://a/e", name=""))
        assert (servers.user, servers.password) == ("ann", "other")
        assert "other" not in repr(servers)

    @pytest.mark.parametrize(
        "url",
        [
            "nats://s3cret@a/",
            "nats://:s3cret@/events",
            "http://u:s3cret@a/events",
            "nats://u:s3cret@a/events?nonsense=1",
            "nats://u:s3cret@a/events?create=perhaps",
            "nats://u:s3cret@a/events?ack_wait=soon",
            "nats://u:s3cret@a/events?ack_wait=0",
            "nats://u:s3cret@a/events?ack_wait=nan",
            "nats://u:s3cret@a/two.words",
            "nats://u:s3cret@a/events?durable=a.b",
            "nats://u:s3cret@[a/events",
            "nats://u:s3cret℀@a/events",
        ],
    )
    def test_bad_url(self, url: str) -> None:
        """If an address is invalid, the error does not show the address."""
        with pytest.raises(ConfigurationError) as refused:
            NatsSource.from_url(url, name="pod-1")
        assert "s3cret" not in "".join(traceback.format_exception(refused.value))

    @pytest.mark.parametrize("settings", [{"max_ack_pending": 0}, {"max_ack_pending": 1.5}, {"ack_wait": "1"}])
    def test_bad_settings(self, settings: dict[str, Any]) -> None:
        """If a setting is out of range, the error names the setting."""
        with pytest.raises(ConfigurationError, match=next(iter(settings))):
            NatsSource("nats://a", "events", **settings)

    def test_no_servers(self) -> None:
        """If the list of servers or the subject is empty, the constructor raises."""
        with pytest.raises(ConfigurationError, match="servers"):
            NatsSource([], "events")
        with pytest.raises(ConfigurationError, match="subject"):
            NatsSubject("nats://a", "")

    @pytest.mark.needs_server("nats-server")
    async def test_refused_account(self, stream: str) -> None:
        """If the password is wrong, an error says so and does not show the password."""
        with nats_server("--user", "bob", "--pass", "right") as server:
            source = NatsSource(server.url.replace("//", "//bob:s3cret@"), stream)
            with pytest.raises(ConnectionError, match="Authorization") as failure:
                await source.open()
            assert "s3cret" not in repr(failure.value)
            await source.aclose()
            source = NatsSource(server.url.replace("//", "//bob:right@"), stream)
            await source.open()
            await source.aclose()

    def test_without_the_library(self) -> None:
        """If nats-py is missing, importing the module works, and the constructor says what to install."""
        program = (
            "import sys; sys.modules['nats'] = None\n"
            "from retailrocket_async.relay._nats import NatsSource\n"
            "NatsSource('nats://a', 'events')"
        )
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert 'pip install "retailrocket-async[nats]"' in ended.stderr.splitlines()[-1]
