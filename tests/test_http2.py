"""HTTP/2 over TLS, by the extra of that name: our own client against a real server that speaks nothing else."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trustme

from retailrocket_async import AsyncTrackingClient, Delivered, View
from tests.h2_server import h2_server

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

KEY = "s3cr3tk3y"


async def test_events_go_over_http2_and_no_logger_tells_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With `http2=True` batches arrive over HTTP/2, and not even the header coder's log has the key."""
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
    """TLS is verified: a server whose certificate nobody vouches for gets nothing, and nothing may be recorded."""
    async with h2_server(trustme.CA()) as (server, url):
        client = AsyncTrackingClient(KEY, "partner", base_url=url)
        receipt = await client.track(View(session_external_id="visitor", product_id=1))
        await client.aclose(timeout=1)

    assert [] == server.paths
    assert receipt.outcome is not None
    assert not receipt.outcome.maybe_recorded
