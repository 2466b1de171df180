"""The client: puts the rooms together, and is the door to them."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import AsyncIterable, Iterable
from typing import TYPE_CHECKING, Any, Self

from retailrocket_async._buffer import Batching, Buffer
from retailrocket_async._dispatcher import Dispatcher
from retailrocket_async._errors import ConfigurationError, EventValidationError
from retailrocket_async._limiter import Limiter, LocalLimiter, RateLimit
from retailrocket_async._retry import RetryPolicy
from retailrocket_async._transport import (
    DEFAULT_BASE_URL,
    DEFAULT_TIMEOUT,
    Credentials,
    HttpClient,
    HttpxTransport,
    Timeout,
    checked_base_url,
)
from retailrocket_async._verbs import EventMethods
from retailrocket_async._wire import BATCH_PATH, Codec, TimestampPrecision, join

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from retailrocket_async._events import Event
    from retailrocket_async._outcome import Delivered, Receipt
    from retailrocket_async._report import CloseReport, Stats, UndeliveredEvent

DEFAULT_CLOSE_TIMEOUT = 15.0
"""Seconds; half of the grace that process managers commonly give."""


class AsyncTrackingClient(EventMethods):
    """Tracks the behaviour of a shop's visitors.

    Events are checked and encoded at the caller's line, wait in a bounded buffer, leave in `visitorEvents` batches
    under the shop's request limit, are retried where a retry can mend the failure, and get exactly one outcome each.

    One client belongs to one event loop and one process: create it where they start (an application's lifespan, a
    worker's main coroutine) and close it where they end. Nothing is opened or started before the first use.

    Args:
        api_key: the shop's secret key. It is sent to `base_url` and goes nowhere else.
        partner_id: the shop's public id.
        base_url: where the API is; default ``https://apptracking.retailrocket.net/1.0/``.
        http_client: a caller's own `httpx.AsyncClient`: shared, never closed here; its transports, proxies, headers
            and event hooks apply, its `auth`, `params`, `timeout` and redirects do not. Default: our own, whose pool
            is as large as `Batching.max_in_flight`, with the environment's proxies as httpx has them.
        http2: offer HTTP/2 on our own client (extra ``http2``); default False: with HTTP/1.1 uploads cost less and
            idle connections close without a lost request.
        rate_limit: the request limit; default `RateLimit()`, 50 a second; None lifts it. Not together with `limiter`.
        limiter: a `Limiter` in place of the built-in one, e.g. one that several clients of a shop share.
        batching: how events are coalesced; default `Batching()`.
        buffer: how much may wait; default `Buffer()`.
        retry: how long a failed request is tried; default `RetryPolicy()`.
        timeout: seconds for one request as a whole, or an `httpx.Timeout` for its parts; default 10.
        timestamp_precision: ``"seconds"`` (default), ``"milliseconds"`` or ``"microseconds"`` on the wire.
        on_outcome: called with every batch of buffered events that ended undelivered, as a list of
            `UndeliveredEvent`; runs in the event loop, so it must be quick. What it raises is counted and logged once.
        allow_insecure_http: allow plain ``http://`` to other hosts than this one, where anyone on the way can read
            the key; default False.

    Raises:
        ConfigurationError: an argument that cannot work, with a sentence that says what to write instead.
    """

    # On the class: __del__ and __repr__ look at them also where the constructor raised, or never began.
    _dispatcher: Dispatcher | None = None
    _base_url = ""
    _partner_id = ""

    def __init__(  # noqa: PLR0913 - keywords, each with a default
        self,
        api_key: str,
        partner_id: str,
        *,
        base_url: str = DEFAULT_BASE_URL,
        http_client: HttpClient | None = None,
        http2: bool = False,
        rate_limit: RateLimit | None = RateLimit(),  # noqa: B008 - frozen
        limiter: Limiter | None = None,
        batching: Batching = Batching(),  # noqa: B008 - frozen
        buffer: Buffer = Buffer(),  # noqa: B008 - frozen
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        timeout: Timeout = DEFAULT_TIMEOUT,
        timestamp_precision: TimestampPrecision = "seconds",
        on_outcome: Callable[[Sequence[UndeliveredEvent]], object] | None = None,
        allow_insecure_http: bool = False,
    ) -> None:
        try:
            credentials = Credentials(api_key, partner_id)
        finally:
            # The frame of an error is kept with it, and some tools print its variables.
            del api_key
        _check_types(rate_limit=rate_limit, limiter=limiter, batching=batching, buffer=buffer, retry=retry)
        if batching.max_bytes > buffer.max_bytes:
            raise ConfigurationError("Buffer.max_bytes must be at least Batching.max_bytes, or a batch cannot fill")
        if on_outcome is not None and (not callable(on_outcome) or inspect.iscoroutinefunction(on_outcome)):
            raise ConfigurationError(
                "on_outcome must be a plain function that takes a list of UndeliveredEvent; "
                "from it an asyncio.Queue's put_nowait or a task can go on asynchronously"
            )
        self._base_url = checked_base_url(base_url, allow_insecure=allow_insecure_http)
        self._partner_id = credentials.partner_id
        self._batching = batching
        self._codec = Codec(timestamp_precision)
        self._encode = self._codec.encode
        transport = HttpxTransport(
            credentials,
            base_url=self._base_url,
            timeout=timeout,
            http_client=http_client,
            connections=batching.max_in_flight,
            http2=http2,
        )
        self._dispatcher = Dispatcher(
            batching=batching,
            buffer=buffer,
            retry=retry,
            limiter=limiter if limiter is not None else LocalLimiter(rate_limit),
            transport=transport,
            on_outcome=on_outcome,
        )

    @classmethod
    def from_env(cls, **options: Any) -> Self:  # noqa: ANN401 - the constructor's keywords
        """Return a client configured by the environment.

        Reads ``RETAILROCKET_API_KEY``, ``RETAILROCKET_PARTNER_ID`` and, where it is set, ``RETAILROCKET_BASE_URL``.

        Args:
            options: further keywords of the constructor; they win over the environment.

        Raises:
            ConfigurationError: a variable is missing, or as the constructor.
        """
        for keyword, variable in (("api_key", "RETAILROCKET_API_KEY"), ("partner_id", "RETAILROCKET_PARTNER_ID")):
            if keyword not in options:
                if not os.environ.get(variable):
                    raise ConfigurationError(f"set the environment variable {variable}, or pass {keyword}=...")
                options[keyword] = os.environ[variable]
        if "base_url" not in options and os.environ.get("RETAILROCKET_BASE_URL"):
            options["base_url"] = os.environ["RETAILROCKET_BASE_URL"]
        try:
            return cls(**options)
        finally:
            # As in the constructor: the key must not stay in the frame of an error.
            options.clear()

    async def track(self, event: Event) -> Receipt:
        """Put one event in the buffer and return its receipt; waits only while the buffer is full.

        Once it is accepted, cancelling this call does not cancel the delivery.

        Raises:
            EventValidationError: not an event of this package, or larger than `Batching.max_bytes`.
            ClientClosedError: the client is closed, or was closed while this call waited.
            WrongLoopError: called from another event loop, or after a fork.
        """
        return await self._engine.intake.accept(event, self._encoded(event))

    def track_nowait(self, event: Event) -> Receipt:
        """Put one event in the buffer and return its receipt; never waits.

        Call it from a coroutine or callback of the client's event loop.

        Raises:
            BufferFullError: the buffer is full, or others wait for room in it.
            EventValidationError, ClientClosedError, WrongLoopError: as `track`.
        """
        return self._engine.intake.accept_nowait(event, self._encoded(event))

    async def track_many(self, events: Iterable[Event] | AsyncIterable[Event]) -> list[Receipt]:
        """Put events in the buffer one after the other, waiting while it is full; return their receipts in order.

        An error in mid-way leaves the events before it accepted.

        Args:
            events: any iterable or async iterable.

        Raises:
            EventValidationError, ClientClosedError, WrongLoopError: as `track`.
        """
        accept, encoded = self._engine.intake.accept, self._encoded
        if isinstance(events, AsyncIterable):
            return [await accept(event, encoded(event)) async for event in events]
        return [await accept(event, encoded(event)) for event in events]

    async def send(self, event: Event) -> Delivered:
        """Send one event at once, to its own endpoint; return when the API has accepted it.

        It passes the limiter and is retried like a batch. Cancelling this call cancels the request.

        Raises:
            DeliveryError: the subclass that says what became of it.
            EventValidationError, ClientClosedError, WrongLoopError: as `track`.
        """
        self._encoded(event)
        return await self._engine.send(event.event_name, self._codec.encode_bare(event), 1)

    async def send_batch(self, events: Iterable[Event]) -> Delivered:
        """Send events at once, in one `visitorEvents` request; return when the API has accepted them all.

        Args:
            events: 1 to `Batching.max_events` events, together no larger than `Batching.max_bytes`.

        Raises:
            EventValidationError: none, too many or too large; or as `track`.
            DeliveryError: the subclass that says what became of them.
            ClientClosedError, WrongLoopError: as `track`.
        """
        envelopes = [self._encoded(event) for event in events]
        caps = self._batching
        if not 1 <= len(envelopes) <= caps.max_events:
            rule = f"must hold 1 to {caps.max_events} events (Batching.max_events); track_many takes any number"
            raise EventValidationError(BATCH_PATH, "", rule, len(envelopes))
        body = join(envelopes)
        if len(body) > caps.max_bytes:
            rule = f"must be at most {caps.max_bytes} bytes of JSON (Batching.max_bytes)"
            raise EventValidationError(BATCH_PATH, "", rule, len(body))
        return await self._engine.send(BATCH_PATH, body, len(envelopes))

    async def flush(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - raises an error of its own
        """Return when every event tracked before this call has its outcome.

        Args:
            timeout: seconds; default None, as long as it takes. `RetryPolicy` bounds each batch's time.

        Raises:
            FlushTimeoutError: the time passed first; the events stay in the client and go on being sent.
            WrongLoopError: as `track`.
        """
        await self._engine.flush(_seconds(timeout))

    async def aclose(self, timeout: float | None = DEFAULT_CLOSE_TIMEOUT) -> CloseReport:  # noqa: ASYNC109 - a deadline
        """Refuse new events, flush, close; the one deadline covers buffer, limiter, retries and requests.

        Whatever has no outcome when it passes, or when this call is cancelled, becomes `Dropped` (never sent) or
        `Abandoned` (sent, unanswered). Closing again returns the same report.

        Args:
            timeout: seconds; default 15. None waits as long as the retries take.

        Raises:
            WrongLoopError: as `track`.
        """
        return await self._engine.aclose(_seconds(timeout))

    def stats(self) -> Stats:
        """Return an immutable snapshot of the client's counters; never blocks."""
        return self._engine.stats()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        engine = self._dispatcher
        if engine is not None and engine.started and not engine.closed:
            warnings.warn(
                f"unclosed {self!r}: use 'async with', or await aclose(), or buffered events may be lost",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        engine = self._dispatcher
        state = "new" if engine is None or not engine.started else "closed" if engine.closed else "open"
        return f"<AsyncTrackingClient partner_id={self._partner_id!r} base_url={self._base_url!r} {state}>"

    @property
    def _engine(self) -> Dispatcher:
        assert self._dispatcher is not None  # noqa: S101 - only a constructor that raised leaves it so
        return self._dispatcher

    def _encoded(self, event: Event) -> bytes:
        envelope = self._encode(event)
        if len(envelope) + 2 > self._batching.max_bytes:
            rule = f"must be at most {self._batching.max_bytes} bytes of JSON (Batching.max_bytes)"
            raise EventValidationError(event.event_name, "", rule, len(envelope))
        return envelope


def _seconds(timeout: float | None) -> float | None:
    if timeout is None or (type(timeout) in (int, float) and timeout >= 0):
        return timeout
    raise ConfigurationError(f"timeout must be None or a number of seconds, 0 or more, not {timeout!r}")


def _check_types(*, rate_limit: object, limiter: object, batching: object, buffer: object, retry: object) -> None:
    for name, value, kind in (
        ("batching", batching, Batching),
        ("buffer", buffer, Buffer),
        ("retry", retry, RetryPolicy),
    ):
        if not isinstance(value, kind):
            raise ConfigurationError(f"{name} must be a {kind.__name__}(...), not {type(value).__name__}")
    if rate_limit is not None and not isinstance(rate_limit, RateLimit):
        raise ConfigurationError(f"rate_limit must be a RateLimit(...) or None, not {type(rate_limit).__name__}")
    if limiter is not None and not isinstance(limiter, Limiter):
        raise ConfigurationError("limiter must have the methods acquire and pause_until: see Limiter")
    if limiter is not None and rate_limit not in (None, RateLimit()):
        raise ConfigurationError("give either rate_limit or limiter: a limiter of your own has its own rate")
