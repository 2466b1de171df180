"""The ledger counts and settles events: counters add up, each kind of failure is logged once, flushes wait."""

from __future__ import annotations

import ast
import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import retailrocket_async
from retailrocket_async._delivery.ledger import Ledger
from retailrocket_async._observer import Observer, Watch
from retailrocket_async._outcome import Abandoned, Delivered, Dropped, Kept, Outcome, Rejected
from retailrocket_async._queue.buffer import EventBuffer
from retailrocket_async._queue.options import Batching, Buffer
from retailrocket_async._receipt import share_of, single_receipt
from retailrocket_async._runtime.loop_affinity import LoopAffinity
from retailrocket_async._stats import StateChange, UndeliveredEvent
from tests.support.engine_state import flushes_waited_for
from tests.support.fakes import check_balance, into
from tests.support.receipts import batch_with, receipts_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from retailrocket_async._delivery.hooks import OutcomeHook, StateHook
    from retailrocket_async._queue.batch import Batch
    from retailrocket_async._stats import State, Stats
    from tests.support.virtual_time import CheckedLoop

OUTCOMES: list[Outcome] = [
    Delivered(status=200),
    Rejected(status=400),
    Abandoned(reason="retries_exhausted", maybe_recorded=True, status=503),
    Dropped(reason="closed"),
]


def new_ledger(
    on_outcome: OutcomeHook | None = None, on_state_change: StateHook | None = None, *, watch: Watch | None = None
) -> Ledger:
    """Return an empty ledger."""
    return Ledger(LoopAffinity(), on_outcome, on_state_change, max_unreported=100, watch=watch)


class RaisingHandler(logging.Handler):
    """A log handler that raises for every record and counts the records."""

    def __init__(self) -> None:
        super().__init__()
        self.records = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count the record and raise."""
        self.records += 1
        raise ZeroDivisionError(record.msg)


@pytest.fixture
def raising_handler() -> Iterator[RaisingHandler]:
    """Attach a raising handler to the client's logger for one test, and return the handler."""
    logger, handler = logging.getLogger("retailrocket_async"), RaisingHandler()
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)


def batch_of(count: int, generation: int = 0, name: str = "view") -> Batch:
    """Return a batch of `count` events."""
    batch = batch_with([b'{"view":{"n":%d}}' % number for number in range(count)], name)
    batch.opened_in.append(generation)
    return batch


def close(ledger: Ledger, batch: Batch, outcome: Outcome) -> None:
    """Track a batch, send it, and settle it with this outcome."""
    ledger.count_tracked(len(batch))
    ledger.close_batch(batch, outcome)


def stats(ledger: Ledger) -> Stats:
    """Return the ledger's statistics beside an empty buffer."""
    return ledger.stats(EventBuffer(Batching(), Buffer(), lambda: 0.0), in_flight=0, waiting=0, state="sending")


def test_every_outcome_is_counted() -> None:
    """If a batch is settled, the counter of its outcome's kind increases, and all counters add up."""
    ledger = new_ledger()
    for count, outcome in enumerate(OUTCOMES, start=1):
        close(ledger, batch_of(count), outcome)
        check_balance(stats(ledger))
    end = stats(ledger)

    assert (end.delivered, end.rejected, end.abandoned, end.dropped) == (1, 2, 3, 4)


def test_receipts_are_settled() -> None:
    """If a batch is closed, its receipts have the outcome."""
    for outcome in OUTCOMES:
        batch = batch_of(3)
        new_ledger().close_batch(batch, outcome)

        assert [receipt.outcome for receipt in receipts_of(batch)] == [outcome] * 3


@pytest.mark.parametrize("outcome", OUTCOMES)
async def test_hook_is_told_of_the_undelivered(virtual_clock: CheckedLoop, outcome: Outcome) -> None:
    """If events are undelivered, the hook gets each of them once with its outcome; delivered events are not passed."""
    batch = batch_of(3)

    expected = [UndeliveredEvent(event_name="view", envelope=body, outcome=outcome) for body in batch.envelopes]  # type: ignore[arg-type]

    reported: list[UndeliveredEvent] = []
    ledger = new_ledger(into(reported))
    ledger.close_batch(batch, outcome)
    await ledger.hooks.drained()

    assert reported == ([] if isinstance(outcome, Delivered) else expected)


async def test_hook_finds_its_receipts_settled(virtual_clock: CheckedLoop) -> None:
    """If the hook is called, the receipts already have their outcome, and the counters add up."""
    batch = batch_of(2)

    seen: list[object] = []

    async def hook(_: Sequence[UndeliveredEvent]) -> None:
        seen.append([receipt.done() for receipt in receipts_of(batch)])
        check_balance(stats(ledger))

    ledger = new_ledger(hook)
    close(ledger, batch, OUTCOMES[1])
    await ledger.hooks.drained()

    assert seen == [[True, True]]


def test_drops_are_counted_by_reason_and_name() -> None:
    """If events are dropped, they are counted by reason and event name."""
    ledger = new_ledger()
    for _ in range(3):
        ledger.count_tracked()
        ledger.drop(b"{}", single_receipt("search"), "before_send")
    close(ledger, batch_of(2), Dropped(reason="overflow"))

    assert stats(ledger).dropped_by == {"before_send": {"search": 3}, "overflow": {"view": 2}}


def test_each_kind_of_failure_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """If failures of one kind repeat, the log has one record of that kind; a delivery is not logged."""
    caplog.set_level(logging.DEBUG)
    ledger = new_ledger()
    for outcome in [*OUTCOMES, *OUTCOMES, Rejected(status=401)]:
        close(ledger, batch_of(1), outcome)

    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR", "WARNING", "ERROR"]


def test_undelivered_are_kept_on_demand() -> None:
    """If `keep_undelivered` was called, later undelivered events are kept, and earlier or delivered ones are not."""
    ledger = new_ledger()
    close(ledger, batch_of(1), OUTCOMES[1])
    ledger.keep_undelivered()
    close(ledger, batch_of(2), OUTCOMES[0])
    close(ledger, batch_of(3), OUTCOMES[3])

    assert [kept.outcome for kept in ledger.undelivered] == [OUTCOMES[3]] * 3


def test_what_is_logged_of_each_kind(caplog: pytest.LogCaptureFixture) -> None:
    """If events fail, one record for each reason and status has their number and cause, but not for `before_send`."""
    caplog.set_level(logging.DEBUG)
    ledger = new_ledger()
    outcomes: list[Outcome] = [
        Abandoned(reason="retries_exhausted", maybe_recorded=True, status=503),
        Abandoned(reason="retries_exhausted", maybe_recorded=False, status=429),
        Abandoned(reason="expired", maybe_recorded=True, status=503),
        Rejected(status=400),
        Rejected(status=413),
        Dropped(reason="overflow"),
        Dropped(reason="before_send"),
        Dropped(reason="expired"),
        Kept(),
        Delivered(status=200),
    ]
    for outcome in outcomes * 2:
        close(ledger, batch_of(3), outcome)

    assert 7 == len(caplog.records)
    assert ["ERROR"] * 5 + ["WARNING"] * 2 == [record.levelname for record in caplog.records]
    assert all(record.getMessage().startswith("3 event(s): ") for record in caplog.records)
    assert "the request is malformed (HTTP 400)" in caplog.records[3].getMessage()
    assert "logged once" in caplog.records[3].getMessage()


@pytest.mark.parametrize(("state", "level"), [("halted", "ERROR"), ("down", "WARNING"), ("sending", "WARNING")])
@pytest.mark.parametrize("status", [403, None])
def test_how_changes_of_state_are_logged(
    state: State, level: str, status: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """If the state changes, each change has one record with its cause: an error for a halt, otherwise a warning."""
    ledger = new_ledger()
    change = StateChange(
        state=state, previous="down", status=status, failure="connect: X", advice="do this", lasted=1.25
    )
    for _ in range(2):
        ledger.report_state(change)
    says = f"sending is {state}: do this ({'HTTP 403' if status else 'connect: X'})"

    assert [level, level] == [record.levelname for record in caplog.records]
    assert ("sending again, after 1.2 s down" if state == "sending" else says) == caplog.records[1].getMessage()


@pytest.mark.parametrize("outcome", [*OUTCOMES, Kept()])
async def test_events_that_the_caller_is_told_of_are_told_nobody_else(
    virtual_clock: CheckedLoop, outcome: Outcome
) -> None:
    """If events are settled with `notify=False`, they are counted, but neither hook nor close report has them."""
    receipts = [single_receipt("view"), single_receipt("view")]
    reported: list[UndeliveredEvent] = []
    ledger = new_ledger(into(reported))
    ledger.keep_undelivered()
    ledger.count_tracked(2)
    ledger.end(b"{}", share_of(receipts[0]), outcome, notify=False)
    ledger.end(b"{}", share_of(receipts[1]), outcome)
    await ledger.hooks.drained()
    kept, counted = ledger.undelivered, stats(ledger)
    undelivered = int(not isinstance(outcome, Delivered | Kept))

    assert (undelivered, undelivered) == (len(reported), len(kept))
    assert [outcome, outcome] == [receipt.outcome for receipt in receipts]
    check_balance(counted)


def test_what_keeps_events_says_how_they_end() -> None:
    """If a spool also stores the events, it is asked before they are settled, and they get the outcome it returns."""
    asked: list[tuple[int, Outcome]] = []

    class Spool:
        """Keeps every event."""

        undelivered = 3

        def keep(self, batch: Batch, outcome: Outcome) -> Outcome:
            """Record the call."""
            asked.append((len(batch), outcome))
            assert not any(receipt.done() for receipt in receipts_of(batch))
            return Kept(attempts=2)

    batch = batch_of(3)
    ledger = Ledger(LoopAffinity(), None, None, max_unreported=100, keeper=Spool())
    ledger.keep_undelivered()
    close(ledger, batch, OUTCOMES[2])

    assert [(3, OUTCOMES[2])] == asked
    assert [Kept(attempts=2)] * 3 == [receipt.outcome for receipt in receipts_of(batch)]
    assert (3, 0, []) == (stats(ledger).kept, stats(ledger).abandoned, ledger.undelivered)


async def test_missed_events_are_logged_once(virtual_clock: CheckedLoop, caplog: pytest.LogCaptureFixture) -> None:
    """If too many events wait for a hook, the missed events are all counted, and logged once."""
    ledger = new_ledger(into([]))
    for _ in range(3):
        close(ledger, batch_of(60), OUTCOMES[1])

    assert 80 == stats(ledger).hook_missed
    assert 1 == sum("on_outcome is too slow" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("outcome", OUTCOMES[1:])
async def test_log_handler_that_raises_costs_the_hook_no_event(
    virtual_clock: CheckedLoop, outcome: Outcome, raising_handler: RaisingHandler
) -> None:
    """If a log handler raises, undelivered events still reach receipt, counter, close report and `on_outcome`."""
    batch = batch_of(3)

    reported: list[UndeliveredEvent] = []
    ledger = new_ledger(into(reported))
    ledger.keep_undelivered()
    close(ledger, batch, outcome)
    await ledger.hooks.drained()
    reported, kept, counted = len(reported), len(ledger.undelivered), stats(ledger)

    assert (3, 3, 1) == (reported, kept, raising_handler.records)
    assert [outcome] * 3 == [receipt.outcome for receipt in receipts_of(batch)]
    check_balance(counted)


async def test_log_handler_that_raises_ends_a_flush(
    virtual_clock: CheckedLoop, raising_handler: RaisingHandler
) -> None:
    """If a log handler raises, a flush still returns when its events have their outcome."""
    ledger = new_ledger()
    flush = asyncio.create_task(ledger.flushed(0, 1, asyncio.get_running_loop().create_future()))
    await asyncio.sleep(0)
    close(ledger, batch_of(1), OUTCOMES[1])
    await flush

    assert raising_handler.records == 1


@pytest.mark.parametrize("state", ["halted", "sending"])
async def test_log_handler_that_raises_costs_no_change_of_state(
    virtual_clock: CheckedLoop, state: State, raising_handler: RaisingHandler
) -> None:
    """If a log handler raises, `on_state_change` still gets the change of state."""
    change = StateChange(state=state, previous="down", status=None, failure=None, advice="", lasted=1.0)

    reported: list[StateChange] = []

    async def hook(change: StateChange) -> None:
        reported.append(change)

    ledger = new_ledger(None, hook)
    ledger.report_state(change)
    await ledger.hooks.drained()

    assert [change] == reported
    assert raising_handler.records == 1


def test_log_handler_that_raises_leaves_the_hooks_errors_counted(raising_handler: RaisingHandler) -> None:
    """If a hook raises, each error is counted, and so is an error of the log handler that records the first one."""
    ledger = new_ledger()
    for _ in range(3):
        ledger.hook_failed("on_outcome", ValueError("x"))

    assert (3 + 1, 1) == (stats(ledger).hook_errors, raising_handler.records)


class Noting(Observer):
    """Records the outcomes that it gets as an observer."""

    def __init__(self) -> None:
        self.settlements: list[tuple[dict[str, int], Outcome]] = []

    def settled(self, names: Mapping[str, int], outcome: Outcome) -> None:
        """Record the outcome, with the number of events of each name."""
        self.settlements.append((dict(names), outcome))


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_observer_and_counters_get_the_same_names(outcome: Outcome) -> None:
    """If an observer is attached, it gets all events' names, and those of dropped events are in `dropped_by`."""
    observer = Noting()
    ledger = new_ledger(watch=Watch(observer, lambda *_: None))
    close(ledger, batch_of(2), outcome)
    close(ledger, batch_of(3, name="search"), outcome)
    ledger.count_tracked()
    ledger.drop(b"{}", single_receipt("order"), "before_send")
    dropped_by = {"before_send": {"order": 1}} | (
        {"closed": {"view": 2, "search": 3}} if isinstance(outcome, Dropped) else {}
    )

    assert dropped_by == stats(ledger).dropped_by
    assert [({"view": 2}, outcome), ({"search": 3}, outcome), ({"order": 1}, Dropped(reason="before_send"))] == (
        observer.settlements
    )
    check_balance(stats(ledger))


async def test_flush_waits_for_its_generation(virtual_clock: CheckedLoop) -> None:
    """If the last batch of a flush's generation is settled, the flush ends, whatever happens to later generations."""
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


async def test_cancelled_flush_is_forgotten(virtual_clock: CheckedLoop) -> None:
    """If a flush is cancelled, nothing of it stays in the ledger."""
    ledger = new_ledger()
    flush = asyncio.create_task(ledger.flushed(0, 1, asyncio.get_running_loop().create_future()))
    await asyncio.sleep(0)
    flush.cancel()
    await asyncio.wait({flush})
    ledger.close(OUTCOMES[0], 1, [0], ["view"])

    assert flushes_waited_for(ledger) == 0


def test_only_the_ledger_writes_its_counters() -> None:
    """No module changes the ledger's counters but the ledger and `Intake.accept_now`, which adds to `tracked`."""
    package = Path(retailrocket_async.__file__).parent
    written = [
        (path.relative_to(package).as_posix(), ast.unparse(node.target))
        for path in sorted(package.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.AugAssign) and "ledger." in ast.unparse(node.target)
    ]

    assert [("_delivery/intake.py", "self._ledger.tracked")] == written
