"""After the main thread has ended, a loop in another thread or in `atexit` still delivers events and calls hooks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

CHILD = '''
import asyncio, atexit, json, logging, sys, tempfile, threading, time
from pathlib import Path
from urllib.parse import urlsplit
from retailrocket_async import AsyncTrackingClient, Batching, Delivered, RetryPolicy, SqliteSpool, View
from tests.support.raw_server import answer, raw_server

where, what = sys.argv[1:]
told, said, threads = [], [], set()
main = threading.main_thread()


class Said(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())


logging.getLogger("retailrocket_async").addHandler(Said())


def event(number):
    return View(session_external_id="visitor", product_id=number)


def plainly(events):
    threads.add(threading.current_thread().name)
    told.extend(getattr(each.outcome, "failure", each.outcome.status) for each in events)


async def later(events):
    plainly(events)


def key():
    threads.add(threading.current_thread().name)
    return "key"


def make(server, folder, **options):
    options = {"on_outcome": plainly, "batching": Batching(linger=0.0)} | options
    retry = RetryPolicy(max_elapsed=0.2, initial_backoff=0.01, max_backoff=0.01)
    if what == "coroutine":
        options["on_outcome"] = later
    if what == "key":
        options["api_key"] = key
    if what == "spool":
        options["spool"] = SqliteSpool(Path(folder) / "spool")
    url = server.url.replace("127.0.0.1", "localhost") if what == "name" else server.url
    return AsyncTrackingClient(**{"api_key": "key", "partner_id": "p", "base_url": url, "retry": retry} | options)


async def use(client, server):
    """Have an event refused, and another one delivered, unless a name must be found."""
    if what == "name":
        await (await client.track(event(1)))
        return
    server.in_turn(answer(400))
    first = await client.track(event(1))
    await first
    if what == "handle":
        handle = client.threadsafe()
        done = []
        thread = threading.Thread(target=lambda: done.append(handle.wait(handle.track(event(2)))), daemon=True)
        try:
            thread.start()
        except RuntimeError:
            done.append(await (await client.track(event(2))))
        while not done:
            await asyncio.sleep(0.001)
    else:
        done = [await (await client.track(event(2)))]
    assert isinstance(done[0], Delivered), done


def tell(stats):
    print(json.dumps({
        "told": told, "said": said, "threads": sorted(threads), "main": main.is_alive(),
        "counts": [stats.delivered, stats.rejected, stats.abandoned, stats.hook_errors, stats.hook_missed],
    }), flush=True)


async def after_main():
    with tempfile.TemporaryDirectory() as folder:
        while main.is_alive():
            await asyncio.sleep(0.001)
        async with raw_server() as server:
            client = make(server, folder)
            await use(client, server)
            await client.aclose()
            tell(client.stats())


if where == "thread":
    threading.Thread(target=asyncio.run, args=(after_main(),)).start()
elif where == "atexit":
    loop = asyncio.new_event_loop()
    folder = tempfile.TemporaryDirectory()
    running = raw_server()
    server = loop.run_until_complete(running.__aenter__())
    client = make(server, folder.name)
    if what == "spool":
        # Its thread is there already, as it must be.
        loop.run_until_complete(client.__aenter__())

    async def end():
        await use(client, server)
        await client.aclose()
        await running.__aexit__(None, None, None)
        return client.stats()

    def at_exit():
        tell(loop.run_until_complete(end()))
        loop.close()
        folder.cleanup()

    atexit.register(at_exit)
'''


def child(where: str, what: str, python: str = sys.executable) -> dict[str, Any]:
    """Run the script above in a process; return its output, and assert that nothing else was printed."""
    done = subprocess.run(
        [python, "-W", "error::ResourceWarning", "-c", CHILD, where, what],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert (0, "") == (done.returncode, done.stderr)
    reported: dict[str, Any] = json.loads(done.stdout)
    return reported


@pytest.mark.untraced
@pytest.mark.parametrize("where", ["thread", "atexit"])
@pytest.mark.parametrize("what", ["plain", "coroutine", "key", "spool", "handle"])
def test_it_delivers_and_tells(where: str, what: str) -> None:
    """If the main thread has ended, events are delivered, refused events reach the hook, and the key is asked for."""
    reported = child(where, what)

    assert [400] == reported["told"]
    assert [1, 1, 0, 0, 0] == reported["counts"]
    assert not reported["main"]


@pytest.mark.parametrize("where", ["thread", "atexit"])
def test_a_name_is_not_found(where: str) -> None:
    """If the main thread has ended, no host name can be resolved (this needs a thread pool); outcome and log say so."""
    reported = child(where, "name")
    sentence = "name: asyncio resolves no more names, as its thread pool is shut down (the main thread has ended?)"

    assert [sentence] == reported["told"]
    assert any(sentence in said for said in reported["said"])
    assert [0, 0, 1, 0, 0] == reported["counts"]
