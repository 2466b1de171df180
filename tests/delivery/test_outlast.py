"""If `RetryPolicy.outlast` is set, events that a spool stores wait until an outage, a halt or a throttling is over."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from retailrocket_async import Abandoned, Batching, Buffer, ConfigurationError, Delivered, RetryPolicy
from retailrocket_async._http.reply import Reply
from tests.support.fakes import NO_CONNECTION, OK, TIMED_OUT, Engine, Request, ScriptedTransport, Step

if TYPE_CHECKING:
    from tests.support.virtual_time import CheckedLoop

PATIENT = RetryPolicy(max_attempts=3, max_elapsed=60.0, max_halt=5.0, outlast=True)
ONE_EACH = Batching(max_events=1, linger=0.0, max_in_flight=8)
HOURS = 7200.0

TROUBLES = {
    "refused": NO_CONNECTION,
    "503": Step(reply=Reply(status=503)),
    "no answer": TIMED_OUT,
    "429": Step(reply=Reply(status=429)),
    "wrong key": Step(reply=Reply(status=401)),
    "forbidden shop": Step(reply=Reply(status=403)),
    "wrong address": Step(reply=Reply(status=404)),
}


@pytest.mark.endurance
@pytest.mark.parametrize("trouble", TROUBLES)
async def test_hours_of_trouble_cost_no_event(virtual_clock: CheckedLoop, trouble: str) -> None:
    """If every request fails for hours, no event is abandoned, whatever the limits of attempts, time and halts are."""

    def then(request: Request) -> Step:
        return TROUBLES[trouble] if request.at < HOURS else OK

    engine = Engine(ScriptedTransport(then=then), batching=ONE_EACH, buffer=Buffer(max_events=100), retry=PATIENT)
    receipts = await engine.track_all(range(40))
    await asyncio.sleep(HOURS - 1.0)
    assert not any(receipt.done() for receipt in receipts)
    await asyncio.sleep(120.0)
    assert all(isinstance(receipt.outcome, Delivered) for receipt in receipts)
    await engine.aclose(0)


async def test_what_fails_while_others_succeed_is_given_up(virtual_clock: CheckedLoop) -> None:
    """If a batch fails again and again while others are delivered, it is abandoned by the policy's limits."""

    def then(request: Request) -> Step | int:
        return 500 if 7 in request.numbers else 200

    engine = Engine(ScriptedTransport(then=then), batching=ONE_EACH, retry=PATIENT)
    poison = (await engine.track_all([7]))[0]
    number = 100
    while not poison.done():
        await engine.track_all([number := number + 1])
        await asyncio.sleep(0.5)
        assert number < 1000
    assert isinstance(poison.outcome, Abandoned)
    assert poison.outcome.reason == "retries_exhausted"
    assert poison.outcome.maybe_recorded
    await engine.aclose(0)


async def test_a_close_ends_it(virtual_clock: CheckedLoop) -> None:
    """If a client closes with a deadline, the close ends these waits, too, and returns in time."""
    engine = Engine(ScriptedTransport(then=Step(reply=Reply(status=503))), batching=ONE_EACH, retry=PATIENT)
    receipts = await engine.track_all(range(20))
    await asyncio.sleep(100.0)
    began = asyncio.get_running_loop().time()
    await engine.aclose(2.0)

    assert asyncio.get_running_loop().time() - began <= 2.01
    assert all(receipt.done() for receipt in receipts)


def test_outlast_is_a_bool() -> None:
    """If `outlast` is neither True nor False, the policy is refused at construction."""
    with pytest.raises(ConfigurationError, match="outlast"):
        RetryPolicy(outlast=1)  # type: ignore[arg-type]
