"""Close is a deadline: it returns in time whatever the server does, with a report that adds up and can be kept."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from retailrocket_async import AsyncTrackingClient, Batching, CloseReport, Stats, UndeliveredEvent
from retailrocket_async._errors import DroppedError
from retailrocket_async._outcome import Dropped
from retailrocket_async.emulator import Fault, Settings, running_emulator
from tests.support.fakes import (
    OK,
    ROUNDING,
    Engine,
    RecordingLimiter,
    ScriptedTransport,
    Step,
    check_balance,
    now,
    tasks,
    turns,
)
from tests.support.virtual_time import CheckedLoop, VirtualTimeLoop, block

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NEVER = Step(latency=1e9)


@pytest.mark.parametrize("kind", ["stall", "reset_before", "close_before", "garbage", "503", "429", "latency"])
async def test_in_time_whatever_the_server_does(kind: str) -> None:
    """Against a real server that fails in this way, a close with half a second to go returns within it, and adds up."""
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
        # No test of speed: whoever hangs does so for the 30 s of a time-out or for ever.
        assert time.monotonic() - begin < 5.0

    stats = report.stats
    assert (stats.tracked, stats.pending, stats.in_flight) == (20, 0, 0)
    assert stats.delivered + stats.rejected + stats.abandoned + stats.dropped == 20
    assert len(report.undelivered) == 20 - stats.delivered


@pytest.mark.parametrize("timeout", [0.0, 0.5, 5.0, 60.0])
async def test_never_later(virtual_clock: CheckedLoop, timeout: float) -> None:  # noqa: ASYNC109
    """Hooks that never end and connections that never close do not make a close late, not by a moment."""

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
    """What is left at the deadline reaches the hook before the close returns."""
    told: list[int] = []

    async def hook(events: Sequence[UndeliveredEvent]) -> None:
        await asyncio.sleep(0.01)
        told.extend(kept.event.product_id for kept in events)  # type: ignore[attr-defined]

    engine = Engine(ScriptedTransport(then=NEVER), on_outcome=hook)
    await engine.track_all(range(20))
    await engine.aclose(5.0)
    assert told == list(range(20))
    await turns(5)

    assert tasks() == set()


async def test_a_direct_send_that_is_dropped_has_its_reason_in_the_books(virtual_clock: CheckedLoop) -> None:
    """A direct send that a close ends before its first request is counted with its reason and name, as events are."""
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
    """A close from within a hook does not wait for that hook, and what is left is told of afterwards."""
    told: list[int] = []
    took: list[float] = []

    async def hook(events: Sequence[UndeliveredEvent]) -> None:
        told.extend(kept.event.product_id for kept in events)  # type: ignore[attr-defined]
        begin = now()
        await engine.aclose(timeout)
        took.append(now() - begin)

    engine = Engine(ScriptedTransport(then=400), on_outcome=hook, batching=Batching(max_events=1, max_in_flight=1))
    await engine.track_all(range(3))
    await asyncio.sleep(10.0)

    assert told == [0, 1, 2]
    assert max(took) < 1.0
    assert tasks() == set()


async def test_a_second_close_returns_the_same_report(virtual_clock: CheckedLoop) -> None:
    """However often it is closed, there is one report."""
    engine = Engine(ScriptedTransport(then=NEVER))
    await engine.track(1)
    first, second, third = await asyncio.gather(engine.aclose(1.0), engine.aclose(9.0), engine.aclose(None))

    assert first is second is third is await engine.aclose(0)


async def test_a_clean_close_is_quick(virtual_clock: CheckedLoop) -> None:
    """Where everything is delivered a close takes as long as that does."""
    engine = Engine(ScriptedTransport(then=OK))
    await engine.track_all(range(100))
    report = await engine.aclose(60.0)

    assert report.clean

    assert report.elapsed == pytest.approx(0.05, abs=0.01)


# --- what is left ---


async def test_what_is_left_can_be_sent_again(tmp_path: Path) -> None:
    """The file of a close goes through `retailrocket-async send`, and every event in it is recorded."""
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
    """Events hold personal data: a new file is readable by its owner only, one that exists is appended to."""
    path = tmp_path / "left.jsonl"

    assert report_of(b"{1}", b"{2}").save_undelivered(path) == 2
    assert report_of(b"{3}").save_undelivered(str(path)) == 1
    assert path.read_bytes() == b"{1}\n{2}\n{3}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_left_writes_nothing(tmp_path: Path) -> None:
    """A clean close leaves no file, and one that cannot be written says so."""
    assert report_of().save_undelivered(tmp_path / "none") == 0
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="directory"):
        report_of(b"{}").save_undelivered(tmp_path)


async def test_a_large_buffer_is_dropped_in_turns(virtual_clock: CheckedLoop) -> None:
    """While there is time for it, a close that drops many events lets others run meanwhile, and accounts for all."""
    engine = Engine(ScriptedTransport(then=NEVER))
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


@pytest.mark.parametrize("timeout", [0.0, 0.5, 5.0])
@pytest.mark.parametrize("batching", [Batching(), Batching(max_events=1)], ids=["large", "small"])
async def test_the_turns_of_others_make_no_close_late(
    virtual_clock: CheckedLoop,
    timeout: float,  # noqa: ASYNC109
    batching: Batching,
) -> None:
    """Where every turn of the application's own tasks takes 50 ms, a close is late by what asyncio needs to wake it."""

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
    # The turn in which the time runs out, the one in which the timer is seen, and the one that wakes the task.
    assert now() - begin <= timeout + (3 * 0.05 if timeout else 0.0) + ROUNDING
    assert len(report.undelivered) == 30_000
    check_balance(report.stats)


class SlowClockLoop(VirtualTimeLoop):
    """A loop on which whatever looks at the clock takes a millisecond: time passes while our own code runs."""

    def time(self) -> float:
        """Return the virtual time in seconds, a millisecond later than the last one."""
        self.block(0.001)
        return super().time()


def test_our_own_work_makes_no_close_late() -> None:
    """Where the settling itself takes longer than was kept for it, the rest is settled in one go, in time."""

    async def test() -> None:
        engine = Engine(ScriptedTransport(then=NEVER))
        await engine.track_all(range(30_000))
        begin = now()
        report = await engine.aclose(0.1)
        # What comes after the settling looks at the clock a few times.
        assert now() - begin <= 0.1 + 0.02
        assert len(report.undelivered) == 30_000

    with asyncio.Runner(loop_factory=SlowClockLoop) as runner:
        runner.run(test())
