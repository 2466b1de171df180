"""Outcomes as values, the receipts that return them, and the errors that are made from them."""

from __future__ import annotations

import asyncio
import gc
import itertools
import pickle
import threading
import warnings
from typing import TYPE_CHECKING, Any, get_args

import attrs
import pytest

from retailrocket_async import (
    Abandoned,
    AbandonedError,
    AccessDeniedError,
    AuthenticationError,
    BadRequestError,
    Delivered,
    DeliveryError,
    Dropped,
    DroppedError,
    Kept,
    NoAnswerError,
    NotFoundError,
    Outcome,
    Receipt,
    Rejected,
    RejectedError,
    ServerError,
    ThrottledError,
)
from retailrocket_async._errors import error_for
from retailrocket_async._http.reply import Reply, Verdict
from retailrocket_async._outcome import AbandonReason, DropReason, Undelivered
from retailrocket_async._receipt import single_receipt
from tests.support.ids import shown
from tests.support.internals import waiters_of
from tests.support.receipts import settle

if TYPE_CHECKING:
    from collections.abc import Coroutine

DELIVERED = Delivered(status=200, attempts=2, elapsed=0.5)


def abandoned(status: int | None, **fields: Any) -> Abandoned:
    """Return the outcome of an event that was abandoned after an answer of `status` (None: after no answer)."""
    return Abandoned(
        **{"reason": "retries_exhausted", "maybe_recorded": True, "status": status, "attempts": 3, **fields}
    )


ERRORS: list[tuple[Undelivered, type[DeliveryError], str]] = [
    (Rejected(status=400), BadRequestError, "the request is malformed (HTTP 400)"),
    (
        Rejected(status=401),
        AuthenticationError,
        "authentication failed: check the api_key, and that it belongs to this partner_id (HTTP 401)",
    ),
    (
        Rejected(status=403),
        AccessDeniedError,
        "access denied: ask the account manager to open the tracking API for this shop (HTTP 403)",
    ),
    (Rejected(status=404), NotFoundError, "no such resource: check the base_url (HTTP 404)"),
    (
        Rejected(status=302),
        RejectedError,
        "the address redirects, and the key is never sent on: check the base_url (HTTP 302)",
    ),
    (Rejected(status=405), RejectedError, "the address takes no POST requests: check the base_url (HTTP 405)"),
    (Rejected(status=413, attempts=2, elapsed=0.25), RejectedError, "the request is too large (HTTP 413)"),
    (Rejected(status=451), RejectedError, "the API refused the request (HTTP 451)"),
    (
        abandoned(429, maybe_recorded=False),
        ThrottledError,
        "given up after 3 attempt(s), retries_exhausted: HTTP 429; the event was certainly not recorded",
    ),
    (
        abandoned(500),
        ServerError,
        "given up after 3 attempt(s), retries_exhausted: HTTP 500; the event may have been recorded",
    ),
    (
        abandoned(503, reason="closed", elapsed=2.5),
        ServerError,
        "given up after 3 attempt(s), closed: HTTP 503; the event may have been recorded",
    ),
    (
        abandoned(408, maybe_recorded=False),
        AbandonedError,
        "given up after 3 attempt(s), retries_exhausted: HTTP 408; the event was certainly not recorded",
    ),
    (
        abandoned(101, reason="not_retryable", attempts=1),
        AbandonedError,
        "given up after 1 attempt(s), not_retryable: HTTP 101; the event may have been recorded",
    ),
    (
        abandoned(None, failure="connect: ConnectError", maybe_recorded=False),
        NoAnswerError,
        "given up after 3 attempt(s), retries_exhausted: connect: ConnectError; the event was certainly not recorded",
    ),
    (
        abandoned(None, reason="cancelled", attempts=0, maybe_recorded=False),
        NoAnswerError,
        "given up after 0 attempt(s), cancelled: no attempt; the event was certainly not recorded",
    ),
    (Dropped(reason="closed"), DroppedError, "the event was never sent: closed"),
    (Dropped(reason="overflow"), DroppedError, "the event was never sent: overflow"),
]

OUTCOMES: list[Outcome] = [DELIVERED, *(outcome for outcome, _, _ in ERRORS)]


async def settled() -> None:
    """Yield to the event loop five times, so that every task runs until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


# --- outcomes ---


@pytest.mark.parametrize("outcome", OUTCOMES, ids=shown)
def test_outcome_is_a_value(outcome: Outcome) -> None:
    """If an outcome is copied or pickled, the copy is equal; outcomes are frozen, hashable and have no `__dict__`."""
    assert outcome == pickle.loads(pickle.dumps(outcome)) == attrs.evolve(outcome)
    assert 1 == len({outcome, attrs.evolve(outcome)})
    assert not hasattr(outcome, "__dict__")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        outcome.reason = "other"  # type: ignore[union-attr,misc]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=shown)
def test_every_outcome_has_the_same_facts(outcome: Outcome) -> None:
    """If a value is an outcome, it has status, attempts, elapsed and maybe_recorded, whatever its type."""
    assert outcome.status is None or 100 <= outcome.status <= 599
    assert outcome.attempts >= 0
    assert outcome.elapsed >= 0
    assert outcome.maybe_recorded in (False, True)


def test_recorded() -> None:
    """If an event is delivered, `maybe_recorded` is True; if rejected or dropped, False; if abandoned, either."""
    assert DELIVERED.maybe_recorded is True
    assert Rejected(status=400).maybe_recorded is False
    assert Dropped(reason="closed").maybe_recorded is False
    assert [False, True] == [abandoned(500, maybe_recorded=known).maybe_recorded for known in (False, True)]


def test_keyword_only() -> None:
    """If an outcome is constructed with positional arguments, `TypeError` is raised."""
    classes: list[Any] = [Delivered, Rejected, Dropped, Abandoned, Kept]
    for make in classes:
        with pytest.raises(TypeError):
            make(200)


def test_outcome_union() -> None:
    """There are five types of outcome, and three of these types mean that the event is not delivered."""
    assert {Delivered, Rejected, Abandoned, Dropped, Kept} == set(get_args(Outcome))
    assert {Rejected, Abandoned, Dropped} == set(get_args(Undelivered))


@pytest.mark.parametrize("status", [status for status in range(300, 500) if status not in {408, 425, 429}])
def test_scope_of_a_refusal(status: int) -> None:
    """If a status refuses a request, outcome and client agree whether all access is refused or only the event."""
    scope = "access" if status < 400 or status in {401, 403, 404, 405, 407} else "event"
    verdict = Verdict.BLOCKED if scope == "access" else Verdict.REFUSED

    assert (scope, verdict) == (Rejected(status=status).scope, Reply(status=status).verdict)


def test_advice_of_a_refusal() -> None:
    """If access is refused, the outcome's advice says what to correct, and the error's message contains the advice."""
    refusals = [Rejected(status=status) for status in (301, 401, 403, 404, 405, 407)]

    assert ["access"] * 6 == [refusal.scope for refusal in refusals]
    assert [str(error_for(refusal)) for refusal in refusals] == [
        f"{refusal.advice} (HTTP {refusal.status})" for refusal in refusals
    ]
    assert [] == [refusal for refusal in refusals if ": " not in refusal.advice]


# --- errors ---


@pytest.mark.parametrize(("outcome", "kind", "message"), ERRORS, ids=shown)
def test_error_for(outcome: Undelivered, kind: type[DeliveryError], message: str) -> None:
    """If an event is not delivered, its error's type says what failed, and the message says what to do."""
    error = error_for(outcome)

    assert (kind, message) == (type(error), str(error))
    assert outcome is error.outcome


def test_error_for_status() -> None:
    """If an event is abandoned, its error's type depends on the last answer's status, or on there being no answer."""
    expected: dict[int | None, type[AbandonedError]] = dict.fromkeys(range(100, 500), AbandonedError)
    expected |= dict.fromkeys(range(500, 600), ServerError)
    expected |= {429: ThrottledError, None: NoAnswerError}

    assert expected == {status: type(error_for(abandoned(status))) for status in expected}


@pytest.mark.parametrize("reason", get_args(AbandonReason))
def test_error_names_reason_of_giving_up(reason: AbandonReason) -> None:
    """If an event is abandoned, the error's message contains the reason."""
    assert f", {reason}: " in str(error_for(abandoned(500, reason=reason)))


@pytest.mark.parametrize("reason", get_args(DropReason))
def test_error_names_reason_of_drop(reason: DropReason) -> None:
    """If an event is dropped, the error's message contains the reason."""
    assert str(error_for(Dropped(reason=reason))).endswith(reason)


# --- receipts ---


@pytest.mark.parametrize("outcome", OUTCOMES, ids=shown)
async def test_await_gives_the_outcome(outcome: Outcome) -> None:
    """If a receipt is awaited before or after its outcome is set, also repeatedly, it returns the outcome."""
    receipt = single_receipt("view")
    waiter = asyncio.ensure_future(receipt)
    await settled()
    settle([receipt], outcome)

    assert [outcome] * 3 == [await waiter, await receipt, await receipt]


@pytest.mark.parametrize(("outcome", "kind", "message"), ERRORS, ids=shown)
async def test_delivered_raises(outcome: Undelivered, kind: type[DeliveryError], message: str) -> None:
    """If the event is not delivered, each call of `delivered()` raises the outcome's error as a new object."""
    receipt = single_receipt("view")
    early = asyncio.ensure_future(receipt.delivered())
    await settled()
    settle([receipt], outcome)
    errors = []
    for attempt in (early, receipt.delivered()):
        with pytest.raises(kind) as caught:
            await attempt
        errors.append(caught.value)

    assert [kind, kind] == [type(error) for error in errors]
    assert [message, message] == [str(error) for error in errors]
    assert errors[0] is not errors[1]


async def test_delivered_returns() -> None:
    """If the event is delivered, `delivered()` returns the outcome."""
    receipt = single_receipt("view")
    settle([receipt], DELIVERED)

    assert await receipt.delivered() is DELIVERED


def test_nothing_blocks() -> None:
    """If no event loop runs, a receipt's properties still work; `outcome` is None until the outcome is set."""
    receipt = single_receipt("addToBasket")
    before = (receipt.event_name, receipt.done(), receipt.outcome, repr(receipt))
    settle([receipt], DELIVERED)
    after = (receipt.event_name, receipt.done(), receipt.outcome)

    assert ("addToBasket", False, None, "<Receipt addToBasket pending>") == before
    assert ("addToBasket", True, DELIVERED) == after
    assert f"<Receipt addToBasket {DELIVERED!r}>" == repr(receipt)


def test_settled_receipt_needs_no_loop() -> None:
    """If a receipt has its outcome, awaiting the receipt returns without suspending the task."""
    receipt = single_receipt("view")
    settle([receipt], DELIVERED)
    with pytest.raises(StopIteration) as caught:
        next(receipt.__await__())

    assert caught.value.value is DELIVERED


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(OUTCOMES[:4], 2)), ids=shown)
async def test_first_outcome_stands(first: Outcome, second: Outcome) -> None:
    """If a second outcome is set, the receipt keeps the first outcome."""
    receipt = single_receipt("view")
    waiter = asyncio.ensure_future(receipt)
    await settled()
    settle([receipt], first)
    settle([receipt], second)

    assert first is await waiter is receipt.outcome


def test_settle_takes_many() -> None:
    """If `settle` gets many receipts, it sets the outcome of each receipt that has no outcome yet."""
    receipts = [single_receipt("view") for _ in range(3)]
    dropped = Dropped(reason="overflow")
    settle(receipts[:1], dropped)
    settle(iter(receipts), DELIVERED)
    settle([], DELIVERED)

    assert [dropped, DELIVERED, DELIVERED] == [receipt.outcome for receipt in receipts]


async def test_many_waiters() -> None:
    """If many tasks await one receipt, all get its outcome, in the order in which they began to wait."""
    receipt = single_receipt("view")
    order: list[int] = []

    async def wait(number: int) -> Outcome:
        outcome = await receipt
        order.append(number)
        return outcome

    tasks = [asyncio.create_task(wait(number)) for number in range(100)]
    await settled()
    settle([receipt], DELIVERED)

    assert [DELIVERED] * 100 == await asyncio.gather(*tasks)
    assert list(range(100)) == order


@pytest.mark.parametrize("victim", [0, 1, 2])
async def test_cancelled_waiter(victim: int) -> None:
    """If one waiting task is cancelled, the other tasks still get the outcome."""
    receipt = single_receipt("view")
    doors: list[Coroutine[Any, Any, Outcome]] = [_wait(receipt), receipt.delivered(), _wait(receipt)]
    tasks = [asyncio.create_task(door) for door in doors]
    await settled()
    tasks[victim].cancel()
    await settled()
    pending = (receipt.done(), [task.done() for task in tasks])
    settle([receipt], DELIVERED)
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert (False, [number == victim for number in range(3)]) == pending
    assert isinstance(results.pop(victim), asyncio.CancelledError)
    assert [DELIVERED] * 2 == results


async def test_waiter_cancelled_with_the_outcome_there() -> None:
    """If a task is cancelled right after the outcome is set, the task is cancelled and other tasks get the outcome."""
    receipt = single_receipt("view")
    tasks = [asyncio.create_task(_wait(receipt)) for _ in range(2)]
    await settled()
    settle([receipt], DELIVERED)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert [asyncio.CancelledError, Delivered] == [type(result) for result in results]


async def test_waiter_cancelled_just_before_the_outcome() -> None:
    """If a task is cancelled right before the outcome is set, the task is cancelled and other tasks get the outcome."""
    receipt = single_receipt("view")
    tasks = [asyncio.create_task(_wait(receipt)) for _ in range(2)]
    await settled()
    tasks[0].cancel()
    settle([receipt], DELIVERED)
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert [asyncio.CancelledError, Delivered] == [type(result) for result in results]


async def test_everyone_cancelled() -> None:
    """If all waiting tasks were cancelled, the receipt still gets its outcome."""
    receipt = single_receipt("view")
    tasks = [asyncio.create_task(_wait(receipt)) for _ in range(3)]
    await settled()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    settle([receipt], DELIVERED)

    assert await receipt is DELIVERED


async def test_polling_leaves_nothing_behind() -> None:
    """If a task repeatedly awaits a receipt with a timeout, the receipt stores no waiters afterwards."""
    receipt = single_receipt("view")
    for _ in range(100):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receipt, 0)
        task = asyncio.create_task(_wait(receipt))
        await settled()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert not waiters_of(receipt)


def test_outcome_wakes_another_threads_idle_loop() -> None:
    """If a task waits in another thread's idle loop, setting the outcome wakes this loop."""
    receipt = single_receipt("view")
    waits = threading.Event()
    outcomes: list[Outcome] = []

    async def wait() -> None:
        # The loop calls `waits.set` after all callbacks that were ready, right before it blocks.
        asyncio.get_running_loop().call_soon(asyncio.get_running_loop().call_soon, waits.set)
        outcomes.append(await receipt)

    thread = threading.Thread(target=asyncio.run, args=(wait(),), daemon=True)
    thread.start()
    assert waits.wait(60.0)

    async def settle_here() -> None:
        settle([receipt], DELIVERED)

    asyncio.run(settle_here())
    # A correct receipt wakes the loop immediately. The time limit only ends a test that fails.
    thread.join(60.0)

    assert [DELIVERED] == outcomes


def test_outcome_in_a_thread_without_a_loop_wakes_the_loop_that_waits() -> None:
    """If the outcome is set in a thread without a loop, a task that waits in a loop is woken."""

    async def main() -> Outcome:
        receipt = single_receipt("view")
        waiter = asyncio.ensure_future(receipt)
        await settled()
        # After `join` the thread is gone, so only the outcome that the thread has set can wake this loop.
        thread = threading.Thread(target=settle, args=([receipt], DELIVERED))
        thread.start()
        thread.join()
        return await asyncio.wait_for(waiter, 60.0)

    assert asyncio.run(main()) is DELIVERED


def test_closed_loop_of_a_waiter_takes_no_outcome_from_others() -> None:
    """If the loop of one waiting task is closed, the receipt and the other waiting tasks still get the outcome."""
    receipts = [single_receipt("view") for _ in range(2)]
    gone = asyncio.new_event_loop()
    left = _wait(receipts[0])
    task = gone.create_task(left)
    gone.run_until_complete(asyncio.sleep(0))
    gone.close()

    async def main() -> list[Outcome]:
        waiters = [asyncio.ensure_future(receipt) for receipt in receipts]
        await settled()
        settle(receipts, DELIVERED)
        return await asyncio.gather(*waiters)

    assert [DELIVERED, DELIVERED] == asyncio.run(main())
    assert not task.done()
    # No loop will run the task, and asyncio would otherwise log that a pending task was destroyed.
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    left.close()


async def test_closed_coroutine_leaves_nothing_behind() -> None:
    """If a coroutine that awaits a receipt is closed, the receipt can still get its outcome."""
    receipt = single_receipt("view")
    coroutine = _wait(receipt)
    coroutine.send(None)
    coroutine.close()
    settle([receipt], DELIVERED)

    assert await receipt is DELIVERED


def test_unawaited_receipt_never_warns() -> None:
    """If a receipt is garbage-collected in any state, there is no warning."""
    reports: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
        for outcome in (None, *OUTCOMES):
            receipt = single_receipt("view")
            left = asyncio.create_task(_wait(receipt))
            await settled()
            left.cancel()
            await settled()
            if outcome is not None:
                settle([receipt, single_receipt("view")], outcome)
            del receipt, left

    with warnings.catch_warnings():
        # Objects that other tests left over may cause warnings, which are ignored here.
        warnings.simplefilter("ignore")
        gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
        gc.collect()

    assert ([], []) == (caught, reports)


def test_receipt_is_slim() -> None:
    """If a receipt is new, it uses little memory: it has no `__dict__` and no container for waiting tasks."""
    receipt = single_receipt("view")

    assert not hasattr(receipt, "__dict__")
    assert not waiters_of(receipt)


async def _wait(receipt: Receipt) -> Outcome:
    return await receipt
