"""A flight, the attempts of one batch or direct send: replies decide its outcome; its send slot is returned once."""

from __future__ import annotations

import math
from typing import Any, cast, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailrocket_async._delivery.circuit_breaker import Admission
from retailrocket_async._delivery.flight import Flight
from retailrocket_async._delivery.gate import SendSlot
from retailrocket_async._http.reply import FailureKind, Reply, Verdict
from retailrocket_async._outcome import Abandoned, AbandonReason, Delivered, Dropped, Outcome, Rejected
from tests.support.receipts import batch_with

NOT_SENT = Reply(failure="connect", detail="ConnectError", sent=False)
NO_ANSWER = Reply(failure="timeout", detail="ReadTimeout")
ADMITTED = Admission(0, probe=False)
CLOSED = Reply(failure="closed", detail="RuntimeError", sent=False)


def reply(status: int) -> Reply:
    """Return the reply with this status."""
    return Reply(status=status)


def flight() -> Flight:
    """Return a flight of three events that began at 10 s."""
    return Flight("visitorEvents", b"[]", ["view"] * 3, started_at=10.0, opened_in=[0])


def fly(*replies: Reply) -> Outcome | None:
    """Return the outcome of a flight that gets these replies at 11, 12, 13, ... s; None if it may be retried."""
    it = flight()
    outcome = None
    for index, brought in enumerate(replies):
        assert outcome is None
        it.depart(10.0)
        outcome = it.judge(brought, 11.0 + index)
    return outcome


def abandoned(
    *, maybe_recorded: bool, status: int | None = None, failure: str | None = None, attempts: int
) -> Abandoned:
    """Return the outcome of a flight whose last reply allows no retry."""
    return Abandoned(
        reason="not_retryable",
        maybe_recorded=maybe_recorded,
        status=status,
        failure=failure,
        attempts=attempts,
        elapsed=float(attempts),
    )


@pytest.mark.parametrize(
    ("replies", "outcome"),
    [
        ([reply(200)], Delivered(status=200, attempts=1, elapsed=1.0)),
        ([reply(204)], Delivered(status=204, attempts=1, elapsed=1.0)),
        ([reply(429), NOT_SENT, reply(200)], Delivered(status=200, attempts=3, elapsed=3.0)),
        ([reply(503), reply(200)], Delivered(status=200, attempts=2, elapsed=2.0, maybe_duplicate=True)),
        ([NO_ANSWER, reply(429), reply(200)], Delivered(status=200, attempts=3, elapsed=3.0, maybe_duplicate=True)),
        ([reply(400)], Rejected(status=400, attempts=1, elapsed=1.0)),
        ([reply(301)], Rejected(status=301, attempts=1, elapsed=1.0)),
        ([reply(429), reply(401)], Rejected(status=401, attempts=2, elapsed=2.0)),
        ([NOT_SENT, reply(403)], Rejected(status=403, attempts=2, elapsed=2.0)),
        ([NO_ANSWER, reply(400)], Rejected(status=400, attempts=2, elapsed=2.0)),
        ([NO_ANSWER, reply(401)], abandoned(maybe_recorded=True, status=401, attempts=2)),
        ([reply(500), reply(404)], abandoned(maybe_recorded=True, status=404, attempts=2)),
        ([reply(500), NOT_SENT, reply(307)], abandoned(maybe_recorded=True, status=307, attempts=3)),
        ([reply(501)], abandoned(maybe_recorded=True, status=501, attempts=1)),
        ([reply(101)], abandoned(maybe_recorded=True, status=101, attempts=1)),
        ([CLOSED], abandoned(maybe_recorded=False, failure="closed: RuntimeError", attempts=1)),
        ([NO_ANSWER, CLOSED], abandoned(maybe_recorded=True, failure="closed: RuntimeError", attempts=2)),
        ([reply(429), NO_ANSWER, reply(502)], None),
    ],
)
def test_history(replies: list[Reply], outcome: Outcome | None) -> None:
    """If a flight has several replies, the last decides; the earlier ones say whether the events may be recorded."""
    assert fly(*replies) == outcome


REPLIES = st.builds(Reply, status=st.integers(100, 599)) | st.builds(
    Reply,
    failure=st.sampled_from(get_args(FailureKind)),
    detail=st.just("Error"),
    sent=st.booleans(),
)


@given(
    st.lists(REPLIES.filter(lambda reply: reply.verdict in (Verdict.TRANSIENT, Verdict.THROTTLED)), max_size=5), REPLIES
)
def test_outcome_tells_the_truth(transient: list[Reply], last: Reply) -> None:
    """If a flight has any replies, its outcome claims only what these replies prove."""
    it = flight()
    for brought in transient:
        it.depart(10.0)
        assert it.judge(brought, 11.0) is None
    it.depart(10.0)
    outcome = it.judge(last, 12.0) or it.give_up("retries_exhausted", 12.0)
    ambiguous = any(brought.maybe_recorded for brought in transient)

    assert outcome.attempts == len(transient) + 1
    assert outcome.status == last.status
    if isinstance(outcome, Delivered):
        assert outcome.maybe_duplicate == ambiguous
    elif isinstance(outcome, Rejected):
        assert outcome.status == 400 or not ambiguous
    else:
        assert outcome.maybe_recorded == (ambiguous or last.maybe_recorded)


def test_cut_off_in_the_air() -> None:
    """If a request is cut off unanswered, it may be recorded, and its outcome has no status of an earlier answer."""
    it = flight()
    it.depart(10.0)
    it.judge(reply(429), 11.0)
    it.depart(10.0)

    assert it.give_up("closed", 12.0) == Abandoned(
        reason="closed", maybe_recorded=True, status=None, failure="unanswered", attempts=2, elapsed=2.0
    )


def test_cut_off_between_attempts() -> None:
    """If a flight is given up between two attempts, its outcome has the status of the last answer."""
    it = flight()
    it.depart(10.0)
    it.judge(reply(429), 11.0)

    assert it.give_up("closed", 12.0) == Abandoned(
        reason="closed", maybe_recorded=False, status=429, attempts=1, elapsed=2.0
    )


def test_given_up_before_any_attempt() -> None:
    """If a flight is given up before any attempt, its events are certainly not recorded."""
    assert flight().give_up("cancelled", 10.0) == Abandoned(reason="cancelled", maybe_recorded=False, attempts=0)


def test_departures_are_counted() -> None:
    """If a flight departs, its attempts and tries increase by one, and it has the time of the last departure."""
    it = flight()
    before = (it.attempts, it.tries, it.departed_at, it.tried_at, it.failed_at, it.on_wire)
    for now in (11.0, 13.0):
        it.depart(now)
        assert it.on_wire
        it.judge(reply(503), now + 1.0)

    assert (0, 0, 10.0, 10.0, -math.inf, False) == before
    assert (2, 2, 13.0, 10.0, False) == (it.attempts, it.tries, it.departed_at, it.tried_at, it.on_wire)


def test_too_old_before_and_after_the_first_attempt() -> None:
    """If an event expires, it is dropped if no attempt carried it, and abandoned otherwise."""
    it = flight()
    never_sent = it.expired(12.0)
    it.depart(13.0)
    it.judge(NO_ANSWER, 14.0)

    assert Dropped(reason="expired") == never_sent
    assert it.expired(15.0) == Abandoned(
        reason="expired", maybe_recorded=True, failure="timeout: ReadTimeout", attempts=1, elapsed=5.0
    )


# --- parts ---


def batch_flight(count: int) -> Flight:
    """Return the flight of a batch of `count` events that began at 0 s."""
    batch = batch_with([b"{}"] * count)
    return Flight("visitorEvents", b"[]", ["view"] * count, started_at=0.0, opened_in=[0], batch=cast("Any", batch))


def bring(it: Flight, brought: Reply, now: float) -> Outcome | None:
    """Make one more attempt of the flight at `now`, which gets the reply `brought`; return the outcome, if any."""
    it.depart(now)
    return it.judge(brought, now)


def test_each_part_has_its_own_attempts() -> None:
    """If a batch is divided, each half has the attempts that carried its events, and its tries start at zero."""
    it = batch_flight(2)
    for now in (1.0, 2.0):
        bring(it, reply(503), now)
        it.excused += 1
    refused = bring(it, reply(400), 3.0)
    assert refused is not None
    assert (3, 3) == (it.attempts, it.tries)
    assert it.divide(refused, 4.0)
    left = (it.attempts, it.tries, it.excused, it.tried_at)
    bring(it, reply(503), 5.0)
    delivered = bring(it, reply(200), 6.0)
    assert delivered is not None
    assert it.go_on(delivered, 7.0)
    right = (it.attempts, it.tries, it.excused, it.tried_at)
    rejected = bring(it, reply(400), 8.0)

    assert ((3, 0, 0, 4.0), (3, 0, 0, 7.0)) == (left, right)
    assert Delivered(status=200, attempts=5, elapsed=6.0, maybe_duplicate=True) == delivered
    assert Rejected(status=400, attempts=4, elapsed=8.0) == rejected


def test_what_one_half_may_have_recorded_is_not_the_others() -> None:
    """If the left half may have been recorded after a 400, this does not concern the right half."""
    it = batch_flight(2)
    bring(it, NO_ANSWER, 1.0)
    refused = bring(it, reply(400), 2.0)
    assert refused is not None
    assert it.divide(refused, 2.0)
    assert not it.maybe_recorded
    bring(it, NO_ANSWER, 3.0)
    assert it.maybe_recorded
    given_up = it.give_up("retries_exhausted", 4.0)
    assert it.go_on(given_up, 4.0)

    assert not it.maybe_recorded
    assert Abandoned(reason="closed", maybe_recorded=False, attempts=2, elapsed=5.0) == it.give_up("closed", 5.0)


def test_a_part_that_fits_keeps_what_the_whole_has_met() -> None:
    """If a batch is divided only for its size, the part has the whole's attempts and may have been recorded as well."""
    it = batch_flight(4)
    bring(it, NO_ANSWER, 1.0)
    it.fit(7, 2.0)

    assert (2, 1, True, 0, 2.0) == (it.count, it.attempts, it.maybe_recorded, it.tries, it.tried_at)
    assert it.divided
    assert b"[{},{}]" == it.body


@pytest.mark.parametrize(("size", "count"), [(14, 4), (13, 4), (12, 2), (7, 2), (6, 1), (1, 1)])
def test_a_flight_carries_what_fits(size: int, count: int) -> None:
    """If a body exceeds the size, the batch is halved until its body fits or it is one event; otherwise it is not."""
    it = batch_flight(4)
    it.fit(size, 1.0)

    assert (count, count < 4) == (it.count, it.divided)


def test_one_event_is_never_parted() -> None:
    """If a batch is a single event, it is never divided, however small the allowed size is."""
    it = batch_flight(1)
    it.fit(1, 1.0)

    assert (1, False) == (it.count, it.divided)


# --- refusals that may be corrected ---


@pytest.mark.parametrize(
    ("brought", "refusal"),
    [
        ([reply(403)], Rejected(status=403, attempts=1, elapsed=1.0)),
        ([reply(400)], None),
        ([reply(501)], None),
        ([reply(403), reply(503)], None),
        ([reply(403), reply(404)], Rejected(status=404, attempts=2, elapsed=2.0)),
        ([NO_ANSWER, reply(403)], abandoned(maybe_recorded=True, status=403, attempts=2)),
    ],
)
def test_refusal_is_that_of_the_last_attempt(brought: list[Reply], refusal: Outcome | None) -> None:
    """If the last attempt was refused for key, shop or address, `refusal` is its outcome; otherwise it is None."""
    it = flight()
    for index, each in enumerate(brought):
        it.depart(10.0)
        it.judge(each, 11.0 + index)

    assert refusal == it.refusal


def test_a_new_part_has_no_refusal() -> None:
    """If one half was refused, `refusal` of the next half is None."""
    it = batch_flight(2)
    refused = bring(it, reply(400), 1.0)
    assert refused is not None
    assert it.divide(refused, 1.0)
    refused = bring(it, reply(403), 2.0)
    assert refused is not None
    assert refused is it.refusal
    assert it.go_on(refused, 2.0)

    assert it.refusal is None


# --- send slots ---


class Permit:
    """Records its calls as a limiter's permit, and raises in each if `broken`."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken
        self.reported: list[str] = []

    def sent(self) -> None:
        """Record that the request was written."""
        self._note("sent")

    def done(self, *, answered: bool = False) -> None:
        """Record that the request ended, and whether it was answered."""
        self._note(f"answered={answered}")

    def _note(self, what: str) -> None:
        self.reported.append(what)
        if self.broken:
            raise ZeroDivisionError


class Gate:
    """A gate that records its calls.

    Args:
        slot: a list; if it holds a send slot when `leave` is called, that slot is ended once more.
    """

    def __init__(self, slot: list[SendSlot] | None = None) -> None:
        self.reported: list[str] = []
        self._slot = [] if slot is None else slot

    def leave(self, admission: Admission | None) -> None:
        """Record that a request slot was freed."""
        assert admission is ADMITTED
        self.reported.append("left")
        for slot in self._slot:
            slot.end()

    def limiter_failed(self, error: BaseException) -> None:
        """Record the error of a permit."""
        self.reported.append(type(error).__name__)


def turn(permit: Permit | None) -> tuple[SendSlot, list[str]]:
    """Return a send slot, and the list in which it records its calls to the gate."""
    gate = Gate()
    return SendSlot(ADMITTED, permit, cast("Any", gate)), gate.reported


@pytest.mark.parametrize("answered", [False, True])
def test_turn_ends_once(answered: bool) -> None:  # noqa: FBT001
    """If a send slot is ended several times, its wire slot and permit are returned once, with the first report."""
    permit = Permit()
    it, reported = turn(permit)
    it.sent()
    it.end(answered=answered)
    it.end(answered=not answered)
    it.end()

    assert (permit.reported, reported) == (["sent", f"answered={answered}"], ["left"])


def test_turn_that_is_ended_by_its_own_end_ends_once() -> None:
    """If code that is woken by the returned wire slot ends the same send slot, nothing more happens."""
    permit = Permit()
    slots: list[SendSlot] = []
    gate = Gate(slots)
    it = SendSlot(ADMITTED, permit, cast("Any", gate))
    slots.append(it)
    it.end(answered=True)

    assert (["left"], ["answered=True"]) == (gate.reported, permit.reported)


def test_late_sent_is_not_told() -> None:
    """If a body is written after its send slot has ended, nothing happens."""
    permit = Permit()
    it, _ = turn(permit)
    it.end()
    it.sent()

    assert permit.reported == ["answered=False"]


def test_turn_without_a_permit() -> None:
    """If a limiter grants no permits, only the wire slot is returned."""
    it, reported = turn(None)
    it.sent()
    it.end()

    assert reported == ["left"]


def test_broken_permit_stops_nothing() -> None:
    """If a permit raises, its errors are reported, and the wire slot is still returned."""
    it, reported = turn(Permit(broken=True))
    it.sent()
    it.end()

    assert reported == ["ZeroDivisionError", "left", "ZeroDivisionError"]


@pytest.mark.parametrize("reason", ["retries_exhausted", "at_most_once", "expired", "closed", "cancelled"])
@pytest.mark.parametrize("status", [400, 413])
def test_what_is_given_up_is_not_divided(status: int, reason: AbandonReason) -> None:
    """If a batch is given up, it is not divided, even if its last answer was a 400 or 413 that counts as a 429."""
    batch = batch_with([b"{}"] * 4)
    it = Flight("visitorEvents", b"[]", ["view"] * 4, started_at=0.0, opened_in=[0], batch=cast("Any", batch))

    it.depart(0.0)
    it.judge(Reply(status=status, throttled=True), 1.0)
    assert not it.divide(Abandoned(reason=reason, maybe_recorded=False, status=status), 1.0)
    it.depart(1.0)
    assert it.divide(it.judge(reply(status), 1.0) or Dropped(reason="closed"), 1.0)
