"""Scenarios in which the server refuses the key, the permission or the address, for a while or until the end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from acceptance.faults.scenario import scenario
from acceptance.support.fault import KEY, Fault
from retailrocket_async import AuthenticationError, Batching, Rejected, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from acceptance.faults.testbed import Testbed

_NEW_KEY = "the-new-key"
_IN_FLIGHT = Batching().max_in_flight
"""Requests that may have left before the first refusal arrived."""


@scenario("redirect-for-a-while", faults=(Fault(status=302),))
@scenario("404-for-a-while", faults=(Fault(status=404),))
@scenario("403-for-a-while", faults=(Fault(status=403),))
@scenario("wrong-key-for-a-while", key=_NEW_KEY)
async def repaired(testbed: Testbed, *, faults: tuple[Fault, ...] = (), **conditions: Any) -> None:
    """If a key, permission or address is repaired in time, no event is lost, and few requests are made before that."""
    states: list[str] = []
    client = testbed.open(on_state_change=lambda change: states.append(change.state))
    await testbed.stream(1.0, 500)
    begun_at = testbed.now()
    await testbed.behave(*faults, **conditions)
    await testbed.stream(2.5, 500)
    testbed.expect(client.stats().state == "halted", f"sending is {client.stats().state}")
    await testbed.repair(key=KEY)
    await testbed.stream(1.0, 500)
    await testbed.close()
    stats = client.stats()
    testbed.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")
    meanwhile = len(await testbed.arrivals(begun_at, testbed.repaired_at))
    # While sending is halted, only probes are sent. The probe after 1 s is refused; the next one, 2 s later, succeeds.
    testbed.expect(meanwhile <= _IN_FLIGHT + 1, f"{meanwhile} requests while nothing could be delivered")
    testbed.expect(states == ["halted", "sending"], f"the states were {states}")


@scenario("403-repaired-late")
async def repaired_late(testbed: Testbed) -> None:
    """If the repair comes before `max_halt` has passed, all events are delivered, also those that waited longest."""
    client = testbed.open(retry=RetryPolicy(max_halt=6.0))
    await testbed.behave(Fault(status=403))
    await testbed.stream(1.0, 500)
    # While sending is halted, probes are sent after 1, 3 and 7 s. The repair comes between the last two.
    await testbed.stream(3.0, 100)
    await testbed.repair()
    await testbed.stream(3.0, 100)
    await testbed.close()
    stats = client.stats()
    testbed.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")


@scenario("403-young-events")
async def young(testbed: Testbed) -> None:
    """Each event is rejected only when it itself has waited for `max_halt`, not with the older events of its batch."""
    await testbed.behave(Fault(status=403))
    testbed.open(retry=RetryPolicy(max_halt=2.0))
    await testbed.stream(2.6, 100)
    # The oldest events have been rejected by now; the events of the last second have most of their time left.
    early = sum(receipt.done() for receipt in list(testbed.receipts.values())[160:])
    testbed.expect(early == 0, f"{early} of 100 events rejected before their time")
    await testbed.close()


@scenario("wrong-key-for-good", status=401)
@scenario("403-for-good", status=403)
async def never_repaired(testbed: Testbed, status: int) -> None:
    """If events have waited for `max_halt`, they are rejected with the server's status."""
    await testbed.behave(Fault(status=status))
    client = testbed.open(retry=RetryPolicy(max_halt=2.0))
    await testbed.stream(1.0, 500)
    # The events are rejected after a probe, which may be sent up to two seconds after `max_halt` has passed.
    await client.flush(6.0)
    await testbed.close()
    statuses = {outcome.status for outcome in testbed.outcomes() if isinstance(outcome, Rejected)}
    testbed.expect(client.stats().rejected == client.stats().tracked, f"{client.stats().rejected} rejected")
    testbed.expect(statuses == {status}, f"rejected with {statuses}")


@scenario("close-while-halted")
async def closed(testbed: Testbed) -> None:
    """If a client closes while sending is halted, it sends one last request, does not wait, and reports the error."""
    await testbed.behave(key=_NEW_KEY)
    testbed.open()
    await testbed.stream(1.0, 500)
    before = len(await testbed.arrivals())
    report = await testbed.close()
    testbed.expect(report.elapsed < 1.0, f"the close took {report.elapsed:.1f} s")
    testbed.expect(isinstance(report.error, AuthenticationError), f"the close reports {report.error!r}")
    probes = len(await testbed.arrivals()) - before
    testbed.expect(probes <= 1, f"{probes} probes at the close")
    testbed.expect(report.stats.rejected == report.stats.tracked, f"{report.stats.rejected} rejected")


class _Vault:
    """Stores the shop's API key, and counts how often it is read."""

    def __init__(self) -> None:
        self.key = KEY
        self.readings = 0

    def read(self) -> str:
        self.readings += 1
        return self.key

    async def fetch(self) -> str:
        await asyncio.sleep(0.01)
        return self.read()


@scenario("key-rotation", of=lambda vault: vault.read, late=0.0)
@scenario("key-rotation-async", of=lambda vault: vault.fetch, late=0.0)
@scenario("key-rotation-late", of=lambda vault: vault.read, late=2.0)
async def rotation(testbed: Testbed, of: Callable[[_Vault], Callable[[], str | Awaitable[str]]], late: float) -> None:
    """If the key changes during a run, no event is lost; the client gets the new key from the caller's function."""
    vault = _Vault()
    client = testbed.open(api_key=of(vault))
    await testbed.stream(1.0, 1000)
    await testbed.behave(key=_NEW_KEY)
    await testbed.stream(late, 1000)
    vault.key = _NEW_KEY
    testbed.note_repair()
    await testbed.stream(1.0, 1000)
    await testbed.close()
    stats = client.stats()
    testbed.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")
    refused = sum(arrival.answer == "401" for arrival in await testbed.arrivals())
    testbed.expect(refused <= _IN_FLIGHT + 2, f"{refused} requests with the old key")
    testbed.expect(vault.readings <= 2 + _IN_FLIGHT, f"the key was read {vault.readings} times")


@scenario("key-function-fails")
async def no_key(testbed: Testbed) -> None:
    """If the function that returns the key fails, no event is lost, and the function is retried, but not too often."""
    calls = 0

    def read() -> str:
        nonlocal calls
        calls += 1
        if testbed.repaired_at is None:
            raise OSError("the vault is not available")
        return KEY

    client = testbed.open(api_key=read)
    await testbed.stream(3.0, 500)
    testbed.note_repair()
    await testbed.stream(2.0, 500)
    await testbed.close()
    stats = client.stats()
    testbed.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")
    testbed.expect(calls <= 20, f"the key was read {calls} times")
