"""A flight: one batch or one direct send on its way to the API, from its first attempt to its outcome.

::

    HELD --> QUEUED --> ON_WIRE --> QUEUED      an attempt was made; the flight continues, whole or divided
               |  ^
               v  |
             RETRYING                           the flight waits before its next attempt

Every state may be followed by SETTLED, which is the last state. A batch begins as QUEUED. A direct send begins as HELD,
because earlier events of its visitors come first.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, Final

import attrs

from retailrocket_async._delivery.bisection import Bisection
from retailrocket_async._events.codec import BATCH_PATH, bare, join, label_of
from retailrocket_async._events.models import UNBATCHABLE
from retailrocket_async._http.reply import Reply, Verdict
from retailrocket_async._outcome import Abandoned, Delivered, Dropped, Outcome, Rejected
from retailrocket_async._queue.buffer import EventBuffer

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Collection, Sequence
    from contextvars import Context

    from retailrocket_async._delivery.gate import SendSlot
    from retailrocket_async._outcome import AbandonReason, Undelivered
    from retailrocket_async._queue.batch import Batch
    from retailrocket_async._queue.run import Hold
    from retailrocket_async._queue.taken_batch import TakenBatch


class FlightState(enum.Enum):
    """What a flight waits for; the table `_NEXT` has the transitions, and the module's docstring draws them."""

    HELD = "held"
    """The flight is a direct send, and waits until the earlier events of its visitors have outcomes."""
    QUEUED = "queued"
    """The flight waits for the right to make its next request."""
    ON_WIRE = "on the wire"
    """A request of the flight is under way."""
    RETRYING = "waiting for its retry"
    """An attempt has failed, and the flight waits before the next attempt."""
    SETTLED = "settled"
    """All events of the flight have their outcome."""


_NEXT: Final = {
    FlightState.HELD: {FlightState.QUEUED, FlightState.SETTLED},
    FlightState.QUEUED: {FlightState.ON_WIRE, FlightState.RETRYING, FlightState.SETTLED},
    FlightState.ON_WIRE: {FlightState.QUEUED, FlightState.SETTLED},
    FlightState.RETRYING: {FlightState.QUEUED, FlightState.SETTLED},
    FlightState.SETTLED: set[FlightState](),
}
"""For each state, the states that may follow."""


class Flight:
    """Carries a batch or a direct send, and remembers the results of its attempts.

    A batch that the API refuses is divided (see `Bisection`). The flight then carries one part after the other, and its
    attributes describe the current part.

    Attributes:
        path: path of the flight's requests, relative to the base URL.
        body: the body of the flight's requests.
        names: names of the events in the body, as the API spells them.
        started_at: when the batch left the buffer, or when `send` was called (loop time).
        opened_in: for the calls of `flush` that wait for the flight: see `Batch.opened_in`.
        whole: the batch as it was taken from the buffer; None for a direct send.
        batch: the current part of the batch; None for a direct send.
        landed: future that gets the outcome of a direct send; None for a batch.
        hold: keeps the order of a direct send's visitors; None for a batch.
        context: a copy of the context of the caller of `send`; None for a batch, or if the flight has its outcome.
        attempts: number of requests made so far with the events of this part.
        tries: number of attempts since the batch was last divided, plus failures of the limiter. The retry policy
            limits this number.
        excused: number of tries that the retry policy does not count.
        tried_at: start of the time that the retry policy counts (loop time).
        failed_at: when the last retryable failure happened (loop time); minus infinity before the first failure.
        departed_at: when the last request was sent (loop time).
        slot: the right to make the next or the current request; None while the flight waits.
        state: what the flight waits for.
        failed: the reply to a failed attempt after which the wait for the retry has not begun yet; None otherwise.
        renewals: number of times that the flight was sent again at once because the key had changed.
        refusal: the outcome that the flight will get if nobody corrects the cause of the last refusal in time; None if
            the last attempt was not refused for key, shop, address, environment or proxy.
        outcome: None until all events of the flight have an outcome; then the outcome of the last part.
    """

    __slots__ = (
        "_bisection",
        "_maybe_recorded",
        "_reply",
        "attempts",
        "batch",
        "body",
        "context",
        "departed_at",
        "excused",
        "failed",
        "failed_at",
        "hold",
        "landed",
        "names",
        "opened_in",
        "outcome",
        "path",
        "refusal",
        "renewals",
        "slot",
        "started_at",
        "state",
        "tried_at",
        "tries",
        "whole",
    )

    def __init__(  # noqa: PLR0913 - a record of its batch or direct send
        self,
        path: str,
        body: bytes,
        names: Sequence[str],
        *,
        started_at: float,
        opened_in: list[int],
        batch: TakenBatch | None = None,
        landed: Future[Outcome] | None = None,
        context: Context | None = None,
        slot: SendSlot | None = None,
    ) -> None:
        self.path = path
        self.body = body
        self.names = names
        self.context = context
        self.started_at = self.tried_at = self.departed_at = started_at
        self.failed_at = -math.inf
        self.opened_in = opened_in
        self.whole = batch
        self.batch: Batch | None = batch
        self.landed = landed
        self.hold: Hold | None = None
        self.slot = slot
        self.state = FlightState.QUEUED if landed is None else FlightState.HELD
        self.attempts = self.tries = self.excused = self.renewals = 0
        self.failed: Reply | None = None
        self.outcome: Outcome | None = None
        self.refusal: Undelivered | None = None
        self._bisection: Bisection | None = None
        self._maybe_recorded = False
        self._reply: Reply | None = None

    @classmethod
    def of_batch(cls, batch: TakenBatch, slot: SendSlot, now: float) -> Flight:
        """Return the flight of a batch that was just taken from the buffer.

        Args:
            batch: the batch.
            slot: the right to make the first request.
            now: the loop's time in seconds.
        """
        names = batch.names
        return cls(*_request_of(batch, names), names, started_at=now, opened_in=batch.opened_in, batch=batch, slot=slot)

    def become(self, state: FlightState) -> None:
        """Change the state.

        Raises:
            RuntimeError: the table of transitions does not allow this state to follow.
        """
        if state is self.state:
            return
        if state not in _NEXT[self.state]:
            raise RuntimeError(f"a flight that is {self.state.value} cannot become {state.value}")
        self.state = state

    @property
    def on_wire(self) -> bool:
        """Whether a request of the flight is under way."""
        return self.state is FlightState.ON_WIRE

    @property
    def count(self) -> int:
        """Number of events in the current part."""
        return len(self.names)

    @property
    def divided(self) -> bool:
        """Whether the batch was divided, so that the flight carries only a part of the batch."""
        return self._bisection is not None

    def depart(self, now: float) -> None:
        """Note that a request is about to be sent."""
        self.attempts += 1
        self.tries += 1
        self.departed_at = now
        self.become(FlightState.ON_WIRE)
        # The reply to an earlier attempt says nothing about this attempt.
        self._reply = None

    def judge(self, reply: Reply, now: float) -> Outcome | None:
        """Store the reply to an attempt; return the outcome, or None if a retry may succeed."""
        self.become(FlightState.QUEUED)
        self._reply = reply
        self.refusal = None
        elapsed = now - self.started_at
        verdict = reply.verdict
        if verdict is Verdict.ACCEPTED and reply.status is not None:
            return Delivered(
                status=reply.status, attempts=self.attempts, elapsed=elapsed, maybe_duplicate=self._maybe_recorded
            )
        self._maybe_recorded = self._maybe_recorded or reply.maybe_recorded
        if verdict in (Verdict.TRANSIENT, Verdict.THROTTLED):
            return None
        # A 400 means that the request was malformed in every attempt, so no attempt was recorded. Any other refusal
        # says nothing about earlier attempts, which may have been recorded.
        refused = verdict in (Verdict.REFUSED, Verdict.BLOCKED) and (reply.status == 400 or not self._maybe_recorded)
        if verdict is Verdict.BLOCKED and reply.status is None:
            outcome: Undelivered = self.give_up("halted", now)
        elif refused and reply.status is not None:
            outcome = Rejected(status=reply.status, attempts=self.attempts, elapsed=elapsed)
        else:
            outcome = self.give_up("not_retryable", now)
        self.refusal = outcome if verdict is Verdict.BLOCKED else None
        return outcome

    def give_up(self, reason: AbandonReason, now: float) -> Abandoned:
        """Return the outcome of a flight that is given up now for `reason`."""
        reply = self._reply
        failure = f"{reply.failure}: {reply.detail}" if reply is not None and reply.failure is not None else None
        if self.on_wire:
            failure = "unanswered"
        return Abandoned(
            reason=reason,
            # A request that was cancelled before its answer may have reached the server.
            maybe_recorded=self._maybe_recorded or self.on_wire,
            status=None if reply is None else reply.status,
            failure=failure,
            attempts=self.attempts,
            elapsed=now - self.started_at,
        )

    def expired(self, now: float) -> Undelivered:
        """Return the outcome of events that have become too old: `Dropped` if never sent, otherwise `Abandoned`."""
        return self.give_up("expired", now) if self.attempts else Dropped(reason="expired")

    @property
    def maybe_recorded(self) -> bool:
        """Whether the API may have recorded one of the attempts."""
        return self._maybe_recorded

    def visitors(self) -> set[int | None]:
        """Return the keys of the visitors who still have events without an outcome in this batch."""
        waiting = [] if self._bisection is None else self._bisection.pending
        parts = waiting if self.batch is None else [self.batch, *waiting]
        return {EventBuffer.key_of(label_of(envelope)[1]) for part in parts for envelope in part.envelopes}

    # --- dividing -----------------------------------------------------------------------------------------------------

    def divide(self, outcome: Outcome, now: float) -> bool:
        """If the current part was refused and can be divided, make its first half the current part.

        Returns:
            Whether the part was divided.
        """
        refused = self._reply is not None and self._reply.verdict is Verdict.REFUSED
        if self.batch is None or not refused or outcome.status not in _DIVIDED:
            return False
        if isinstance(outcome, Abandoned) and outcome.reason != "not_retryable":
            # The part was given up for another reason, for example after too many retries: the user's `is_throttled`
            # may treat a 400 or 413 as a 429.
            return False
        if self._bisection is None:
            if len(self.batch) == 1:
                return False
            self._bisection = Bisection()
        blames = outcome.status == 400
        if blames:
            # A 400 means that the API recorded no event of this part, neither in this attempt nor in an earlier one.
            self._maybe_recorded = False
        self.batch.attempts, self.batch.maybe_recorded = self.attempts, self._maybe_recorded
        part = self._bisection.divide(self.batch, blames=blames)
        if part is None:
            return False
        self._carry(part, now)
        return True

    def fit(self, size: int, now: float) -> None:
        """If the batch has more than `size` bytes, cut off a first part that fits; the flight then sends this part.

        The server may refuse larger bodies: `size` is the present limit of `BodyLimit`.
        """
        if self.batch is None or self.batch.size <= size or len(self.batch) == 1:
            return
        if self._bisection is None:
            self._bisection = Bisection()
        self.batch.attempts, self.batch.maybe_recorded = self.attempts, self._maybe_recorded
        self._carry(self._bisection.fitting(self.batch, size), now)

    def move_to_batch(self) -> bool:
        """If the flight sends a single event to the event's own endpoint, send a batch of one event from now on.

        Returns:
            Whether this was done; False also if no batch may hold the event.
        """
        if self.batch is None or not self.batch.alone or self.names[0] in UNBATCHABLE:
            return False
        self.batch.alone = False
        self._pack()
        return True

    def part_refused(self, outcome: Outcome) -> Outcome:
        """Return the outcome of a part that is not divided further.

        If a refused part has several events, `isolated` is False, because the bad event among them is not known.
        """
        if isinstance(outcome, Rejected) and outcome.status in _DIVIDED and self.count > 1:
            return attrs.evolve(outcome, isolated=False)
        return outcome

    def go_on(self, outcome: Outcome, now: float) -> bool:
        """Make the next part the current part, after the current part got `outcome`; return False if none is left."""
        if self._bisection is None or self.batch is None:
            return False
        part = self._bisection.after(accepted=len(self.batch) if isinstance(outcome, Delivered) else None)
        if part is not None:
            self._carry(part, now)
        return part is not None

    def waiting_parts(self, outcome: Outcome) -> list[tuple[Batch, Outcome]]:
        """Remove and return the parts that are still to be sent, each with its outcome.

        Args:
            outcome: the outcome with which the flight ends.
        """
        parts = [] if self._bisection is None else self._bisection.clear()
        return [(part, _as_for(part, outcome)) for part in reversed(parts)]

    def take_out(self, positions: Collection[int]) -> Batch:
        """Remove and return the events at `positions`, which have an outcome; the other events stay in flight."""
        assert self.batch is not None  # noqa: S101 - a direct send has one outcome
        taken, self.batch = self.batch.parted(positions)
        if self.batch:
            self._pack()
        return taken

    def _carry(self, part: Batch, now: float) -> None:
        self.batch = part
        self.attempts, self._maybe_recorded = part.attempts, part.maybe_recorded
        self.tries = self.excused = 0
        self.tried_at = now
        self.become(FlightState.QUEUED)
        # Replies to the previous part say nothing about this part.
        self._reply = self.refusal = self.failed = None
        self._pack()

    def _pack(self) -> None:
        assert self.batch is not None  # noqa: S101 - a direct send is never packed again
        self.names = self.batch.names
        self.path, self.body = _request_of(self.batch, self.names)


def _request_of(batch: Batch, names: Sequence[str]) -> tuple[str, bytes]:
    """Return the path and the body of a request with the events of a batch."""
    if batch.alone:
        return names[0], bare(batch.envelopes[0])
    return BATCH_PATH, join(batch.envelopes)


def _as_for(part: Batch, outcome: Outcome) -> Outcome:
    """Return the outcome of a part that was not sent when its flight ended with `outcome`."""
    match outcome:
        case Abandoned(reason="closed" | "expired" as reason) if not part.attempts:
            return Dropped(reason=reason)
        case Abandoned():
            known = part.maybe_recorded
            # A halt concerns all parts of the batch; any other failure concerns only the part that was sent.
            failure = outcome.failure if outcome.reason == "halted" else None
            return attrs.evolve(outcome, attempts=part.attempts, maybe_recorded=known, status=None, failure=failure)
        case Rejected():
            return attrs.evolve(outcome, attempts=part.attempts)
        case _:
            return outcome


_DIVIDED: Final = frozenset({400, 413})
"""Statuses by which the API refuses a batch for a single event or for its size."""
