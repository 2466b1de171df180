"""A wrong key, a forbidden shop or a wrong address halts all requests; events stay in the buffer meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async import (
    AsyncTrackingClient,
    AuthenticationError,
    Batching,
    Buffer,
    Delivered,
    DeliveryError,
    RateLimit,
    Rejected,
    RetryPolicy,
    View,
    new_session_id,
)
from retailrocket_async.emulator import Settings, running_emulator
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
    tasks,
    turns,
)
from tests.support.raw_server import answer, raw_server
from tests.support.virtual_time import CheckedLoop, run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from retailrocket_async import StateChange

BLOCKED = [401, 403, 404, 405, 407, 301, 302, 307, 308]
# Events are not ordered here, because all events have one visitor, whose batches would wait for each other.
ONE_EACH = Batching(max_events=1, linger=0.0, max_in_flight=8)


def listening(changes: list[StateChange]) -> Callable[[StateChange], Awaitable[None]]:
    """Return an async hook that appends each state change to `changes`."""

    async def hook(change: StateChange) -> None:
        changes.append(change)

    return hook


@pytest.mark.untraced
@pytest.mark.parametrize("status", BLOCKED)
async def test_the_first_refusal_pauses_everything(
    virtual_clock: CheckedLoop, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """If one request is refused, sending halts: a thousand events stay, with one log record and one hook call."""
    changes: list[StateChange] = []

    engine = Engine(ScriptedTransport(then=status), batching=ONE_EACH, on_state_change=listening(changes))
    for number in range(1000):
        await engine.track(number)
        await asyncio.sleep(0.01)
    stats = engine.stats()
    assert (stats.state, stats.tracked, stats.rejected) == ("halted", 1000, 0)
    assert stats.pending + stats.in_flight == 1000
    # Up to eight requests were in flight when the answer came; then single ones follow after 1, 3 and 7 s.
    assert stats.requests <= 8 + 3

    assert [(change.state, change.previous, change.status) for change in changes] == [("halted", "sending", status)]
    halted = [record for record in caplog.records if "halted" in record.getMessage()]

    assert [(record.levelno, str(status) in record.getMessage()) for record in halted] == [(logging.ERROR, True)]
    assert changes[0].advice in halted[0].getMessage()


async def test_probes_grow_apart(virtual_clock: CheckedLoop) -> None:
    """If sending is halted, single requests go out 1, 2, 4, 8, ... s apart, up to 30 s."""
    engine = Engine(ScriptedTransport(then=403), retry=RetryPolicy(max_halt=1e6))
    await engine.track(1)
    await asyncio.sleep(200.0)
    times = engine.transport.times

    assert [after - before - 0.05 for before, after in itertools.pairwise(times)] == [
        pytest.approx(wait, abs=0.01) for wait in (1, 2, 4, 8, 16, 30, 30, 30, 30, 30)
    ]


async def test_when_mended_everything_goes(virtual_clock: CheckedLoop) -> None:
    """If the shop is accepted again, all waiting events are delivered once, within two seconds."""
    transport = ScriptedTransport(then=403)
    changes: list[StateChange] = []
    batching = Batching(max_events=10, max_in_flight=8)
    engine = Engine(transport, batching=batching, on_state_change=listening(changes))
    receipts = await engine.track_all(range(500))
    await asyncio.sleep(10.0)
    transport.then = OK
    await asyncio.wait([asyncio.ensure_future(receipts[0].delivered())])
    mended = now()
    for receipt in receipts:
        assert isinstance(await receipt, Delivered)

    assert now() - mended < 2.0
    assert sorted(transport.recorded_numbers) == list(range(500))
    assert [change.state for change in changes] == ["halted", "sending"]
    assert changes[1].lasted == pytest.approx(15.1, abs=0.2)


@pytest.mark.parametrize("max_halt", [0.0, 5.0, 30.0])
async def test_a_fixed_key_has_its_answer_in_time(virtual_clock: CheckedLoop, max_halt: float) -> None:
    """If the key is fixed and wrong, every receipt says so within `max_halt` plus the 2.5 s of a last probe."""
    retry = RetryPolicy(max_halt=max_halt)
    engine = Engine(ScriptedTransport(then=401), batching=ONE_EACH, retry=retry)
    receipts = await engine.track_all(range(100))
    for receipt in receipts:
        outcome = await receipt
        assert isinstance(outcome, Rejected)
        assert outcome.status == 401
        with pytest.raises(AuthenticationError, match="check the api_key"):
            await receipt.delivered()
    assert now() <= 0.05 + max_halt + (2.5 if max_halt else 0.25) + 0.05 + ROUNDING
    # Later events wait just as long, counted from their own tracking.
    await asyncio.sleep(60.0)
    begin = now()

    assert isinstance(await (await engine.track(1)), Rejected)
    assert now() - begin <= max_halt + 2.5 + 0.05 + ROUNDING


def test_what_is_mended_in_time_is_delivered() -> None:
    """If the cause is corrected within `max_halt`, no event is rejected: a last probe is sent before time is up."""

    async def test(mended_at: float) -> None:
        transport = ScriptedTransport(then=lambda request: 403 if request.at < mended_at else OK)
        engine = Engine(transport, batching=Batching(max_events=10))
        receipts = await engine.track_all(range(300))
        assert all([isinstance(await receipt, Delivered) for receipt in receipts])

    for mended_at in (0.5, 5.0, 16.0, 20.0, 29.0):
        run(test(mended_at))


async def test_an_event_of_a_long_halt_waits_no_longer(virtual_clock: CheckedLoop) -> None:
    """If the client has long been halted, a new event still has its outcome in time, before the next planned probe."""
    engine = Engine(ScriptedTransport(then=401), batching=ONE_EACH, retry=RetryPolicy(max_halt=1.0))
    for number in range(20):
        # The pause makes sure that the last event has left nothing behind, not even a timer.
        await asyncio.sleep(0.5)
        begin = now()
        assert isinstance(await (await engine.track(number)), Rejected)
        assert now() - begin <= 1.0 + 2.5 + ROUNDING


async def test_a_second_halt_has_a_last_question_of_its_own(virtual_clock: CheckedLoop) -> None:
    """If a second halt follows, it has a last probe of its own, so events are delivered if the cause is corrected."""
    mended_at = 29.0
    transport = ScriptedTransport(then=lambda request: 403 if request.at < mended_at else OK)
    engine = Engine(transport, batching=ONE_EACH)
    assert isinstance(await (await engine.track(1)), Delivered)
    mended_at = now() + 29.0

    assert isinstance(await (await engine.track(2)), Delivered)


async def test_the_last_question_for_a_direct_send_is_not_an_events(virtual_clock: CheckedLoop) -> None:
    """If a direct send was refused as the last probe, a later event gets a last probe of its own."""
    transport = ScriptedTransport(then=401)
    engine = Engine(transport, batching=ONE_EACH, retry=RetryPolicy(max_halt=5.0))
    # Repeat until planned probes are so rare that the last probe comes before them.
    for number in range(4):
        await (await engine.track(number))
    with pytest.raises(AuthenticationError):
        await engine.send(5)
    receipt = await engine.track(6)
    transport.then = OK

    assert isinstance(await receipt, Delivered)


async def test_young_events_are_not_rejected_with_old_ones(virtual_clock: CheckedLoop) -> None:
    """If older events are rejected after `max_halt`, a younger event still waits `max_halt` from its own tracking."""
    transport = ScriptedTransport(then=403)
    engine = Engine(transport, batching=Batching(max_events=500, max_in_flight=1))
    receipts = []
    for number in range(400):
        receipts.append((now(), await engine.track(number)))
        await asyncio.sleep(0.1)
    waiting = [now() - came_at for came_at, receipt in receipts if not receipt.done()]
    ended = [now() - came_at for came_at, receipt in receipts if receipt.done()]
    # The batch in flight is as old as its oldest event, but also contains events tracked until it left the buffer.
    assert min(ended) >= 15.0
    assert max(waiting) <= 30.0 + 2.5
    await engine.aclose(0)


async def test_events_that_were_never_sent_say_so(virtual_clock: CheckedLoop) -> None:
    """If an event only waited behind others, it is rejected with no attempts."""
    engine = Engine(ScriptedTransport(then=401), batching=Batching(max_events=1, max_in_flight=1))
    receipts = await engine.track_all(range(3))
    first, *others = [(await receipt).attempts for receipt in receipts]

    assert first >= 1
    assert others == [0, 0]


@pytest.mark.parametrize("waits", [True, False])
async def test_a_close_says_it_at_once(virtual_clock: CheckedLoop, waits: bool) -> None:  # noqa: FBT001
    """If a halted client closes, it tries once more and then returns with the error that says what to correct."""
    engine = Engine(ScriptedTransport(then=401), batching=ONE_EACH)
    receipts = await engine.track_all(range(50))
    if waits:
        await asyncio.sleep(10.0)
    begin, requests = now(), engine.stats().requests
    report = await engine.aclose(15.0)

    assert now() - begin < 0.2
    assert engine.stats().requests - requests <= (1 if waits else 8)
    assert isinstance(report.error, AuthenticationError)
    assert {type(kept.error) for kept in report.undelivered} == {AuthenticationError}
    assert len(report.undelivered) == report.stats.rejected == len(receipts)


async def test_a_close_of_a_mended_client_delivers(virtual_clock: CheckedLoop) -> None:
    """If the close's own request succeeds, all events are delivered, and the report has no error."""
    transport = ScriptedTransport(then=403)
    engine = Engine(transport, batching=ONE_EACH)
    await engine.track_all(range(50))
    await asyncio.sleep(10.0)
    transport.then = OK
    report = await engine.aclose(15.0)

    assert (report.clean, report.error, report.stats.delivered) == (True, None, 50)


async def test_a_direct_send_says_it_at_once(virtual_clock: CheckedLoop) -> None:
    """If a direct send is refused, it raises at once; if sending is already halted, it raises within two seconds."""
    engine = Engine(ScriptedTransport(then=401))
    with pytest.raises(AuthenticationError):
        await engine.send(1)
    assert now() < 0.1
    assert engine.stats().state == "halted"
    with pytest.raises(AuthenticationError):
        await engine.send(2)

    assert now() < 2.0


async def test_an_unknown_endpoint_halts_nobody_else(virtual_clock: CheckedLoop) -> None:
    """If an event's own endpoint answers 404, sending to the batches' endpoint is not halted."""
    engine = Engine(ScriptedTransport(then=lambda request: 404 if request.path == "view" else OK))
    with pytest.raises(DeliveryError, match="no such resource"):
        await engine.send(1)

    assert engine.stats().state == "sending"
    assert isinstance(await (await engine.track(2)), Delivered)


async def test_an_event_that_may_have_been_recorded_is_not_called_rejected(virtual_clock: CheckedLoop) -> None:
    """If an event's request may have been recorded before the key was refused, its outcome is not `Rejected`."""
    engine = Engine(ScriptedTransport(503, then=401), retry=RetryPolicy(initial_backoff=0.0, max_halt=1.0))
    outcome = await (await engine.track(1))

    assert (type(outcome).__name__, outcome.maybe_recorded) == ("Abandoned", True)


async def test_late_answers_change_nothing(virtual_clock: CheckedLoop) -> None:
    """If requests that were in flight at the refusal succeed, the halt does not end."""
    transport = ScriptedTransport(PARKED, 401, then=401)
    batching = Batching(max_events=1, max_in_flight=2)
    engine = Engine(transport, batching=batching, retry=RetryPolicy(max_halt=1e6))
    receipts = await engine.track_all(range(20))
    await asyncio.sleep(0.5)
    transport.release()
    await turns(10)

    assert isinstance(receipts[0].outcome, Delivered)
    assert engine.stats().state == "halted"
    assert len(transport.requests) == 2


async def test_a_direct_send_does_not_mend_an_address(virtual_clock: CheckedLoop) -> None:
    """If the batches' address is wrong, an answer at an event's own endpoint does not end the halt."""
    transport = ScriptedTransport(then=lambda request: OK if request.path == "view" else 404)
    engine = Engine(transport, retry=RetryPolicy(max_halt=10.0))
    receipt = await engine.track(1)
    await asyncio.sleep(0.5)
    sends = [asyncio.create_task(engine.send(number)) for number in range(2, 40)]
    assert isinstance(await receipt, Rejected)
    assert now() < 13.0
    assert engine.stats().state == "halted"
    await engine.aclose(0)
    await asyncio.gather(*sends, return_exceptions=True)


async def test_the_time_of_a_halt_does_not_count_for_retries(virtual_clock: CheckedLoop) -> None:
    """If a halt takes longer than `max_elapsed`, a batch that fails again afterwards still has all its retries."""
    transport = ScriptedTransport(503, then=401)
    retry = RetryPolicy(max_elapsed=20.0, initial_backoff=0.1)
    engine = Engine(transport, renewable=True, retry=retry)
    receipt = await engine.track(1)
    await asyncio.sleep(100.0)
    assert not receipt.done()
    script = iter([503, 503])
    transport.then = lambda _: next(script, OK)

    assert isinstance(await receipt, Delivered)


async def test_failures_in_a_halt_do_not_use_up_the_retries_time(virtual_clock: CheckedLoop) -> None:
    """If a probe fails during a halt longer than `max_elapsed`, its batch loses no retry and is delivered later."""
    transport = ScriptedTransport(503, then=401)
    retry = RetryPolicy(max_elapsed=20.0, initial_backoff=0.1, max_backoff=0.1)
    engine = Engine(transport, renewable=True, retry=retry)
    receipt = await engine.track(1)
    await asyncio.sleep(100.0)
    transport.then = 503
    await asyncio.sleep(100.0)
    assert (engine.stats().state, receipt.done()) == ("halted", False)
    transport.then = OK

    assert isinstance(await receipt, Delivered)


@pytest.mark.parametrize(("script", "state"), [([401], "halted"), ([NO_CONNECTION] * 5, "down")])
async def test_one_probe_at_a_time_though_many_wait_for_permits(
    virtual_clock: CheckedLoop, script: list[Step | int], state: str
) -> None:
    """If requests wait for permits when the state changes, each later goes out as a probe, one at a time, or waits."""
    limiter = RecordingLimiter(gated=True)
    transport = ScriptedTransport(*script, then=PARKED)
    retry = RetryPolicy(initial_backoff=1.0, max_backoff=1.0, max_halt=1e6, max_elapsed=1e6)
    engine = Engine(transport, limiter=limiter, retry=retry, batching=Batching(max_events=1, max_in_flight=20))
    sends = [asyncio.create_task(engine.send(number)) for number in range(10)]
    await turns(5)
    while engine.stats().state == "sending":
        limiter.grant()
        await asyncio.sleep(0.06)
    assert (engine.stats().state, len(transport.requests)) == (state, len(script))
    assert limiter.waiting >= 10 - len(script)
    limiter.open_gate()
    await asyncio.sleep(0.3)
    assert len(transport.requests) == len(script)
    await asyncio.sleep(60.0)
    assert (len(transport.requests) - len(script), transport.parked) == (1, 1)
    transport.then = OK
    transport.release()
    ended = await asyncio.gather(*sends, return_exceptions=True)
    assert sum(isinstance(each, DeliveryError) for each in ended) == (state == "halted")
    # All permits and wire slots were returned.
    assert limiter.open == 0
    await asyncio.gather(*(engine.send(number) for number in range(10, 40)))


# --- keys that change ---


async def test_a_close_without_a_deadline_does_not_wait_for_a_key_for_ever(virtual_clock: CheckedLoop) -> None:
    """If the key function returns the same wrong key, a close waits `max_halt` seconds and reports the refusal."""
    engine = Engine(ScriptedTransport(then=401), renewable=True, retry=RetryPolicy(max_halt=20.0))
    receipts = await engine.track_all(range(3))
    await asyncio.sleep(100.0)
    assert not any(receipt.done() for receipt in receipts)
    begin = now()
    report = await engine.aclose(None)

    assert 20.0 <= now() - begin < 25.0
    assert isinstance(report.error, AuthenticationError)
    assert all(isinstance(receipt.outcome, Rejected) for receipt in receipts)


async def test_while_the_key_is_asked_for_there_is_no_other_probe(virtual_clock: CheckedLoop) -> None:
    """If a probe is refused for its key, no other request is sent while the client asks for a new key."""
    transport = ScriptedTransport(*[NO_CONNECTION] * 5, then=401)
    transport.keeps_key = True
    engine = Engine(transport, renewable=True, batching=Batching(max_events=1, max_in_flight=5))
    await engine.track_all(range(20))
    await asyncio.sleep(20.0)
    assert engine.stats().state == "down"
    assert len(transport.requests) == 6
    transport.renewals.append((True, None))
    transport.keeps_key, transport.then = False, OK
    transport.release()
    await engine.flush()

    assert engine.stats().delivered == 20


async def test_a_key_that_has_changed_goes_at_once(virtual_clock: CheckedLoop) -> None:
    """If a 401 leads to another key, the batch goes out with it at once, and no change of state is reported."""
    changes: list[StateChange] = []

    transport = ScriptedTransport(401)
    transport.renewals = [(True, None)]
    engine = Engine(transport, renewable=True, on_state_change=listening(changes))
    receipt = await engine.track(1)

    assert isinstance(await receipt, Delivered)
    assert now() < 0.21
    assert (transport.renewed, len(transport.requests)) == (1, 2)

    assert changes == []


async def test_a_key_that_has_not_changed_is_asked_for_again(virtual_clock: CheckedLoop) -> None:
    """If the same key is returned, the client stays halted and asks again at growing intervals; no event is lost."""
    transport = ScriptedTransport(then=401)
    engine = Engine(transport, renewable=True, batching=ONE_EACH, retry=RetryPolicy(max_elapsed=1.0))
    receipts = await engine.track_all(range(100))
    await asyncio.sleep(1000.0)
    stats = engine.stats()
    assert stats.pending + stats.in_flight == 100
    assert 30 < transport.renewed < 60
    transport.then = OK
    for receipt in receipts:
        assert isinstance(await receipt, Delivered)

    assert sorted(transport.recorded_numbers) == list(range(100))


async def test_a_function_that_returns_new_wrong_keys_makes_no_storm(virtual_clock: CheckedLoop) -> None:
    """If the key function returns another wrong key each time, only a few requests are refused."""
    # Each of eight requests in flight is sent three times; afterwards there is one probe at a time.
    transport = ScriptedTransport(then=401)
    transport.renewals = [(True, None)] * 1000
    engine = Engine(transport, renewable=True, batching=ONE_EACH)
    await engine.track_all(range(100))
    await asyncio.sleep(60.0)
    await engine.aclose(0)
    await turns(5)

    assert tasks() == set()

    assert len(transport.requests) <= 8 * 3 + 8


async def test_a_function_that_fails_is_told_once(virtual_clock: CheckedLoop, caplog: pytest.LogCaptureFixture) -> None:
    """If the key function raises, the error's type name is logged once, and the function is called again."""
    transport = ScriptedTransport(*[401] * 4, then=OK)
    transport.renewals = [(False, "KeyError")] * 4
    engine = Engine(transport, renewable=True)

    assert isinstance(await (await engine.track(1)), Delivered)

    assert sum("api_key function failed: KeyError" in record.getMessage() for record in caplog.records) == 1


# --- against the emulator ---


async def test_a_key_rotated_in_mid_run() -> None:
    """If a key is rotated amid 5,000 events, each event is recorded exactly once."""
    key = "first"
    async with running_emulator(Settings(api_key=key, limit=None)) as emulator:
        client = AsyncTrackingClient(
            lambda: key,
            "dev-partner",
            base_url=emulator.url,
            rate_limit=RateLimit(requests=1000),
            batching=Batching(max_events=20),
            timeout=120.0,
        )
        async with client:
            receipts = []
            for number in range(5000):
                if number in (1000, 2500, 4000):
                    key = f"key-{number}"
                    emulator.configure(api_key=key)
                receipts.append(await client.view(session_external_id=new_session_id(), product_id=number))
            outcomes = [await receipt for receipt in receipts]

        recorded = sorted(event.fields["productId"] for event in emulator.events())
        assert all(isinstance(outcome, Delivered) and not outcome.maybe_duplicate for outcome in outcomes)
        assert recorded == list(range(5000))
        assert emulator.stats()["statuses"]["401"] >= 3


@pytest.mark.parametrize("how", ["function", "coroutine function", "callable object"])
async def test_every_kind_of_function_is_asked(how: str) -> None:
    """If the key source is a function, a coroutine function or a callable object, it is called before a request."""

    def plain() -> str:
        return "the-key"

    async def coroutine() -> str:
        return "the-key"

    class Store:
        async def __call__(self) -> str:
            return "the-key"

    source: Any = {"function": plain, "coroutine function": coroutine, "callable object": Store()}[how]
    async with raw_server() as server, AsyncTrackingClient(source, "partner", base_url=server.url) as client:
        await client.send(View(session_external_id="visitor", product_id=1))

        assert [request.query["apiKey"] for request in server.arrived] == [["the-key"]]


@pytest.mark.parametrize("bad", [None, "", " padded", 5])
async def test_what_is_no_key_is_not_sent(bad: Any) -> None:
    """If the key function returns no valid key, no request is made, and the event waits for a valid one."""
    keys = iter([bad, "good"])
    async with raw_server() as server:
        retry = RetryPolicy(initial_backoff=0.01)
        async with AsyncTrackingClient(lambda: next(keys), "partner", base_url=server.url, retry=retry) as client:
            receipt = await client.view(session_external_id="visitor", product_id=1)
            assert isinstance(await receipt, Delivered)

        assert [request.query["apiKey"] for request in server.arrived] == [["good"]]


async def test_a_wrong_key_against_a_server() -> None:
    """If a real server refuses the key, there is one request, and the receipt and the close report the error."""
    async with raw_server() as server:
        server.always(answer(401))
        client = AsyncTrackingClient("wrong", "partner", base_url=server.url, buffer=Buffer(max_events=10))
        receipt = await client.view(session_external_id="visitor", product_id=1)
        report = await client.aclose()

    with pytest.raises(AuthenticationError):
        await receipt.delivered()
    assert isinstance(report.error, AuthenticationError)
    assert len(server.arrived) == 1


async def test_every_step_is_a_request(virtual_clock: CheckedLoop, caplog: pytest.LogCaptureFixture) -> None:
    """If a 404 follows a 403, the change is reported again, because there is another cause to correct."""
    changes: list[StateChange] = []

    def then(request: Request) -> Step | int:
        return 403 if request.at < 5.0 else 404

    engine = Engine(ScriptedTransport(then=then), on_state_change=listening(changes))
    await engine.track(1)
    await asyncio.sleep(20.0)

    assert [(change.state, change.previous, change.status) for change in changes] == [
        ("halted", "sending", 403),
        ("halted", "halted", 404),
    ]
