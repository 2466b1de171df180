"""Run random sequences of actions on a virtual clock. Check that each outcome agrees with what the server recorded.

The simulated server always refuses a request that contains a bad event, is too large, has a wrong key or is for a
closed shop. Any other request may succeed or fail in any way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retailrocket_async._delivery.rate_limiter import LocalLimiter, RateLimit
from retailrocket_async._delivery.retry import RetryPolicy
from retailrocket_async._errors import BufferFullError, ClientClosedError, DeliveryError, FlushTimeoutError
from retailrocket_async._events.models import AddToBasket, ImpressionContentViewed, Order, View
from retailrocket_async._http.reply import Reply
from retailrocket_async._outcome import Abandoned, Delivered, Dropped, Rejected
from retailrocket_async._queue.options import Batching, Buffer
from tests.contracts.limiter import worst_window
from tests.support.effort import most
from tests.support.fakes import (
    ROUNDING,
    CheckedLoop,
    Engine,
    Request,
    ScriptedTransport,
    Step,
    now,
    number_of,
    run,
    tasks,
    turns,
)
from tests.support.internals import hooks_drained, leftovers_of, running_flights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retailrocket_async._events.models import Event
    from retailrocket_async._outcome import Outcome
    from retailrocket_async._receipt import Receipt
    from retailrocket_async._stats import CloseReport, StateChange, UndeliveredEvent

pytestmark = pytest.mark.endurance

PATIENCE = 20_000.0
"""Virtual seconds after which a run counts as hanging."""

KINDS = (View, View, AddToBasket, ImpressionContentViewed, Order)

# --- the server -------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Nature:
    """The settings of the simulated server.

    Attributes:
        culprits: an event is bad if its number modulo 16 is in this set.
        largest: maximum number of events in a request; a larger request gets a 413.
        closed: periods in which the shop is closed: (start, end, status of the answer), in virtual seconds.
        rotated: virtual seconds at which the key changes.
        lag: seconds from a change of the key until the function that returns the key returns the new one.
        ask: seconds that one call of this function takes.
        keyless: how many calls of this function fail, counted from the first call.
        faults: how the first requests end that the server does not refuse, in order; later requests succeed.
    """

    culprits: frozenset[int] = frozenset()
    largest: int = 1000
    closed: tuple[tuple[float, float, int], ...] = ()
    rotated: tuple[float, ...] = ()
    lag: float = 0.0
    ask: float = 0.0
    keyless: int = 0
    faults: tuple[Step, ...] = ()


class Server(ScriptedTransport):
    """A simulated server that always refuses bad requests, and lets other requests fail as its settings say."""

    def __init__(self, nature: Nature) -> None:
        super().__init__(then=self._answer)
        self.nature = nature
        self._faults = list(nature.faults)
        self._keyless = nature.keyless
        self._serial = 1

    def _answer(self, request: Request) -> Step:
        nature = self.nature
        fault = self._faults.pop(0) if self._faults else Step(latency=0.02)
        reply = fault.reply
        recorded = fault.recorded
        takes = recorded or (recorded is None and isinstance(reply, Reply) and reply.status == 200)
        if isinstance(reply, Reply) and not reply.sent:
            return fault
        if self._serial != self._key_at(now(), 0.0):
            step: int | None = 401
        elif closed := [status for since, until, status in nature.closed if since <= now() < until]:
            step = closed[0]
        elif len(request.numbers) > nature.largest:
            step = 413
        elif any(number % 16 in nature.culprits for number in request.numbers):
            step = 400
        else:
            step = None
        if step is None or (not takes and not (isinstance(reply, Reply) and reply.status == 200)):
            # The fault decides how a valid request ends. A fault that neither records events nor answers 200 also
            # decides how an invalid request ends, because such a fault happens before the server checks the events.
            if step is not None:
                fault = attrs.evolve(fault, recorded=False)
            answer = fault.reply
            return (
                attrs.evolve(fault, reply=attrs.evolve(answer, serial=self._serial))
                if isinstance(answer, Reply)
                else fault
            )
        return Step(reply=Reply(status=step, serial=self._serial), latency=fault.latency)

    def _key_at(self, moment: float, lag: float) -> int:
        return 1 + sum(rotated + lag <= moment for rotated in self.nature.rotated)

    async def renew_key(self, serial: int) -> tuple[bool, str | None]:
        """Simulate a call of the user's function that returns the key.

        Return whether the key is now another one than number `serial`, and the name of the function's error or None.
        """
        if self._serial != serial:
            return True, None
        await asyncio.sleep(self.nature.ask)
        if self._keyless:
            self._keyless -= 1
            return False, "OSError"
        self._serial = max(self._serial, self._key_at(now(), self.nature.lag))
        return self._serial != serial, None


LATENCIES = st.sampled_from([0.05, 0.05, 0.001, 0.0, 0.3, 2.0, 9.0])
UNCLEAR = st.builds(
    Step,
    reply=st.sampled_from(
        [Reply(status=503), Reply(status=503), Reply(failure="timeout", detail="T"), Reply(status=501)]
    ),
    latency=LATENCIES,
    recorded=st.booleans(),
)
FINE = st.builds(Step, latency=LATENCIES)
FAULTS = st.one_of(
    UNCLEAR,
    UNCLEAR,
    UNCLEAR,
    st.builds(
        Step,
        reply=st.builds(Reply, status=st.sampled_from([429, 408]), retry_after=st.sampled_from([None, 0.0, 3.0])),
        latency=LATENCIES,
    ),
    st.builds(
        Step,
        reply=st.builds(Reply, status=st.sampled_from([400, 403, 413, 503]), body=st.just(b"slow down")),
        latency=LATENCIES,
        recorded=st.just(value=False),
    ),
    st.builds(Step, reply=st.just(Reply(failure="connect", detail="ConnectError", sent=False)), latency=LATENCIES),
    st.builds(Step, reply=st.just(ZeroDivisionError()), latency=LATENCIES, recorded=st.booleans()),
    st.builds(Step, reply=st.just(Reply(status=503)), latency=LATENCIES, stubborn=st.just(value=True)),
)
CULPRITS = [frozenset[int](), frozenset[int](), frozenset({3}), frozenset({1, 6, 7, 12}), frozenset(range(16))]
CLOSED = st.tuples(
    st.sampled_from([3.0, 0.5, 0.0]), st.sampled_from([4.0, 6.0, 50.0, 1e9]), st.sampled_from([403, 404, 401, 301])
)
NATURES = st.builds(
    Nature,
    culprits=st.sampled_from(CULPRITS),
    largest=st.sampled_from([1000, 1000, 1000, 5, 3, 1]),
    closed=st.one_of(st.just(()), st.just(()), st.just(()), st.tuples(CLOSED)),
    rotated=st.sampled_from([(), (), (1.0,), (0.1, 5.0)]),
    lag=st.sampled_from([0.0, 0.0, 0.3, 20.0]),
    ask=st.sampled_from([0.0, 0.1, 10.0]),
    keyless=st.integers(0, 2),
    faults=st.one_of(
        st.lists(FAULTS | FINE, min_size=1, max_size=6).map(tuple),
        st.lists(FINE | FINE | FAULTS, min_size=3, max_size=40).map(tuple),
        st.builds(lambda fault, count: (fault,) * count, FAULTS, st.integers(1, 40)),
    ),
)

# --- the limiter ------------------------------------------------------------------------------------------------------


class FailingLimiter:
    """A limiter that follows a script: each permit is granted after some seconds or raises an error."""

    def __init__(self, script: Sequence[float | None]) -> None:
        self._script = list(script)
        self.open = 0

    async def acquire(self) -> FailingLimiter:
        """Grant a permit after the script's next number of seconds, or raise `OSError` if the script says None."""
        step = self._script.pop(0) if self._script else 0.0
        if step is None:
            raise OSError
        if step:
            await asyncio.sleep(step)
        self.open += 1
        return self

    def sent(self) -> None:
        """Ignore the call, which the limiter's protocol requires."""

    def done(self, *, answered: bool = False) -> None:
        """Count one permit as returned."""
        self.open -= 1

    def pause_until(self, deadline: float) -> None:
        """Ignore the call, which the limiter's protocol requires."""

    def throttled(self, sent_at: float) -> None:
        """Ignore the call, which the limiter's protocol requires."""


LIMITERS = (
    st.none()
    | st.builds(RateLimit, requests=st.integers(1, 50))
    | st.just(RateLimit(requests=1, per=60.0))
    | st.lists(st.sampled_from([None, 0.0, 0.01, 0.5, 5.0]), max_size=20)
)

# --- the client -------------------------------------------------------------------------------------------------------

BATCHINGS = st.builds(
    Batching,
    max_events=st.sampled_from([20, 20, 5, 3, 2, 1]),
    max_bytes=st.sampled_from([4096, 1024]),
    max_in_flight=st.integers(1, 4),
    linger=st.sampled_from([0.1, 0.0]),
)
BUFFERS = st.builds(
    Buffer,
    max_events=st.sampled_from([100, 100, 20, 5, 2, 1]),
    max_bytes=st.sampled_from([100_000, 4096]),
    overflow=st.sampled_from(["wait"] * 5 + ["raise", "drop_newest", "drop_oldest", "shed"]),
    max_age=st.sampled_from([None] * 6 + [40.0, 3.0, 0.5, 0.01]),
)


def is_slow_down(_: int, body: bytes) -> bool:
    """Return True if the client must treat the answer as a 429."""
    return body == b"slow down"


BACKOFFS = st.sampled_from([(0.5, 30.0), (0.0, 1.0), (0.0, 0.0)])
RETRIES = st.builds(
    lambda backoff, **rest: RetryPolicy(initial_backoff=backoff[0], max_backoff=backoff[1], **rest),
    BACKOFFS,
    max_attempts=st.sampled_from([20, 20, 3, 2, 1]),
    max_elapsed=st.sampled_from([300.0, 300.0, 30.0, 1.0, 0.0]),
    at_most_once=st.sampled_from([(), (), (Order,), (Order, View)]),
    max_halt=st.sampled_from([30.0, 2.0, 0.1, 0.0]),
    is_throttled=st.sampled_from([None, is_slow_down]),
)
ACTIONS = st.one_of(
    st.tuples(st.just("track"), st.integers(1, 12)),
    st.tuples(st.just("track"), st.integers(5, 40)),
    st.tuples(st.just("hasty"), st.sampled_from([0.0, 0.05, 1.0])),
    st.tuples(st.just("send"), st.sampled_from([1e4, 1.5, 0.4, 0.05, 0.0])),
    st.tuples(st.just("send_batch"), st.sampled_from([1e4, 1.5, 0.4, 0.05, 0.0])),
    st.tuples(st.just("flush"), st.sampled_from([None, None, 5.0, 0.3, 0.0])),
    st.tuples(st.just("cancel"), st.integers(0, 5)),
)
LAST_ACTIONS = st.tuples(st.just("aclose"), st.sampled_from([None, 20.0, 3.0, 0.2, 0.0]))


def _plans(actions: st.SearchStrategy[tuple[str, Any]], least: int, most: int) -> st.SearchStrategy[list[Any]]:
    pauses = st.sampled_from([0.1, 0.5, 3.0, 0.02, 0.0])
    step = st.tuples(pauses, st.sampled_from("abcde"), st.sampled_from(KINDS), actions)
    return st.lists(step, min_size=least, max_size=most)


PLANS = st.builds(lambda life, end: life + end, _plans(ACTIONS, 4, 25), _plans(ACTIONS | LAST_ACTIONS, 0, 4))
HOOKS = st.sampled_from(["none", "quiet", "raises", "slow", "tracks", "flushes", "closes", "cancelled"])


class Story:
    """Run one client through a plan of actions, and record everything that the checks at the end need."""

    def __init__(
        self,
        *,
        nature: Nature,
        batching: Batching,
        buffer: Buffer,
        retry: RetryPolicy,
        limit: RateLimit | Sequence[float | None] | None,
        hook: str,
        renewable: bool,
        close_timeout: float | None,
    ) -> None:
        self.server = Server(nature)
        self.server.checks.append(self._fresh)
        self.buffer, self.batching, self.retry, self.hook = buffer, batching, retry, hook
        self.limiter: Any = (
            LocalLimiter(limit) if limit is None or isinstance(limit, RateLimit) else FailingLimiter(limit)
        )
        self.limit = limit
        self.close_timeout = close_timeout
        self.reported: list[UndeliveredEvent] = []
        self.changes: list[StateChange] = []
        self.engine = Engine(
            self.server,
            limiter=self.limiter,
            batching=batching,
            buffer=buffer,
            retry=retry,
            renewable=renewable,
            on_outcome=None if hook == "none" else self._on_outcome,
            on_state_change=None if hook == "none" else self._on_state_change,
        )
        self.receipts: dict[int, Receipt] = {}
        self.came_at: dict[int, float] = {}
        self.sent: dict[int, Outcome] = {}
        self.visitors: dict[int, str] = {}
        self.kinds: dict[int, type[Event]] = {}
        self.reports: list[CloseReport] = []
        self.jobs: list[asyncio.Task[None]] = []
        self.number = 0
        self.hooked = 0
        loop = asyncio.get_running_loop()
        assert isinstance(loop, CheckedLoop)
        loop.checks.append(self._add_up)

    def _add_up(self) -> None:
        assert now() < PATIENCE, "it never ends"
        assert asyncio.get_running_loop().turns < 400_000, "it spins"  # type: ignore[attr-defined]

    def _fresh(self) -> None:
        request = self.server.requests[-1]
        if self.buffer.max_age is not None and request.at == now():
            for number in request.numbers:
                if number in self.receipts:
                    assert now() - self.came_at[number] < self.buffer.max_age + ROUNDING, number

    def _next(self, visitor: str, kind: type[Event]) -> int:
        self.number += 1
        self.came_at[self.number] = now()
        self.visitors[self.number] = visitor
        self.kinds[self.number] = kind
        return self.number

    # --- what callers do ----------------------------------------------------------------------------------------------

    async def track(self, visitor: str, kind: type[Event]) -> None:
        """Track an event, and record its receipt unless the client is closed or its buffer is full."""
        number = self._next(visitor, kind)
        with contextlib.suppress(ClientClosedError, BufferFullError):
            self.receipts[number] = await self.engine.track(number, visitor, kind)

    async def hasty(self, visitor: str, kind: type[Event], patience: float) -> None:
        """Track an event, and cancel the call after `patience` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self.track(visitor, kind)

    async def send(self, numbers: list[int], patience: float) -> None:
        """Send the events directly, and record their outcome unless the call is cancelled after `patience` seconds."""
        outcome: Outcome | None = None
        try:
            async with asyncio.timeout(patience):
                outcome = await (self.engine.send(numbers[0]) if len(numbers) == 1 else self.engine.send_batch(numbers))
        except DeliveryError as error:
            outcome = error.outcome
        except (TimeoutError, ClientClosedError):
            pass
        if outcome is not None:
            self.sent.update(dict.fromkeys(numbers, outcome))

    async def flush(self, timeout: float | None) -> None:  # noqa: ASYNC109
        """Flush. Check that the flush settles all earlier events, or times out no sooner than `timeout`."""
        before = [receipt for receipt in self.receipts.values() if not receipt.done()]
        began = now()
        try:
            await self.engine.flush(timeout)
        except FlushTimeoutError:
            assert timeout is not None
            assert now() - began >= timeout - ROUNDING
        else:
            assert all(receipt.done() for receipt in before)
        assert timeout is None or now() - began <= timeout + ROUNDING

    async def aclose(self, timeout: float | None) -> None:  # noqa: ASYNC109
        """Close the client. Check that closing takes no longer than the timeout and that every event has an outcome."""
        began = now()
        report = await self.engine.aclose(timeout)
        assert timeout is None or now() - began <= timeout + ROUNDING, (now() - began, timeout)
        self.reports.append(report)
        assert all(receipt.done() for receipt in self.receipts.values())
        assert (report.stats.pending, report.stats.in_flight) == (0, 0)

    # --- hooks --------------------------------------------------------------------------------------------------------

    async def _on_outcome(self, events: Sequence[UndeliveredEvent]) -> None:
        self.reported += events
        await self._hooked()

    async def _on_state_change(self, change: StateChange) -> None:
        self.changes.append(change)
        await self._hooked()

    async def _hooked(self) -> None:
        self.hooked += 1
        match self.hook:
            case "raises":
                raise ZeroDivisionError
            case "slow":
                await asyncio.sleep(0.7)
            case "tracks" if self.hooked < 5:
                await self.track("a", View)
            case "flushes":
                await self.flush(None)
            case "closes":
                await self.aclose(self.close_timeout)
            case "cancelled":
                future = asyncio.get_running_loop().create_future()
                future.cancel()
                await future

    # --- the run -----------------------------------------------------------------------------------------------------

    def do(self, visitor: str, kind: type[Event], action: tuple[str, Any]) -> None:
        """Start the action as a task; or, if the action says so, cancel a request that is being sent."""
        verb, argument = action
        match verb:
            case "track":
                for index in range(argument):
                    self._start(
                        self.track(visitor if index % 3 else "abcde"[index % 5], KINDS[index % 5] if index else kind)
                    )
            case "hasty":
                self._start(self.hasty(visitor, kind, argument))
            case "send":
                self._start(self.send([self._next(visitor, View)], argument))
            case "send_batch":
                self._start(self.send([self._next(visitor, View) for _ in range(3)], argument))
            case "flush":
                self._start(self.flush(argument))
            case "aclose":
                self._start(self.aclose(argument))
            case "cancel":
                flying = running_flights(self.engine.dispatcher)
                if flying:
                    flying[argument % len(flying)].cancel()

    def _start(self, coroutine: Any) -> None:
        self.jobs.append(asyncio.create_task(coroutine))

    async def live(self, plan: list[tuple[float, str, type[Event], tuple[str, Any]]]) -> None:
        """Run all actions and close the client. Check the counters and reports, and that no task or request is left."""
        for pause, visitor, kind, action in plan:
            self.do(visitor, kind, action)
            await asyncio.sleep(pause)
        await self.aclose(self.close_timeout)
        for job in self.jobs:
            await job
        dispatcher = self.engine.dispatcher
        await hooks_drained(dispatcher)
        await asyncio.sleep(1.0)
        await turns(5)
        assert tasks() == set()
        assert self.server.in_flight == 0
        assert not {name: left for name, left in leftovers_of(dispatcher).items() if left}
        if isinstance(self.limiter, FailingLimiter):
            assert self.limiter.open == 0
        elif isinstance(self.limit, RateLimit):
            assert worst_window(self.server.times, self.limit.per) <= self.limit.requests
        stats = dispatcher.stats()
        assert not any(report.stats != self.reports[0].stats for report in self.reports)
        assert stats.tracked == stats.delivered + stats.rejected + stats.abandoned + stats.dropped
        if self.hook != "none":
            undelivered = Counter(n for n, r in self.receipts.items() if not isinstance(r.outcome, Delivered))
            reported = Counter(map(number_of, self.reported))
            # If a caller was cancelled, its event may have been accepted without a receipt. So more events may be
            # reported than there are receipts.
            assert not undelivered - reported
            assert max(reported.values(), default=1) == 1
        self.judge()

    def judge(self) -> None:
        """Compare each event's outcome with the number of times that the server recorded it."""
        recorded = Counter(self.server.recorded_numbers)
        carried = Counter(self.server.sent_numbers)
        outcomes = {number: receipt.outcome for number, receipt in self.receipts.items()} | self.sent
        for number, outcome in outcomes.items():
            assert outcome is not None, number
            times = recorded[number]
            facts = (number, outcome, times, carried[number])
            if isinstance(outcome, Delivered):
                assert times >= 1, facts
                assert times == 1 or outcome.maybe_duplicate, facts
            else:
                assert times == 0 or outcome.maybe_recorded, facts
            assert outcome.attempts == carried[number], facts
            assert not isinstance(outcome, Dropped) or carried[number] == 0, facts
            assert not isinstance(outcome, Abandoned) or outcome.attempts or outcome.reason != "closed", facts
            if isinstance(outcome, Rejected) and outcome.status == 400 and outcome.isolated and number in self.receipts:
                assert number % 16 in self.server.nature.culprits or not self.retry.is_throttled, facts
            if self.kinds[number].wire_name in self.retry.once_names and number in self.receipts:
                assert times <= 1, facts
        orders: dict[str, list[int]] = defaultdict(list)
        for visitor, number in self.server.recorded:
            if number in self.receipts and number not in orders[visitor]:
                orders[visitor].append(number)
        assert all(order == sorted(order) for order in orders.values()), orders


@settings(max_examples=most(150), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    nature=NATURES,
    batching=BATCHINGS,
    buffer=BUFFERS,
    retry=RETRIES,
    limit=LIMITERS,
    hook=HOOKS,
    renewable=st.booleans(),
    plan=PLANS,
    close_timeout=st.sampled_from([None, None, None, 15.0, 0.5, 0.0]),
)
def test_nothing_is_lost_hidden_or_left(  # noqa: PLR0917 - Hypothesis draws each argument
    nature: Nature,
    batching: Batching,
    buffer: Buffer,
    retry: RetryPolicy,
    limit: RateLimit | Sequence[float | None] | None,
    hook: str,
    renewable: bool,  # noqa: FBT001 - Hypothesis passes the argument
    plan: list[tuple[float, str, type[Event], tuple[str, Any]]],
    close_timeout: float | None,
) -> None:
    """After any actions and faults, each event has one true outcome; no task, request or permit is left over."""

    async def test() -> None:
        story = Story(
            nature=nature,
            batching=batching,
            buffer=buffer,
            retry=retry,
            limit=limit,
            hook=hook,
            renewable=renewable,
            close_timeout=close_timeout,
        )
        await story.live(plan)

    run(test())
