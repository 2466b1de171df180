"""A `WorkerThread` makes calls one after the other in a thread of its own; if no thread can start, the loop makes them.

The thread ends when its owner is gone, and the interpreter's exit waits for calls that are running.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from retailrocket_async import Batching, SpoolError, SqliteSpool, View
from retailrocket_async._runtime.thread_call import call_in_thread
from retailrocket_async._runtime.worker_thread import WorkerThread
from retailrocket_async.testing import RecordingClient
from tests.support.fakes import event

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from retailrocket_async import UndeliveredEvent

ROOT = Path(__file__).parents[2]


async def test_calls_are_made_in_order_in_one_thread() -> None:
    """If calls are made, they run one after the other, in order, in one thread of their own."""
    worker = WorkerThread("worker")
    seen: list[int] = []

    def call(number: int) -> int:
        seen.append(number)
        return threading.get_ident()

    threads = set(await asyncio.gather(*(worker.call(functools.partial(call, number)) for number in range(100))))
    worker.close()

    assert list(range(100)) == seen
    assert 1 == len(threads - {threading.get_ident()}) == len(threads)


@pytest.mark.parametrize("end", ["close", "collect"])
async def test_the_thread_ends_with_its_owner(end: str) -> None:
    """If the worker is closed or garbage-collected, its thread ends after the calls that were made before."""
    worker = WorkerThread("worker")
    go_on, last = threading.Event(), threading.Event()
    thread = await worker.call(threading.current_thread)
    worker.call(go_on.wait)
    worker.call(last.set)
    if end == "close":
        worker.close()
    del worker
    gc.collect()
    go_on.set()
    await asyncio.to_thread(thread.join)

    assert last.is_set()


async def test_a_call_after_the_close_starts_a_thread() -> None:
    """If a call is made after the close, it runs in a new thread."""
    worker = WorkerThread("worker")
    first = await worker.call(threading.current_thread)
    worker.close()
    second = await worker.call(threading.current_thread)
    worker.close()

    assert first is not second


EXIT = """
import asyncio, os, sys, threading, time
from retailrocket_async._runtime.worker_thread import WorkerThread
worker = WorkerThread("worker")
begun = threading.Event()

def slowly():
    begun.set()
    time.sleep(0.3)
    print("written", flush=True)

async def main():
    worker.call(slowly)
    begun.wait()
    if sys.argv[1] == "closed":
        worker.close()
    if sys.argv[1] == "forked" and os.fork() == 0:
        sys.exit()

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["open", "closed", "forked"])
def test_the_exit_waits_for_a_call(how: str) -> None:
    """If a hook runs while the interpreter exits, the exit waits for the hook, except in a forked child."""
    if how == "forked" and not hasattr(os, "fork"):
        pytest.skip("there is no fork here")
    done = subprocess.run(
        # Newer Pythons warn of a fork in a process with threads, but this test needs the fork.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", EXIT, how],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )

    assert (0, "written\n", "") == (done.returncode, done.stdout, done.stderr)


# --- where no thread can be started ---


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the interpreter refuse to start threads, as it does while it shuts down."""

    def start(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        yield


@pytest.mark.usefixtures("no_threads")
async def test_without_a_thread_hooks_run_in_the_loop() -> None:
    """If no thread can start, a plain hook is called in the loop, in order, and its errors are counted."""
    envelopes: list[bytes] = []

    def hook(events: Sequence[UndeliveredEvent]) -> None:
        assert threading.current_thread() is threading.main_thread()
        envelopes.extend(each.envelope for each in events)
        raise SystemExit

    client = RecordingClient(batching=Batching(linger=0.0), on_outcome=hook)
    client.fail_with(status=400, times=None)
    async with client:
        receipts = [await client.track(event(number)) for number in range(3)]
        for receipt in receipts:
            await receipt

    assert 3 == len(envelopes)
    assert 1 <= client.stats().hook_errors <= 3


@pytest.mark.usefixtures("no_threads")
async def test_without_a_thread_the_loop_makes_the_call() -> None:
    """If no thread can start, `call_in_thread` calls the function in the loop."""
    assert threading.get_ident() == await call_in_thread(threading.get_ident)
    with pytest.raises(ZeroDivisionError):
        await call_in_thread(lambda: 1 / 0)


async def test_without_a_thread_a_spool_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If no thread can start, a spool raises an error to each caller; once a thread can start, the spool works."""
    client = RecordingClient(spool=SqliteSpool(tmp_path / "spool"))

    def start(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        for _ in range(2):
            with pytest.raises(SpoolError, match="needs a thread, and none can be started"):
                await client.track(View(session_external_id="a", product_id=1))
    async with client:
        await client.track(View(session_external_id="a", product_id=1))
        await client.flush()

    assert 1 == client.stats().delivered == client.stats().tracked
