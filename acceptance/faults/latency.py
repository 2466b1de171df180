"""Scenarios in which a batch takes 1.5 s, as with the API, and a visitor's next events wait for the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from acceptance.faults.scenario import scenario
from acceptance.support.fault import Fault
from retailrocket_async import RetryPolicy

if TYPE_CHECKING:
    from acceptance.faults.testbed import Testbed

_LATENCY = 1.5
_TIMEOUT = 5.0
_OFTEN = 0.3
_QUICK = RetryPolicy(initial_backoff=0.1, max_backoff=1.0)
"""A policy with short waits between retries, because one request in three fails."""


@scenario("slow-5xx", faults=(Fault(status=500, record=True), Fault(status=503)))
@scenario("slow-reset", faults=(Fault("reset", record=True), Fault("reset")))
@scenario("slow-408", faults=(Fault(status=408),))
async def failing(testbed: Testbed, faults: tuple[Fault, ...]) -> None:
    """If batches take 1.5 s and requests fail, a visitor's requests do not overlap, and the events stay in order."""
    await testbed.behave(
        *(fault._replace(probability=_OFTEN / len(faults)) for fault in faults), batch_latency=_LATENCY
    )
    client = testbed.open(timeout=_TIMEOUT, retry=_QUICK)
    await testbed.stream(4.0, 1000)
    await testbed.repair()
    await testbed.close()
    stats = client.stats()
    testbed.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")
    testbed.expect(stats.retries > 0, "no fault hit a request")


@scenario("slow-poison", poison=3)
@scenario("slow-too-large", max_bytes=16_000)
async def divided(testbed: Testbed, *, poison: int = 0, max_bytes: int | None = None) -> None:
    """If batches take 1.5 s and are divided, a visitor's requests do not overlap, and the events stay in order."""
    await testbed.behave(batch_latency=_LATENCY, max_bytes=max_bytes)
    client = testbed.open(timeout=_TIMEOUT)
    await testbed.stream(3.0, 2000, poison=poison)
    await testbed.close()
    stats = client.stats()
    testbed.expect(stats.rejected == poison, f"{stats.rejected} rejected for {poison} refused events")
    testbed.expect(stats.splits > 0, "no batch was divided")
