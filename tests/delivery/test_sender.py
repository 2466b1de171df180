"""The sender makes requests: it counts them, pauses and halts by their answers, and renews keys."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from retailrocket_async import Abandoned, Batching, Buffer, Delivered, DeliveryError, Rejected, RetryPolicy
from retailrocket_async._http.reply import Reply
from tests.support.fakes import (
    NO_CONNECTION,
    OK,
    PARKED,
    ROUNDING,
    Engine,
    RecordingLimiter,
    Request,
    ScriptedTransport,
    Step,
    now,
    status,
    turns,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.virtual_time import CheckedLoop

ONE_EACH = Batching(max_events=1, linger=0.0, max_in_flight=8)
AT_ONCE = RetryPolicy(initial_backoff=0.0, max_backoff=0.0)
PATIENT = RetryPolicy(max_halt=1e6)


class Serials(ScriptedTransport):
    """A server whose answers carry the key's serial; it records for which serials the sender asks for another key."""

    def __init__(self, *script: Step | int, then: Step | int = OK) -> None:
        super().__init__(*script, then=then)
        self.asked_for: list[tuple[float, int]] = []
        self.serial = 1

    async def post(self, path: str, body: bytes, *, on_sent: Callable[[], None]) -> Reply:
        """Answer by the script, with the serial of the key."""
        serial = self.serial
        reply = await super().post(path, body, on_sent=on_sent)
        return Reply(status=reply.status, failure=reply.failure, serial=serial)

    async def renew_key(self, serial: int) -> tuple[bool, str | None]:
        """Record the time and the serial."""
        self.asked_for.append((now(), serial))
        return await super().renew_key(serial)


# --- keys ---


@pytest.mark.parametrize("new_keys", [0, 1, 2, 3, 10])
async def test_a_batch_goes_again_at_once_for_two_new_keys(virtual_clock: CheckedLoop, new_keys: int) -> None:
    """If a batch's key is refused, it is sent again at once for the first two new keys; then the client halts."""
    transport = ScriptedTransport(then=401)
    transport.renewals = [(True, None)] * new_keys
    engine = Engine(transport, renewable=True, batching=ONE_EACH)
    await engine.track(1)
    await asyncio.sleep(0.5)

    assert (1 + min(new_keys, 2), "halted") == (len(transport.requests), engine.stats().state)


async def test_a_request_with_a_key_that_was_refused_is_an_attempt(virtual_clock: CheckedLoop) -> None:
    """If a request is repeated with a new key, it counts against `max_attempts` as any other attempt."""
    transport = ScriptedTransport(401, 503)
    transport.renewals = [(True, None)]
    retry = RetryPolicy(max_attempts=2, initial_backoff=0.0)
    engine = Engine(transport, renewable=True, batching=ONE_EACH, retry=retry)
    outcome = await (await engine.track(1))

    assert isinstance(outcome, Abandoned)
    assert ("retries_exhausted", 2, 503) == (outcome.reason, outcome.attempts, outcome.status)


async def test_the_key_is_asked_for_by_the_serial_of_the_one_that_was_refused(virtual_clock: CheckedLoop) -> None:
    """If a key is refused, another one is asked for by the refused key's serial, and again before each probe."""
    transport = Serials(then=401)
    transport.serial = 7
    engine = Engine(transport, renewable=True, batching=ONE_EACH, retry=PATIENT)
    await engine.track(1)
    await asyncio.sleep(8.0)

    # The key is asked for after the refusal at 0.05 s, and before the probes 1, 2 and 4 s after each refusal.
    assert [(pytest.approx(at, abs=0.01), 7) for at in (0.05, 1.05, 3.1, 7.15)] == transport.asked_for
    assert [pytest.approx(at, abs=0.01) for at in (0.0, 1.05, 3.1, 7.15)] == transport.times


async def test_a_close_while_the_key_is_asked_for_knows_the_answer(virtual_clock: CheckedLoop) -> None:
    """If events are refused with 401 and the client closes while it asks for a key, they are surely not recorded."""
    transport = ScriptedTransport(then=401)
    transport.keeps_key = True
    engine = Engine(transport, renewable=True, batching=ONE_EACH)
    receipt = await engine.track(1)
    await asyncio.sleep(1.0)
    assert (1, False) == (transport.renewed, receipt.done())
    await engine.aclose(0)
    outcome = receipt.outcome

    assert isinstance(outcome, Abandoned)
    assert ("closed", False, 401, 1) == (outcome.reason, outcome.maybe_recorded, outcome.status, outcome.attempts)


async def test_other_halts_ask_for_no_key(virtual_clock: CheckedLoop) -> None:
    """If a client is halted for its shop or address, it asks for no other key."""
    for refusal in (403, 404, 407):
        transport = Serials(then=refusal)
        engine = Engine(transport, renewable=True, retry=PATIENT)
        await engine.track(1)
        await asyncio.sleep(10.0)
        assert (len(transport.requests) >= 3, transport.asked_for) == (True, [])
        await engine.aclose(0)


async def test_without_a_key_no_request_was_made(virtual_clock: CheckedLoop) -> None:
    """If no key is available, an attempt is no request, no retry and no attempt of its events, but uses up a try."""
    no_key = Step(reply=Reply(failure="key", detail="KeyError", sent=False), latency=0.0)

    engine = Engine(ScriptedTransport(no_key, no_key), retry=AT_ONCE)
    outcome = await (await engine.track(1))
    assert isinstance(outcome, Delivered)
    stats = engine.stats()
    assert (1, 1, 0, {200: 1}) == (outcome.attempts, stats.requests, stats.retries, stats.requests_by_status)
    engine = Engine(ScriptedTransport(then=no_key), retry=RetryPolicy(max_attempts=3, initial_backoff=0.0))
    outcome = await (await engine.track(1))

    assert ("Abandoned", 0, 0) == (type(outcome).__name__, outcome.attempts, engine.stats().requests)
    assert len(engine.transport.requests) == 3


# --- refusals ---


@pytest.mark.parametrize("refusal", [401, 403, 404, 405, 407, 301, 308])
async def test_which_refusals_of_a_direct_send_halt(virtual_clock: CheckedLoop, refusal: int) -> None:
    """If a direct send is refused for key, shop or proxy, sending halts; if for its address, only this send fails."""
    engine = Engine(ScriptedTransport(refusal))
    with pytest.raises(DeliveryError):
        await engine.send(1)

    assert engine.stats().state == ("halted" if refusal in (401, 403, 407) else "sending")
    assert now() == pytest.approx(0.05, abs=ROUNDING)


@pytest.mark.parametrize("refusal", [401, 403, 404, 405, 407, 301, 308])
async def test_which_halts_a_direct_send_ends(virtual_clock: CheckedLoop, refusal: int) -> None:
    """If a direct send is answered, a halt for key, shop or proxy ends; a halt for the batches' address does not."""
    transport = ScriptedTransport(then=lambda request: OK if request.path == "view" else refusal)
    engine = Engine(transport, retry=PATIENT, batching=ONE_EACH)
    await engine.track(1)
    await asyncio.sleep(0.06)
    assert engine.stats().state == "halted"
    # The batch of event 1 waits for a probe before these direct sends.
    sends = [asyncio.create_task(engine.send(number)) for number in range(2, 5)]
    states = set()
    for _ in range(100):
        await asyncio.sleep(0.1)
        states.add(engine.stats().state)
    assert ("sending" in states) == (refusal in (401, 403, 407))
    await engine.aclose(0)
    await asyncio.gather(*sends, return_exceptions=True)


async def test_a_halt_uses_up_no_attempts(virtual_clock: CheckedLoop) -> None:
    """If a batch is refused for key, shop or address, it does not use up a try; failures before and after do."""
    for failures, outcome in ((2, "Delivered"), (3, "Abandoned")):
        transport = ScriptedTransport(503, *[403] * 6, *[503] * (failures - 1), then=OK)
        retry = RetryPolicy(max_attempts=3, initial_backoff=0.0, max_backoff=0.0, max_halt=1e6, max_elapsed=1e6)
        engine = Engine(transport, retry=retry)
        receipt = await engine.track(1)
        reported = await receipt
        assert (outcome, 6 + failures + (outcome == "Delivered")) == (type(reported).__name__, reported.attempts)


@pytest.mark.parametrize("attempts", [1, 2, 3])
async def test_a_direct_send_that_is_refused_has_its_outcome_at_once(virtual_clock: CheckedLoop, attempts: int) -> None:
    """If a direct send is refused, it raises at once and does not wait for a correction, whichever attempt it was."""
    engine = Engine(ScriptedTransport(*[429] * (attempts - 1), 403), limiter=RecordingLimiter(), retry=AT_ONCE)
    with pytest.raises(DeliveryError) as caught:
        await engine.send(1)

    assert caught.value.outcome == Rejected(status=403, attempts=attempts, elapsed=caught.value.outcome.elapsed)
    assert now() < 0.05 * attempts + 0.01


# --- limiters ---


async def test_a_limiter_is_told_when_the_refused_request_left(virtual_clock: CheckedLoop) -> None:
    """If an answer is 429, the limiter gets the time when that request left, not when its batch left the buffer."""
    limiter = RecordingLimiter()
    engine = Engine(ScriptedTransport(429, 503, 429, 429), limiter=limiter, retry=AT_ONCE)
    assert isinstance(await (await engine.track(1)), Delivered)
    times = engine.transport.times

    assert [times[0], times[2], times[3]] == limiter.throttlings


@pytest.mark.parametrize("answer", [429, 503, 500])
@pytest.mark.parametrize("asked", [0.0, 2.0, 59.0, 61.0])
async def test_a_limiter_is_told_how_long_the_server_asked_to_wait(
    virtual_clock: CheckedLoop, answer: int, asked: float
) -> None:
    """If an answer of any status has `Retry-After`, all requests pause from then on, for at most 60 s."""
    limiter = RecordingLimiter()
    engine = Engine(ScriptedTransport(status(answer, retry_after=asked)), limiter=limiter, retry=AT_ONCE)
    left = now() + 0.1
    assert isinstance(await (await engine.track(1)), Delivered)
    assert [pytest.approx(left + 0.05 + min(asked, 60.0), abs=ROUNDING)] == limiter.pauses
    again = engine.transport.times[1]

    assert pytest.approx(left + 0.05 + min(asked, 60.0), abs=ROUNDING) == again


async def test_a_limiter_is_told_of_nothing_else(virtual_clock: CheckedLoop) -> None:
    """If there is no 429 and no `Retry-After`, the limiter neither pauses nor slows down."""
    limiter = RecordingLimiter()
    engine = Engine(ScriptedTransport(503, 500, 408, NO_CONNECTION), limiter=limiter, retry=AT_ONCE)

    assert isinstance(await (await engine.track(1)), Delivered)
    assert ([], []) == (limiter.pauses, limiter.throttlings)


async def test_the_wait_for_a_limiter_that_fails_is_counted_and_lasts(virtual_clock: CheckedLoop) -> None:
    """If a slow limiter raises, the time until the error counts in `limiter_wait`, as does that of the next call."""
    slow = SlowLimiter(seconds=2.0)
    engine = Engine(ScriptedTransport(), limiter=slow, retry=RetryPolicy(initial_backoff=0.0))
    send = asyncio.create_task(engine.send(1))
    await asyncio.sleep(1.9)
    assert engine.stats().limiter_wait == 0.0
    await send

    assert engine.stats().limiter_wait == pytest.approx(4.0, abs=ROUNDING)


class SlowLimiter(RecordingLimiter):
    """Waits `seconds` in each call, and raises at the end of the first call."""

    def __init__(self, seconds: float) -> None:
        super().__init__(ZeroDivisionError())
        self._seconds = seconds

    async def acquire(self) -> object:  # type: ignore[override]
        """Wait `seconds`, and then behave as a `RecordingLimiter`."""
        await asyncio.sleep(self._seconds)
        return await super().acquire()


# --- times ---


async def test_what_grows_too_old_while_it_waits_for_its_permit_is_not_sent(virtual_clock: CheckedLoop) -> None:
    """If an event is older than `max_age` when its retry gets a permit, it is abandoned then and not sent."""
    limiter = RecordingLimiter(gated=True)
    transport = ScriptedTransport(200, 503)
    engine = Engine(transport, limiter=limiter, retry=AT_ONCE, batching=ONE_EACH, buffer=Buffer(max_age=1.0))
    # The first event determines when the client checks for old events: every 0.25 s.
    receipts = [await engine.track(1)]
    await asyncio.sleep(0.1)
    receipts.append(await engine.track(2))
    for _ in range(2):
        limiter.grant()
        await asyncio.sleep(0.06)
    await asyncio.sleep(1.15 - now())
    assert ([True, False], 1) == ([receipt.done() for receipt in receipts], limiter.waiting)
    limiter.grant()
    await asyncio.sleep(0.01)
    outcome = Abandoned(
        reason="expired", maybe_recorded=True, status=503, attempts=1, elapsed=pytest.approx(1.0, abs=0.1)
    )  # type: ignore[arg-type]

    assert (outcome, 2, 0) == (receipts[1].outcome, len(transport.requests), limiter.open)


async def test_what_is_fresh_goes_on_without_what_is_too_old(virtual_clock: CheckedLoop) -> None:
    """If some events of a batch that waits for its retry become too old, these are abandoned, the others are sent."""
    limiter = RecordingLimiter(gated=True)
    transport = ScriptedTransport(503)
    batching = Batching(linger=0.3)
    engine = Engine(transport, limiter=limiter, retry=AT_ONCE, batching=batching, buffer=Buffer(max_age=1.0))
    receipts = [await engine.track(1)]
    await asyncio.sleep(0.2)
    receipts.append(await engine.track(2))
    await asyncio.sleep(0.2)
    limiter.grant()
    await asyncio.sleep(1.1 - now())
    limiter.grant()
    await asyncio.sleep(0.06)

    assert isinstance(receipts[0].outcome, Abandoned)
    assert isinstance(receipts[1].outcome, Delivered)
    assert [[1, 2], [2]] == [request.numbers for request in transport.requests]


# --- places on the wire ---


async def test_who_waits_for_a_probe_holds_no_place_and_no_permit(virtual_clock: CheckedLoop) -> None:
    """If the client is halted, waiting requests hold no permit and no wire slot; later all slots are usable."""
    limiter = RecordingLimiter()
    transport = ScriptedTransport(403, then=PARKED)
    engine = Engine(transport, limiter=limiter, batching=Batching(max_events=1, max_in_flight=3), retry=PATIENT)
    await engine.track(0)
    await asyncio.sleep(0.2)
    sends = [asyncio.create_task(engine.send(number)) for number in range(1, 10)]
    await turns(5)
    assert (0, 1) == (limiter.open, limiter.asked)
    await asyncio.sleep(10.0)
    assert (1, 2, 1) == (limiter.open, limiter.asked, transport.in_flight)
    transport.release()
    await asyncio.sleep(1.0)
    # All three wire slots are in use again.
    assert (3, 3) == (transport.in_flight, limiter.open)
    transport.then = OK
    for _ in range(10):
        transport.release()
        await asyncio.sleep(0.2)
    await asyncio.gather(*sends)

    assert (0, 3) == (limiter.open, transport.worst_in_flight)


async def test_each_request_is_counted_once(virtual_clock: CheckedLoop) -> None:
    """If requests are made, each counts once by its status, and each but a batch's first also counts as a retry."""

    def then(request: Request) -> Step | int:
        return 503 if request.at < 0.3 else OK

    engine = Engine(ScriptedTransport(then=then), batching=ONE_EACH, retry=AT_ONCE, limiter=RecordingLimiter())
    receipts = [await engine.track(number) for number in range(2)]
    outcomes = [await receipt for receipt in receipts]
    stats = engine.stats()

    assert stats.requests == len(engine.transport.requests) == sum(outcome.attempts for outcome in outcomes)
    assert stats.retries == stats.requests - 2
    assert stats.requests_by_status == {503: stats.requests - 2, 200: 2}
    assert stats.splits == 0
