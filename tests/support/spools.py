"""Helpers for tests of the spool: clients with a spool, files that fail on demand, and a spool in another process."""

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
"""The JSON text of the outcome "delivered" as the spool stores outcomes."""

LEASE_TIMEOUT = 1.5
"""The lease time-out of the clients of `impatient`, in seconds."""


# --- clients --------------------------------------------------------------------------------------------------------


def client_of(
    path: Path, url: str = NOWHERE, *, key: str = KEY, spool: dict[str, Any] | None = None, **options: Any
) -> AsyncTrackingClient:
    """Return a client with a spool in the folder ``spool`` of `path`; the argument `spool` has the spool's settings."""
    options = {"retry": QUICK, "rate_limit": None, "batching": Batching(linger=0.01), **options}
    return AsyncTrackingClient(key, SHOP, base_url=url, spool=SqliteSpool(path / "spool", **(spool or {})), **options)


def impatient(path: Path, url: str, **options: Any) -> AsyncTrackingClient:
    """Return a client that soon takes over the lease of a process that was stopped.

    It waits for half of `LEASE_TIMEOUT`, and for the time-out of a request (the option `timeout`).
    """
    spool = spool_with(path, lambda place, shop: SpoolFile(place, shop=shop, lease_timeout=LEASE_TIMEOUT, patience=1.0))
    return AsyncTrackingClient(
        KEY, SHOP, base_url=url, spool=spool(full_timeout=1.0), retry=QUICK, rate_limit=None, **options
    )


def spool_with(path: Path, make: Callable[[Path, str | None], SpoolFile]) -> Callable[..., SqliteSpool]:
    """Return a function that takes the settings of a spool and returns the spool.

    The spool gets its file from `make`, which takes the directory and the shop.
    """

    class CustomSpool(SqliteSpool):
        def file(self, shop: str | None = None) -> SpoolFile:
            return make(self.path, shop)

    return lambda **settings: CustomSpool(path / "spool", **settings)


async def leave_behind(path: Path, numbers: range, **options: Any) -> None:
    """Track events and close the client at once, so that the events remain in the spool, as if the API were down."""
    client = client_of(path, **options)
    await client.track_many(event(number) for number in numbers)
    await client.aclose(0)


def crash_while_sending(path: Path, url: str) -> None:
    """Track events, wait until a request is in flight to an API that does not answer, and kill this process."""

    async def main() -> None:
        client = client_of(path, url)
        await client.track_many(event(number) for number in range(1, 7))
        await until(lambda: client.stats().requests)
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(main())


async def crashed(path: Path, emulator: RunningEmulator) -> None:
    """Start another process that is killed while its events are in flight (see `crash_while_sending`)."""
    emulator.fail_with("stall", times=1, seconds=60)
    process = multiprocessing.get_context("spawn").Process(target=crash_while_sending, args=(path, emulator.url))
    process.start()
    await asyncio.to_thread(process.join)
    assert process.exitcode == -signal.SIGKILL
    emulator.reset()


class NeverLimiter:
    """A limiter that never grants a permit."""

    async def acquire(self) -> None:
        """Wait for ever."""
        await asyncio.get_running_loop().create_future()

    def pause_until(self, deadline: float) -> None:
        """Do nothing."""

    def throttled(self, sent_at: float) -> None:
        """Do nothing."""


# --- events in spools and in emulators ------------------------------------------------------------------------------


async def until(condition: Callable[[], object]) -> None:
    """Wait until `condition` returns a true value, for at most 30 seconds."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - nothing notifies of changes in a file
            await asyncio.sleep(0.01)


def waiting(path: Path) -> list[int]:
    """Return the numbers of the events that wait in a spool, as another process sees them."""
    return [orjson.loads(each.envelope)["view"]["productId"] for each in SqliteSpool(path / "spool").events()]


def numbers(emulator: RunningEmulator) -> list[int]:
    """Return the numbers of the events that an emulator has recorded, in order."""
    return [record.fields["productId"] for record in emulator.events()]


# --- private attributes -----------------------------------------------------------------------------------------------


def may_send(client: AsyncTrackingClient) -> bool:
    """Return whether a client may send, because it knows that no other process can hold the lease of its spool."""
    return bool(engine_of(client)._may_send())


async def spool_thread_ended(client: AsyncTrackingClient) -> None:
    """Wait until the thread of a client's spool has ended. The thread may still write after the client is closed."""
    writer = engine_of(client).writer
    if writer is not None:
        await asyncio.to_thread(writer._thread.join)


@contextmanager
def defective_spool_threads(patch: pytest.MonkeyPatch) -> Generator[None]:
    """Make the threads of all spools end with a `ZeroDivisionError`, as if their loop had a defect."""
    with patch.context() as patched:
        patched.setattr(WriterThread, "_step", lambda _: 1 // 0)
        yield


# --- files ----------------------------------------------------------------------------------------------------------


class FailingFile(SpoolFile):
    """A spool's file whose transactions fail while `fails` is set.

    Attributes:
        fails: the event that makes transactions fail while it is set.
        error: the error that failing transactions raise; each transaction raises a copy.
    """

    def __init__(self, directory: Path, shop: str | None = None, *, error: BaseException | None = None) -> None:
        super().__init__(directory, shop=shop)
        self.fails = threading.Event()
        self.error = error or SpoolError("the spool cannot be used: disk I/O error")

    def transaction(self) -> Any:
        """Raise the error if `fails` is set; otherwise begin a transaction."""
        if self.fails.is_set():
            # Each call raises a new error, because Python adds frames to the traceback of an error at each raise.
            raise type(self.error)(*self.error.args)
        return super().transaction()


def failing_spool(path: Path, file: SpoolFile, **settings: Any) -> SqliteSpool:
    """Return a spool that uses `file`, which must be a file of the shop `SHOP`."""
    return spool_with(path, lambda _, shop: file)(**settings)


def writer_of(file: SpoolFile, listener: Any, *, clock: Callable[[], float] | None = None) -> SpoolWriter:
    """Return a writer of a file in the running loop; `listener` needs only the methods that are called in the test."""
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
    """Return the JSON of `count` events with the numbers `first`, `first` + 1, and so on."""
    return [CODEC.encode(event(number)) for number in range(first, first + count)]


def add(file: SpoolFile, envelopes: Sequence[bytes], at: float = 1.0) -> int:
    """Add events in one transaction; return the id of the last event."""
    with file.transaction():
        return file.events.append(envelopes, at)


def settle(file: SpoolFile, ids: Sequence[int], dead: str | None = None, at: float = 1.0) -> None:
    """Settle events in one transaction: as delivered, or as dead letters if `dead` gives a reason."""
    with file.transaction():
        file.settle(Settlement(ranges(ids), DELIVERED, dead), at)


def other_process(path: Path, **settings: Any) -> SpoolFile:
    """Open the file of the spool in `path` a second time, as another process of the same shop would do."""
    file = SpoolFile(path / "spool", **{"shop": SHOP, **settings})
    file.open()
    return file


def database_with(path: Path, count: int) -> Path:
    """Make a spool whose database file contains `count` events; return the path of the database file."""
    file = other_process(path)
    add(file, numbered(count), 1e10)
    file.close()
    return path / "spool" / DATABASE


def flip(path: Path, at: int, mask: int = 0x10) -> None:
    """Flip the bits in `mask` of the byte at position `at` of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        [byte] = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ mask]))
