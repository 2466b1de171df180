"""Counts the events that are lost or sent twice if relays are killed, or if the API is down longer than the lease.

The lease is the time after which the broker gives a relay's unsettled messages to another relay. The relays are
processes of the command `relay`, and the brokers are real servers. Some of the events are refused by the API, and some
messages are not events: exactly these must become dead letters.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import attrs

from acceptance.fleet import brokers
from acceptance.fleet.brokers import BROKERS, WINDOW
from acceptance.support import recording_server
from benchmarks.support.progress import report
from benchmarks.support.section import Demand, Section, Table
from retailrocket_async import Codec, View
from retailrocket_async.relay import DeadLetters, source_from_url
from tests.support.parent_end import until_parent_ends
from tests.support.redis_server import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acceptance.support.recording_server import RecordingServer
    from benchmarks.support.section import Effort

_EVENTS = 600_000
_BAD = 60
"""The number of events that the API refuses, and also the number of messages that are not events."""

_KILLS = 6
_VISITORS = 5_000
_IN_FLIGHT = WINDOW
"""Greatest number of events that are recorded but unsettled when a relay is killed; they are sent again."""

_OUTAGE_EVENTS = 200_000
_LATENCY = 0.3
"""Seconds that the server takes for a batch, so that many batches are in flight when a relay is killed."""

_LEASE = 5.0
_OUTAGE = 12.0
_DRAINED_WITHIN = 30.0

_PATIENCE = 300.0
"""Seconds to wait for a condition; after that the run fails."""


@attrs.frozen(kw_only=True)
class Feed:
    """The messages of a run.

    Attributes:
        messages: all messages in order.
        good: the numbers of the events that must be recorded.
        refused: the messages that the API refuses.
        junk: the messages that are no events.
    """

    messages: list[bytes]
    good: frozenset[int]
    refused: frozenset[bytes]
    junk: frozenset[bytes]

    @classmethod
    def of(cls, events: int, bad: int) -> Feed:
        """Return `events` good events with `bad` refused events and `bad` junk messages spread among them."""
        codec = Codec()
        good = [
            codec.encode(View(session_external_id=f"visitor{number % _VISITORS}", product_id=number))
            for number in range(events)
        ]
        refused = [
            codec.encode(View(session_external_id=f"visitor{number}", product_id=events + number, stock_id="refused"))
            for number in range(bad)
        ]
        junk = [b'{"view":{"sessionExternalId":"visitor","productId":"%d"}}' % number for number in range(bad)]
        messages = list(good)
        for number in reversed(range(bad)):
            at = (number + 1) * events // (bad + 1)
            messages[at:at] = [refused[number], junk[number]]
        return cls(messages=messages, good=frozenset(range(events)), refused=frozenset(refused), junk=frozenset(junk))


class RelayProcess:
    """A process of the command ``retailrocket-async relay``.

    Args:
        source: the address of its source.
        api: the base URL of the API.
        name: the name of the relay.
    """

    def __init__(self, source: str, api: str, name: str = "relay-1") -> None:
        self._env = {
            **os.environ,
            "RETAILROCKET_API_KEY": "key",
            "RETAILROCKET_PARTNER_ID": "shop",
            "RETAILROCKET_BASE_URL": api,
            "RETAILROCKET_RELAY_SOURCE": source,
            "RETAILROCKET_RELAY_NAME": name,
            "RETAILROCKET_RELAY_RATE": "0",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process."""
        self._port = free_port()
        relay = ("-m", "retailrocket_async", "relay", "--health-port", str(self._port))
        command = until_parent_ends(sys.executable, *relay)
        self._process = subprocess.Popen(command, env=self._env, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        """Kill the process by SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> int:
        """End the process by SIGTERM; return its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def metrics(self) -> dict[str, float]:
        """Return the relay's metrics by name and labels; an empty dictionary while the relay does not serve them."""
        with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=5) as answer:
            found = re.findall(r"^(\S+) (\S+)$", answer.read().decode(), re.MULTILINE)
            return {name: float(value) for name, value in found}
        return {}

    @property
    def idle(self) -> bool:
        """Whether the relay has no unsettled messages, and the broker has no more messages for it."""
        metrics = self.metrics()
        relay = "retailrocket_relay_"
        left = ("in_hand", "unsettled", "lag_waiting", "lag_pending")
        # If the relay is not connected yet, the metrics have no lag.
        return f"{relay}lag_pending" in metrics and not any(metrics.get(f"{relay}{name}") for name in left)


@contextlib.contextmanager
def relays(*processes: RelayProcess) -> Iterator[None]:
    """Run these relays while the block runs, and kill them afterwards."""
    try:
        for process in processes:
            process.start()
        yield
    finally:
        for process in processes:
            process.kill()


def wait_until(condition: Any, description: str, step: float = 0.01) -> None:
    """Return when `condition()` is true; ask every `step` seconds.

    Raises:
        AssertionError: `condition()` did not become true in time; the message contains `description`.
    """
    end = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < end, f"this did not happen: {description}"
        time.sleep(step)


def crash(broker_of: Any, *, events: int, bad: int, kills: int) -> dict[str, Any]:
    """Kill a relay `kills` times while it works; return the counts and times of the run."""
    feed = Feed.of(events, bad)
    with broker_of() as broker, recording_server.running(_LATENCY) as server:
        asyncio.run(brokers.publish(broker, feed.messages))
        relay = RelayProcess(broker.url, server.url)
        begun = time.monotonic()
        with relays(relay):
            for kill in range(1, kills + 1):
                at = kill * events // (kills + 1)
                wait_until(lambda at=at: server.recorded() >= at, f"{at} events recorded")
                relay.kill()
                relay.start()
            restarted, left = time.monotonic(), events - server.recorded()
            wait_until(lambda: server.recorded() >= events and relay.idle, "everything recorded and settled")
            drained = time.monotonic() - restarted
            status = relay.stop()
        return _figures(broker, broker.url, server, feed) | {
            "kills": kills,
            "status": status,
            "seconds": time.monotonic() - begun,
            "left": left,
            "drained": drained,
        }


def outage(broker_of: Any, *, events: int, bad: int, lease: float, down: float) -> dict[str, Any]:
    """Let the API fail for `down` seconds while two relays work; return the counts and times of the run."""
    feed = Feed.of(events, bad)
    with broker_of() as broker, recording_server.running() as server:
        asyncio.run(brokers.publish(broker, feed.messages))
        source = broker.with_lease(lease)
        both = [RelayProcess(source, server.url, name) for name in ("relay-1", "relay-2")]
        begun = time.monotonic()
        with relays(*both):
            wait_until(lambda: server.recorded() >= events // 3, "a third recorded")
            server.answer_all(503)
            time.sleep(down)
            server.answer_all(None)
            back, left = time.monotonic(), events - server.recorded()
            wait_until(lambda: server.recorded() >= events and all(relay.idle for relay in both), "everything settled")
            drained = time.monotonic() - back
            status = max(relay.stop() for relay in both)
        return _figures(broker, source, server, feed) | {
            "kills": 0,
            "status": status,
            "seconds": time.monotonic() - begun,
            "left": left,
            "drained": drained,
        }


def _figures(broker: Any, source: str, server: RecordingServer, feed: Feed) -> dict[str, Any]:
    counts = server.counts()
    overlaps, disordered = server.order()
    dead = Counter(asyncio.run(_dead_letters(source, 10 * len(feed.junk) + 100)))
    expected = Counter([*feed.refused, *feed.junk])
    return {
        "broker": broker.name,
        "repeated": broker.repeated,
        "events": len(feed.good),
        "lost": len(feed.good - counts.keys()),
        "duplicates": sum(counts.values()) - len(counts),
        "overlaps": overlaps,
        "disordered": disordered,
        "dead": dead.total(),
        "dead_expected": expected.total(),
        "dead_missing": (expected - dead).total(),
        "dead_wrong": (dead - expected).total() + (expected - dead).total(),
    }


async def _dead_letters(url: str, most: int) -> list[bytes]:
    source = source_from_url(url, name="benchmark")
    assert isinstance(source, DeadLetters)
    try:
        await source.open()
        return [letter.body for letter in await source.list_dead(most)]
    finally:
        await source.aclose()


def run(effort: Effort) -> Section:
    """Kill relays, and let the API fail, with every broker."""
    crashes, outages = [], []
    # A quick run has fewer bad messages, too: too many in one batch would make the client reject the whole batch.
    bad = effort.count(_BAD)
    for name, broker_of in BROKERS.items():
        report(f"crash: {name}, {_KILLS} kills")
        crashes.append(crash(broker_of, events=effort.count(_EVENTS), bad=bad, kills=_KILLS))
        report(f"crash: {name}, an outage")
        outages.append(outage(broker_of, events=effort.count(_OUTAGE_EVENTS), bad=bad, lease=_LEASE, down=_OUTAGE))
    demands = [demand for figures in crashes for demand in _demands(figures, "kills", _KILLS * _IN_FLIGHT)]
    demands += [demand for figures in crashes for demand in _order_demands(figures)]
    demands += [demand for figures in outages for demand in _demands(figures, "an outage", figures["repeated"])]
    return Section(
        name="crash",
        title="Events lost and repeated by relays",
        tables=(
            Table(
                title=f"One relay, killed by SIGKILL {_KILLS} times",
                columns=_COLUMNS,
                rows=tuple(_row(figures) for figures in crashes),
                note="The command `retailrocket-async relay`, restarted immediately after each kill.",
            ),
            Table(
                title=f"Two relays, the API failing for {_OUTAGE:g} s with a lease of {_LEASE:g} s",
                columns=_COLUMNS,
                rows=tuple(_row(figures) for figures in outages),
            ),
        ),
        demands=tuple(demands),
    )


_COLUMNS = (
    "broker",
    "events",
    "lost",
    "duplicates",
    "overlaps",
    "out of order",
    "dead letters",
    "dead letters expected",
    "left at the last restart or the end of the outage",
    "s to deliver them",
    "s in total",
    "exit status",
)


def _row(figures: dict[str, Any]) -> tuple[Any, ...]:
    counts = ("broker", "events", "lost", "duplicates", "overlaps", "disordered", "dead", "dead_expected")
    return tuple(figures[name] for name in (*counts, "left", "drained", "seconds", "status"))


def _order_demands(figures: dict[str, Any]) -> list[Demand]:
    """Return the demands for the order of one relay's events; NATS hands out unsettled messages after newer ones."""
    where = f"{figures['broker']}, kills"
    overlaps = Demand(what=f"{where}: overlapping requests", figure=figures["overlaps"], bound=0)
    disordered = Demand(what=f"{where}: events out of order", figure=figures["disordered"], bound=0)
    return [overlaps] if figures["broker"].startswith("NATS") else [overlaps, disordered]


def _demands(figures: dict[str, Any], what: str, duplicates: int) -> list[Demand]:
    where = f"{figures['broker']}, {what}"
    return [
        Demand(what=f"{where}: events lost", figure=figures["lost"], bound=0),
        Demand(what=f"{where}: duplicates", figure=figures["duplicates"], bound=duplicates),
        Demand(what=f"{where}: dead letters missing or unexpected", figure=figures["dead_wrong"], bound=0),
        Demand(what=f"{where}: time to deliver the rest", figure=figures["drained"], bound=_DRAINED_WITHIN, unit="s"),
        Demand(what=f"{where}: exit status", figure=figures["status"], bound=0),
    ]
