"""Three replicas of a shop under load, end to end: visitors, uvicorn, the client, one shared limit, the emulator."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from typing import TYPE_CHECKING, NamedTuple

import _storefront
from _process import running as running_process
from _progress import tell
from _section import Demand, Effort, Section, Table
from _window import worst_window

from retailrocket_async.emulator import Settings, emulator_process
from tests.support.redis_server import RedisServer

if TYPE_CHECKING:
    from _process import Pipe

LIMIT = 50
REPLICAS = 3
SECONDS = 15.0
PACE = 200
"""Pages a second that visitors ask each replica for, from as many connections as below."""
VISITORS = 8


class Load(NamedTuple):
    """What the visitors do.

    Attributes:
        ports: of the replicas.
        seconds: for so long.
    """

    ports: tuple[int, ...]
    seconds: float


class Run(NamedTuple):
    """What was measured.

    Attributes:
        pages: that visitors were served.
        replicas: what each replica has told.
        worst: the most requests that the emulator counted in any one second.
        refused: how many it has answered 429.
        recorded: events that it has accepted.
    """

    pages: int
    replicas: list[_storefront.Told]
    worst: int
    refused: int
    recorded: int

    @property
    def delivered(self) -> int:
        """Events that were delivered, as the replicas say."""
        return sum(told.delivered for told in self.replicas)

    @property
    def least(self) -> float:
        """The smallest share of a replica in the requests as a part of the largest."""
        shares = [told.requests for told in self.replicas]
        return min(shares) / max(shares)


def measure(seconds: float) -> Run:
    """Let visitors in for so long."""
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        emulator = stack.enter_context(emulator_process(Settings(limit=LIMIT, arrival_jitter=0.02, seed=0)))
        settings = _storefront.Settings(emulator.url, redis.url, REPLICAS)
        shops = [stack.enter_context(running_process(_storefront.main, settings)) for _ in range(REPLICAS)]
        load = Load(tuple(port for port, _ in shops), seconds)
        _, visitors = stack.enter_context(running_process(visit, load))
        pages = visitors.recv()
        assert isinstance(pages, int)
        for _, pipe in shops:
            pipe.send("close")
        told = [pipe.recv() for _, pipe in shops]
        stats = emulator.stats()
        times = sorted(request["time"] for request in emulator.requests())
    return Run(
        pages=pages,
        replicas=[answer for answer in told if isinstance(answer, _storefront.Told)],
        worst=worst_window(times),
        refused=stats["statuses"].get("429", 0),
        recorded=stats["total_events"],
    )


def visit(pipe: Pipe, load: Load) -> None:
    """Ask for product pages; tell how many were served."""
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
    """Measure; a quick run lasts a fifth."""
    seconds = SECONDS / 5 if effort.quick else SECONDS
    measured = measure(seconds)
    tell(f"shops: {measured}")
    rows = tuple(
        (f"replica {number}", told.tracked, told.delivered, told.requests, told.refused)
        for number, told in enumerate(measured.replicas, 1)
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
