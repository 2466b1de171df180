"""The circuit breaker changes its state exactly as `TRANSITIONS` says; the drawing in its module shows the same."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, get_args

import pytest

from retailrocket_async import RetryPolicy
from retailrocket_async._delivery import circuit_breaker
from retailrocket_async._delivery.circuit_breaker import FAILURES, TRANSITIONS, CircuitBreaker, SendingState, Signal
from retailrocket_async._http.reply import FailureKind, Reply
from retailrocket_async._stats import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retailrocket_async import StateChange

UNAVAILABLE = Reply(status=503)
NO_FILE = Reply(failure="config", detail="SSL_CERT_FILE names no file")
NO_PROXY = Reply(failure="proxy", detail="HTTPS_PROXY is not a URL")
ROUTES: dict[str, Sequence[Reply]] = {
    "new": [],
    "fails": [UNAVAILABLE],
    "fails often": [UNAVAILABLE] * (FAILURES - 1),
    "down": [UNAVAILABLE] * FAILURES,
    "down after a halt": [NO_FILE, UNAVAILABLE],
    "halted by 401": [Reply(status=401)],
    "halted by 404": [Reply(status=404)],
    "halted by a file": [NO_FILE],
    "halted by a proxy": [NO_PROXY],
    "halted while down": [*[UNAVAILABLE] * FAILURES, Reply(status=403)],
    "halted again": [Reply(status=403), NO_FILE],
    "recovered": [*[UNAVAILABLE] * FAILURES, Reply(status=200)],
}
REPLIES = [
    *(Reply(status=status) for status in (200, 204, 302, 400, 401, 403, 404, 405, 407, 408, 413, 429, 500, 501, 503)),
    Reply(status=403, throttled=True),
    *(Reply(failure=kind, detail=f"a {kind}") for kind in get_args(FailureKind)),
    NO_FILE,
]


def bring(it: CircuitBreaker, reply: Reply, now: float, *, halts: bool = True, conclusive: bool = True) -> Signal:
    """Make one request with this reply, check what the breaker does with the reply, and return the reply's signal."""
    before, cause = SendingState(it.state), (it.status, it.failure)
    admission = it.admit(now)
    assert admission is not None
    signal = it.signal_of(reply, halts=halts, conclusive=conclusive)
    change = it.report(admission, reply, now, halts=halts, conclusive=conclusive)
    after = TRANSITIONS[before][signal]
    assert after.value == it.state
    assert (after is not before or (it.status, it.failure) != cause) == (change is not None)
    assert (change is None) == it.still_admits(admission)
    if change is not None:
        check_change(change, before, after, reply)
    # The request has ended, so the next request may be sent after the longest interval at the latest.
    assert it.admit(now + 31.0) is not None
    return signal


def check_change(change: StateChange, before: SendingState, after: SendingState, reply: Reply) -> None:
    """Check that a change of state reports both states and, if sending is halted or the API is down, the cause."""
    assert (before.value, after.value) == (change.previous, change.state)
    good = after is SendingState.SENDING
    assert (None if good else reply.status) == change.status
    assert (good or reply.failure is None) == (change.failure is None)
    assert change.advice


def brought(route: str) -> tuple[CircuitBreaker, float]:
    """Return a breaker that got the replies of this entry of `ROUTES`, and the time at which a probe may be sent."""
    it, now = CircuitBreaker(RetryPolicy()), 0.0
    for reply in ROUTES[route]:
        admission = it.admit(now)
        assert admission is not None
        it.report(admission, reply, now, halts=True)
        now += 100.0
    return it, now


def test_every_transition_exists_and_no_other() -> None:
    """If every reply is reported in every state, exactly the transitions in `TRANSITIONS` occur."""
    walked: set[tuple[SendingState, Signal]] = set()
    for route, reply, halts, conclusive in itertools.product(ROUTES, REPLIES, (True, False), (True, False)):
        it, now = brought(route)
        state = SendingState(it.state)
        walked.add((state, bring(it, reply, now, halts=halts, conclusive=conclusive)))

    assert {(state, signal) for state, signals in TRANSITIONS.items() for signal in signals} == walked


def test_the_states_are_those_of_the_stats() -> None:
    """For each value of `Stats.state` the breaker has a state, and `TRANSITIONS` has an entry."""
    assert list(get_args(State)) == [state.value for state in SendingState] == [state.value for state in TRANSITIONS]


def test_the_drawing_shows_the_table() -> None:
    """If a signal changes the state, the drawing in the module's docstring has an arrow, and no other arrows exist."""
    drawn = re.findall(r"^ +([\w, ]+) --- (\w+): .+ -+> (\w+)$", circuit_breaker.__doc__ or "", re.MULTILINE)
    arrows = {
        (before.upper(), signal, after.upper())
        for all_before, signal, after in drawn
        for before in all_before.split(", ")
    }

    assert arrows == {
        (before.name, signal.name, after.name)
        for before, signals in TRANSITIONS.items()
        for signal, after in signals.items()
        if before is not after
    }


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if route not in ("new", "fails", "fails often", "recovered")]
)
def test_one_probe_at_a_time(route: str) -> None:
    """If sending is halted or the API is down, one probe is admitted after the interval, and no other until it ends."""
    it, now = brought(route)
    admitted: list[bool] = []

    def ask(at: float) -> None:
        admission = it.admit(at)
        admitted.append(admission is not None and admission.probe)

    ask(now - 99.99)
    probe = it.admit(now)
    assert probe is not None
    ask(now + 100.0)
    it.over(probe)
    it.hold(probe)
    ask(now + 100.0)
    it.over(probe)
    ask(now + 100.0)
    ask(now + 100.0)

    assert [False, False, False, True, False] == admitted


def test_a_late_reply_changes_nothing() -> None:
    """If a request began before the last change of state, its reply changes neither the state nor the next probe."""
    for reply, halts in itertools.product(REPLIES, (True, False)):
        it = CircuitBreaker(RetryPolicy())
        late = it.admit(0.0)
        assert late is not None
        for _ in range(FAILURES):
            assert it.report(late, UNAVAILABLE, 0.0, halts=True) is None or it.state == "down"
        probe = it.admit(100.0)
        assert probe is not None
        assert it.report(late, reply, 100.0, halts=halts) is None
        assert ("down", None) == (it.state, it.admit(1000.0))
