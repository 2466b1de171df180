"""A spool on a disk that is really full, and with processes that are really killed."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from retailrocket_async import AsyncTrackingClient, RetailRocketError, SpoolFullError, SqliteSpool
from retailrocket_async.emulator import Settings, running_emulator
from tests.support.fakes import check_balance, event
from tests.support.spools import QUICK, until

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """Mount a file system of 40 MiB; skip the test if that is not possible, because only root can mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", disk], check=False).returncode
    ):
        pytest.skip("cannot mount a small file system here")
    yield disk
    subprocess.run(["umount", disk], check=True)


async def test_a_full_disk(small_disk: Path) -> None:
    """If the disk fills up, `track` raises, but the file is intact; once there is room, all events are delivered."""
    async with running_emulator(Settings(limit=None)) as emulator:
        emulator.fail_with("status", status=503, times=30)
        spool = SqliteSpool(small_disk / "spool", min_free=16 << 20, full_timeout=0.2)
        client = AsyncTrackingClient("dev-api-key", "dev-partner", base_url=emulator.url, spool=spool, retry=QUICK)
        async with client:
            await client.track_many(event(number) for number in range(1, 20_001))
            fill(small_disk)
            with pytest.raises(SpoolFullError, match="disk"):
                await client.track(event(1))
            # The server accepts these requests, but their outcomes cannot be written while the disk is full.
            await until(lambda: client.stats().requests_by_status.get(200, 0) >= 8)
            (small_disk / "ballast").unlink()
            receipt = await client.track(event(1))
            await client.flush(60)
            stats = client.stats()
            check_balance(stats)
            assert receipt.done()
            assert stats.delivered == stats.tracked == 20_001
        assert len(emulator.events()) == 20_001
    with closing(sqlite3.connect(small_disk / "spool" / "events.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_disk_that_is_full_from_the_start(small_disk: Path) -> None:
    """If the disk has no room for an empty spool, the client raises; once there is room, events are accepted."""
    fill(small_disk)
    spool = SqliteSpool(small_disk / "spool", min_free=16 << 20)
    client = AsyncTrackingClient("dev-api-key", "dev-partner", base_url="http://127.0.0.1:9/", spool=spool)
    with pytest.raises(RetailRocketError, match=r"room|cannot be used"):
        await client.__aenter__()
    (small_disk / "ballast").unlink()
    async with asyncio.timeout(10):
        while True:
            try:
                await client.track(event(1))
                break
            except RetailRocketError:
                await asyncio.sleep(0.05)
    await client.aclose(0)


def fill(disk: Path) -> None:
    """Fill a disk to its last byte."""
    with (disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(bytes(4096))


@pytest.mark.endurance
def test_torture() -> None:
    """If processes that share a spool are killed at random, events stay in order, and no accepted one is lost."""
    from acceptance.fleet.torture import torture

    found = torture(5.0, every=0.4)

    assert (found.lost, found.overlaps, found.disordered) == (0, 0, 0)
    assert found.accepted > 0
    assert found.repeated <= found.kills * 500 * 8
    assert found.whole
