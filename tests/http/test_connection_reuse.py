"""A connection is reused only if its last answer was complete, it is not too old, and no further bytes have arrived."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trustme

from retailrocket_async import AsyncTrackingClient, Observer, View
from retailrocket_async._http.connections import Connections
from retailrocket_async._http.credentials import Credentials
from retailrocket_async._http.exchange import has_leftover
from retailrocket_async._http.transport import HttpxTransport
from tests.support.internals import channels_of
from tests.support.raw_server import OK, Arrived, answer, raw_server, reset

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from retailrocket_async._http.reply import Reply

BODY = b'{"productId":1}'
WHOSE = ["own", "callers"]


@pytest.fixture(params=WHOSE)
async def http_client(request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient | None]:
    """Provide a caller's HTTP client, or None if the package's own client is tested."""
    if request.param == "own":
        yield None
    else:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=8)) as client:
            yield client


def _transport(url: str, http_client: httpx.AsyncClient | None = None, timeout: Any = 30.0) -> HttpxTransport:
    return HttpxTransport(Credentials("key", "partner"), base_url=url, http_client=http_client, timeout=timeout)


async def _post(transport: HttpxTransport) -> Reply:
    return await transport.post("view", BODY, on_sent=lambda: None)


# --- bytes after the end of a response ---


@pytest.mark.parametrize("stale", [answer(500), answer(200), b"nonsense"], ids=["500", "200", "nonsense"])
async def test_bytes_after_a_response_are_not_the_next_response(
    stale: bytes, http_client: httpx.AsyncClient | None
) -> None:
    """If extra bytes follow a response, they are not used as the next answer, and the connection is closed."""
    async with raw_server() as server:
        server.in_turn(OK + stale, answer(503))
        transport = _transport(server.url, http_client)
        replies = [await _post(transport) for _ in range(3)]
        await server.until_open(1)
        await transport.aclose()

        assert ([200, 503, 200], 3, 2) == ([reply.status for reply in replies], len(server.arrived), server.connections)


async def test_bytes_that_come_later_are_not_the_next_response(http_client: httpx.AsyncClient | None) -> None:
    """If bytes arrive on an idle connection, the connection is closed, and the next request uses a new connection."""
    writers: list[asyncio.StreamWriter] = []

    async def respond(_: Arrived, writer: asyncio.StreamWriter) -> bytes:
        writers.append(writer)
        return OK

    async with raw_server() as server:
        server.respond = respond
        transport = _transport(server.url, http_client)
        await _post(transport)
        writers[0].write(answer(500))
        await writers[0].drain()
        reply = await _post(transport)
        await transport.aclose()

        assert (200, 2, 2) == (reply.status, len(server.arrived), server.connections)


async def test_bytes_in_a_tls_record_of_their_own_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a second response was read from a TLS socket but is not decrypted yet, the connection is closed."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def respond(_: Arrived, writer: asyncio.StreamWriter) -> bytes:
        # Both TLS records are sent in one TCP segment.
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        if hasattr(socket, "TCP_CORK"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        writer.write(OK)
        writer.write(answer(500))
        if hasattr(socket, "TCP_CORK"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        await asyncio.get_running_loop().create_future()
        return b""

    async with raw_server(context) as server:
        server.respond = respond
        transport = _transport(server.url)
        replies = [await _post(transport) for _ in range(3)]
        await transport.aclose()

        assert ([200, 200, 200], 3, 3) == ([reply.status for reply in replies], len(server.arrived), server.connections)


async def test_private_names_of_httpx_for_leftovers() -> None:
    """If httpx, httpcore and h11 are installed, their private names that show bytes after a response exist."""
    async with raw_server() as server, httpx.AsyncClient() as http:
        found: list[bool] = []
        for reply in (OK, OK + b"more"):
            server.always(reply)
            response = await http.send(http.build_request("POST", server.url, content=b""), stream=True)
            async for _ in response.stream:  # type: ignore[union-attr]
                pass
            found.append(has_leftover(response))
            await response.aclose()

    assert [False, True] == found


async def test_where_httpx_does_not_show_it_nothing_is_left() -> None:
    """If a response does not come from httpx's own transport, `has_leftover` returns False."""
    assert not has_leftover(httpx.Response(200, content=b"{}"))


# --- age, idleness, trouble ---


async def test_a_connection_is_renewed_at_its_maximum_age() -> None:
    """If a connection is in constant use, it is replaced at its maximum age, so that DNS changes take effect."""
    async with raw_server() as server:
        transport = _transport(server.url)
        await _post(transport)
        [channel] = channels_of(transport)
        channel.born_at -= 299.0
        await _post(transport)
        before = server.connections
        channel.born_at -= 1.0
        reply = await _post(transport)
        await server.until_open(1)
        await transport.aclose()

        assert (1, 2, 200) == (before, server.connections, reply.status)


async def test_an_idle_connection_is_closed() -> None:
    """If a connection is idle for its keep-alive time, it is closed even without a further request."""
    async with raw_server() as server, asyncio.timeout(30):
        connections = Connections(httpx.AsyncClient, shared=False, keepalive=0.05)
        channels = [connections.take() for _ in range(3)]
        for channel in channels:
            await channel.client.post(server.url)
            connections.give_back(channel, sound=True)
        assert 3 == server.connections
        await server.until_open(0)
        await connections.aclose()


async def test_there_are_no_more_connections_than_requests() -> None:
    """If requests follow each other, they share one connection; simultaneous requests use one connection each."""
    async with raw_server() as server:
        transport = _transport(server.url)
        for _ in range(5):
            await _post(transport)
        before = server.connections
        server.respond = server.all_at_once(5)
        await asyncio.gather(*(_post(transport) for _ in range(5)))
        await transport.aclose()
        await server.until_open(0)

        assert (1, 5) == (before, server.connections)


@pytest.mark.parametrize("trouble", ["cut", "reset", "close"])
async def test_after_trouble_a_new_connection_is_used(trouble: str, http_client: httpx.AsyncClient | None) -> None:
    """If a connection breaks in any way, the next request is answered on a new connection."""

    async def respond(request: Arrived, writer: asyncio.StreamWriter) -> bytes | None:
        if len(server.arrived) != 2:
            return OK
        if trouble == "cut":
            writer.write(OK[:9])
        if trouble == "reset":
            reset(writer)
        return None if trouble != "close" else answer(200, "Connection: close")

    async with raw_server() as server:
        server.respond = respond
        transport = _transport(server.url, http_client)
        statuses = [(await _post(transport)).status for _ in range(3)]
        await server.until_open(1)
        await transport.aclose()

    assert [200, 200 if trouble == "close" else None, 200] == statuses


async def test_a_full_pool_is_named() -> None:
    """If a caller's client has no free connection, the failure is `pool`, whatever kind of timeout is set."""

    async def stall(_: Arrived, __: asyncio.StreamWriter) -> bytes:
        await asyncio.get_running_loop().create_future()
        return OK

    async with raw_server() as server, httpx.AsyncClient(limits=httpx.Limits(max_connections=1)) as http:
        server.respond = stall
        patient, hasty = _transport(server.url, http), _transport(server.url, http, 0.1)
        holding = asyncio.create_task(_post(patient))
        while not server.arrived:  # noqa: ASYNC110 - the server sets no event
            await asyncio.sleep(0.001)
        reply = await _post(hasty)
        holding.cancel()
        await asyncio.wait({holding})
        server.always(OK)
        after = await _post(patient)
        await patient.aclose()

    assert ("pool", "PoolTimeout", False) == (reply.failure, reply.detail, reply.maybe_recorded)
    assert 200 == after.status


async def test_a_silent_handshake_is_no_connection(tmp_path: Path) -> None:
    """If a host accepts a connection but no TLS handshake, the failure is `connect`, and the socket is closed."""
    ends: list[bytes] = []
    closed = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                ends.append(data)
        closed.set()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server, asyncio.timeout(30):
        transport = _transport(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/", timeout=0.5)
        reply = await _post(transport)
        await closed.wait()
        await transport.aclose()

    assert ("connect", "ConnectTimeout", False) == (reply.failure, reply.detail, reply.maybe_recorded)
    assert ends


# --- the caller's context ---

_visitor: contextvars.ContextVar[Any] = contextvars.ContextVar("visitor", default=None)


class _Request:
    """An object that a web framework stores in the context of a request."""


@pytest.mark.parametrize("end", ["returns", "cancelled before", "cancelled on its way"])
async def test_nothing_keeps_a_callers_context(end: str, http_client: httpx.AsyncClient | None) -> None:
    """If `send` has ended, its caller's context is garbage-collected, although connections remain open."""

    async def stall(_: Arrived, __: asyncio.StreamWriter) -> bytes | None:
        if end == "returns" or len(server.arrived) == 1:
            return OK
        arrived.set()
        await asyncio.get_running_loop().create_future()
        return None

    async def call() -> weakref.ref[_Request]:
        request = _Request()
        _visitor.set(request)
        with suppress(asyncio.CancelledError):
            await client.send(View(session_external_id="visitor", product_id=1))
        return weakref.ref(request)

    arrived = asyncio.Event()
    async with raw_server() as server:
        server.respond = stall
        client = AsyncTrackingClient("key", "partner", base_url=server.url, http_client=http_client)
        await client.send(View(session_external_id="visitor", product_id=1))
        calling = asyncio.create_task(call())
        if end == "cancelled before":
            for _ in range(6):
                await asyncio.sleep(0)
            calling.cancel()
        elif end == "cancelled on its way":
            await arrived.wait()
            calling.cancel()
        kept = await calling
        del calling
        async with asyncio.timeout(10):
            # The cancelled request needs a few turns of the loop to end.
            while kept() is not None:
                await asyncio.sleep(0.01)
                gc.collect()
        await client.aclose()


async def test_a_request_has_its_observers_context() -> None:
    """If an observer sets a context variable in `request_began`, for example a span, the request sees the value."""
    seen: list[Any] = []

    class Watching(Observer):
        def request_began(self, *_: Any, **__: Any) -> None:
            _visitor.set("span")

    async def hook(_: httpx.Request) -> None:
        seen.append(_visitor.get())

    async with raw_server() as server, httpx.AsyncClient(event_hooks={"request": [hook]}) as http:
        client = AsyncTrackingClient("key", "partner", base_url=server.url, http_client=http, observer=Watching())
        async with client:
            await client.send(View(session_external_id="visitor", product_id=1))

    assert ["span"] == seen


# --- answers that arrive while the process is stopped ---

_CHILD = """
import asyncio, json, sys
from contextlib import AsyncExitStack
import httpx
from retailrocket_async import AsyncTrackingClient, Batching, RetryPolicy
async def main(url, timeout, whose):
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient()) if whose == "callers" else None
        timeout = httpx.Timeout(float(timeout)) if whose == "httpx.Timeout" else float(timeout)
        client = AsyncTrackingClient(
            "key", "partner", base_url=url, http_client=http, timeout=timeout, rate_limit=None,
            batching=Batching(max_events=5, max_in_flight=8, linger=0.01),
            retry=RetryPolicy(initial_backoff=0.01),
        )
        async with client:
            receipts = [await client.view(session_external_id=f"v{n}", product_id=n + 1) for n in range(40)]
            outcomes = [await receipt for receipt in receipts]
            stats = client.stats()
    print(json.dumps([stats.delivered, stats.retries, sum(o.maybe_duplicate for o in outcomes)]))
asyncio.run(main(*sys.argv[1:]))
"""


async def _delivered_though_stopped(whose: str, tls: ssl.SSLContext | None, environment: dict[str, str]) -> Any:
    """Stop a process that has eight batches in flight. Return its counters and the number of requests to the server."""
    seconds = 3.0
    stopped = asyncio.Event()

    async def respond(_: Arrived, __: asyncio.StreamWriter) -> bytes:
        # The process is stopped when all batches are in flight.
        if len(server.arrived) == 8:
            os.kill(child.pid, signal.SIGSTOP)
            await asyncio.to_thread(os.waitid, os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
            stopped.set()
        await stopped.wait()
        return OK

    async with raw_server(tls) as server:
        server.respond = respond
        arguments = sys.executable, "-c", _CHILD, server.url, str(seconds), whose
        child = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.PIPE, env=environment)
        async with asyncio.timeout(60):
            await stopped.wait()
            # The process remains stopped until its timeout is over.
            await asyncio.sleep(seconds * 1.1)
            os.kill(child.pid, signal.SIGCONT)
            output, _ = await child.communicate()
        return json.loads(output), len(server.arrived)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs signals that stop a process")
async def test_a_process_that_was_stopped_reads_before_it_judges(tmp_path: Path) -> None:
    """If a process is stopped for longer than its timeout, the answers that came meanwhile count, without any retry."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    environment = {**os.environ, "SSL_CERT_FILE": str(tmp_path / "ca.pem")}
    results = await asyncio.gather(
        *(_delivered_though_stopped(whose, None, environment) for whose in ("own", "callers", "httpx.Timeout")),
        _delivered_though_stopped("own", context, environment),
    )

    assert [([40, 0, 0], 8)] * 4 == results
