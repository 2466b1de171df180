"""A proxy on loopback that opens tunnels (CONNECT) and forwards plain requests, or refuses both on demand."""

from __future__ import annotations

import asyncio
import base64
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.support.listener import listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class ProxyServer:
    """A proxy that records the targets of its requests. To use the proxy, set `HTTPS_PROXY` to its URL.

    Args:
        upstream: the URL of the server that the proxy connects to for every request; None (default) connects to the
            server that the request names.

    Attributes:
        status: the status of all answers; with 200 (default) the proxy connects, with any other status it refuses.
        password: the password that the user ``user`` needs; None (default) if the proxy asks for no password.
        targets: the targets of all requests: ``host:port`` for a CONNECT, a URL for any other request.
        address: the host and the port of the proxy.
    """

    def __init__(self, upstream: str | None = None) -> None:
        self.status = 200
        self.password: str | None = None
        self.targets: list[str] = []
        self.address = ""
        self._upstream = None if upstream is None else urlsplit(upstream).netloc

    @property
    def url(self) -> str:
        """The URL of the proxy, for an HTTP client."""
        return f"http://{self.address}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection: answer its first request, and forward the data of both sides."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            text = head.decode("latin-1")
            method, target, _ = text.split(" ", 2)
            self.targets.append(target)
            if (status := self._status_for(text)) != 200:
                # Some proxies repeat the received credentials in an error.
                echo = text.partition("Proxy-Authorization: ")[2].partition("\r\n")[0]
                writer.write(f"HTTP/1.1 {status} No {echo}\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
            else:
                there = target if method == "CONNECT" else urlsplit(target).netloc
                host, _, port = (self._upstream or there).rpartition(":")
                await _forward(host, int(port), reader, writer, None if method == "CONNECT" else head)
        writer.close()

    def _status_for(self, head: str) -> int:
        if self.password is None:
            return self.status
        token = base64.b64encode(f"user:{self.password}".encode()).decode()
        return 200 if f"Basic {token}" in head else 407


async def _forward(
    host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes | None
) -> None:
    """Copy bytes between a client and a server until one of them closes the connection.

    Before that, send `head` to the server; if `head` is None, answer the client's CONNECT.
    """
    answers, behind = await asyncio.open_connection(host, port)
    if head is None:
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    else:
        behind.write(head)
    ways = {asyncio.create_task(_copy(reader, behind)), asyncio.create_task(_copy(answers, writer))}
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        # The connections are aborted before any await, because the end of the block may cancel this task at an await.
        # They are not closed, because a close would wait for a peer that does not read.
        for end in (behind, writer):
            end.transport.abort()
        for way in ways:
            way.cancel()
        await asyncio.wait(ways)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def proxy_server(upstream: str | None = None) -> AsyncIterator[ProxyServer]:
    """Run a proxy while the block runs; see `ProxyServer` for the argument."""
    proxy = ProxyServer(upstream)
    async with listening(proxy.handle) as proxy.address:
        yield proxy
