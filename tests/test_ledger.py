"""The books: they add up after every entry, tell each kind of failure once, and wait for the right events."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from retailrocket_async._batch import Batch
from retailrocket_async._bounds import Batching, Buffer
from retailrocket_async._buffer import EventBuffer
from retailrocket_async._home import Home
from retailrocket_async._ledger import Ledger
from retailrocket_async._outcome import Abandoned, Delivered, Dropped, Outcome, Receipt, Rejected
from retailrocket_async._report import UndeliveredEvent
from tests.fakes import check_balance, into, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retailrocket_async._hooks import OutcomeHook
    from retailrocket_async._report import Stats

OUTCOMES: list[Outcome] = [
    Delivered(status=200),
    Rejected(status=400),
    Abandoned(reason="retries_exhausted", maybe_recorded=True, status=503),
    Dropped(reason="closed"),
]


def new_ledger(on_outcome: OutcomeHook | None = None) -> Ledger:
    """Return empty books."""
    return Ledger(Home(), on_outcome, None, most_told=100)


def batch_of(count: int, generation: int = 0) -> Batch:
    """Return a batch of so many events."""
    batch = Batch(0.0, generation, None)
    batch.envelopes += [b'{"view":{"n":%d}}' % number for number in range(count)]
    batch.receipts += [Receipt("view") for _ in range(count)]
    return batch


def close(ledger: Ledger, batch: Batch, outcome: Outcome) -> None:
    """Track, send and close a batch."""
    ledger.tracked += len(batch)
    ledger.close_batch(batch, outcome)


def stats(ledger: Ledger) -> Stats:
    """Return the ledger's snapshot beside an empty buffer."""
    return ledger.stats(EventBuffer(Batching(), Buffer(), lambda: 0.0), waiting=0, state="sending")


def test_every_outcome_is_counted() -> None:
    """Each kind of outcome has a counter of its own, and they add up."""
    ledger = new_ledger()
    for count, outcome in enumerate(OUTCOMES, start=1):
        close(ledger, batch_of(count), outcome)
        check_balance(stats(ledger))
    end = stats(ledger)

    assert (end.delivered, end.rejected, end.abandoned, end.dropped) == (1, 2, 3, 4)


def test_receipts_are_settled() -> None:
    """Closing a batch settles its receipts."""
    for outcome in OUTCOMES:
        batch = batch_of(3)
        new_ledger().close_batch(batch, outcome)

        assert [receipt.outcome for receipt in batch.receipts] == [outcome] * 3


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_hook_is_told_of_the_undelivered(outcome: Outcome) -> None:
    """The hook gets every undelivered event with its outcome, once, and never a delivered one."""
    batch = batch_of(3)

    async def test() -> list[UndeliveredEvent]:
        told: list[UndeliveredEvent] = []
        ledger = new_ledger(into(told))
        ledger.close_batch(batch, outcome)
        await ledger.hooks.drained()
        return told

    expected = [UndeliveredEvent(event_name="view", envelope=body, outcome=outcome) for body in batch.envelopes]  # type: ignore[arg-type]

    assert run(test()) == ([] if isinstance(outcome, Delivered) else expected)


def test_hook_finds_its_receipts_settled() -> None:
    """When the hook is called, the receipts have their outcome and the books add up."""
    batch = batch_of(2)

    async def test() -> list[object]:
        seen: list[object] = []

        async def hook(_: Sequence[UndeliveredEvent]) -> None:
            seen.append([receipt.done() for receipt in batch.receipts])
            check_balance(stats(ledger))

        ledger = new_ledger(hook)
        close(ledger, batch, OUTCOMES[1])
        await ledger.hooks.drained()
        return seen

    assert run(test()) == [[True, True]]


def test_drops_are_counted_by_reason_and_name() -> None:
    """What is dropped is counted by reason and event; what the user's own hook drops is not logged."""
    ledger = new_ledger()
    for _ in range(3):
        ledger.tracked += 1
        ledger.drop(b"{}", Receipt("search"), "before_send")
    close(ledger, batch_of(2), Dropped(reason="overflow"))

    assert stats(ledger).dropped_by == {"before_send": {"search": 3}, "overflow": {"view": 2}}


def test_each_kind_of_failure_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """The log has one record for each kind of failure, however often it happens, and none of a delivery."""
    caplog.set_level(logging.DEBUG)
    ledger = new_ledger()
    for outcome in [*OUTCOMES, *OUTCOMES, Rejected(status=401)]:
        close(ledger, batch_of(1), outcome)

    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR", "WARNING", "ERROR"]


def test_undelivered_are_kept_on_demand() -> None:
    """Only what is not delivered after `keep_undelivered` is kept."""
    ledger = new_ledger()
    close(ledger, batch_of(1), OUTCOMES[1])
    ledger.keep_undelivered()
    close(ledger, batch_of(2), OUTCOMES[0])
    close(ledger, batch_of(3), OUTCOMES[3])

    assert [kept.outcome for kept in ledger.undelivered] == [OUTCOMES[3]] * 3


def test_flush_waits_for_its_generation() -> None:
    """A flush ends with the last batch of its generation, and later ones neither hold nor end it."""

    async def test() -> None:
        ledger = new_ledger()
        finished = asyncio.get_running_loop().create_future()
        flush = asyncio.create_task(ledger.flushed(1, 4, finished))
        await asyncio.sleep(0)
        for opened_in in ([0], [2, 2, 2], [1, 2, 0]):
            ledger.close(OUTCOMES[0], 5, opened_in, ["view"] * 5)
            await asyncio.sleep(0)
            assert not flush.done()
        ledger.close(OUTCOMES[2], 1, [1], ["view"])
        await flush
        ledger.close(OUTCOMES[0], 1, [1], ["view"])

    run(test())


def test_cancelled_flush_is_forgotten() -> None:
    """A flush that nobody waits for any more leaves nothing behind."""

    async def test() -> list[object]:
        ledger = new_ledger()
        flush = asyncio.create_task(ledger.flushed(0, 1, asyncio.get_running_loop().create_future()))
        await asyncio.sleep(0)
        flush.cancel()
        await asyncio.wait({flush})
        ledger.close(OUTCOMES[0], 1, [0], ["view"])
        return list(ledger._flushes)

    assert run(test()) == []
