"""The transport sends requests to a real server on loopback, which answers, fails or breaks the connection."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from typing import TYPE_CHECKING

import hpack
import httpx
import pytest

from retailrocket_async import ConfigurationError
from retailrocket_async._http.base_url import checked_base_url
from retailrocket_async._http.credentials import Credentials
from retailrocket_async._http.environment import Environment, EnvironmentReader
from retailrocket_async._http.reply import Reply, Verdict
from retailrocket_async._http.transport import HttpxTransport
from tests.support.fakes import ROUNDING
from tests.support.internals import channels_of, set_timeout
from tests.support.raw_server import OK, Arrived, RawServer, answer, raw_server, reset
from tests.support.virtual_time import run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

KEY = "s3cr3t-k3y/+&"
BODY = b'[{"view":{}}]'


def _credentials() -> Credentials:
    return Credentials(KEY, "partner")


async def _post(server: RawServer, *, seconds: float = 5.0, sent: Callable[[], None] = lambda: None) -> Reply:
    transport = HttpxTransport(_credentials(), base_url=server.url, timeout=seconds)
    try:
        return await transport.post("visitorEvents", BODY, on_sent=sent)
    finally:
        await transport.aclose()


async def test_a_request_follows_the_contract() -> None:
    """If a request is sent, the server gets method, path, query, headers and body as given."""
    async with raw_server() as server:
        reply = await _post(server)
        [request] = server.arrived

    assert Reply(status=200) == reply
    assert (request.method, request.path, request.body) == ("POST", "/1.0/visitorEvents", BODY)
    assert request.query == {"apiKey": [KEY], "partnerId": ["partner"]}
    assert request.headers["content-type"] == "application/json"
    assert str(len(BODY)) == request.headers["content-length"]
    assert server.url.split("/")[2] == request.headers["host"]


@pytest.mark.parametrize("status", [200, 204, 301, 307, 400, 401, 403, 404, 408, 413, 429, 500, 503, 599])
async def test_every_status_comes_back_as_a_value(status: int) -> None:
    """If the server answers with any status, the transport returns this status and follows no redirect."""
    async with raw_server() as server:
        server.always(answer(status, "Location: http://127.0.0.1:9/elsewhere"))
        reply = await _post(server)

        assert (status, 1) == (reply.status, len(server.arrived))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (["Retry-After: 7"], 7.0),
        (["Date: Mon, 23 Nov 2026 10:00:00 GMT", "Retry-After: Mon, 23 Nov 2026 10:00:30 GMT"], 30.0),
        (["Retry-After: soon"], None),
        ([], None),
    ],
)
async def test_retry_after_is_read_in_both_forms(header: list[str], expected: float | None) -> None:
    """If `Retry-After` has seconds or a date, the seconds are returned; a date is compared with the Date header."""
    async with raw_server() as server:
        server.always(answer(429, *header))

        assert expected == (await _post(server)).retry_after


async def test_on_sent_is_called_once_after_the_body() -> None:
    """If a request is sent, `on_sent` is called exactly once, after the whole body is written."""
    calls: list[int] = []
    async with raw_server() as server:
        await _post(server, sent=lambda: calls.append(1))

    assert calls == [1]


async def test_a_refused_connection_is_certainly_not_recorded() -> None:
    """If no server listens, the failure is `connect`, and the event was not recorded."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    transport = HttpxTransport(_credentials(), base_url=f"http://127.0.0.1:{port}/1.0/")
    reply = await transport.post("view", BODY, on_sent=lambda: None)
    await transport.aclose()

    assert (reply.failure, reply.maybe_recorded, reply.verdict) == ("connect", False, Verdict.TRANSIENT)


async def test_an_answer_that_never_comes_is_a_timeout_that_may_be_recorded() -> None:
    """If the server reads but does not answer, the request times out, and the event may be recorded."""

    async def stall(_: Arrived, __: asyncio.StreamWriter) -> bytes:
        await asyncio.get_running_loop().create_future()
        return OK

    async with raw_server() as server, httpx.AsyncClient() as http_client:
        server.respond = stall
        # The connection is already open, so two seconds are enough to send the request even on a busy machine.
        transport = HttpxTransport(_credentials(), base_url=server.url, timeout=2.0, http_client=http_client)
        reply = await transport.post("visitorEvents", BODY, on_sent=lambda: None)

    assert (reply.failure, reply.maybe_recorded) == ("timeout", True)


async def test_the_timeout_is_for_the_request_as_a_whole() -> None:
    """If an answer arrives byte by byte without end, the request ends after `timeout` seconds."""

    async def trickle(_: Arrived, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not writer.is_closing():
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with raw_server() as server:
        server.respond = trickle
        reply = await _post(server, seconds=0.3)

    assert reply.failure == "timeout"


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200", b"NOT HTTP AT ALL\r\n\r\n"], ids=["closed", "cut", "garbage"])
async def test_a_broken_answer_may_be_recorded(raw: bytes) -> None:
    """If the connection breaks after the request was read, the event may be recorded."""

    async def break_off(_: Arrived, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()

    async with raw_server() as server:
        server.respond = break_off
        reply = await _post(server)

    assert (reply.failure, reply.maybe_recorded) == ("broken", True)


async def test_a_reset_may_be_recorded() -> None:
    """If the connection is reset after the request was read, the event may be recorded."""

    async def rst(_: Arrived, writer: asyncio.StreamWriter) -> None:
        reset(writer)

    async with raw_server() as server:
        server.respond = rst
        reply = await _post(server)

    assert (reply.failure, reply.maybe_recorded) == ("broken", True)


async def test_a_status_counts_even_if_its_body_never_ends() -> None:
    """If a 200 has a truncated body, the request counts as accepted."""

    async def truncate(_: Arrived, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()

    async with raw_server() as server:
        server.respond = truncate

        assert Reply(status=200) == await _post(server)


async def test_an_endless_answer_is_not_read_to_its_end() -> None:
    """If the body is endless, the client stops reading, and the reply is returned as usual."""

    async def flood(_: Arrived, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x" * 65536)
            await writer.drain()

    async with raw_server() as server:
        server.respond = flood

        assert Reply(status=200) == await _post(server)


async def test_connections_are_kept_between_requests() -> None:
    """If ten requests follow each other, they share one connection."""
    async with raw_server() as server:
        transport = HttpxTransport(_credentials(), base_url=server.url)
        for _ in range(10):
            await transport.post("visitorEvents", BODY, on_sent=lambda: None)
        await transport.aclose()

        assert (len(server.arrived), server.connections) == (10, 1)


async def test_a_callers_client_is_shared_and_stays_open() -> None:
    """If a caller's HTTP client is used, its headers and hooks apply, and closing the transport does not close it."""
    seen: list[str] = []

    async def hook(request: httpx.Request) -> None:
        seen.append(str(request.url))

    async with (
        raw_server() as server,
        httpx.AsyncClient(headers={"X-Shop": "1"}, event_hooks={"request": [hook]}, params={"a": "b"}) as own,
    ):
        transport = HttpxTransport(_credentials(), base_url=server.url, http_client=own)
        reply = await transport.post("view", BODY, on_sent=lambda: None)
        await transport.aclose()
        [request] = server.arrived

        assert (reply.status, own.is_closed, request.headers["x-shop"]) == (200, False, "1")
        assert request.query == {"apiKey": [KEY], "partnerId": ["partner"]}
        assert [server.url + "view"] == seen


async def test_a_callers_client_does_not_authenticate_for_us() -> None:
    """If the caller's HTTP client has an `auth`, the package's requests do not use this `auth`."""
    async with raw_server() as server, httpx.AsyncClient(auth=("user", "password")) as own:
        transport = HttpxTransport(_credentials(), base_url=server.url, http_client=own)
        reply = await transport.post("view", BODY, on_sent=lambda: None)

        assert 200 == reply.status
        assert "authorization" not in server.arrived[0].headers


async def test_a_callers_closed_client_is_no_network_failure() -> None:
    """If the caller has closed the HTTP client, the failure is `closed`, and the event was not recorded."""
    own = httpx.AsyncClient()
    await own.aclose()
    transport = HttpxTransport(_credentials(), base_url="http://127.0.0.1:9/", http_client=own)
    reply = await transport.post("view", BODY, on_sent=lambda: None)

    assert (reply.failure, reply.verdict, reply.maybe_recorded) == ("closed", Verdict.UNCLEAR, False)


async def test_the_key_is_on_the_wire_and_in_nothing_that_prints(caplog: pytest.LogCaptureFixture) -> None:
    """If requests, responses and URLs are printed or logged, the text does not contain the key."""
    printed: list[str] = []

    async def on_request(request: httpx.Request) -> None:
        printed.extend(
            [repr(request), str(request.url), repr(request.url), str(request.url.copy_with()), repr(vars(request))]
        )

    async def on_response(response: httpx.Response) -> None:
        printed.extend([repr(response), str(response.url), repr(response.request), str(response.request.url.params)])

    caplog.set_level(logging.DEBUG)
    hooks = {"request": [on_request], "response": [on_response]}
    async with raw_server() as server, httpx.AsyncClient(event_hooks=hooks) as own:
        for http_client in (own, None):
            transport = HttpxTransport(_credentials(), base_url=server.url, http_client=http_client)
            await transport.post("view", BODY, on_sent=lambda: None)
            printed.extend([repr(transport), repr(vars(transport))])
            await transport.aclose()
        keys = [request.query["apiKey"] for request in server.arrived]

    assert keys == [[KEY], [KEY]]
    assert len(caplog.records) > 10
    text = "\n".join([*printed, *(record.getMessage() + repr(vars(record)) for record in caplog.records)])
    assert not [secret for secret in (KEY, "s3cr3t", "apiKey=") if secret in text]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("apptracking.retailrocket.net/1.0", "begin with https://"),
        ("ftp://apptracking.retailrocket.net/1.0/", "begin with https://"),
        ("http://apptracking.retailrocket.net/1.0/", "allow_insecure_http"),
        ("http://127.0.0.1.example.com/", "allow_insecure_http"),
        ("https://user:password@apptracking.retailrocket.net/1.0/", "user"),
        ("https://apptracking.retailrocket.net/1.0/?apiKey=1", "query"),
        ("https://apptracking.retailrocket.net/1.0/#x", "fragment"),
        ("https://apptracking.retailrocket.net/1.0/?", "query"),
        ("https://apptracking.retailrocket.net/1.0#", "fragment"),
        ("https://", "name a host"),
        ("https://a:65536/", "a port from 1 to 65535"),
        ("https://a:-1/", "a port from 1 to 65535"),
        ("https://a:0/", "a port from 1 to 65535"),
        ("https://xn--/", "must be a URL"),
        ("https://a/\ud800", "must be a URL"),
        ("https://\ud800/", "must be a URL"),
        ("https://a/" + "x" * 8_000, "at most 8,000"),
        ("https://a/" + "я" * 3_000, "at most 8,000"),
        (b"https://x/", "must be a URL"),
        (None, "must be a URL"),
    ],
)
def test_a_base_url_that_cannot_be_meant_is_refused(url: str, says: str) -> None:
    """If a base URL is wrong, `ConfigurationError` is raised and says what to write."""
    with pytest.raises(ConfigurationError, match=says):
        checked_base_url(url, allow_insecure=False)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://apptracking.retailrocket.net/1.0", "https://apptracking.retailrocket.net/1.0/"),
        ("http://localhost:8080/1.0/", "http://localhost:8080/1.0/"),
        ("http://127.0.0.2/", "http://127.0.0.2/"),
        ("http://[::1]:80/x", "http://[::1]/x/"),
    ],
)
def test_a_base_url_ends_in_a_slash(url: str, expected: str) -> None:
    """If a base URL is https, or http on this host, it is accepted; a missing slash at its end is added."""
    assert expected == checked_base_url(url, allow_insecure=False)


def test_plain_http_elsewhere_needs_an_explicit_yes() -> None:
    """If a base URL is http on another host, it is accepted only with `allow_insecure`."""
    assert checked_base_url("http://shop.test/1.0", allow_insecure=True) == "http://shop.test/1.0/"


@pytest.mark.parametrize("value", ["", " key", "key\n", "k\x00y", None, 5, b"key"])
@pytest.mark.parametrize("name", ["api_key", "partner_id"])
def test_credentials_that_cannot_be_meant_are_refused(name: str, value: str) -> None:
    """If the key or the shop's id is empty, padded or no str, `ConfigurationError` is raised and hides the value."""
    given = {"api_key": "key", "partner_id": "partner", name: value}
    with pytest.raises(ConfigurationError, match=name) as caught:
        Credentials(**given)

    assert "k\x00y" not in str(caught.value)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), True, "5", None])
def test_a_timeout_that_cannot_be_meant_is_refused(timeout: float) -> None:
    """If the timeout is neither a positive number of seconds nor an `httpx.Timeout`, an error is raised."""
    with pytest.raises(ConfigurationError, match="timeout"):
        HttpxTransport(_credentials(), timeout=timeout)


async def test_the_four_timeouts_of_httpx_are_taken_as_they_are() -> None:
    """If the timeout is an `httpx.Timeout`, its read timeout limits the wait for the answer."""

    async def stall(_: Arrived, __: asyncio.StreamWriter) -> bytes:
        await asyncio.get_running_loop().create_future()
        return OK

    async with raw_server() as server:
        server.respond = stall
        transport = HttpxTransport(_credentials(), base_url=server.url, timeout=httpx.Timeout(5, read=0.1))
        reply = await transport.post("view", BODY, on_sent=lambda: None)
        await transport.aclose()

    assert (reply.failure, reply.detail) == ("timeout", "ReadTimeout")


def test_an_http_client_of_another_kind_is_refused() -> None:
    """If the HTTP client is a sync `httpx.Client`, `ConfigurationError` is raised."""
    with httpx.Client() as sync, pytest.raises(ConfigurationError, match=r"httpx\.AsyncClient"):
        HttpxTransport(_credentials(), http_client=sync)  # type: ignore[arg-type]


def test_credentials_print_and_pickle_nothing() -> None:
    """If credentials are shown by `repr`, the key is hidden; pickling them raises an error."""
    import pickle

    credentials = _credentials()
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        pickle.dumps(credentials)

    assert repr(credentials) == "Credentials(api_key='***', partner_id='partner')"


async def test_closing_an_unused_transport_opens_nothing() -> None:
    """If an unused transport is closed once or twice, no error is raised."""
    transport = HttpxTransport(_credentials())
    await transport.aclose()
    await transport.aclose()


async def test_closing_while_the_client_is_made_leaves_no_task() -> None:
    """If a transport is closed while its connections are prepared, no task is left over."""
    transport = HttpxTransport(_credentials())
    posting = asyncio.create_task(transport.post("view", BODY, on_sent=lambda: None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    posting.cancel()
    await transport.aclose()
    await asyncio.wait({posting})
    await asyncio.sleep(0)

    assert posting.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("taken", [True, False])
async def test_a_cancelled_task_of_a_transport_is_broken(*, taken: bool) -> None:
    """If a caller's transport raises `CancelledError` although no task was cancelled, the failure is `broken`."""

    class Cancelled(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if taken:
                await request.aread()
            waited = asyncio.get_running_loop().create_future()
            waited.cancel()
            await waited
            raise AssertionError

    async with httpx.AsyncClient(transport=Cancelled()) as client:
        transport = HttpxTransport(_credentials(), http_client=client)
        reply = await transport.post("view", BODY, on_sent=lambda: None)

    assert (reply.failure, reply.detail, reply.maybe_recorded) == ("broken", "CancelledError", taken)


async def test_a_failed_opening_is_repeated() -> None:
    """If preparing the connections fails or is cancelled, the waiting request fails, but the next request succeeds."""
    async with raw_server() as server:
        transport = HttpxTransport(_credentials(), base_url=server.url)
        first = asyncio.create_task(transport.post("view", BODY, on_sent=lambda: None))
        await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = await transport.post("view", BODY, on_sent=lambda: None)
        await transport.aclose()

    assert 200 == second.status


async def test_an_opening_that_takes_long_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a request times out while the certificates are read, the reading goes on, and the next request uses them."""
    go_on, made = threading.Event(), []
    read = EnvironmentReader.read

    def slow(reader: EnvironmentReader) -> Environment:
        made.append(1)
        go_on.wait()
        return read(reader)

    monkeypatch.setattr(EnvironmentReader, "read", slow)
    async with raw_server() as server:
        transport = HttpxTransport(_credentials(), base_url=server.url, timeout=0.1)
        first = await transport.post("view", BODY, on_sent=lambda: None)
        go_on.set()
        set_timeout(transport, 30.0)
        second = await transport.post("view", BODY, on_sent=lambda: None)
        await transport.aclose()

    assert ("timeout", False, 200, [1]) == (first.failure, first.sent, second.status, made)


async def test_a_proxy_of_the_environment_is_not_used_for_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """If plain http on this host is used, `HTTP_PROXY` is ignored, because the proxy would get the key."""
    async with raw_server() as proxy, raw_server() as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/1.0/"))
        reply = await _post(server)

        assert (200, 1, []) == (reply.status, len(server.arrived), proxy.arrived)


async def test_a_redirect_that_repeats_the_query_leaves_no_key_in_a_log(caplog: pytest.LogCaptureFixture) -> None:
    """If a `Location` header repeats the key, no log record contains the key."""
    caplog.set_level(logging.DEBUG)

    async def echo(request: Arrived, _: asyncio.StreamWriter) -> bytes:
        return answer(301, f"Location: https://shop.test{request.target}")

    async with raw_server() as server:
        server.respond = echo
        reply = await _post(server)

    assert 301 == reply.status
    assert not [record for record in caplog.records if "s3cr3t" in record.getMessage() + repr(vars(record))]


async def test_an_answer_that_trickles_is_not_waited_for() -> None:
    """If the rest of an answer arrives slowly, it is read for one second at most, whatever the timeouts are."""
    ended = asyncio.Event()

    async def trickle(_: Arrived, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not (ended.is_set() or writer.is_closing()):
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.05)

    async with raw_server() as server:
        server.respond = trickle
        transport = HttpxTransport(_credentials(), base_url=server.url, timeout=httpx.Timeout(30.0))
        reply = await transport.post("view", BODY, on_sent=lambda: None)
        ended.set()
        await transport.aclose()

    assert Reply(status=200) == reply


async def test_a_redirect_to_nonsense_is_a_redirect() -> None:
    """If the target of a redirect is not a URL, the reply is still a redirect."""
    async with raw_server() as server:
        server.always(answer(301, "Location: http://[::bad/"))
        reply = await _post(server)

    assert (301, Verdict.BLOCKED) == (reply.status, reply.verdict)


async def test_cookies_are_not_kept() -> None:
    """If the server sets cookies, they are neither stored nor sent back."""
    async with raw_server() as server:
        server.always(answer(200, "Set-Cookie: a=1; Path=/"))
        transport = HttpxTransport(_credentials(), base_url=server.url)
        for _ in range(2):
            await transport.post("view", BODY, on_sent=lambda: None)
        [channel] = channels_of(transport)
        kept = list(channel.client.cookies.jar)
        await transport.aclose()

    assert [] == kept
    assert "cookie" not in server.arrived[1].headers


# --- how long a connection, an answer and a URL may last ---


class SetClock:
    """A clock in place of `time.monotonic`, which asyncio and httpcore use; the test sets its time."""

    def __init__(self) -> None:
        self.time = time.monotonic()

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.time


@pytest.mark.parametrize(("idle", "connections"), [(0.0, 1), (3.99, 1), (4.01, 2), (60.0, 2)])
async def test_an_idle_connection_is_used_again_for_four_seconds(
    idle: float, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a connection was idle for less than 4 s, it is reused; otherwise a new connection is opened."""
    clock = SetClock()
    async with raw_server() as server:
        transport = HttpxTransport(_credentials(), base_url=server.url)
        # The connection is opened before the clock is replaced.
        await transport.post("view", BODY, on_sent=lambda: None)
        monkeypatch.setattr(time, "monotonic", clock)
        before = server.connections
        await transport.post("view", BODY, on_sent=lambda: None)
        for _ in range(3):
            clock.time += idle
            assert 200 == (await transport.post("view", BODY, on_sent=lambda: None)).status
        monkeypatch.undo()
        await transport.aclose()

    assert (before - 1) + 3 * (connections - 1) == server.connections - 1


class Answering(httpx.AsyncBaseTransport, httpx.AsyncByteStream):
    """A transport whose answers have these chunks as their body; a chunk of None means waiting for ever."""

    def __init__(self, *chunks: bytes | None, status: int = 200) -> None:
        self.chunks = chunks
        self.status = status
        self.read = 0
        self.closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Read the request, and return the answer."""
        assert isinstance(request.stream, httpx.AsyncByteStream)
        async for _ in request.stream:
            pass
        return httpx.Response(self.status, stream=self)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            if chunk is None:
                await asyncio.sleep(1e9)
            else:
                self.read += len(chunk)
                yield chunk

    async def aclose(self) -> None:
        """Record the close."""
        self.closed = True


async def _answer_of(server: Answering, timeout: float | httpx.Timeout = 10.0) -> Reply:  # noqa: ASYNC109 - an option
    async with httpx.AsyncClient(transport=server) as client:
        transport = HttpxTransport(_credentials(), timeout=timeout, http_client=client)
        return await transport.post("view", BODY, on_sent=lambda: None)


@pytest.mark.parametrize("chunks", [[None], [b"x" * 100, None], [b"x" * 5000, None]])
@pytest.mark.parametrize("timeout", [10.0, 1.5, httpx.Timeout(None)])
def test_the_rest_of_an_answer_gets_one_second(chunks: list[bytes | None], timeout: float | httpx.Timeout) -> None:
    """If the rest of an answer does not end, it is read for exactly one second after the status."""
    server = Answering(*chunks, status=403)

    async def test() -> float:
        reply = await _answer_of(server, timeout)
        assert Reply(status=403) == reply
        return asyncio.get_running_loop().time()

    assert pytest.approx(1.0, abs=ROUNDING) == run(test())
    assert server.closed


def test_a_status_stands_if_the_whole_time_ends_first() -> None:
    """If the rest of an answer takes longer than the request's `timeout`, the answer's status still counts."""
    server = Answering(None, status=403)

    async def test() -> float:
        assert Reply(status=403) == await _answer_of(server, 0.25)
        return asyncio.get_running_loop().time()

    assert pytest.approx(0.25, abs=ROUNDING) == run(test())


@pytest.mark.parametrize(
    "chunks", [[b"ab" * 2048], [b"ab" * 2048, b"c"], [b"ab" * 5000], [b"ab", b"", b"abab" * 4, b"ab" * 4000]]
)
async def test_the_first_four_kib_of_an_answer_are_kept(chunks: list[bytes]) -> None:
    """If an answer's body is long, `is_throttled` gets the first 4,096 bytes, however the body is split."""
    assert b"ab" * 2048 == (await _answer_of(Answering(*chunks, status=403))).body


@pytest.mark.parametrize("body", [b"", b"{}", b"x" * 4095])
async def test_a_short_answer_is_kept_whole(body: bytes) -> None:
    """If an answer's body is shorter than 4 KiB, `is_throttled` gets all of it."""
    assert body == (await _answer_of(Answering(body, status=403))).body


async def test_an_answer_is_read_up_to_64_kib() -> None:
    """If a body has at most 64 KiB, it is read completely; a longer body is not read to its end."""
    whole, longer = Answering(*[b"x" * 4096] * 16), Answering(*[b"x" * 4096] * 100)
    for server in (whole, longer):
        await _answer_of(server)

    assert (64 * 1024, 64 * 1024 + 4096) == (whole.read, longer.read)
    assert longer.closed


@pytest.mark.parametrize(
    ("length", "slash", "fits"), [(7_999, "", True), (8_000, "/", True), (8_000, "", False), (8_001, "/", False)]
)
def test_a_base_url_has_at_most_8000_characters(length: int, slash: str, fits: bool) -> None:  # noqa: FBT001
    """If a base URL has more than 8,000 characters, including the slash at its end, it is refused."""
    url = "https://shop.test/".ljust(length - len(slash), "x") + slash
    assert length == len(url)

    if fits:
        assert url.removesuffix("/") + "/" == checked_base_url(url, allow_insecure=False)
    else:
        with pytest.raises(ConfigurationError, match="at most 8,000 characters long, the slash at its end counted"):
            checked_base_url(url, allow_insecure=False)


# --- what errors and loggers hold ---


def _held_by(error: BaseException | None) -> str:
    """Return the text of an error, its causes, its contexts and the variables of their frames."""
    printed: list[str] = []
    todo, seen = [error], set[int]()
    while todo:
        error = todo.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        printed.append(repr(error))
        printed.extend(map(repr, error.args))
        frame: TracebackType | None = error.__traceback__
        while frame is not None:
            # The test's own frame contains the secret, so it is skipped.
            if not frame.tb_frame.f_code.co_name.startswith("test_"):
                printed.extend(map(repr, frame.tb_frame.f_locals.values()))
            frame = frame.tb_next
        todo += [error.__cause__, error.__context__, *getattr(error, "exceptions", ())]
    return "\n".join(printed)


class Telling(httpx.AsyncBaseTransport):
    """A transport that is cancelled while it handles an error whose message contains the URL."""

    def __init__(self) -> None:
        self.waits = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raise an error that contains the URL, and wait for ever while handling it."""
        target = request.url.raw_path.decode()
        try:
            int(target)
        except ValueError as error:
            self.waits.set()
            try:
                await asyncio.sleep(1e9)
            except asyncio.CancelledError as cancelled:
                cancelled.__cause__ = error
                raise
        raise AssertionError


async def test_the_error_of_a_cancelled_request_has_no_key() -> None:
    """If a request is cancelled, the error's causes, contexts and frames do not contain the key."""
    server = Telling()
    async with httpx.AsyncClient(transport=server) as client:
        transport = HttpxTransport(_credentials(), http_client=client)
        posting = asyncio.create_task(transport.post("view", BODY, on_sent=lambda: None))
        await server.waits.wait()
        posting.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await posting

    assert (None, None) == (caught.value.__cause__, caught.value.__context__)
    assert not [secret for secret in (KEY, "s3cr3t", "apiKey=") if secret in _held_by(caught.value)]


async def test_the_error_of_a_request_cancelled_on_the_wire_has_no_key() -> None:
    """If a request is cancelled while it waits for a real answer, the error does not contain the key."""
    arrived = asyncio.Event()

    async def stall(_: Arrived, __: asyncio.StreamWriter) -> bytes:
        arrived.set()
        await asyncio.get_running_loop().create_future()
        return OK

    async with raw_server() as server:
        server.respond = stall
        transport = HttpxTransport(_credentials(), base_url=server.url)
        posting = asyncio.create_task(transport.post("view", BODY, on_sent=lambda: None))
        await arrived.wait()
        posting.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await posting
        await transport.aclose()

    assert (None, None) == (caught.value.__cause__, caught.value.__context__)
    assert not [secret for secret in (KEY, "s3cr3t", "apiKey=") if secret in _held_by(caught.value)]


@pytest.mark.parametrize(
    "url",
    [
        "https://user:s3cr3t@shop.test/",
        "https://shop.test/?apiKey=s3cr3t",
        "https://s3cr3t:65536/",
        "https://user:s3cr3t@[::bad/",
        "https://user:s3cr3t@shop.test:nonsense/",
        "https://user:s3cr3t@shop.test/\ud800",
        "ftp://user:s3cr3t@shop.test/",
        "http://shop.test/s3cr3t",
        "https://shop.test/s3cr3t" + "x" * 8_000,
    ],
)
def test_a_refused_base_url_is_in_no_error(url: str) -> None:
    """If a base URL is refused, the error's causes, contexts and frames do not contain the URL."""
    with pytest.raises(ConfigurationError) as caught:
        checked_base_url(url, allow_insecure=False)

    assert (None, None) == (caught.value.__cause__, caught.value.__context__)
    assert "s3cr3t" not in _held_by(caught.value)


@pytest.mark.parametrize("key", ["s3cr3t key", "s3cr3t\n", " s3cr3t", "s3cr3t\ud800"])
def test_a_refused_key_is_in_no_error(key: str) -> None:
    """If a key is refused, the error's causes, contexts and frames do not contain the key."""
    with pytest.raises(ConfigurationError) as caught:
        Credentials(key, "partner")

    assert (None, None) == (caught.value.__cause__, caught.value.__context__)
    assert "s3cr3t" not in _held_by(caught.value)


def test_the_header_coder_logs_no_target(caplog: pytest.LogCaptureFixture) -> None:
    """If HTTP/2's header coder logs, its records do not contain the key, even if its table already has the path."""
    caplog.set_level(logging.DEBUG)
    for _ in range(2):
        HttpxTransport(_credentials(), base_url="https://shop.test/")
    coder, decoder = hpack.Encoder(), hpack.Decoder()
    headers = [(":path", f"/1.0/view?apiKey={KEY}&partnerId=partner"), ("x-other", "value")]
    block = coder.encode(headers)
    # The decoder logs each header that it decodes. An answer's headers may contain the key, too: the Location header of
    # a redirect may repeat the query of the request.
    assert headers == decoder.decode(block)
    # The coder logs the entries that are removed when its table shrinks.
    coder.header_table_size = 50
    text = "\n".join(record.getMessage() + repr(record.args) for record in caplog.records)
    huffman = coder.huffman_coder.encode(f"/1.0/view?apiKey={KEY}&partnerId=partner".encode())

    assert {"hpack.hpack", "hpack.table"} == {record.name for record in caplog.records}
    assert "Adding b'x-other'" in text
    assert not [secret for secret in ("s3cr3t", repr(huffman[9:20])[2:-1]) if secret in text]
