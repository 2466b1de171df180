"""A real nats-server with JetStream on loopback. A test may kill the server, and restart it with its stored data."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.parent_end import until_parent_ends

if TYPE_CHECKING:
    from collections.abc import Iterator


class NatsServer:
    """Starts a server, which runs until `kill`.

    Attributes:
        url: the address of the server, which does not change in a restart.
        process: the process of the server.
    """

    def __init__(self, folder: str, *arguments: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}"
        options = ("-js", "-a", "127.0.0.1", "-p", f"{self.port}", "-sd", folder)
        self._command = until_parent_ends("nats-server", *options, *arguments)
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                    assert connection.recv(4) == b"INFO"
                    return
            except OSError:
                assert self.process.poll() is None, "nats-server does not start"
                assert time.monotonic() < end, "nats-server does not answer"
                time.sleep(0.02)

    def kill(self) -> None:
        """Kill the server by SIGKILL. The stored data is not removed."""
        self.process.kill()
        self.process.wait()

    async def restart(self, pause: float = 0.0) -> None:
        """Kill the server, and start the server again after `pause` seconds."""
        self.kill()
        await asyncio.sleep(pause)
        await asyncio.to_thread(self.start)


@contextmanager
def nats_server(*arguments: str) -> Iterator[NatsServer]:
    """Run a server while the block runs; remove its stored data at the end."""
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(folder, *arguments)
        try:
            yield server
        finally:
            server.kill()
