"""Manages our own connections: HTTP clients with one connection each, which is used by one request after the other.

The pool of httpcore checks every connection before every request, keeps unusable connections after some cancellations,
and never renews a connection in steady use. HTTP clients with one connection each avoid these problems. A new
connection is opened only if no connection is idle, so there are at most as many connections as requests in flight. The
connection that was used last is used next. A connection is closed after any request that did not get a complete answer.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

MAX_AGE: Final = 300.0
"""Seconds for which a connection is used at most. Then a new connection is opened, so that a changed DNS entry takes
effect."""

KEEPALIVE: Final = 4.0
"""Seconds after which an idle connection is closed. Common servers close an idle connection after 5 s or more, and a
request that is sent at that moment fails."""


@attrs.define(eq=False)
class Channel:
    """An HTTP client and its state; the client carries one request at a time or, with HTTP/2, many requests.

    Attributes:
        client: the client.
        born_at: the loop time (seconds) at which the client was made.
        users: how many requests use the client now.
        retired: True if no further request may use the client.
        idle_since: the loop time at which the last request ended; has no meaning while a request uses the client.
    """

    client: httpx.AsyncClient
    born_at: float
    users: int = 0
    retired: bool = False
    idle_since: float = 0.0


class Connections:
    """Lends channels (HTTP clients) to requests, and closes the channels that are idle, old or broken.

    Args:
        make: called to make a new HTTP client; must not block.
        shared: whether one channel carries all requests (HTTP/2).
        max_age: seconds after which no further request uses a channel.
        keepalive: seconds after which an idle channel is closed.
    """

    def __init__(
        self,
        make: Callable[[], httpx.AsyncClient],
        *,
        shared: bool,
        max_age: float = MAX_AGE,
        keepalive: float = KEEPALIVE,
    ) -> None:
        self._make = make
        self._shared = shared
        self._max_age = max_age
        self._keepalive = keepalive
        # Channels that a request may use, in the order in which they were given back.
        self._open: list[Channel] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._ended = False

    def take(self) -> Channel:
        """Return a channel for one request. Raises the errors that `make` raises."""
        now = asyncio.get_running_loop().time()
        while self._open:
            channel = self._open[-1]
            if now < channel.born_at + self._max_age:
                break
            self._retire(channel)
        else:
            channel = Channel(self._make(), now)
            self._open.append(channel)
        channel.users += 1
        if not self._shared:
            self._open.pop()
        return channel

    def give_back(self, channel: Channel, *, sound: bool) -> None:
        """Take a channel back after a request.

        Args:
            channel: the channel that `take` returned.
            sound: True if the connection may be used again, because the whole answer arrived, and no bytes came after
                the answer.
        """
        channel.users -= 1
        now = asyncio.get_running_loop().time()
        if self._ended or not sound or channel.retired or now >= channel.born_at + self._max_age:
            self._retire(channel)
            return
        channel.idle_since = now
        if not self._shared:
            self._open.append(channel)
        if self._sweep is None:
            self._sweep_at(now + self._keepalive)

    async def aclose(self) -> None:
        """Close all channels; a channel in use is closed when its last request has ended."""
        self.retire_all()
        if self._closing:
            await asyncio.wait(self._closing)

    def retire_all(self) -> None:
        """Retire all channels: begin to close idle channels; a channel in use is closed after its last request."""
        self._ended = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for channel in list(self._open):
            self._retire(channel)

    def _retire(self, channel: Channel) -> None:
        channel.retired = True
        if channel in self._open:
            self._open.remove(channel)
        if not channel.users:
            # Use an empty context: the caller's context would otherwise stay in memory until the connection is closed.
            closing = contextvars.Context().run(asyncio.get_running_loop().create_task, channel.client.aclose())
            self._closing.add(closing)
            closing.add_done_callback(self._closed)

    def _closed(self, closing: asyncio.Task[None]) -> None:
        self._closing.discard(closing)
        if not closing.cancelled():
            # Retrieve the error, because asyncio would otherwise log the error. No caller needs the error.
            closing.exception()

    def _sweep_at(self, moment: float) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_at(moment, self._close_idle, context=contextvars.Context())

    def _close_idle(self) -> None:
        self._sweep = None
        now = asyncio.get_running_loop().time()
        for channel in [idle for idle in self._open if not idle.users and idle.idle_since + self._keepalive <= now]:
            self._retire(channel)
        idle = [channel.idle_since for channel in self._open if not channel.users]
        if idle:
            self._sweep_at(min(idle) + self._keepalive)
