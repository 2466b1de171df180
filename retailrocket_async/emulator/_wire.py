"""Works on the connection below HTTP: records when a request was read, and breaks connections on purpose."""

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

# The value of SO_LINGER for zero seconds. With this value, closing the socket drops unsent data, and sends the peer a
# TCP RST.
_NO_LINGER: Final = struct.pack("ii", 1, 0)


class WireProtocol(H11Protocol):
    """Uvicorn's HTTP/1.1 protocol, with access to the connection of a request.

    Attributes:
        closes_on_reuse: True if the connection is closed, without handling the request, when the next request arrives.
    """

    closes_on_reuse = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Store the new connection in the state that the scope of every request contains."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, _KEY: transport}
        # The access log is switched off here and not in uvicorn's Config. Config would remove the handlers of uvicorn's
        # access logger, and the tested application may use this logger.
        self.access_log = False

    def handle_events(self) -> None:
        """Handle received data, and store the current time in the scope of a request whose head is now complete."""
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
    """Return the connection of the request that *scope* describes.

    Raises:
        RuntimeError: the application is not served by `WireProtocol`.
    """
    transport: asyncio.Transport | None = scope.get("state", {}).get(_KEY)
    if transport is None:
        raise RuntimeError("breaking a connection needs the emulator's own server: running_emulator() or serve()")
    return transport


def read_at(scope: MutableMapping[str, Any]) -> float | None:
    """Return the `time.monotonic` at which the head of the request that *scope* describes was read.

    Return None if the application is not served by `WireProtocol`.
    """
    moment: float | None = scope.get("state", {}).get(_READ_AT)
    return moment


def is_gone(scope: MutableMapping[str, Any]) -> bool:
    """Return whether the connection of the request that *scope* describes was closed or lost.

    Return False if the application is not served by `WireProtocol`.
    """
    transport: asyncio.Transport | None = scope.get("state", {}).get(_KEY)
    return transport is not None and transport.is_closing()


def close_on_reuse(transport: asyncio.Transport) -> None:
    """Close the connection with a TCP FIN when the next request begins to arrive on this connection."""
    cast("WireProtocol", transport.get_protocol()).closes_on_reuse = True


def reset(transport: asyncio.Transport) -> None:
    """Close the connection with a TCP RST."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()


def abort(transport: asyncio.Transport) -> None:
    """Close the connection immediately, without sending the data in the write buffer."""
    transport.abort()


def cut(transport: asyncio.Transport, data: bytes = b"") -> None:
    """Write *data* unchanged to the connection, and close the connection with a TCP FIN."""
    if data:
        transport.write(data)
    transport.close()
