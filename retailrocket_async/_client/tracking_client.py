"""The client: builds its engine, prepares events, and hands them to the engine."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Self

from retailrocket_async._client.arguments import add_environment, check_arguments
from retailrocket_async._client.engine_building import build_engine
from retailrocket_async._client.lifecycle import Lifecycle
from retailrocket_async._client.observation import watch_for
from retailrocket_async._client.preparation import Preparation
from retailrocket_async._client.threadsafe_handle import ThreadsafeHandle
from retailrocket_async._delivery.bulk_intake import track_one_by_one
from retailrocket_async._delivery.rate_limiter import Limiter, LocalLimiter, RateLimit
from retailrocket_async._delivery.retry import RetryPolicy
from retailrocket_async._events.codec import Codec, TimestampPrecision
from retailrocket_async._events.envelopes import EnvelopeReader
from retailrocket_async._events.methods import EventMethods
from retailrocket_async._http.base_url import DEFAULT_BASE_URL, checked_base_url
from retailrocket_async._http.callers_client import check_verified
from retailrocket_async._http.credentials import ApiKey, Credentials
from retailrocket_async._http.transport import DEFAULT_TIMEOUT, HttpClient, HttpxTransport, Timeout
from retailrocket_async._queue.options import Batching, Buffer
from retailrocket_async._receipt import Receipt

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Sequence

    from retailrocket_async._errors import EventValidationError
    from retailrocket_async._events.models import Event
    from retailrocket_async._observer import Observer
    from retailrocket_async._outcome import Delivered
    from retailrocket_async._spool.spool import SqliteSpool
    from retailrocket_async._stats import StateChange, UndeliveredEvent


class AsyncTrackingClient(EventMethods, Lifecycle):
    """Tracks the behaviour of a shop's visitors.

    Events are checked and encoded in the caller's task, and wait in a bounded buffer. They leave in `visitorEvents`
    batches under the shop's request limit, are retried if a retry can help, and get exactly one outcome each.

    One client belongs to one event loop and one process: create it where they start (an application's lifespan, a
    worker's main coroutine) and close it where they end. Nothing is opened or started before the first use.

    While ``RETAILROCKET_TEST_MODE`` is set in the environment, and not to ``0``, `base_url` must be on this host.

    Args:
        api_key: the shop's secret key, or a function that returns it. A function is called before the first request,
            and again when the API answers 401; a coroutine function in the event loop, any other in a thread. It has
            10 s, and sees none of its callers' context variables. The key is sent to `base_url` and goes nowhere else.
        partner_id: the shop's public id.
        base_url: where the API is; default ``https://apptracking.retailrocket.net/1.0/``.
        http_client: a caller's own `httpx.AsyncClient`. It may be shared, and is never closed by the client; its
            transports, proxies, headers and event hooks apply, its `auth`, `params`, `timeout` and redirects do not.
            Default: a client of our own, with a connection for each request in flight, renewed after 5 minutes, and
            the proxies of the environment, read as httpx reads them.
        http2: offer HTTP/2 on our own client (extra ``http2``); default False: with HTTP/1.1 uploads cost less and
            idle connections close without a lost request.
        rate_limit: the request limit; default `RateLimit()`, 50 a second; None lifts it. Not together with `limiter`.
        limiter: a `Limiter` in place of the built-in one, e.g. one that several clients of a shop share.
        batching: how events are coalesced; default `Batching()`.
        buffer: how much may wait; default `Buffer()`.
        retry: how long a failed request is tried; default `RetryPolicy()`.
        spool: a `SqliteSpool`: events are on disk before `track` returns, and survive crashes, deploys and outages;
            default None: events are in memory alone. The bounds of the spool replace those of `buffer`, and `retry`
            outlasts every outage. The client begins to deliver what is in the spool with ``async with``, or the first
            event.
        timeout: seconds for one request as a whole, or an `httpx.Timeout` for its parts, `read` being the time from
            the end of the request to the status; default 10.
        timestamp_precision: ``"seconds"`` (default), ``"milliseconds"`` or ``"microseconds"`` on the wire.
        before_send: a quick function, called with each event in the caller's task. It returns the event to send,
            changed or not (to strip personal data, say), or None to drop the event. It sees the caller's context
            variables. If it raises, the event is sent as it was given.
        on_outcome: called with a list of up to 1,000 `UndeliveredEvent`, buffered events that ended undelivered; one
            call at a time. A coroutine function runs in the event loop, any other in a thread of its own; neither sees
            the context variables of the callers that tracked the events.
        on_state_change: called with a `StateChange` when sending is halted (wrong key, shop or address), when the API
            is down, and when requests go out again; called as `on_outcome` is. An error that a hook raises is counted
            (`Stats.hook_errors`) and logged once.
        observer: an `Observer` that sees every request and every outcome, e.g. that of `retailrocket_async.otel`;
            default None. Its docstrings say which context its methods see.
        allow_insecure_http: allow plain ``http://`` to other hosts than this one, and an `http_client` that does not
            verify TLS certificates: anyone between the two hosts can read the key then; default False.

    Raises:
        ConfigurationError: an argument that cannot work; the message says what to write instead.
    """

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
            # An error keeps this frame alive, and some tools print its variables.
            del api_key
        check_arguments(
            rate_limit=rate_limit,
            limiter=limiter,
            batching=batching,
            buffer=buffer,
            retry=retry,
            spool=spool,
            before_send=before_send,
            on_outcome=on_outcome,
            on_state_change=on_state_change,
        )
        try:
            self._base_url = checked_base_url(base_url, allow_insecure=allow_insecure_http)
        finally:
            del base_url
        if not allow_insecure_http:
            check_verified(http_client, self._base_url)
        self._partner_id = credentials.partner_id
        # Building a codec takes ten milliseconds, so the clients of a process share it.
        self._codec = (_codec if type(timestamp_precision) is str else Codec)(timestamp_precision)
        transport = HttpxTransport(
            credentials,
            base_url=self._base_url,
            timeout=timeout,
            http_client=http_client,
            connections=batching.max_in_flight,
            http2=http2,
        )
        self._watch = watch_for(observer, self, partner_id=self._partner_id, base_url=self._base_url)
        # None also if the observer does not override `tracked`.
        self._marking = self._watch if self._watch is not None and self._watch.marks else None
        engine = build_engine(
            credentials=credentials,
            transport=transport,
            limiter=limiter if limiter is not None else LocalLimiter(rate_limit),
            batching=batching,
            buffer=buffer,
            retry=retry,
            spool=spool,
            on_outcome=on_outcome,
            on_state_change=on_state_change,
            watch=self._watch,
        )
        super().__init__(engine)
        self._before_send = before_send
        self._preparation = Preparation(engine, self._codec, batching, before_send)
        # For `track`, which is called for every event.
        self._intake = engine.intake
        self._encode = self._codec.encode
        self._most_bytes = self._preparation.max_bytes

    @classmethod
    def from_env(cls, **options: Any) -> Self:  # noqa: ANN401 - the constructor's keywords
        """Return a client configured by the environment.

        Reads ``RETAILROCKET_API_KEY``, ``RETAILROCKET_PARTNER_ID`` and, if it is set, ``RETAILROCKET_BASE_URL``.

        Args:
            options: further keywords of the constructor; they win over the environment.

        Raises:
            ConfigurationError: a variable is missing, or as the constructor.
        """
        try:
            add_environment(options)
            return cls(**options)
        finally:
            # An error keeps this frame alive, which must not hold the key.
            options.clear()

    async def track(self, event: Event) -> Receipt:
        """Accept one event for delivery, and return its receipt; waits only while the buffer is full.

        `Buffer.overflow` chooses another behaviour for a full buffer. Once the event is accepted, cancelling this call
        does not cancel the delivery.

        Raises:
            BufferFullError: the buffer is full, and ``overflow="raise"``.
            EventValidationError: not an event of this package, or larger than `Batching.max_bytes`.
            ClientClosedError: the client is closed, or was closed while this call waited.
            WrongLoopError: called from another event loop, or after a fork.
        """
        if self._before_send is not None:
            return await self._accept(event)
        # The same as `Intake.accept` and `Preparation.encoded`, without a coroutine and a call more for each event.
        intake, envelope = self._intake, self._encode(event)
        if len(envelope) > self._most_bytes:
            self._preparation.refuse_size(event, envelope)
        receipt = intake.accept_now(event, envelope)
        if receipt is None:
            receipt = await intake.wait_for_room(event, envelope)
            if self._marking is not None:
                self._marking.note(receipt)
            return receipt
        if (watch := self._marking) is not None:
            # The same as `Watch.note`, without a call more for each event.
            try:
                if watch.origin() is watch.before:
                    receipt.mark = watch.kept
                else:
                    watch.note(receipt)
            except RecursionError:
                # The event is accepted all the same, without a mark.
                pass
        if intake.left_in_a_row <= 0:
            await intake.let_others_run()
        return receipt

    def track_nowait(self, event: Event) -> Receipt:
        """Accept one event for delivery, and return its receipt; never waits.

        Call it from a coroutine or callback of the client's event loop.

        Raises:
            BufferFullError: the buffer is full, or other calls wait for room in it, and `Buffer.overflow` drops no
                event.
            EventValidationError, ClientClosedError, WrongLoopError: as `track`.
        """
        preparation = self._preparation
        chosen = preparation.chosen(event)
        if isinstance(chosen, Receipt):
            return chosen
        receipt = self._intake.accept_nowait(chosen, preparation.encoded(chosen))
        if self._marking is not None:
            try:  # noqa: SIM105 - suppress() is one more call
                self._marking.note(receipt)
            except RecursionError:
                # The caller has hardly any stack left. The event is accepted all the same, without a mark.
                pass
        return receipt

    async def track_many(self, events: Iterable[Event] | AsyncIterable[Event]) -> list[Receipt]:
        """Accept events one after the other, waiting while the buffer is full; return their receipts in order.

        If one of them raises an error, the events before it stay accepted.

        Args:
            events: any iterable or async iterable.

        Raises:
            EventValidationError, ClientClosedError, WrongLoopError: as `track`.
        """
        return await self._engine.accept_many(events, track=self.track, prepare=self._preparation.prepared)

    async def track_envelopes(
        self, envelopes: Sequence[bytes], *, allow_custom: bool = False
    ) -> list[Receipt | EventValidationError]:
        """Accept the events that envelopes describe, in order, waiting while the buffer is full.

        Use it for events that are JSON already, from a broker for example. It costs less than half of decoding and
        tracking one event after the other.

        Args:
            envelopes: UTF-8 JSON of an object with one key each, e.g. ``b'{"view":{...}}'``.
            allow_custom: accept an unknown event name as a `CustomEvent`; default False.

        Returns:
            For each envelope the receipt of its event, or the error that says what is wrong with it. Fewer if the
            client was closed meanwhile, its buffer was full with ``overflow="raise"``, or its spool failed: the
            remaining envelopes are not accepted.

        Raises:
            BufferFullError, ClientClosedError, WrongLoopError: as `track`, if no event is accepted.
        """
        reader = EnvelopeReader(self._codec, allow_custom, self._most_bytes)
        if self._before_send is None:
            return await self._engine.accept_envelopes(envelopes, reader, track=self.track)
        results: list[Receipt | EventValidationError] = []
        await track_one_by_one(envelopes, reader, results, track=self.track)
        return results

    async def send(self, event: Event) -> Delivered:
        """Send one event in a request of its own, to its own endpoint; return when the API has accepted it.

        The request passes the limiter and is retried like a batch. Cancelling this call cancels the request.

        Raises:
            DeliveryError: the event was not delivered; the subclass says why.
            EventValidationError, ClientClosedError, WrongLoopError: as `track`.
        """
        return await self._engine.send(*self._preparation.request_of(event))

    async def send_batch(self, events: Iterable[Event]) -> Delivered:
        """Send events in one `visitorEvents` request of their own; return when the API has accepted them all.

        Args:
            events: 1 to `Batching.max_events` events, together no larger than `Batching.max_bytes`.

        Raises:
            EventValidationError: there are none, too many, or too large events; or as `track`.
            DeliveryError: the events were not delivered; the subclass says why.
            ClientClosedError, WrongLoopError: as `track`.
        """
        return await self._engine.send(*self._preparation.batch_request_of(events))

    def threadsafe(self) -> ThreadsafeHandle:
        """Return a handle for other threads: a sync Django view, a Celery task, a thread of a pool.

        Call it in the client's event loop; the handle may be passed to any number of threads.

        Raises:
            WrongLoopError: as `track`.
        """
        return ThreadsafeHandle(self._engine, self._prepared)

    async def _accept(self, event: Event) -> Receipt:
        """Accept one event with `before_send`."""
        chosen = self._preparation.chosen(event)
        if isinstance(chosen, Receipt):
            # Otherwise a caller whose events are all dropped would never yield to other tasks.
            await self._intake.let_others_run()
            return chosen
        receipt = await self._intake.accept(chosen, self._preparation.encoded(chosen))
        if self._marking is not None:
            self._marking.note(receipt)
        return receipt

    def _prepared(self, event: Event) -> Callable[[], Coroutine[Any, Any, Receipt]]:
        # A method of the client, so that a handle keeps the client alive.
        return self._preparation.deferred(event, self._watch)


_codec = functools.cache(Codec)
