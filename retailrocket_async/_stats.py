"""The client's reports: `Stats` at any moment, `StateChange`, `CloseReport`, and the events that it did not deliver."""

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
"""Requests go out normally; one at a time as probes, until the API answers; or as probes, until a wrong key, shop,
address, proxy or variable is corrected."""


@attrs.frozen(kw_only=True)
class SpoolStats:
    """The contents of a spool, as they were less than a second ago.

    Attributes:
        sends: whether this process sends the events of the spool.
        events: waiting events of all processes; a little too high if events were sent out of their order.
        size: bytes in use.
        dead: dead letters.
        oldest_age: seconds since the oldest waiting event was tracked; 0 if none waits.
        failure: why the spool cannot be used now, as a sentence; None if it can. The client retries until the spool
            works, unless `Stats.state` is ``"halted"`` too: then a defect has ended the retries, and nothing is sent.
    """

    sends: bool = False
    events: int = 0
    size: int = 0
    dead: int = 0
    oldest_age: float = 0.0
    failure: str | None = None


@attrs.frozen(kw_only=True)
class Stats:
    """A snapshot of the client's counters, which count events unless they say otherwise.

    This sum holds in every thread that reads the counters:
    ``tracked == delivered + rejected + abandoned + dropped + kept + pending + in_flight``.

    Attributes:
        tracked: accepted by `track`, `track_nowait`, `track_many`, `send` and `send_batch`.
        delivered: accepted by the API.
        rejected: refused by the API.
        abandoned: given up after sending.
        dropped: never sent.
        pending: waiting in the buffer.
        pending_bytes: bytes of JSON waiting in the buffer.
        in_flight: taken from the buffer, or sent directly, and without an outcome yet.
        oldest_age: seconds that the oldest event has been in the buffer; 0 if the buffer is empty.
        waiting: calls of `track` and `track_many` that wait for room in the buffer.
        requests: requests made, retries and direct sends included.
        requests_by_status: requests by the HTTP status of their answer; requests without an answer by their kind of
            failure (``"name"``, ``"connect"``, ``"tls"``, ``"proxy"``, ``"pool"``, ``"timeout"``, ``"broken"``,
            ``"closed"``). Requests in flight, or ended by a close or a cancellation, are in `requests` alone.
        retries: requests that repeated an earlier one.
        limiter_wait: seconds that requests have waited for the limiter, in sum.
        hook_errors: calls of `before_send`, `on_outcome`, `on_state_change`, an observer or a log handler that raised.
        hook_missed: undelivered events that `on_outcome` did not get, because it was too slow.
        state: ``"sending"`` normally, ``"down"`` while the API does not answer, or ``"halted"`` while it refuses the
            key, the shop or the address, or the environment or a proxy lets nothing be sent; see `StateChange`.
        dropped_by: dropped events by reason, and then by the event's name, e.g. ``{"overflow": {"view": 3}}``.
        splits: requests made to find the bad events of a refused batch.
        kept: left in the spool when the client closed.
        spool: the contents of the spool; None without a spool. With a spool, the counters above are of the events that
            this process has tracked, even if another process sends them; requests and retries are those of this
            process, and `pending_bytes` and `oldest_age` are of the events that it is about to send.
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
"""How often counters are read, if another thread keeps changing them, before the last reading is corrected."""

_SOON: Final = 10
"""Readings after which the reader only lets other threads run; after later readings it sleeps."""

_PAUSE: Final = 0.0005
"""Seconds that the reader sleeps."""


def consistent(read: Callable[[], Stats]) -> Stats:
    """Return counters of one moment while another thread, that of the event loop, goes on changing them.

    If two readings are equal and their sum is right, no change came between them, as most counters only grow. Unlike a
    lock or a version number, this costs the event loop nothing per event. It takes 50 ms at most. If the loop is
    stopped in the middle of a change for longer, the missing or surplus events count as in flight.

    Args:
        read: returns the counters as they are, and reads those of ended events before those of waiting events.
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
    # Ages and waiting times grow by themselves.
    return attrs.evolve(stats, oldest_age=0.0, limiter_wait=0.0, spool=None)


@attrs.frozen(kw_only=True)
class StateChange:
    """A change of `Stats.state`, or of its reason; logged once each, and passed to `on_state_change`.

    Attributes:
        state: the new state, as in `Stats.state`.
        previous: the state before; the same as `state` if only the reason has changed.
        status: the HTTP status that caused the change; None if there was none.
        failure: why there was no answer, e.g. ``"connect: ConnectError"``; None if there was an answer.
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
    """An event that was not delivered, and why.

    Attributes:
        event_name: the event's name as the API spells it.
        envelope: its JSON as it was, or would have been, sent; a line of a file for ``retailrocket-async send``.
        outcome: its outcome.
    """

    event_name: str
    envelope: bytes = attrs.field(repr=False)
    outcome: Undelivered

    @property
    def event(self) -> Event:
        """The event, decoded from its JSON; its timestamp is as precise as on the wire."""
        return _reader().decode(self.envelope, allow_custom=True)

    @property
    def error(self) -> DeliveryError:
        """The error that corresponds to the outcome, as `Receipt.delivered` raises it."""
        return error_for(self.outcome)


@functools.cache
def _reader() -> Codec:
    # Cached, as building a codec takes milliseconds and a buffer may hold a hundred thousand events.
    return Codec()


def _as_value(error: DeliveryError | None) -> object:
    # Compares errors by their contents: `==` of exceptions is identity.
    return None if error is None else (type(error), error.args, error.outcome)


@attrs.frozen(kw_only=True)
class CloseReport:
    """The report of a client's close.

    Attributes:
        stats: the final counters; no event is pending or in flight any more.
        undelivered: the buffered events that ended undelivered during the close, oldest first; earlier ones went to
            `on_outcome` only, as there may be any number of them.
        elapsed: seconds that the close took.
        error: why sending was halted, e.g. an `AuthenticationError`; None if it was not.
    """

    stats: Stats
    undelivered: tuple[UndeliveredEvent, ...] = attrs.field(repr=lambda events: f"<{len(events)} events>")
    elapsed: float
    error: DeliveryError | None = attrs.field(default=None, eq=_as_value)

    @property
    def clean(self) -> bool:
        """Whether every event that had no outcome when the close began was delivered."""
        return not self.undelivered

    def save_undelivered(self, path: str | os.PathLike[str]) -> int:
        """Append the undelivered events to a file for ``retailrocket-async send``; return how many they are.

        The file has one line of JSON per event. A new file is readable by its owner alone (mode 0600), as events hold
        personal data. If there is no event, no file is made. The call blocks: in a running service make it in a thread.

        Raises:
            OSError: the file cannot be written.
        """
        if self.undelivered:
            with open(path, "ab", opener=_private) as file:
                file.writelines(event.envelope + b"\n" for event in self.undelivered)
        return len(self.undelivered)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
