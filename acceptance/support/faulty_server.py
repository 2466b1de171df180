"""A server that fails on command and counts how often it recorded each event.

It runs in a process of its own and takes commands while it runs. It counts a request when the whole request has
arrived. It records the events unless there is a reason against it: a wrong key, the limit, the size, a poison event, or
a fault that fails before recording. It also judges whether requests with events of one visitor overlap, and whether
each visitor's events are recorded in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, urlsplit

import orjson

from acceptance.support.fault import NAMES, PARTNER, POISON, Arrival, Conditions, Fault, Report
from benchmarks.support import server_process
from benchmarks.support.connection import Connection, Request
from benchmarks.support.judge import closed_by_client
from benchmarks.support.visitor_order import Order, Overlaps
from benchmarks.support.window import Window

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from benchmarks.support.server_process import Pipe
    from benchmarks.support.visitor_order import UnderWay

_INDEX = {name: number for number, name in enumerate(NAMES)}
_BATCH = "visitorEvents"
"""The last part of the URL of a batch."""

_POISON = b'"stockId":"%b"' % POISON.encode()
_RESET = struct.pack("ii", 1, 0)
_CUT_HEAD = b"HTTP/1.1 200 OK\r\ncontent-le"
_CUT_BODY = b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"almost":'
_GARBAGE = b"\x16\x03\x01 this is no HTTP\r\n\r\n"


class FaultyServer:
    """Controls a running server; each method returns when the server has obeyed."""

    def __init__(self, port: int, pipe: Pipe) -> None:
        self.url = f"http://127.0.0.1:{port}/1.0/"
        self._pipe = pipe
        self._one_at_a_time = asyncio.Lock()

    async def behave(self, conditions: Conditions) -> None:
        """Change the conditions without resetting the counts."""
        await self._ask(conditions)

    async def shut(self, seconds: float) -> None:
        """End every connection and refuse new ones for `seconds` seconds; return as soon as this has begun."""
        await self._ask(seconds)

    async def report(self) -> Report:
        """Return the requests and events that the server has received so far."""
        report = await self._ask(Report)
        assert isinstance(report, Report)
        return report

    async def _ask(self, command: object) -> object:
        # If the caller is cancelled, the answer must not stay in the pipe for the next command, hence the shield.
        return await asyncio.shield(asyncio.ensure_future(self._exchange(command)))

    async def _exchange(self, command: object) -> object:
        async with self._one_at_a_time:
            self._pipe.send(command)
            return await asyncio.to_thread(self._pipe.recv)


@contextlib.asynccontextmanager
async def running(conditions: Conditions) -> AsyncIterator[FaultyServer]:
    """Run a server while the block runs."""
    with server_process.running(_main, conditions) as (port, pipe):
        yield FaultyServer(port, pipe)


# --- in the process of the server -------------------------------------------------------------------------------------


class _Event(NamedTuple):
    number: int
    name: int
    visitor: str


class _Verdict(NamedTuple):
    status: int
    events: list[_Event]


class _Api:
    """Counts the requests of all connections, and decides which of them fail and how."""

    def __init__(self, conditions: Conditions) -> None:
        self.connections: set[_Connection] = set()
        self.stray_url = ""
        self.strayed = 0
        self.lag = 0.0
        self._random = random.Random(conditions.seed)
        self._window = Window(conditions.limit)
        self._arrivals: list[Arrival] = []
        self._counts = bytearray()
        self._names = bytearray()
        self._malformed = 0
        self._overlaps = Overlaps()
        self._order = Order()
        self.behave(conditions)

    def behave(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._window.limit = conditions.limit
        self._left = [fault.times for fault in conditions.faults]

    def report(self) -> Report:
        return Report(
            arrivals=self._arrivals,
            counts=bytes(self._counts),
            names=bytes(self._names),
            strayed=self.strayed,
            malformed=self._malformed,
            overlaps=self._overlaps.count,
            out_of_order=len(self._order.disordered),
            lag=self.lag,
        )

    def ends_reused_connection(self) -> bool:
        """Return True if a reused connection has to end now, when the head of a request has arrived."""
        fault = self._choose_fault(idle=True)
        if fault is not None:
            # The body is not read, so the number of its events is unknown, and 0 is stored.
            self._arrivals.append(Arrival(asyncio.get_running_loop().time(), 0, fault.title, recorded=False))
        return fault is not None

    def decide(self, request: Request, began: float, closed: Callable[[], bool]) -> _Decision:
        """Count a request, record its events unless there is a reason against it, and return its answer or fault.

        Args:
            request: the request.
            began: when its first bytes arrived.
            closed: returns whether the client has closed the connection.
        """
        at = asyncio.get_running_loop().time()
        verdict = self._judge(request, admitted=self._window.admit(at))
        fault = self._choose_fault(idle=False)
        if fault is not None and fault.kind == "cut_body" and verdict.status != 200:
            # The answer of this fault is a 200, so it must not hit a request whose events are not recorded.
            fault = None
        records = verdict.status == 200 and (fault is None or fault.record)
        if records:
            self._record(verdict)
        answer = fault if fault is not None else Fault("status", verdict.status)
        self._arrivals.append(Arrival(at, len(verdict.events), answer.title, records))
        conditions = self._conditions
        delay = self._random.uniform(0.5, 1.5) * conditions.latency
        if records and _name(request) == _BATCH:
            delay += conditions.batch_latency
        visitors = {event.visitor for event in verdict.events}
        return _Decision(answer, delay, self._overlaps.begin(began, visitors, closed))

    def end(self, request: UnderWay, *, answered: bool) -> None:
        """End a request, whether it was answered (completely, in part, or by the end of the connection) or not."""
        self._overlaps.end(request, asyncio.get_running_loop().time() if answered else None)

    def _choose_fault(self, *, idle: bool) -> Fault | None:
        for position, fault in enumerate(self._conditions.faults):
            left = self._left[position]
            if (fault.kind == "idle_close") is not idle or left == 0 or self._random.random() >= fault.probability:
                continue
            if left is not None:
                self._left[position] = left - 1
            return fault
        return None

    def _judge(self, request: Request, *, admitted: bool) -> _Verdict:
        conditions = self._conditions
        try:
            key, partner, events = _read(request)
        except (ValueError, KeyError, TypeError, AttributeError):
            self._malformed += 1
            return _Verdict(400, [])
        status = 200
        if key != conditions.key or partner != PARTNER:
            status = 401
        elif not admitted:
            status = 429
        elif conditions.max_bytes is not None and len(request.body) > conditions.max_bytes:
            status = 413
        elif _POISON in request.body:
            status = 400
        return _Verdict(status, events)

    def _record(self, verdict: _Verdict) -> None:
        counts, names = self._counts, self._names
        missing = max(event.number for event in verdict.events) + 1 - len(counts)
        if missing > 0:
            counts.extend(bytes(missing))
            names.extend(bytes(missing))
        for number, name, _ in verdict.events:
            counts[number] = min(counts[number] + 1, 255)
            names[number] = name
        self._order.record([(event.visitor, event.number) for event in verdict.events])


class _Decision(NamedTuple):
    """What happens to a request.

    Attributes:
        answer: its answer or fault.
        delay: seconds until then.
        request: the request among those under way.
    """

    answer: Fault
    delay: float
    request: UnderWay


def _name(request: Request) -> str:
    """Return the last part of the path."""
    return urlsplit(request.target).path.rpartition(b"/")[2].decode("ascii")


def _read(request: Request) -> tuple[str, str, list[_Event]]:
    """Return the key, the partner, and the events.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: the API does not define such a request.
    """
    target = urlsplit(request.target)
    query = parse_qs(target.query.decode("ascii"), strict_parsing=True)
    [key], [partner] = query["apiKey"], query["partnerId"]
    name = _name(request)
    body = orjson.loads(request.body)
    envelopes = body if name == _BATCH else [{name: body}]
    events = [
        _Event(event["productId"], _INDEX[name], event["sessionExternalId"])
        for envelope in envelopes
        for name, event in envelope.items()
    ]
    if not events:
        raise ValueError("no events")
    return key, partner, events


class _Connection(Connection):
    """Answers the requests of one connection, or fails."""

    def __init__(self, api: _Api) -> None:
        super().__init__()
        self._api = api
        self._current: UnderWay | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._api.connections.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._api.connections.discard(self)
        self._end(answered=False)

    def head_received(self) -> None:
        if self.requests and self._api.ends_reused_connection():
            self.transport.abort()

    def request_received(self, request: Request) -> None:
        decision = self._api.decide(request, self.began, lambda: closed_by_client(self.transport))
        self._current = decision.request
        asyncio.get_running_loop().call_later(decision.delay, self._answer, decision.answer)

    def _answer(self, fault: Fault) -> None:
        if self.transport.is_closing():
            return
        if fault.kind != "stall":
            # The client may send the next request as soon as it reads the answer, so the request ends first.
            self._end(answered=True)
        match fault.kind:
            case "status":
                self.transport.write(self._head(fault))
            case "reset":
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                self.transport.abort()
            case "close":
                self.transport.close()
            case "cut_head" | "cut_body" | "garbage":
                answers = {"cut_head": _CUT_HEAD, "cut_body": _CUT_BODY, "garbage": _GARBAGE}
                self.transport.write(answers[fault.kind])
                self.transport.close()
            case _:
                # A stalled request gets no answer; the client has to end the connection.
                pass

    def _end(self, *, answered: bool) -> None:
        request, self._current = self._current, None
        if request is not None:
            self._api.end(request, answered=answered)

    def _head(self, fault: Fault) -> bytes:
        lines = [f"HTTP/1.1 {fault.status} Answer", "content-length: 0"]
        if fault.retry_after is not None:
            lines.append(f"retry-after: {fault.retry_after}")
        if 300 <= fault.status <= 399:
            lines.append(f"location: {self._api.stray_url}")
        return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n"


class _Stray(asyncio.Protocol):
    """Counts the clients that follow a redirect."""

    def __init__(self, api: _Api) -> None:
        self._api = api

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._api.strayed += 1
        transport.close()


class _Listener:
    """The listening socket, which can be closed for a while and then opened again on the same port."""

    def __init__(self, api: _Api) -> None:
        self.port = 0
        self._api = api
        self._opening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self._api), "127.0.0.1", self.port, reuse_address=True, backlog=1000
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def shut(self, seconds: float) -> None:
        self._server.close()
        for connection in list(self._api.connections):
            connection.transport.abort()
        self._opening = asyncio.create_task(self._open_in(seconds))

    async def _open_in(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.open()


def _main(pipe: Pipe, conditions: Conditions) -> None:
    asyncio.run(_serve(pipe, conditions))


async def _serve(pipe: Pipe, conditions: Conditions) -> None:
    loop = asyncio.get_running_loop()
    api = _Api(conditions)
    stray = await loop.create_server(lambda: _Stray(api), "127.0.0.1", 0)
    api.stray_url = f"http://127.0.0.1:{stray.sockets[0].getsockname()[1]}/1.0/visitorEvents"
    listener = _Listener(api)
    await listener.open()
    loop.add_reader(pipe.fileno(), _obey, pipe, api, listener)
    pipe.send(listener.port)
    while True:
        due = loop.time() + 0.005
        await asyncio.sleep(0.005)
        api.lag = max(api.lag, loop.time() - due)


def _obey(pipe: Pipe, api: _Api, listener: _Listener) -> None:
    command = pipe.recv()
    if isinstance(command, Conditions):
        api.behave(command)
    elif isinstance(command, float):
        listener.shut(command)
    pipe.send(api.report() if command is Report else None)
