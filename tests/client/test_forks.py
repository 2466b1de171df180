"""If a process forks while a client is in use, the client still works in the parent; in the child, its calls raise."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.raw_server import OK, Arrived, raw_server

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]

FORKING = '''
import asyncio, gc, multiprocessing, os, sys, warnings
from retailrocket_async import AsyncTrackingClient, View, WrongLoopError

URL, HOW = sys.argv[1:]
# The loop's pool has a thread by now, which newer Pythons warn of: no thread of ours holds a lock.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)


def view(number):
    return View(session_external_id="visitor", product_id=number)


async def refusals(client):
    """Count the calls that are refused with the recipe, in a loop of the child's own."""
    uses = [
        lambda: client.track(view(7)), lambda: client.track_many([view(7)]), lambda: client.send(view(7)),
        lambda: client.send_batch([view(7)]), client.flush, client.aclose,
    ]
    count = 0
    for use in uses:
        try:
            await use()
        except WrongLoopError as error:
            count += "before a fork: create it in each worker process, e.g. in the lifespan" in str(error)
    for use in (client.threadsafe, lambda: client.track_nowait(view(7))):
        try:
            use()
        except WrongLoopError as error:
            count += "before a fork: create it in each worker process" in str(error)
    return count


async def recipe():
    """Do as the sentence says."""
    async with AsyncTrackingClient("key", "partner", base_url=URL, timeout=90.0) as client:
        receipt = await client.track(view(3))
    return type(receipt.outcome).__name__


def in_child(client, handle, receipt):
    refused = []
    for use in (lambda: handle.track(view(7)), handle.flush, lambda: handle.wait(receipt)):
        try:
            use()
        except WrongLoopError as error:
            refused.append("before a fork" in str(error))
    report = [refused, asyncio.run(refusals(client)), asyncio.run(recipe()), client.stats().tracked]
    del client, handle
    gc.collect()
    return repr(report)


async def main():
    go_on = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, go_on.set)
    client = AsyncTrackingClient("key", "partner", base_url=URL, timeout=90.0)
    handle = client.threadsafe()
    receipt = await client.track(view(1))
    await go_on.wait()
    asyncio.get_running_loop().remove_reader(sys.stdin)
    # The request is on its way, and unanswered.
    if HOW == "os.fork":
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writing, in_child(client, handle, receipt).encode())
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.read(reading, 9_999).decode(), status, flush=True)
    else:
        fork = multiprocessing.get_context("fork")
        ours, theirs = fork.Pipe()
        child = fork.Process(target=lambda: theirs.send(in_child(client, handle, receipt)))
        child.start()
        child.join()
        print(ours.recv(), child.exitcode, flush=True)
    await client.track(view(2))
    print(type(await receipt).__name__, (await client.aclose()).stats.delivered)


asyncio.run(main())
'''


def numbers(requests: list[Arrived]) -> Iterator[int]:
    """Yield the product ids of all views that the server received."""
    for request in requests:
        for envelope in request.json:
            yield envelope["view"]["productId"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("how", ["os.fork", "multiprocessing"])
async def test_a_fork_in_the_middle_of_a_flight(how: str) -> None:
    """If the process forks during a request, its event is recorded once, and only a new client works in the child."""
    arrived, answered = asyncio.Event(), asyncio.Event()

    async def respond(request: Arrived, _: object) -> bytes:
        if list(numbers([request])) == [1]:
            arrived.set()
            await answered.wait()
        return OK

    async with raw_server() as server, asyncio.timeout(100):
        server.respond = respond
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", FORKING, server.url, how),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            await arrived.wait()
            process.stdin.write(b"fork\n")
            child = await process.stdout.readline()
            answered.set()
            parent, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()

    assert ("[[True, True, True], 8, 'Delivered', 1] 0", "Delivered 2", "") == (
        child.decode().strip(),
        parent.decode().strip(),
        errors.decode(),
    )
    assert [1, 2, 3] == sorted(numbers(server.arrived))
