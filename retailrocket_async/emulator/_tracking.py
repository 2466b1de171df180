"""The API of the emulator: judges and answers requests, or fails on purpose.

The statuses that depend only on the head of a request (404, 405, 401, 403, 429) are decided on arrival, in one step
without an await. So the limit counts requests in the order of arrival, however long it takes to receive the
bodies. The time of arrival is the time at which the head was read, so the time of arrival is right even if the event
loop is busy before this step. A fault is chosen after this step and replaces the answer; the limit also counts
requests with a fault. When the body was read, `VisitorOrder` learns that the visitors' events are under way.
"""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

import attrs

from . import _wire
from ._judge import BATCH, PREFIX, Refusal, judge_body, judge_head, readable_events
from ._order import OpenRequest, spans_of

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from ._emulator import Emulator
    from ._fault import Fault
    from ._judge import Events
    from ._records import RequestRecord

__all__ = ["TrackingApi"]

_TRUNCATED: Final = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"'
_GARBAGE: Final = b"\x00\xff this is no HTTP \xfe\r\n\r\n"
_BODILESS: Final = frozenset({204, 304})
_SUCCESS: Final = range(200, 300)


@attrs.define(eq=False)
class _Exchange:
    """One request while it is handled: the connection, the record, and what was found so far.

    Attributes:
        scope: the request as ASGI describes it.
        receive: returns the next message of the client.
        send: sends a message to the client.
        record: the record in the ledger.
        arrived: when the head was read, on the window's clock.
        refusal: the refusal that the head decided; None if the body decides.
        body: the body; empty until it was read.
        opened: the request as `VisitorOrder` knows it; None until the body was read, and if the order is not judged.
    """

    scope: Scope
    receive: Receive
    send: Send
    record: RequestRecord
    arrived: float
    refusal: Refusal | None
    body: bytes = b""
    opened: OpenRequest | None = None


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
        exchange = self._arrive(scope, receive, send, None if jitter else _wire.read_at(scope))
        status: int | None = None
        try:
            status = await self._handle(exchange)
        finally:
            # No await comes between the answer and this step. So the client's next request arrives after this step, and
            # a request that the client sent on the same connection without waiting for the answer was read before it.
            if exchange.opened is not None:
                now = None if status is None else emulator.now()
                emulator.order.close(exchange.opened, now, succeeded=status in _SUCCESS)
            emulator.close(exchange.record, status)

    def _arrive(self, scope: Scope, receive: Receive, send: Send, read_at: float | None) -> _Exchange:
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
        return _Exchange(scope, receive, send, record, now if read_at is None else read_at, refusal)

    async def _handle(self, exchange: _Exchange) -> int | None:
        emulator, record = self._emulator, exchange.record
        if not await self._read(exchange):
            return None
        fault = emulator.faults.take(record.path, exchange.body)
        if fault is None:
            status = self._settle(exchange)
            settings = emulator.settings
            latency = settings.batch_latency if record.path == PREFIX + BATCH else settings.latency
            if not await _stays(exchange.receive, latency):
                return None
            await _answer(exchange.send, status)
            return status
        record.fault = fault.kind
        # The client waits for a request with a fault as for any other, whether its events are recorded or not.
        self._open(exchange, readable_events(record.path, exchange.body))
        if not await emulator.pause(fault.seconds):
            await _drop(exchange.scope, exchange.receive)
            return None
        settled = self._settle(exchange) if fault.records else fault.status
        return await self._fail(fault, settled, exchange)

    async def _read(self, exchange: _Exchange) -> bool:
        """Read the whole body, and store the first bytes of it: at most `max_body_bytes` + 1 bytes.

        Return whether the body is complete; False if the client disconnected. A body that is too large is read
        completely as well, because a client that is still sending would not read the 413.
        """
        kept, size = bytearray(), 0
        most = self._emulator.settings.max_body_bytes + 1
        more = True
        while more:
            message = await exchange.receive()
            if message["type"] == "http.disconnect":
                break
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            kept += chunk[: max(0, most - len(kept))]
            more = message.get("more_body", False)
        exchange.body = bytes(kept)
        self._emulator.ledger.read(exchange.record, exchange.body, size)
        return not more

    def _settle(self, exchange: _Exchange) -> int:
        """Judge the body, unless the head was already refused; record the result, and return the status."""
        emulator, record, body = self._emulator, exchange.record, exchange.body
        verdict = exchange.refusal or judge_body(emulator.settings, record, body)
        if isinstance(verdict, Refusal):
            self._open(exchange, readable_events(record.path, body))
        else:
            verdict = self._in_order(exchange, verdict)
        if isinstance(verdict, Refusal):
            emulator.ledger.refuse(record, verdict.reasons)
            return verdict.status
        emulator.ledger.accept(record, verdict, body)
        return 200

    def _open(self, exchange: _Exchange, events: Events) -> OpenRequest | None:
        """Enter a request among those under way, and return it; return None if its order is not judged.

        The order is not judged if the API would not read the body: the path, the method, the key or the shop is wrong.
        A request over the limit is judged, because the client may not send it either while another one is under way.
        """
        if exchange.opened is None and (exchange.refusal is None or exchange.refusal.status == 429):
            record = exchange.record
            exchange.opened = OpenRequest(
                (record.number, record.time), exchange.arrived, spans_of(events), partial(_wire.is_gone, exchange.scope)
            )
            self._emulator.order.open(exchange.opened)
        return exchange.opened

    def _in_order(self, exchange: _Exchange, events: Events) -> Refusal | Events:
        """Return *events* to be recorded, or a refusal if they violate the order and `strict_order` is set."""
        opened = self._open(exchange, events)
        if opened is None:
            return events
        self._emulator.order.check(opened)
        if opened.violations and self._emulator.settings.strict_order:
            return Refusal(409, opened.reasons())
        opened.recorded = True
        return events

    async def _fail(self, fault: Fault, settled: int, exchange: _Exchange) -> int | None:
        """Apply *fault*; return the status of the answer, or None if the client gets no answer."""
        scope, receive, send = exchange.scope, exchange.receive, exchange.send
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
            if exchange.opened is not None:
                exchange.opened.ended = self._emulator.now()
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


async def _stays(receive: Receive, seconds: float) -> bool:
    """Wait *seconds*, and return whether the client is still connected; return False as soon as it disconnects."""
    if seconds > 0:
        try:
            async with asyncio.timeout(seconds):
                await _gone(receive)
        except TimeoutError:
            return True
        return False
    return True


async def _gone(receive: Receive) -> None:
    """Wait until the connection is closed. An ASGI application may return without an answer only after that."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _drop(scope: Scope, receive: Receive) -> None:
    """Close the connection of a request without an answer; called when the emulator stops."""
    _wire.abort(_wire.transport_of(scope))
    await _gone(receive)
