"""Makes batches and receipts without a buffer, and settles receipts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retailrocket_async._fate import Fate, places_of
from retailrocket_async._queue.batch import Batch
from retailrocket_async._receipt import Receipt, share_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from retailrocket_async._outcome import Outcome


def receipts_with_one_fate(count: int, name: str = "view") -> list[Receipt]:
    """Return the receipts of `count` events that share a fate."""
    fate = Fate([name] * count)
    return [Receipt(fate, place) for place in range(count)]


def batch_with(envelopes: Sequence[bytes], name: str = "view") -> Batch:
    """Return a batch of events with these envelopes (their JSON) and this name."""
    batch = Batch(0.0)
    batch.envelopes = list(envelopes)
    batch.shares = [(Fate([name] * len(envelopes)), None)]
    batch.size = 1 + sum(len(envelope) + 1 for envelope in envelopes)
    return batch


def receipts_of(batch: Batch) -> list[Receipt]:
    """Return a receipt for each event of a batch."""
    return [Receipt(share[0], place) for share in batch.shares for place in places_of(share)]


def settle(receipts: Iterable[Receipt], outcome: Outcome) -> None:
    """Set the outcome of the event of each receipt; other events with the same fate get no outcome."""
    for receipt in receipts:
        fate, places = share_of(receipt)
        fate.settle(outcome, places)
