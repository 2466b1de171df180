"""Whether requests may go out: all of them, or one at a time to see whether the API is back.

::

    sending --- five failures in a row ------------------> down
    sending, down --- refused: key, shop or address ----> halted
    sending, down --- environment or proxy unusable -----> halted
    down, halted --- a probe is answered ----------------> sending
    halted --- environment or proxy usable, no answer ---> down

While `down` or `halted` one request at a time, a probe, may go out, at growing intervals. It is no request of its own
but the next one there is, so a probe that succeeds is a batch delivered. Whoever else wants to send waits here. Only
what began after the last change says anything of now: answers that come late change nothing.

The intervals of `down` are the retry policy's, those of `halted` double from 1 s to 30 s: a person mends it.
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
"""Seconds between probes at least."""

_HURRIED = 0.5
"""Seconds between probes at most, once the client closes: there may not be many more."""

_DOWN: Final = "the API does not answer: one request at a time is tried until it does"
_NO_WAY: Final = "the proxy {} gives no connection to the API: one request at a time is tried until it does"
_KEYLESS: Final = "the api_key function gives no key: see what it raises"


class Admission(NamedTuple):
    """The right to make a request now.

    Attributes:
        epoch: which state it was given in; states are counted.
        probe: whether it is the one that is let through to see.
    """

    epoch: int
    probe: bool


class CircuitBreaker:
    """Lets requests through as the state allows; see the module's text.

    Args:
        retry: whose intervals are used while the API is down.
        clock: returns the loop's time in seconds.
        changed: told of every change.

    Attributes:
        state: as in `Stats.state`.
        since: when it became so (loop time).
        status: the HTTP status that halted it; None if it is not halted, or by no status.
        failure: what else halted it, e.g. ``"config: SSL_CERT_FILE ..."``; None if it is not halted, or by a status.
        refused_at: when a request was last refused with it (loop time).
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
        self._mended_at = 0.0
        self._epoch = 0
        self._failures = 0
        self._probes = 0
        self._probing = False
        self._probe_at = 0.0
        self._hurried = False
        # A queue out of whose middle those go who were cancelled.
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._resting: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    # --- asking -------------------------------------------------------------------------------------------------------

    def admit(self) -> Admission | None:
        """Return the right to make a request now; None where `wait` comes first."""
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
        """Return when `admit` is worth another call; in order of the calls."""
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
        """Sleep so long, or until the state changes: then the time is the breaker's to tell."""
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
        """Have the next who waits look again as soon as it may; needed where somebody was woken and did not go."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and not self._probing:
            when = self._probe_at if self.state != "sending" else self._clock()
            self._timer = detached(asyncio.get_running_loop().call_at, when, self._wake_one)

    def over(self, admission: Admission) -> None:
        """Tell that a request is over, reported or not."""
        if admission.probe and admission.epoch == self._epoch and self._probing:
            # Nothing was learned from it: it was cut off.
            self._probing = False
            self.nudge()

    def hold(self, admission: Admission) -> None:
        """Let a probe go on that was over, until it is over again: there is more to learn from it."""
        if admission.probe and admission.epoch == self._epoch:
            self._probing = True
            self.nudge()

    # --- telling ------------------------------------------------------------------------------------------------------

    def report(self, admission: Admission, reply: Reply, *, halts: bool, tells: bool = True) -> None:
        """Tell what a request brought.

        Args:
            admission: what it was admitted by.
            reply: what came back.
            halts: whether every other request would be refused like this one, where it is.
            tells: whether an answer would tell that what it was halted for is mended.
        """
        if admission.epoch != self._epoch:
            return
        if reply.verdict is Verdict.BLOCKED and halts:
            self._halt(reply)
        elif reply.verdict in (Verdict.TRANSIENT, Verdict.UNCLEAR):
            self._failed(reply)
        elif self.state != "halted" or (tells and reply.verdict is not Verdict.THROTTLED):
            self._answered()
        else:
            # An answer, but not to the question whether key and address are right.
            self._probe_again()

    def refusal(self, *, attempts: int = 0, elapsed: float = 0.0) -> Rejected | Abandoned | None:
        """Return the outcome of an event that waits for what halted sending; None if it is not halted.

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
        """Return from when on the time since `moment` counts for retries.

        That of a halt is somebody else's, and where the policy outlasts an outage so is that of one.
        """
        return self._clock() if self.state in self._excused else max(moment, self._mended_at)

    def hurry(self) -> None:
        """Probe now, and often: the client closes."""
        self._hurried = True
        self.probe_now()

    def probe_now(self) -> None:
        """Let the next probe go at once."""
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
            # What halted it is corrected, and now it is another thing that fails.
            self._failures = FAILURES
        elif self.state != "sending":
            self._probe_again()
            return
        if self._failures >= FAILURES:
            self._become("down", _advice(reply), status=reply.status, failure=_failure_of(reply))

    def _is_past(self, reply: Reply) -> bool:
        """Whether a request that failed has come further than what halted it would have let it."""
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
            self._mended_at = now
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
    """Return what a reply that halts, or the last of several failures, means and what can be done."""
    if reply.verdict is Verdict.BLOCKED:
        return reply.detail or (reply.failure if reply.status is None else refusal_of(reply.status).advice) or ""
    if reply.failure == "key":
        return _KEYLESS
    return _DOWN if reply.proxy is None else _NO_WAY.format(reply.proxy)
