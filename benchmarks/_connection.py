"""One connection of a server here: just enough of HTTP/1.1 for a client that is known."""

from __future__ import annotations

import asyncio
from typing import NamedTuple


class Request(NamedTuple):
    """One request as it was read."""

    target: bytes
    body: bytes


class Connection(asyncio.Protocol):
    """Reads requests one after the other: no pipelining, and each has a content-length.

    Attributes:
        requests: how many were read.
    """

    def __init__(self) -> None:
        self.requests = 0
        self._buffer = bytearray()
        self._target = b""
        # Of the body that is being read; None where the head is.
        self._length: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Call `begun` once a request's head is there, and `arrived` once all of it is."""
        self._buffer += data
        if self._length is None:
            head, end, _ = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            first, *lines = bytes(head).split(b"\r\n")
            headers = dict(line.lower().split(b": ", 1) for line in lines)
            self._target = first.split(b" ")[1]
            self._length = int(headers[b"content-length"])
            del self._buffer[: len(head) + len(end)]
            self.begun()
        if len(self._buffer) < self._length or self.transport.is_closing():
            return
        body = bytes(self._buffer[: self._length])
        del self._buffer[: self._length]
        self._length = None
        self.requests += 1
        self.arrived(Request(self._target, body))

    def begun(self) -> None:
        """A request's head is read, and its body may still be on its way."""

    def arrived(self, request: Request) -> None:
        """A request is read."""
        raise NotImplementedError
