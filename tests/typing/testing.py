"""Uses the testing tools. This file is never run; mypy and pyright check its types in strict mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_type

from retailrocket_async import AsyncTrackingClient, Batching, Delivered, Event, Order, Receipt, RetryPolicy, View
from retailrocket_async.testing import FaultKind, RecordingClient

if TYPE_CHECKING:
    from retailrocket_async.emulator import EmulatorProcess, Fault


async def shop(tracking: AsyncTrackingClient) -> Receipt:
    """The code of a shop that uses the client, and that a test calls."""
    return await tracking.view(session_external_id="s", product_id=1)


async def looked_at(view: View) -> list[RecordingClient]:
    """Call every method of the recording client, and pass some arguments of its constructor."""
    async with RecordingClient() as tracked:
        assert_type(tracked, RecordingClient)
    assert_type(await shop(tracked), Receipt)
    assert_type(await tracked.send(view), Delivered)
    assert_type(tracked.events, list[Event])
    assert_type(tracked.of(View), list[View])
    assert_type(tracked.of(Event, session_external_id="s"), list[Event])
    assert_type(tracked.one(Order), Order)
    assert_type(tracked.one(Order, transaction="1").product_id, int)
    tracked.none(View, product_id=1)
    tracked.clear()
    tracked.fail_with(status=503, times=2)
    tracked.fail_with("connect", times=None, contains="777")
    tracked.fail_with(rejected=Order)
    tracked.fail_with(rejected="newEvent")
    kind: FaultKind = "stall"
    tracked.fail_with(kind)
    tracked.clear_faults()
    return [tracked, RecordingClient("key", "shop", batching=Batching(max_events=2), retry=RetryPolicy(max_attempts=1))]


def wrong(tracked: RecordingClient) -> None:
    """Make mistakes that a type checker must find."""
    tracked.of(int)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    tracked.fail_with("nonsense")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    tracked.fail_with(rejected=Order, times=2)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def steered(emulator: EmulatorProcess) -> Fault:
    """Call the methods of the fixture `retailrocket_emulator`."""
    assert_type(emulator.api_key, str)
    assert_type(emulator.partner_id, str)
    emulator.restore()
    return emulator.fail_with("status", status=503, times=2)
