"""The body of a request. The body also records which step the request has reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import httpx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Withdrawn(Exception):  # noqa: N818 - not an error; it never leaves this package
    """Raised inside httpcore to end a request that was withdrawn, or is not permitted, before its body was written."""


class NotProcessed(Exception):  # noqa: N818 - the word of HTTP/2
    """Raised inside httpcore to end a request that the server did not process, and that httpcore would send again."""


class Body(httpx.AsyncByteStream):
    """The body of a request. The body also records which step the request has reached.

    Args:
        content: the bytes to send.
        on_written: called when the bytes are written.
        once: whether to raise `NotProcessed` if httpcore sends the body a second time. The second request would have no
            permit of the rate limiter.
        may_write: called right before the request is written; if the result is False, the request ends. None
            (default): the request is always written.

    Attributes:
        on_written: called when the body is written; None if nothing has to be called any more.
        length: the size of the body in bytes.
        taken: whether the body was handed to the connection, so that the API may receive the body.
        step: the request's step before the body is taken: ``"wait"`` (for a connection of the pool), ``"connect"``,
            ``"secure"`` (the TLS handshake) or ``"write"``.
        opened: the network stream that the request has opened. None before a stream is opened, and again as soon as the
            TLS handshake is complete or the body is taken. Until then, httpcore may fail to close the stream, so
            `Exchange` closes the stream itself.
    """

    def __init__(
        self,
        content: bytes,
        on_written: Callable[[], None],
        *,
        once: bool,
        may_write: Callable[[], bool] | None = None,
    ) -> None:
        self._content = content
        self.on_written: Callable[[], None] | None = on_written
        self._once = once
        self._may_write = may_write
        self._withdrawn = False
        self.length = len(content)
        self.taken = False
        self.step: Literal["wait", "connect", "secure", "write"] = "wait"
        self.opened: Any = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._check()
        self.taken = True
        self.opened = None
        yield self._content
        # The connection asks for the next chunk only after the connection has written `content`.
        if self.on_written is not None:
            self.on_written()

    def withdraw(self) -> None:
        """Make the request end before its body is written, and forget `on_written`."""
        self._withdrawn = True
        self.on_written = None

    def _check(self) -> None:
        if self._withdrawn or (self._may_write is not None and not self._may_write()):
            raise Withdrawn
        if self.taken and self._once:
            raise NotProcessed

    async def follow(self, event: str, info: dict[str, Any]) -> None:
        """Record a step of the request; httpcore's extension ``trace`` calls this method.

        Raises:
            Withdrawn: the request was withdrawn, or must not be written now. Raised only when httpcore begins to send
                the headers, because an error at that step leaves httpcore's pool in order.
            NotProcessed: httpcore is about to send the body again.
        """
        name = event.partition(".")[2]
        if name == "send_request_headers.started":
            self.step = "write"
            self._check()
        elif self.taken:
            return
        elif name in ("connect_tcp.started", "connect_unix_socket.started"):
            self.step = "connect"
        elif name in ("connect_tcp.complete", "connect_unix_socket.complete"):
            self.step, self.opened = "write", info["return_value"]
        elif name == "start_tls.started":
            self.step = "secure"
        elif name == "start_tls.complete":
            self.step, self.opened = "write", None
