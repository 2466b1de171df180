"""Decides whether all requests may be sent, or only one at a time, as a probe.

::

    sending --- five failures in a row ------------------> down
    sending, down --- refused: key, shop or address ----> halted
    sending, down --- environment or proxy unusable -----> halted
    down, halted --- a probe is answered ----------------> sending
    halted --- environment or proxy usable, no answer ---> down

While the state is `down` or `halted`, one request at a time may be sent as a probe, at growing intervals. The probe is
the request that has waited longest, so a successful probe also delivers its events. All other requests wait in this
module. Only a request that began after the last change of state may change the state; late answers to earlier requests
are ignored.

While the API is `down`, the retry policy sets the intervals. While sending is `halted`, the intervals double from 1 s
to 30 s, because a person has to correct the key, the shop or the address.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from retailrocket_async._http.reply import Reply, Verdict
from retailrocket_async._outcome import Abandoned, Rejected, refusal_of
from retailrocket_async._runtime.context import detached
from retailrocket_async._runtime.futures import set_done
from retailrocket_async._stats import StateChange

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from retailrocket_async._delivery.retry import RetryPolicy
    from retailrocket_async._stats import State

FAILURES: Final = 5
"""Number of failures in a row, with no answer between them, after which the state becomes `down`. A single failure can
be bad luck; five in a row are not."""

_HALTED_FIRST, _HALTED_LAST = 1.0, 30.0
"""Seconds between probes while sending is halted: the first interval, and the longest one."""

_LEAST = 0.1
"""Least number of seconds between probes."""

_HURRIED = 0.5
"""Largest number of seconds between probes while the client closes, because `aclose` must end within its timeout."""

_DOWN: Final = "the API does not answer: one request at a time is tried until it does"
_NO_WAY: Final = "the proxy {} gives no connection to the API: one request at a time is tried until it does"
_KEYLESS: Final = "the api_key function gives no key: see what it raises"


class Admission(NamedTuple):
    """The right to make a request now.

    Attributes:
        epoch: number of changes of state before this right was granted.
        probe: whether the request is the probe.
    """

    epoch: int
    probe: bool


class CircuitBreaker:
    """Decides for each request whether it may be sent now, and watches the replies for failures.

    The module's docstring describes the states.

    Args:
        retry: sets the intervals between probes while the API is down.
        clock: returns the loop's time in seconds.
        changed: called with every change of state.

    Attributes:
        state: as in `Stats.state`.
        since: when the state began (loop time).
        status: the HTTP status that halted sending; None if sending is not halted, or if a failure halted it.
        failure: the failure that halted sending, e.g. ``"config: SSL_CERT_FILE ..."``; None if sending is not halted,
            or if an HTTP status halted it.
        refused_at: when the API last refused a request in a way that halts sending (loop time).
        answered_at: when a reply last showed that the API works (loop time); minus infinity before the first.
    """

    def __init__(self, retry: RetryPolicy, clock: Callable[[], float], changed: Callable[[StateChange], None]) -> None:
        # The retry policy may allow waits of 0 s; without a minimum, a probe would be sent in every turn of the loop.
        self._first = max(_LEAST, retry.initial_backoff)
        self._last = max(_LEAST, retry.max_backoff)
        self._excused: Container[State] = ("halted", "down") if retry.outlast else ("halted",)
        self._clock = clock
        self._changed = changed
        self.state: State = "sending"
        self.since = 0.0
        self.status: int | None = None
        self.failure: str | None = None
        self.refused_at = 0.0
        self.answered_at = -math.inf
        self._restored_at = 0.0
        self._epoch = 0
        self._failures = 0
        self._probes = 0
        self._probing = False
        self._probe_at = 0.0
        self._hurried = False
        # The queue of waiters is an OrderedDict, because cancelled waiters are removed from the middle.
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._resting: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    # --- asking -------------------------------------------------------------------------------------------------------

    def admit(self) -> Admission | None:
        """Return the right to make a request now, or None if the caller must call `wait` first."""
        if self.state == "sending":
            return Admission(self._epoch, probe=False)
        if self._probing or self._clock() < self._probe_at:
            return None
        self._probing = True
        return Admission(self._epoch, probe=True)

    def still_admits(self, admission: Admission) -> bool:
        """Whether the state has not changed since `admission` was granted."""
        return admission.epoch == self._epoch

    async def wait(self) -> None:
        """Return when `admit` may succeed; waiters are woken in the order of their calls."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = None
        self.nudge()
        try:
            await waiter
        except BaseException:
            self._waiting.pop(waiter, None)
            self.nudge()
            raise

    async def rest(self, seconds: float) -> None:
        """Sleep for `seconds`, or until the state changes; return at once unless the state is `sending`.

        In any other state the breaker itself decides when the next request is sent.
        """
        if self.state != "sending":
            return
        rested = asyncio.get_running_loop().create_future()
        self._resting.add(rested)
        timer = detached(asyncio.get_running_loop().call_later, seconds, set_done, rested)
        try:
            await rested
        finally:
            timer.cancel()
            self._resting.discard(rested)

    def nudge(self) -> None:
        """Wake the next waiter as soon as a request may be sent; call this if a woken waiter made no request."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and not self._probing:
            when = self._probe_at if self.state != "sending" else self._clock()
            self._timer = detached(asyncio.get_running_loop().call_at, when, self._wake_one)

    def over(self, admission: Admission) -> None:
        """Note that a request has ended; call this after every request, also if its reply was passed to `report`."""
        if admission.probe and admission.epoch == self._epoch and self._probing:
            # The probe ended without a reply, for example because its task was cancelled.
            self._probing = False
            self.nudge()

    def hold(self, admission: Admission) -> None:
        """Let no other request become the probe, because the events of this probe are about to be sent again."""
        if admission.probe and admission.epoch == self._epoch:
            self._probing = True
            self.nudge()

    # --- reporting ----------------------------------------------------------------------------------------------------

    def report(self, admission: Admission, reply: Reply, *, halts: bool, conclusive: bool = True) -> None:
        """Evaluate the reply to a request, and change the state if the reply demands it.

        Args:
            admission: the admission of that request.
            reply: the reply.
            halts: whether a refusal for key, shop or address means that all other requests would be refused, too.
            conclusive: whether an answer to this request proves that the cause of a halt is corrected.
        """
        if admission.epoch != self._epoch:
            return
        if reply.verdict is Verdict.BLOCKED and halts:
            self._halt(reply)
        elif reply.verdict in (Verdict.TRANSIENT, Verdict.UNCLEAR):
            self._failed(reply)
        elif self.state != "halted" or (conclusive and reply.verdict is not Verdict.THROTTLED):
            self._answered()
        else:
            # The answer does not prove that the cause of the halt is corrected.
            self._probe_again()

    def refusal(self, *, attempts: int = 0, elapsed: float = 0.0) -> Rejected | Abandoned | None:
        """Return the outcome of an event that has waited too long for the end of a halt; None if sending is not halted.

        Args:
            attempts: number of requests that carried the event. The caller knows that the API recorded none of them.
            elapsed: seconds since the first of these requests.
        """
        if self.status is not None:
            return Rejected(status=self.status, attempts=attempts, elapsed=elapsed)
        if self.failure is None:
            return None
        return Abandoned(
            reason="halted", maybe_recorded=False, failure=self.failure, attempts=attempts, elapsed=elapsed
        )

    def counted_from(self, moment: float) -> float:
        """Return the time from which `retry.max_elapsed` counts for a flight that began at `moment` (loop time).

        Time in the state `halted` is not counted. If `retry.outlast` is set, time in the state `down` is not counted
        either.
        """
        return self._clock() if self.state in self._excused else max(moment, self._restored_at)

    def hurry(self) -> None:
        """Send a probe now, and further probes at short intervals, because the client closes."""
        self._hurried = True
        self.probe_now()

    def probe_now(self) -> None:
        """Let the next probe be sent now."""
        self._probe_at = min(self._probe_at, self._clock())
        if self._waiting:
            self.nudge()

    def _answered(self) -> None:
        self._failures = 0
        self.answered_at = self._clock()
        if self.state != "sending":
            self._become("sending", "requests go out again")

    def _failed(self, reply: Reply) -> None:
        self._failures += 1
        if self.state == "halted" and self._is_past(reply):
            # The cause of the halt is corrected; the request failed for another reason.
            self._failures = FAILURES
        elif self.state != "sending":
            self._probe_again()
            return
        if self._failures >= FAILURES:
            self._become("down", _advice(reply), status=reply.status, failure=_failure_of(reply))

    def _is_past(self, reply: Reply) -> bool:
        """Whether the request failed at a later step than the halt's cause, which shows that the cause is corrected."""
        if self.failure is None:
            return False
        return reply.status is not None or (self.failure.startswith("config:") and reply.failure != "key")

    def _halt(self, reply: Reply) -> None:
        self.refused_at = self._clock()
        failure = _failure_of(reply)
        if self.state == "halted" and (self.status, self.failure) == (reply.status, failure):
            self._probe_again()
            return
        self.status, self.failure = reply.status, failure
        self._become("halted", _advice(reply), status=reply.status, failure=failure)

    def _become(self, state: State, advice: str, *, status: int | None = None, failure: str | None = None) -> None:
        now = self._clock()
        previous, lasted = self.state, now - self.since if self.state != "sending" else 0.0
        if previous in self._excused and state not in self._excused:
            self._restored_at = now
        if state != "halted":
            self.status = self.failure = None
        if state != previous:
            self.since = now
            self._probes = 0
        self.state = state
        self._epoch += 1
        self._failures = 0
        self._probe_again()
        for rested in self._resting:
            set_done(rested)
        if state == "sending":
            self._wake_all()
        self._changed(
            StateChange(state=state, previous=previous, status=status, failure=failure, advice=advice, lasted=lasted)
        )

    def _probe_again(self) -> None:
        """Allow a new probe, and set the time at which it may be sent."""
        self._probing = False
        if self.state == "halted":
            interval = min(_HALTED_LAST, _HALTED_FIRST * 2.0 ** min(self._probes, 30))
        else:
            longest = min(self._last, self._first * 2.0 ** min(self._probes, 60))
            interval = longest * random.uniform(0.5, 1.0)  # noqa: S311 - so that clients do not send probes at the same times
        self._probes += 1
        self._probe_at = self._clock() + (min(interval, _HURRIED) if self._hurried else interval)
        self.nudge()

    def _wake_one(self) -> None:
        self._timer = None
        while self._waiting:
            waiter, _ = self._waiting.popitem(last=False)
            if not waiter.done():
                waiter.set_result(None)
                return

    def _wake_all(self) -> None:
        while self._waiting:
            set_done(self._waiting.popitem(last=False)[0])
        self.nudge()


def _failure_of(reply: Reply) -> str | None:
    return f"{reply.failure}: {reply.detail}" if reply.failure is not None else None


def _advice(reply: Reply) -> str:
    """Return a sentence that tells the user why sending is halted or the API is down, and what to do."""
    if reply.verdict is Verdict.BLOCKED:
        return reply.detail or (reply.failure if reply.status is None else refusal_of(reply.status).advice) or ""
    if reply.failure == "key":
        return _KEYLESS
    return _DOWN if reply.proxy is None else _NO_WAY.format(reply.proxy)
