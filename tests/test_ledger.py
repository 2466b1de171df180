"""The books: they add up after every entry, tell each kind of failure once, and wait for the right events."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from retailrocket_async._buffer import Batch, Batching, Buffer, EventBuffer
from retailrocket_async._ledger import Ledger
from retailrocket_async._outcome import Abandoned, Delivered, Dropped, Outcome, Receipt, Rejected
from retailrocket_async._report import UndeliveredEvent
from tests.fakes import check_balance, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retailrocket_async._report import Stats

OUTCOMES: list[Outcome] = [
    Delivered(status=200),
    Rejected(status=400),
    Abandoned(reason="retries_exhausted", maybe_recorded=True, status=503),
    Dropped(reason="closed"),
]


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
    return ledger.stats(EventBuffer(Batching(), Buffer(), lambda: 0.0), waiting=0)


def test_every_outcome_is_counted() -> None:
    """Each kind of outcome has a counter of its own, and they add up."""
    ledger = Ledger(None)
    for count, outcome in enumerate(OUTCOMES, start=1):
        close(ledger, batch_of(count), outcome)
        check_balance(stats(ledger))
    end = stats(ledger)

    assert (end.delivered, end.rejected, end.abandoned, end.dropped) == (1, 2, 3, 4)


def test_receipts_are_settled() -> None:
    """Closing a batch settles its receipts."""
    for outcome in OUTCOMES:
        batch = batch_of(3)
        Ledger(None).close_batch(batch, outcome)

        assert [receipt.outcome for receipt in batch.receipts] == [outcome] * 3


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_hook_is_told_of_the_undelivered(outcome: Outcome) -> None:
    """The hook gets every undelivered event with its outcome, once, and never a delivered one."""
    told: list[UndeliveredEvent] = []
    batch = batch_of(3)
    Ledger(told.extend).close_batch(batch, outcome)
    expected = [UndeliveredEvent(event_name="view", envelope=body, outcome=outcome) for body in batch.envelopes]  # type: ignore[arg-type]

    assert told == ([] if isinstance(outcome, Delivered) else expected)


def test_hook_finds_its_receipts_settled() -> None:
    """When the hook is called, the receipts have their outcome and the books add up."""
    seen: list[object] = []
    batch = batch_of(2)

    def hook(_: Sequence[UndeliveredEvent]) -> None:
        seen.append([receipt.done() for receipt in batch.receipts])
        check_balance(stats(ledger))

    ledger = Ledger(hook)
    close(ledger, batch, OUTCOMES[1])

    assert seen == [[True, True]]


def test_raising_hook_is_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """What a hook raises is counted each time, logged once, and stops nothing."""

    def hook(_: Sequence[UndeliveredEvent]) -> None:
        raise ZeroDivisionError

    ledger = Ledger(hook)
    batches = [batch_of(1), batch_of(1)]
    for batch in batches:
        close(ledger, batch, OUTCOMES[3])

    assert stats(ledger).hook_errors == 2
    assert all(batch.receipts[0].outcome == OUTCOMES[3] for batch in batches)
    assert [record.message.split(";")[0] for record in caplog.records if "on_outcome" in record.message] == [
        "on_outcome raised ZeroDivisionError"
    ]


def test_each_kind_of_failure_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """The log has one record for each kind of failure, however often it happens, and none of a delivery."""
    caplog.set_level(logging.DEBUG)
    ledger = Ledger(None)
    for outcome in [*OUTCOMES, *OUTCOMES, Rejected(status=401)]:
        close(ledger, batch_of(1), outcome)

    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR", "WARNING", "ERROR"]


def test_undelivered_are_kept_on_demand() -> None:
    """Only what is not delivered after `keep_undelivered` is kept."""
    ledger = Ledger(None)
    close(ledger, batch_of(1), OUTCOMES[1])
    ledger.keep_undelivered()
    close(ledger, batch_of(2), OUTCOMES[0])
    close(ledger, batch_of(3), OUTCOMES[3])

    assert [kept.outcome for kept in ledger.undelivered] == [OUTCOMES[3]] * 3


def test_flush_waits_for_its_generation() -> None:
    """A flush ends with the last batch of its generation, and later ones neither hold nor end it."""

    async def test() -> None:
        ledger = Ledger(None)
        finished = asyncio.get_running_loop().create_future()
        flush = asyncio.create_task(ledger.flushed(1, 4, finished))
        await asyncio.sleep(0)
        for opened_in in ([0], [2, 2, 2], [1, 2, 0]):
            ledger.close(OUTCOMES[0], 5, opened_in)
            await asyncio.sleep(0)
            assert not flush.done()
        ledger.close(OUTCOMES[2], 1, [1])
        await flush
        ledger.close(OUTCOMES[0], 1, [1])

    run(test())


def test_cancelled_flush_is_forgotten() -> None:
    """A flush that nobody waits for any more leaves nothing behind."""

    async def test() -> list[object]:
        ledger = Ledger(None)
        flush = asyncio.create_task(ledger.flushed(0, 1, asyncio.get_running_loop().create_future()))
        await asyncio.sleep(0)
        flush.cancel()
        await asyncio.wait({flush})
        ledger.close(OUTCOMES[0], 1, [0])
        return list(ledger._flushes)

    assert run(test()) == []
