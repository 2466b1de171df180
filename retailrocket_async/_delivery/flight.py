"""The state of one batch, or one direct send, from its first attempt to its outcome, whole or in parts."""

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
    """The right to make one request: a place on the wire, and the limiter's permit.

    Args:
        admission: the circuit breaker's admission.
        permit: the limiter's permit; None if the limiter grants none.
        leave: returns the place on the wire, and notifies the breaker.
        report_error: called with an error that the permit raised: a user's limiter may raise anything, which must not
            cost a request its outcome.
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
        """Note that the request's body was written."""
        if self._permit is not None and not self._over:
            try:
                self._permit.sent()
            except BaseException as error:  # noqa: BLE001 - see `report_error`
                self._report_error(error)

    def end(self, *, answered: bool = False) -> None:
        """Return place and permit, and report whether the server answered; only the first call counts."""
        if not self._over:
            self._over = True
            self._leave()
            if self._permit is not None:
                try:
                    self._permit.done(answered=answered)
                except BaseException as error:  # noqa: BLE001 - see `report_error`
                    self._report_error(error)


class Flight:
    """A batch, or a direct send, in flight; remembers the results of its attempts.

    A batch that the API refuses is divided (see `Bisection`). The flight then carries one part after the other, and its
    attributes describe the current part.

    Attributes:
        path: path of its requests, relative to the base URL.
        body: the request's body.
        names: names of the events in it, as the API spells them.
        started_at: when it left the buffer, or `send` was called (loop time).
        opened_in: for each batch that it was made of, the number of flushes that had begun when that batch was opened.
        whole: the batch as it left the buffer; None for a direct send.
        batch: the current part; None for a direct send.
        landed: future that gets the outcome; for a direct send only.
        context: a copy of the context of a direct send's caller, until it has its outcome; None for a batch.
        attempts: requests made so far with the events of this part.
        tries: attempts since the last division, and failures of the limiter; the retry policy counts these.
        excused: tries that the policy does not count.
        tried_at: when the tries began (loop time).
        failed_at: when the last attempt with a retryable failure ended (loop time); minus infinity before the first.
        departed_at: when the last request went out (loop time).
        turn: the send slot of the next request, or of the current one; None while the flight waits.
        on_wire: whether a request is under way.
        renewals: how often it was sent again because the key had changed.
        refusal: its outcome unless the cause of the refusal is corrected; None if it was not refused.
        outcome: None until all of its events have an outcome; then that of its last part.
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

    def __init__(  # noqa: PLR0913 - a record of what it carries
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
        """Whether it was divided, so that it carries a part only."""
        return self._bisection is not None

    def depart(self, now: float) -> None:
        """Note that a request is about to go out."""
        self.attempts += 1
        self.tries += 1
        self.departed_at = now
        self.on_wire = True
        # The reply to an earlier attempt says nothing about this one.
        self._reply = None

    def judge(self, reply: Reply, now: float) -> Outcome | None:
        """Note the reply to an attempt; return the outcome, or None if a retry may succeed."""
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
        # A malformed request was malformed in every attempt. Any other refusal holds for its own attempt only.
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
            # A request cut off in mid-flight may have arrived.
            maybe_recorded=self._maybe_recorded or self.on_wire,
            status=None if reply is None else reply.status,
            failure=failure,
            attempts=self.attempts,
            elapsed=now - self.started_at,
        )

    def expired(self, now: float) -> Undelivered:
        """Return the outcome of events that are too old to be sent, or to be sent again."""
        return self.give_up("expired", now) if self.attempts else Dropped(reason="expired")

    @property
    def maybe_recorded(self) -> bool:
        """Whether an attempt so far may have been recorded."""
        return self._maybe_recorded

    # --- dividing -----------------------------------------------------------------------------------------------------

    def divide(self, outcome: Outcome, now: float) -> bool:
        """Replace a refused batch by its first half, if it is to be divided; return whether it is."""
        refused = self._reply is not None and self._reply.verdict is Verdict.REFUSED
        if self.batch is None or not refused or outcome.status not in _DIVIDED:
            return False
        if isinstance(outcome, Abandoned) and outcome.reason != "not_retryable":
            # Given up for another reason: `is_throttled` may take a 400 or 413 for a 429.
            return False
        if self._bisection is None:
            if len(self.batch) == 1:
                return False
            self._bisection = Bisection()
        blames = outcome.status == 400
        if blames:
            # No attempt recorded any of its events.
            self._maybe_recorded = False
        self.batch.attempts, self.batch.maybe_recorded = self.attempts, self._maybe_recorded
        part = self._bisection.divide(self.batch, blames=blames)
        if part is None:
            return False
        self._carry(part, now)
        return True

    def fit(self, size: int, now: float) -> None:
        """Carry a first part of at most `size` bytes if the batch is larger: the server has refused such bodies."""
        if self.batch is None or self.batch.size <= size or len(self.batch) == 1:
            return
        if self._bisection is None:
            self._bisection = Bisection()
        self.batch.attempts, self.batch.maybe_recorded = self.attempts, self._maybe_recorded
        self._carry(self._bisection.fitting(self.batch, size), now)

    def part_refused(self, outcome: Outcome) -> Outcome:
        """Return the outcome of a part that is not divided further; if it has several events, none is isolated."""
        if isinstance(outcome, Rejected) and outcome.status in _DIVIDED and self.count > 1:
            return attrs.evolve(outcome, isolated=False)
        return outcome

    def go_on(self, outcome: Outcome, now: float) -> bool:
        """Carry the next part, now that the current one has its outcome; return whether there is one."""
        if self._bisection is None or self.batch is None:
            return False
        part = self._bisection.after(accepted=len(self.batch) if isinstance(outcome, Delivered) else None)
        if part is not None:
            self._carry(part, now)
        return part is not None

    def waiting_parts(self, outcome: Outcome) -> list[tuple[Batch, Outcome]]:
        """Return the parts that were not sent, each with its outcome, and forget them; `outcome` ends the flight."""
        parts = [] if self._bisection is None else self._bisection.clear()
        return [(part, _as_for(part, outcome)) for part in reversed(parts)]

    def take_out(self, positions: Collection[int]) -> Batch:
        """Remove and return the events at `positions`, which have their outcome; the others stay in flight."""
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
        # Replies to the part before it say nothing about this one.
        self.on_wire = False
        self._reply = self.refusal = None
        self._pack()

    def _pack(self) -> None:
        assert self.batch is not None  # noqa: S101 - as above
        self.body = join(self.batch.envelopes)
        self.names = [receipt.event_name for receipt in self.batch.receipts]


def _as_for(part: Batch, outcome: Outcome) -> Outcome:
    """Return the outcome of a part that was not sent when its flight ended with `outcome`."""
    match outcome:
        case Abandoned(reason="closed" | "expired" as reason) if not part.attempts:
            return Dropped(reason=reason)
        case Abandoned():
            known = part.maybe_recorded
            # A halt concerns all parts; any other failure concerns the other part alone.
            failure = outcome.failure if outcome.reason == "halted" else None
            return attrs.evolve(outcome, attempts=part.attempts, maybe_recorded=known, status=None, failure=failure)
        case Rejected():
            return attrs.evolve(outcome, attempts=part.attempts)
        case _:
            return outcome


_DIVIDED: Final = frozenset({400, 413})
"""Statuses by which the API refuses a batch for a single event or for its size."""
