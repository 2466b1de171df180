"""A real redis-server for one test, on a free loopback port. The test may kill, freeze and restart the server.

Import the fixture `redis_server` into the test's module, and mark the module with
`pytest.mark.needs_server("redis-server")`.
"""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Final, Self

import pytest

from tests.support.parent_end import until_parent_ends

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE: Final = 30.0
"""Seconds to wait for the start of a server, enough even on a busy machine."""


class RedisServer:
    """Runs a server while the `with` block runs; its folder is temporary.

    Args:
        options: further options of redis-server, e.g. `"--requirepass", "secret"`. By default the server writes nothing
            to disk, so it is empty after a restart. With `"--appendonly", "yes"` the data survives a kill.
    """

    def __init__(self, *options: str) -> None:
        self._options = options
        self._folder = tempfile.TemporaryDirectory(prefix="redis-server-", ignore_cleanup_errors=True)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.starts = 0

    @property
    def url(self) -> str:
        """The address for `redis.asyncio.Redis.from_url`."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The id of the running process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the server, always on the same port, and wait until it answers."""
        assert self._process is None
        settings = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", self._folder.name, "--save", ""]
        command = until_parent_ends("redis-server", *settings, "--logfile", "", *self._options)
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.starts += 1
        end = time.monotonic() + _PATIENCE
        while not self._answers():
            assert self._process.poll() is None, "redis-server ended at once"
            assert time.monotonic() < end, "redis-server does not answer"
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill the server by SIGKILL, which works for a frozen server, too; wait until its process has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kill the server, and start the server again."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Freeze the server by SIGSTOP. The system still accepts connections for it, but no request is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the frozen server continue (by SIGCONT)."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        """Start the server."""
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the server, and delete its folder."""
        self.kill()
        self._folder.cleanup()

    def _answers(self) -> bool:
        """Return True if the server answers commands. While the server loads its data from disk, it does not answer."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            # A server with a password answers -NOAUTH, which also shows that the server is ready.
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        return False


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """Run a server without a password that writes nothing to disk."""
    with RedisServer() as server:
        yield server


def free_port() -> int:
    """Return a free port.

    The port is below the range of outgoing connections, so that no such connection takes the port while the server is
    down.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
