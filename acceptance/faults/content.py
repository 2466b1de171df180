"""Scenarios with events and batches that the API refuses because of their content or size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from acceptance.faults.scenario import scenario
from retailrocket_async import Batching, Rejected

if TYPE_CHECKING:
    from acceptance.faults.testbed import Testbed


def _search(culprits: int, batch: int) -> int:
    """Return how many requests are allowed at most for finding `culprits` refused events among `batch` events."""
    return 2 * culprits * math.ceil(math.log2(batch)) + 1


@scenario("poison-5", number=5)
@scenario("poison-1", number=1)
async def poison(testbed: Testbed, number: int) -> None:
    """If the API refuses an event, the event is found and rejected, and the other events of its batch are delivered."""
    client = testbed.open()
    await testbed.stream(2.0, 1000, poison=number)
    await testbed.close()
    stats = client.stats()
    testbed.expect(stats.rejected == number, f"{stats.rejected} rejected for {number} refused events")
    batches = stats.requests - stats.splits
    # A batch has the events of a tenth of a second, or more if finding refused events has used up the permits.
    allowed = number * _search(1, 500)
    testbed.expect(stats.splits <= allowed, f"{stats.splits} requests beside {batches} batches, {allowed} allowed")


@scenario("poison-8-in-a-batch")
async def poison_in_one_batch(testbed: Testbed) -> None:
    """If one batch has eight refused events, all eight are found with at most the allowed number of requests."""
    client = testbed.open(batching=Batching(max_events=500, linger=1.0))
    for position in range(500):
        await testbed.track(poison=position % 61 == 5 and position < 488)
    await testbed.close()
    stats = client.stats()
    testbed.expect(stats.rejected == 8, f"{stats.rejected} rejected for 8 refused events")
    allowed = 1 + _search(8, 500)
    testbed.expect(stats.requests <= allowed, f"{stats.requests} requests, {allowed} allowed")


@scenario("poison-throughout")
async def poison_throughout(testbed: Testbed) -> None:
    """If a batch has many refused events, it costs a limited number of requests, and the next batch is delivered."""
    client = testbed.open(batching=Batching(max_events=500, linger=1.0))
    for position in range(500):
        await testbed.track(poison=position % 2 == 0)
    await testbed.stream(1.0, 500)
    await testbed.close()
    stats = client.stats()
    testbed.expect(250 <= stats.rejected <= 500, f"{stats.rejected} rejected")
    alone = [outcome for outcome in testbed.outcomes() if isinstance(outcome, Rejected) and outcome.isolated]
    testbed.expect(8 <= len(alone) <= 16, f"{len(alone)} found before the search ended")
    allowed = 2 + _search(8, 500) + 8
    testbed.expect(stats.requests <= allowed, f"{stats.requests} requests, {allowed} allowed")


@scenario("too-large")
async def too_large(testbed: Testbed) -> None:
    """If a batch is too large, it is sent in parts, and later batches are smaller; a too large event is rejected."""
    await testbed.behave(max_bytes=16_000)
    client = testbed.open()
    await testbed.stream(1.0, 2000)
    await testbed.track(padding=20_000, bad=True)
    await testbed.stream(2.0, 2000)
    await testbed.close()
    stats = client.stats()
    testbed.expect(stats.rejected == 1, f"{stats.rejected} rejected for one event that is too large")
    refused = sum(arrival.answer == "413" for arrival in await testbed.arrivals())
    testbed.expect(refused <= stats.requests / 3, f"{refused} of {stats.requests} requests were too large")
