"""Our own connections: HTTP clients of one connection each, lent to requests and thrown away after any trouble.

httpcore's pool asks every connection for its health before every request, keeps entries that nothing can use after some
cancellations, and never renews a connection in steady use. Clients of one connection each need no such pool. There are
at most as many as requests in flight. The one used last is used first. One that has met anything but a whole answer
carries no further request.
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
"""Seconds that a connection is used: then a new one is opened, which follows a change of the host's address."""

KEEPALIVE: Final = 4.0
"""Seconds. Common servers close idle connections after 5 s or later; one of ours must never be reused as they do."""


@attrs.define(eq=False)
class Channel:
    """An HTTP client that carries one request at a time, or many over HTTP/2.

    Attributes:
        client: the client.
        born_at: when it was made (loop time).
        users: requests that it carries.
        retired: whether it carries no further request.
        idle_since: when it carried its last request, if it carries none (loop time).
    """

    client: httpx.AsyncClient
    born_at: float
    users: int = 0
    retired: bool = False
    idle_since: float = 0.0


class Connections:
    """Lends channels to requests, and closes those that are idle, old or broken.

    Args:
        make: makes a client, quickly.
        shared: whether one channel carries all requests (HTTP/2).
        max_age: seconds after which a channel carries no further request.
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
        # Those that may carry another request; the last one given back is last.
        self._open: list[Channel] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._ended = False

    def take(self) -> Channel:
        """Return a channel for one request; raises what `make` raises."""
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
            channel: as `take` returned it.
            sound: whether the request had its whole answer, and nothing more came.
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
        """Close what is open; a channel in use is closed when its last request is over."""
        self.retire_all()
        if self._closing:
            await asyncio.wait(self._closing)

    def retire_all(self) -> None:
        """Have no channel carry a further request, and begin to close those that are idle."""
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
            # In an empty context: a visitor's is not to live as long as a connection takes to close.
            closing = contextvars.Context().run(asyncio.get_running_loop().create_task, channel.client.aclose())
            self._closing.add(closing)
            closing.add_done_callback(self._closed)

    def _closed(self, closing: asyncio.Task[None]) -> None:
        self._closing.discard(closing)
        if not closing.cancelled():
            # Looked at, or asyncio would log it: there is nobody to whom it makes a difference.
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
