"""Decides whether all requests may be sent, or only one at a time, as a probe.

The states, and the signals that change them (`TRANSITIONS` has all transitions)::

    sending --- OUTAGE: five failures in a row ----------------------> down
    sending, down --- REFUSED: key, shop, address, environment ------> halted
    down, halted --- ANSWERED: a probe is answered ------------------> sending
    halted --- OUTAGE: the cause is corrected, but no answer --------> down

While the state is `down` or `halted`, one request at a time may be sent as a probe, at growing intervals. The probe is
the request that has waited longest, so a successful probe also delivers its events. All other requests wait in this
module. A probe begins with `admit`, and ends with `report`, or with `over` if there is no reply. Only a request that
began after the last change of state may change the state; late answers to earlier requests are ignored. A refusal for
another cause also counts as a change, although the state stays `halted`.

While the API is `down`, the retry policy sets the intervals. While sending is `halted`, the intervals double from 1 s
to 30 s, because a person has to correct the key, the shop or the address.

The breaker calls nobody: `report` returns the change of state, and its caller passes the change on. Time is an argument
(loop time, in seconds).
"""

from __future__ import annotations

import enum
import math
import random
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from retailrocket_async._http.reply import Reply, Verdict
from retailrocket_async._outcome import Abandoned, Rejected, refusal_of
from retailrocket_async._runtime.wakeup import Wakeup
from retailrocket_async._stats import StateChange

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

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

_AGAIN: Final = "requests go out again"
_DOWN: Final = "the API does not answer: one request at a time is tried until it does"
_NO_WAY: Final = "the proxy {} gives no connection to the API: one request at a time is tried until it does"
_KEYLESS: Final = "the api_key function gives no key: see what it raises"


class SendingState(enum.Enum):
    """The states of a circuit breaker; the values are those of `Stats.state`."""

    _value_: State

    SENDING = "sending"
    DOWN = "down"
    HALTED = "halted"


class Signal(enum.Enum):
    """What a reply means for the state."""

    ANSWERED = enum.auto()
    """The API works, and other requests have a chance to succeed."""

    UNPROVEN = enum.auto()
    """The API answered, but the answer does not prove that the cause of the halt is corrected."""

    FAILED = enum.auto()
    """The request failed, which alone proves nothing."""

    OUTAGE = enum.auto()
    """The request failed, and this failure shows that the API is down."""

    REFUSED = enum.auto()
    """The request was refused for a cause that concerns all requests: key, shop, address, environment or proxy."""


TRANSITIONS: Final[Mapping[SendingState, Mapping[Signal, SendingState]]] = {
    SendingState.SENDING: {
        Signal.ANSWERED: SendingState.SENDING,
        Signal.FAILED: SendingState.SENDING,
        Signal.OUTAGE: SendingState.DOWN,
        Signal.REFUSED: SendingState.HALTED,
    },
    SendingState.DOWN: {
        Signal.ANSWERED: SendingState.SENDING,
        Signal.FAILED: SendingState.DOWN,
        Signal.REFUSED: SendingState.HALTED,
    },
    SendingState.HALTED: {
        Signal.ANSWERED: SendingState.SENDING,
        Signal.UNPROVEN: SendingState.HALTED,
        Signal.FAILED: SendingState.HALTED,
        Signal.OUTAGE: SendingState.DOWN,
        Signal.REFUSED: SendingState.HALTED,
    },
}
"""The next state for each state and signal. No reply has a signal that is missing here for the present state."""


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

    Attributes:
        state: the present state, as in `Stats.state`.
        since: when the state began (loop time).
        status: the HTTP status that halted sending; None if sending is not halted, or if a failure halted it.
        failure: the failure that halted sending, e.g. ``"config: SSL_CERT_FILE ..."``; None if sending is not halted,
            or if an HTTP status halted it.
        refused_at: when the API last refused a request in a way that halts sending (loop time).
        answered_at: when a reply last showed that the API works (loop time); minus infinity if none has shown this yet.
    """

    def __init__(self, retry: RetryPolicy) -> None:
        # The retry policy may allow waits of 0 s; without a minimum, a probe would be sent in every turn of the loop.
        self._first = max(_LEAST, retry.initial_backoff)
        self._last = max(_LEAST, retry.max_backoff)
        self._excused: Container[SendingState] = (
            (SendingState.HALTED, SendingState.DOWN) if retry.outlast else (SendingState.HALTED,)
        )
        # `state` is an attribute and not a property, because it is read for every event.
        self._state = SendingState.SENDING
        self.state: State = self._state.value
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
        self._waiting: OrderedDict[Wakeup, None] = OrderedDict()
        self._resting: dict[Wakeup, None] = {}

    # --- asking -------------------------------------------------------------------------------------------------------

    def admit(self, now: float) -> Admission | None:
        """Return the right to make a request at `now`, or None if the caller must call `wait` first."""
        if self._state is SendingState.SENDING:
            return Admission(self._epoch, probe=False)
        if self._probing or now < self._probe_at:
            return None
        self._probing = True
        return Admission(self._epoch, probe=True)

    def still_admits(self, admission: Admission) -> bool:
        """Whether the state has not changed since `admission` was granted."""
        return admission.epoch == self._epoch

    async def wait(self) -> None:
        """Return when `admit` may succeed; waiters are woken in the order of their calls."""
        self.nudge()
        wakeup = Wakeup()
        self._waiting[wakeup] = None
        try:
            # Only the first waiter has a timer.
            await wakeup.wait(self._opens_at() if len(self._waiting) == 1 else None)
        except BaseException:
            del self._waiting[wakeup]
            self.nudge()
            raise
        del self._waiting[wakeup]

    async def rest(self, until: float) -> None:
        """Sleep until `until`, or until the state changes; return at once unless the state is `sending`.

        If the state is not `sending`, the breaker decides when the next request is sent, so the caller need not sleep.
        """
        if self._state is not SendingState.SENDING:
            return
        wakeup = Wakeup()
        self._resting[wakeup] = None
        try:
            await wakeup.wait(until)
        finally:
            del self._resting[wakeup]

    def nudge(self) -> None:
        """Wake the next waiter as soon as a request may be sent; call this if a woken waiter made no request."""
        if self._waiting:
            next(iter(self._waiting)).set_at(self._opens_at())

    def _opens_at(self) -> float | None:
        """Return when the next waiter may be woken; None if a probe must end first."""
        return None if self._probing else self._probe_at

    def over(self, admission: Admission) -> None:
        """Note that a request has ended; call this after every request, also if its reply was passed to `report`."""
        if admission.probe and admission.epoch == self._epoch and self._probing:
            # The probe ended without a reply, for example because its task was cancelled.
            self._probing = False
            self.nudge()

    def hold(self, admission: Admission) -> None:
        """Let no other request become the probe, because the events of the last probe are about to be sent again."""
        if admission.probe and admission.epoch == self._epoch:
            self._probing = True
            self.nudge()

    # --- reporting ----------------------------------------------------------------------------------------------------

    def report(
        self, admission: Admission, reply: Reply, now: float, *, halts: bool, conclusive: bool = True
    ) -> StateChange | None:
        """Evaluate the reply to a request, and change the state if the reply demands it.

        Args:
            admission: the admission of that request.
            reply: the reply.
            now: the present moment.
            halts: whether a refusal for key, shop or address means that all other requests would be refused, too.
            conclusive: whether an answer to this request proves that the cause of a halt is corrected.

        Returns:
            The change of state, also if sending is now halted for another cause; None if nothing has changed. The
            caller passes the change on to the log and the user's hook.
        """
        if admission.epoch != self._epoch:
            return None
        signal = self.signal_of(reply, halts=halts, conclusive=conclusive)
        if signal is Signal.ANSWERED:
            self._failures = 0
            self.answered_at = now
        elif signal is Signal.REFUSED:
            self.refused_at = now
        elif signal is Signal.FAILED:
            self._failures += 1
        state = TRANSITIONS[self._state][signal]
        other_cause = signal is Signal.REFUSED and (self.status, self.failure) != (reply.status, _failure_of(reply))
        if state is not self._state or other_cause:
            return self._become(state, reply, now)
        if state is not SendingState.SENDING:
            self._probe_again(now)
        return None

    def signal_of(self, reply: Reply, *, halts: bool, conclusive: bool = True) -> Signal:
        """Return what a reply means in the present state; see `report` for the arguments."""
        if reply.verdict is Verdict.BLOCKED and halts:
            return Signal.REFUSED
        halted = self._state is SendingState.HALTED
        if reply.verdict in (Verdict.TRANSIENT, Verdict.UNCLEAR):
            often = self._state is SendingState.SENDING and self._failures + 1 >= FAILURES
            return Signal.OUTAGE if often or (halted and self._is_past(reply)) else Signal.FAILED
        if halted and (reply.verdict is Verdict.THROTTLED or not conclusive):
            return Signal.UNPROVEN
        return Signal.ANSWERED

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

    def counted_from(self, moment: float, now: float) -> float:
        """Return the time from which `retry.max_elapsed` counts at `now` for a flight that began at `moment`.

        Time in the state `halted` is not counted. If `retry.outlast` is set, time in the state `down` is not counted
        either.
        """
        return now if self._state in self._excused else max(moment, self._restored_at)

    def hurry(self, now: float) -> None:
        """Send a probe now, and further probes at short intervals, because the client closes."""
        self._hurried = True
        self.probe_now(now)

    def probe_now(self, now: float) -> None:
        """Allow the next probe now, without waiting for the end of the interval."""
        self._probe_at = min(self._probe_at, now)
        self.nudge()

    def _is_past(self, reply: Reply) -> bool:
        """Whether a request got past the step that had halted sending, and so shows that the cause is corrected."""
        if self.failure is None:
            return False
        return reply.status is not None or (self.failure.startswith("config:") and reply.failure != "key")

    def _become(self, state: SendingState, reply: Reply, now: float) -> StateChange:
        """Change the state because of a reply, and wake the tasks that wait for the change."""
        previous, lasted = self._state, now - self.since if self._state is not SendingState.SENDING else 0.0
        if previous in self._excused and state not in self._excused:
            self._restored_at = now
        status, failure = (None, None) if state is SendingState.SENDING else (reply.status, _failure_of(reply))
        self.status, self.failure = (status, failure) if state is SendingState.HALTED else (None, None)
        if state is not previous:
            self.since = now
            self._probes = 0
        self._state, self.state = state, state.value
        self._epoch += 1
        self._failures = 0
        if state is SendingState.SENDING:
            self._probing, self._probe_at = False, now
            for waiter in self._waiting:
                waiter.set()
        else:
            self._probe_again(now)
        for resting in self._resting:
            resting.set()
        return StateChange(
            state=state.value,
            previous=previous.value,
            status=status,
            failure=failure,
            advice=_AGAIN if state is SendingState.SENDING else _advice(reply),
            lasted=lasted,
        )

    def _probe_again(self, now: float) -> None:
        """Allow a new probe, and set the time at which it may be sent."""
        self._probing = False
        if self._state is SendingState.HALTED:
            interval = min(_HALTED_LAST, _HALTED_FIRST * 2.0 ** min(self._probes, 30))
        else:
            longest = min(self._last, self._first * 2.0 ** min(self._probes, 60))
            interval = longest * random.uniform(0.5, 1.0)  # noqa: S311 - so that clients do not send probes at the same times
        self._probes += 1
        self._probe_at = now + (min(interval, _HURRIED) if self._hurried else interval)
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
