"""The client: builds the engine that delivers events, prepares each event, and passes the event to the engine."""

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
    """Sends the events of a shop's visitors to the tracking API.

    Events are checked and encoded in the caller's task, and wait in a buffer of limited size. The client sends the
    events in `visitorEvents` batches, respects the shop's request limit, and retries a failed request if a retry can
    help. Each event gets exactly one outcome.

    One client belongs to one event loop and one process. Create the client where the application starts (its lifespan,
    a worker's main coroutine) and close the client where the application ends. Nothing is opened or started before the
    first use.

    While the environment variable ``RETAILROCKET_TEST_MODE`` is set to anything but ``0``, `base_url` must be on this
    host.

    Args:
        api_key: the shop's secret key, or a function that returns the key. A function is called before the first
            request, and again when the API answers 401. A coroutine function is called in the event loop, any other
            function in a thread, both in an empty context. The function must return within 10 s. The key is sent to
            `base_url` and nowhere else.
        partner_id: the shop's public id.
        base_url: the URL of the API; default ``https://apptracking.retailrocket.net/1.0/``.
        http_client: your own `httpx.AsyncClient`, which may be shared with other code; this client never closes the
            `http_client`. The transports, proxies, headers and event hooks of the `http_client` are used; its `auth`,
            `params`, `timeout` and redirects are not used. Default None: this client opens connections, one per request
            in flight, and replaces each connection after 5 minutes. These connections use the proxies that the
            environment variables name, in the same way as httpx.
        http2: whether to offer HTTP/2 if there is no `http_client` (extra ``http2``); default False, because HTTP/1.1
            needs less CPU for uploads, and no request is lost when an idle connection is closed.
        rate_limit: the request limit; default `RateLimit()`, 50 requests a second; None for no limit. Cannot be
            combined with `limiter`.
        limiter: a `Limiter` that replaces the built-in limiter, e.g. a limiter that several clients of a shop share.
        batching: how events are collected into batches; default `Batching()`.
        buffer: how many events may wait, and what happens if the buffer is full; default `Buffer()`.
        retry: how often and how long a failed request is retried; default `RetryPolicy()`.
        spool: a `SqliteSpool`, which stores events on disk before `track` returns, so that events survive crashes,
            deploys and outages. Default None: events are in memory only. With a spool, the spool's limits replace those
            of `buffer`, and retries continue for as long as an outage lasts. The client starts to deliver the events in
            the spool at ``async with``, or at the first event.
        timeout: seconds for one request as a whole, or an `httpx.Timeout` for its parts; default 10. In an
            `httpx.Timeout`, `read` is the time from the end of the request to the status line.
        timestamp_precision: the precision of timestamps that are sent: ``"seconds"`` (default), ``"milliseconds"`` or
            ``"microseconds"``.
        before_send: a quick function that is called with each event, in the caller's task and context. The function
            returns the event to send, which may be a changed copy (for example without personal data), or None to drop
            the event. If the function raises an error, the original event is sent.
        on_outcome: a function that is called with a list of up to 1,000 `UndeliveredEvent`: buffered events that were
            not delivered. There is one call at a time. A coroutine function runs in the event loop, any other function
            in a separate thread. The context variables of the callers that tracked the events are not set.
        on_state_change: a function that is called with a `StateChange` when sending is halted (wrong key, shop or
            address), when the API is down, and when requests are sent normally again; called in the same way as
            `on_outcome`. If a hook raises an error, the client counts the error (`Stats.hook_errors`), and logs the
            first error.
        observer: an `Observer`, whose methods are called for every request and every outcome, e.g. the observer of
            `retailrocket_async.otel`; default None.
        allow_insecure_http: whether to allow plain ``http://`` to hosts other than this machine, and an `http_client`
            that does not verify TLS certificates; default False, because anyone on the network could then read the key.

    Raises:
        ConfigurationError: an argument cannot work; the message says what to write instead.
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
            # The traceback of an error refers to this frame, and some tools print the variables of frames.
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
        # Building a codec takes ten milliseconds, so all clients of the process share one codec per precision.
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
        # `_marking` is None if no event gets a mark: there is no observer, or `Observer.tracked` is not overridden.
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
        self._at_most_once = retry.once_names
        self._before_send = before_send
        self._preparation = Preparation(engine, self._codec, batching, before_send)
        # `track` runs for every event, and reads these three values faster if they are attributes of the client itself.
        self._intake = engine.intake
        self._encode = self._codec.encode
        self._most_bytes = self._preparation.max_bytes

    @classmethod
    def from_env(cls, **options: Any) -> Self:  # noqa: ANN401 - the constructor's keywords
        """Return a client that is configured by environment variables.

        Reads ``RETAILROCKET_API_KEY``, ``RETAILROCKET_PARTNER_ID`` and, if set, ``RETAILROCKET_BASE_URL``.

        Args:
            options: keyword arguments of the constructor, which take precedence over the environment.

        Raises:
            ConfigurationError: a variable is missing, or the constructor refuses an argument.
        """
        try:
            add_environment(options)
            return cls(**options)
        finally:
            # The traceback of an error refers to this frame, and some tools print the variables of frames. So remove
            # the key from `options`.
            options.clear()

    @property
    def at_most_once(self) -> frozenset[str]:
        """The names of the events that are never sent again if the API may have recorded them.

        These are `WelcomeSequence` and the events of `RetryPolicy.at_most_once`.
        """
        return self._at_most_once

    async def track(self, event: Event) -> Receipt:
        """Accept one event for delivery, and return its receipt; waits only while the buffer is full.

        For a visitor with `Buffer.max_visitor_events` waiting events the buffer is full, too. Set `Buffer.overflow` for
        another behaviour of a full buffer. Once the event is accepted, cancelling this call
        does not cancel the delivery.

        Raises:
            BufferFullError: the buffer is full and `Buffer.overflow` is ``"raise"``.
            EventValidationError: `event` is not an event of this package, or is larger than `Batching.max_bytes`.
            ClientClosedError: the client is closed, or was closed while this call waited.
            WrongLoopError: called from another event loop, or after a fork.
        """
        if self._before_send is not None:
            return await self._accept(event)
        # This code repeats the code of `Intake.accept` and `Preparation.encoded`, to save the time of two calls for
        # each event.
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
            # This code repeats the code of `Watch.note`, to save the time of a call for each event.
            try:
                if watch.origin() is watch.before:
                    receipt.mark = watch.kept
                else:
                    watch.note(receipt)
            except RecursionError:
                # Too little of the stack is left to call the observer. The event is accepted, but has no mark.
                pass
        if intake.left_in_a_row <= 0:
            await intake.let_others_run()
        return receipt

    def track_nowait(self, event: Event) -> Receipt:
        """Accept one event for delivery, and return its receipt; never waits.

        Call this method from a coroutine or callback of the client's event loop.

        Raises:
            BufferFullError: the buffer is full, or other calls already wait for room, and `Buffer.overflow` is not
                set to drop events.
            EventValidationError, ClientClosedError, WrongLoopError: see `track`.
        """
        preparation = self._preparation
        chosen = preparation.chosen(event)
        if isinstance(chosen, Receipt):
            return chosen
        receipt = self._intake.accept_nowait(chosen, preparation.encoded(chosen))
        if self._marking is not None:
            try:  # noqa: SIM105 - `suppress` would cost another call
                self._marking.note(receipt)
            except RecursionError:
                # Too little of the stack is left to call the observer. The event is accepted, but has no mark.
                pass
        return receipt

    async def track_many(self, events: Iterable[Event] | AsyncIterable[Event]) -> list[Receipt]:
        """Accept events one after the other, waiting while the buffer is full; return their receipts in order.

        If one event raises an error, the events before that event stay accepted.

        Args:
            events: any iterable or async iterable.

        Raises:
            EventValidationError, ClientClosedError, WrongLoopError: see `track`.
        """
        return await self._engine.accept_many(events, track=self.track, prepare=self._preparation.prepared)

    async def track_envelopes(
        self, envelopes: Sequence[bytes], *, allow_custom: bool = False, allow_extra: bool = False
    ) -> list[Receipt | EventValidationError]:
        """Accept events that are given as JSON, in order, waiting while the buffer is full.

        Use this method for events that are already JSON, for example from a message broker. The method takes
        less than half of the time of decoding and tracking each event.

        Args:
            envelopes: UTF-8 JSON texts, each of one object with one key, the event's name, e.g. ``b'{"view":{...}}'``.
            allow_custom: whether to accept an unknown event name as a `CustomEvent`; default False.
            allow_extra: whether to accept unknown fields of a documented event as its `extra`; default False.

        Returns:
            For each envelope the receipt of its event, or an error that says what is wrong with the envelope. The list
            is shorter than `envelopes` if the client was closed meanwhile, the buffer was full with
            ``overflow="raise"``, or the spool failed; the remaining envelopes were not accepted.

        Raises:
            BufferFullError, ClientClosedError, WrongLoopError: see `track`, if no event was accepted.
        """
        reader = EnvelopeReader(self._codec, allow_custom, allow_extra, self._most_bytes)
        if self._before_send is None:
            return await self._engine.accept_envelopes(envelopes, reader, track=self.track)
        results: list[Receipt | EventValidationError] = []
        await track_one_by_one(envelopes, reader, results, track=self.track)
        return results

    async def send(self, event: Event) -> Delivered:
        """Send one event without a batch, in a request to its own endpoint; return when the API has accepted it.

        The request waits until the earlier events of its visitor have their outcome, and the visitor's later events
        wait for this call. The request then waits for the rate limiter, and is retried like a batch. Cancelling this
        call cancels the request.

        Raises:
            DeliveryError: the event was not delivered; the subclass says why.
            EventValidationError, ClientClosedError, WrongLoopError: see `track`.
        """
        return await self._engine.send(*self._preparation.request_of(event))

    async def send_batch(self, events: Iterable[Event]) -> Delivered:
        """Send events without buffering, in one `visitorEvents` request; return when the API has accepted the request.

        The request waits until the earlier events of its visitors have their outcome, and the visitors' later events
        wait for this call.

        Args:
            events: 1 to `Batching.max_events` events, together no larger than `Batching.max_bytes`.

        Raises:
            EventValidationError: there are no events or too many events, or the batch is too large; see also `track`.
            DeliveryError: the events were not delivered; the subclass says why.
            ClientClosedError, WrongLoopError: see `track`.
        """
        return await self._engine.send(*self._preparation.batch_request_of(events))

    def threadsafe(self) -> ThreadsafeHandle:
        """Return a handle for other threads, for example for a sync Django view, a Celery task or a thread pool.

        Call this in the client's event loop; the handle may be passed to any number of threads.

        Raises:
            WrongLoopError: see `track`.
        """
        return ThreadsafeHandle(self._engine, self._prepared)

    async def _accept(self, event: Event) -> Receipt:
        """Accept one event of a client that has a `before_send` function."""
        chosen = self._preparation.chosen(event)
        if isinstance(chosen, Receipt):
            # Without this call, a caller whose events are all dropped would never let other tasks run.
            await self._intake.let_others_run()
            return chosen
        receipt = await self._intake.accept(chosen, self._preparation.encoded(chosen))
        if self._marking is not None:
            self._marking.note(receipt)
        return receipt

    def _prepared(self, event: Event) -> Callable[[], Coroutine[Any, Any, Receipt]]:
        # This is a method, so a handle, which stores the bound method, keeps the client in memory.
        return self._preparation.deferred(event, self._watch)


_codec = functools.cache(Codec)
