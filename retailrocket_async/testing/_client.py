"""A client for tests: the real one, with an API in memory, and a list of the events that were tracked."""

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
"""No batch waits for further events."""

IMPATIENT: Final = RetryPolicy(max_attempts=5, initial_backoff=0, max_backoff=0, max_halt=0.2)
"""No waits between attempts, and no more attempts than the failures after which the API counts as down."""


class RecordingClient(AsyncTrackingClient):
    """An `AsyncTrackingClient` for tests: nothing leaves the process, and every event that is tracked is recorded.

    It is the real client: it validates events, gives receipts, bounds its buffer and closes as usual. Its requests go
    to an API in memory, which accepts everything unless `fail_with` says otherwise. It needs no credentials, has no
    request limit, and does not wait. Like the real client it belongs to one event loop, so make a new one for each
    test. It need not be closed.

    An event is recorded when the call that tracks it returns, whatever the method and the thread; an event of `send` or
    `send_batch`, when it is sent. It is recorded as `before_send` returns it. An event that `before_send` drops is not
    recorded, and neither is one whose call raises a `UsageError` or a `BufferFullError`.

    Args:
        api_key: default ``"test-api-key"``. All arguments have the meaning that they have for `AsyncTrackingClient`;
            only `http_client` is missing here.
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
        ConfigurationError: an argument that cannot work.
    """

    def __init__(  # noqa: PLR0913 - those of the client
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
            # The client refuses anything that is not a plain function.
            before_send=_recording(before_send) if _is_plain(before_send) else before_send,
            on_outcome=on_outcome,
            on_state_change=on_state_change,
            observer=observer,
            allow_insecure_http=allow_insecure_http,
        )
        # Events that are left at the end of a test are not reported as lost; see also `__del__`.
        self._engine.nothing_to_lose()

    # --- what was tracked ---------------------------------------------------------------------------------------------

    @property
    def events(self) -> list[Event]:
        """All events that were tracked or sent, in order."""
        return list(self._events)

    def of(self, event_type: type[E], /, **fields: object) -> list[E]:
        """Return the recorded events of a class, in order.

        Args:
            event_type: e.g. `View`; `Event` for all.
            fields: the values that their fields must have, e.g. ``product_id=1``.

        Raises:
            TypeError: a field that the class does not have.
        """
        return matching(self._events, event_type, fields)

    def one(self, event_type: type[E], /, **fields: object) -> E:
        """Return the only recorded event of a class with these values of its fields.

        Raises:
            AssertionError: there is none, or more than one; the message shows what was tracked.
            TypeError: a field that the class does not have.
        """
        __tracebackhide__ = True
        found = matching(self._events, event_type, fields)
        if len(found) != 1:
            raise AssertionError(complaint("exactly one", self._events, event_type, fields))
        return found[0]

    def none(self, event_type: type[Event], /, **fields: object) -> None:
        """Check that no event of a class with these values of its fields was recorded.

        Raises:
            AssertionError: there is one; the message shows what was tracked.
            TypeError: a field that the class does not have.
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
        """Make requests fail from now on. Each call adds a fault, and a request gets the first fault that fits it.

        Retries and time-outs take no time. Only after a refusal of the key, the shop or the address (401, 403, 404) the
        client waits: a quarter of a second, seldom two seconds, before the first event is rejected, and up to a tenth
        of a second before each further request.

        Args:
            kind: ``"status"`` (default), an answer with `status`; ``"connect"``, no connection; ``"reset_after"``, a
                connection that breaks before the answer has come; ``"stall"``, no answer in time.
            rejected: a class of events, e.g. `Order`, or its wire name. The API refuses these events (400), and accepts
                the others of their batch. It excludes the other arguments.
            facts: ``status``, 200 to 599, default 503; ``times``, how many requests fail, default 1, None for all
                further ones; ``contains``, a text that the body of a failing request must have, default None.

        Raises:
            ConfigurationError: a wrong value, or `rejected` together with other arguments.
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
        """Track an event as `AsyncTrackingClient.track`, and record it."""
        with _chosen_into([]) as chosen:
            receipt = await super().track(event)
        self._events += chosen
        return receipt

    def track_nowait(self, event: Event) -> Receipt:
        """Track an event as `AsyncTrackingClient.track_nowait`, and record it."""
        with _chosen_into([]) as chosen:
            receipt = super().track_nowait(event)
        self._events += chosen
        return receipt

    async def track_many(self, events: Iterable[Event] | AsyncIterable[Event]) -> list[Receipt]:
        """Track events as `AsyncTrackingClient.track_many`, and record each of them."""
        # One by one, since with a spool the client writes many events together, without calling `track`.
        if isinstance(events, AsyncIterable):
            return [await self.track(event) async for event in events]
        return [await self.track(event) for event in events]

    async def send(self, event: Event) -> Delivered:
        """Send an event as `AsyncTrackingClient.send`, and record it."""
        with self._sending():
            return await super().send(event)

    async def send_batch(self, events: Iterable[Event]) -> Delivered:
        """Send events as `AsyncTrackingClient.send_batch`, and record them."""
        with self._sending():
            return await super().send_batch(events)

    @contextmanager
    def _sending(self) -> Generator[None]:
        """Record the events of the call in the block before it awaits the answer, since others may track meanwhile."""
        before = len(self._events)
        try:
            with _chosen_into(self._events):
                yield
        except UsageError:
            # Raised before the first await, so that the recorded events after `before` are those of this call.
            del self._events[before:]
            raise

    def _prepared(self, event: Event) -> Callable[[], Coroutine[Any, Any, Receipt]]:
        # A handle calls this in its thread. The event is recorded in the loop, after it was accepted.
        with _chosen_into([]) as chosen:
            accept = super()._prepared(event)

        async def accept_and_record() -> Receipt:
            receipt = await accept()
            self._events.extend(chosen)
            return receipt

        return accept_and_record

    def __del__(self) -> None:
        # No warning about lost events: a test may end with an open client.
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
"""The list that collects the events of the current call, as `before_send` returns them."""


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
    """Return a `before_send` that calls the user's and adds the event that it returns to the list of `_chosen`."""

    def record(event: Event) -> Event | None:
        # If the hook raises, or returns something that is not an event, the client sends the event unchanged.
        chosen: object = event
        try:
            chosen = result = event if before_send is None else before_send(event)
            return result
        finally:
            events = _chosen.get()
            if chosen is not None and events is not None:
                events.append(chosen if isinstance(chosen, Event) else event)

    return record
