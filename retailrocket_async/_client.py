"""The client: puts the rooms together, and is the door to them."""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import warnings
import weakref
from typing import TYPE_CHECKING, Any, NoReturn, Self

import attrs

from retailrocket_async._delivery.bulk_intake import track_one_by_one
from retailrocket_async._delivery.dispatcher import Dispatcher
from retailrocket_async._delivery.rate_limiter import Limiter, LocalLimiter, RateLimit
from retailrocket_async._delivery.retry import RetryPolicy
from retailrocket_async._errors import (
    ConfigurationError,
    EventValidationError,
    error_for,
)
from retailrocket_async._events.codec import BATCH_PATH, Codec, TimestampPrecision, join
from retailrocket_async._events.envelopes import EnvelopeReader
from retailrocket_async._events.methods import EventMethods
from retailrocket_async._events.models import Event
from retailrocket_async._http.credentials import ApiKey, Credentials
from retailrocket_async._http.transport import (
    DEFAULT_BASE_URL,
    DEFAULT_TIMEOUT,
    HttpClient,
    HttpxTransport,
    Timeout,
    check_verified,
    checked_base_url,
)
from retailrocket_async._interrupt import is_interrupt
from retailrocket_async._observer import ObservedClient, Observer, Watch
from retailrocket_async._outcome import Dropped
from retailrocket_async._queue.options import Batching, Buffer
from retailrocket_async._receipt import Receipt
from retailrocket_async._runtime.uncopyable import Uncopyable
from retailrocket_async._spool.dispatcher import SpooledDispatcher
from retailrocket_async._spool.spool import SqliteSpool
from retailrocket_async._threads import ThreadsafeHandle

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Sequence
    from types import TracebackType

    from retailrocket_async._delivery.engine import Engine
    from retailrocket_async._outcome import Delivered
    from retailrocket_async._stats import CloseReport, StateChange, Stats, UndeliveredEvent

DEFAULT_CLOSE_TIMEOUT = 15.0
"""Seconds; half of the grace that process managers commonly give."""


class AsyncTrackingClient(EventMethods, Uncopyable):
    """Tracks the behaviour of a shop's visitors.

    Events are checked and encoded at the caller's line, wait in a bounded buffer, leave in `visitorEvents` batches
    under the shop's request limit, are retried where a retry can mend the failure, and get exactly one outcome each.

    One client belongs to one event loop and one process: create it where they start (an application's lifespan, a
    worker's main coroutine) and close it where they end. Nothing is opened or started before the first use.

    While ``RETAILROCKET_TEST_MODE`` is set in the environment, and not to ``0``, `base_url` must be on this host.

    Args:
        api_key: the shop's secret key, or a function that returns it, which is asked before the first request and again
            when the API answers 401. A coroutine function runs in the event loop, any other in a thread; 10 s are its
            time. It sees none of its callers' context variables. The key is sent to `base_url` and goes nowhere else.
        partner_id: the shop's public id.
        base_url: where the API is; default ``https://apptracking.retailrocket.net/1.0/``.
        http_client: a caller's own `httpx.AsyncClient`: shared, never closed here; its transports, proxies, headers
            and event hooks apply, its `auth`, `params`, `timeout` and redirects do not. Default: our own, with a
            connection for each request in flight, renewed after 5 minutes, and the environment's proxies as httpx has
            them.
        http2: offer HTTP/2 on our own client (extra ``http2``); default False: with HTTP/1.1 uploads cost less and
            idle connections close without a lost request.
        rate_limit: the request limit; default `RateLimit()`, 50 a second; None lifts it. Not together with `limiter`.
        limiter: a `Limiter` in place of the built-in one, e.g. one that several clients of a shop share.
        batching: how events are coalesced; default `Batching()`.
        buffer: how much may wait; default `Buffer()`.
        retry: how long a failed request is tried; default `RetryPolicy()`.
        spool: a `SqliteSpool`: events are on disk before `track` returns, and outlast crashes, deploys and outages;
            default None: they are in memory alone. Its bounds take the place of those of `buffer`, `retry` outlasts
            every outage, and the client begins to deliver what it finds with ``async with``, or the first event.
        timeout: seconds for one request as a whole, or an `httpx.Timeout` for its parts, `read` being the time from
            the end of the request to the status; default 10.
        timestamp_precision: ``"seconds"`` (default), ``"milliseconds"`` or ``"microseconds"`` on the wire.
        before_send: given each event at the caller's line, returns the event to send in its place, changed or not (to
            strip personal data, say), or None to drop it; must be quick. It sees the caller's context variables. Where
            it raises the event goes as it came.
        on_outcome: given buffered events that ended undelivered, a list of up to 1,000 `UndeliveredEvent`; one call at
            a time. A coroutine function runs in the event loop, any other in a thread of its own; neither sees the
            context variables of those who tracked the events.
        on_state_change: given a `StateChange` when sending is halted (wrong key, shop or address), when the API is
            down, and when requests go out again; called as `on_outcome` is. What a hook raises is counted
            (`Stats.hook_errors`) and logged once.
        observer: an `Observer` that sees every request and every outcome, e.g. that of `retailrocket_async.otel`; None
            (default) for nobody. Its docstrings say which context its methods see.
        allow_insecure_http: allow plain ``http://`` to other hosts than this one, and an `http_client` that does not
            verify TLS certificates: anyone on the way can read the key then; default False.

    Raises:
        ConfigurationError: an argument that cannot work, with a sentence that says what to write instead.
    """

    _instead = "make a client in each process, e.g. with AsyncTrackingClient.from_env()"

    # On the class: __del__ and __repr__ look at them also where the constructor raised, or never began.
    _built: Engine | None = None
    _base_url = ""
    _partner_id = ""

    def __init__(  # noqa: PLR0913 - keywords, each with a default
        self,
        api_key: ApiKey,
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
        spool: SqliteSpool | None = None,
        timeout: Timeout = DEFAULT_TIMEOUT,
        timestamp_precision: TimestampPrecision = "seconds",
        before_send: Callable[[Event], Event | None] | None = None,
        on_outcome: Callable[[Sequence[UndeliveredEvent]], object] | None = None,
        on_state_change: Callable[[StateChange], object] | None = None,
        observer: Observer | None = None,
        allow_insecure_http: bool = False,
    ) -> None:
        try:
            credentials = Credentials(api_key, partner_id)
        finally:
            # The frame of an error is kept with it, and some tools print its variables.
            del api_key
        _check_types(rate_limit=rate_limit, limiter=limiter, batching=batching, buffer=buffer, retry=retry)
        if spool is not None and not isinstance(spool, SqliteSpool):
            raise ConfigurationError(f"spool must be a SqliteSpool(...) or None, not {type(spool).__name__}")
        if spool is not None and buffer.overflow == "shed":
            raise ConfigurationError("a spool cannot shed by value: choose another Buffer.overflow")
        if batching.max_bytes > buffer.max_bytes:
            raise ConfigurationError("Buffer.max_bytes must be at least Batching.max_bytes, or a batch cannot fill")
        for name, hook in (("on_outcome", on_outcome), ("on_state_change", on_state_change)):
            if hook is not None and not callable(hook):
                raise ConfigurationError(f"{name} must be a function or a coroutine function")
        if before_send is not None and (not callable(before_send) or inspect.iscoroutinefunction(before_send)):
            raise ConfigurationError("before_send must be a plain function that takes an event and returns one or None")
        self._before_send = before_send
        try:
            self._base_url = checked_base_url(base_url, allow_insecure=allow_insecure_http)
        finally:
            del base_url
        if not allow_insecure_http:
            check_verified(http_client, self._base_url)
        self._partner_id = credentials.partner_id
        self._batching = batching
        # A body has two brackets beside its events.
        self._most_bytes = batching.max_bytes - 2
        # To build one takes ten milliseconds, which the second client of a process need not spend.
        self._codec = (_codec if type(timestamp_precision) is str else Codec)(timestamp_precision)
        self._encode = self._codec.encode
        transport = HttpxTransport(
            credentials,
            base_url=self._base_url,
            timeout=timeout,
            http_client=http_client,
            connections=batching.max_in_flight,
            http2=http2,
        )
        self._watch = None if observer is None else self._watched_by(observer)
        # Where nothing is kept with an event nobody is asked for it.
        self._marking = self._watch if self._watch is not None and self._watch.marks else None
        make_engine = functools.partial(
            Dispatcher,
            batching=batching,
            limiter=limiter if limiter is not None else LocalLimiter(rate_limit),
            transport=transport,
            renewable=credentials.renewable,
            on_outcome=on_outcome,
            on_state_change=on_state_change,
            watch=self._watch,
        )
        if spool is None:
            self._built = make_engine(buffer=buffer, retry=retry)
        else:
            # What is in the engine is bounded by the drain, which feeds it.
            bounds = Buffer(max_age=buffer.max_age, max_bytes=1 << 50)
            self._built = SpooledDispatcher(
                spool,
                credentials.partner_id,
                lambda keep, leased: make_engine(
                    buffer=bounds,
                    retry=attrs.evolve(retry, outlast=True),
                    keep=keep,
                    limiter=leased(limiter if limiter is not None else LocalLimiter(rate_limit)),
                ),
                batching=batching,
                once=retry.once_names,
                overflow=buffer.overflow,
            )
        self._intake = self._built.intake

    @classmethod
    def from_env(cls, **options: Any) -> Self:  # noqa: ANN401 - the constructor's keywords
        """Return a client configured by the environment.

        Reads ``RETAILROCKET_API_KEY``, ``RETAILROCKET_PARTNER_ID`` and, where it is set, ``RETAILROCKET_BASE_URL``.

        Args:
            options: further keywords of the constructor; they win over the environment.

        Raises:
            ConfigurationError: a variable is missing, or as the constructor.
        """
        try:
            for keyword, variable in (("api_key", "RETAILROCKET_API_KEY"), ("partner_id", "RETAILROCKET_PARTNER_ID")):
                if keyword not in options:
                    if not os.environ.get(variable):
                        raise ConfigurationError(f"set the environment variable {variable}, or pass {keyword}=...")
                    options[keyword] = os.environ[variable]
            if "base_url" not in options and os.environ.get("RETAILROCKET_BASE_URL"):
                options["base_url"] = os.environ["RETAILROCKET_BASE_URL"]
            return cls(**options)
        finally:
            # As in the constructor: the key must not stay in the frame of an error.
            options.clear()

    async def track(self, event: Event) -> Receipt:
        """Put one event in the buffer and return its receipt; waits only while the buffer is full.

        `Buffer.overflow` says what else a full buffer may mean. Once the event is accepted, cancelling this call does
        not cancel the delivery.

        Raises:
            BufferFullError: the buffer is full, and ``overflow="raise"``.
            EventValidationError: not an event of this package, or larger than `Batching.max_bytes`.
            ClientClosedError: the client is closed, or was closed while this call waited.
            WrongLoopError: called from another event loop, or after a fork.
        """
        if self._before_send is not None:
            return await self._accept(event)
        # As `Intake.accept` of `_encoded`, without another coroutine and call for each event.
        intake, envelope = self._intake, self._encode(event)
        if len(envelope) > self._most_bytes:
            self._refuse_size(event, envelope)
        receipt = intake.accept_now(event, envelope)
        if receipt is None:
            receipt = await intake.wait_for_room(event, envelope)
            if self._marking is not None:
                self._marking.note(receipt)
            return receipt
        if (watch := self._marking) is not None:
            # As `_mark`, without further calls for each event.
            try:
                if watch.origin() is watch.before:
                    receipt.mark = watch.kept
                else:
                    watch.note(receipt)
            except RecursionError:
                pass
        if intake.left_in_a_row <= 0:
            await intake.let_others_run()
        return receipt

    def track_nowait(self, event: Event) -> Receipt:
        """Put one event in the buffer and return its receipt; never waits.

        Call it from a coroutine or callback of the client's event loop.

        Raises:
            BufferFullError: the buffer is full, or others wait for room in it, and `Buffer.overflow` drops nothing.
            EventValidationError, ClientClosedError, WrongLoopError: as `track`.
        """
        chosen = self._chosen(event)
        if isinstance(chosen, Receipt):
            return chosen
        receipt = self._engine.intake.accept_nowait(chosen, self._encoded(chosen))
        if self._marking is not None:
            try:  # noqa: SIM105 - suppress() is one more call
                self._marking.note(receipt)
            except RecursionError:
                # The caller has hardly any stack left; the event is accepted all the same, without a mark.
                pass
        return receipt

    async def track_many(self, events: Iterable[Event] | AsyncIterable[Event]) -> list[Receipt]:
        """Put events in the buffer one after the other, waiting while it is full; return their receipts in order.

        An error in mid-way leaves the events before it accepted.

        Args:
            events: any iterable or async iterable.

        Raises:
            EventValidationError, ClientClosedError, WrongLoopError: as `track`.
        """
        return await self._engine.accept_many(events, track=self.track, prepare=self._named_envelope)

    async def track_envelopes(
        self, envelopes: Sequence[bytes], *, allow_custom: bool = False
    ) -> list[Receipt | EventValidationError]:
        """Put the events that envelopes describe in the buffer, in order, waiting while it is full.

        For what comes as JSON already, from a broker for example: at less than half of what it costs to decode and
        track one event after the other.

        Args:
            envelopes: UTF-8 JSON of an object with one key each, e.g. ``b'{"view":{...}}'``.
            allow_custom: take an unknown event name for a `CustomEvent`; default False.

        Returns:
            For each of them its receipt, or the error that says what is wrong with it. Fewer if the client was closed,
            its buffer was full with ``overflow="raise"``, or its spool failed in mid-way: the others are not accepted.

        Raises:
            BufferFullError, ClientClosedError, WrongLoopError: as `track`, where none is accepted.
        """
        reader = EnvelopeReader(self._codec, allow_custom, self._most_bytes)
        if self._before_send is None:
            return await self._engine.accept_envelopes(envelopes, reader, track=self.track)
        results: list[Receipt | EventValidationError] = []
        await track_one_by_one(envelopes, reader, results, track=self.track)
        return results

    async def send(self, event: Event) -> Delivered:
        """Send one event at once, to its own endpoint; return when the API has accepted it.

        It passes the limiter and is retried like a batch. Cancelling this call cancels the request.

        Raises:
            DeliveryError: the subclass that says what became of it.
            EventValidationError, ClientClosedError, WrongLoopError: as `track`.
        """
        self._encoded(event)
        chosen = self._chosen(event, tell=False)
        if isinstance(chosen, Receipt):
            raise error_for(Dropped(reason="before_send"))
        self._encoded(chosen)
        return await self._engine.send(chosen.event_name, self._codec.encode_bare(chosen), [chosen.event_name])

    async def send_batch(self, events: Iterable[Event]) -> Delivered:
        """Send events at once, in one `visitorEvents` request; return when the API has accepted them all.

        Args:
            events: 1 to `Batching.max_events` events, together no larger than `Batching.max_bytes`.

        Raises:
            EventValidationError: none, too many or too large; or as `track`.
            DeliveryError: the subclass that says what became of them.
            ClientClosedError, WrongLoopError: as `track`.
        """
        caps = self._batching
        # Refused before all of them are encoded, or made.
        given = list(itertools.islice(events, caps.max_events + 1))
        if not 1 <= len(given) <= caps.max_events:
            rule = f"must hold 1 to {caps.max_events} events (Batching.max_events); track_many takes any number"
            raise EventValidationError(BATCH_PATH, "", rule, len(given))
        for event in given:
            self._encoded(event)
        chosen = [kept for event in given if not isinstance(kept := self._chosen(event, tell=False), Receipt)]
        if not chosen:
            raise error_for(Dropped(reason="before_send"))
        body = join(map(self._encoded, chosen))
        if len(body) > caps.max_bytes:
            rule = f"must be at most {caps.max_bytes} bytes of JSON (Batching.max_bytes)"
            raise EventValidationError(BATCH_PATH, "", rule, len(body))
        return await self._engine.send(BATCH_PATH, body, [event.event_name for event in chosen])

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
        `Abandoned` (sent, unanswered). Shutdown again returns the same report.

        Args:
            timeout: seconds; default 15. None waits as long as the retries take.

        Raises:
            WrongLoopError: as `track`.
        """
        return await self._engine.aclose(_seconds(timeout))

    def threadsafe(self) -> ThreadsafeHandle:
        """Return a handle for other threads: a sync Django view, a Celery task, a thread of a pool.

        Call it in the client's event loop; the handle may be passed to any number of threads.

        Raises:
            WrongLoopError: as `track`.
        """
        return ThreadsafeHandle(self._engine, self._prepared)

    def stats(self) -> Stats:
        """Return an immutable snapshot of the client's counters; never blocks."""
        return self._engine.stats()

    async def __aenter__(self) -> Self:
        await self._engine.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        engine = self._built
        if engine is not None and engine.started and not engine.closed:
            engine.loses("the client was garbage-collected")
            warnings.warn(
                f"unclosed {self!r}: use 'async with', or await aclose(), or buffered events may be lost",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        engine = self._built
        state = "new" if engine is None or not engine.started else "closed" if engine.closed else "open"
        return f"<AsyncTrackingClient partner_id={self._partner_id!r} base_url={self._base_url!r} {state}>"

    @property
    def _engine(self) -> Engine:
        assert self._built is not None  # noqa: S101 - only a constructor that raised leaves it so
        return self._built

    async def _accept(self, event: Event) -> Receipt:
        chosen = self._chosen(event)
        if isinstance(chosen, Receipt):
            # A long feed of events that are dropped waits for nothing else.
            await self._engine.intake.let_others_run()
            return chosen
        receipt = await self._engine.intake.accept(chosen, self._encoded(chosen))
        if self._marking is not None:
            self._marking.note(receipt)
        return receipt

    def _named_envelope(self, event: Event) -> tuple[str, bytes] | Receipt:
        chosen = self._chosen(event)
        return chosen if isinstance(chosen, Receipt) else (chosen.event_name, self._encoded(chosen))

    def _watched_by(self, observer: Observer) -> Watch:
        if not isinstance(observer, Observer):
            raise ConfigurationError(f"observer must be an Observer, not {type(observer).__name__}")
        there = weakref.ref(self)

        def failed(name: str, error: BaseException) -> None:
            client = there()
            if client is not None:
                client._engine.hook_failed(name, error)  # noqa: SLF001 - our own

        watch = Watch(observer, failed)
        watch.opened(ObservedClient(partner_id=self._partner_id, base_url=self._base_url, stats=_StatsOf(self)))
        return watch

    def _chosen(self, event: Event, *, tell: bool = True) -> Event | Receipt:
        """Return what `before_send` makes of an event: the one to send, or the receipt of one that is dropped.

        Args:
            event: what the caller gave.
            tell: whether `on_outcome` is told of one that is dropped; not where the caller is.
        """
        chosen, error = self._asked(event)
        if error is not None:
            self._engine.hook_failed("before_send", error)
        return self._engine.intake.refuse(event, self._encoded(event), tell=tell) if chosen is None else chosen

    def _asked(self, event: Event) -> tuple[Event | None, BaseException | None]:
        """Return what `before_send` makes of an event, in any thread, and what it raised, which changes nothing."""
        # What is no event is for the encoder to refuse.
        if self._before_send is None or not isinstance(event, Event):
            return event, None
        try:
            chosen = self._before_send(event)
            if chosen is not None and not isinstance(chosen, Event):
                raise TypeError  # noqa: TRY301 - as whatever else the hook may raise
        except BaseException as error:  # a user's hook must not cost an event
            if is_interrupt(error):
                raise
            return event, error
        return chosen, None

    def _prepared(self, event: Event) -> Callable[[], Coroutine[Any, Any, Receipt]]:
        """Do the caller's part of `track`, in any thread, and return the loop's part."""
        chosen, error = self._asked(event)
        envelope = self._encoded(event if chosen is None else chosen)
        watch = self._watch
        if chosen is not None and error is None and watch is None:
            return functools.partial(self._engine.intake.accept, chosen, envelope)
        mark = None if watch is None else watch.mark()

        async def accept() -> Receipt:
            if error is not None:
                self._engine.hook_failed("before_send", error)
            if chosen is None:
                return self._engine.intake.refuse(event, envelope, tell=True)
            receipt = await self._engine.intake.accept(chosen, envelope)
            if watch is not None:
                watch.note_mark(receipt, mark)
            return receipt

        return accept

    def _encoded(self, event: Event) -> bytes:
        envelope = self._encode(event)
        if len(envelope) > self._most_bytes:
            self._refuse_size(event, envelope)
        return envelope

    def _refuse_size(self, event: Event, envelope: bytes) -> NoReturn:
        rule = f"must be at most {self._batching.max_bytes} bytes of JSON (Batching.max_bytes)"
        raise EventValidationError(event.event_name, "", rule, len(envelope))


class _StatsOf:
    """What an observer asks for a client's counters, without keeping the client alive; pickled, it has none."""

    def __init__(self, client: AsyncTrackingClient | None = None) -> None:
        self._client = None if client is None else weakref.ref(client)

    def __call__(self) -> Stats | None:
        client = None if self._client is None else self._client()
        return None if client is None else client.stats()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[type[_StatsOf], tuple[()]]:
        return type(self), ()


_codec = functools.cache(Codec)


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
        raise ConfigurationError("limiter must have the methods acquire, pause_until and throttled: see Limiter")
    if limiter is not None and rate_limit not in (None, RateLimit()):
        raise ConfigurationError("give either rate_limit or limiter: a limiter of your own has its own rate")
