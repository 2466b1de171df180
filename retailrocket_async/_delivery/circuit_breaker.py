"""Decides whether all requests may go out, or one at a time as a probe.

::

    sending --- five failures in a row ------------------> down
    sending, down --- refused: key, shop or address ----> halted
    sending, down --- environment or proxy unusable -----> halted
    down, halted --- a probe is answered ----------------> sending
    halted --- environment or proxy usable, no answer ---> down

While the state is `down` or `halted`, one request at a time may go out as a probe, at growing intervals. A probe is the
next request that waits, so a probe that succeeds delivers its events. All other requests wait in this module. Only a
request that began after the last change of state may change the state; late answers to earlier ones are ignored.

In `down` the intervals are those of the retry policy. In `halted` they double from 1 s to 30 s, since a person has to
correct the key, the shop or the address.
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
"""Failures in a row, with no answer between them, until the API counts as down: one is bad luck, five are not."""

_HALTED_FIRST, _HALTED_LAST = 1.0, 30.0
"""Seconds between the first two probes of a halted client, and between its later ones."""

_LEAST = 0.1
"""Least number of seconds between probes."""

_HURRIED = 0.5
"""Largest number of seconds between probes once the client closes: little time is left for them."""

_DOWN: Final = "the API does not answer: one request at a time is tried until it does"
_NO_WAY: Final = "the proxy {} gives no connection to the API: one request at a time is tried until it does"
_KEYLESS: Final = "the api_key function gives no key: see what it raises"


class Admission(NamedTuple):
    """The right to make a request now.

    Attributes:
        epoch: number of the state in which it was granted; each change of state adds one.
        probe: whether the request is the probe.
    """

    epoch: int
    probe: bool


class CircuitBreaker:
    """Admits requests as the state allows; see the module's text.

    Args:
        retry: gives the intervals between probes while the API is down.
        clock: returns the loop's time in seconds.
        changed: called with every change of state.

    Attributes:
        state: as in `Stats.state`.
        since: when the state began (loop time).
        status: the HTTP status that halted sending; None if sending is not halted, or not by a status.
        failure: the failure that halted sending, e.g. ``"config: SSL_CERT_FILE ..."``; None if sending is not halted,
            or by a status.
        refused_at: when a request was last refused for the cause of the halt (loop time).
        answered_at: when a request was last answered, in whatever state (loop time).
    """

    def __init__(self, retry: RetryPolicy, clock: Callable[[], float], changed: Callable[[StateChange], None]) -> None:
        # A policy without waits must not make a probe of every turn of the loop.
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
        # A queue; cancelled waiters leave it from the middle.
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._resting: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    # --- asking -------------------------------------------------------------------------------------------------------

    def admit(self) -> Admission | None:
        """Return the right to make a request now; None if the caller must `wait` first."""
        if self.state == "sending":
            return Admission(self._epoch, probe=False)
        if self._probing or self._clock() < self._probe_at:
            return None
        self._probing = True
        return Admission(self._epoch, probe=True)

    def still_admits(self, admission: Admission) -> bool:
        """Whether the state is the one in which `admission` was given."""
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
        """Sleep for `seconds`, but no longer than until the state changes: from then on the breaker sets the time."""
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
        """Wake the next waiter as soon as a request may go out; needed if a woken waiter made no request."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and not self._probing:
            when = self._probe_at if self.state != "sending" else self._clock()
            self._timer = detached(asyncio.get_running_loop().call_at, when, self._wake_one)

    def over(self, admission: Admission) -> None:
        """Note that a request is over, whether it was reported or not."""
        if admission.probe and admission.epoch == self._epoch and self._probing:
            # The probe was cut off and has no result.
            self._probing = False
            self.nudge()

    def hold(self, admission: Admission) -> None:
        """Keep the place of a probe that is over: its flight is about to make another request."""
        if admission.probe and admission.epoch == self._epoch:
            self._probing = True
            self.nudge()

    # --- reporting ----------------------------------------------------------------------------------------------------

    def report(self, admission: Admission, reply: Reply, *, halts: bool, conclusive: bool = True) -> None:
        """Change the state, if need be, by the reply to a request.

        Args:
            admission: the admission of that request.
            reply: the reply.
            halts: whether a refusal for key, shop or address would meet every other request as well.
            conclusive: whether an answer proves that the cause of a halt is corrected.
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
            # The answer does not prove that key and address are right.
            self._probe_again()

    def refusal(self, *, attempts: int = 0, elapsed: float = 0.0) -> Rejected | Abandoned | None:
        """Return the outcome of an event that has waited too long for the end of a halt; None if sending is not halted.

        Args:
            attempts: requests that carried the event; none of them may have been recorded.
            elapsed: seconds since the first of them.
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

        Excludes time spent halted, and time spent down if `retry.outlast` is set.
        """
        return self._clock() if self.state in self._excused else max(moment, self._restored_at)

    def hurry(self) -> None:
        """Probe now, and often: the client closes."""
        self._hurried = True
        self.probe_now()

    def probe_now(self) -> None:
        """Let the next probe go now."""
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
        """Whether a failed request came further than the cause of the halt would have let it."""
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
        """Plan the next probe."""
        self._probing = False
        if self.state == "halted":
            interval = min(_HALTED_LAST, _HALTED_FIRST * 2.0 ** min(self._probes, 30))
        else:
            longest = min(self._last, self._first * 2.0 ** min(self._probes, 60))
            interval = longest * random.uniform(0.5, 1.0)  # noqa: S311 - so that clients do not come back in step
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
    """Return what a reply means that halts sending or is the last of several failures, and what to do."""
    if reply.verdict is Verdict.BLOCKED:
        return reply.detail or (reply.failure if reply.status is None else refusal_of(reply.status).advice) or ""
    if reply.failure == "key":
        return _KEYLESS
    return _DOWN if reply.proxy is None else _NO_WAY.format(reply.proxy)
