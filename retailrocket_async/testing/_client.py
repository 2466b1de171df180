"""A client for tests: the real client with an API in memory, which also lists the tracked events."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

from retailrocket_async import (
    AsyncTrackingClient,
    Batching,
    Buffer,
    ConfigurationError,
    Event,
    RateLimit,
    RetryPolicy,
    UsageError,
)

from ._api import InMemoryApi
from ._fault import Fault, FaultKind
from ._recorded import complaint, matching

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Sequence

    import httpx

    from retailrocket_async import (
        Delivered,
        Limiter,
        Observer,
        Permit,
        Receipt,
        SqliteSpool,
        StateChange,
        UndeliveredEvent,
    )

E = TypeVar("E", bound=Event)

AT_ONCE: Final = Batching(linger=0)
"""The batching of the recording client: no batch waits for further events."""

IMPATIENT: Final = RetryPolicy(max_attempts=5, initial_backoff=0, max_backoff=0, max_halt=0.2)
"""The retries of the recording client: no waits between attempts, and at most 5 attempts.

After five failures in a row, the client considers the API as down and waits, so a sixth attempt would take time.
"""


class RecordingClient(AsyncTrackingClient):
    """An `AsyncTrackingClient` for tests: sends nothing out of the process, and records every event that is tracked.

    A recording client validates events, returns receipts, bounds its buffer and closes exactly as the real client. The
    requests go to an API in memory, which accepts every request unless `fail_with` was called. A recording client needs
    no credentials, has no request limit, and does not wait. Like the real client, a recording client belongs to one
    event loop, so make a new client for each test. A recording client need not be closed.

    An event is recorded when the call that tracks the event returns, whatever the method and the thread. The events of
    `send` and `send_batch` are recorded when they are sent. The recorded event is the event that `before_send` returns.
    An event is not recorded if `before_send` drops the event, or if the call raises a `UsageError` or
    a `BufferFullError`.

    All arguments have the same meaning as for `AsyncTrackingClient`; only `http_client` is missing.

    Args:
        api_key: default ``"test-api-key"``.
        partner_id: default ``"test-partner"``.
        base_url: default ``"http://localhost/1.0/"``; nothing is sent there.
        http2: default False.
        rate_limit: default None, no limit.
        limiter: default None: no request waits for a permit, not even after a 429.
        batching: default ``Batching(linger=0)``.
        buffer: default ``Buffer()``.
        retry: default ``RetryPolicy(max_attempts=5, initial_backoff=0, max_backoff=0, max_halt=0.2)``.
        spool: default None.
        timeout: default 10 seconds.
        timestamp_precision: default ``"seconds"``.
        before_send: default None.
        on_outcome: default None.
        on_state_change: default None.
        observer: default None.
        allow_insecure_http: default False.

    Raises:
        ConfigurationError: an argument is invalid.
    """

    def __init__(  # noqa: PLR0913 - the same parameters as those of the client
        self,
        api_key: str | Callable[[], str] | Callable[[], Awaitable[str]] = "test-api-key",
        partner_id: str = "test-partner",
        *,
        base_url: str = "http://localhost/1.0/",
        http2: bool = False,
        rate_limit: RateLimit | None = None,
        limiter: Limiter | None = None,
        batching: Batching = AT_ONCE,
        buffer: Buffer = Buffer(),  # noqa: B008 - frozen
        retry: RetryPolicy = IMPATIENT,
        spool: SqliteSpool | None = None,
        timeout: float | httpx.Timeout = 10.0,
        timestamp_precision: Literal["seconds", "milliseconds", "microseconds"] = "seconds",
        before_send: Callable[[Event], Event | None] | None = None,
        on_outcome: Callable[[Sequence[UndeliveredEvent]], object] | None = None,
        on_state_change: Callable[[StateChange], object] | None = None,
        observer: Observer | None = None,
        allow_insecure_http: bool = False,
    ) -> None:
        self._events: list[Event] = []
        self._api = InMemoryApi()
        super().__init__(
            api_key,
            partner_id,
            base_url=base_url,
            http_client=self._api.http_client(),
            http2=http2,
            rate_limit=rate_limit,
            limiter=_Unlimited() if limiter is None and rate_limit is None else limiter,
            batching=batching,
            buffer=buffer,
            retry=retry,
            spool=spool,
            timeout=timeout,
            timestamp_precision=timestamp_precision,
            # An argument that is not a plain function is passed on unchanged, because the client refuses it.
            before_send=_recording(before_send) if _is_plain(before_send) else before_send,
            on_outcome=on_outcome,
            on_state_change=on_state_change,
            observer=observer,
            allow_insecure_http=allow_insecure_http,
        )
        # A test may end before all events are delivered. These events must not be reported as lost; see also `__del__`.
        self._engine.nothing_to_lose()

    # --- what was tracked ---------------------------------------------------------------------------------------------

    @property
    def events(self) -> list[Event]:
        """All events that were tracked or sent, in order."""
        return list(self._events)

    def of(self, event_type: type[E], /, **fields: object) -> list[E]:
        """Return the recorded events of a class, in order.

        Args:
            event_type: the class, e.g. `View`; `Event` for all events.
            fields: the values that fields of the events must have, e.g. ``product_id=1``.

        Raises:
            TypeError: the class does not have one of the fields.
        """
        return matching(self._events, event_type, fields)

    def one(self, event_type: type[E], /, **fields: object) -> E:
        """Return the only recorded event of a class whose fields have these values.

        Raises:
            AssertionError: no event matches, or more than one; the message lists tracked events.
            TypeError: the class does not have one of the fields.
        """
        __tracebackhide__ = True
        found = matching(self._events, event_type, fields)
        if len(found) != 1:
            raise AssertionError(complaint("exactly one", self._events, event_type, fields))
        return found[0]

    def none(self, event_type: type[Event], /, **fields: object) -> None:
        """Check that no event of a class whose fields have these values was recorded.

        Raises:
            AssertionError: an event matches; the message lists tracked events.
            TypeError: the class does not have one of the fields.
        """
        __tracebackhide__ = True
        if matching(self._events, event_type, fields):
            raise AssertionError(complaint("no", self._events, event_type, fields))

    def clear(self) -> None:
        """Forget the events that were recorded so far."""
        self._events.clear()

    # --- what goes wrong ----------------------------------------------------------------------------------------------

    @overload
    def fail_with(
        self, kind: FaultKind = "status", *, status: int = 503, times: int | None = 1, contains: str | None = None
    ) -> None: ...

    @overload
    def fail_with(self, *, rejected: type[Event] | str) -> None: ...

    def fail_with(
        self, kind: FaultKind | None = None, *, rejected: type[Event] | str | None = None, **facts: Any
    ) -> None:
        """Make requests fail from now on. Each call adds a fault. Only the first fault that fits a request applies.

        Retries and time-outs take no time. Only after a refusal of the key, the shop or the address (401, 403, 404)
        does the client wait: usually a quarter of a second, and rarely two seconds, before the client rejects the first
        event, and up to a tenth of a second before each further request.

        Args:
            kind: how the requests fail. ``"status"`` (default): the answer has the status `status`. ``"connect"``:
                there is no connection. ``"reset_after"``: the connection breaks before the answer arrives.
                ``"stall"``: no answer arrives before the time-out.
            rejected: a class of events, e.g. `Order`, or its wire name. The API refuses requests with such an event
                with 400, so the client rejects these events, and delivers the other events of the batch. No other
                argument may be given together with `rejected`.
            facts: further arguments. ``status``: 200 to 599, default 503. ``times``: how many requests fail, default 1;
                None for all further requests. ``contains``: only requests with this text in the body fail; default
                None, all requests.

        Raises:
            ConfigurationError: a value is wrong, or `rejected` is given together with other arguments.
        """
        if rejected is None:
            self._api.faults.append(Fault(kind="status" if kind is None else kind, **facts))
        elif kind is not None or facts:
            raise ConfigurationError("rejected excludes the other arguments: these events are refused with 400")
        else:
            self._api.faults.append(Fault.refusal_of(rejected))

    def clear_faults(self) -> None:
        """Remove all faults, so that requests succeed again."""
        self._api.faults.clear()

    # --- the client's own, recorded -----------------------------------------------------------------------------------

    async def track(self, event: Event) -> Receipt:
        """Track an event as `AsyncTrackingClient.track` does, and record the event."""
        with _chosen_into([]) as chosen:
            receipt = await super().track(event)
        self._events += chosen
        return receipt

    def track_nowait(self, event: Event) -> Receipt:
        """Track an event as `AsyncTrackingClient.track_nowait` does, and record the event."""
        with _chosen_into([]) as chosen:
            receipt = super().track_nowait(event)
        self._events += chosen
        return receipt

    async def track_many(self, events: Iterable[Event] | AsyncIterable[Event]) -> list[Receipt]:
        """Track events as `AsyncTrackingClient.track_many` does, and record each event."""
        # Events are tracked one by one, because `track` records them. With a spool, the base class's `track_many` does
        # not call `track`.
        if isinstance(events, AsyncIterable):
            return [await self.track(event) async for event in events]
        return [await self.track(event) for event in events]

    async def send(self, event: Event) -> Delivered:
        """Send an event as `AsyncTrackingClient.send` does, and record the event."""
        with self._sending():
            return await super().send(event)

    async def send_batch(self, events: Iterable[Event]) -> Delivered:
        """Send events as `AsyncTrackingClient.send_batch` does, and record the events."""
        with self._sending():
            return await super().send_batch(events)

    @contextmanager
    def _sending(self) -> Generator[None]:
        """Record the events that the block sends, before the block awaits the answer.

        Other tasks may track events while the block waits, so recording after the wait would change the order.
        """
        before = len(self._events)
        try:
            with _chosen_into(self._events):
                yield
        except UsageError:
            # A UsageError is raised before the first await, so the events recorded since `before` are those of this
            # call.
            del self._events[before:]
            raise

    def _prepared(self, event: Event) -> Callable[[], Coroutine[Any, Any, Receipt]]:
        # A `ThreadsafeHandle` calls this method in its own thread. The returned coroutine runs in the event loop, and
        # records the event after the engine has accepted the event.
        with _chosen_into([]) as chosen:
            accept = super()._prepared(event)

        async def accept_and_record() -> Receipt:
            receipt = await accept()
            self._events.extend(chosen)
            return receipt

        return accept_and_record

    def __del__(self) -> None:
        # The base class warns about lost events. A recording client does not warn, because a test need not close a
        # client.
        pass

    def __repr__(self) -> str:
        return f"<RecordingClient of {len(self._events)} event(s)>"


class _Unlimited:
    """A limiter that grants every permit immediately."""

    async def acquire(self) -> Permit | None:
        return None

    def pause_until(self, deadline: float) -> None:
        pass

    def throttled(self, sent_at: float) -> None:
        pass


_chosen: ContextVar[list[Event] | None] = ContextVar("_chosen", default=None)
"""The list to which `before_send` adds the events of the current call; None outside of such a call."""


@contextmanager
def _chosen_into(events: list[Event]) -> Generator[list[Event]]:
    token = _chosen.set(events)
    try:
        yield events
    finally:
        _chosen.reset(token)


def _is_plain(hook: object) -> bool:
    return hook is None or (callable(hook) and not inspect.iscoroutinefunction(hook))


def _recording(before_send: Callable[[Event], Event | None] | None) -> Callable[[Event], Event | None]:
    """Return a hook that calls the user's `before_send`, and adds the returned event to the list in `_chosen`."""

    def record(event: Event) -> Event | None:
        # If the user's hook raises, or returns an object that is not an event, the client sends the original event, so
        # the original event is recorded.
        chosen: object = event
        try:
            chosen = result = event if before_send is None else before_send(event)
            return result
        finally:
            events = _chosen.get()
            if chosen is not None and events is not None:
                events.append(chosen if isinstance(chosen, Event) else event)

    return record
