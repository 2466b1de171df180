"""A minimal HTTP/1.1 server on loopback that records all requests and sends scripted answers."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import attrs

from tests.support.listener import listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import trustme

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def answer(status: int, *headers: str, body: bytes = b"{}") -> bytes:
    """Return the bytes of an HTTP answer."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@attrs.define
class Arrived:
    """A request as it arrived at the server."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        """The target without its query."""
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        """The parameters of the query."""
        return parse_qs(urlsplit(self.target).query, strict_parsing=True)

    @property
    def json(self) -> Any:
        """The body, parsed as JSON."""
        return json.loads(self.body)


class RawServer:
    """Serves connections: records each request in `arrived`, and answers it with the bytes that `respond` returns.

    If `respond` returns None, the server closes the connection without an answer.
    """

    def __init__(self) -> None:
        self.arrived: list[Arrived] = []
        self.connections = 0
        self.readers: list[asyncio.StreamReader] = []
        self.respond: Callable[[Arrived, asyncio.StreamWriter], Awaitable[bytes | None]] = self._ok
        self.url = ""

    @staticmethod
    async def _ok(_: Arrived, __: asyncio.StreamWriter) -> bytes:
        return OK

    @property
    def open(self) -> int:
        """The number of connections that the clients have not closed."""
        return sum(not reader.at_eof() and reader.exception() is None for reader in self.readers)

    async def until_open(self, count: int) -> None:
        """Wait until exactly `count` connections are open."""
        while self.open != count:  # noqa: ASYNC110 - no event says that a client has connected
            await asyncio.sleep(0.001)

    def always(self, reply: bytes) -> None:
        """Answer every request from now on with the bytes `reply`."""

        async def respond(_: Arrived, __: asyncio.StreamWriter) -> bytes:
            return reply

        self.respond = respond

    def in_turn(self, *replies: bytes) -> None:
        """Answer each of the next requests with one of `replies`, and all later requests with 200."""
        left = list(replies)

        async def respond(_: Arrived, __: asyncio.StreamWriter) -> bytes:
            return left.pop(0) if left else OK

        self.respond = respond

    def all_at_once(self, count: int) -> Callable[[Arrived, asyncio.StreamWriter], Awaitable[bytes | None]]:
        """Return a function for `respond` that answers only after `count` requests have arrived."""
        arrived, complete = 0, asyncio.Event()

        async def respond(_: Arrived, __: asyncio.StreamWriter) -> bytes:
            nonlocal arrived
            arrived += 1
            if arrived == count:
                complete.set()
            await complete.wait()
            return OK

        return respond

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        self.readers.append(reader)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, target, _ = head[0].split(" ")
                headers = {
                    name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)
                }
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                request = Arrived(method, target, headers, body)
                self.arrived.append(request)
                reply = await self.respond(request, writer)
                if reply is None:
                    break
                writer.write(reply)
                await writer.drain()
        writer.close()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a TCP reset."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def raw_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    """Run a server while the block runs; the server uses TLS if a context is given."""
    server = RawServer()
    async with listening(server.handle, tls) as address:
        server.url = f"http{'s' if tls else ''}://{address}/1.0/"
        yield server


@asynccontextmanager
async def tls_server(authority: trustme.CA) -> AsyncIterator[RawServer]:
    """Run a server with a certificate of `authority` for this host while the block runs."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with raw_server(context) as server:
        yield server
