"""The user's settings for batches and for the buffer."""

import math
from collections.abc import Mapping
from typing import Any, get_args

import attrs

from retailrocket_async._errors import ConfigurationError
from retailrocket_async._queue.eviction import DEFAULT_RANKING, Overflow, Ranks, checked_ranking


@attrs.frozen(kw_only=True)
class Batching:
    """How events are coalesced into `visitorEvents` requests.

    Attributes:
        max_events: largest number of events in one batch, 1 or more; default 500. Larger batches are hardly cheaper per
            event, and if a large batch is refused or sent twice, more events are affected.
        max_bytes: largest number of bytes of JSON in one batch, 1,024 or more; default 524,288 (512 KiB), half of what
            common servers accept by default. An event that is larger by itself is not accepted.
        linger: seconds that the oldest event may wait for further events while permits are free, 0 or more; default
            0.1, which is short compared with the time that the API takes to answer a batch.
        max_in_flight: largest number of requests in flight, 1 to 1,000; default 100. The number only bounds memory and
            connections; the limiter sets the pace. The API answers a batch in 1.5 s, so 50 requests a second keep 75
            in flight.
        realtime: whether each event is sent at once to its own endpoint as long as permits are not scarce; default
            False: all events are sent in `visitorEvents` batches, even a batch of one event. An event's own endpoint
            answers in about 0.1 s and the event takes effect at once, but only a batch guarantees the order: single
            events may be handled by different servers, so their order then rests on their timestamps. A visitor's next
            event is sent after the previous one was answered. Batches begin when an event has waited 0.5 s for its
            permit, or when more than 100 visitors wait.

    Raises:
        ConfigurationError: a value outside its range.
    """

    max_events: int = 500
    max_bytes: int = 512 * 1024
    linger: float = 0.1
    max_in_flight: int = 100
    realtime: bool = False

    def __attrs_post_init__(self) -> None:
        _check_int("Batching.max_events", self.max_events, 1, None)
        _check_int("Batching.max_bytes", self.max_bytes, 1024, None)
        _check_int("Batching.max_in_flight", self.max_in_flight, 1, 1000)
        if type(self.linger) not in (int, float) or not 0 <= self.linger < math.inf:
            raise ConfigurationError(f"Batching.linger must be a number of seconds, 0 or more, not {self.linger!r}")
        if type(self.realtime) is not bool:
            raise ConfigurationError(f"Batching.realtime must be a bool, not {self.realtime!r}")


@attrs.frozen(kw_only=True)
class Buffer:
    """Bounds of the events that wait for a permit, and what happens to a new event if a bound is reached.

    Attributes:
        max_events: largest number of waiting events, 1 or more; default 100,000, as many as can be sent in four
            seconds. Events in flight (at most `Batching.max_in_flight` batches) are not included.
        max_bytes: largest number of bytes of JSON, of waiting events and events in flight together, 1,024 or more;
            default 67,108,864 (64 MiB).
        max_visitor_events: largest number of events of one visitor that may wait for earlier events of the same
            visitor, 1 or more; default 5,000. If the number is reached, `overflow` applies to this visitor alone, so a
            crawler delays no other visitor.
        overflow: what happens to a new event if the buffer is full. ``"wait"`` (default): `track` waits for space, in
            order, and `track_nowait` raises `BufferFullError`. ``"raise"``: both methods raise this error.
            ``"drop_newest"``: the new event is dropped. ``"drop_oldest"``: the oldest events are dropped. ``"shed"``:
            the least valuable events are dropped, the oldest of them first. Events that are more valuable than the
            new event are never dropped for it; if dropping the others would not make enough space, the new event is
            dropped.
            A dropped event is `Dropped` with reason ``"overflow"``, counted in `Stats.dropped_by` and handed to
            `on_outcome`.
        ranking: values of events by wire name, for ``"shed"``; events of the lowest value are dropped first; default
            `DEFAULT_RANKING`. An event without a value counts as 1, like a view in `DEFAULT_RANKING`.
        max_age: age in seconds, counted from the call of `track`, from which an event is dropped and not sent (again),
            above 0; default None: even old events are sent, because each event carries its time.

    Raises:
        ConfigurationError: a value outside its range.
    """

    max_events: int = 100_000
    max_bytes: int = 64 * 1024 * 1024
    max_visitor_events: int = 5_000
    overflow: Overflow = "wait"
    ranking: Mapping[str, int] = attrs.field(default=DEFAULT_RANKING, converter=checked_ranking)
    max_age: float | None = None

    def __attrs_post_init__(self) -> None:
        _check_int("Buffer.max_events", self.max_events, 1, None)
        _check_int("Buffer.max_bytes", self.max_bytes, 1024, None)
        _check_int("Buffer.max_visitor_events", self.max_visitor_events, 1, None)
        if self.overflow not in get_args(Overflow):
            allowed = ", ".join(map(repr, get_args(Overflow)))
            raise ConfigurationError(f"Buffer.overflow must be one of {allowed}, not {self.overflow!r}")
        age = self.max_age
        if age is not None and (type(age) not in (int, float) or not 0 < age < math.inf):
            raise ConfigurationError(f"Buffer.max_age must be None or a number of seconds above 0, not {age!r}")

    def ranks(self) -> Ranks[Any] | None:
        """Return the object that chooses the event to evict, or None if `overflow` evicts no waiting events."""
        if self.overflow == "shed":
            return Ranks(self.ranking)
        return Ranks({}) if self.overflow == "drop_oldest" else None


def _check_int(name: str, value: object, least: int, most: int | None) -> None:
    if type(value) is not int or value < least or (most is not None and value > most):
        allowed = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise ConfigurationError(f"{name} must be an int {allowed}, not {value!r}")
