"""When another process takes over a spool, no two requests with events of one visitor are in flight at once."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async import AsyncTrackingClient, Batching, Delivered, SpoolError
from retailrocket_async._spool.file import SpoolFile
from retailrocket_async.emulator import Settings, running_emulator
from tests.support.fakes import event
from tests.support.internals import engine_of
from tests.support.spools import KEY, LEASE_TIMEOUT, QUICK, SHOP, impatient, may_send, numbers, spool_with, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator
    from pathlib import Path

    from retailrocket_async.emulator import RunningEmulator

_ANSWER = 4.0
"""Seconds that the emulator takes for a batch: longer than the lease's time-out without a request."""

_TIMEOUT = 8.0
"""The time-out of a request in seconds."""


@pytest.fixture
async def slow() -> AsyncGenerator[RunningEmulator]:
    """Run an emulator that answers a batch after `_ANSWER` seconds."""
    async with running_emulator(Settings(limit=None, batch_latency=_ANSWER)) as running:
        yield running


def sender(path: Path, url: str, *, closes: bool) -> None:
    """Track an event; close the client when SIGTERM arrives if `closes` is set, otherwise run until killed."""

    async def main() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        client = impatient(path, url, timeout=_TIMEOUT)
        await client.track(event(1, "anna"))
        await stop.wait()
        if closes:
            await client.aclose(0)

    asyncio.run(main())


@contextmanager
def sending(path: Path, url: str, *, closes: bool = False) -> Generator[Any]:
    """Run `sender` in a process of its own, and kill the process at the end."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=sender, args=(path, url), kwargs={"closes": closes})
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("how", ["killed", "stopped", "closed"])
async def test_no_overlap_across_a_takeover(slow: RunningEmulator, tmp_path: Path, how: str) -> None:
    """If the sending process ends or stops during a request, its successor's requests do not overlap this request."""
    with sending(tmp_path, slow.url, closes=how == "closed") as process:
        await until(slow.events)
        async with impatient(tmp_path, slow.url, timeout=_TIMEOUT) as client:
            assert process.pid is not None
            signals = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP, "closed": signal.SIGTERM}
            os.kill(process.pid, signals[how])
            receipt = await tracked(client, process.pid)
            async with asyncio.timeout(60):
                assert isinstance(await receipt, Delivered)
            os.kill(process.pid, signal.SIGCONT)
    sent = numbers(slow)
    assert (1, 2) == (sent[0], sent[-1])
    assert slow.stats()["overlaps"] == 0
    assert slow.stats()["backward_steps"] == 0


async def tracked(client: AsyncTrackingClient, stopped: int) -> Any:
    """Track an event; let the process `stopped` run a little if it was stopped while it had the spool's lock."""
    while True:
        try:
            return await client.track(event(2, "anna"))
        except SpoolError:
            os.kill(stopped, signal.SIGCONT)
            await asyncio.sleep(0.05)
            os.kill(stopped, signal.SIGSTOP)


async def test_a_process_that_is_stopped_between_permit_and_request(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If the lease runs out after a request got its permit, and before the request is written, it is not written."""
    asked, answered = asyncio.Event(), asyncio.Event()

    async def key() -> str:
        asked.set()
        await answered.wait()
        return KEY

    spool = spool_with(tmp_path, lambda place, shop: SpoolFile(place, shop=shop, lease_timeout=LEASE_TIMEOUT))()
    async with AsyncTrackingClient(
        key, SHOP, base_url=emulator.url, spool=spool, rate_limit=None, retry=QUICK, batching=Batching(linger=0)
    ) as client:
        receipt = await client.track(event(1))
        await asked.wait()
        other = SpoolFile(tmp_path / "spool")
        other.open()
        with other.transaction():
            # The spool's thread waits for the lock of this transaction, so it cannot renew the lease.
            engine_of(client).writer.poll_log()
            await until(lambda: not may_send(client))
            answered.set()
            await until(lambda: client.stats().requests_by_status or emulator.events())
            assert emulator.events() == []
        assert isinstance(await receipt, Delivered)
        other.close()


class WatchedFile(SpoolFile):
    """A spool's file that records, for each heartbeat, whether it happened in a transaction.

    Attributes:
        renewals: True for each heartbeat in a transaction, False for each other one.
    """

    def __init__(self, directory: Path, shop: str | None) -> None:
        super().__init__(directory, shop=shop, lease_timeout=LEASE_TIMEOUT)
        self.renewals: list[bool] = []
        renew = self.lease.renew

        def watched() -> None:
            self.renewals.append(self._database.connection.in_transaction)
            renew()

        self.lease.renew = watched  # type: ignore[method-assign]


async def test_a_late_heartbeat_is_made_in_a_transaction(emulator: RunningEmulator, tmp_path: Path) -> None:
    """If a heartbeat is so late that another process may take the lease, it excludes that process by a transaction."""
    files: list[WatchedFile] = []

    def make(place: Path, shop: str | None) -> SpoolFile:
        files.append(WatchedFile(place, shop))
        return files[-1]

    async with AsyncTrackingClient(
        KEY, SHOP, base_url=emulator.url, spool=spool_with(tmp_path, make)(), rate_limit=None, retry=QUICK
    ) as client:
        await (await client.track(event(1)))
        other = SpoolFile(tmp_path / "spool")
        other.open()
        with other.transaction():
            engine_of(client).writer.poll_log()
            await until(lambda: not may_send(client))
            files[0].renewals.clear()
        await until(lambda: may_send(client))
        other.close()
    assert files[0].renewals[0]


async def test_a_direct_send_in_the_sending_process(tmp_path: Path) -> None:
    """In the process that sends the spool's events, a direct send overlaps no request with events of its visitor."""
    settings = Settings(limit=None, latency=0.3, batch_latency=0.3)
    async with running_emulator(settings) as api, impatient(tmp_path, api.url) as client:
        await client.track(event(1, "anna"))
        await until(api.events)
        sending = asyncio.create_task(client.send(event(2, "anna")))
        await asyncio.sleep(0)
        receipt = await client.track(event(3, "anna"))
        await sending
        await receipt
        assert numbers(api) == [1, 2, 3]
        assert api.stats()["overlaps"] == 0
