"""A flight: one batch or one direct send on its way to the API, from its first attempt to its outcome."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import attrs

from retailrocket_async._delivery.bisection import Bisection
from retailrocket_async._events.codec import join
from retailrocket_async._http.reply import Reply, Verdict
from retailrocket_async._outcome import Abandoned, Delivered, Dropped, Outcome, Rejected

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable, Collection, Sequence
    from contextvars import Context

    from retailrocket_async._delivery.circuit_breaker import Admission
    from retailrocket_async._delivery.rate_limiter import Permit
    from retailrocket_async._outcome import AbandonReason, Undelivered
    from retailrocket_async._queue.batch import Batch


class SendSlot:
    """The right to make one request: the circuit breaker's admission, one of the request slots, and a permit.

    Args:
        admission: the circuit breaker's admission.
        permit: the limiter's permit; None if the limiter's `acquire` returns None.
        leave: frees the request slot, and notifies the circuit breaker.
        report_error: called with an error that the permit raised. A user's limiter may raise anything, and such an
            error must not prevent a request from getting its outcome.
    """

    __slots__ = ("_leave", "_over", "_permit", "_report_error", "admission")

    def __init__(
        self,
        admission: Admission,
        permit: Permit | None,
        leave: Callable[[], None],
        report_error: Callable[[BaseException], None],
    ) -> None:
        self.admission = admission
        self._permit = permit
        self._leave = leave
        self._report_error = report_error
        self._over = False

    def sent(self) -> None:
        """Report to the permit that the request's body was written."""
        if self._permit is not None and not self._over:
            try:
                self._permit.sent()
            except BaseException as error:  # noqa: BLE001 - see `report_error`
                self._report_error(error)

    def end(self, *, answered: bool = False) -> None:
        """Free the slot and the permit, and report whether the server answered; later calls do nothing."""
        if not self._over:
            self._over = True
            self._leave()
            if self._permit is not None:
                try:
                    self._permit.done(answered=answered)
                except BaseException as error:  # noqa: BLE001 - see `report_error`
                    self._report_error(error)


class Flight:
    """Carries a batch or a direct send, and remembers the results of its attempts.

    A batch that the API refuses is divided (see `Bisection`). The flight then carries one part after the other, and its
    attributes describe the current part.

    Attributes:
        path: path of the flight's requests, relative to the base URL.
        body: the body of the flight's requests.
        names: names of the events in the body, as the API spells them.
        started_at: when the batch left the buffer, or when `send` was called (loop time).
        opened_in: the generations of all batches that were merged into the flight's batch; see `Batch.opened_in`.
        whole: the batch as it left the buffer; None for a direct send.
        batch: the current part of the batch; None for a direct send.
        landed: future that gets the outcome of a direct send; None for a batch.
        context: a copy of the context of the caller of `send`; None for a batch, or if the flight has its outcome.
        attempts: number of requests made so far with the events of this part.
        tries: number of attempts since the last division, plus failures of the limiter; the retry policy limits this
            number.
        excused: number of tries that the retry policy does not count.
        tried_at: start of the time that the retry policy counts (loop time).
        failed_at: when the last attempt with a retryable failure ended (loop time); minus infinity before the first.
        departed_at: when the last request was sent (loop time).
        turn: the right to make the next or the current request; None while the flight waits.
        on_wire: whether a request is under way.
        renewals: number of times that the flight was sent again at once because the key had changed.
        refusal: the outcome that the flight will get if nobody corrects the cause of the last refusal in time; None if
            the last attempt was not refused for key, shop, address, environment or proxy.
        outcome: the outcome of the last part, once all events of the flight have an outcome; None before.
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
        "failed_at",
        "landed",
        "names",
        "on_wire",
        "opened_in",
        "outcome",
        "path",
        "refusal",
        "renewals",
        "started_at",
        "tried_at",
        "tries",
        "turn",
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
        batch: Batch | None = None,
        landed: Future[Outcome] | None = None,
        context: Context | None = None,
        turn: SendSlot | None = None,
    ) -> None:
        self.path = path
        self.body = body
        self.names = names
        self.context = context
        self.started_at = self.tried_at = self.departed_at = started_at
        self.failed_at = -math.inf
        self.opened_in = opened_in
        self.whole = self.batch = batch
        self.landed = landed
        self.turn = turn
        self.attempts = self.tries = self.excused = self.renewals = 0
        self.on_wire = False
        self.outcome: Outcome | None = None
        self.refusal: Undelivered | None = None
        self._bisection: Bisection | None = None
        self._maybe_recorded = False
        self._reply: Reply | None = None

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
        self.on_wire = True
        # The reply to an earlier attempt says nothing about this attempt.
        self._reply = None

    def judge(self, reply: Reply, now: float) -> Outcome | None:
        """Store the reply to an attempt; return the outcome, or None if a retry may succeed."""
        self.on_wire = False
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

    # --- dividing -----------------------------------------------------------------------------------------------------

    def divide(self, outcome: Outcome, now: float) -> bool:
        """If the current part was refused and can be divided, carry its first half; return whether this was done."""
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
            # A 400 means that the API recorded none of the attempts.
            self._maybe_recorded = False
        self.batch.attempts, self.batch.maybe_recorded = self.attempts, self._maybe_recorded
        part = self._bisection.divide(self.batch, blames=blames)
        if part is None:
            return False
        self._carry(part, now)
        return True

    def fit(self, size: int, now: float) -> None:
        """If the batch has more than `size` bytes, carry only a first part that fits.

        The server may refuse larger bodies: `size` is the present limit of `BodyLimit`.
        """
        if self.batch is None or self.batch.size <= size or len(self.batch) == 1:
            return
        if self._bisection is None:
            self._bisection = Bisection()
        self.batch.attempts, self.batch.maybe_recorded = self.attempts, self._maybe_recorded
        self._carry(self._bisection.fitting(self.batch, size), now)

    def part_refused(self, outcome: Outcome) -> Outcome:
        """Return the outcome of a part that is not divided further.

        If a refused part has several events, `isolated` is False, because the bad event among them is not known.
        """
        if isinstance(outcome, Rejected) and outcome.status in _DIVIDED and self.count > 1:
            return attrs.evolve(outcome, isolated=False)
        return outcome

    def go_on(self, outcome: Outcome, now: float) -> bool:
        """Carry the next part after the current part got `outcome`; return False if no part is left."""
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
        # Replies to the previous part say nothing about this part.
        self.on_wire = False
        self._reply = self.refusal = None
        self._pack()

    def _pack(self) -> None:
        assert self.batch is not None  # noqa: S101 - a direct send is never packed again
        self.body = join(self.batch.envelopes)
        self.names = [receipt.event_name for receipt in self.batch.receipts]


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
