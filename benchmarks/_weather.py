"""What the soak's server suffers: gusts that hit one request, and storms that last."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, NamedTuple

from _fault import KEY, Conditions, Fault

if TYPE_CHECKING:
    from _faulty_server import FaultyServer

GUSTS = (
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
    # Each holds one of eight places for a whole time-out.
    Fault("stall", record=False, probability=0.001),
    Fault("stall", record=True, probability=0.001),
    # Nothing was recorded, and nobody was asked to slow down.
    Fault(status=408, probability=0.002),
    Fault(status=425, probability=0.002),
)
"""What may hit any request: about one in sixteen is hit."""

_CALM = 8.0
"""Seconds from one storm to the next."""


class _Storm(NamedTuple):
    """Faults of all requests for a time.

    Attributes:
        name: what the table calls it.
        seconds: how long.
        faults: what hits every request.
        max_bytes: the largest body meanwhile.
        shut: whether nobody can connect.
        new_key: whether the server's key is another from now on; the shop learns it at the end.
    """

    name: str
    seconds: float
    faults: tuple[Fault, ...] = ()
    max_bytes: int | None = None
    shut: bool = False
    new_key: bool = False


_STORMS = (
    _Storm("connections refused", 2.0, shut=True),
    _Storm("503 for all", 2.0, (Fault(status=503),)),
    _Storm("500 for all, recorded", 1.0, (Fault(status=500, record=True),)),
    _Storm("stalls for all", 2.0, (Fault("stall"),)),
    _Storm("403 for all", 1.5, (Fault(status=403),)),
    _Storm("404 for all", 1.5, (Fault(status=404),)),
    _Storm("302 for all", 1.5, (Fault(status=302),)),
    _Storm("429 for all", 1.0, (Fault(status=429),)),
    _Storm("429 once, Retry-After", 1.0, (Fault(status=429, retry_after="1", times=1),)),
    _Storm("smaller bodies", 4.0, GUSTS, max_bytes=12_000),
    _Storm("key changes at once", 0.0, new_key=True),
    _Storm("key changes late", 2.0, new_key=True),
)


class Weather:
    """Makes the storms, in random order, all of them before any comes again.

    Attributes:
        key: the API key as the shop knows it.
        storms: the names of those that came.
    """

    def __init__(self, seed: int) -> None:
        self.key = KEY
        self.storms: list[str] = []
        self._random = random.Random(seed)
        self._fair = Conditions(limit=None, latency=0.005, faults=GUSTS, seed=seed)

    @property
    def fair(self) -> Conditions:
        """The conditions between the storms."""
        return self._fair

    async def blow(self, server: FaultyServer) -> None:
        """Go on without end."""
        while True:
            for storm in self._random.sample(_STORMS, len(_STORMS)):
                await asyncio.sleep(_CALM)
                self.storms.append(storm.name)
                await self._storm(server, storm)

    async def calm(self, server: FaultyServer) -> None:
        """End all faults, so that what is left can be delivered."""
        self.key = self._fair.key
        await server.behave(self._fair._replace(faults=()))

    async def _storm(self, server: FaultyServer, storm: _Storm) -> None:
        if storm.new_key:
            self._fair = self._fair._replace(key=f"key{len(self.storms)}")
        if storm.shut:
            await server.shut(storm.seconds)
        faults = storm.faults or self._fair.faults
        await server.behave(self._fair._replace(faults=faults, max_bytes=storm.max_bytes))
        await asyncio.sleep(storm.seconds)
        self.key = self._fair.key
        await server.behave(self._fair)
