"""If code outside the package raises any error, at any stack depth, every event gets its outcome and is counted."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from redis.asyncio import Redis

from retailrocket_async import (
    AsyncTrackingClient,
    Batching,
    Buffer,
    Delivered,
    EventValidationError,
    Observer,
    Order,
    Outcome,
    RateLimit,
    Rejected,
    RetryPolicy,
    SetContact,
    View,
    order_lines,
)
from retailrocket_async._interrupt import is_interrupt
from retailrocket_async._runtime.foreign_code import ends_task, ensure_stack
from retailrocket_async.redis import RedisLimiter
from tests.support.fakes import RecordingLimiter, ScriptedTransport, check_balance, event, make_client, run, status
from tests.support.redis_server import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence

    from retailrocket_async import ObservedRequest, Stats


class Anything(BaseException):
    """An error that is not an `Exception`."""


ERRORS = [ValueError, RecursionError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, Anything]
raising_anything = pytest.mark.parametrize("error", ERRORS)

OBSERVER_METHODS = ["tracked", "request_began", "request_ended", "settled"]


class Failing(Observer):
    """An observer that raises an error in one of its methods."""

    def __init__(self, method: str, error: type[BaseException]) -> None:
        self._method = method
        self._error = error

    def tracked(self) -> object:
        """Raise the error if this is the chosen method; otherwise return a value."""
        return self._raise_in("tracked")

    def request_began(self, request: ObservedRequest) -> object:
        """Raise the error if this is the chosen method; otherwise return a value."""
        return self._raise_in("request_began")

    def request_ended(self, begun: object, *, status: int | None, failure: str | None) -> None:
        """Raise the error if this is the chosen method."""
        self._raise_in("request_ended")

    def settled(self, names: Mapping[str, int], outcome: Outcome) -> None:
        """Raise the error if this is the chosen method."""
        self._raise_in("settled")

    def _raise_in(self, method: str) -> object:
        if method == self._method:
            raise self._error("secret")
        return method


async def outcomes_of(client: AsyncTrackingClient, count: int = 3) -> tuple[list[Outcome], Stats]:
    """Track `count` events, flush and close. Check the counters, and return the outcomes and counters."""
    async with client:
        receipts = [await client.track(event(number, f"v{number}")) for number in range(count)]
        await client.flush(60.0)
        check_balance(client.stats())
    stats = client.stats()
    check_balance(stats)
    assert all(receipt.outcome is not None for receipt in receipts)
    return [receipt.outcome for receipt in receipts if receipt.outcome is not None], stats


@raising_anything
@pytest.mark.parametrize("method", OBSERVER_METHODS)
def test_an_observer_that_raises_anything_changes_nothing(method: str, error: type[BaseException]) -> None:
    """If an observer raises any error, the error is counted, every event is delivered, and a flush returns."""
    outcomes, stats = run(outcomes_of_observed(Failing(method, error)))

    assert outcomes == [Delivered(status=200, elapsed=outcomes[0].elapsed)] * 3
    assert stats.hook_errors >= 1


async def outcomes_of_observed(observer: Observer) -> tuple[list[Outcome], Stats]:
    """Return the outcomes and counters of events that are tracked with this observer."""
    return await outcomes_of(make_client(ScriptedTransport(), observer=observer, batching=Batching(max_events=2)))


@raising_anything
def test_an_observer_that_raises_leaves_a_drop_counted_by_name(error: type[BaseException]) -> None:
    """If the observer raises, a dropped event is still counted in `dropped_by` under its name."""

    async def main() -> Stats:
        client = make_client(
            ScriptedTransport(), observer=Failing("settled", error), buffer=Buffer(max_events=1, overflow="drop_newest")
        )
        async with client:
            for number in range(3):
                client.track_nowait(event(number))
        return client.stats()

    stats = run(main())

    assert stats.dropped_by == {"overflow": {"view": 2}}
    assert stats.hook_errors == 2 + 1


@raising_anything
def test_is_throttled_that_raises_anything_leaves_the_status_to_decide(error: type[BaseException]) -> None:
    """If `RetryPolicy.is_throttled` raises, the status decides: the event is `Rejected`."""

    def is_throttled(status: int, body: bytes) -> NoReturn:
        raise error

    async def main() -> tuple[list[Outcome], Stats]:
        transport = ScriptedTransport(then=400)
        return await outcomes_of(make_client(transport, retry=RetryPolicy(is_throttled=is_throttled)), count=1)

    outcomes, _ = run(main())

    assert [Rejected(status=400, elapsed=outcomes[0].elapsed)] == outcomes


class FailingPermit:
    """A permit whose methods raise an error."""

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error

    def sent(self) -> NoReturn:
        """Raise the error."""
        raise self._error

    def done(self, *, answered: bool = False) -> NoReturn:
        """Raise the error."""
        raise self._error


class FailingLimiter:
    """A limiter whose methods raise an error, but whose `acquire` succeeds from the third call on."""

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error
        self.asked = 0

    async def acquire(self) -> FailingPermit:
        """Raise the error twice, then grant a permit."""
        self.asked += 1
        if self.asked <= 2:
            raise self._error
        return FailingPermit(self._error)

    def pause_until(self, deadline: float) -> NoReturn:
        """Raise the error."""
        raise self._error

    def throttled(self, sent_at: float) -> NoReturn:
        """Raise the error."""
        raise self._error


@raising_anything
def test_a_limiter_that_raises_anything_delays_and_loses_nothing(error: type[BaseException]) -> None:
    """If a limiter's methods raise, batches and direct sends are still delivered."""

    async def main() -> tuple[list[Outcome], Stats, Delivered]:
        transport = ScriptedTransport(status(429, retry_after=1.0), status(503, retry_after=1.0))
        client = make_client(transport, limiter=FailingLimiter(error))
        sending = asyncio.create_task(client.send(event(9)))
        outcomes, stats = await outcomes_of(client)
        return outcomes, stats, await sending

    outcomes, stats, sent = run(main())

    assert all(isinstance(outcome, Delivered) for outcome in [*outcomes, sent])
    assert stats.delivered == 4


@raising_anything
def test_a_transport_that_raises_anything_is_a_failure_like_any_other(error: type[BaseException]) -> None:
    """If a caller's transport raises any error, the request is retried, and all events are delivered."""
    raised = ScriptedTransport(*[step(error)] * 2)

    outcomes, _ = run(outcomes_of_transport(raised))

    assert all(isinstance(outcome, Delivered) for outcome in outcomes)


async def outcomes_of_transport(transport: ScriptedTransport) -> tuple[list[Outcome], Stats]:
    """Return the outcomes and counters of events that are sent by this transport."""
    return await outcomes_of(make_client(transport))


def step(error: type[BaseException]) -> Any:
    """Return a step that makes the transport raise the error."""
    from tests.support.fakes import Step

    return Step(reply=error("secret"))


@raising_anything
def test_before_send_that_raises_anything_leaves_the_event_as_it_came(error: type[BaseException]) -> None:
    """If `before_send` raises any error, the original event is sent, and the error is counted."""

    def before_send(event: object) -> NoReturn:
        raise error

    async def main() -> tuple[list[Outcome], Stats]:
        return await outcomes_of(make_client(ScriptedTransport(), before_send=before_send))

    outcomes, stats = run(main())

    assert all(isinstance(outcome, Delivered) for outcome in outcomes)
    assert stats.hook_errors == 3


class FailingHandler(logging.Handler):
    """A log handler that raises an error."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self._error = error

    def emit(self, record: logging.LogRecord) -> NoReturn:
        """Raise the error."""
        raise self._error


@pytest.fixture
def handled_by() -> Iterator[Callable[[logging.Handler], None]]:
    """Return a function that adds a handler to the package's logger until the test ends."""
    logger = logging.getLogger("retailrocket_async")
    handlers: list[logging.Handler] = []

    def add(handler: logging.Handler) -> None:
        handlers.append(handler)
        logger.addHandler(handler)

    yield add
    for handler in handlers:
        logger.removeHandler(handler)


@raising_anything
def test_a_log_handler_that_raises_anything_keeps_no_hook_from_its_call(
    error: type[BaseException], handled_by: Callable[[logging.Handler], None]
) -> None:
    """If a log handler raises for a refused event, the event has its outcome, and `on_outcome` is called."""
    handled_by(FailingHandler(error))
    undelivered: list[object] = []

    async def on_outcome(events: Sequence[object]) -> None:
        undelivered.extend(events)

    async def main() -> tuple[list[Outcome], Stats]:
        return await outcomes_of(make_client(ScriptedTransport(then=400), on_outcome=on_outcome), count=1)

    outcomes, stats = run(main())

    assert [Rejected] == list(map(type, outcomes))
    assert len(undelivered) == 1
    assert stats.hook_errors == 1


@raising_anything
def test_a_log_handler_that_raises_anything_leaves_the_state_machine_alone(
    error: type[BaseException], handled_by: Callable[[logging.Handler], None]
) -> None:
    """If a log handler raises during an outage, `on_state_change` is called, and sending resumes afterwards."""
    handled_by(FailingHandler(error))
    states: list[str] = []

    async def on_state_change(change: Any) -> None:
        states.append(change.state)

    async def main() -> tuple[list[Outcome], Stats]:
        transport = ScriptedTransport(*[503] * 6)
        return await outcomes_of(make_client(transport, on_state_change=on_state_change), count=1)

    outcomes, _ = run(main())

    assert ["down", "sending"] == states
    assert [Delivered] == list(map(type, outcomes))


@raising_anything
async def test_a_log_handler_that_raises_anything_stops_no_shared_limit(
    error: type[BaseException], handled_by: Callable[[logging.Handler], None]
) -> None:
    """If a log handler raises because Redis is unreachable, the limiter still grants this process's share."""
    handled_by(FailingHandler(error))
    async with Redis.from_url(f"redis://127.0.0.1:{free_port()}") as redis:
        limiter = RedisLimiter(redis, RateLimit(requests=5, per=1.0), replicas=1)

        permit = await limiter.acquire()

    assert permit is not None


# --- values ---


class FailingMapping(dict[str, Any]):
    """A mapping whose `items` raises an error."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__(key="value")
        self._error = error

    def items(self) -> NoReturn:
        """Raise the error."""
        raise self._error("secret")


class FailingZone(tzinfo):
    """A time zone whose methods raise an error."""

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error

    def utcoffset(self, moment: datetime | None) -> timedelta:
        """Raise the error."""
        raise self._error("secret")

    def dst(self, moment: datetime | None) -> timedelta:
        """Raise the error."""
        raise self._error("secret")

    def tzname(self, moment: datetime | None) -> str:
        """Raise the error."""
        raise self._error("secret")


class FailingRepr:
    """A value whose `repr` raises an error."""

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error

    def __repr__(self) -> str:
        raise self._error("secret")


def noon_in(zone: tzinfo) -> datetime:
    """Return noon of a fixed day in this zone."""
    return datetime(2026, 1, 1, 12, tzinfo=zone)


BAD_VALUES: list[Callable[[type[BaseException]], object]] = [
    lambda error: SetContact(session_external_id="v", contact_external_id="c", custom_data=FailingMapping(error)),
    lambda error: SetContact(
        session_external_id="v", contact_external_id="c", custom_data={"deep": [FailingMapping(error)]}
    ),
    lambda error: View(session_external_id="v", product_id=1, timestamp=noon_in(FailingZone(error))),
    lambda error: View(session_external_id="v", product_id=FailingRepr(error)),  # type: ignore[arg-type]
    lambda error: order_lines([FailingMapping(error)], session_external_id="v", transaction="t"),
]


@raising_anything
@pytest.mark.parametrize("make", BAD_VALUES)
def test_a_value_that_raises_anything_is_an_invalid_value(
    make: Callable[[type[BaseException]], object], error: type[BaseException]
) -> None:
    """If a value's own methods raise, `EventValidationError` is raised without the text of that error."""

    async def main() -> None:
        make(error)

    with pytest.raises(EventValidationError) as caught:
        run(main())

    assert "secret" not in str(caught.value)


# --- the two errors that are not foreign ---


async def test_cancelling_a_task_is_not_the_limiters_failure() -> None:
    """If a direct send is cancelled while it waits for the limiter, it raises `CancelledError`."""
    limiter = RecordingLimiter(gated=True)
    async with make_client(ScriptedTransport(), limiter=limiter) as client:
        sending = asyncio.create_task(client.send(event(1)))
        while not limiter.waiting:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)

        sending.cancel()

        with pytest.raises(asyncio.CancelledError):
            await sending
        check_balance(client.stats())


def test_ctrl_c_ends_a_program_that_waits_in_an_observer() -> None:
    """If Ctrl-C arrives while an observer runs, the program ends, with or without `asyncio.run`."""
    for runner in ("asyncio.run(main())", "asyncio.new_event_loop().run_until_complete(main())"):
        program = textwrap.dedent(f"""
            import asyncio, os, signal, sys
            from retailrocket_async import Observer
            from tests.support.fakes import ScriptedTransport, event, make_client

            class Slow(Observer):
                def request_began(self, request):
                    os.kill(os.getpid(), signal.SIGINT)
                    for _ in range(10):
                        pass

            async def main():
                client = make_client(ScriptedTransport(), observer=Slow())
                await client.track(event(1))
                await client.flush()
                await asyncio.sleep(60)

            try:
                {runner}
            except KeyboardInterrupt:
                print("interrupted")
        """)
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            timeout=60,
            check=False,
        )

        assert b"interrupted" in done.stdout, done.stderr.decode()


@pytest.mark.parametrize("where", ["parts", "buffer"])
def test_ctrl_c_in_an_observer_loses_no_outcome(where: str) -> None:
    """If Ctrl-C arrives in an observer while a close settles events, the other events get their outcomes, too."""
    program = textwrap.dedent(f"""
        import asyncio, os, signal
        from retailrocket_async import Batching, Observer
        from tests.support.fakes import NEVER, ScriptedTransport, check_balance, event, make_client

        class Interrupted(Observer):
            interrupted = False

            def settled(self, names, outcome):
                if not self.interrupted:
                    self.interrupted = True
                    os.kill(os.getpid(), signal.SIGINT)
                    for _ in range(10):
                        pass

        async def main():
            receipts = [await client.track(event(number)) for number in range(2000)]
            if {where!r} == "parts":
                while len(transport.requests) < 3:
                    await asyncio.sleep(0.001)
            return receipts

        # Only a part of a divided batch gets no answer. Without a division all events wait in the buffer.
        transport = ScriptedTransport(then=lambda request: 413 if len(request.numbers) > 500 else NEVER)
        batching = Batching(max_events=2000) if {where!r} == "parts" else Batching(max_events=5000, linger=1000.0)
        client = make_client(transport, observer=Interrupted(), batching=batching)
        loop = asyncio.new_event_loop()
        receipts = loop.run_until_complete(main())
        try:
            loop.run_until_complete(client.aclose(0))
        except KeyboardInterrupt:
            check_balance(client.stats())
            print("settled", sum(receipt.done() for receipt in receipts), flush=True)
        os._exit(0)
    """)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert b"settled 2000" in done.stdout, done.stderr.decode()


def test_ctrl_c_in_an_observer_leaves_the_log_open() -> None:
    """If Ctrl-C arrives in an observer of a cancelled request, the client still logs later failures."""
    program = textwrap.dedent("""
        import asyncio, os, signal
        from retailrocket_async import Batching, Observer
        from tests.support.fakes import PARKED, ScriptedTransport, event, make_client
        from tests.support.internals import is_muted

        class Interrupted(Observer):
            def settled(self, names, outcome):
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(10):
                    pass

        async def main():
            await client.track(event(1))
            while not client.stats().requests:
                await asyncio.sleep(0.001)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(60)

        client = make_client(ScriptedTransport(then=PARKED), observer=Interrupted(), batching=Batching(linger=0.0))
        try:
            asyncio.new_event_loop().run_until_complete(main())
        except KeyboardInterrupt:
            print("muted" if is_muted(client) else "open", flush=True)
        os._exit(0)
    """)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert done.stdout == b"open\n", done.stderr.decode()


def test_ctrl_c_is_distinguished_from_an_error_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """If `KeyboardInterrupt` is raised outside the main thread or without Python's handler, it is not a Ctrl-C."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with_pythons_handler = is_interrupt(KeyboardInterrupt())
        signal.signal(signal.SIGINT, lambda *_: None)
        with_another_handler = is_interrupt(KeyboardInterrupt())
    finally:
        signal.signal(signal.SIGINT, handler)

    assert with_pythons_handler
    assert not with_another_handler
    assert not is_interrupt(SystemExit())


async def test_only_a_tasks_own_cancellation_ends_it() -> None:
    """If the running task itself is cancelled, `ends_task` is True; for any other `CancelledError`, False."""
    seen: list[bool] = []

    async def foreign() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as error:
            seen.append(ends_task(error))
            raise

    seen.append(ends_task(asyncio.CancelledError()))
    task = asyncio.create_task(foreign())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})

    assert seen == [False, True]


# --- any stack depth ---

DEEP = 400
"""Number of stack frames before the recursion limit for which each depth is tried."""


def at_depth_left(left: int, call: Callable[[], object]) -> object:
    """Call a function with only `left` stack frames left. Return its result or the `RecursionError`."""

    def descend(frames: int) -> object:
        return call() if frames <= 0 else descend(frames - 1)

    frame: Any = sys._getframe()
    used = 0
    while frame is not None:
        used, frame = used + 1, frame.f_back
    return descend(sys.getrecursionlimit() - used - left)


BUFFERS = [
    (Batching(), Buffer()),
    (Batching(), Buffer()),
    (Batching(max_events=2), Buffer(max_age=60.0)),
    (Batching(), Buffer(max_events=5, overflow="shed")),
    (Batching(), Buffer(max_events=5, overflow="drop_oldest")),
    (Batching(), Buffer(max_events=5, overflow="drop_newest")),
    (Batching(), Buffer(max_events=5, overflow="raise")),
]


class Marking(Observer):
    """An observer that stores an object with each event."""

    def tracked(self) -> object:
        """Return a new object."""
        return object()


@pytest.mark.parametrize("observer", [None, Marking()])
@pytest.mark.parametrize(("batching", "buffer"), BUFFERS)
def test_no_counter_becomes_wrong_near_the_recursion_limit(
    batching: Batching, buffer: Buffer, observer: Observer | None
) -> None:
    """If the stack is almost full, `track_nowait` accepts and counts an event, or raises and counts nothing."""

    async def main() -> tuple[int, Stats]:
        client = make_client(ScriptedTransport(), batching=batching, buffer=buffer, observer=observer)
        accepted = 0
        async with client:
            for left in range(1, 150):
                if left % 10 == 0:
                    await client.flush()
                try:
                    at_depth_left(left, lambda left=left: client.track_nowait(event(left, f"v{left % 7}")))  # type: ignore[misc]
                    accepted += 1
                except Exception as error:  # noqa: BLE001 - other errors may replace the RecursionError
                    assert isinstance(error, RecursionError | EventValidationError) or buffer.overflow == "raise", error  # noqa: PT017
                check_balance(client.stats())
            await client.flush()
        check_balance(client.stats())
        return accepted, client.stats()

    accepted, stats = run(main())

    assert accepted == stats.tracked == stats.delivered + stats.dropped
    assert accepted > 10


ASYNC_CALLS: list[Callable[[AsyncTrackingClient, int], Coroutine[Any, Any, object]]] = [
    lambda client, number: client.track(event(number, f"v{number % 7}")),
    lambda client, number: client.view(session_external_id=f"v{number}", product_id=number),
    lambda client, number: client.send(event(number)),
    lambda client, number: client.track_many([event(number, "a"), event(number, "b")]),
    lambda client, number: client.flush(),
]


@pytest.mark.parametrize("call", ASYNC_CALLS)
def test_a_coroutine_that_runs_near_the_recursion_limit_changes_all_or_nothing(
    call: Callable[[AsyncTrackingClient, int], Coroutine[Any, Any, object]],
) -> None:
    """If a coroutine starts while the stack is almost full, counters are right, and every event has its outcome."""

    async def main() -> Stats:
        client = make_client(ScriptedTransport(), batching=Batching(max_events=5))
        async with client:
            for left in range(1, 150):
                coroutine = call(client, left)
                try:
                    # The coroutine's first step runs at this depth; the depth of later steps does not matter.
                    at_depth_left(left, lambda coroutine=coroutine: coroutine.send(None))  # type: ignore[misc]
                except (RecursionError, StopIteration, EventValidationError):
                    pass
                finally:
                    coroutine.close()
                check_balance(client.stats())
                if left % 10 == 0:
                    await client.flush()
        check_balance(client.stats())
        return client.stats()

    stats = run(main())

    assert stats.tracked == stats.delivered + stats.abandoned


def test_a_change_without_enough_stack_is_refused_before_it_begins() -> None:
    """If fewer than about forty stack frames are left, `ensure_stack` raises `RecursionError`; otherwise not."""
    with pytest.raises(RecursionError):
        at_depth_left(20, ensure_stack)

    assert at_depth_left(120, ensure_stack) is None


def test_orders_are_still_valid() -> None:
    """`order_lines` accepts correct values, so the errors in the tests above come only from the broken values."""
    [line] = order_lines(
        [{"product_id": 1, "quantity": 1, "price": 1}], session_external_id="v", transaction="t", timestamp=None
    )

    assert isinstance(line, Order)
    assert line.timestamp.tzinfo is UTC
