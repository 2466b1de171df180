"""The interface of an engine: the methods that the client calls.

There are two engines: `Dispatcher` keeps events in memory, `SpooledDispatcher` stores them on disk. The client uses
both in the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence

    from retailrocket_async._errors import EventValidationError
    from retailrocket_async._events.envelopes import EnvelopeReader
    from retailrocket_async._events.models import Event
    from retailrocket_async._outcome import Delivered
    from retailrocket_async._receipt import Receipt
    from retailrocket_async._runtime.loop_affinity import LoopAffinity
    from retailrocket_async._stats import CloseReport, Stats


class EventIntake(Protocol):
    """Accepts single events.

    Attributes:
        left_in_a_row: number of events that may still be accepted before the caller must let other tasks run. If the
            number is 0 or less, the caller awaits `let_others_run`.
    """

    left_in_a_row: int

    def accept_now(self, event: Event, envelope: bytes) -> Receipt | None:
        """Accept an event at once; return None if there is no space: the caller must then call `wait_for_room`."""
        ...

    def wait_for_room(self, event: Event, envelope: bytes) -> Awaitable[Receipt]:
        """Wait until there is space for an event that `accept_now` did not accept, and accept the event."""
        ...

    async def accept(self, event: Event, envelope: bytes) -> Receipt:
        """Accept an event, waiting if necessary."""
        ...

    def accept_nowait(self, event: Event, envelope: bytes) -> Receipt:
        """Accept an event without waiting.

        Raises:
            BufferFullError: the event would have to wait.
        """
        ...

    def refuse(self, event: Event, envelope: bytes, *, tell: bool) -> Receipt:
        """Count an event that `before_send` drops, and return its receipt; call `on_outcome` if `tell` is true."""
        ...

    async def let_others_run(self) -> None:
        """Yield to other tasks if `left_in_a_row` is 0 or less."""
        ...

    def check_open(self) -> None:
        """Raise `ClientClosedError` if no event is accepted any more."""
        ...


class Engine(Protocol):
    """Delivers the events that `intake` accepts, and settles each with an outcome."""

    @property
    def intake(self) -> EventIntake:
        """Accepts single events."""
        ...

    @property
    def affinity(self) -> LoopAffinity:
        """The one event loop that the engine belongs to."""
        ...

    @property
    def started(self) -> bool:
        """Whether the engine has been used."""
        ...

    @property
    def closed(self) -> bool:
        """Whether `aclose` has been called."""
        ...

    async def start(self) -> None:
        """Prepare the engine before the first event; without this call, the engine is prepared at the first event."""
        ...

    async def accept_many(
        self,
        events: Iterable[Event] | AsyncIterable[Event],
        *,
        track: Callable[[Event], Awaitable[Receipt]],
        prepare: Callable[[Event], tuple[str, bytes] | Receipt],
    ) -> list[Receipt]:
        """Accept events in order, and return their receipts.

        Args:
            events: the events.
            track: accepts one event.
            prepare: returns the name and the envelope of an event, or the receipt of an event that `before_send` drops.
        """
        ...

    async def accept_envelopes(
        self, envelopes: Sequence[bytes], reader: EnvelopeReader, *, track: Callable[[Event], Awaitable[Receipt]]
    ) -> list[Receipt | EventValidationError]:
        """Accept the events that envelopes describe, in order; see `AsyncTrackingClient.track_envelopes`.

        Args:
            envelopes: the JSON of each event.
            reader: checks and decodes the envelopes.
            track: accepts one event.
        """
        ...

    async def send(self, path: str, body: bytes, names: Sequence[str], visitors: Sequence[str]) -> Delivered:
        """Send one request without first storing its events in a queue; see `AsyncTrackingClient.send`."""
        ...

    async def flush(self, timeout: float | None) -> None:  # noqa: ASYNC109 - raises an error of its own
        """Return when every event accepted before this call has its outcome; `timeout` is in seconds."""
        ...

    async def aclose(self, timeout: float | None) -> CloseReport:  # noqa: ASYNC109 - a deadline
        """Refuse new events, flush, and close within `timeout` seconds."""
        ...

    def stats(self) -> Stats:
        """Return a snapshot of the counters; may be called in any thread."""
        ...

    def hook_failed(self, name: str, error: BaseException) -> None:
        """Count an error that a user's hook raised in the caller's task."""
        ...

    def loses(self, how: str) -> None:
        """Log how many events have no outcome when the client, its loop or the process ends; only the first call logs.

        Args:
            how: the start of the log message, e.g. "its event loop was closed".
        """
        ...

    def nothing_to_lose(self) -> None:
        """From now on, do not log events without an outcome when the client ends; nobody expects their delivery."""
        ...
