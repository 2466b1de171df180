"""An HTTP/2 server with TLS on loopback that answers every request with 200, or refuses requests on demand."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived, StreamEnded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import trustme


class H2Server:
    """Serves HTTP/2 connections, and records the requests in `paths` and `bodies`.

    Attributes:
        unprocessed: how the next requests are refused as not processed, one entry for each request. ``"goaway"``: a
            GOAWAY with last stream 0. ``"goaway-before"``: a GOAWAY whose last stream is the one before the request's
            stream. ``"refused"``: a reset of the stream. All later requests are answered.
        connections: the number of connections so far.
    """

    def __init__(self) -> None:
        self.unprocessed: list[str] = []
        self.connections = 0
        self.paths: list[str] = []
        self.bodies: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        connection = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        while True:
            writer.write(connection.data_to_send())
            data = b""
            with suppress(ConnectionError):
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
                    stream = event.stream_id or 0
                    match self.unprocessed.pop(0) if self.unprocessed else "":
                        case "goaway":
                            connection.close_connection(last_stream_id=0)
                        case "goaway-before":
                            connection.close_connection(last_stream_id=stream - 2)
                        case "refused":
                            connection.reset_stream(stream, error_code=ErrorCodes.REFUSED_STREAM)
                        case _:
                            connection.send_headers(stream, [(":status", "200")], end_stream=True)
        writer.close()


@asynccontextmanager
async def h2_server(authority: trustme.CA) -> AsyncIterator[tuple[H2Server, str]]:
    """Run a server with a certificate of `authority` while the block runs; yield the server and its base URL."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["h2"])
    authority.issue_cert("localhost").configure_cert(context)
    server = H2Server()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server, f"https://localhost:{listener.sockets[0].getsockname()[1]}/1.0/"
    finally:
        listener.close()
        await listener.wait_closed()
