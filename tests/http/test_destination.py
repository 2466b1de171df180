"""The key is sent only to the API's host: redirects are not followed, and TLS verifies the host."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import httpx
import pytest

from retailrocket_async import AsyncTrackingClient, ConfigurationError, RejectedError, View
from tests.support.raw_server import answer, raw_server

if TYPE_CHECKING:
    from collections.abc import Callable

EVENT = View(session_external_id="visitor", product_id=1)
SHOP = "https://shop.test/1.0/"


@pytest.mark.parametrize("own", [False, True], ids=["our client", "a caller's client"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_the_target_of_a_redirect_gets_no_connection(status: int, *, own: bool) -> None:
    """If the server redirects to another host, the event is rejected, and the other host gets no connection."""
    async with raw_server() as server, raw_server() as elsewhere, httpx.AsyncClient(follow_redirects=True) as follows:
        server.always(answer(status, f"Location: {elsewhere.url}view"))
        http_client = follows if own else None
        async with AsyncTrackingClient("key", "partner", base_url=server.url, http_client=http_client) as client:
            with pytest.raises(RejectedError) as caught:
                await client.send(EVENT)

        assert (status, 0) == (caught.value.status, elsewhere.connections)


def _without_host_names() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    return context


UNVERIFIED: dict[str, Callable[[], httpx.AsyncClient]] = {
    "verify=False": lambda: httpx.AsyncClient(verify=False),
    "no host names": lambda: httpx.AsyncClient(verify=_without_host_names()),
    "by its transport": lambda: httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(verify=False)),
    "by a mount": lambda: httpx.AsyncClient(mounts={"https://shop.test": httpx.AsyncHTTPTransport(verify=False)}),
    "through a proxy": lambda: httpx.AsyncClient(proxy="http://127.0.0.1:9", verify=False),
}


@pytest.mark.parametrize("how", UNVERIFIED)
async def test_a_client_without_verification_is_refused(how: str) -> None:
    """If a caller's HTTP client does not verify TLS, the constructor raises, unless `allow_insecure_http` is set."""
    async with UNVERIFIED[how]() as own:
        with pytest.raises(ConfigurationError, match=r"http_client must verify TLS .* allow_insecure_http=True"):
            AsyncTrackingClient("key", "partner", base_url=SHOP, http_client=own)

        allowed = AsyncTrackingClient("key", "partner", base_url=SHOP, http_client=own, allow_insecure_http=True)
        assert SHOP in repr(allowed)


class _Unknown(httpx.AsyncBaseTransport):
    """A transport that does not show whether it verifies TLS."""


PASSING: dict[str, Callable[[], httpx.AsyncClient]] = {
    "as it comes": httpx.AsyncClient,
    "with a context": lambda: httpx.AsyncClient(verify=ssl.create_default_context()),
    "through a proxy": lambda: httpx.AsyncClient(proxy="http://127.0.0.1:9"),
    "for another host": lambda: httpx.AsyncClient(mounts={"https://a.test": httpx.AsyncHTTPTransport(verify=False)}),
    "unknown": lambda: httpx.AsyncClient(transport=_Unknown()),
    "a stand-in": lambda: httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200))),
}


@pytest.mark.parametrize("how", PASSING)
async def test_any_other_client_passes(how: str) -> None:
    """If a caller's HTTP client verifies TLS, or does not show whether it verifies TLS, it is accepted."""
    async with PASSING[how]() as own:
        assert SHOP in repr(AsyncTrackingClient("key", "partner", base_url=SHOP, http_client=own))


async def test_without_tls_there_is_nothing_to_verify() -> None:
    """If the address is plain http on this host, every HTTP client is accepted."""
    async with httpx.AsyncClient(verify=False) as own:
        client = AsyncTrackingClient("key", "partner", base_url="http://127.0.0.1:9/", http_client=own)

        assert "http://127.0.0.1:9/" in repr(client)
