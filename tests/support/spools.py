"""Spools for tests: clients with a spool, files that fail on demand, and what another process sees of a spool."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import orjson

from retailrocket_async import AsyncTrackingClient, Batching, RetryPolicy, SpoolError, SqliteSpool
from retailrocket_async._spool.directory import DATABASE
from retailrocket_async._spool.file import Settlement, SpoolFile
from retailrocket_async._spool.id_ranges import ranges
from retailrocket_async._spool.writer import SpoolWriter
from retailrocket_async._spool.writer_thread import WriterThread
from tests.support.fakes import CODEC, event
from tests.support.internals import engine_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    import pytest

    from retailrocket_async.emulator import RunningEmulator

KEY, SHOP = "dev-api-key", "dev-partner"
QUICK = RetryPolicy(initial_backoff=0.02, max_backoff=0.05)
NOWHERE = "http://127.0.0.1:9/"

DELIVERED = '["Delivered",{"status":200},""]'
"""The text of an outcome."""

LEASE_TIMEOUT = 1.5
"""Seconds after which the clients of `impatient` take the lease from a process that is stopped."""


# --- clients --------------------------------------------------------------------------------------------------------


def client_of(
    path: Path, url: str = NOWHERE, *, key: str = KEY, spool: dict[str, Any] | None = None, **options: Any
) -> AsyncTrackingClient:
    """Return a client with a spool in the folder ``spool`` of `path`; `spool` holds the settings of the spool."""
    options = {"retry": QUICK, "rate_limit": None, "batching": Batching(linger=0.01), **options}
    return AsyncTrackingClient(key, SHOP, base_url=url, spool=SqliteSpool(path / "spool", **(spool or {})), **options)


def impatient(path: Path, url: str, **options: Any) -> AsyncTrackingClient:
    """Return a client that takes the lease from a process that was stopped for `LEASE_TIMEOUT`."""
    spool = spool_with(path, lambda place, shop: SpoolFile(place, shop=shop, lease_timeout=LEASE_TIMEOUT, patience=1.0))
    return AsyncTrackingClient(
        KEY, SHOP, base_url=url, spool=spool(full_timeout=1.0), retry=QUICK, rate_limit=None, **options
    )


def spool_with(path: Path, make: Callable[[Path, str | None], SpoolFile]) -> Callable[..., SqliteSpool]:
    """Return what makes a spool of given settings whose file `make` makes, of its directory and its shop."""

    class CustomSpool(SqliteSpool):
        def file(self, shop: str | None = None) -> SpoolFile:
            return make(self.path, shop)

    return lambda **settings: CustomSpool(path / "spool", **settings)


async def leave_behind(path: Path, numbers: range, **options: Any) -> None:
    """Leave events in a spool, as a process does that closes while the API is down."""
    client = client_of(path, **options)
    await client.track_many(event(number) for number in numbers)
    await client.aclose(0)


def crash_while_sending(path: Path, url: str) -> None:
    """Track events, wait until some of them are in flight to an API that does not answer, and die."""

    async def main() -> None:
        client = client_of(path, url)
        await client.track_many(event(number) for number in range(1, 7))
        await until(lambda: client.stats().requests)
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(main())


async def crashed(path: Path, emulator: RunningEmulator) -> None:
    """Have another process die with events in flight."""
    emulator.fail_with("stall", times=1, seconds=60)
    process = multiprocessing.get_context("spawn").Process(target=crash_while_sending, args=(path, emulator.url))
    process.start()
    await asyncio.to_thread(process.join)
    assert process.exitcode == -signal.SIGKILL
    emulator.reset()


class NeverLimiter:
    """A limiter that grants no permit."""

    async def acquire(self) -> None:
        """Wait without end."""
        await asyncio.get_running_loop().create_future()

    def pause_until(self, deadline: float) -> None:
        """Do nothing."""

    def throttled(self, sent_at: float) -> None:
        """Do nothing."""


# --- what is seen of them -------------------------------------------------------------------------------------------


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - nothing notifies of changes in a file
            await asyncio.sleep(0.01)


def waiting(path: Path) -> list[int]:
    """Return the numbers of the events that wait in a spool, as another process sees them."""
    return [orjson.loads(each.envelope)["view"]["productId"] for each in SqliteSpool(path / "spool").events()]


def numbers(emulator: RunningEmulator) -> list[int]:
    """Return the numbers of the events that were recorded, in order."""
    return [record.fields["productId"] for record in emulator.events()]


# --- private attributes -----------------------------------------------------------------------------------------------


def may_send(client: AsyncTrackingClient) -> bool:
    """Whether no other process can hold the lease of a client's spool, as far as the client knows."""
    return bool(engine_of(client)._may_send())


async def spool_thread_ended(client: AsyncTrackingClient) -> None:
    """Wait until the thread of a client's spool has ended, which may go on writing after a close."""
    writer = engine_of(client).writer
    if writer is not None:
        await asyncio.to_thread(writer._thread.join)


@contextmanager
def defective_spool_threads(patch: pytest.MonkeyPatch) -> Generator[None]:
    """End the threads of all spools by a `ZeroDivisionError`, as a defect in their loop would."""
    with patch.context() as patched:
        patched.setattr(WriterThread, "_step", lambda _: 1 // 0)
        yield


# --- files ----------------------------------------------------------------------------------------------------------


class FailingFile(SpoolFile):
    """A file whose transactions fail while `fails` is set.

    Attributes:
        fails: set while they fail.
        error: the error that they raise.
    """

    def __init__(self, directory: Path, shop: str | None = None, *, error: BaseException | None = None) -> None:
        super().__init__(directory, shop=shop)
        self.fails = threading.Event()
        self.error = error or SpoolError("the spool cannot be used: disk I/O error")

    def transaction(self) -> Any:
        """Fail, or begin a transaction."""
        if self.fails.is_set():
            # A new one each time: an error keeps the frames of every time it is raised.
            raise type(self.error)(*self.error.args)
        return super().transaction()


def failing_spool(path: Path, file: SpoolFile, **settings: Any) -> SqliteSpool:
    """Return a spool with a given file, made for `SHOP`."""
    return spool_with(path, lambda _, shop: file)(**settings)


def writer_of(file: SpoolFile, listener: Any, *, clock: Callable[[], float] | None = None) -> SpoolWriter:
    """Return a writer for a file, in the running loop; `listener` need not have all methods of one."""
    loop = asyncio.get_running_loop()
    return SpoolWriter(
        file,
        listener,
        loop=loop,
        clock=clock or loop.time,
        overflow="wait",
        max_bytes=1 << 30,
        min_free=1 << 20,
        patience=5.0,
        flushes=False,
        overflowed=lambda name: name,
    )


def numbered(count: int, first: int = 1) -> list[bytes]:
    """Return the JSON of events with the numbers from `first` on."""
    return [CODEC.encode(event(number)) for number in range(first, first + count)]


def add(file: SpoolFile, envelopes: Sequence[bytes], at: float = 1.0) -> int:
    """Add events in a transaction of their own; return the id of the last."""
    with file.transaction():
        return file.events.append(envelopes, at)


def settle(file: SpoolFile, ids: Sequence[int], dead: str | None = None, at: float = 1.0) -> None:
    """Settle events as delivered, or as dead letters for the reason `dead`, in a transaction of their own."""
    with file.transaction():
        file.settle(Settlement(ranges(ids), DELIVERED, dead), at)


def other_process(path: Path, **settings: Any) -> SpoolFile:
    """Return the open file of a spool in `path`, as another process of the same shop has it."""
    file = SpoolFile(path / "spool", **{"shop": SHOP, **settings})
    file.open()
    return file


def database_with(path: Path, count: int) -> Path:
    """Make a spool of `count` events, all of them in the database file; return that file."""
    file = other_process(path)
    add(file, numbered(count), 1e10)
    file.close()
    return path / "spool" / DATABASE


def flip(path: Path, at: int, mask: int = 0x10) -> None:
    """Flip bits of the byte at a position of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        [byte] = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ mask]))
