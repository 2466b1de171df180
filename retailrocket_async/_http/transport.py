"""Sends requests with httpx, and returns a reply for each request.

Every failure is returned as a `Reply`. No exception of httpx leaves this package: such an exception holds the request,
its traceback holds the URL, and the URL holds the key.
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
"""Seconds for one request as a whole, or the four time-outs of httpx."""

DEFAULT_TIMEOUT: Final = 10.0

_CLOSING: Final = 0.25
"""Seconds that requests without a waiting caller get at the close, to end without losing a connection of the pool."""

_CONNECTING: Final = frozenset({"name", "connect", "tls", "proxy"})
"""Failures that a proxy may have caused."""

_TOO_LATE: Final = "the time of a request is up"

_UNBOUNDED: Final[dict[str, float | None]] = {"connect": None, "read": None, "write": None, "pool": None}
"""The time-outs of httpx if the request as a whole has one: the timers of httpx end a request whose answer is there
but not read yet."""


class Transport(Protocol):
    """Sends requests. Its methods raise no error except the cancellation of the caller."""

    async def post(self, path: str, body: bytes, *, on_sent: Callable[[], None]) -> Reply:
        """Send `body` to `path`, relative to the base URL, and return the reply; call `on_sent` once it is written."""
        ...

    async def renew_key(self, serial: int) -> tuple[bool, str | None]:
        """Get the key again, unless it has changed since the request whose `Reply.serial` is `serial`.

        Returns whether the key has changed, and the name of the error if getting the key failed, otherwise None.
        """
        ...

    async def aclose(self) -> None:
        """Close what the transport opened itself."""
        ...


class HttpxTransport:
    """Sends requests by httpx: over connections of its own, opened at first use, or by the caller's client.

    Args:
        credentials: make the query string.
        base_url: as `checked_base_url` returns it.
        timeout: seconds for one request as a whole, or an `httpx.Timeout` for its parts.
        http_client: the caller's own client, shared and never closed here; None for our own connections.
        connections: connections of our own HTTP/2 client if the server speaks HTTP/1.1 after all; without HTTP/2 there
            are as many as requests in flight.
        http2: whether our own client offers HTTP/2 (extra ``http2``); unused with the caller's client.

    Raises:
        ConfigurationError: `http2` is set and its package is not installed, or a bad `timeout` or `http_client`.
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
        # A proxy of the environment is another host, which could read requests by plain http to this host.
        trusted = base_url.startswith("https:") or not is_loopback(httpx.URL(base_url).host)
        self._environment = EnvironmentReader(base_url, trusted=trusted)
        self._suspected = False
        self._retired: list[Connections] = []
        filter_secrets()

    async def post(self, path: str, body: bytes, *, on_sent: Callable[[], None]) -> Reply:
        """Send `body` to `path` and return the reply; raises nothing but the cancellation of its caller."""
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
        except Exception as error:  # noqa: BLE001 - no request was made; only the error's name leaves
            return attrs.evolve(self._unanswered(error, sent=False), serial=serial)
        except BaseException as error:  # noqa: BLE001 - cancellation and Ctrl-C are raised below
            if not ends_task(error):
                return Reply(failure="broken", detail=type(error).__name__, sent=False, serial=serial)
            # Without the frames below: they hold the URL with the key, and some tools print variables.
            raise without_frames(error)  # noqa: B904 - from itself

    async def renew_key(self, serial: int) -> tuple[bool, str | None]:
        """Get the key again, unless it has changed since `serial`; see `Transport`."""
        return await self._credentials.renew(serial)

    async def aclose(self) -> None:
        """Close our own connections; those of a caller's client stay open."""
        self._credentials.close()
        if self._opening is not None:
            self._opening.cancel()
        connections, self._connections = self._connections, None
        if connections is not None:
            self._retired.append(connections)
        try:
            await self._end_exchanges()
        finally:
            # Even if this call is cancelled. A connection in use is closed when its last request has ended.
            for retired in self._retired:
                retired.retire_all()
        while self._retired:
            await self._retired.pop().aclose()

    async def _end_exchanges(self) -> None:
        """End all requests, giving them a moment to leave their connections in order."""
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
        """Start a request, over a connection of our own or by the caller's client."""
        connections = self._connections
        channel = None if connections is None else connections.take()

        def over(exchange: Exchange, sound: bool) -> None:  # noqa: FBT001 - a callback
            self._exchanges.discard(exchange)
            if connections is not None and channel is not None:
                connections.give_back(channel, sound=sound)

        client = channel.client if channel is not None else self._client
        assert client is not None  # noqa: S101 - `post` has opened the connections
        content = Body(body, on_sent, once=channel is not None)
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
        """Return the reply for a request that ended in `error`; `client` is the client that made it, if one did."""
        if isinstance(error, EnvironmentUnusableError):
            return Reply(failure="config", detail=str(error), sent=False)
        if isinstance(error, httpx.ProxyError):
            return refused_by_proxy(str(error), self._environment.proxy, self._proxy_address())
        kind = failure_kind(error, closed=client is not None and client.is_closed)
        return Reply(failure=kind, detail=failure_detail(error), sent=sent)

    def _proxied(self, reply: Reply) -> Reply:
        """Return `reply`, naming the proxy if the proxy may be to blame."""
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
        """Return host and port of the proxy of our requests; None if there is none, or it is not known."""
        if self._client is None:
            return None if self._environment.proxy is None else self._environment.proxy.address
        return proxy_address(self._client, self._base_url)

    def _follow_environment(self) -> None:
        """Give up our connections if a request could not connect, and a variable of the environment has changed."""
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
        # The constructor made an `httpx.URL` of it, which lacks the key.
        request.url = url
        return request

    async def _open(self, ends_at: float | None) -> None:
        """Read the environment and prepare our connections, once for all requests that wait for it."""
        opening = self._opening
        # If the last attempt failed or was cancelled, this request makes another one.
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception() is not None)):
            # In an empty context, as the task outlives the request that happens to be the first.
            self._opening = opening = detached(asyncio.create_task, self._read_environment())
        waiting = asyncio.shield(opening)
        # If this request's time is up, the reading goes on, and the next request waits for the rest of it.
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
        # In a thread: reading the certificate store takes tens of milliseconds. In one thread at a time: it holds the
        # interpreter's lock, and many such threads would starve the event loop.
        async with _turns_to_open.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            return await call_in_thread(self._environment.read)

    def _make_client(self, environment: Environment) -> HttpClient:
        """Return an HTTP client of one connection, or for HTTP/2; takes less than a millisecond."""
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
    """Keeps no cookie and reads none: reading a thousand cookies would take longer than the request."""

    def extract_cookies(self, response: object, request: object) -> None:
        pass


_turns_to_open: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]] = WeakKeyDictionary()


def _timeouts(timeout: Timeout) -> tuple[float | None, dict[str, float | None]]:
    """Return the seconds for a request as a whole, if there is such a bound, and the time-outs of httpx."""
    if isinstance(timeout, httpx.Timeout):
        return None, timeout.as_dict()
    if type(timeout) not in (int, float) or not 0 < timeout < float("inf"):
        raise ConfigurationError("timeout must be a number of seconds above 0, or an httpx.Timeout")
    return timeout, _UNBOUNDED


async def _forget_target(response: httpx.Response) -> None:
    # httpx parses a redirect's target even if it does not follow it, and raises an error if it is not a URL.
    response.headers.pop("Location", None)
