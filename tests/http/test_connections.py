"""However requests end, the next request is answered, and no connection is left over.

The tests run over HTTP and TLS, with and without a proxy, with the package's own HTTP client and with a caller's.
The server counts the open connections.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import attrs
import httpx
import pytest
import trustme

from retailrocket_async import AsyncTrackingClient, View
from retailrocket_async._http.credentials import Credentials
from retailrocket_async._http.transport import HttpxTransport
from tests.support.proxy_server import proxy_server
from tests.support.raw_server import OK, Arrived, RawServer, answer, raw_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from retailrocket_async._http.reply import Reply

# The tests take half a minute, so they do not run in the sessions that measure coverage.
pytestmark = pytest.mark.endurance


BODY = b'{"productId":1}'
WAYS = ["http", "https", "http-proxy", "https-proxy"]
WHOSE = ["own", "callers"]
EVENT = View(session_external_id="visitor", product_id=1)


def event_of(number: int) -> View:
    """Return an event of visitor `number`; requests of different visitors may be in flight at the same time."""
    return View(session_external_id=f"visitor{number}", product_id=1)


LIMITS = httpx.Limits(max_connections=8, max_keepalive_connections=8)

CLOSING = answer(200, "Connection: close")
"""A raw answer that closes the connection, so every request needs a new connection."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    """Provide a certificate authority, and the path of the file with its certificate."""
    authority, file = trustme.CA(), tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    return authority, file


@attrs.frozen
class Scene:
    """A server, and the address and HTTP client with which to reach it."""

    server: RawServer
    base_url: str
    http_client: httpx.AsyncClient | None

    def transport(self, seconds: float = 30.0) -> HttpxTransport:
        """Return a transport to the server."""
        credentials = Credentials("key", "partner")
        return HttpxTransport(credentials, base_url=self.base_url, timeout=seconds, http_client=self.http_client)

    def client(self, **options: Any) -> AsyncTrackingClient:
        """Return a client of the server."""
        return AsyncTrackingClient(
            "key",
            "partner",
            base_url=self.base_url,
            http_client=self.http_client,
            allow_insecure_http=True,
            rate_limit=None,
            **options,
        )


Open = Any


@pytest.fixture
def scene(authority: tuple[trustme.CA, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Any]:
    """Return a function that starts a server and yields its `Scene`; the arguments are from `WAYS` and from `WHOSE`."""

    @asynccontextmanager
    async def make(way: str, whose: str) -> AsyncIterator[Scene]:
        context: ssl.SSLContext | None = None
        proxy = None
        if way.startswith("https"):
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            authority[0].issue_cert("127.0.0.1").configure_cert(context)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority[1]))
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(raw_server(context))
            base_url = server.url
            if way.endswith("proxy"):
                proxy = (await stack.enter_async_context(proxy_server(server.url))).url
                monkeypatch.setenv("HTTP_PROXY", proxy)
                monkeypatch.setenv("HTTPS_PROXY", proxy)
                # The proxy variables are not used for plain http to this host, so the request goes to another host
                # name.
                base_url = base_url if context else "http://shop.test/1.0/"
            http_client = None
            if whose == "callers":
                trust = ssl.create_default_context(cafile=str(authority[1]))
                http_client = httpx.AsyncClient(verify=trust, proxy=proxy, limits=LIMITS)
                await stack.enter_async_context(http_client)
            yield Scene(server, base_url, http_client)

    return make


async def _post(transport: HttpxTransport) -> Reply:
    return await transport.post("view", BODY, on_sent=lambda: None)


async def _in_every_turn(
    act: Callable[[], asyncio.Task[Any]], stop: Callable[[asyncio.Task[Any]], Awaitable[None]]
) -> int:
    """Start requests with `act`; call `stop` for the first at once, for the next after one turn of the loop, and so on.

    Return the number of turns after which a request ended before it was stopped.
    """
    turns = 0
    while True:
        posting = act()
        for _ in range(turns):
            await asyncio.sleep(0)
        if posting.done():
            await posting
            return turns
        await stop(posting)
        turns += 1


@pytest.mark.parametrize("reply", [CLOSING, OK], ids=["new", "kept"])
@pytest.mark.parametrize("whose", WHOSE)
@pytest.mark.parametrize("way", WAYS)
async def test_cancelled_in_every_turn(way: str, whose: str, reply: bytes, scene: Open) -> None:
    """If a request is cancelled in any turn of the loop, the next is answered, and no other connection stays open."""
    async with asyncio.timeout(60), scene(way, whose) as at:
        at.server.always(reply)
        transport = at.transport()
        assert 200 == (await _post(transport)).status
        replies: list[Reply] = []

        async def stop(posting: asyncio.Task[Reply]) -> None:
            posting.cancel()
            await asyncio.wait({posting})
            replies.append(await _post(transport))

        turns = await _in_every_turn(lambda: asyncio.create_task(_post(transport)), stop)
        await at.server.until_open(0 if reply is CLOSING else 1)
        await transport.aclose()

    assert turns > 8
    assert {200} == {reply.status for reply in replies}


@pytest.mark.parametrize("whose", WHOSE)
@pytest.mark.parametrize("way", ["http", "https-proxy"])
async def test_all_cancelled_in_every_turn(way: str, whose: str, scene: Open) -> None:
    """If many requests are cancelled in the same turn, later requests still get connections."""
    async with asyncio.timeout(60), scene(way, whose) as at:
        transport = at.transport()
        replies: list[Reply] = []
        many: list[asyncio.Task[Reply]] = []

        def begin() -> asyncio.Task[Reply]:
            many[:] = [asyncio.create_task(_post(transport)) for _ in range(10)]
            return many[-1]

        async def stop(_: asyncio.Task[Reply]) -> None:
            for posting in many:
                posting.cancel()
            await asyncio.wait(many)
            replies.append(await _post(transport))

        await _in_every_turn(begin, stop)
        at.server.respond = at.server.all_at_once(8)
        replies += await asyncio.gather(*(_post(transport) for _ in range(8)))
        await at.server.until_open(8)
        await transport.aclose()

    assert {200} == {reply.status for reply in replies}


@pytest.mark.parametrize("whose", WHOSE)
@pytest.mark.parametrize("way", ["http", "https-proxy"])
async def test_closed_in_every_turn(way: str, whose: str, scene: Open) -> None:
    """If a request is cancelled in any turn and the transport is closed, no connection or task is left over."""
    async with asyncio.timeout(60), scene(way, whose) as at:
        at.server.always(CLOSING)
        transport = at.transport()
        # The first request starts threads, for example to read certificates. It is made here, so that the turns of the
        # later requests contain no work of threads.
        await _post(transport)

        async def stop(posting: asyncio.Task[Reply]) -> None:
            posting.cancel()
            await asyncio.wait({posting})
            await transport.aclose()

        await _in_every_turn(lambda: asyncio.create_task(_post(transport)), stop)
        await transport.aclose()
        await at.server.until_open(0)
        left = [task for task in asyncio.all_tasks() if "Exchange" in repr(task)]

    assert [] == left


@pytest.mark.parametrize("reply", [CLOSING, OK], ids=["new", "kept"])
@pytest.mark.parametrize("whose", WHOSE)
@pytest.mark.parametrize("way", WAYS)
async def test_blocked_in_every_turn(way: str, whose: str, reply: bytes, scene: Open) -> None:
    """If the loop is blocked for longer than the timeout, in any turn of a request, the next request is answered."""
    seconds = 0.02
    async with asyncio.timeout(60), scene(way, whose) as at:
        at.server.always(reply)
        short, patient = at.transport(seconds), at.transport()
        statuses: set[int | None] = set()

        async def stop(posting: asyncio.Task[Reply]) -> None:
            time.sleep(seconds * 1.1)  # noqa: ASYNC251 - the test blocks the loop on purpose
            await posting
            statuses.add((await _post(patient)).status)

        assert (await _post(patient)).status == 200
        await _post(short)
        await _in_every_turn(lambda: asyncio.create_task(_post(short)), stop)
        await short.aclose()
        await patient.aclose()
        if at.http_client is not None:
            await at.http_client.aclose()
        await at.server.until_open(0)

    assert {200} == statuses


@pytest.mark.parametrize("whose", WHOSE)
@pytest.mark.parametrize("way", ["http", "https-proxy"])
async def test_a_storm_of_cancelled_sends(way: str, whose: str, scene: Open) -> None:
    """If hundreds of sends time out after some milliseconds, the next send is delivered at its first attempt."""
    chance = random.Random(13)
    turn = 0

    async def respond(_: Arrived, __: asyncio.StreamWriter) -> bytes:
        nonlocal turn
        turn += 1
        await asyncio.sleep(turn % 7 * 0.004)
        return CLOSING if turn % 5 == 0 else OK

    async with asyncio.timeout(60), scene(way, whose) as at:
        at.server.respond = respond
        client = at.client()
        await client.send(EVENT)

        async def sends(number: int) -> None:
            for _ in range(10):
                with suppress(TimeoutError):
                    await asyncio.wait_for(client.send(event_of(number)), chance.uniform(0.001, 0.03))

        await asyncio.gather(*(sends(number) for number in range(40)))
        outcome = await client.send(EVENT)
        at.server.respond = at.server.all_at_once(8)
        outcomes = await asyncio.gather(*(client.send(event_of(number)) for number in range(8)))
        await at.server.until_open(8)
        await client.aclose()
        if at.http_client is not None:
            await at.http_client.aclose()
        await at.server.until_open(0)

    assert {1} == {delivered.attempts for delivered in [outcome, *outcomes]}
