"""What a client reports: counters, changes of the state, undelivered events, and a summary when the client closes."""

import functools
import os
import time
from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeAlias

import attrs

from retailrocket_async._errors import DeliveryError, error_for
from retailrocket_async._events.codec import Codec
from retailrocket_async._events.models import Event
from retailrocket_async._outcome import Undelivered

State: TypeAlias = Literal["sending", "down", "halted"]
"""The state of sending. ``"sending"``: requests are sent normally. ``"down"``: the API does not answer, so one request
at a time is sent as a probe, until the API answers. ``"halted"``: the key, shop, address, proxy or an environment
variable is wrong, so only probes are sent until the mistake is corrected."""


@attrs.frozen(kw_only=True)
class SpoolStats:
    """Counters of a spool, at most one second old.

    Attributes:
        sends: whether this process sends the events of the spool.
        events: number of waiting events, of all processes; a little too high if events were sent out of order.
        size: bytes that the spool uses on disk.
        dead: number of dead letters: events that were not delivered and are stored for inspection.
        oldest_age: seconds since the oldest waiting event was tracked; 0 if no event waits.
        failure: why the spool cannot be used now, as a sentence; None if the spool works. The client retries until the
            spool works. But if `Stats.state` is ``"halted"`` as well, a defect of this package has ended the retries,
            and nothing is sent.
    """

    sends: bool = False
    events: int = 0
    size: int = 0
    dead: int = 0
    oldest_age: float = 0.0
    failure: str | None = None


@attrs.frozen(kw_only=True)
class Stats:
    """A snapshot of the client's counters. A counter counts events unless its description says otherwise.

    This equation is true in every thread that reads the counters:
    ``tracked == delivered + rejected + abandoned + dropped + kept + pending + in_flight``.

    Attributes:
        tracked: accepted by `track`, `track_nowait`, `track_many`, `send` and `send_batch`.
        delivered: accepted by the API.
        rejected: refused by the API.
        abandoned: not delivered, and no longer retried; see `Abandoned`.
        dropped: never sent.
        pending: waiting in the buffer.
        pending_bytes: bytes of JSON waiting in the buffer.
        in_flight: taken from the buffer or sent directly, but without an outcome yet; includes events of batches that
            wait for a retry, and of direct sends that wait for earlier events of their visitors.
        oldest_age: seconds that the oldest event in the buffer has waited; 0 if the buffer is empty.
        waiting: number of calls of `track` and `track_many` that wait for room in the buffer, also for lack of room for
            one visitor.
        requests: number of requests sent, including retries and direct sends.
        requests_by_status: number of requests by the HTTP status of the answer; without an answer, by the kind of
            failure (``"name"``, ``"connect"``, ``"tls"``, ``"proxy"``, ``"pool"``, ``"timeout"``, ``"broken"``,
            ``"closed"``). Requests that are in flight, or were ended by a close or a cancellation, are counted in
            `requests` only.
        retries: number of requests that repeated an earlier request.
        limiter_wait: seconds that all requests together have waited for the rate limiter.
        hook_errors: number of calls that raised an error: calls of `before_send`, `on_outcome`, `on_state_change`, an
            observer or a log handler.
        hook_missed: undelivered events that were not passed to `on_outcome`, because `on_outcome` was too slow.
        state: ``"sending"`` normally; ``"down"`` while the API does not answer; ``"halted"`` while the API refuses the
            key, the shop or the address, or while an environment variable or a proxy prevents all requests. See
            `StateChange`.
        dropped_by: dropped events by reason, then by event name, e.g. ``{"overflow": {"view": 3}}``.
        splits: number of requests that were sent to find the bad events in a refused batch.
        kept: left in the spool when the client closed.
        spool: counters of the spool; None without a spool. With a spool, the counters above count the events that this
            process has tracked, even if another process sends these events. But `requests` and `retries` count this
            process's own requests, and `pending_bytes` and `oldest_age` describe the events that this process will send
            next.
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
    hook_missed: int = 0
    state: State = "sending"
    dropped_by: Mapping[str, Mapping[str, int]] = attrs.field(factory=dict[str, Mapping[str, int]])
    splits: int = 0
    kept: int = 0
    spool: SpoolStats | None = None


_READS: Final = 100
"""The largest number of readings in one call of `consistent`, if another thread keeps changing the counters."""

_SOON: Final = 10
"""After each of the first 10 readings, `consistent` only lets other threads run; later, `consistent` sleeps."""

_PAUSE: Final = 0.0005
"""Seconds that `consistent` sleeps between two readings, from the 11th reading on."""


def consistent(read: Callable[[], Stats]) -> Stats:
    """Return counters that belong to one moment, although the event loop's thread may be changing them.

    The counters are read until two readings are equal and satisfy the equation of `Stats`. Most counters only grow, so
    nothing has changed between two equal readings. Unlike a lock or a version number, this method costs the event loop
    no time per event. A call takes at most 50 ms. If the loop is stopped in the middle of a change for longer than
    50 ms, `in_flight` is corrected so that the equation is true.

    Args:
        read: a function that returns the current counters. The function must read the counters of events with an
            outcome before the counters of waiting events.
    """
    last: Stats | None = None
    for turn in range(_READS):
        now = read()
        if last is not None and _adds_up(now) and _counts(now) == _counts(last):
            return now
        last = now
        if not _adds_up(now):
            time.sleep(0 if turn < _SOON else _PAUSE)
    first, then = read(), read()
    known = _ended(first) + first.pending
    tracked = max(then.tracked, known)
    return attrs.evolve(first, tracked=tracked, in_flight=tracked - known)


def _ended(stats: Stats) -> int:
    return stats.delivered + stats.rejected + stats.abandoned + stats.dropped + stats.kept


def _adds_up(stats: Stats) -> bool:
    named = sum(sum(names.values()) for names in stats.dropped_by.values())
    return stats.tracked == _ended(stats) + stats.pending + stats.in_flight and stats.dropped == named


def _counts(stats: Stats) -> Stats:
    # Ages and waiting times change all the time, so the comparison ignores ages and waiting times.
    return attrs.evolve(stats, oldest_age=0.0, limiter_wait=0.0, spool=None)


@attrs.frozen(kw_only=True)
class StateChange:
    """A change of `Stats.state`, or of the reason for the state; logged once, and passed to `on_state_change`.

    Attributes:
        state: the new state, as in `Stats.state`.
        previous: the state before; the same as `state` if only the reason has changed.
        status: the HTTP status that caused the change; None if the change has another cause.
        failure: why no answer arrived, e.g. ``"connect: ConnectError"``; None if an answer arrived.
        advice: what the change means and what to do, as a sentence.
        lasted: seconds that the previous state had lasted.
    """

    state: State
    previous: State
    status: int | None = None
    failure: str | None = None
    advice: str
    lasted: float = 0.0


@attrs.frozen(kw_only=True)
class UndeliveredEvent:
    """An event that was not delivered, with its outcome.

    Attributes:
        event_name: the event's name as the API spells it.
        envelope: the event as UTF-8 JSON, exactly as the client sent or would have sent the event. The JSON may be
            written as one line of a file for ``retailrocket-async send``.
        outcome: the event's outcome, which says why the event was not delivered.
    """

    event_name: str
    envelope: bytes = attrs.field(repr=False)
    outcome: Undelivered

    @property
    def event(self) -> Event:
        """The event, decoded from `envelope`; the timestamp has the precision that was sent, e.g. seconds."""
        return _reader().decode(self.envelope, allow_custom=True, allow_extra=True)

    @property
    def error(self) -> DeliveryError:
        """The error that `Receipt.delivered` raises for this outcome."""
        return error_for(self.outcome)


@functools.cache
def _reader() -> Codec:
    # Building a codec takes milliseconds, and there may be a hundred thousand events to decode, so cache the codec.
    return Codec()


def _as_value(error: DeliveryError | None) -> object:
    # `==` compares exceptions by identity, so compare their contents.
    return None if error is None else (type(error), error.args, error.outcome)


@attrs.frozen(kw_only=True)
class CloseReport:
    """The result of closing a client.

    Attributes:
        stats: the final counters; no event is pending or in flight any more.
        undelivered: the buffered events that were not delivered during the close, oldest first. Events that failed
            before the close are not included, because their number has no limit; `on_outcome` got those events.
        elapsed: seconds that the close took.
        error: why sending was halted, e.g. an `AuthenticationError`; None if sending was not halted.
    """

    stats: Stats
    undelivered: tuple[UndeliveredEvent, ...] = attrs.field(repr=lambda events: f"<{len(events)} events>")
    elapsed: float
    error: DeliveryError | None = attrs.field(default=None, eq=_as_value)

    @property
    def clean(self) -> bool:
        """Whether all events that had no outcome when the close began were delivered."""
        return not self.undelivered

    def save_undelivered(self, path: str | os.PathLike[str]) -> int:
        """Append the undelivered events to a file for ``retailrocket-async send``; return the number of events.

        The file has one line of JSON per event. A new file is readable by its owner only (mode 0600), because events
        contain personal data. If there is no event, no file is created. This method blocks, so call it in a thread if
        the service is still running.

        Raises:
            OSError: the file cannot be written.
        """
        if self.undelivered:
            with open(path, "ab", opener=_private) as file:
                file.writelines(event.envelope + b"\n" for event in self.undelivered)
        return len(self.undelivered)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
