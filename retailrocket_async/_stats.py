"""What the client tells about itself: `Stats` at any moment, `CloseReport` at its end, events it did not deliver."""

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
"""Whether requests go out as ever, or one at a time until the API answers, or until somebody mends something."""


@attrs.frozen(kw_only=True)
class SpoolStats:
    """What is in a spool, as of a look less than a second ago.

    Attributes:
        sends: whether this process is the one that sends.
        events: waiting events of all processes; a little more where some have gone out of their turn.
        size: bytes in use.
        dead: dead letters.
        oldest_age: seconds since the oldest waiting event was tracked; 0 where none waits.
        failure: why the spool cannot be used right now, as a sentence; None while it can. It is tried again until it
            works, unless `Stats.state` is ``"halted"`` with it: then a defect has ended that, and nothing is sent.
    """

    sends: bool = False
    events: int = 0
    size: int = 0
    dead: int = 0
    oldest_age: float = 0.0
    failure: str | None = None


@attrs.frozen(kw_only=True)
class Stats:
    """A snapshot of the client's counters; all count events unless they say otherwise.

    The counts always add up, in whatever thread they are read:
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
        oldest_age: seconds the longest waiting event has been in the buffer; 0 where it is empty.
        waiting: calls of `track` and `track_many` that wait for room in the buffer.
        requests: requests made, retries and direct sends included.
        requests_by_status: requests by the HTTP status of their answer; those without one under their kind of failure
            (``"name"``, ``"connect"``, ``"tls"``, ``"proxy"``, ``"pool"``, ``"timeout"``, ``"broken"``, ``"closed"``);
            those on their way, or cut off by a close or a cancellation, are in `requests` alone.
        retries: requests that repeated an earlier one.
        limiter_wait: seconds that requests have waited for the limiter, in sum.
        hook_errors: calls of `before_send`, `on_outcome`, `on_state_change`, an observer or a log handler that raised.
        hook_missed: undelivered events that `on_outcome` was not told of, as it was too slow for them.
        state: ``"sending"`` as ever, ``"down"`` while the API does not answer, or ``"halted"`` while it refuses the
            key, the shop or the address, or the environment or a proxy lets nothing be sent; see `StateChange`.
        dropped_by: dropped events by reason, and then by the event's name, e.g. ``{"overflow": {"view": 3}}``.
        splits: requests made to find out which events of a refused batch are to blame.
        kept: left in the spool when the client closed.
        spool: what is in the spool; None without one. With one, the counts above are those of the events that this
            process has tracked, whichever process sends them; requests and retries are those of this process, and
            `pending_bytes` and `oldest_age` those of what it is about to send.
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
"""How often counters are read that another thread keeps changing, before the last reading is made to add up."""

_SOON: Final = 10
"""Of these readings, how many only let other threads run in between; before the others the reader sleeps."""

_PAUSE: Final = 0.0005
"""Seconds that it sleeps."""


def consistent(read: Callable[[], Stats]) -> Stats:
    """Return counters of one moment, while another thread, that of the event loop, goes on changing them.

    Two readings with the same counts, which add up, have nothing in between: most counts only ever grow. This costs the
    event loop nothing, as a lock or a version number would with every event. It takes 50 ms at most. After that, in a
    loop that is stopped in the middle of a change, the missing or surplus events count as in flight.

    Args:
        read: returns the counters as they are, the ended events read before the waiting ones.
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
    # Ages and waits go on by themselves.
    return attrs.evolve(stats, oldest_age=0.0, limiter_wait=0.0, spool=None)


@attrs.frozen(kw_only=True)
class StateChange:
    """A turn for the worse, or the better; logged once each, and handed to `on_state_change`.

    Attributes:
        state: how it is now, as in `Stats.state`.
        previous: how it was; the same as `state` where only the reason has changed.
        status: the HTTP status that changed it; None where there was none.
        failure: why there was no answer, e.g. ``"connect: ConnectError"``; None where there was one.
        advice: what it means, and what can mend it, as a sentence.
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


def _as_value(error: DeliveryError | None) -> object:
    # Errors are equal to themselves alone; what two of them say may be the same.
    return None if error is None else (type(error), error.args, error.outcome)


@attrs.frozen(kw_only=True)
class CloseReport:
    """How the client ended.

    Attributes:
        stats: the final counters; nothing is pending or in flight any more.
        undelivered: the buffered events that ended undelivered while the client closed, oldest first; earlier ones
            went to `on_outcome` only, as they may be any number.
        elapsed: seconds that the close took.
        error: why sending was halted, e.g. an `AuthenticationError`; None where it was not.
    """

    stats: Stats
    undelivered: tuple[UndeliveredEvent, ...] = attrs.field(repr=lambda events: f"<{len(events)} events>")
    elapsed: float
    error: DeliveryError | None = attrs.field(default=None, eq=_as_value)

    @property
    def clean(self) -> bool:
        """Whether every event that was still open at the close was delivered."""
        return not self.undelivered

    def save_undelivered(self, path: str | os.PathLike[str]) -> int:
        """Append the undelivered events to a file that ``retailrocket-async send`` takes; return how many they are.

        One line of JSON each. A new file is readable by its owner alone (mode 0600): events hold personal data. With
        no event nothing is written. It blocks as writing a file does: in a running service call it in a thread.

        Raises:
            OSError: the file cannot be written.
        """
        if self.undelivered:
            with open(path, "ab", opener=_private) as file:
                file.writelines(event.envelope + b"\n" for event in self.undelivered)
        return len(self.undelivered)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
