"""A server's side of one connection; it supports only the part of HTTP/1.1 that the clients of these runs use."""

from __future__ import annotations

import asyncio
from typing import NamedTuple


class Request(NamedTuple):
    """A complete request."""

    target: bytes
    body: bytes


class Connection(asyncio.Protocol):
    """Reads the requests of a connection. Requests must have a content-length and must not be pipelined.

    Attributes:
        requests: the number of requests read so far.
        began: the loop time (seconds) at which the first bytes of the last request arrived.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.began = 0.0
        self._buffer = bytearray()
        self._target = b""
        # The length of the body that is being read; None while the head is being read.
        self._length: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport, which sends the answers."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Call `head_received` when a request's head is complete, and `request_received` when its body is, too."""
        if self._length is None and not self._buffer:
            self.began = asyncio.get_running_loop().time()
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
            self.head_received()
        if len(self._buffer) < self._length or self.transport.is_closing():
            return
        body = bytes(self._buffer[: self._length])
        del self._buffer[: self._length]
        self._length = None
        self.requests += 1
        self.request_received(Request(self._target, body))

    def head_received(self) -> None:
        """Handle a complete head, whose body may still be missing; does nothing by default."""

    def request_received(self, request: Request) -> None:
        """Handle a complete request."""
        raise NotImplementedError
