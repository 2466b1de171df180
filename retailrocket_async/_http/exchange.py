"""One request and its answer, in a task of its own that the caller may leave at any moment.

httpcore loses the connection of a request that is cancelled before it is written: the connection stays in its pool,
neither idle nor closed. So a request is cancelled only if nothing can be lost:

=========================  =======================================================================================
the request has            if its caller leaves, or its time is up
=========================  =======================================================================================
no connection yet          it is withdrawn: it ends as soon as it has one, and writes nothing. The time-out cancels
                           it. On a client of our own, which is thrown away, it is cancelled at once
a connection being opened  the same, but on our own client too: a cancelled `connect` of anyio may lose a socket
begun to write its body    it is cancelled, and httpcore closes the connection
a status                   it goes on, and reads the rest of the answer for a second, so the connection stays usable
=========================  =======================================================================================

No timer judges before the event loop has read its sockets. A process that was stopped, or whose loop was blocked, finds
the answers that came meanwhile.
"""

from __future__ import annotations

import asyncio
import contextvars
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, cast

import attrs
import httpx

from retailrocket_async._http.reply import FailureKind, Reply, parse_http_date, parse_retry_after
from retailrocket_async._runtime.foreign_code import ends_task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_ANSWER_BYTES: Final = 64 * 1024
"""How much of an answer's body is read to keep the connection; the API's are empty."""

_ANSWER_START: Final = 4096
"""How much of it is kept, for `RetryPolicy.is_throttled`."""

_ANSWER_SECONDS: Final = 1.0
"""How long it is read; the status, which decides, is there already."""

_TURNS: Final = 64
"""Turns of the event loop, each of which reads the sockets, between the end of a wait and the judgement.

A request takes about ten from the first byte of its answer to the last."""

_LINGER: Final = 30.0
"""Seconds after which a request that was left is cancelled, if there is no time-out for it as a whole."""

_REFUSED_STREAM: Final = 7
"""HTTP/2's code for a stream that the server has not processed (RFC 9113, 8.7)."""


class Withdrawn(Exception):  # noqa: N818 - it is no error, and never leaves the transport
    """Ends a request before it is written."""


class NotProcessed(Exception):  # noqa: N818 - named as HTTP/2 says it
    """The server said that it has not processed the request, and httpcore wants to send it again."""


class Body(httpx.AsyncByteStream):
    """A request's body, which knows how far the request has come.

    Args:
        content: the bytes.
        on_written: called once they are written.
        once: refuse to be sent a second time within one request: each request needs a permit of its own.

    Attributes:
        on_written: called once the body is written; None for nobody.
        length: bytes.
        taken: whether the body was handed to the connection, so that the API may get it.
        step: what the request does before that: wait (for a connection of the pool), connect, secure (the TLS
            handshake), or write.
        opened: the network stream that the request has opened, while nothing else closes it.
    """

    def __init__(self, content: bytes, on_written: Callable[[], None], *, once: bool) -> None:
        self._content = content
        self.on_written: Callable[[], None] | None = on_written
        self._once = once
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
        # The connection comes back for more only once it has written what it got.
        if self.on_written is not None:
            self.on_written()

    def withdraw(self) -> None:
        """Have the request end before it is written, and forget the caller."""
        self._withdrawn = True
        self.on_written = None

    def _check(self) -> None:
        if self._withdrawn:
            raise Withdrawn
        if self.taken and self._once:
            raise NotProcessed

    async def follow(self, event: str, info: dict[str, Any]) -> None:
        """Note a step of httpcore; its extension ``trace`` calls this.

        Raises:
            Withdrawn: the request was withdrawn; only at the one step that leaves httpcore's pool in order.
            NotProcessed: httpcore begins to send it again.
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


class Alarm:
    """Calls a function at a time of the loop, but not before the loop has read what lies in its sockets.

    Its handle is empty of the caller's context: the loop keeps cancelled handles until their time.
    """

    def __init__(self, at: float, call: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._call = call
        self._handle: asyncio.Handle = self._loop.call_at(at, self._ring, _TURNS, context=contextvars.Context())

    def cancel(self) -> None:
        """Do not call the function."""
        self._handle.cancel()

    def _ring(self, turns: int) -> None:
        if turns:
            self._handle = self._loop.call_soon(self._ring, turns - 1)
        else:
            self._call()


class _Unanswered(Protocol):
    def __call__(self, error: Exception, *, sent: bool) -> Reply: ...


class Exchange:
    """A request on its way; see the module's text.

    Args:
        client: what sends it.
        request: with `body` as its stream, and time-outs of its own.
        body: its body.
        serial: which of the keys it carries.
        ends_at: when its time is up (loop time); None for never.
        unanswered: returns what it means that the request ended in an exception, told whether its body was sent.
        unconnected: what it is if the time is up before there was anything of a connection.
        expendable: whether `client` is thrown away if this goes wrong.
        over: called once, when nothing of the request is left; told whether the connection may be used again.
    """

    def __init__(  # noqa: PLR0913 - a record of what it carries
        self,
        client: httpx.AsyncClient,
        request: httpx.Request,
        body: Body,
        *,
        serial: int,
        ends_at: float | None,
        unanswered: _Unanswered,
        unconnected: FailureKind,
        expendable: bool,
        over: Callable[[Exchange, bool], None],
    ) -> None:
        self._body = body
        self._serial = serial
        self._unanswered = unanswered
        self._unconnected = unconnected
        self._expendable = expendable
        self._over = over
        self._loop = asyncio.get_running_loop()
        self._reply: Reply | None = None
        self._answer: asyncio.Future[Reply] = self._loop.create_future()
        self._start: Callable[[], bytes] = bytes
        self._left = self._cut_off = self._reading = self._sound = False
        self._detail = "TimeoutError"
        self._alarm = None if ends_at is None else Alarm(ends_at, self._overdue)
        self._timeouts: dict[str, float | None] = request.extensions["timeout"]
        self._tell_sent, body.on_written = body.on_written, self._written
        request.extensions["trace"] = body.follow
        self._task: asyncio.Task[None] = self._loop.create_task(self._run(client, request))
        self._task.add_done_callback(self._ended)

    @property
    def task(self) -> asyncio.Task[None]:
        """The task of the request."""
        return self._task

    async def reply(self) -> Reply:
        """Return what came back; raises nothing but cancellation, and what ends the interpreter."""
        try:
            reply = await self._answer
        except BaseException:
            self.leave()
            raise
        return attrs.evolve(reply, body=self._start())

    def leave(self) -> None:
        """Wait for it no longer: end it as soon as that costs no connection."""
        self._left = True
        if self._reply is not None:
            return
        self._body.withdraw()
        self._tell_sent = None
        if self._body.taken or (self._expendable and self._body.step != "connect"):
            self.cut()
        elif self._alarm is None:
            self._alarm = Alarm(self._loop.time() + _LINGER, self.cut)

    def cut(self) -> None:
        """Cancel it, whatever that costs."""
        if not self._cut_off and not self._task.done():
            self._cut_off = True
            self._task.cancel()

    def _written(self) -> None:
        if self._tell_sent is not None:
            self._tell_sent()
        read = self._timeouts["read"]
        if self._alarm is None and read is not None:
            # Taken over from httpx, whose timer judges before the loop has read; it looks at this before each read.
            self._timeouts["read"] = None
            self._alarm = Alarm(self._loop.time() + read, self._overdue)
            self._detail = "ReadTimeout"

    def _overdue(self) -> None:
        body = self._body
        if not self._answer.done():
            failure, detail = self._lateness()
            reply = Reply(failure=failure, detail=detail, sent=body.taken, serial=self._serial)
            self._answer.set_result(self._reply or reply)
        self.leave()
        if self._reply is None:
            self.cut()

    def _lateness(self) -> tuple[FailureKind, str]:
        if self._body.taken:
            return "timeout", self._detail
        if self._body.step != "wait":
            return "connect", "ConnectTimeout"
        if self._unconnected == "pool":
            return "pool", "PoolTimeout"
        return "timeout", "TimeoutError"

    async def _run(self, client: httpx.AsyncClient, request: httpx.Request) -> None:
        try:
            await self._exchanged(client, request)
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing but its name leaves
            if self._reply is None:
                sent = self._body.taken and not _unprocessed(error)
                self._reply = attrs.evolve(self._unanswered(error, sent=sent), serial=self._serial)
        except BaseException as error:  # noqa: BLE001 - what is no failure passes
            if self._body.step == "secure" and self._body.opened is not None:
                # httpcore closes it only after an `Exception`.
                await self._body.opened.aclose()
            if not ends_task(error):
                self._broken(error)
            elif isinstance(error, asyncio.CancelledError):
                if not self._cut_off:
                    raise _bare(error)  # noqa: B904 - from itself
            elif self._left or self._answer.done():
                # Ctrl-C, and nobody waits who could pass it on.
                raise _bare(error)  # noqa: B904 - from itself
            else:
                self._answer.set_exception(_bare(error))

    async def _exchanged(self, client: httpx.AsyncClient, request: httpx.Request) -> None:
        response = await client.send(request, stream=True, auth=None, follow_redirects=False)
        try:
            self._reply = _read(response, self._serial)
            start, ended = await self._rest(response)
            # In a function, as printers of attributes do not look into one: an answer may repeat the key.
            self._start = lambda: start
            if ended and has_leftover(response):
                # It would be taken for the answer to the next request.
                await response.extensions["network_stream"].aclose()
                ended = False
            self._sound = ended
        finally:
            await response.aclose()

    async def _rest(self, response: httpx.Response) -> tuple[bytes, bool]:
        """Read the rest of the answer, so that its connection can be used again, but not without end.

        Returns its start, and whether it was read to its end.
        """
        start, size = b"", 0
        alarm = Alarm(self._loop.time() + _ANSWER_SECONDS, self._stop_reading)
        self._reading = True
        try:
            async for chunk in cast("AsyncIterator[bytes]", response.stream):
                size += len(chunk)
                start += chunk[: _ANSWER_START - len(start)]
                if size > _ANSWER_BYTES:
                    return start, False
        except BaseException as error:
            # With a status in hand the rest of the answer does not matter: decisions read the status alone.
            if ends_task(error) and not self._cut_off:
                raise
            return start, False
        finally:
            self._reading = False
            alarm.cancel()
        return start, True

    def _stop_reading(self) -> None:
        # Not while the connection is being closed or handed back: that is not to be cancelled.
        if self._reading:
            self.cut()

    def _broken(self, error: BaseException) -> None:
        if self._reply is None:
            detail, sent = type(error).__name__, self._body.taken
            self._reply = Reply(failure="broken", detail=detail, sent=sent, serial=self._serial)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if not task.cancelled():
            # Looked at, or asyncio would log it.
            task.exception()
        # Nothing that refers to itself is left to the collector.
        self._body.withdraw()
        self._tell_sent = None
        self._over(self, self._sound)
        if not self._answer.done():
            cut = Reply(failure="broken", detail="CancelledError", sent=self._body.taken, serial=self._serial)
            self._answer.set_result(self._reply or cut)


def _bare(error: BaseException) -> BaseException:
    """Return the error without the frames below: they hold the request's target, and some tools print variables."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _read(response: httpx.Response, serial: int) -> Reply:
    now = parse_http_date(response.headers.get("Date")) or datetime.now(UTC)
    retry_after = parse_retry_after(response.headers.get("Retry-After"), now=now)
    return Reply(status=response.status_code, retry_after=retry_after, serial=serial)


def _unprocessed(error: BaseException) -> bool:
    """Whether an HTTP/2 server said that it has not processed the request, so that it was not recorded."""
    if isinstance(error, NotProcessed):
        return True
    for argument in getattr(error.__cause__, "args", ()):
        # h2's events `ConnectionTerminated` (GOAWAY) and `StreamReset`. For a later last stream httpcore itself knows.
        if getattr(argument, "last_stream_id", None) == 0:
            return True
        if hasattr(argument, "remote_reset") and getattr(argument, "error_code", None) == _REFUSED_STREAM:
            return True
    return False


_TO_CONNECTION: Final = ("_stream", "_httpcore_stream", "_stream", "_connection")
"""Private attributes of httpx and httpcore on the way from a response's stream to its HTTP/1.1 connection."""


def has_leftover(response: httpx.Response) -> bool:
    """Whether bytes came after the end of an HTTP/1.1 response that was read; False if httpx does not show it."""
    connection: Any = response.stream
    for name in _TO_CONNECTION:
        connection = getattr(connection, name, None)
    state = getattr(connection, "_h11_state", None)
    if state is None:
        return False
    if getattr(state, "trailing_data", (b"",))[0]:
        return True
    tls = response.extensions["network_stream"].get_extra_info("ssl_object")
    if not isinstance(tls, ssl.SSLObject):
        # httpcore looks at the socket before the connection is used again.
        return False
    # The socket does not show what was read from it, and not decrypted yet.
    with suppress(ssl.SSLWantReadError):
        try:
            tls.read(1)
        except ssl.SSLWantReadError:
            raise
        except ssl.SSLError:
            return True
        return True
    return False
