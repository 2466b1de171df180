"""The shared limit: four processes with more demand than it lets out, and what happens to Redis meanwhile.

A run that the machine has disturbed, so that the way from the client to the server differed by more than
`RateLimit.jitter` allows for, is made again, three times at most; the last one counts whatever it was.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple

import _replica
from _exact_server import Conditions
from _exact_server import running as running_server
from _process import running as running_process
from _progress import tell
from _section import Demand, Effort, Section, Table
from _window import worst_window
from redis import Redis

from retailrocket_async import RateLimit
from tests.support.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _exact_server import Arrival

LIMIT = RateLimit()
REPLICAS = 4
SECONDS = 30.0
SKEWS = (0.0, 300.0, -300.0, 0.0)
"""Seconds by which the clocks of the processes differ, where they do."""

_RUNS = 3
_INSIDE = ("time", "hmget", "hset", "del", "pexpire", "zadd", "zcard", "zrange", "zrem", "zremrangebyscore")
"""Commands that the script gives, and no client."""

_OURS = ("info", "ping", "script|flush")
"""Commands that the benchmark gives."""


class Event(NamedTuple):
    """Something that happens to Redis.

    Attributes:
        at: the part of the run after which it happens.
        what: what is done to the server.
    """

    at: float
    what: Callable[[RedisServer], None]


class Run(NamedTuple):
    """What was measured.

    Attributes:
        arrivals: requests that the server counted.
        worst: the most of them in any one second.
        refused: how many of them were one too many.
        used: the part of the limit that was used, without the first and the last second.
        least: the smallest share of a process as a part of the largest.
        commands: that clients gave to Redis, a permit; None where Redis was started anew, which forgets them.
        spread: seconds by which the ways from a grant to the server differed at most.
        last: requests in the last second.
        records: the log of the process that wrote most.
    """

    arrivals: int
    worst: int
    refused: int
    used: float
    least: float
    commands: float | None
    spread: float
    last: int
    records: list[str]

    @property
    def quiet(self) -> bool:
        """Whether the machine was quiet enough to judge by."""
        return self.spread <= LIMIT.jitter


def measure(
    seconds: float,
    events: Sequence[Event] = (),
    *,
    skews: Sequence[float] = (0.0,) * REPLICAS,
    replicas: int | None = None,
    seed: int = 0,
) -> Run:
    """Let as many processes as there are `skews` share a limit for so long."""
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        server = stack.enter_context(running_server(Conditions(LIMIT.requests, LIMIT.jitter * 0.8, 0.0, seed)))
        fleet = [_replica.Demand(number, server.url, redis.url, replicas, skew) for number, skew in enumerate(skews)]
        pipes = [stack.enter_context(running_process(_replica.main, demand))[1] for demand in fleet]
        for pipe in pipes:
            pipe.send("begin")
        # A busy machine takes its time to connect to everything.
        for pipe in pipes:
            pipe.recv()
        begin = time.monotonic()
        for event in events:
            time.sleep(max(0.0, begin + event.at * seconds - time.monotonic()))
            event.what(redis)
        time.sleep(max(0.0, begin + seconds - time.monotonic()))
        for pipe in pipes:
            pipe.send("stop")
        told = [pipe.recv() for pipe in pipes]
        arrivals = server.arrivals()
        commands = _commands(redis)
    return _judged(arrivals, told, commands, seconds)


def _judged(arrivals: list[Arrival], told: list[object], commands: int | None, seconds: float) -> Run:
    notes = [note for note in told if isinstance(note, _replica.Told)]
    sendings = {number: sending for note in notes for number, sending in note.sendings.items()}
    longest = max(arrival.at - sendings[arrival.number].written for arrival in arrivals)
    shortest = min(arrival.at - sendings[arrival.number].granted for arrival in arrivals)
    shares = [len(note.sendings) for note in notes]
    start, end = arrivals[0].at + 1.0, arrivals[0].at + seconds - 1.0
    inside = sum(arrival.admitted and start <= arrival.at < end for arrival in arrivals)
    return Run(
        arrivals=len(arrivals),
        worst=worst_window([arrival.at for arrival in arrivals]),
        refused=sum(not arrival.admitted for arrival in arrivals),
        used=inside / (end - start) / (LIMIT.requests / LIMIT.per),
        least=min(shares) / max(shares),
        commands=None if commands is None else commands / len(sendings),
        spread=longest - shortest,
        last=sum(arrival.at > arrivals[0].at + seconds - 1.0 for arrival in arrivals),
        records=max((note.records for note in notes), key=len),
    )


def _commands(redis: RedisServer) -> int | None:
    if redis.starts > 1:
        return None
    with Redis.from_url(redis.url) as client:
        statistics = client.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): figures["calls"] for name, figures in statistics.items()}
    return sum(count for name, count in calls.items() if name not in (*_INSIDE, *_OURS))


# --- what happens to Redis ---


def kill(redis: RedisServer) -> None:
    redis.kill()


def start(redis: RedisServer) -> None:
    """Start it empty, on the same port."""
    redis.start()


def fail_over(redis: RedisServer) -> None:
    """Put an empty one into its place."""
    redis.restart()


def flush_scripts(redis: RedisServer) -> None:
    with Redis.from_url(redis.url) as client:
        client.script_flush()


def freeze(redis: RedisServer) -> None:
    redis.freeze()


def thaw(redis: RedisServer) -> None:
    redis.thaw()


# --- the section ---


def run(effort: Effort) -> Section:
    """Measure; a quick run lasts a fifth, as a failure and a return take seconds."""
    seconds = SECONDS / 5 if effort.quick else SECONDS
    # Redis is away for 8 of 30 seconds, and frozen for 3.
    away, frozen = 8 / 30, 3 / 30
    runs = {
        "undisturbed": in_quiet(seconds),
        f"clocks apart by {max(SKEWS) - min(SKEWS):.0f} s": in_quiet(seconds, skews=SKEWS),
        "Redis killed for 8 s": in_quiet(seconds, [Event(0.3, kill), Event(0.3 + away, start)]),
        "Redis frozen for 3 s": in_quiet(seconds, [Event(0.3, freeze), Event(0.3 + frozen, thaw)]),
        "failover to an empty Redis": in_quiet(seconds, [Event(0.4, fail_over)]),
        "SCRIPT FLUSH": in_quiet(seconds, [Event(part / 10, flush_scripts) for part in range(3, 8, 2)]),
    }
    rows = tuple(
        (name, *(r.arrivals, r.worst, r.refused, r.used * 100, r.least, r.commands, r.spread * 1000, len(r.records)))
        for name, r in runs.items()
    )
    table = Table(
        title=f"{REPLICAS} processes share {LIMIT.requests} requests a second for {seconds:.0f} s",
        columns=("Redis", "requests", "worst", "refused", "used %", "least/most", "commands", "spread ms", "records"),
        rows=rows,
        note="worst: the most requests in any one second. least/most: the smallest share of a process as part of the\n"
        "largest. commands: to Redis, a permit. spread: how much the ways from grant to server differed, at most;\n"
        f"the promise holds up to {LIMIT.jitter * 1000:.0f} ms. records: in the log of one process.",
    )
    return Section(
        name="limit",
        title="One limit for a fleet",
        tables=(table,),
        demands=tuple(demand for name, measured in runs.items() for demand in _demands(name, measured)),
    )


def in_quiet(seconds: float, events: Sequence[Event] = (), *, skews: Sequence[float] = (0.0,) * REPLICAS) -> Run:
    """Measure until the machine was quiet enough to judge by, or often enough."""
    for seed in range(_RUNS):
        measured = measure(seconds, events, skews=skews, seed=seed)
        tell(f"limit: {measured}")
        if measured.quiet:
            break
    return measured


def _demands(name: str, measured: Run) -> list[Demand]:
    broken = "killed" in name or "frozen" in name or "failover" in name
    # At the edges, where some processes have noticed and some have not, 4 % more.
    worst = LIMIT.requests * (1.04 if broken else 1.0)
    demands = [
        Demand(what=f"requests in the fullest second ({name})", figure=measured.worst, bound=worst),
        Demand(what=f"used ({name})", figure=measured.used * 100, bound=85 if broken else 96, unit="%", at_least=True),
    ]
    if not broken:
        demands.append(Demand(what=f"smallest share ({name})", figure=measured.least, bound=0.9, at_least=True))
        assert measured.commands is not None
        demands.append(Demand(what=f"commands a permit ({name})", figure=measured.commands, bound=1.1))
    else:
        # It is away once, and back once.
        demands.append(Demand(what=f"log records of a process ({name})", figure=len(measured.records), bound=2))
    return demands
