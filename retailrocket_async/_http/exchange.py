"""Makes one request in a separate task, so that the caller may stop waiting for the answer at any time.

If a request is cancelled before it is written, httpcore loses its connection: the connection stays in the pool,
neither idle nor closed. So a request is cancelled only if no connection is lost:

=========================  =======================================================================================
the request has            if its caller stops waiting, or its time is up
=========================  =======================================================================================
no connection yet          it is withdrawn: it ends as soon as it has a connection, and writes nothing. If its time
                           is up it is cancelled. On a client of our own, which is thrown away, it is cancelled too
a connection being opened  the same, but it is withdrawn on a client of our own too: a cancelled `connect` of anyio
                           may lose a socket
begun to write its body    it is cancelled, and httpcore closes the connection
a status                   it goes on, and reads the rest of the answer for a second, so the connection stays usable
=========================  =======================================================================================

No timer ends a request before the event loop has read its sockets (`Alarm`). A process that was stopped, or whose loop
was blocked, finds the answers that came meanwhile.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import attrs

from retailrocket_async._http.alarm import Alarm
from retailrocket_async._http.body import NotProcessed
from retailrocket_async._http.reply import FailureKind, Reply, parse_http_date, parse_retry_after
from retailrocket_async._runtime.foreign_code import ends_task, without_frames

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import httpx

    from retailrocket_async._http.body import Body

_ANSWER_BYTES: Final = 64 * 1024
"""Bytes of an answer's body that are read to keep the connection usable; the bodies of the API are empty."""

_ANSWER_START: Final = 4096
"""Bytes of an answer's body that are kept, for `RetryPolicy.is_throttled`."""

_ANSWER_SECONDS: Final = 1.0
"""Seconds for which an answer's body is read; the status, which decides, has come before."""

_LINGER: Final = 30.0
"""Seconds after which a request is cancelled whose caller stopped waiting, if it has no time-out as a whole."""

_REFUSED_STREAM: Final = 7
"""HTTP/2's code for a stream that the server has not processed (RFC 9113, 8.7)."""


class _Unanswered(Protocol):
    def __call__(self, error: Exception, *, sent: bool) -> Reply: ...


class Exchange:
    """Makes one request in a task, which the constructor starts.

    Args:
        client: sends the request.
        request: has `body` as its stream, and time-outs of its own.
        body: its body.
        serial: `Credentials.serial` of the key in the request.
        ends_at: the loop time at which the request's time-out passes; None for no time-out.
        unanswered: makes a `Reply` of the exception that ended the request, given whether the body was sent.
        unconnected: the kind of failure if the time-out passes before the request begins to open a connection.
        expendable: whether `client` is thrown away if the request fails.
        over: called once, when nothing of the request is left, with whether the connection may be used again.
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
        self._left = self._cancelled = self._reading = self._sound = False
        self._detail = "TimeoutError"
        self._alarm = None if ends_at is None else Alarm(ends_at, self._overdue)
        self._timeouts: dict[str, float | None] = request.extensions["timeout"]
        self._on_sent, body.on_written = body.on_written, self._written
        request.extensions["trace"] = body.follow
        self._task: asyncio.Task[None] = self._loop.create_task(self._run(client, request))
        self._task.add_done_callback(self._ended)

    @property
    def task(self) -> asyncio.Task[None]:
        """The task that makes the request."""
        return self._task

    async def reply(self) -> Reply:
        """Return the reply; raises nothing but the cancellation of its caller, and Ctrl-C."""
        try:
            reply = await self._answer
        except BaseException:
            self.leave()
            raise
        return attrs.evolve(reply, body=self._start())

    def leave(self) -> None:
        """End the request as soon as that loses no connection: its caller has stopped waiting."""
        self._left = True
        if self._reply is not None:
            return
        self._body.withdraw()
        self._on_sent = None
        if self._body.taken or (self._expendable and self._body.step != "connect"):
            self.cancel()
        elif self._alarm is None:
            self._alarm = Alarm(self._loop.time() + _LINGER, self.cancel)

    def cancel(self) -> None:
        """Cancel the request, even if that loses a connection."""
        if not self._cancelled and not self._task.done():
            self._cancelled = True
            self._task.cancel()

    def _written(self) -> None:
        if self._on_sent is not None:
            self._on_sent()
        read = self._timeouts["read"]
        if self._alarm is None and read is not None:
            # Takes the read time-out over from httpx, which looks it up before each read: the timer of httpx would end
            # the request before the loop has read its socket.
            self._timeouts["read"] = None
            self._alarm = Alarm(self._loop.time() + read, self._overdue)
            self._detail = "ReadTimeout"

    def _overdue(self) -> None:
        """End the request because its time-out has passed."""
        body = self._body
        if not self._answer.done():
            failure, detail = self._lateness()
            reply = Reply(failure=failure, detail=detail, sent=body.taken, serial=self._serial)
            self._answer.set_result(self._reply or reply)
        self.leave()
        if self._reply is None:
            self.cancel()

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
        except Exception as error:  # noqa: BLE001 - only the error's name leaves
            if self._reply is None:
                sent = self._body.taken and not _unprocessed(error)
                self._reply = attrs.evolve(self._unanswered(error, sent=sent), serial=self._serial)
        except BaseException as error:  # noqa: BLE001 - cancellation and Ctrl-C are raised below
            if self._body.step == "secure" and self._body.opened is not None:
                # httpcore closes the stream only after an `Exception`.
                await self._body.opened.aclose()
            if not ends_task(error):
                self._broken(error)
            elif isinstance(error, asyncio.CancelledError):
                if not self._cancelled:
                    raise without_frames(error)  # noqa: B904 - from itself
            elif self._left or self._answer.done():
                # The error is Ctrl-C, and no caller waits for the answer, so raise the error here.
                raise without_frames(error)  # noqa: B904 - from itself
            else:
                self._answer.set_exception(without_frames(error))

    async def _exchanged(self, client: httpx.AsyncClient, request: httpx.Request) -> None:
        response = await client.send(request, stream=True, auth=None, follow_redirects=False)
        try:
            self._reply = _read(response, self._serial)
            start, ended = await self._rest(response)
            # In a function, as tools that print attributes do not look into one: an answer may repeat the key.
            self._start = lambda: start
            if ended and has_leftover(response):
                # Close the connection: the extra bytes would be read as the answer to the next request.
                await response.extensions["network_stream"].aclose()
                ended = False
            self._sound = ended
        finally:
            await response.aclose()

    async def _rest(self, response: httpx.Response) -> tuple[bytes, bool]:
        """Read the rest of the answer, within bounds, so that its connection can be used again.

        Returns the start of the body, and whether the body was read to its end.
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
            # Decisions read the status alone, which is there, so the rest of the answer does not matter.
            if ends_task(error) and not self._cancelled:
                raise
            return start, False
        finally:
            self._reading = False
            alarm.cancel()
        return start, True

    def _stop_reading(self) -> None:
        # Closing or returning the connection must not be cancelled.
        if self._reading:
            self.cancel()

    def _broken(self, error: BaseException) -> None:
        if self._reply is None:
            detail, sent = type(error).__name__, self._body.taken
            self._reply = Reply(failure="broken", detail=detail, sent=sent, serial=self._serial)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if not task.cancelled():
            # Retrieve the error, because asyncio would otherwise log it.
            task.exception()
        # Breaks the reference cycles, so that nothing is left to the garbage collector.
        self._body.withdraw()
        self._on_sent = None
        self._over(self, self._sound)
        if not self._answer.done():
            cancelled = Reply(failure="broken", detail="CancelledError", sent=self._body.taken, serial=self._serial)
            self._answer.set_result(self._reply or cancelled)


def _read(response: httpx.Response, serial: int) -> Reply:
    now = parse_http_date(response.headers.get("Date")) or datetime.now(UTC)
    retry_after = parse_retry_after(response.headers.get("Retry-After"), now=now)
    return Reply(status=response.status_code, retry_after=retry_after, serial=serial)


def _unprocessed(error: BaseException) -> bool:
    """Whether an HTTP/2 server said that it has not processed the request, so that the events are not recorded."""
    if isinstance(error, NotProcessed):
        return True
    for argument in getattr(error.__cause__, "args", ()):
        # Events of h2: `ConnectionTerminated` (GOAWAY), and `StreamReset` below. If GOAWAY names a later stream, it is
        # httpcore that sends the request again.
        if getattr(argument, "last_stream_id", None) == 0:
            return True
        if hasattr(argument, "remote_reset") and getattr(argument, "error_code", None) == _REFUSED_STREAM:
            return True
    return False


_TO_CONNECTION: Final = ("_stream", "_httpcore_stream", "_stream", "_connection")
"""Private attributes of httpx and httpcore on the way from a response's stream to its HTTP/1.1 connection."""


def has_leftover(response: httpx.Response) -> bool:
    """Whether bytes came after the end of an HTTP/1.1 response that was read; False if httpx does not show that."""
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
        # httpcore checks the socket itself before it uses the connection again.
        return False
    # The socket does not show bytes that were read from it and are not decrypted yet.
    with suppress(ssl.SSLWantReadError):
        try:
            tls.read(1)
        except ssl.SSLWantReadError:
            raise
        except ssl.SSLError:
            return True
        return True
    return False
