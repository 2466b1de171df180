"""Measures, for several ways to pool the connections of many requests in flight, the CPU time of a request."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from benchmarks.contestants import BATCH, VISITORS
from retailrocket_async import Codec, View
from retailrocket_async._http.credentials import Credentials
from retailrocket_async._http.transport import HttpxTransport

REQUESTS = 50
"""Requests a second: the limit of a shop."""

MOST = 100
_SMALL = 10
_KEEPALIVE = 4.0

WAYS = {"ours": "as our client does", "one": "one pool of 100", "small": "pools of 10"}


def _pool(connections: int) -> httpx.AsyncClient:
    limits = httpx.Limits(
        max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=_KEEPALIVE
    )
    return httpx.AsyncClient(limits=limits, trust_env=False)


def _transport(port: int, pool: httpx.AsyncClient | None) -> HttpxTransport:
    return HttpxTransport(
        Credentials("k", "p"), base_url=f"http://127.0.0.1:{port}/1.0/", timeout=30.0, http_client=pool
    )


async def request_cost(port: int, way: str, in_flight: int, seconds: float) -> dict[str, Any]:
    """Post 50 bodies of 57 KB a second for `seconds`; return the CPU time of a request in µs, and the most in flight.

    The server must answer after ``in_flight / 50`` seconds, so that this number of requests is in flight.
    """
    encode = Codec().encode
    envelopes = [encode(View(session_external_id=VISITORS[n], product_id=10**8 + n)) for n in range(BATCH)]
    body = b"[%b]" % b",".join(envelopes)
    # When the machine is busy, a few more requests than `in_flight` may be in flight.
    size = _SMALL if way == "small" else MOST + _SMALL
    pools = [] if way == "ours" else [_pool(size) for _ in range((MOST + _SMALL) // size)]
    transports = [_transport(port, pool) for pool in pools] or [_transport(port, None)]
    users = [0] * len(transports)
    most = 0

    async def post() -> None:
        nonlocal most
        # The first pool with a free connection is used, so that idle connections of the last pools can be closed.
        pool = next((number for number, count in enumerate(users) if count < size), 0)
        users[pool] += 1
        most = max(most, sum(users))
        reply = await transports[pool].post("visitorEvents", body, on_sent=lambda: None)
        users[pool] -= 1
        assert reply.status == 200, reply

    async def paced(duration: float) -> None:
        """Start 50 requests a second, at even intervals, for `duration` seconds."""
        now = asyncio.get_running_loop().time
        begun = now()
        for number in range(round(duration * REQUESTS)):
            await asyncio.sleep(begun + number / REQUESTS - now())
            tasks.append(asyncio.create_task(post()))

    tasks: list[asyncio.Task[None]] = []
    # When the latency is over, as many answers arrive as requests are sent, so the measurement may begin.
    await paced(in_flight / REQUESTS + 0.5)
    begun, before = time.process_time(), len(tasks)
    await paced(seconds)
    cost = (time.process_time() - begun) / (len(tasks) - before) * 1e6
    await asyncio.gather(*tasks)
    for transport in transports:
        await transport.aclose()
    for pool in pools:
        await pool.aclose()
    return {"cpu": cost, "most": most, "bytes": len(body)}
