"""A close returns at its deadline for any server, with a report that adds up and can be written to a file."""

from __future__ import annotations

import asyncio
import gc
import os
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async import AsyncTrackingClient, CloseReport, Stats, UndeliveredEvent
from retailrocket_async._errors import (
    ClientClosedError,
    DroppedError,
    NoAnswerError,
    ThrottledError,
)
from retailrocket_async._http.reply import Reply
from retailrocket_async._outcome import Abandoned, Delivered, Dropped
from retailrocket_async._queue.options import Batching, Buffer
from retailrocket_async.emulator import Fault, Settings, running_emulator
from tests.support.fakes import (
    NEVER,
    NO_CONNECTION,
    OK,
    ROUNDING,
    SLOW_RETRY,
    TIMED_OUT,
    Engine,
    RecordingLimiter,
    ScriptedTransport,
    Step,
    check_balance,
    event,
    into,
    make_client,
    near,
    now,
    status,
    tasks,
    turns,
)
from tests.support.virtual_time import CheckedLoop, VirtualTimeLoop, block, run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path


# Events are not ordered here, because all events have one visitor, whose batches would wait for each other.
ONE_EACH = Batching(max_events=1)
"""Settings by which each event is sent in a request of its own."""


@pytest.mark.parametrize("kind", ["stall", "reset_before", "close_before", "garbage", "503", "429", "latency"])
async def test_in_time_whatever_the_server_does(kind: str) -> None:
    """If a real server fails in this way, `aclose(timeout=0.5)` still returns, and its report adds up."""
    fault = Fault(kind="status", status=int(kind), times=None) if kind.isdigit() else None
    fault = fault or Fault(kind=kind, times=None, seconds=30.0 if kind == "latency" else 0.0)  # type: ignore[arg-type]
    async with running_emulator(Settings()) as emulator:
        emulator.faults.add(fault)
        batching = Batching(max_events=3, max_in_flight=3)
        client = AsyncTrackingClient("dev-api-key", "dev-partner", base_url=emulator.url, batching=batching)
        for number in range(20):
            await client.view(session_external_id="visitor", product_id=number)
        begin = time.monotonic()
        report = await client.aclose(timeout=0.5)
        # This does not test speed: a faulty close would wait for a time-out of 30 s, or for ever.
        assert time.monotonic() - begin < 5.0

    stats = report.stats
    assert (stats.tracked, stats.pending, stats.in_flight) == (20, 0, 0)
    assert stats.delivered + stats.rejected + stats.abandoned + stats.dropped == 20
    assert len(report.undelivered) == 20 - stats.delivered


@pytest.mark.parametrize("timeout", [0.0, 0.5, 5.0, 60.0])
async def test_never_later(virtual_clock: CheckedLoop, timeout: float) -> None:  # noqa: ASYNC109
    """If hooks never end and connections never close, a close still returns exactly at its deadline."""

    async def hook(_: Sequence[UndeliveredEvent]) -> None:
        await asyncio.sleep(1e9)

    async def forever() -> None:
        await asyncio.sleep(1e9)

    engine = Engine(ScriptedTransport(then=NEVER, close=forever), on_outcome=hook, batching=Batching(max_events=3))
    await engine.track_all(range(20))
    await asyncio.sleep(1.0)
    begin = now()
    report = await engine.aclose(timeout)
    assert now() - begin <= timeout + ROUNDING
    assert len(report.undelivered) == 20
    check_balance(report.stats)


async def test_a_hook_that_is_quick_is_told_in_time(virtual_clock: CheckedLoop) -> None:
    """If events are left at the deadline, the hook gets them before the close returns."""
    reported: list[int] = []

    async def hook(events: Sequence[UndeliveredEvent]) -> None:
        await asyncio.sleep(0.01)
        reported.extend(kept.event.product_id for kept in events)  # type: ignore[attr-defined]

    engine = Engine(ScriptedTransport(then=NEVER), on_outcome=hook)
    await engine.track_all(range(20))
    await engine.aclose(5.0)
    assert reported == list(range(20))
    await turns(5)

    assert tasks() == set()


async def test_a_direct_send_that_is_dropped_has_its_reason_in_the_books(virtual_clock: CheckedLoop) -> None:
    """If a close ends a direct send before its first request, the drop is counted by reason and event name."""
    engine = Engine(ScriptedTransport(), limiter=RecordingLimiter(gated=True))
    sending = asyncio.create_task(engine.send_batch([1, 2]))
    await turns(5)
    report = await engine.aclose(0.0)
    with pytest.raises(DroppedError):
        await sending

    assert report.stats.dropped == 2
    assert report.stats.dropped_by == {"closed": {"view": 2}}


@pytest.mark.parametrize("timeout", [None, 5.0])
async def test_a_hook_may_close(virtual_clock: CheckedLoop, timeout: float | None) -> None:  # noqa: ASYNC109
    """If a hook closes the client, the close does not wait for this hook, which gets the leftover events afterwards."""
    reported: list[int] = []
    took: list[float] = []

    async def hook(events: Sequence[UndeliveredEvent]) -> None:
        reported.extend(kept.event.product_id for kept in events)  # type: ignore[attr-defined]
        begin = now()
        await engine.aclose(timeout)
        took.append(now() - begin)

    engine = Engine(ScriptedTransport(then=400), on_outcome=hook, batching=Batching(max_events=1, max_in_flight=1))
    await engine.track_all(range(3))
    await asyncio.sleep(10.0)

    assert reported == [0, 1, 2]
    assert max(took) < 1.0
    assert tasks() == set()


async def test_a_second_close_returns_the_same_report(virtual_clock: CheckedLoop) -> None:
    """If a client is closed several times, each close returns the same report."""
    engine = Engine(ScriptedTransport(then=NEVER))
    await engine.track(1)
    first, second, third = await asyncio.gather(engine.aclose(1.0), engine.aclose(9.0), engine.aclose(None))

    assert first is second is third is await engine.aclose(0)


async def test_a_clean_close_is_quick(virtual_clock: CheckedLoop) -> None:
    """If everything is delivered, a close takes only the time of the delivery."""
    engine = Engine(ScriptedTransport(then=OK))
    await engine.track_all(range(100))
    report = await engine.aclose(60.0)

    assert report.clean

    assert report.elapsed == pytest.approx(0.05, abs=0.01)


# --- leftover events ---


async def test_what_is_left_can_be_sent_again(tmp_path: Path) -> None:
    """If the file of a close is passed to `retailrocket-async send`, every event in it is recorded."""
    path = tmp_path / "left.jsonl"
    async with running_emulator(Settings()) as emulator:
        emulator.fail_with("stall", times=None)
        client = AsyncTrackingClient("dev-api-key", "dev-partner", base_url=emulator.url)
        for number in range(50):
            await client.view(session_external_id="visitor", product_id=number)
        report = await client.aclose(timeout=0.1)

        assert await asyncio.to_thread(report.save_undelivered, path) == 50
        emulator.faults.clear()
        environment = os.environ | {"RETAILROCKET_API_KEY": "dev-api-key"}
        command = [sys.executable, "-m", "retailrocket_async", "send", str(path)]
        command += ["--partner-id", "dev-partner", "--base-url", emulator.url]
        done = await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, check=False)

        assert done.returncode == 0, done.stderr
        assert sorted(event.fields["productId"] for event in emulator.events()) == list(range(50))


def report_of(*envelopes: bytes) -> CloseReport:
    """Return a report with these undelivered events."""
    dropped = Dropped(reason="closed")
    events = tuple(UndeliveredEvent(event_name="view", envelope=each, outcome=dropped) for each in envelopes)
    return CloseReport(stats=Stats(), undelivered=events, elapsed=0.0)


def test_the_file_is_the_owners_alone(tmp_path: Path) -> None:
    """If a report's file is new, only its owner can read it (events are personal data); an old file is appended to."""
    path = tmp_path / "left.jsonl"

    assert report_of(b"{1}", b"{2}").save_undelivered(path) == 2
    assert report_of(b"{3}").save_undelivered(str(path)) == 1
    assert path.read_bytes() == b"{1}\n{2}\n{3}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_left_writes_nothing(tmp_path: Path) -> None:
    """If a close is clean, no file is written; if the file cannot be written, an error says so."""
    assert report_of().save_undelivered(tmp_path / "none") == 0
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="directory"):
        report_of(b"{}").save_undelivered(tmp_path)


async def test_a_large_buffer_is_dropped_in_turns(virtual_clock: CheckedLoop) -> None:
    """If a close drops many events and has time, other tasks run meanwhile, and all events are reported."""
    engine = Engine(ScriptedTransport(then=NEVER), batching=Batching(max_in_flight=8))
    await engine.track_all(range(20_000))
    turned = 0

    async def count() -> None:
        nonlocal turned
        await asyncio.sleep(0.8)
        while True:
            block(0.001)
            turned += engine.stats().dropped > 0
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    begin = now()
    report = await engine.aclose(1.0)
    counting.cancel()

    assert now() - begin <= 1.0
    assert 20_000 == report.stats.dropped + report.stats.abandoned == len(report.undelivered)
    assert turned >= 20


@pytest.mark.untraced
@pytest.mark.parametrize("timeout", [0.0, 0.5, 5.0])
@pytest.mark.parametrize("batching", [Batching(), Batching(max_events=1)], ids=["large", "small"])
async def test_the_turns_of_others_make_no_close_late(
    virtual_clock: CheckedLoop,
    timeout: float,  # noqa: ASYNC109
    batching: Batching,
) -> None:
    """If every turn of the application takes 50 ms, a close is late by at most the turns that asyncio needs."""

    async def others() -> None:
        while True:
            block(0.05)
            await asyncio.sleep(0)

    engine = Engine(ScriptedTransport(then=NEVER), batching=batching)
    await engine.track_all(range(30_000))
    busy = asyncio.create_task(others())
    begin = now()
    report = await engine.aclose(timeout)
    busy.cancel()
    # Three turns: the time runs out in one, asyncio sees the timer in the next, and the task wakes in the last.
    assert now() - begin <= timeout + (3 * 0.05 if timeout else 0.0) + ROUNDING
    assert len(report.undelivered) == 30_000
    check_balance(report.stats)


class SlowClockLoop(VirtualTimeLoop):
    """A virtual loop on which each reading of the clock takes 1 ms, so that the package's own work takes time."""

    def time(self) -> float:
        """Return the virtual time in seconds, which is 1 ms later than at the last call."""
        self.block(0.001)
        return super().time()


def test_our_own_work_makes_no_close_late() -> None:
    """If settling takes longer than the time reserved for it, the rest is settled in one step, in time."""

    async def test() -> None:
        engine = Engine(ScriptedTransport(then=NEVER), batching=Batching(max_in_flight=8))
        await engine.track_all(range(30_000))
        begin = now()
        report = await engine.aclose(0.1)
        # The clock is read a few more times after the settling, so some milliseconds are allowed.
        assert now() - begin <= 0.1 + 0.02
        assert len(report.undelivered) == 30_000

    with asyncio.Runner(loop_factory=SlowClockLoop) as runner:
        runner.run(test())


# --- outcomes and reports ---


async def test_close_delivers_what_is_open(virtual_clock: CheckedLoop) -> None:
    """If a close has enough time, everything is delivered, and its report says so."""
    engine = Engine(ScriptedTransport(503), batching=Batching(max_events=4, linger=100.0))
    await engine.track_all(range(10))
    report = await engine.aclose()

    assert report.clean
    assert report.stats.delivered == report.stats.tracked == 10
    assert report.elapsed == near(now())
    assert engine.transport.closed == 1
    assert tasks() == set()


async def test_close_of_an_unused_client(virtual_clock: CheckedLoop) -> None:
    """If a client was never used, its close returns without waiting."""
    engine = Engine(ScriptedTransport())
    report = await engine.aclose()

    assert report.clean
    assert report.stats.tracked == 0
    assert now() == near(0.0)


Setup = tuple[ScriptedTransport, dict[str, Any]]

STUCK: dict[str, Callable[[], Setup]] = {
    "limiter": lambda: (ScriptedTransport(), {"limiter": RecordingLimiter(gated=True)}),
    "raising limiter": lambda: (ScriptedTransport(), {"limiter": RecordingLimiter(*[OSError()] * 1000)}),
    "backoff": lambda: (
        ScriptedTransport(then=NO_CONNECTION),
        {"retry": SLOW_RETRY},
    ),
    "pause": lambda: (ScriptedTransport(then=status(429, retry_after=50)), {}),
    "request": lambda: (ScriptedTransport(then=NEVER), {}),
    "stubborn request": lambda: (ScriptedTransport(then=Step(latency=1e9, stubborn=True)), {}),
    "stubborn request that failed": lambda: (
        ScriptedTransport(then=Step(latency=1e9, stubborn=True, reply=Reply(status=503))),
        {},
    ),
}


@pytest.mark.parametrize("where", STUCK)
@pytest.mark.parametrize("timeout", [0, 5.0])
async def test_close_is_a_deadline(virtual_clock: CheckedLoop, where: str, timeout: float) -> None:  # noqa: ASYNC109
    """If events are stuck anywhere, a close returns in time, and its report has each event with its outcome."""
    transport, options = STUCK[where]()
    reported: list[UndeliveredEvent] = []
    options["batching"] = Batching(max_events=2, max_in_flight=2)
    engine = Engine(transport, buffer=Buffer(max_events=50), on_outcome=into(reported), **options)
    receipts = await engine.track_all(range(9))
    sends = [asyncio.create_task(engine.send(number)) for number in (100, 101)]
    await asyncio.sleep(1.0)
    begin = now()
    report = await engine.aclose(timeout)
    # `aclose` reserves up to a tenth of its time for `on_outcome`. This hook is quick, so `aclose` may return earlier.
    assert 0.9 * timeout <= now() - begin <= timeout + ROUNDING
    assert report.elapsed <= timeout + ROUNDING
    await turns(5)
    stats = report.stats
    assert (stats.pending, stats.in_flight, stats.delivered) == (0, 0, 0)
    assert stats.tracked == 11 == stats.abandoned + stats.dropped
    assert list(report.undelivered) == reported
    assert [kept.event.product_id for kept in report.undelivered] == list(range(9))  # type: ignore[attr-defined]
    for receipt, kept in zip(receipts, report.undelivered, strict=True):
        assert receipt.outcome is kept.outcome
    sent = {number for request in transport.requests for number in request.numbers}
    for number, receipt in enumerate(receipts):
        outcome = receipt.outcome
        if number in sent:
            assert isinstance(outcome, Abandoned)
            assert outcome.reason == "closed"
            assert outcome.maybe_recorded == ("request" in where)
        else:
            assert outcome == Dropped(reason="closed")
    for send, number in zip(sends, (100, 101), strict=True):
        with pytest.raises(NoAnswerError if number in sent and where != "pause" else (DroppedError, ThrottledError)):
            await send
    requests = len(transport.requests)
    await asyncio.sleep(1000.0)
    assert len(transport.requests) == requests
    assert transport.in_flight == 0
    limiter = options.get("limiter")

    assert limiter is None or limiter.open == 0
    assert tasks() == set()


async def test_close_knows_what_was_on_the_wire_before(virtual_clock: CheckedLoop) -> None:
    """If an event had an answer that leaves open whether it was recorded, a close reports it as maybe recorded."""
    engine = Engine(ScriptedTransport(503), retry=SLOW_RETRY)
    receipt = await engine.track(1)
    await asyncio.sleep(1.0)
    await engine.aclose(0)
    outcome = await receipt

    assert outcome == Abandoned(reason="closed", maybe_recorded=True, status=503, attempts=1, elapsed=outcome.elapsed)


async def test_second_close_returns_the_same_report(virtual_clock: CheckedLoop) -> None:
    """If a client is closed again, later or at the same time, the same report is returned, and nothing closes twice."""
    engine = Engine(ScriptedTransport(then=Step(latency=2.0)))
    await engine.track(1)
    first, second = await asyncio.gather(engine.aclose(), engine.aclose())
    third = await engine.aclose(0)

    assert first is second is third
    assert engine.transport.closed == 1


async def test_second_close_has_a_deadline_of_its_own(virtual_clock: CheckedLoop) -> None:
    """If a second close has less time than the first, both return at the second's deadline, with the same report."""
    engine = Engine(ScriptedTransport(then=NEVER), batching=Batching(max_events=2, max_in_flight=1))
    await engine.track_all(range(4))
    patient = asyncio.create_task(engine.aclose(None))
    await asyncio.sleep(10.0)
    report = await engine.aclose(3.0)

    assert now() == near(13.0)
    assert await patient is report
    assert now() == near(13.0)
    assert (report.stats.abandoned, report.stats.dropped) == (2, 2)
    assert tasks() == set()


async def test_second_close_with_more_time_changes_nothing(virtual_clock: CheckedLoop) -> None:
    """If a second close has more time than the first, it returns with the first."""
    engine = Engine(ScriptedTransport(then=NEVER))
    await engine.track(1)
    first, second = await asyncio.gather(engine.aclose(2.0), engine.aclose(None))

    assert first is second
    assert now() == near(2.0)


async def test_waiting_callers_are_told_of_the_close(virtual_clock: CheckedLoop) -> None:
    """If a client closes, waiting and later callers are refused, and accepted events are delivered."""
    limiter = RecordingLimiter(gated=True)
    engine = Engine(ScriptedTransport(), limiter=limiter, buffer=Buffer(max_events=2), batching=ONE_EACH)
    await engine.track_all(range(2))
    callers = [asyncio.create_task(engine.track(number)) for number in range(2, 5)]
    await turns()
    callers[1].cancel()
    close = asyncio.create_task(engine.aclose())
    await turns(2)
    for use in (engine.track(9), engine.send(9), engine.send_batch([9])):
        with pytest.raises(ClientClosedError):
            await use
    with pytest.raises(ClientClosedError):
        engine.track_nowait(9)
    limiter.open_gate()
    report = await close
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(result) for result in results] == [ClientClosedError, asyncio.CancelledError, ClientClosedError]
    assert report.stats.delivered == report.stats.tracked == 2
    with pytest.raises(ClientClosedError):
        await engine.track(9)
    await engine.flush()


async def test_waiting_caller_cancelled_by_the_close_leaves_no_trace(
    virtual_clock: CheckedLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """If a waiting caller is refused and cancelled in the same turn, asyncio logs nothing."""
    limiter = RecordingLimiter(gated=True)
    engine = Engine(ScriptedTransport(), limiter=limiter, buffer=Buffer(max_events=1))
    await engine.track(0)
    caller = asyncio.create_task(engine.track(1))
    await turns()
    close = asyncio.create_task(engine.aclose(1.0))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait({caller, close})
    assert caller.cancelled()
    gc.collect()

    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


async def test_cancelled_close_settles_everything(virtual_clock: CheckedLoop) -> None:
    """If a close is cancelled, every event has an outcome, no task is left, and a second close returns the report."""
    engine = Engine(ScriptedTransport(then=NEVER), batching=Batching(max_events=2, max_in_flight=1))
    receipts = await engine.track_all(range(4))
    close = asyncio.create_task(engine.aclose(None))
    await asyncio.sleep(5.0)
    close.cancel()
    with pytest.raises(asyncio.CancelledError):
        await close
    assert [type(receipt.outcome) for receipt in receipts] == [Abandoned, Abandoned, Dropped, Dropped]
    report = await engine.aclose()
    assert len(report.undelivered) == 4
    await turns(5)

    assert tasks() == set()
    assert engine.transport.closed == 1


async def test_impossible_timeout_closes_nothing(virtual_clock: CheckedLoop) -> None:
    """If a timeout is not a number, an error is raised before anything changes, and the client stays open."""
    engine = Engine(ScriptedTransport())
    receipt = await engine.track(1)
    with pytest.raises(TypeError):
        await engine.aclose("5")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        await engine.flush("5")  # type: ignore[arg-type]
    await engine.track(2)

    assert isinstance(await receipt, Delivered)
    assert (await engine.aclose()).clean


def test_connections_that_do_not_close_hold_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """If a transport never closes, a close waits half a second; if it raises, not at all, and the error is logged."""

    async def forever() -> None:
        await asyncio.sleep(1e9)

    async def broken() -> None:
        raise ZeroDivisionError

    async def test(close: Callable[[], Coroutine[Any, Any, None]]) -> float:
        engine = Engine(ScriptedTransport(close=close))
        await engine.aclose()
        return now()

    assert run(test(forever)) == near(0.5)
    assert run(test(broken)) == near(0.0)
    gc.collect()
    assert [(record.name, record.message.split(" (")[0]) for record in caplog.records] == [
        ("retailrocket_async", "closing the connections failed: ZeroDivisionError")
    ]


@pytest.mark.parametrize("visitors", [1, 3, 20])
async def test_report_is_oldest_first(virtual_clock: CheckedLoop, visitors: int) -> None:
    """If events are left at a close, the report has them in the order of tracking, batch by batch."""
    engine = Engine(
        ScriptedTransport(),
        limiter=RecordingLimiter(gated=True),
        batching=Batching(max_events=10),
    )
    for number in range(20):
        await engine.track(number, f"v{number % visitors}")
        await asyncio.sleep(0.01)
    report = await engine.aclose(0)
    numbers = [kept.event.product_id for kept in report.undelivered]

    assert numbers[0] == 0
    assert sorted(numbers) == list(range(20))
    assert visitors == 3 or numbers == sorted(numbers)


async def test_async_with_closes(virtual_clock: CheckedLoop) -> None:
    """If an `async with` block ends, even by an exception, the client is closed and its events are delivered."""
    transport = ScriptedTransport()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
        async with make_client(transport) as client:
            await client.view(session_external_id="a", product_id=1)
            raise ZeroDivisionError
    assert transport.recorded_numbers == [1]
    with pytest.raises(ClientClosedError):
        await client.track(event(2))

    assert repr(client).endswith(" closed>")


async def test_client_end_to_end(virtual_clock: CheckedLoop) -> None:
    """If events enter a client in any way, each one gets the right outcome, and the counters are right."""
    transport = ScriptedTransport(NO_CONNECTION, TIMED_OUT, OK)
    async with make_client(transport) as client:
        receipt = await client.track(event(1))
        outcome = await receipt
        assert outcome == Delivered(status=200, attempts=3, elapsed=outcome.elapsed, maybe_duplicate=True)
        receipts = await client.track_many([event(2), event(3)])
        receipts.append(client.track_nowait(event(4)))
        await client.flush()
        assert all(isinstance(receipt.outcome, Delivered) for receipt in receipts)
        await client.send(event(5))
        await client.send_batch([event(6), event(7)])
        assert [request.path for request in transport.requests[-2:]] == ["view", "visitorEvents"]
        assert client.stats().delivered == client.stats().tracked == 7
        assert client.stats().requests_by_status == {"connect": 1, "timeout": 1, 200: 4}
