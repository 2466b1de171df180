"""The defaults fit the real API: it answers a batch after 1.5 s and allows one batch in flight for each visitor."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from retailrocket_async import Batching, Buffer, RateLimit, RetryPolicy, View
from retailrocket_async._delivery.dispatcher import Dispatcher
from retailrocket_async._delivery.rate_limiter import LocalLimiter
from retailrocket_async._http.reply import Reply
from tests.support.fakes import CODEC, MOMENT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.virtual_time import CheckedLoop

VISITORS = 4_000
PRODUCT = re.compile(rb'"sessionExternalId":"(\w+)","timestamp":"[^"]+","productId":(\d+)')


class SlowServer:
    """Answers each batch after 1.5 s, every twentieth with 503, and records visitors whose events break API rules."""

    def __init__(self) -> None:
        self._in_flight: Counter[bytes] = Counter()
        self._last: dict[bytes, int] = {}
        self.overlaps: set[bytes] = set()
        self.backwards: set[bytes] = set()
        self.requests = self.recorded = 0

    async def post(self, path: str, body: bytes, *, on_sent: Callable[[], None]) -> Reply:
        """Answer after 1.5 s, and record visitors with two batches in flight or with events out of order."""
        self.requests += 1
        fails = self.requests % 20 == 0
        events = PRODUCT.findall(body)
        visitors = {visitor for visitor, _ in events}
        on_sent()
        for visitor in visitors:
            self._in_flight[visitor] += 1
            if self._in_flight[visitor] > 1:
                self.overlaps.add(visitor)
        await asyncio.sleep(1.5)
        self._in_flight.subtract(visitors)
        if fails:
            return Reply(status=503)
        for visitor, number in events:
            if self._last.get(visitor, -1) > int(number):
                self.backwards.add(visitor)
            self._last[visitor] = int(number)
        self.recorded += len(events)
        return Reply(status=200)

    async def renew_key(self, serial: int) -> tuple[bool, str | None]:
        """Return no new key."""
        return False, None

    async def aclose(self) -> None:
        """Close nothing."""


async def shop_of(server: SlowServer, *, seconds: float, per_second: int) -> int:
    """Track `per_second` events a second with the defaults; return how many were recorded when `seconds` were over."""
    engine = Dispatcher(
        batching=Batching(),
        buffer=Buffer(),
        retry=RetryPolicy(),
        limiter=LocalLimiter(RateLimit()),
        transport=server,
    )
    loop = asyncio.get_running_loop()
    tracked = 0
    while loop.time() < seconds:
        while tracked < loop.time() * per_second:
            view = View(session_external_id=f"v{tracked % VISITORS}", product_id=tracked, timestamp=MOMENT)
            await engine.intake.accept(view, CODEC.encode(view))
            tracked += 1
        await asyncio.sleep(0.01)
    recorded = server.recorded
    report = await engine.aclose(None)
    assert report.clean
    assert report.stats.delivered == report.stats.tracked == tracked
    return recorded


@pytest.mark.untraced
async def test_no_two_batches_of_a_visitor_are_in_flight_at_once(virtual_clock: CheckedLoop) -> None:
    """With the defaults, no visitor has two batches in flight or events recorded out of order, even after retries."""
    server = SlowServer()

    await shop_of(server, seconds=8.0, per_second=6_000)

    assert server.recorded >= 8.0 * 5_900
    assert not server.overlaps
    assert not server.backwards


@pytest.mark.untraced
async def test_a_batch_of_seconds_does_not_throttle_a_shop(virtual_clock: CheckedLoop) -> None:
    """If a batch takes 1.5 s, the defaults still deliver over 8,000 events a second (2,600 at 8 batches in flight)."""
    server = SlowServer()

    recorded = await shop_of(server, seconds=5.0, per_second=16_000)

    # The first answers come after 1.5 s, so 3.5 of the 5 s remain.
    assert recorded / 3.5 > 8_000, recorded
    assert not server.overlaps
