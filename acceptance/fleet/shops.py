"""Checks the whole path with three replicas of a shop: visitors, uvicorn, client, shared limit and emulator."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from typing import TYPE_CHECKING, NamedTuple

from acceptance.fleet import storefront
from benchmarks.support import server_process
from benchmarks.support.progress import report
from benchmarks.support.section import Demand, Effort, Section, Table
from benchmarks.support.window import worst_window
from retailrocket_async.emulator import Settings, emulator_process
from tests.support.redis_server import RedisServer

if TYPE_CHECKING:
    from benchmarks.support.server_process import Pipe

LIMIT = 50
REPLICAS = 3
SECONDS = 15.0
PACE = 200
"""Pages a second that the visitors request from each replica."""
VISITORS = 8
"""Number of connections to each replica."""


class Load(NamedTuple):
    """The settings of the visitors' process.

    Attributes:
        ports: the ports of the replicas.
        seconds: the duration of the visits.
    """

    ports: tuple[int, ...]
    seconds: float


class Run(NamedTuple):
    """The figures of a run.

    Attributes:
        pages: the number of pages that visitors got.
        replicas: the result of each replica.
        worst: the most requests that the emulator counted in any one second.
        refused: the number of requests that the emulator answered with 429.
        recorded: the number of events that the emulator accepted.
        overlaps: the number of visitors in requests that overlapped another request with events of the same visitor.
    """

    pages: int
    replicas: list[storefront.Result]
    worst: int
    refused: int
    recorded: int
    overlaps: int

    @property
    def delivered(self) -> int:
        """The number of delivered events, according to the replicas."""
        return sum(replica.delivered for replica in self.replicas)

    @property
    def least(self) -> float:
        """The requests of the replica with the fewest, divided by those of the replica with the most."""
        shares = [replica.requests for replica in self.replicas]
        return min(shares) / max(shares)


def measure(seconds: float) -> Run:
    """Let visitors request pages for `seconds` seconds; return the counts."""
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        emulator = stack.enter_context(
            emulator_process(Settings(limit=LIMIT, batch_latency=0.3, arrival_jitter=0.02, seed=0))
        )
        settings = storefront.Settings(emulator.url, redis.url, REPLICAS)
        shops = [stack.enter_context(server_process.running(storefront.main, settings)) for _ in range(REPLICAS)]
        load = Load(tuple(port for port, _ in shops), seconds)
        _, visitors = stack.enter_context(server_process.running(visit, load))
        pages = visitors.recv()
        assert isinstance(pages, int)
        for _, pipe in shops:
            pipe.send("close")
        answers = [pipe.recv() for _, pipe in shops]
        stats = emulator.stats()
        times = sorted(request["time"] for request in emulator.requests())
    return Run(
        pages=pages,
        replicas=[answer for answer in answers if isinstance(answer, storefront.Result)],
        worst=worst_window(times),
        refused=stats["statuses"].get("429", 0),
        recorded=stats["total_events"],
        overlaps=stats["overlaps"],
    )


def visit(pipe: Pipe, load: Load) -> None:
    """Request product pages; send 0 through `pipe` at the start, and the number of pages at the end."""
    pipe.send(0)
    pipe.send(asyncio.run(_visit(load)))


async def _visit(load: Load) -> int:
    numbers = itertools.count(1)
    end = time.monotonic() + load.seconds

    async def visitor(port: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        served = 0
        while time.monotonic() < end:
            writer.write(b"GET /products/%d HTTP/1.1\r\nhost: shop\r\n\r\n" % next(numbers))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            await reader.readexactly(len(b"a product page"))
            served += 1
            await asyncio.sleep(VISITORS / PACE)
        writer.close()
        return served

    return sum(await asyncio.gather(*(visitor(port) for port in load.ports for _ in range(VISITORS))))


def run(effort: Effort) -> Section:
    """Measure a run of three replicas; a quick run takes a fifth of the time."""
    seconds = SECONDS / 5 if effort.quick else SECONDS
    measured = measure(seconds)
    report(f"shops: {measured}")
    rows = tuple(
        (f"replica {number}", replica.tracked, replica.delivered, replica.requests, replica.refused)
        for number, replica in enumerate(measured.replicas, 1)
    )
    table = Table(
        title=f"{REPLICAS} replicas under uvicorn, {measured.pages / seconds:.0f} pages a second for {seconds:.0f} s",
        columns=("", "tracked", "delivered", "requests", "refused"),
        rows=rows,
        note=f"The emulator, at {LIMIT} requests a second, counted {measured.worst} in the fullest second.",
    )
    return Section(
        name="shops",
        title="Three replicas of a shop",
        tables=(table,),
        demands=(
            Demand(what="requests in the fullest second", figure=measured.worst, bound=LIMIT),
            Demand(what="requests answered 429", figure=measured.refused, bound=0),
            Demand(what="overlapping requests with events of one visitor", figure=measured.overlaps, bound=0),
            Demand(what="pages whose event is missing", figure=measured.pages - measured.recorded, bound=0),
            Demand(
                what="events delivered",
                figure=measured.delivered / measured.pages * 100,
                bound=100,
                unit="%",
                at_least=True,
            ),
            Demand(what="smallest share of a replica", figure=measured.least, bound=0.9, at_least=True),
        ),
    )
