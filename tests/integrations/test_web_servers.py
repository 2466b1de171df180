"""Applications under real servers with several workers: gunicorn forks them, and uvicorn spawns them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import TYPE_CHECKING

import pytest

from retailrocket_async.emulator import EmulatorProcess, Settings, emulator_process
from tests.project.test_docs import ROOT, examples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.endurance,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="gunicorn needs fork"),
]

GUNICORN = ["gunicorn", "--preload", "--no-control-socket", "--workers=2", "--bind=fd://{fd}"]
SERVERS = {
    # Gunicorn's own worker for ASGI; `--preload` loads the application before the fork.
    "gunicorn": [*GUNICORN, "--worker-class=asgi"],
    "gunicorn-wsgi": [*GUNICORN, "--worker-class=gthread", "--threads=4"],
    "uvicorn": ["uvicorn", "--workers=2", "--fd={fd}"],
}
ASYNC_SERVERS = ["gunicorn", "uvicorn"]

HEAD = """
import os
import sys
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from retailrocket_async import AsyncTrackingClient, Batching, WrongLoopError
"""

# No batch is sent before the close, so every recorded event proves that the close delivered it.
RIGHT = (
    HEAD
    + """
@asynccontextmanager
async def lifespan(app):
    global me
    me = f"worker{os.getpid()}"
    async with AsyncTrackingClient.from_env(batching=Batching(linger=600)) as client:
        await client.view(session_external_id=me, product_id=1)
        # In one write, since both workers write to the same pipe.
        sys.stdout.write(f"ready {me}\\n")
        sys.stdout.flush()
        yield {"tracking": client}

async def product(request):
    await request.state.tracking.view(session_external_id=me, product_id=2)
    return PlainTextResponse(me)

app = Starlette(routes=[Route("/", product)], lifespan=lifespan)
"""
)

WRONG = (
    HEAD
    + """
client = AsyncTrackingClient.from_env()

async def product(request):
    try:
        await client.view(session_external_id="visitor", product_id=1)
    except WrongLoopError as error:
        return PlainTextResponse(str(error), 500)

app = Starlette(routes=[Route("/", product)])
"""
)


HOOKS = """
def post_worker_init(worker):
    from tasks import tracking
    tracking.open()

def worker_exit(server, worker):
    from tasks import tracking
    tracking.close()
"""

WSGI = """
from retailrocket_async import View
from tasks import tracking

def app(environ, start_response):
    tracking.handle.track(View(session_external_id="visitor", product_id=1), timeout=60)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"a product page"]
"""


class Site:
    """A running application.

    Attributes:
        process: the server's main process.
        port: the port on which the server listens from the start; a request waits until a worker is ready for it.
    """

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    def get(self) -> tuple[int, str]:
        """Request the product page on a new connection. Return status and text."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", "/", headers={"Connection": "close"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def ready(self, count: int) -> set[str]:
        """Wait until `count` workers have printed their names. Return the names."""
        assert self.process.stdout is not None
        names: set[str] = set()
        lines: list[str] = []
        for line in self.process.stdout:
            lines.append(line)
            names |= set(re.findall(r"ready (\w+)", line))
            if len(names) == count:
                return names
        pytest.fail("the server has ended:\n" + "".join(lines))

    def end(self) -> tuple[int, str]:
        """End the server with SIGTERM. Return its exit status and the rest of its output."""
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGTERM)
        printed = self.process.stdout.read()
        return self.process.wait(), printed


@contextmanager
def served(server: str, source: str, folder: Path, emulator: EmulatorProcess) -> Iterator[Site]:
    """Serve an application with two workers, and kill the server at the end if it still runs."""
    folder.joinpath("shop.py").write_text(source, "utf-8")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "RETAILROCKET_API_KEY": Settings().api_key,
        "RETAILROCKET_PARTNER_ID": Settings().partner_id,
        "RETAILROCKET_BASE_URL": emulator.url,
    }
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [part.format(fd=listener.fileno()) for part in SERVERS[server]]
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "shop:app"],
            cwd=folder,
            env=environment,
            pass_fds=[listener.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        # If the server hangs, it is killed, so only this test fails.
        killer = threading.Timer(100, os.killpg, (process.pid, signal.SIGKILL))
        killer.start()
        with process:
            try:
                yield Site(process, listener.getsockname()[1])
            finally:
                killer.cancel()
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def running() -> Iterator[EmulatorProcess]:
    """Provide one emulator, in its own process, for all tests."""
    with emulator_process() as emulator:
        yield emulator


@pytest.fixture
def emulator(running: EmulatorProcess) -> EmulatorProcess:
    """Provide the emulator without recorded events."""
    running.reset()
    return running


@pytest.mark.parametrize("server", ASYNC_SERVERS)
def test_a_client_in_the_lifespan_delivers_from_every_worker(
    server: str, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    """If the lifespan opens the client, SIGTERM to the main process loses no event of any worker."""
    with served(server, RIGHT, tmp_path, emulator) as site:
        workers = site.ready(2)
        answers = [site.get() for _ in range(20)]
        before = emulator.stats()["total_events"]
        ended, printed = site.end()

    recorded = Counter(record["fields"]["sessionExternalId"] for record in emulator.events())
    assert (0, 0) == (before, ended), printed
    assert {200} == {status for status, _ in answers}
    assert Counter([*workers, *(name for _, name in answers)]) == recorded


def documented(page: str, needle: str) -> str:
    """Return the example on the page that contains the text `needle`."""
    [source] = [example.source for example in examples(ROOT / "docs/how-to" / page) if needle in example.source]
    return source


@pytest.mark.parametrize("server", ASYNC_SERVERS)
@pytest.mark.parametrize(
    ("page", "needle"), [("shutting-down.md", "lifespan=lifespan"), ("frameworks.md", "settings.configure")]
)
def test_the_documented_application(
    server: str, page: str, needle: str, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    """If a documented application is ended by SIGTERM, no event is lost, under either server."""
    with served(server, documented(page, needle), tmp_path, emulator) as site:
        answers = [site.get() for _ in range(20)]
        ended, printed = site.end()

    assert ({(200, "a product page")}, 0) == (set(answers), ended), printed
    assert 20 == emulator.stats()["total_events"]


def test_a_loop_in_a_thread_serves_a_sync_worker(emulator: EmulatorProcess, tmp_path: Path) -> None:
    """If gunicorn's hooks start and stop the documented loop in a thread, no event is lost under WSGI."""
    tmp_path.joinpath("tasks.py").write_text(documented("threads-and-processes.md", "class Tracking"), "utf-8")
    tmp_path.joinpath("gunicorn.conf.py").write_text(HOOKS, "utf-8")
    with served("gunicorn-wsgi", WSGI, tmp_path, emulator) as site:
        answers = [site.get() for _ in range(20)]
        ended, printed = site.end()

    assert ({(200, "a product page")}, 0) == (set(answers), ended), printed
    assert 20 == emulator.stats()["total_events"]


def test_a_client_made_before_the_fork_is_refused(emulator: EmulatorProcess, tmp_path: Path) -> None:
    """If a client was created before the fork, workers get an error that says what to do, and send nothing."""
    with served("gunicorn", WRONG, tmp_path, emulator) as site:
        answers = [site.get() for _ in range(3)]
        ended, printed = site.end()

    recipe = "this client was made before a fork: create it in each worker process, e.g. in the lifespan of the app"
    assert ({(500, recipe)}, 0) == (set(answers), ended), printed
    assert 0 == emulator.stats()["requests"]
