"""Fakes for the engine's tests: a scripted server, a recording limiter, and a checked engine.

Tests pass the fakes as arguments instead of the real objects, so no test has to patch anything.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import httpx
import pytest

from retailrocket_async import AsyncTrackingClient
from retailrocket_async._delivery.dispatcher import Dispatcher
from retailrocket_async._delivery.rate_limiter import LocalLimiter
from retailrocket_async._delivery.retry import RetryPolicy
from retailrocket_async._events.codec import BATCH_PATH, Codec, join, visitor_of
from retailrocket_async._events.models import AddToBasket, Event, ImpressionContentViewed, Order, Search, View
from retailrocket_async._http.reply import Reply
from retailrocket_async._queue.options import Batching, Buffer
from tests.support.virtual_time import CheckedLoop, run  # noqa: F401 - some tests import `run` from here

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from retailrocket_async._delivery.rate_limiter import Limiter
    from retailrocket_async._outcome import Delivered
    from retailrocket_async._receipt import Receipt
    from retailrocket_async._stats import CloseReport, StateChange, Stats, UndeliveredEvent

T = TypeVar("T")

ROUNDING = 1e-4
"""Tolerance in seconds: longer than the turns of a virtual loop take, shorter than any time that tests compare."""

CODEC = Codec()
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


SLOW_RETRY = RetryPolicy(initial_backoff=1e6, max_backoff=1e6, max_elapsed=1e9)
"""A retry policy whose backoff is a random wait of up to eleven days, so in effect no request is retried."""


def now() -> float:
    """Return the running loop's time in seconds."""
    return asyncio.get_running_loop().time()


def near(seconds: float) -> Any:
    """Return a value that is equal to every time within `ROUNDING` of `seconds`."""
    return pytest.approx(seconds, abs=ROUNDING)


def event(number: int, visitor: str | None = None, kind: type[Event] = View) -> Event:
    """Return an event of the class `kind` with `number` in one of its fields; see `number_of`.

    By default each number has a visitor of its own, so no event waits for another one.
    """
    fields: dict[type[Event], dict[str, Any]] = {
        View: {"product_id": number},
        AddToBasket: {"product_id": number},
        Order: {"product_id": number, "quantity": 1, "price": 1, "transaction": "t"},
        Search: {"search_phrase": str(number)},
        ImpressionContentViewed: {"impression_content_id": str(number)},
    }
    return kind(session_external_id=visitor or f"visitor{number}", timestamp=MOMENT, **fields[kind])


def number_of(reported: Event | UndeliveredEvent) -> int:
    """Return the number that the function `event` has put into a field of this event."""
    envelope = CODEC.encode(reported) if isinstance(reported, Event) else reported.envelope
    ((_, number),) = _events(b"[" + envelope + b"]")
    return number


def check_balance(stats: Stats) -> None:
    """Check the counters of a client.

    Every tracked event must be counted as exactly one of settled, pending or in flight. Every dropped event must be
    counted with a reason. No counter may be negative.
    """
    settled = stats.delivered + stats.rejected + stats.abandoned + stats.dropped + stats.kept
    assert stats.tracked == settled + stats.pending + stats.in_flight, stats
    assert min(attrs.astuple(stats, recurse=False, filter=lambda _, value: isinstance(value, int | float))) >= 0, stats
    assert stats.spool is not None or (stats.pending == 0) == (stats.pending_bytes == 0), stats
    assert stats.dropped == sum(sum(names.values()) for names in stats.dropped_by.values()), stats


# --- a server ---


@attrs.frozen(kw_only=True)
class Step:
    """Describes how the scripted server handles one request."""

    reply: Reply | BaseException = Reply(status=200)  # noqa: RUF009 - frozen
    """The answer, or the exception that the transport raises."""
    latency: float = 0.05
    """Seconds until the answer or the exception."""
    parked: bool = False
    """Whether the answer also waits until the test calls `ScriptedTransport.release`."""
    recorded: bool | None = None
    """Whether the server records the events; None: the server records them if the answer is a 2xx status."""
    stubborn: bool = False
    """Whether the transport answers even if its task is cancelled."""


def status(code: int, *, retry_after: float | None = None, latency: float = 0.05) -> Step:
    """Return a step that answers with the status `code`."""
    return Step(reply=Reply(status=code, retry_after=retry_after), latency=latency)


NO_CONNECTION = Step(reply=Reply(failure="connect", detail="ConnectError", sent=False))
TIMED_OUT = Step(reply=Reply(failure="timeout", detail="ReadTimeout"))
PARKED = Step(parked=True)
NEVER = Step(latency=1e9)
"""A step in which the server does not answer."""
OK = Step()


@attrs.frozen(kw_only=True)
class Request:
    """A request as it arrived at the scripted server."""

    at: float
    path: str
    body: bytes
    events: tuple[tuple[str, int], ...]
    """The visitor and the number of each event."""

    @property
    def numbers(self) -> list[int]:
        """The numbers of the request's events."""
        return [number for _, number in self.events]


class ScriptedTransport:
    """A transport for the engine that answers requests by a script instead of sending them.

    Args:
        script: one step, or one status, for each of the first requests.
        then: the step or the status for all later requests, or a function that takes a request and returns its step or
            status. A test may change the attribute `then`.
        close: a coroutine function that `aclose` calls; default None.
    """

    def __init__(
        self,
        *script: Step | int,
        then: Step | int | Callable[[Request], Step | int] = OK,
        close: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self._script = list(script)
        self.then = then
        self._close = close
        self._parked: list[asyncio.Future[None]] = []
        self.requests: list[Request] = []
        self.recorded: list[tuple[str, int]] = []
        self.in_flight = self.worst_in_flight = self.cancelled = self.closed = 0
        self.overlaps: list[str] = []
        self._visitors: list[str] = []
        self.checks: list[Callable[[], None]] = []
        self.renewals: list[tuple[bool, str | None]] = []
        self.renewed = 0
        self.keeps_key = False

    @property
    def times(self) -> list[float]:
        """The time at which each request arrived, in seconds of the event loop's clock."""
        return [request.at for request in self.requests]

    @property
    def parked(self) -> int:
        """The number of requests that wait for `release`."""
        return len(self._parked)

    @property
    def recorded_numbers(self) -> list[int]:
        """The numbers of all recorded events, in the order of their recording."""
        return [number for _, number in self.recorded]

    @property
    def sent_numbers(self) -> list[int]:
        """The numbers of all events, in the order of their requests."""
        return [number for request in self.requests for number in request.numbers]

    def answer_next(self, *steps: Step | int) -> None:
        """Replace the script: answer the next requests by these steps, and all later requests by `then`."""
        self._script = list(steps)

    def release(self) -> None:
        """Answer all parked requests."""
        for future in self._parked:
            if not future.done():
                future.set_result(None)

    async def post(self, path: str, body: bytes, *, on_sent: Callable[[], None]) -> Reply:
        """Record a request, and answer it by the script."""
        request = Request(at=now(), path=path, body=body, events=tuple(_events(body)))
        self.requests.append(request)
        self.in_flight += 1
        self.worst_in_flight = max(self.worst_in_flight, self.in_flight)
        visitors = {visitor for visitor, _ in request.events}
        self.overlaps += visitors.intersection(self._visitors)
        self._visitors += visitors
        step = self._script.pop(0) if self._script else self.then
        if callable(step):
            step = step(request)
        if isinstance(step, int):
            step = status(step)
        try:
            self._check()
            on_sent()
            await self._travel(step)
            if step.recorded or (step.recorded is None and _accepts(step.reply)):
                self.recorded += request.events
            self._check()
        except asyncio.CancelledError:
            self.cancelled += 1
            if not step.stubborn:
                raise
            for visitor in visitors:
                self._visitors.remove(visitor)
            visitors.clear()
            await asyncio.sleep(0.01)
        finally:
            self.in_flight -= 1
            for visitor in visitors:
                self._visitors.remove(visitor)
        if isinstance(step.reply, BaseException):
            raise step.reply
        return step.reply

    async def renew_key(self, serial: int) -> tuple[bool, str | None]:
        """Return the next entry of `renewals`; if there is none, return that the key has not changed.

        While `keeps_key` is true, the call first waits for `release`.
        """
        self.renewed += 1
        await self._travel(Step(latency=0.0, parked=self.keeps_key))
        return self.renewals.pop(0) if self.renewals else (False, None)

    async def aclose(self) -> None:
        """Count the call, and await the function `close` if there is one."""
        self.closed += 1
        if self._close is not None:
            await self._close()

    async def _travel(self, step: Step) -> None:
        await asyncio.sleep(step.latency)
        if step.parked:
            future = asyncio.get_running_loop().create_future()
            self._parked.append(future)
            try:
                await future
            finally:
                self._parked.remove(future)

    def _check(self) -> None:
        for check in self.checks:
            check()


class ScriptedServer(httpx.AsyncBaseTransport):
    """Makes a `ScriptedTransport` usable as the transport of an `httpx.AsyncClient`."""

    def __init__(self, scripted: ScriptedTransport) -> None:
        self.scripted = scripted

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Read a request, and answer it by the script."""
        assert isinstance(request.stream, httpx.AsyncByteStream)
        body = b"".join([part async for part in request.stream])
        path = request.url.path.removeprefix("/1.0/")
        reply = await self.scripted.post(path, body, on_sent=lambda: None)
        if reply.status is not None:
            return httpx.Response(reply.status)
        raise httpx.ConnectError("") if not reply.sent else httpx.ReadTimeout("")


_NUMBERS = ("productId", "searchPhrase", "impressionContentId", "contactExternalId")


def _events(body: bytes) -> Iterable[tuple[str, int]]:
    parsed = json.loads(body)
    fields = [parsed] if isinstance(parsed, dict) else [fields for item in parsed for fields in item.values()]
    for event_fields in fields:
        # An event without a number, e.g. `WelcomeSequence`, counts as number 0.
        number = next((event_fields[name] for name in _NUMBERS if name in event_fields), 0)
        yield event_fields["sessionExternalId"], int(number)


def _accepts(reply: Reply | BaseException) -> bool:
    return isinstance(reply, Reply) and reply.status is not None and 200 <= reply.status <= 299


# --- a limiter ---


class RecordedPermit:
    """A permit that checks that its methods are called in the right order."""

    def __init__(self, limiter: RecordingLimiter) -> None:
        self._limiter = limiter
        self.sent_at: float | None = None
        self.answered: bool | None = None

    def sent(self) -> None:
        """Record the call; fail on a second call, and on a call after `done`."""
        assert self.sent_at is None
        assert self.answered is None
        self.sent_at = now()
        if self._limiter.broken_permits:
            raise RuntimeError("sent")

    def done(self, *, answered: bool = False) -> None:
        """Record the call; fail on a second call."""
        assert self.answered is None
        self.answered = answered
        self._limiter.open -= 1
        if self._limiter.broken_permits:
            raise RuntimeError("done")


class RecordingLimiter:
    """A limiter that grants every permit and records all calls. If `gated`, each permit waits for `grant`.

    Args:
        errors: exceptions that the first calls of `acquire` raise, one for each call; None for a call that succeeds.
        gated: whether each call of `acquire` waits until the test calls `grant`; permits are granted in order.
        broken_permits: whether all methods of the permits raise.
        broken_pause: the exception that `pause_until` raises; None (default) if it raises nothing.
    """

    def __init__(
        self,
        *errors: BaseException | None,
        gated: bool = False,
        broken_permits: bool = False,
        broken_pause: Exception | None = None,
    ) -> None:
        self._errors = list(errors)
        self._gated = gated
        self._waiting: list[asyncio.Future[None]] = []
        self._broken_pause = broken_pause
        self.broken_permits = broken_permits
        self.asked = 0
        self.open = 0
        self.permits: list[RecordedPermit] = []
        self.pauses: list[float] = []
        self.throttlings: list[float] = []

    async def acquire(self) -> RecordedPermit:
        """Grant a permit, after a call of `grant` if the limiter is gated; or raise the next error of `errors`."""
        self.asked += 1
        if self._errors and (error := self._errors.pop(0)) is not None:
            raise error
        if self._gated:
            gate = asyncio.get_running_loop().create_future()
            self._waiting.append(gate)
            try:
                await gate
            except asyncio.CancelledError:
                if gate in self._waiting:
                    self._waiting.remove(gate)
                else:
                    # This call was granted and cancelled in the same turn, so the next caller gets the permit.
                    self.grant()
                raise
        permit = RecordedPermit(self)
        self.permits.append(permit)
        self.open += 1
        return permit

    @property
    def waiting(self) -> int:
        """Number of callers that wait for a permit."""
        return len(self._waiting)

    def grant(self, count: int = 1) -> None:
        """Grant a permit to `count` waiting callers."""
        for _ in range(min(count, len(self._waiting))):
            self._waiting.pop(0).set_result(None)

    def open_gate(self) -> None:
        """Grant every permit from now on."""
        self._gated = False
        self.grant(len(self._waiting))

    def pause_until(self, deadline: float) -> None:
        """Record the deadline; delay no request."""
        self.pauses.append(deadline)
        if self._broken_pause is not None:
            raise self._broken_pause

    def throttled(self, sent_at: float) -> None:
        """Record when the refused request was sent; slow down no request."""
        self.throttlings.append(sent_at)


# --- hooks ---


def into(reported: list[T]) -> Callable[[Sequence[T]], Coroutine[Any, Any, None]]:
    """Return an async hook that appends the events that it is called with to the list `reported`."""

    async def hook(events: Sequence[T]) -> None:
        reported.extend(events)

    return hook


# --- the engine and the client ---


class Engine:
    """Wraps a real dispatcher, with short methods for tests. On a `CheckedLoop`, `check` is called in every turn.

    Attributes:
        dispatcher: the real dispatcher.
    """

    def __init__(
        self,
        transport: ScriptedTransport,
        *,
        limiter: Limiter | None = None,
        batching: Batching = Batching(),  # noqa: B008 - frozen
        buffer: Buffer = Buffer(),  # noqa: B008 - frozen
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        renewable: bool = False,
        on_outcome: Callable[[Sequence[UndeliveredEvent]], object] | None = None,
        on_state_change: Callable[[StateChange], object] | None = None,
    ) -> None:
        self.transport = transport
        self.batching = batching
        self.dispatcher = Dispatcher(
            batching=batching,
            buffer=buffer,
            retry=retry,
            limiter=limiter if limiter is not None else LocalLimiter(None),
            transport=transport,
            renewable=renewable,
            on_outcome=on_outcome,
            on_state_change=on_state_change,
        )
        self._bounds = buffer
        self.stats = self.dispatcher.stats
        transport.checks.append(self.check)
        loop = asyncio.get_running_loop()
        if isinstance(loop, CheckedLoop):
            loop.checks.append(self.check)

    def check(self) -> None:
        """Check the counters (see `check_balance`), and the limits of the buffer and of the requests in flight."""
        stats = self.stats()
        check_balance(stats)
        assert stats.pending <= self._bounds.max_events
        assert stats.pending_bytes <= self._bounds.max_bytes
        assert self.transport.in_flight <= self.batching.max_in_flight
        assert self.transport.overlaps == [], "two requests with events of one visitor were in flight at once"

    async def track(self, number: int, visitor: str | None = None, kind: type[Event] = View) -> Receipt:
        """Track the event with this number."""
        return await self.dispatcher.intake.accept(what := event(number, visitor, kind), CODEC.encode(what))

    def track_nowait(self, number: int, visitor: str | None = None, kind: type[Event] = View) -> Receipt:
        """Track the event with this number by `accept_nowait`, which raises if it would have to wait."""
        return self.dispatcher.intake.accept_nowait(what := event(number, visitor, kind), CODEC.encode(what))

    async def track_all(self, numbers: Iterable[int]) -> list[Receipt]:
        """Track the events with these numbers, one after the other."""
        return [await self.track(number) for number in numbers]

    async def flush(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - a parameter of the dispatcher, too
        """Flush the dispatcher."""
        await self.dispatcher.flush(timeout)

    async def aclose(self, timeout: float | None = 15.0) -> CloseReport:  # noqa: ASYNC109 - a parameter of the dispatcher, too
        """Close the dispatcher, and return its report."""
        return await self.dispatcher.aclose(timeout)

    async def send(self, number: int) -> Delivered:
        """Send the event with this number immediately, without the buffer."""
        what = event(number)
        name = what.event_name
        return await self.dispatcher.send(name, CODEC.encode_bare(what), [name], [visitor_of(what)])

    async def send_as(self, number: int, visitor: str, *, alone: bool) -> Delivered:
        """Send one event of this visitor immediately: to its own endpoint, or in a batch of one event."""
        what = event(number, visitor)
        if alone:
            path, body = what.event_name, CODEC.encode_bare(what)
        else:
            path, body = BATCH_PATH, join([CODEC.encode(what)])
        return await self.dispatcher.send(path, body, [what.event_name], [visitor])

    async def send_batch(self, numbers: Sequence[int]) -> Delivered:
        """Send the events with these numbers immediately in one request, without the buffer."""
        events = [event(number) for number in numbers]
        body = join(map(CODEC.encode, events))
        return await self.dispatcher.send(
            BATCH_PATH, body, [each.event_name for each in events], list(map(visitor_of, events))
        )


def make_client(transport: ScriptedTransport, **options: Any) -> AsyncTrackingClient:
    """Return a real client whose requests are answered by `transport`."""
    http_client = httpx.AsyncClient(transport=ScriptedServer(transport))
    options.setdefault("limiter", LocalLimiter(None))
    options.setdefault("api_key", "key")
    return AsyncTrackingClient(partner_id="partner", http_client=http_client, **options)


async def turns(count: int = 3) -> None:
    """Let all other tasks run for `count` turns of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


def tasks() -> set[asyncio.Task[Any]]:
    """Return all tasks of the loop except the running one."""
    return asyncio.all_tasks() - {asyncio.current_task()}
