"""The faults of the soak: random faults that hit single requests, and outages that hit all requests for a while."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, NamedTuple

from acceptance.support.fault import KEY, Conditions, Fault

if TYPE_CHECKING:
    from acceptance.support.faulty_server import FaultyServer

RANDOM_FAULTS = (
    *(
        Fault(status=status, record=record, probability=0.003)
        for status in (500, 502, 503, 504)
        for record in (False, True)
    ),
    *(
        Fault(kind, record=record, probability=0.003)
        for kind in ("reset", "close", "cut_head", "garbage")
        for record in (False, True)
    ),
    Fault("cut_body", record=True, probability=0.003),
    Fault("idle_close", probability=0.003),
    # Stalls are rare, because each keeps a request in flight for a whole time-out.
    Fault("stall", record=False, probability=0.001),
    Fault("stall", record=True, probability=0.001),
    # After these answers nothing was recorded, so the client retries without pausing other requests.
    Fault(status=408, probability=0.002),
    Fault(status=425, probability=0.002),
)
"""Faults that may hit any request; they hit about one in sixteen."""

_PAUSE = 8.0
"""Seconds between two outages."""


class _Outage(NamedTuple):
    """A fault that hits all requests for a while.

    Attributes:
        name: the name of the outage in the table.
        seconds: the duration of the outage.
        faults: the faults that hit the requests during the outage; if empty, the random faults go on.
        max_bytes: the largest body that is accepted during the outage; None for no bound.
        shut: whether connections are refused.
        new_key: whether the server's key changes when the outage begins; the shop gets the new key when it ends.
    """

    name: str
    seconds: float
    faults: tuple[Fault, ...] = ()
    max_bytes: int | None = None
    shut: bool = False
    new_key: bool = False


_OUTAGES = (
    _Outage("connections refused", 2.0, shut=True),
    _Outage("503 for all", 2.0, (Fault(status=503),)),
    _Outage("500 for all, recorded", 1.0, (Fault(status=500, record=True),)),
    _Outage("stalls for all", 2.0, (Fault("stall"),)),
    _Outage("403 for all", 1.5, (Fault(status=403),)),
    _Outage("404 for all", 1.5, (Fault(status=404),)),
    _Outage("302 for all", 1.5, (Fault(status=302),)),
    _Outage("429 for all", 1.0, (Fault(status=429),)),
    _Outage("429 once, Retry-After", 1.0, (Fault(status=429, retry_after="1", times=1),)),
    _Outage("smaller bodies", 4.0, RANDOM_FAULTS, max_bytes=12_000),
    _Outage("key changes at once", 0.0, new_key=True),
    _Outage("key changes late", 2.0, new_key=True),
)


class FaultPlan:
    """Causes the outages in random order; every outage happens once before any is repeated.

    Attributes:
        key: the API key that the shop uses.
        outages: the names of the outages so far.
    """

    def __init__(self, seed: int) -> None:
        self.key = KEY
        self.outages: list[str] = []
        self._random = random.Random(seed)
        self._normal = Conditions(limit=None, latency=0.005, batch_latency=0.3, faults=RANDOM_FAULTS, seed=seed)

    @property
    def normal(self) -> Conditions:
        """The server's settings between the outages."""
        return self._normal

    async def run(self, server: FaultyServer) -> None:
        """Cause outages until cancelled."""
        while True:
            for outage in self._random.sample(_OUTAGES, len(_OUTAGES)):
                await asyncio.sleep(_PAUSE)
                self.outages.append(outage.name)
                await self._cause(server, outage)

    async def end(self, server: FaultyServer) -> None:
        """End all faults, so that the remaining events can be delivered."""
        self.key = self._normal.key
        await server.behave(self._normal._replace(faults=()))

    async def _cause(self, server: FaultyServer, outage: _Outage) -> None:
        if outage.new_key:
            self._normal = self._normal._replace(key=f"key{len(self.outages)}")
        if outage.shut:
            await server.shut(outage.seconds)
        faults = outage.faults or self._normal.faults
        await server.behave(self._normal._replace(faults=faults, max_bytes=outage.max_bytes))
        await asyncio.sleep(outage.seconds)
        self.key = self._normal.key
        await server.behave(self._normal)
