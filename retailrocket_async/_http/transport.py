"""One request over the wire; with `_exchange` and `_connections` the only module that names `httpx`.

Whatever happens comes back as a `Reply`, a value: no exception of httpx leaves these files, since its exceptions hold
the request and their tracebacks the URL.

The key belongs in the query string (API document, "Query"), where everything that prints a URL would print it. So
the request's URL is a `_KeyedURL`: every form of it that is printed, logged, copied or compared lacks the query; only
`raw_path`, which the connection writes to the socket, has it.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import os
import socket
import ssl
from http.cookiejar import CookieJar
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast
from urllib.parse import unquote
from weakref import WeakKeyDictionary

import attrs
import httpx

from retailrocket_async._errors import ConfigurationError, type_name
from retailrocket_async._http.connections import KEEPALIVE, Connections
from retailrocket_async._http.environment import (
    Environment,
    EnvironmentReader,
    EnvironmentUnusableError,
    address_of,
    asks_for_credentials,
    refused_by_proxy,
)
from retailrocket_async._http.exchange import Alarm, Body, Exchange
from retailrocket_async._http.reply import FailureKind, Reply
from retailrocket_async._runtime.context import detached
from retailrocket_async._runtime.extras import installed
from retailrocket_async._runtime.foreign_code import ends_task
from retailrocket_async._runtime.setting_text import has_blanks, has_surrogates
from retailrocket_async._runtime.thread_call import call_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from retailrocket_async._http.credentials import Credentials

HttpClient: TypeAlias = httpx.AsyncClient
"""A caller's own HTTP client."""

Timeout: TypeAlias = float | httpx.Timeout
"""Seconds for one request as a whole, or the four time-outs of httpx."""

DEFAULT_BASE_URL: Final = "https://apptracking.retailrocket.net/1.0/"
DEFAULT_TIMEOUT: Final = 10.0
TEST_MODE: Final = "RETAILROCKET_TEST_MODE"
"""An environment variable: while it is set, and not to 0, a client sends to this host alone."""

_MAX_URL: Final = 8_000
"""Characters: what every server should take (RFC 9110, 4.1). Beyond 65,536, path and all, httpx raises."""

_CLOSING: Final = 0.25
"""Seconds that requests which were left get at the close, to end without losing a connection of the caller's pool."""

_TOO_LATE: Final = "the time of a request is up"

_UNBOUNDED: Final[dict[str, float | None]] = {"connect": None, "read": None, "write": None, "pool": None}
"""The time-outs of httpx if there is one for the request as a whole: its timers would not read before they judge."""


class Transport(Protocol):
    """What carries one request; must not raise but for cancellation."""

    async def post(self, path: str, body: bytes, *, on_sent: Callable[[], None]) -> Reply:
        """Send `body` to `path` (relative to the base URL) and return what came back.

        `on_sent` is called once the body is written.
        """
        ...

    async def renew_key(self, serial: int) -> tuple[bool, str | None]:
        """Ask for the key again, unless it has changed since the one of `serial` (`Reply.serial`).

        Returns whether it is another one now, and the name of what went wrong, if anything did.
        """
        ...

    async def aclose(self) -> None:
        """Close what the transport opened itself."""
        ...


class _KeyedURL(httpx.URL):
    """A URL that has the credentials, as they are now, where the connection reads it, and nowhere else."""

    def __init__(self, url: str, credentials: Credentials) -> None:
        super().__init__(url)
        target = credentials.target(super().raw_path)
        # Printers of attributes do not look into a function, and pickle refuses one.
        self._target: Callable[[], bytes] = lambda: target
        self.serial = credentials.serial

    @property
    def raw_path(self) -> bytes:
        return self._target()

    @property
    def raw(self) -> Any:  # noqa: ANN401 - a class that httpx does not export
        """Return the parts as older transports read them, without the query: only `raw_path` has it."""
        return super().copy_with().raw


class HttpxTransport:
    """Sends requests by httpx: over one client of its own, made at first use, or over the caller's.

    Args:
        credentials: what goes into the query string.
        base_url: as checked by `checked_base_url`.
        timeout: seconds for one request as a whole, or an `httpx.Timeout` for its parts.
        http_client: the caller's own client, shared and never closed here; None for our own.
        connections: connections of our own HTTP/2 client if the server speaks HTTP/1.1 after all; HTTP/1.1 alone opens
            as many as requests are in flight.
        http2: whether our own client offers HTTP/2 (extra ``http2``); unused with the caller's.

    Raises:
        ConfigurationError: HTTP/2 is asked for and its package is not installed, or a bad `timeout` or `http_client`.
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
        self._urls: dict[str, _KeyedURL] = {}
        self._connections: Connections | None = None
        self._opening: asyncio.Task[Environment] | None = None
        self._exchanges: set[Exchange] = set()
        # A proxy of the environment is another host, which would read plain http; through TLS it cannot look.
        trusted = base_url.startswith("https:") or not _is_loopback(httpx.URL(base_url).host)
        self._environment = EnvironmentReader(base_url, trusted=trusted)
        self._suspected = False
        self._retired: list[Connections] = []
        _silence_targets()

    async def post(self, path: str, body: bytes, *, on_sent: Callable[[], None]) -> Reply:
        """Send `body` to `path` and return what came back; raises nothing but cancellation."""
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
        except Exception as error:  # noqa: BLE001 - no request was made; whatever it is, nothing but its name leaves
            return attrs.evolve(self._unanswered(error, sent=False), serial=serial)
        except BaseException as error:  # noqa: BLE001 - what is no failure passes
            if not ends_task(error):
                return Reply(failure="broken", detail=type(error).__name__, sent=False, serial=serial)
            # Cancelled, or Ctrl-C. The frames below hold the request target, and some tools print their variables.
            error.__cause__ = error.__context__ = None
            raise error.with_traceback(None)  # noqa: B904 - from itself

    async def renew_key(self, serial: int) -> tuple[bool, str | None]:
        """Ask for the key again, unless it has changed since the one of `serial`; see `Transport`."""
        return await self._credentials.renew(serial)

    async def aclose(self) -> None:
        """Close our own connections, if there are any; the caller's stay open."""
        self._credentials.close()
        if self._opening is not None:
            self._opening.cancel()
        connections, self._connections = self._connections, None
        if connections is not None:
            self._retired.append(connections)
        try:
            await self._end_exchanges()
        finally:
            # Also if this call is cancelled: what is in use is closed when its last request is over.
            for retired in self._retired:
                retired.retire_all()
        while self._retired:
            await self._retired.pop().aclose()

    async def _end_exchanges(self) -> None:
        for exchange in self._exchanges:
            exchange.leave()
        try:
            if self._exchanges:
                await asyncio.wait([exchange.task for exchange in self._exchanges], timeout=_CLOSING)
        finally:
            for exchange in self._exchanges:
                exchange.cut()
        if self._exchanges:
            await asyncio.wait([exchange.task for exchange in self._exchanges])

    def _begin(self, path: str, body: bytes, on_sent: Callable[[], None], ends_at: float | None) -> Exchange:
        """Begin a request, on a connection of our own or by the caller's client."""
        connections = self._connections
        channel = None if connections is None else connections.take()

        def over(exchange: Exchange, sound: bool) -> None:  # noqa: FBT001 - a callback
            self._exchanges.discard(exchange)
            if connections is not None and channel is not None:
                connections.give_back(channel, sound=sound)

        client = channel.client if channel is not None else self._client
        assert client is not None  # noqa: S101 - `post` has opened
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
            unconnected=self._unconnected(client),
            expendable=channel is not None,
            over=over,
        )
        self._exchanges.add(exchange)
        return exchange

    def _unanswered(self, error: Exception, *, sent: bool, client: HttpClient | None = None) -> Reply:
        """Return what it means that a request ended in `error`, on this client if it had one."""
        if isinstance(error, EnvironmentUnusableError):
            return Reply(failure="config", detail=str(error), sent=False)
        if isinstance(error, httpx.ProxyError):
            return refused_by_proxy(str(error), self._environment.proxy, self._proxy_address())
        kind = _kind(error, closed=client is not None and client.is_closed)
        detail = _NO_NAMES if _needs_pool(error) else type(error).__name__
        return Reply(failure=kind, detail=detail, sent=sent)

    def _proxied(self, reply: Reply) -> Reply:
        """Return a reply with the proxy's name if the fault may be the proxy's."""
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
        """Return host and port of the proxy that requests go through; None if there is none, or it is not known."""
        if self._client is None:
            return None if self._environment.proxy is None else self._environment.proxy.address
        # httpx tells nobody, so it takes private attributes; where they are missing, the name is left out.
        client = cast("Any", self._client)
        try:
            return address_of(client._transport_for_url(httpx.URL(self._base_url))._pool._proxy_url)  # noqa: SLF001
        except Exception:  # noqa: BLE001 - a caller's client may be of any make
            return None

    def _follow_environment(self) -> None:
        """Have this request open another client if the last one could not connect and a variable has changed since."""
        suspected, self._suspected = self._suspected, False
        if suspected and self._connections is not None and self._environment.changed():
            # What other requests use of it is closed when they are over.
            self._connections.retire_all()
            self._retired.append(self._connections)
            self._connections = self._opening = None

    def _unconnected(self, client: HttpClient) -> FailureKind:
        """Return what it means that the time was up and no connection was even begun."""
        if self._client is None:
            return "timeout"
        # Private, as in `check_verified`: a caller's transport of another make has no pool that we know.
        transport_for = getattr(client, "_transport_for_url", None)
        transport = transport_for(httpx.URL(self._base_url)) if callable(transport_for) else None
        return "pool" if isinstance(transport, httpx.AsyncHTTPTransport) else "timeout"

    def _request(self, client: HttpClient, path: str, stream: Body) -> httpx.Request:
        url = self._urls.get(path)
        if url is None or url.serial != self._credentials.serial:
            url = self._urls[path] = _KeyedURL(self._base_url + path, self._credentials)
        headers = httpx.Headers(client.headers)
        headers["Host"] = url.netloc.decode("ascii")
        headers["Content-Type"] = "application/json"
        headers["Content-Length"] = str(stream.length)
        request = httpx.Request("POST", url, headers=headers, stream=stream, extensions={"timeout": dict(self._phases)})
        # The constructor keeps a plain copy of the URL.
        request.url = url
        return request

    async def _open(self, ends_at: float | None) -> None:
        # Reading the certificate store takes tens of milliseconds: in a thread, once, whoever waits for it.
        opening = self._opening
        # Anew where it failed, or was cancelled with everything else: the next request may fare better.
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception() is not None)):
            # In an empty context: it must not keep that of the request which happens to be first.
            self._opening = opening = detached(asyncio.create_task, self._opened())
        waiting = asyncio.shield(opening)
        # It goes on if this request's time is up: the next one finds it further on.
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

    async def _opened(self) -> Environment:
        # One at a time: it holds the interpreter's lock, and many threads that do so leave nothing to the loop.
        async with _turns_to_open.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            return await call_in_thread(self._environment.read)

    def _make_client(self, environment: Environment) -> HttpClient:
        """Return a client of one connection, or for HTTP/2; takes less than a millisecond."""
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
    """Keeps no cookie, and reads none: a thousand would take longer than the request."""

    def extract_cookies(self, response: object, request: object) -> None:
        pass


_turns_to_open: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]] = WeakKeyDictionary()


def checked_base_url(base_url: str, *, allow_insecure: bool) -> str:
    """Return `base_url` with a slash at its end, once it is sure that the key may be sent there.

    Raises:
        ConfigurationError: no absolute http(s) URL, or one of more than 8,000 characters with the slash at its end; a
            query, fragment or user in it; plain ``http://`` to another host than this one without `allow_insecure`; or
            any other host than this one in a test run, see `TEST_MODE`.
    """
    complaint = _url_complaint(base_url, allow_insecure=allow_insecure)
    if complaint:
        # It may be about credentials in it; see `Credentials`.
        del base_url
        raise ConfigurationError(complaint)
    text = str(httpx.URL(base_url))
    return text if text.endswith("/") else text + "/"


def _unreadable(base_url: object) -> str | None:
    # httpx strips or encodes blanks, which would then be part of every request's path.
    blanks = "base_url must not hold white space or control characters, nor their encoded forms: strip() it"
    if isinstance(base_url, str) and has_surrogates(base_url):
        return f"base_url must be a URL like {DEFAULT_BASE_URL}, without lone surrogates"
    if isinstance(base_url, str) and has_blanks(base_url):
        return blanks
    try:
        url = httpx.URL(cast("str", base_url))
        # ValueError: a host or a path that has no encoding.
        text, _, _ = str(url), url.host, url.port
    except TypeError:
        return f"base_url must be a URL like {DEFAULT_BASE_URL}, not {type_name(base_url)}"
    except (httpx.InvalidURL, ValueError):
        return f"base_url must be a URL like {DEFAULT_BASE_URL}"
    return blanks if has_blanks(unquote(text)) else None


def _url_complaint(base_url: str, *, allow_insecure: bool) -> str | None:  # noqa: PLR0911 - a sentence for each rule
    if unreadable := _unreadable(base_url):
        return unreadable
    url = httpx.URL(base_url)
    text, host, port = str(url), url.host, url.port
    if url.scheme not in ("http", "https") or not host:
        return f"base_url must begin with https:// and name a host, like {DEFAULT_BASE_URL}"
    if port is not None and not 1 <= port <= 65_535:
        return "base_url must have a port from 1 to 65535, or none"
    # In the text, as an empty query or fragment would swallow the path all the same.
    if "?" in text or "#" in text or url.userinfo:
        return "base_url must have no query, fragment or user: credentials are api_key, partner_id"
    if len(text.removesuffix("/")) >= _MAX_URL:
        return f"base_url must be at most {_MAX_URL:,} characters long, the slash at its end counted"
    if _is_loopback(host):
        return None
    if os.environ.get(TEST_MODE, "0") not in ("", "0"):
        return (
            f"base_url must be on this host while {TEST_MODE} is set, which keeps tests from the real API: give the "
            "code a RecordingClient of retailrocket_async.testing, or the base_url of an emulator"
        )
    if url.scheme == "http" and not allow_insecure:
        return (
            "base_url must begin with https://: over plain http:// anyone on the way can read the api_key; "
            "for a test host of your own say allow_insecure_http=True"
        )
    return None


def check_verified(http_client: object, base_url: str) -> None:
    """Refuse a caller's client that would send the key to anyone who calls himself `base_url`.

    As far as can be seen: what transports of other makes than httpx do is their makers' word.

    Raises:
        ConfigurationError: TLS verification is off in the transport that it uses for `base_url`.
    """
    # httpx tells nobody how a client verifies, so it takes private attributes; where they are missing, it passes.
    transport_for = getattr(http_client, "_transport_for_url", None)
    if not callable(transport_for) or not base_url.startswith("https:"):
        return
    context = getattr(getattr(transport_for(httpx.URL(base_url)), "_pool", None), "_ssl_context", None)
    if isinstance(context, ssl.SSLContext) and not (context.verify_mode and context.check_hostname):
        raise ConfigurationError(
            "http_client must verify TLS certificates and host names, or anyone on the way can read the api_key: leave "
            "verify=False out; for a test host of your own say allow_insecure_http=True"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _timeouts(timeout: Timeout) -> tuple[float | None, dict[str, float | None]]:
    if isinstance(timeout, httpx.Timeout):
        return None, timeout.as_dict()
    if type(timeout) not in (int, float) or not 0 < timeout < float("inf"):
        raise ConfigurationError("timeout must be a number of seconds above 0, or an httpx.Timeout")
    return timeout, _UNBOUNDED


async def _forget_target(response: httpx.Response) -> None:
    # httpx reads a redirect's target even where it does not follow it, and raises for one that is no URL.
    response.headers.pop("Location", None)


def _kind(error: Exception, *, closed: bool) -> FailureKind:  # noqa: PLR0911 - a table
    match error:
        case httpx.ConnectError():
            return _connect_kind(error)
        case httpx.ConnectTimeout():
            return "connect"
        case httpx.PoolTimeout():
            return "pool"
        case httpx.TimeoutException() | TimeoutError():
            return "timeout"
        case RuntimeError() if closed:
            return "closed"
        case RuntimeError() if _needs_pool(error):
            return "name"
        case _:
            return "broken"


def _needs_pool(error: Exception) -> bool:
    """Whether asyncio could not ask its pool of threads, which is what it resolves names with."""
    return isinstance(error, RuntimeError) and str(error).startswith(_POOL_IS_SHUT)


_POOL_IS_SHUT: Final = (
    "cannot schedule new futures",
    "Executor shutdown has been called",
    # Of the module of the pools, if nobody has imported it before.
    "can't register atexit after shutdown",
)

_NO_NAMES: Final = "asyncio resolves no more names, as its thread pool is shut down (the main thread has ended?)"

_CONNECTING: Final = frozenset({"name", "connect", "tls", "proxy"})
"""Failures that may be the proxy's, if there is one."""


def _connect_kind(error: BaseException) -> FailureKind:
    """Return which step of connecting failed; httpx has one class for all, and the first cause tells."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, socket.gaierror):
            return "name"
        if isinstance(seen, ssl.SSLError):
            return "tls"
        seen = seen.__cause__ or seen.__context__
    return "connect"


_CODED: Final = ("Encoded header block", "Decoding ")
"""How records of HTTP/2's header coder begin that print headers in their coded form: anybody can decode it."""


class _NoTargets(logging.Filter):
    """Drops the records in which a library below prints a request target or a proxy's password."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        # Some servers and proxies repeat what they were sent, in headers or beside the status.
        return "apiKey" not in message and "basic " not in message.lower() and not message.startswith(_CODED)


_TELLS_TARGETS: Final = ("hpack.hpack", "hpack.table", "httpcore.http11", "httpcore.http2", "httpx")
"""Loggers that do: HTTP/2's header coder always, the others if an answer repeats the query or the credentials."""


def _silence_targets() -> None:
    for name in _TELLS_TARGETS:
        logger = logging.getLogger(name)
        if not any(isinstance(present, _NoTargets) for present in logger.filters):
            logger.addFilter(_NoTargets())
