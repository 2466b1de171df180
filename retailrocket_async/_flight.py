"""One batch's, or one direct send's, way from its first attempt to its outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retailrocket_async._outcome import Abandoned, Delivered, Outcome, Rejected
from retailrocket_async._reply import Reply, Verdict

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable

    from retailrocket_async._buffer import Batch
    from retailrocket_async._limiter import Permit
    from retailrocket_async._outcome import AbandonReason


class Turn:
    """The right to make one request: a place on the wire, and the limiter's permit.

    Args:
        permit: what the limiter granted.
        leave: gives the place on the wire back.
        complain: told what the permit raises: a limiter may be anybody's, and must not cost a request its outcome.
    """

    __slots__ = ("_complain", "_leave", "_over", "_permit")

    def __init__(self, permit: Permit | None, leave: Callable[[], None], complain: Callable[[Exception], None]) -> None:
        self._permit = permit
        self._leave = leave
        self._complain = complain
        self._over = False

    def sent(self) -> None:
        """Tell that the request's body was written."""
        if self._permit is not None and not self._over:
            try:
                self._permit.sent()
            except Exception as error:  # noqa: BLE001 - see `complain`
                self._complain(error)

    def end(self, *, answered: bool = False) -> None:
        """Give everything back, and tell the limiter whether the server answered; only the first call counts."""
        if not self._over:
            self._over = True
            self._leave()
            if self._permit is not None:
                try:
                    self._permit.done(answered=answered)
                except Exception as error:  # noqa: BLE001 - see `complain`
                    self._complain(error)


class Flight:
    """A batch, or a direct send, on its way; remembers what its attempts have brought.

    Attributes:
        path: where it goes, relative to the base URL.
        body: the request's body.
        count: events in it.
        started_at: when it left the buffer, or was asked for (loop time).
        opened_in: for each batch it was made of, the flushes that had begun when that was opened.
        batch: the batch it carries; None for a direct send.
        landed: set to the outcome; for a direct send only.
        attempts: requests made so far.
        turn: the right to the next request, or to the one on its way; None while it waits.
        on_wire: whether a request is on its way right now.
        outcome: None until it has one.
    """

    __slots__ = (
        "_maybe_recorded",
        "_reply",
        "attempts",
        "batch",
        "body",
        "count",
        "landed",
        "on_wire",
        "opened_in",
        "outcome",
        "path",
        "started_at",
        "turn",
    )

    def __init__(  # noqa: PLR0913 - a record of what it carries
        self,
        path: str,
        body: bytes,
        count: int,
        *,
        started_at: float,
        opened_in: list[int],
        batch: Batch | None = None,
        landed: Future[Outcome] | None = None,
        turn: Turn | None = None,
    ) -> None:
        self.path = path
        self.body = body
        self.count = count
        self.started_at = started_at
        self.opened_in = opened_in
        self.batch = batch
        self.landed = landed
        self.turn = turn
        self.attempts = 0
        self.on_wire = False
        self.outcome: Outcome | None = None
        self._maybe_recorded = False
        self._reply: Reply | None = None

    def depart(self) -> None:
        """Note that a request goes out."""
        self.attempts += 1
        self.on_wire = True
        # What an earlier attempt brought is not what this one did.
        self._reply = None

    def judge(self, reply: Reply, now: float) -> Outcome | None:
        """Note what an attempt brought; return the outcome where that settles it, None where a retry may mend it."""
        self.on_wire = False
        self._reply = reply
        elapsed = now - self.started_at
        verdict = reply.verdict
        if verdict is Verdict.ACCEPTED and reply.status is not None:
            return Delivered(
                status=reply.status, attempts=self.attempts, elapsed=elapsed, maybe_duplicate=self._maybe_recorded
            )
        self._maybe_recorded = self._maybe_recorded or reply.maybe_recorded
        if verdict is Verdict.TRANSIENT:
            return None
        # A malformed request was malformed in every attempt; any other refusal speaks for its own attempt only.
        if (
            verdict is Verdict.REFUSED
            and reply.status is not None
            and (reply.status == 400 or not self._maybe_recorded)
        ):
            return Rejected(status=reply.status, attempts=self.attempts, elapsed=elapsed)
        return self.give_up("not_retryable", now)

    def give_up(self, reason: AbandonReason, now: float) -> Abandoned:
        """Return the outcome of a flight that ends here."""
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
