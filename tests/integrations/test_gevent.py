"""The client's handle for threads works under gevent, where threads are greenlets of one real thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from retailrocket_async.emulator import Settings, emulator_process
from tests.project.test_docs import ROOT

CODE = """
from gevent import monkey; monkey.patch_all()
import asyncio, json, tempfile, threading, sys
from concurrent.futures import Future
import gevent
from retailrocket_async import AsyncTrackingClient, SqliteSpool, View, WrongLoopError

SPOOLED = sys.argv[1] == "spool"


async def main(opened, reports):
    closing = asyncio.Event()
    options = {"spool": SqliteSpool(tempfile.mkdtemp())} if SPOOLED else {}
    async with AsyncTrackingClient.from_env(**options) as client:
        handle = client.threadsafe()
        try:
            handle.track(View(session_external_id="v", product_id=1))
        except WrongLoopError as error:
            reports.append(str(error))
        opened.set_result((handle, asyncio.get_running_loop(), closing))
        await closing.wait()
        reports.append((await client.aclose()).stats.delivered)


def work(handle, number):
    for product in range(10):
        receipt = handle.track(View(session_external_id=f"v{number}", product_id=product), timeout=60)
    return type(handle.wait(receipt, timeout=60)).__name__


opened, reports = Future(), []
thread = threading.Thread(target=lambda: asyncio.run(main(opened, reports)))
thread.start()
handle, loop, closing = opened.result(60)
greenlets = [gevent.spawn(work, handle, number) for number in range(20)]
gevent.joinall(greenlets, raise_error=True)
handle.flush(60)
loop.call_soon_threadsafe(closing.set)
thread.join()
print(json.dumps([sorted({greenlet.value for greenlet in greenlets}), *reports]))
"""


@pytest.mark.parametrize("where", ["memory", "spool"])
def test_greenlets_track(where: str) -> None:
    """If gevent has patched threads, greenlets can use a handle; the loop's own greenlet gets an error about gevent."""
    with emulator_process() as emulator:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "RETAILROCKET_API_KEY": Settings().api_key,
            "RETAILROCKET_PARTNER_ID": Settings().partner_id,
            "RETAILROCKET_BASE_URL": emulator.url,
        }
        done = subprocess.run(
            [sys.executable, "-c", CODE, where],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    assert done.returncode == 0, done.stderr
    outcomes, refused, delivered = json.loads(done.stdout)
    assert (["Delivered"], 200) == (outcomes, delivered)
    assert "under gevent call the handle in another greenlet" in refused
