"""A proxy on loopback that answers CONNECT with a given status, or makes the tunnel; and a TLS server behind it."""

from __future__ import annotations

import asyncio
import base64
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from tests.support.raw_server import RawServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import trustme


class ConnectProxy:
    """A proxy for the tests' `HTTPS_PROXY`.

    Attributes:
        status: its answer to CONNECT; 200 makes the tunnel.
        password: what a client must give with the user ``user``; None for nothing.
        targets: what it was asked to connect to.
        address: its host and port.
    """

    def __init__(self) -> None:
        self.status = 200
        self.password: str | None = None
        self.targets: list[str] = []
        self.address = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        target = head.split(" ")[1]
        self.targets.append(target)
        status = self.status
        if self.password is not None:
            token = base64.b64encode(f"user:{self.password}".encode()).decode()
            status = 200 if f"Basic {token}" in head else 407
        if status != 200:
            # Some proxies repeat the request in their answer.
            echo = head.partition("Proxy-Authorization: ")[2].partition("\r\n")[0]
            writer.write(f"HTTP/1.1 {status} No {echo}\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
            writer.close()
            return
        host, _, port = target.rpartition(":")
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(_pipe(reader, there_writer), _pipe(there_reader, writer))


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def connect_proxy() -> AsyncIterator[ConnectProxy]:
    """Run a proxy while the block runs."""
    proxy = ConnectProxy()
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await proxy.handle(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            tasks.discard(task)

    listener = await asyncio.start_server(connected, "127.0.0.1", 0)
    proxy.address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        listener.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await listener.wait_closed()


@asynccontextmanager
async def tls_server(authority: trustme.CA) -> AsyncIterator[RawServer]:
    """Run a `RawServer` with a certificate of `authority` for this host while the block runs."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = RawServer()
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await server.handle(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            tasks.discard(task)

    listener = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    server.url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}/1.0/"
    try:
        yield server
    finally:
        listener.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await listener.wait_closed()
