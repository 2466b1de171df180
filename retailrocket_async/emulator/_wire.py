"""The bare connection below HTTP: when a request was read, and how its answer is broken on purpose."""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING, Any, Final, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import MutableMapping

__all__ = ["WireProtocol", "abort", "close_on_reuse", "cut", "read_at", "reset", "transport_of"]

_KEY: Final = "retailrocket_async.emulator.transport"
_READ_AT: Final = "retailrocket_async.emulator.read_at"

# "Linger for zero seconds": closing then throws away what is unsent and answers the peer with RST.
_NO_LINGER: Final = struct.pack("ii", 1, 0)


class WireProtocol(H11Protocol):
    """Uvicorn's HTTP/1.1 that lets the application reach the connection a request came by.

    Attributes:
        closes_on_reuse: whether the next request ends the connection instead of being handled.
    """

    closes_on_reuse = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection and put it in the state that every request's scope is given."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, _KEY: transport}
        # Decided here and not in uvicorn's Config, which would strip the handlers of a logger that a host
        # application running uvicorn itself may be using.
        self.access_log = False

    def handle_events(self) -> None:
        """Handle what was read, noting when: a request's scope is given the moment at which its head was whole."""
        if self.closes_on_reuse and self.conn.trailing_data[0]:
            self.transport.close()
            return
        self.app_state[_READ_AT] = time.monotonic()
        super().handle_events()

    @property
    def busy(self) -> bool:
        """Whether a request is being handled."""
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete


def transport_of(scope: MutableMapping[str, Any]) -> asyncio.Transport:
    """Return the connection that the request of *scope* came by.

    Raises:
        RuntimeError: the application is not served by `WireProtocol`.
    """
    transport: asyncio.Transport | None = scope.get("state", {}).get(_KEY)
    if transport is None:
        raise RuntimeError("breaking a connection needs the emulator's own server: running_emulator() or serve()")
    return transport


def read_at(scope: MutableMapping[str, Any]) -> float | None:
    """Return when the head of the request of *scope* was read, on the clock of `time.monotonic`.

    None where the application is not served by `WireProtocol`.
    """
    moment: float | None = scope.get("state", {}).get(_READ_AT)
    return moment


def close_on_reuse(transport: asyncio.Transport) -> None:
    """Have the connection closed in order, with a TCP FIN, as soon as another request begins to come by it."""
    cast("WireProtocol", transport.get_protocol()).closes_on_reuse = True


def reset(transport: asyncio.Transport) -> None:
    """End the connection with a TCP RST."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()


def abort(transport: asyncio.Transport) -> None:
    """End the connection at once, without a word."""
    transport.abort()


def cut(transport: asyncio.Transport, last_words: bytes = b"") -> None:
    """Write *last_words* past HTTP and close the connection in order, with a TCP FIN."""
    if last_words:
        transport.write(last_words)
    transport.close()
