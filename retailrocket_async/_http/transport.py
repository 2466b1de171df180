"""Sends requests with httpx, and returns a reply for each request.

Every failure is returned as a `Reply`. No exception of httpx leaves this package, because the exception refers to the
request, and the URL of the request contains the key.
"""

from __future__ import annotations

import asyncio
import functools
from http.cookiejar import CookieJar
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias
from weakref import WeakKeyDictionary

import attrs
import httpx

from retailrocket_async._errors import ConfigurationError
from retailrocket_async._http.alarm import Alarm
from retailrocket_async._http.base_url import DEFAULT_BASE_URL, is_loopback
from retailrocket_async._http.body import Body
from retailrocket_async._http.callers_client import proxy_address, unconnected_kind
from retailrocket_async._http.connections import KEEPALIVE, Connections
from retailrocket_async._http.environment import (
    Environment,
    EnvironmentReader,
    EnvironmentUnusableError,
    asks_for_credentials,
    refused_by_proxy,
)
from retailrocket_async._http.exchange import Exchange
from retailrocket_async._http.failures import failure_detail, failure_kind
from retailrocket_async._http.keyed_url import KeyedURL
from retailrocket_async._http.log_filter import filter_secrets
from retailrocket_async._http.reply import Reply
from retailrocket_async._runtime.context import detached
from retailrocket_async._runtime.extras import installed
from retailrocket_async._runtime.foreign_code import ends_task, without_frames
from retailrocket_async._runtime.thread_call import call_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from retailrocket_async._http.credentials import Credentials

HttpClient: TypeAlias = httpx.AsyncClient
"""A caller's own HTTP client."""

Timeout: TypeAlias = float | httpx.Timeout
"""Seconds for one request as a whole, or an `httpx.Timeout`, which has a time-out for each of four steps."""

DEFAULT_TIMEOUT: Final = 10.0

_CLOSING: Final = 0.25
"""Seconds for which `aclose` waits for requests to end by themselves. Then `aclose` cancels the requests, and the
caller's client may lose connections."""

_CONNECTING: Final = frozenset({"name", "connect", "tls", "proxy"})
"""Kinds of failure that a proxy may have caused."""

_TOO_LATE: Final = "the time of a request is up"

_UNBOUNDED: Final[dict[str, float | None]] = {"connect": None, "read": None, "write": None, "pool": None}
"""The time-outs that httpx gets if there is a time-out for the request as a whole: httpx itself then has no time-out. A
timer of httpx could end a request whose answer has arrived but is not read yet."""


class Transport(Protocol):
    """Sends requests. The methods raise no error except the cancellation of the caller."""

    async def post(self, path: str, body: bytes, *, on_sent: Callable[[], None]) -> Reply:
        """Send `body` to `path` and return the reply.

        Args:
            path: the path, relative to the base URL.
            body: the bytes to send.
            on_sent: called when the body is written.
        """
        ...

    async def renew_key(self, serial: int) -> tuple[bool, str | None]:
        """Get the key again, unless the key has changed since the request whose `Reply.serial` is `serial`.

        Returns two values: whether the key has changed since that request; and the name of the error if getting the key
        failed, otherwise None.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections that the transport opened itself."""
        ...


class HttpxTransport:
    """Sends requests with httpx, either over connections of our own, opened at first use, or with the caller's client.

    Args:
        credentials: the key and the shop's id, from which the query string is made.
        base_url: the API's address, as `checked_base_url` returns it.
        timeout: seconds for one request as a whole, or an `httpx.Timeout` with a time-out for each of four steps.
        http_client: the caller's own client, which is never closed here; None for our own connections.
        connections: how many connections our own HTTP/2 client may open if the server speaks only HTTP/1.1. Unused
            without `http2`: then each request in flight has a connection.
        http2: whether our own client offers HTTP/2, which needs the extra ``http2``; unused with the caller's client.

    Attributes:
        may_write: called right before a request is written; if the result is False, the request is not made. None
            (default): all requests are made.

    Raises:
        ConfigurationError: the package for `http2` is not installed, or `timeout` or `http_client` is not valid.
    """

    def __init__(  # noqa: PLR0913 - a constructor of keywords
        self,
        credentials: Credentials,
        *,
        base_url: str = DEFAULT_BASE_URL,
        timeout: Timeout = DEFAULT_TIMEOUT,
        http_client: HttpClient | None = None,
        connections: int = 8,
        http2: bool = False,
    ) -> None:
        self._credentials = credentials
        self._base_url = base_url
        self._total, self._phases = _timeouts(timeout)
        if http_client is not None and not isinstance(http_client, httpx.AsyncClient):
            raise ConfigurationError(f"http_client must be an httpx.AsyncClient, not {type(http_client).__name__}")
        if http2 and not installed("h2"):
            raise ConfigurationError('http2=True needs its package: pip install "retailrocket-async[http2]"')
        self._client = http_client
        self._most_connections = connections
        self._http2 = http2
        self._urls: dict[str, KeyedURL] = {}
        self._connections: Connections | None = None
        self._opening: asyncio.Task[Environment] | None = None
        self._exchanges: set[Exchange] = set()
        # Requests by plain http to this machine use no proxy: a proxy is another host, which could read the requests.
        trusted = base_url.startswith("https:") or not is_loopback(httpx.URL(base_url).host)
        self._environment = EnvironmentReader(base_url, trusted=trusted)
        self._suspected = False
        self.may_write: Callable[[], bool] | None = None
        self._retired: list[Connections] = []
        filter_secrets()

    @property
    def longest(self) -> float:
        """Seconds for which one request may be in flight: the time-out, or the sum of the time-outs of its steps."""
        if self._total is not None:
            return self._total
        return sum(DEFAULT_TIMEOUT if seconds is None else seconds for seconds in self._phases.values())

    async def post(self, path: str, body: bytes, *, on_sent: Callable[[], None]) -> Reply:
        """Send `body` to `path` and return the reply. Raises only the cancellation of the caller, and Ctrl-C."""
        if (failure := await self._credentials.ready()) is not None:
            return Reply(failure="key", detail=failure, sent=False)
        serial = self._credentials.serial
        ends_at = None if self._total is None else asyncio.get_running_loop().time() + self._total
        try:
            if self._client is None:
                self._follow_environment()
                if self._connections is None:
                    await self._open(ends_at)
            return self._proxied(await self._begin(path, body, on_sent, ends_at).reply())
        except Exception as error:  # noqa: BLE001 - no request was made; the caller gets only the error's name
            return attrs.evolve(self._unanswered(error, sent=False), serial=serial)
        except BaseException as error:  # noqa: BLE001 - cancellation and Ctrl-C are raised below
            if not ends_task(error):
                return Reply(failure="broken", detail=type(error).__name__, sent=False, serial=serial)
            # Remove the traceback: its frames contain the URL with the key, and some tools print the variables of
            # frames.
            raise without_frames(error)  # noqa: B904 - from itself

    async def renew_key(self, serial: int) -> tuple[bool, str | None]:
        """Get the key again, unless the key has changed since the request; see `Transport.renew_key`."""
        return await self._credentials.renew(serial)

    async def aclose(self) -> None:
        """Close our own connections. The connections of a caller's client stay open."""
        self._credentials.close()
        if self._opening is not None:
            self._opening.cancel()
        connections, self._connections = self._connections, None
        if connections is not None:
            self._retired.append(connections)
        try:
            await self._end_exchanges()
        finally:
            # Begin to close the connections even if this call is cancelled. A connection in use is closed when its last
            # request has ended.
            for retired in self._retired:
                retired.retire_all()
        while self._retired:
            await self._retired.pop().aclose()

    async def _end_exchanges(self) -> None:
        """End all requests: wait up to `_CLOSING` seconds for the requests to end, then cancel the others."""
        for exchange in self._exchanges:
            exchange.leave()
        try:
            if self._exchanges:
                await asyncio.wait([exchange.task for exchange in self._exchanges], timeout=_CLOSING)
        finally:
            for exchange in self._exchanges:
                exchange.cancel()
        if self._exchanges:
            await asyncio.wait([exchange.task for exchange in self._exchanges])

    def _begin(self, path: str, body: bytes, on_sent: Callable[[], None], ends_at: float | None) -> Exchange:
        """Start a request, over a connection of our own or with the caller's client."""
        connections = self._connections
        channel = None if connections is None else connections.take()

        def over(exchange: Exchange, sound: bool) -> None:  # noqa: FBT001 - a callback
            self._exchanges.discard(exchange)
            if connections is not None and channel is not None:
                connections.give_back(channel, sound=sound)

        client = channel.client if channel is not None else self._client
        assert client is not None  # noqa: S101 - `post` has opened the connections
        content = Body(body, on_sent, once=channel is not None, may_write=self.may_write)
        try:
            request = self._request(client, path, content)
        except BaseException:
            if connections is not None and channel is not None:
                connections.give_back(channel, sound=True)
            raise
        exchange = Exchange(
            client,
            request,
            content,
            serial=self._credentials.serial,
            ends_at=ends_at,
            unanswered=functools.partial(self._unanswered, client=client),
            unconnected="timeout" if channel is not None else unconnected_kind(client, self._base_url),
            expendable=channel is not None,
            over=over,
        )
        self._exchanges.add(exchange)
        return exchange

    def _unanswered(self, error: Exception, *, sent: bool, client: HttpClient | None = None) -> Reply:
        """Return the reply for a request that ended in `error`.

        Args:
            error: the exception.
            sent: whether the body was handed to the connection.
            client: the HTTP client of the request; None if the error came before a client was used.
        """
        if isinstance(error, EnvironmentUnusableError):
            return Reply(failure="config", detail=str(error), sent=False)
        if isinstance(error, httpx.ProxyError):
            return refused_by_proxy(str(error), self._environment.proxy, self._proxy_address())
        kind = failure_kind(error, closed=client is not None and client.is_closed)
        return Reply(failure=kind, detail=failure_detail(error), sent=sent)

    def _proxied(self, reply: Reply) -> Reply:
        """Return `reply`, or, if a proxy may be to blame, a copy of the reply that names the proxy."""
        if reply.status != 407 and reply.failure not in _CONNECTING:
            return reply
        self._suspected = True
        address = self._proxy_address()
        if address is None or reply.proxy is not None:
            return reply
        if reply.status == 407:
            detail = asks_for_credentials(self._environment.proxy, address)
        else:
            detail = f"{reply.detail} by way of the proxy {address}"
        return attrs.evolve(reply, detail=detail, proxy=address)

    def _proxy_address(self) -> str | None:
        """Return host and port of the proxy that requests use, or None if no proxy is used or known."""
        if self._client is None:
            return None if self._environment.proxy is None else self._environment.proxy.address
        return proxy_address(self._client, self._base_url)

    def _follow_environment(self) -> None:
        """Retire our connections if a request could not connect and a variable of the environment has changed.

        The next request then reads the environment again.
        """
        suspected, self._suspected = self._suspected, False
        if suspected and self._connections is not None and self._environment.changed():
            # Connections that other requests use are closed when those requests have ended.
            self._connections.retire_all()
            self._retired.append(self._connections)
            self._connections = self._opening = None

    def _request(self, client: HttpClient, path: str, stream: Body) -> httpx.Request:
        url = self._urls.get(path)
        if url is None or url.serial != self._credentials.serial:
            url = self._urls[path] = KeyedURL(self._base_url + path, self._credentials)
        headers = httpx.Headers(client.headers)
        headers["Host"] = url.netloc.decode("ascii")
        headers["Content-Type"] = "application/json"
        headers["Content-Length"] = str(stream.length)
        request = httpx.Request("POST", url, headers=headers, stream=stream, extensions={"timeout": dict(self._phases)})
        # The constructor of `Request` has replaced `url` by an `httpx.URL`, which lacks the key. So set `url` again.
        request.url = url
        return request

    async def _open(self, ends_at: float | None) -> None:
        """Read the environment and prepare our connections. Requests that come meanwhile wait for the same task.

        Args:
            ends_at: the loop time at which the request's time-out passes; None for no time-out.

        Raises:
            TimeoutError: the request's time-out has passed.
            EnvironmentUnusableError: a variable of the environment cannot be used.
        """
        opening = self._opening
        # If the last attempt failed or was cancelled, this request makes another one.
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception() is not None)):
            # The new task gets an empty context, because the task may outlive the request that starts the task.
            self._opening = opening = detached(asyncio.create_task, self._read_environment())
        waiting = asyncio.shield(opening)
        # If the time-out of this request passes, the task `opening` goes on, and the next request waits for that task.
        alarm = None if ends_at is None else Alarm(ends_at, functools.partial(waiting.cancel, _TOO_LATE))
        try:
            environment = await waiting
        except asyncio.CancelledError as error:
            if error.args == (_TOO_LATE,):
                raise TimeoutError from None
            raise
        finally:
            if alarm is not None:
                alarm.cancel()
        if self._connections is None:
            self._connections = Connections(functools.partial(self._make_client, environment), shared=self._http2)

    async def _read_environment(self) -> Environment:
        # Read in a thread, because reading the certificates takes tens of milliseconds. Only one such thread runs at a
        # time, because reading holds the interpreter's lock, so many threads would starve the event loop.
        async with _turns_to_open.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            return await call_in_thread(self._environment.read)

    def _make_client(self, environment: Environment) -> HttpClient:
        """Return a new HTTP client: for one HTTP/1.1 connection or, if `http2` is set, for HTTP/2.

        The call takes less than a millisecond, because the environment was read before.
        """
        most = self._most_connections if self._http2 else 1
        limits = httpx.Limits(max_connections=most, max_keepalive_connections=most, keepalive_expiry=KEEPALIVE)
        headers = {"User-Agent": "retailrocket-async", "Accept": "application/json"}
        return httpx.AsyncClient(
            verify=environment.context,
            http2=self._http2,
            limits=limits,
            headers=headers,
            follow_redirects=False,
            event_hooks={"response": [_forget_target]},
            cookies=_NoCookies(),
            proxy=None if environment.proxy is None else environment.proxy.settings,
            trust_env=False,
        )


class _NoCookies(CookieJar):
    """A cookie jar that ignores all cookies: parsing a thousand cookies would take longer than the request."""

    def extract_cookies(self, response: object, request: object) -> None:
        pass


_turns_to_open: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]] = WeakKeyDictionary()


def _timeouts(timeout: Timeout) -> tuple[float | None, dict[str, float | None]]:
    """Return the time-out for a request as a whole (seconds, or None if there is none), and the time-outs for httpx."""
    if isinstance(timeout, httpx.Timeout):
        return None, timeout.as_dict()
    if type(timeout) not in (int, float) or not 0 < timeout < float("inf"):
        raise ConfigurationError("timeout must be a number of seconds above 0, or an httpx.Timeout")
    return timeout, _UNBOUNDED


async def _forget_target(response: httpx.Response) -> None:
    # Remove the target of a redirect, because httpx parses the target even if the redirect is not followed, and raises
    # an error if the target is not a URL.
    response.headers.pop("Location", None)
