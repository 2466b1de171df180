"""What the client tells about itself: `Stats` at any moment, `CloseReport` at its end, events it did not deliver."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import attrs

from retailrocket_async._outcome import error_for
from retailrocket_async._wire import Codec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from retailrocket_async._errors import DeliveryError
    from retailrocket_async._events import Event
    from retailrocket_async._outcome import Undelivered


@attrs.frozen(kw_only=True)
class Stats:
    """A snapshot of the client's counters; all count events unless they say otherwise.

    The counts always add up: ``tracked == delivered + rejected + abandoned + dropped + pending + in_flight``.

    Attributes:
        tracked: accepted by `track`, `track_nowait`, `track_many`, `send` and `send_batch`.
        delivered: accepted by the API.
        rejected: refused by the API.
        abandoned: given up after sending.
        dropped: never sent.
        pending: waiting in the buffer.
        pending_bytes: bytes of JSON waiting in the buffer.
        in_flight: taken from the buffer, or sent directly, and without an outcome yet.
        oldest_age: seconds the longest waiting event has been in the buffer; 0 where it is empty.
        waiting: calls of `track` and `track_many` that wait for room in the buffer.
        requests: requests made, retries and direct sends included.
        requests_by_status: requests by the HTTP status of their answer; those without one under their kind of failure
            (``"connect"``, ``"pool"``, ``"timeout"``, ``"broken"``, ``"closed"``); those on their way, or cut off by a
            close or a cancellation, are in `requests` alone.
        retries: requests that repeated an earlier one.
        limiter_wait: seconds that requests have waited for the limiter, in sum.
        hook_errors: calls of `on_outcome` that raised.
    """

    tracked: int = 0
    delivered: int = 0
    rejected: int = 0
    abandoned: int = 0
    dropped: int = 0
    pending: int = 0
    pending_bytes: int = 0
    in_flight: int = 0
    oldest_age: float = 0.0
    waiting: int = 0
    requests: int = 0
    requests_by_status: Mapping[int | str, int] = attrs.field(factory=dict[int | str, int])
    retries: int = 0
    limiter_wait: float = 0.0
    hook_errors: int = 0


@attrs.frozen(kw_only=True)
class UndeliveredEvent:
    """An event that was not delivered, and why.

    Attributes:
        event_name: the event's name as the API spells it.
        envelope: its JSON as it was, or would have been, sent: one line that ``retailrocket-async send`` takes again.
        outcome: what became of it.
    """

    event_name: str
    envelope: bytes = attrs.field(repr=False)
    outcome: Undelivered

    @property
    def event(self) -> Event:
        """The event, read back from its JSON; its timestamp as precise as it was sent."""
        return _reader().decode(self.envelope, allow_custom=True)

    @property
    def error(self) -> DeliveryError:
        """The typed error that says the same as the outcome, as `Receipt.delivered` raises it."""
        return error_for(self.outcome)


@functools.cache
def _reader() -> Codec:
    # Once: to build a codec takes milliseconds, and a buffer holds a hundred thousand events.
    return Codec()


@attrs.frozen(kw_only=True)
class CloseReport:
    """How the client ended.

    Attributes:
        stats: the final counters; nothing is pending or in flight any more.
        undelivered: the buffered events that ended undelivered while the client closed, oldest first; earlier ones
            went to `on_outcome` only, as they may be any number.
        elapsed: seconds that the close took.
    """

    stats: Stats
    undelivered: tuple[UndeliveredEvent, ...] = attrs.field(repr=lambda events: f"<{len(events)} events>")
    elapsed: float

    @property
    def clean(self) -> bool:
        """Whether every event that was still open at the close was delivered."""
        return not self.undelivered
