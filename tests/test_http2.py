"""HTTP/2 over TLS, by the extra of that name: our own client against a real server that speaks nothing else."""

from __future__ import annotations

import asyncio
import logging
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trustme
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded

from retailrocket_async import AsyncTrackingClient, Delivered, View

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

KEY = "s3cr3tk3y"


class _H2Server:
    def __init__(self) -> None:
        self.paths: list[str] = []
        self.bodies: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        while True:
            writer.write(connection.data_to_send())
            data = await reader.read(65536)
            if not data:
                break
            for event in connection.receive_data(data):
                if isinstance(event, RequestReceived):
                    self.paths.append(dict(event.headers or [])[":path"])  # type: ignore[arg-type, index]
                elif isinstance(event, DataReceived):
                    self.bodies.append(event.data or b"")
                    connection.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
                elif isinstance(event, StreamEnded):
                    connection.send_headers(event.stream_id or 0, [(":status", "200")], end_stream=True)
        writer.close()


@asynccontextmanager
async def _h2_server(authority: trustme.CA) -> AsyncIterator[tuple[_H2Server, str]]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["h2"])
    authority.issue_cert("localhost").configure_cert(context)
    server = _H2Server()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server, f"https://localhost:{listener.sockets[0].getsockname()[1]}/1.0/"
    finally:
        listener.close()
        await listener.wait_closed()


async def test_events_go_over_http2_and_no_logger_tells_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With `http2=True` batches arrive over HTTP/2, and not even the header coder's log has the key."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    caplog.set_level(logging.DEBUG)
    async with (
        _h2_server(authority) as (server, url),
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
    async with _h2_server(trustme.CA()) as (server, url):
        client = AsyncTrackingClient(KEY, "partner", base_url=url)
        receipt = await client.track(View(session_external_id="visitor", product_id=1))
        await client.aclose(timeout=1)

    assert [] == server.paths
    assert receipt.outcome is not None
    assert not receipt.outcome.maybe_recorded
