"""HTTP/2 over TLS (extra `http2`): the package's client talks to a real server that supports only HTTP/2."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING

import httpx
import pytest
import trustme

from retailrocket_async import AsyncTrackingClient, Delivered, RetryPolicy, View
from tests.support.h2_server import h2_server

if TYPE_CHECKING:
    from pathlib import Path

KEY = "s3cr3tk3y"


async def test_events_go_over_http2_and_no_log_record_has_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If `http2=True` is set, batches use HTTP/2, and no log record has the key, even from the header coder."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    caplog.set_level(logging.DEBUG)
    async with (
        h2_server(authority) as (server, url),
        AsyncTrackingClient(KEY, "partner", base_url=url, http2=True) as client,
    ):
        outcome = await (await client.track(View(session_external_id="visitor", product_id=1)))
        await client.send(View(session_external_id="visitor", product_id=2))

    assert isinstance(outcome, Delivered)
    assert [f"/1.0/{name}?apiKey={KEY}&partnerId=partner" for name in ("visitorEvents", "view")] == server.paths
    assert "hpack.hpack" in {record.name for record in caplog.records}
    assert KEY not in "".join(record.getMessage() + repr(vars(record)) for record in caplog.records)


async def test_a_certificate_of_an_unknown_authority_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """If the server's certificate is untrusted, no request is sent and the event was not recorded."""
    async with h2_server(trustme.CA()) as (server, url):
        once = RetryPolicy(max_attempts=1)
        async with AsyncTrackingClient(KEY, "partner", base_url=url, retry=once, timeout=60.0) as client:
            receipt = await client.track(View(session_external_id="visitor", product_id=1))
            await receipt

    assert [] == server.paths
    assert receipt.outcome is not None
    assert not receipt.outcome.maybe_recorded


@pytest.mark.parametrize("whose", ["own", "callers"])
@pytest.mark.parametrize("word", ["goaway", "refused", "goaway-before"])
async def test_unprocessed_requests_are_sent_again(
    word: str, whose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the server says that it did not process a request (GOAWAY, REFUSED_STREAM), even an order is sent again."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    trust = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    retry = RetryPolicy(at_most_once={"view"}, initial_backoff=0.01)
    async with h2_server(authority) as (server, url), httpx.AsyncClient(verify=trust, http2=True) as http:
        options = {"http2": True} if whose == "own" else {"http_client": http}
        async with AsyncTrackingClient(KEY, "partner", base_url=url, retry=retry, **options) as client:
            await client.send(View(session_external_id="visitor", product_id=1))
            server.unprocessed = [word]
            outcome = await (await client.track(View(session_external_id="visitor", product_id=2)))
            retries = client.stats().retries

    assert isinstance(outcome, Delivered)
    assert not outcome.maybe_duplicate
    assert (3, []) == (len(server.paths), server.unprocessed)
    # After "goaway-before", httpcore itself repeats the request of a caller's client, so the package counts no retry.
    # On the package's own connections this is switched off, because each request needs a permit.
    assert (0 if (whose, word) == ("callers", "goaway-before") else 1) == retries


async def test_one_connection_carries_many_requests_until_one_ends_badly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If HTTP/2 requests share a connection and one is refused, later requests use a new connection."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    retry = RetryPolicy(initial_backoff=0.01)
    async with (
        h2_server(authority) as (server, url),
        AsyncTrackingClient(KEY, "partner", base_url=url, retry=retry, http2=True) as client,
    ):
        events = [View(session_external_id=f"visitor{number}", product_id=1) for number in range(8)]
        await asyncio.gather(*(client.send(event) for event in events))
        before = server.connections
        server.unprocessed = ["refused"]
        await client.send(events[0])

    assert (1, 2) == (before, server.connections)
