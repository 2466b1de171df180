"""Makes one request in a separate task, so that the caller may stop waiting for the answer at any time.

If a request is cancelled before its body is written, httpcore loses the connection: the connection stays in the pool,
but is neither idle nor closed. So a request whose caller stops waiting is often not cancelled but withdrawn: the
request ends when it has a connection, and before it writes its body.

=========================  =======================================================================================
state of the request       what happens if the caller stops waiting
=========================  =======================================================================================
no connection yet          On the caller's client, the request is withdrawn. On a client of our own, the request is
                           cancelled, because that client is thrown away after a failed request.
a connection is opened     The request is withdrawn on any client, because anyio may lose a socket if its `connect`
                           is cancelled.
the body is being written  The request is cancelled, and httpcore closes the connection.
the status has arrived     The request goes on. The rest of the answer is read for at most a second, so that the
                           connection can be used again.
=========================  =======================================================================================

If the request's time-out passes, the request is cancelled, even if that loses a connection. But if the status has
arrived, the request goes on as described in the table.

Time-outs are timers (`Alarm`) that let the event loop read its sockets first. So if the process was stopped or the loop
was blocked, answers that arrived meanwhile are still used.
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
"""How many bytes of an answer's body are read at most, so that the connection can be used again. The API's bodies are
empty."""

_ANSWER_START: Final = 4096
"""How many bytes of an answer's body are stored at most, for `RetryPolicy.is_throttled`."""

_ANSWER_SECONDS: Final = 1.0
"""Seconds for which an answer's body is read at most. The status has arrived before the body."""

_LINGER: Final = 30.0
"""Seconds after which a withdrawn request is cancelled if it has no time-out for the request as a whole."""

_REFUSED_STREAM: Final = 7
"""HTTP/2's error code REFUSED_STREAM: the server has not processed the request (RFC 9113, 8.7)."""


class _Unanswered(Protocol):
    def __call__(self, error: Exception, *, sent: bool) -> Reply: ...


class Exchange:
    """Makes one request in a task. The constructor starts the task.

    Args:
        client: the HTTP client that sends the request.
        request: the request. Its stream must be `body`, and no other request may share the dict of its time-outs,
            because this class changes the dict.
        body: the request's body.
        serial: `Credentials.serial` of the key in the request.
        ends_at: the loop time at which the request's time-out passes; None for no time-out.
        unanswered: called with the exception that ended the request, and with whether the body was sent; returns the
            `Reply`.
        unconnected: the kind of failure if the time-out passes before the request begins to open a connection.
        expendable: whether `client` is thrown away if the request fails, so that a lost connection does no harm.
        over: called once, when the task has ended, with this object and with whether the connection may be used again.
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
        """Return the reply. Raises only the cancellation of the caller, and Ctrl-C."""
        try:
            reply = await self._answer
        except BaseException:
            self.leave()
            raise
        return attrs.evolve(reply, body=self._start())

    def leave(self) -> None:
        """End the request, because the caller has stopped waiting; the table at the top of this module says how."""
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
        """Cancel the request now, even if httpcore then loses a connection."""
        if not self._cancelled and not self._task.done():
            self._cancelled = True
            self._task.cancel()

    def _written(self) -> None:
        if self._on_sent is not None:
            self._on_sent()
        read = self._timeouts["read"]
        if self._alarm is None and read is not None:
            # An alarm replaces the read time-out of httpx, which httpx looks up before each read. The timer of httpx
            # could end the request although its answer has arrived, because the loop has not read the socket yet.
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
        except Exception as error:  # noqa: BLE001 - the caller gets only the error's name
            if self._reply is None:
                sent = self._body.taken and not _unprocessed(error)
                self._reply = attrs.evolve(self._unanswered(error, sent=sent), serial=self._serial)
        except BaseException as error:  # noqa: BLE001 - cancellation and Ctrl-C are raised below
            if self._body.step == "secure" and self._body.opened is not None:
                # If the TLS handshake is cancelled, httpcore does not close the stream, because httpcore closes the
                # stream only after an `Exception`, which a cancellation is not.
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
            # The answer may repeat the key. So `start` is stored inside a function, because tools that print attributes
            # do not look inside functions.
            self._start = lambda: start
            if ended and has_leftover(response):
                # Close the connection: the extra bytes would be read as the answer to the next request.
                await response.extensions["network_stream"].aclose()
                ended = False
            self._sound = ended
        finally:
            await response.aclose()

    async def _rest(self, response: httpx.Response) -> tuple[bytes, bool]:
        """Read the rest of the answer, up to a limit of bytes and seconds, so that the connection can be used again.

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
            # The status has arrived, so a failure to read the rest of the answer is ignored.
            if ends_task(error) and not self._cancelled:
                raise
            return start, False
        finally:
            self._reading = False
            alarm.cancel()
        return start, True

    def _stop_reading(self) -> None:
        # When the body was read, the task closes the connection, or returns the connection to the pool. These steps
        # must not be cancelled.
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
            # Retrieve the error, because asyncio would otherwise log the error.
            task.exception()
        # Break the reference cycles, so that the objects are freed without the garbage collector.
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
    """Whether an HTTP/2 server reported that it has not processed the request, so that no event is recorded."""
    if isinstance(error, NotProcessed):
        return True
    for argument in getattr(error.__cause__, "args", ()):
        # `argument` may be an event of h2: `ConnectionTerminated` (GOAWAY) here, or `StreamReset` below. If the server
        # has processed earlier streams (`last_stream_id` is not 0) but not this one, httpcore sends the request again.
        if getattr(argument, "last_stream_id", None) == 0:
            return True
        if hasattr(argument, "remote_reset") and getattr(argument, "error_code", None) == _REFUSED_STREAM:
            return True
    return False


_TO_CONNECTION: Final = ("_stream", "_httpcore_stream", "_stream", "_connection")
"""The private attributes of httpx and httpcore that lead, one after the other, from a response's stream to the HTTP/1.1
connection."""


def has_leftover(response: httpx.Response) -> bool:
    """Whether more bytes arrived after the end of an HTTP/1.1 response; False if the connection cannot be inspected."""
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
        # Without TLS, httpcore itself checks the socket for extra bytes before it uses the connection again.
        return False
    # With TLS, the check of the socket misses bytes that were read from the socket but are not decrypted yet.
    with suppress(ssl.SSLWantReadError):
        try:
            tls.read(1)
        except ssl.SSLWantReadError:
            raise
        except ssl.SSLError:
            return True
        return True
    return False
