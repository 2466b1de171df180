"""Checks that four processes with too many events keep one shared limit, also while Redis fails.

The promise needs a quiet machine: the times that requests need to the server must not differ by more than
`RateLimit.jitter`. If they differ more, the run is repeated, up to three runs in total. The third run is judged even if
the machine was busy.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple

from redis import Redis

from acceptance.fleet import replica
from acceptance.support import exact_server
from acceptance.support.exact_server import Conditions, used_share
from acceptance.support.recording_limiter import spread
from benchmarks.support import server_process
from benchmarks.support.progress import report
from benchmarks.support.section import Demand, Effort, Section, Table
from benchmarks.support.window import worst_window
from retailrocket_async import RateLimit
from tests.support.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from acceptance.support.exact_server import Arrival

LIMIT = RateLimit()
REPLICAS = 4
SECONDS = 30.0
SKEWS = (0.0, 300.0, -300.0, 0.0)
"""Seconds by which the clock of each process is wrong, in the run with skewed clocks."""

_RUNS = 3
_INSIDE = ("time", "hmget", "hset", "del", "pexpire", "zadd", "zcard", "zrange", "zrem", "zremrangebyscore")
"""Commands that the limiter's script executes inside Redis; no client sends them."""

_OURS = ("info", "ping", "script|flush")
"""Commands that this run itself sends to Redis."""


class Event(NamedTuple):
    """A failure or a repair of Redis.

    Attributes:
        at: when it happens, as a fraction (0 to 1) of the run's duration.
        action: the function that causes it.
    """

    at: float
    action: Callable[[RedisServer], None]


class Run(NamedTuple):
    """The figures of a run.

    Attributes:
        arrivals: the number of requests that the server counted.
        worst: the most requests in any one second.
        refused: the number of requests above the limit.
        used: the admitted requests as a fraction of the limit, without the first and the last second.
        least: the requests of the process with the fewest, divided by those of the process with the most.
        commands: the commands that clients sent to Redis for each permit; None if Redis was restarted, which resets
            its counters.
        spread: seconds by which the times that requests needed to the server differed.
        last: the number of requests in the last second.
        records: the log of the process that logged most.
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
        """Whether the machine was quiet enough to judge the run."""
        return self.spread <= LIMIT.jitter


def measure(
    seconds: float,
    events: Sequence[Event] = (),
    *,
    skews: Sequence[float] = (0.0,) * REPLICAS,
    replicas: int | None = None,
    seed: int = 0,
) -> Run:
    """Let processes share a limit for `seconds` seconds; `skews` has the error of each process's clock in seconds."""
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        server = stack.enter_context(exact_server.running(Conditions(LIMIT.requests, LIMIT.jitter * 0.8, 0.0, seed)))
        fleet = [replica.Demand(number, server.url, redis.url, replicas, skew) for number, skew in enumerate(skews)]
        pipes = [stack.enter_context(server_process.running(replica.main, demand))[1] for demand in fleet]
        for pipe in pipes:
            pipe.send("begin")
        # The run begins when all processes have sent a request; on a busy machine that takes long.
        for pipe in pipes:
            pipe.recv()
        begin = time.monotonic()
        for event in events:
            time.sleep(max(0.0, begin + event.at * seconds - time.monotonic()))
            event.action(redis)
        time.sleep(max(0.0, begin + seconds - time.monotonic()))
        for pipe in pipes:
            pipe.send("stop")
        answers = [pipe.recv() for pipe in pipes]
        arrivals = server.stop()
        commands = _commands(redis)
    return _figures(arrivals, answers, commands, seconds)


def _figures(arrivals: list[Arrival], answers: list[object], commands: int | None, seconds: float) -> Run:
    results = [answer for answer in answers if isinstance(answer, replica.Result)]
    sendings = {number: sending for result in results for number, sending in result.sendings.items()}
    shares = [len(result.sendings) for result in results]
    return Run(
        arrivals=len(arrivals),
        worst=worst_window([arrival.at for arrival in arrivals]),
        refused=sum(not arrival.admitted for arrival in arrivals),
        used=used_share(arrivals, seconds, LIMIT.requests / LIMIT.per),
        least=min(shares) / max(shares),
        commands=None if commands is None else commands / len(sendings),
        spread=spread(arrivals, sendings),
        last=sum(arrival.at > arrivals[0].at + seconds - 1.0 for arrival in arrivals),
        records=max((result.records for result in results), key=len),
    )


def _commands(redis: RedisServer) -> int | None:
    if redis.starts > 1:
        return None
    with Redis.from_url(redis.url) as client:
        statistics = client.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): figures["calls"] for name, figures in statistics.items()}
    return sum(int(count) for name, count in calls.items() if name not in (*_INSIDE, *_OURS))


# --- failures and repairs of Redis ---


def kill(redis: RedisServer) -> None:
    """Kill Redis."""
    redis.kill()


def start(redis: RedisServer) -> None:
    """Start Redis again on the same port; it is empty."""
    redis.start()


def fail_over(redis: RedisServer) -> None:
    """Replace Redis by an empty one."""
    redis.restart()


def flush_scripts(redis: RedisServer) -> None:
    """Let Redis forget its Lua scripts."""
    with Redis.from_url(redis.url) as client:
        client.script_flush()


def freeze(redis: RedisServer) -> None:
    """Stop Redis without closing its connections."""
    redis.freeze()


def thaw(redis: RedisServer) -> None:
    """Let Redis continue."""
    redis.thaw()


# --- the section ---


def run(effort: Effort) -> Section:
    """Measure all cases; a quick run takes a fifth of the time, not less, as failure and recovery take seconds."""
    seconds = SECONDS / 5 if effort.quick else SECONDS
    # Redis is down for 8 of 30 seconds, and frozen for 3.
    down, frozen = 8 / 30, 3 / 30
    runs = {
        "undisturbed": in_quiet(seconds),
        f"clocks apart by {max(SKEWS) - min(SKEWS):.0f} s": in_quiet(seconds, skews=SKEWS),
        "Redis killed for 8 s": in_quiet(seconds, [Event(0.3, kill), Event(0.3 + down, start)]),
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
        note="worst: the most requests in any one second. least/most: the fewest requests of a process as a share\n"
        "of the most. commands: sent to Redis for each permit. spread: by how much the requests' ways to the server\n"
        f"differed; the promise holds up to {LIMIT.jitter * 1000:.0f} ms. records: in the log of one process.",
    )
    return Section(
        name="limit",
        title="One limit for a fleet",
        tables=(table,),
        demands=tuple(demand for name, measured in runs.items() for demand in _demands(name, measured)),
    )


def in_quiet(seconds: float, events: Sequence[Event] = (), *, skews: Sequence[float] = (0.0,) * REPLICAS) -> Run:
    """Measure a run; repeat it if the machine was too busy to judge it, up to three runs in total."""
    for seed in range(_RUNS):
        measured = measure(seconds, events, skews=skews, seed=seed)
        report(f"limit: {measured}")
        if measured.quiet:
            break
    return measured


def _demands(name: str, measured: Run) -> list[Demand]:
    fails = "killed" in name or "frozen" in name or "failover" in name
    # If Redis fails, 4 % more requests are allowed, because at first only some of the processes have noticed the
    # failure.
    worst = LIMIT.requests * (1.04 if fails else 1.0)
    demands = [
        Demand(what=f"requests in the fullest second ({name})", figure=measured.worst, bound=worst),
        Demand(what=f"used ({name})", figure=measured.used * 100, bound=85 if fails else 96, unit="%", at_least=True),
    ]
    if not fails:
        demands.append(Demand(what=f"smallest share ({name})", figure=measured.least, bound=0.9, at_least=True))
        assert measured.commands is not None
        demands.append(Demand(what=f"commands a permit ({name})", figure=measured.commands, bound=1.1))
    else:
        # Each process logs one record for the failure and one for the recovery.
        demands.append(Demand(what=f"log records of a process ({name})", figure=len(measured.records), bound=2))
    return demands
