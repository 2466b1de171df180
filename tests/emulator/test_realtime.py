"""A client with `Batching.realtime` sends single events and batches to the emulator over real HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retailrocket_async import AsyncTrackingClient, Batching, Delivered, RateLimit, SqliteSpool
from retailrocket_async.emulator import Settings, running_emulator
from tests.support.fakes import event
from tests.support.spools import KEY, SHOP, client_of, leave_behind, numbers, until

if TYPE_CHECKING:
    from pathlib import Path

REALTIME = Batching(realtime=True)


async def test_single_events_are_accepted_by_their_endpoints() -> None:
    """If permits are free, each event is accepted by its own endpoint, and each visitor's events in order."""
    async with running_emulator(Settings(limit=None)) as emulator:
        async with AsyncTrackingClient(KEY, SHOP, base_url=emulator.url, batching=REALTIME) as client:
            await (await client.view(session_external_id="ann", product_id=1))
            await (await client.add_to_basket(session_external_id="ann", product_id=2))
            outcome = await (await client.search(session_external_id="ann", search_phrase="чайник"))
        requests = emulator.requests()
        names = [each.name for each in emulator.events(session="ann")]

    assert isinstance(outcome, Delivered)
    assert ["/1.0/view", "/1.0/addToBasket", "/1.0/search"] == [each.path for each in requests]
    assert ["view", "addToBasket", "search"] == names


async def test_a_burst_is_accepted_in_batches() -> None:
    """If far more events are tracked than requests are allowed, all events are accepted in batches within the limit."""
    limit = RateLimit(requests=5, jitter=0.0)
    async with running_emulator(Settings(limit=None)) as emulator:
        async with AsyncTrackingClient(KEY, SHOP, base_url=emulator.url, batching=REALTIME, rate_limit=limit) as client:
            await client.track_many(event(number) for number in range(2000))
            await client.flush()
            stats = client.stats()
        accepted = sorted(numbers(emulator))

    assert (list(range(2000)), True) == (accepted, stats.requests < 20)


async def test_a_spool_sends_its_backlog_in_batches(tmp_path: Path) -> None:
    """If many events wait in a spool, the next client delivers them in batches, and then sends single events."""
    await leave_behind(tmp_path, range(1, 2001), batching=REALTIME)
    async with running_emulator(Settings(limit=None)) as emulator:
        async with client_of(tmp_path, emulator.url, batching=REALTIME) as client:
            await until(lambda: SqliteSpool(tmp_path / "spool").stat().events == 0)
            backlog = client.stats().requests
            outcome = await (await client.track(event(2001)))
        last = emulator.requests()[-1]

    assert isinstance(outcome, Delivered)
    assert sorted(numbers(emulator)) == list(range(1, 2002))
    assert ("/1.0/view", True) == (last.path, backlog < 1000)
