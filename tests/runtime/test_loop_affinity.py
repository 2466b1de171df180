"""A client belongs to the loop in which it is first used; other loops, threads and processes get an error."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from retailrocket_async._errors import WrongLoopError
from retailrocket_async._runtime.loop_affinity import LoopAffinity
from tests.support.fakes import Engine, ScriptedTransport, event, make_client, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from retailrocket_async import AsyncTrackingClient

ROOT = Path(__file__).parents[2]


def test_the_first_use_binds_the_loop() -> None:
    """If a client is first used in a loop, it is bound to this loop, and `now` returns the loop's time."""

    async def test() -> None:
        affinity = LoopAffinity()
        assert (affinity.loop, affinity.now()) == (None, 0.0)
        loop = asyncio.get_running_loop()
        await asyncio.sleep(7.0)
        assert affinity.enter() is affinity.enter() is affinity.loop is loop
        assert affinity.now() == loop.time() >= 7.0

    run(test())


def test_second_loop_is_refused() -> None:
    """If a second loop uses the client, an error is raised, even if the first loop is closed."""
    affinity = LoopAffinity()

    async def enter() -> None:
        affinity.enter()

    run(enter())
    with pytest.raises(WrongLoopError, match="one client for each loop"):
        run(enter())


def test_no_loop_is_refused() -> None:
    """If no loop runs at the first use, an error is raised, and the client is not bound to a loop."""
    affinity = LoopAffinity()
    with pytest.raises(WrongLoopError, match="no event loop runs in this thread"):
        affinity.enter()

    assert affinity.loop is None


USES: dict[str, Callable[[AsyncTrackingClient], object]] = {
    "track": lambda client: client.track(event(2)),
    "track_many": lambda client: client.track_many([event(2)]),
    "send": lambda client: client.send(event(2)),
    "send_batch": lambda client: client.send_batch([event(2)]),
    "flush": lambda client: client.flush(),
    "aclose": lambda client: client.aclose(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.filterwarnings("ignore:unclosed <AsyncTrackingClient:ResourceWarning")
def test_every_method_refuses_a_second_loop(use: str) -> None:
    """If a client was used in one loop, every method raises an error in another loop."""
    client = None

    async def first() -> AsyncTrackingClient:
        client = make_client(ScriptedTransport())
        await client.track(event(1))
        return client

    async def second() -> None:
        assert client is not None
        with pytest.raises(WrongLoopError, match="another event loop"):
            client.track_nowait(event(2))
        with pytest.raises(WrongLoopError, match="another event loop"):
            await USES[use](client)  # type: ignore[misc]

    client = run(first())
    run(second())
    # The open client is garbage-collected here, because its `ResourceWarning` would make a later test fail.
    client = None
    gc.collect()


def test_thread_without_a_loop_is_refused() -> None:
    """If a thread without a loop calls `track_nowait`, an error is raised, before and after the client's first use."""
    messages: list[str] = []

    async def test() -> None:
        engine = Engine(ScriptedTransport())

        def in_thread() -> None:
            with pytest.raises(WrongLoopError) as caught:
                engine.track_nowait(1)
            messages.append(str(caught.value))

        for _ in range(2):
            thread = threading.Thread(target=in_thread)
            thread.start()
            thread.join()
            await engine.track(1)
        await engine.aclose()
        assert engine.stats().tracked == 2

    run(test())

    assert [sentence.startswith("no event loop runs in this thread") for sentence in messages] == [True, True]


FORKING = """
import asyncio, os, sys, warnings
warnings.simplefilter("error")
from retailrocket_async import View, WrongLoopError
from tests.support.fakes import Engine, ScriptedTransport, make_client

def refused(use):
    try:
        use()
    except WrongLoopError as error:
        assert "before a fork" in str(error) and "lifespan" in str(error), str(error)
        return True
    return False

async def again(client):
    for call in (lambda: client.track(EVENT), lambda: client.send(EVENT), client.flush, client.aclose):
        try:
            await call()
        except WrongLoopError as error:
            assert "before a fork" in str(error), str(error)
        else:
            raise AssertionError(call)

EVENT = View(session_external_id="a", product_id=1)

async def main():
    used, unused = make_client(ScriptedTransport()), make_client(ScriptedTransport())
    await used.track(EVENT)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert refused(lambda: used.track_nowait(EVENT))
            assert refused(lambda: unused.track_nowait(EVENT))
            asyncio.events._set_running_loop(None)
            loop = asyncio.new_event_loop()
            loop.run_until_complete(again(used))
            loop.run_until_complete(again(unused))
            loop.close()
            assert used.stats().tracked == 1
            del used  # warns of nothing: it is not ours to close
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    report = await used.aclose()
    assert report.stats.delivered == 1 and report.clean

asyncio.run(main())
print("parent and child are done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_fork_is_refused_in_the_child() -> None:
    """If the process forks, every use of the client in the child raises an error, and the parent continues."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKING],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "parent and child are done\n", "")


def test_after_a_fork() -> None:
    """If the process has forked, using the client raises an error with advice, with and without a running loop."""
    affinity = LoopAffinity()
    affinity.after_fork()

    async def enter() -> None:
        affinity.enter()

    with pytest.raises(WrongLoopError, match="lifespan"):
        affinity.enter()
    with pytest.raises(WrongLoopError, match="lifespan"):
        run(enter())
