"""The API of the emulator: judges and answers requests, or fails on purpose.

The statuses that depend only on the head of a request (404, 405, 401, 403, 429) are decided on arrival, in one step
without an await. So the limit counts requests in the order of arrival, however long it takes to receive the
bodies. The time of arrival is the time at which the head was read, so the time of arrival is right even if the event
loop is busy before this step. A fault is chosen after this step and replaces the answer; the limit also counts
requests with a fault.
"""

from __future__ import annotations

from email.utils import formatdate
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

from . import _wire
from ._judge import PREFIX, Refusal, judge_body, judge_head

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from ._emulator import Emulator
    from ._fault import Fault
    from ._records import RequestRecord

__all__ = ["TrackingApi"]

_TRUNCATED: Final = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"'
_GARBAGE: Final = b"\x00\xff this is no HTTP \xfe\r\n\r\n"
_BODILESS: Final = frozenset({204, 304})


class TrackingApi:
    """The ASGI application that answers requests to ``/1.0/`` and to every path without a route.

    Args:
        emulator: the state of the emulator, with the settings to apply and the ledger that records the requests.
    """

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        emulator = self._emulator
        jitter = emulator.jitter()
        if jitter and not await emulator.pause(jitter):
            await _drop(scope, receive)
            return
        # After a random delay, the time of arrival is now, and not the time at which the head was read.
        record, refusal = self._arrive(scope, None if jitter else _wire.read_at(scope))
        status: int | None = None
        try:
            status = await self._handle(record, refusal, scope, receive, send)
        finally:
            emulator.close(record, status)

    def _arrive(self, scope: Scope, read_at: float | None) -> tuple[RequestRecord, Refusal | None]:
        emulator = self._emulator
        now = emulator.arrival(read_at)
        if scope["method"] == "POST" and scope["path"].startswith(PREFIX):
            emulator.window.arrive(now)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        record = emulator.ledger.open(
            time=emulator.wall(now),
            method=scope["method"],
            path=scope["path"],
            query={name: value for name, value in query if name != "apiKey"},
            content_type=_header(scope, b"content-type"),
        )
        refusal = judge_head(emulator.settings, record, query)
        if refusal is None and not emulator.window.admit(now, emulator.settings.limit):
            refusal = Refusal(429, [f"limit of {emulator.settings.limit} requests exceeded"])
        return record, refusal

    async def _handle(
        self, record: RequestRecord, refusal: Refusal | None, scope: Scope, receive: Receive, send: Send
    ) -> int | None:
        emulator = self._emulator
        body = await self._read(record, receive)
        if body is None:
            return None
        fault = emulator.faults.take(record.path, body)
        if fault is None:
            status = self._settle(record, refusal, body)
            if not await emulator.pause(emulator.settings.latency):
                await _drop(scope, receive)
                return None
            await _answer(send, status)
            return status
        record.fault = fault.kind
        if not await emulator.pause(fault.seconds):
            await _drop(scope, receive)
            return None
        settled = self._settle(record, refusal, body) if fault.records else fault.status
        return await self._fail(fault, settled, scope, receive, send)

    async def _read(self, record: RequestRecord, receive: Receive) -> bytes | None:
        """Read the whole body, and return the first bytes of the body: at most `max_body_bytes` + 1 bytes.

        Return None if the client disconnected. A body that is too large is read completely as well, because a client
        that is still sending would not read the 413.
        """
        kept, size = bytearray(), 0
        most = self._emulator.settings.max_body_bytes + 1
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self._emulator.ledger.read(record, bytes(kept), size)
                return None
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            kept += chunk[: max(0, most - len(kept))]
            if not message.get("more_body", False):
                break
        body = bytes(kept)
        self._emulator.ledger.read(record, body, size)
        return body

    def _settle(self, record: RequestRecord, refusal: Refusal | None, body: bytes) -> int:
        """Judge the body, unless the head was already refused; record the result, and return the status."""
        ledger = self._emulator.ledger
        verdict = refusal or judge_body(self._emulator.settings, record, body)
        if isinstance(verdict, Refusal):
            ledger.refuse(record, verdict.reasons)
            return verdict.status
        ledger.accept(record, verdict, body)
        return 200

    async def _fail(self, fault: Fault, settled: int, scope: Scope, receive: Receive, send: Send) -> int | None:
        """Apply *fault*; return the status of the answer, or None if the client gets no answer."""
        if fault.kind == "close_idle":
            _wire.close_on_reuse(_wire.transport_of(scope))
        if fault.kind in {"close_idle", "latency"}:
            await _answer(send, settled)
            return settled
        if fault.kind == "status":
            await _answer(send, fault.status, fault)
            return fault.status
        if fault.kind != "stall":
            transport = _wire.transport_of(scope)
            if fault.kind in {"reset_before", "reset_after"}:
                _wire.reset(transport)
            elif fault.kind == "truncate":
                _wire.cut(transport, _TRUNCATED)
            elif fault.kind == "garbage":
                _wire.cut(transport, _GARBAGE)
            else:
                _wire.cut(transport)
        await _gone(receive)
        return None


def _header(scope: Scope, wanted: bytes) -> str | None:
    for name, value in scope["headers"]:
        if name == wanted:
            text: str = value.decode("latin-1")
            return text
    return None


async def _answer(send: Send, status: int, fault: Fault | None = None) -> None:
    body, media_type = b"{}", b"application/json"
    if fault is not None and fault.body is not None:
        body, media_type = fault.body.encode(), b"text/plain; charset=utf-8"
    headers = [(b"date", formatdate(usegmt=True).encode())]
    if status in _BODILESS:
        body = b""
    else:
        headers += [(b"content-type", media_type), (b"content-length", b"%d" % len(body))]
    if status == 405:
        headers.append((b"allow", b"POST"))
    if fault is not None and fault.retry_after is not None:
        headers.append((b"retry-after", fault.retry_after.encode()))
    if fault is not None and fault.location is not None:
        headers.append((b"location", fault.location.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _gone(receive: Receive) -> None:
    """Wait until the connection is closed. An ASGI application may return without an answer only after that."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _drop(scope: Scope, receive: Receive) -> None:
    """Close the connection of a request without an answer; called when the emulator stops."""
    _wire.abort(_wire.transport_of(scope))
    await _gone(receive)
