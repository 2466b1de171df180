"""Scenarios: a client that is not let in, for a while or for good."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from _fault import KEY, Fault
from _scenario import scenario

from retailrocket_async import AuthenticationError, Batching, Rejected, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from _stage import Stage

_NEW_KEY = "the-new-key"
_ON_THEIR_WAY = Batching().max_in_flight
"""Requests that may have left before the first refusal arrived: `Batching.max_in_flight`."""


@scenario("redirect-for-a-while", faults=(Fault(status=302),))
@scenario("404-for-a-while", faults=(Fault(status=404),))
@scenario("403-for-a-while", faults=(Fault(status=403),))
@scenario("wrong-key-for-a-while", key=_NEW_KEY)
async def mended(stage: Stage, *, faults: tuple[Fault, ...] = (), **conditions: Any) -> None:
    """A key, a permission or an address that is mended in time costs no event, and few requests meanwhile."""
    states: list[str] = []
    client = stage.open(on_state_change=lambda change: states.append(change.state))
    await stage.stream(1.0, 500)
    begun_at = stage.now()
    await stage.behave(*faults, **conditions)
    await stage.stream(2.5, 500)
    stage.expect(client.stats().state == "halted", f"sending is {client.stats().state}")
    await stage.mend(key=KEY)
    await stage.stream(1.0, 500)
    await stage.close()
    stats = client.stats()
    stage.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")
    meanwhile = len(await stage.arrivals(begun_at, stage.mended_at))
    # A probe after 1 s; the next one, after 2 s more, finds it mended.
    stage.expect(meanwhile <= _ON_THEIR_WAY + 1, f"{meanwhile} requests while nothing could be delivered")
    stage.expect(states == ["halted", "sending"], f"the states were {states}")


@scenario("403-mended-late")
async def mended_late(stage: Stage) -> None:
    """Events wait as long as was asked for: what is mended before that is noticed before they are rejected."""
    client = stage.open(retry=RetryPolicy(max_halt=6.0))
    await stage.behave(Fault(status=403))
    await stage.stream(1.0, 500)
    # Between the probes after 3 s and after 7 s.
    await stage.stream(3.0, 100)
    await stage.mend()
    await stage.stream(3.0, 100)
    await stage.close()
    stats = client.stats()
    stage.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")


@scenario("403-young-events")
async def young(stage: Stage) -> None:
    """Each event waits as long as was asked for, and does not go with an older one of its batch."""
    await stage.behave(Fault(status=403))
    stage.open(retry=RetryPolicy(max_halt=2.0))
    await stage.stream(2.6, 100)
    # The first ones have been rejected by now; those of the last second have most of their time before them.
    early = sum(receipt.done() for receipt in list(stage.receipts.values())[160:])
    stage.expect(early == 0, f"{early} of 100 events rejected before their time")
    await stage.close()


@scenario("wrong-key-for-good", status=401)
@scenario("403-for-good", status=403)
async def never_mended(stage: Stage, status: int) -> None:
    """Events that have waited long enough for a key or a permission are rejected with the server's status."""
    await stage.behave(Fault(status=status))
    client = stage.open(retry=RetryPolicy(max_halt=2.0))
    await stage.stream(1.0, 500)
    # The next probe after that may be two seconds away.
    await client.flush(6.0)
    await stage.close()
    statuses = {outcome.status for outcome in stage.outcomes() if isinstance(outcome, Rejected)}
    stage.expect(client.stats().rejected == client.stats().tracked, f"{client.stats().rejected} rejected")
    stage.expect(statuses == {status}, f"rejected with {statuses}")


@scenario("close-while-halted")
async def closed(stage: Stage) -> None:
    """A close does not wait for a key that may never come: it asks once more and tells what halted it."""
    await stage.behave(key=_NEW_KEY)
    stage.open()
    await stage.stream(1.0, 500)
    before = len(await stage.arrivals())
    report = await stage.close()
    stage.expect(report.elapsed < 1.0, f"the close took {report.elapsed:.1f} s")
    stage.expect(isinstance(report.error, AuthenticationError), f"the close tells {report.error!r}")
    asked = len(await stage.arrivals()) - before
    stage.expect(asked <= 1, f"asked {asked} times at the close")
    stage.expect(report.stats.rejected == report.stats.tracked, f"{report.stats.rejected} rejected")


class _Vault:
    """Where the shop keeps its key."""

    def __init__(self) -> None:
        self.key = KEY
        self.asked = 0

    def read(self) -> str:
        self.asked += 1
        return self.key

    async def fetch(self) -> str:
        await asyncio.sleep(0.01)
        return self.read()


@scenario("key-rotation", of=lambda vault: vault.read, late=0.0)
@scenario("key-rotation-async", of=lambda vault: vault.fetch, late=0.0)
@scenario("key-rotation-late", of=lambda vault: vault.read, late=2.0)
async def rotation(stage: Stage, of: Callable[[_Vault], Callable[[], str | Awaitable[str]]], late: float) -> None:
    """A key that changes in mid-run costs no event; the new one is taken from the callable."""
    vault = _Vault()
    client = stage.open(api_key=of(vault))
    await stage.stream(1.0, 1000)
    await stage.behave(key=_NEW_KEY)
    await stage.stream(late, 1000)
    vault.key = _NEW_KEY
    stage.mended()
    await stage.stream(1.0, 1000)
    await stage.close()
    stats = client.stats()
    stage.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")
    refused = sum(arrival.answer == "401" for arrival in await stage.arrivals())
    stage.expect(refused <= _ON_THEIR_WAY + 2, f"{refused} requests with the old key")
    stage.expect(vault.asked <= 2 + _ON_THEIR_WAY, f"the key was asked for {vault.asked} times")


@scenario("key-function-fails")
async def no_key(stage: Stage) -> None:
    """A function that fails to give the key costs no event; it is asked again until it does, and not too often."""
    asked = 0

    def read() -> str:
        nonlocal asked
        asked += 1
        if stage.mended_at is None:
            raise OSError("the vault is shut")
        return KEY

    client = stage.open(api_key=read)
    await stage.stream(3.0, 500)
    stage.mended()
    await stage.stream(2.0, 500)
    await stage.close()
    stats = client.stats()
    stage.expect(stats.delivered == stats.tracked, f"{stats.tracked - stats.delivered} not delivered")
    stage.expect(asked <= 20, f"asked {asked} times")
