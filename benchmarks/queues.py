"""Compares our client's queue with a queue that keeps no order, to measure what the order of each visitor costs.

Only the class `Ordered` uses the methods of the client's queue.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from benchmarks import visitors
from benchmarks.contestants import BATCH
from retailrocket_async import Batching, Buffer, Codec, Receipt, View
from retailrocket_async._fate import Fate
from retailrocket_async._queue.buffer import EventBuffer

if TYPE_CHECKING:
    from collections.abc import Sequence

IN_FLIGHT = 75
"""Number of batches in flight if 50 requests a second are made and each takes 1.5 s."""

_CYCLE = 200_000
"""Number of different events; after these the same events are used again."""


_FULL = 90_000
"""Number of waiting events from which on no events are added; the bound of the buffer is 100,000."""


class Queue(Protocol):
    """The methods of a queue that is measured."""

    def put(self, envelope: bytes, visitor: str, /) -> None:
        """Add one event, given by its JSON and its visitor's id; the queue must have space."""

    def waiting(self) -> int:
        """Return the number of waiting events."""

    def take(self) -> object:
        """Remove and return a batch; None if each waiting event has to wait until another batch is settled."""

    def release(self, batch: Any, /) -> object:
        """Report that a batch is settled."""


class Ordered:
    """Our client's queue."""

    def __init__(self) -> None:
        buffer = EventBuffer(Batching(), Buffer(), time.monotonic)
        offer, key_of = buffer.offer, buffer.key_of

        def put(envelope: bytes, visitor: str, /) -> None:
            assert offer(envelope, "view", key_of(visitor)) is not None, "the queue is full"

        self.put = put
        self.waiting = lambda: buffer.events
        self.take = buffer.take
        self.release = buffer.release


@attrs.define(eq=False)
class _PlainBatch:
    envelopes: list[bytes] = attrs.field(factory=list[bytes])
    fate: Fate = attrs.field(factory=lambda: Fate([]))
    size: int = 1


class _PlainBuffer:
    """A bounded list of batches that keeps no order between them, with the same counters and bounds."""

    def __init__(self, batching: Batching, bounds: Buffer) -> None:
        self.events = 0
        self.bytes = 0
        self.bytes_in_flight = 0
        self.sooner = False
        self._batching = batching
        self._bounds = bounds
        self._batches = deque([_PlainBatch()])

    def fits(self, size: int) -> bool:
        bounds = self._bounds
        return self.events < bounds.max_events and self.bytes + self.bytes_in_flight + size <= bounds.max_bytes

    def append(self, envelope: bytes, name: str) -> Receipt:
        length = len(envelope) + 1
        batch = self._batches[-1]
        if len(batch.envelopes) >= self._batching.max_events or batch.size + length > self._batching.max_bytes:
            batch = _PlainBatch()
            self._batches.append(batch)
        batch.envelopes.append(envelope)
        receipt = Receipt(batch.fate, len(batch.fate.names))
        batch.fate.names.append(name)
        batch.size += length
        self.events += 1
        self.bytes += length
        self.sooner = self.events == self._batching.max_events
        return receipt

    def take(self) -> _PlainBatch | None:
        batch = self._batches.popleft()
        if not self._batches:
            self._batches.append(_PlainBatch())
        self.events -= len(batch.envelopes)
        self.bytes -= batch.size - 1
        self.bytes_in_flight += batch.size - 1
        return batch

    def release(self, batch: _PlainBatch) -> None:
        self.bytes_in_flight -= batch.size - 1


class Plain:
    """The queue that keeps no order: its cost is the least possible cost."""

    def __init__(self) -> None:
        buffer = _PlainBuffer(Batching(), Buffer())
        fits, append = buffer.fits, buffer.append

        def put(envelope: bytes, visitor: str, /) -> None:  # noqa: ARG001 - as in `Ordered`
            assert fits(len(envelope) + 1), "the queue is full"
            append(envelope, "view")

        self.put = put
        self.waiting = lambda: buffer.events
        self.take = buffer.take
        self.release = buffer.release


def cost(visitor_count: int, events: int, rounds: int) -> dict[str, list[float]]:
    """Return the CPU time of each round in µs per event, of both queues; rounds alternate between the queues.

    Args:
        visitor_count: the number of visitors; 0 if each event has a visitor of its own.
        events: the number of measured events in each round.
        rounds: the number of rounds.
    """
    encode = Codec().encode
    cycle = (
        visitors.stream(visitor_count, _CYCLE)
        if visitor_count
        else [f"visitor{number:06d}" for number in range(_CYCLE)]
    )
    # Each event has its own bytes, as in reality; with one shared bytes object the processor's caches would help.
    ready = [
        (encode(View(session_external_id=visitor, product_id=number)), visitor) for number, visitor in enumerate(cycle)
    ]
    found: dict[str, list[float]] = {"ordered": [], "plain": []}
    gc.collect()
    gc.freeze()
    # The first round is not counted, because the caches are cold then.
    for number in range(rounds + 1):
        queues: tuple[tuple[str, Queue], ...] = (("ordered", Ordered()), ("plain", Plain()))
        for name, queue in queues:
            measured = _cost_of(queue, ready, events)
            if number:
                found[name].append(measured)
    return found


def _cost_of(queue: Queue, ready: Sequence[tuple[bytes, str]], events: int) -> float:
    """Return the CPU time in µs of putting, taking and releasing one event, while 75 batches are in flight."""
    put, waiting, take, release = queue.put, queue.waiting, queue.take, queue.release
    # Each batch in flight, with the number of the step in which the batch is settled. A step is 20 ms: the time between
    # two of 50 requests a second.
    in_flight: deque[tuple[int, object]] = deque()
    steps = count()
    begun, measured_from = 0.0, (IN_FLIGHT + 1) * BATCH
    total = measured_from + events
    for start in range(0, total, BATCH):
        if start == measured_from:
            begun = time.process_time()
        position = start % (len(ready) - BATCH)
        for envelope, visitor in ready[position : position + BATCH]:
            put(envelope, visitor)
        for step in steps:
            if in_flight and in_flight[0][0] <= step:
                release(in_flight.popleft()[1])
            if (batch := take()) is not None:
                in_flight.append((step + IN_FLIGHT, batch))
            # If batches are not full, more and more events wait. At `_FULL` events, no events are added for some steps.
            if waiting() < _FULL:
                break
    return (time.process_time() - begun) / events * 1e6
