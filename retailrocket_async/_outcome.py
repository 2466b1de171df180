"""What became of an event: exactly one `Outcome` each, and the `Receipt` that tells it.

::

    Outcome = Delivered | Rejected | Abandoned | Dropped | Kept

An undelivered event is an expected thing, so it is a value and not an exception: `await receipt` never raises
for it. `await receipt.delivered()` is for callers who prefer an exception.
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import attrs

from retailrocket_async._errors import (
    AbandonedError,
    AccessDeniedError,
    AuthenticationError,
    BadRequestError,
    DeliveryError,
    DroppedError,
    HaltedError,
    KeptError,
    NoAnswerError,
    NotFoundError,
    RejectedError,
    ServerError,
    ThrottledError,
)
from retailrocket_async._uncopyable import Uncopyable

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable


@attrs.frozen(kw_only=True)
class Delivered:
    """The API accepted the event.

    Attributes:
        status: the HTTP status, 200-299.
        attempts: requests that carried the event, 1 or more; direct sends and batches count alike.
        elapsed: seconds from the first attempt to the answer.
        maybe_duplicate: True where an earlier attempt got no clear answer and may have been recorded as well.
    """

    status: int
    attempts: int = 1
    elapsed: float = 0.0
    maybe_duplicate: bool = False

    @property
    def maybe_recorded(self) -> bool:
        """Always True: the API said so."""
        return True


@attrs.frozen(kw_only=True)
class Rejected:
    """The API refused the request that carried the event; the same request would be refused again.

    Attributes:
        status: the HTTP status, e.g. 400, 401, 403, 404, or a redirect (which is never followed).
        attempts: requests that carried the event; 0 where it was never sent, as others before it were refused for the
            key, the shop or the address, which are its own, too.
        elapsed: seconds from the first attempt to the answer.
        isolated: whether the event was refused on its own account: alone in its request, or for the key, the shop or
            the address. False where its whole batch seemed bad, and the search for the bad ones was given up.
    """

    status: int
    attempts: int = 1
    elapsed: float = 0.0
    isolated: bool = True
    maybe_recorded: ClassVar[bool] = False


AbandonReason: TypeAlias = Literal[
    "retries_exhausted",
    "not_retryable",
    "at_most_once",
    "halted",
    "expired",
    "closed",
    "cancelled",
    "internal_error",
    "untold",
    "lost",
    "damaged",
]


@attrs.frozen(kw_only=True)
class Abandoned:
    """The delivery of the event was given up, after it was sent once or more, or as nothing could be sent.

    Attributes:
        reason: ``"retries_exhausted"`` (attempts or elapsed time used up), ``"not_retryable"`` (an answer that no
            retry can mend, yet no clear refusal), ``"at_most_once"`` (it may have been recorded, and
            `RetryPolicy.at_most_once` forbids to send it again), ``"halted"`` (a variable of the environment cannot be
            used, or a proxy refuses to connect to the API: `failure` says which and what to correct; nobody did within
            `RetryPolicy.max_halt`), ``"expired"`` (older than `Buffer.max_age` before its
            retry), ``"closed"`` (`aclose` ran out of time), ``"cancelled"`` (a direct send was cancelled),
            ``"internal_error"`` (a defect: please report it); with a spool also ``"untold"`` (it was settled by another
            process, and this one was stopped for longer than the spool tells of that), ``"lost"`` (somebody removed
            or replaced the spool's directory while it was in use) or ``"damaged"`` (its bytes on disk have changed).
        maybe_recorded: True where at least one attempt may have been recorded by the API; False where it is certain
            that none was.
        status: the HTTP status of the last attempt; None where no answer arrived.
        failure: what went wrong in the last attempt where no answer arrived, e.g. ``"connect: ConnectError"``.
        attempts: requests that carried the event; 0 if it was never sent.
        elapsed: seconds from the first attempt to the giving up.
    """

    reason: AbandonReason
    maybe_recorded: bool
    status: int | None = None
    failure: str | None = None
    attempts: int = 1
    elapsed: float = 0.0


DropReason: TypeAlias = Literal["closed", "overflow", "expired", "before_send", "purged"]


@attrs.frozen(kw_only=True)
class Dropped:
    """The event was tracked and never sent.

    Attributes:
        reason: ``"closed"`` (`aclose` ran out of time), ``"overflow"`` (the buffer was full, see `Buffer.overflow`),
            ``"expired"`` (older than `Buffer.max_age`), ``"before_send"`` (your hook returned None) or ``"purged"``
            (somebody removed it from the spool).
    """

    reason: DropReason
    status: ClassVar[None] = None
    attempts: ClassVar[int] = 0
    elapsed: ClassVar[float] = 0.0
    maybe_recorded: ClassVar[bool] = False


@attrs.frozen(kw_only=True)
class Kept:
    """The client closed before the event had another outcome; it is in the spool, and whoever opens that sends it.

    Attributes:
        maybe_recorded: True where a request that carried it may have been recorded by the API; it is sent again.
        attempts: requests that carried the event so far, by this process.
    """

    maybe_recorded: bool = False
    attempts: int = 0
    status: ClassVar[None] = None
    elapsed: ClassVar[float] = 0.0


Outcome: TypeAlias = Delivered | Rejected | Abandoned | Dropped | Kept
Undelivered: TypeAlias = Rejected | Abandoned | Dropped

_REJECTIONS: dict[int, tuple[type[RejectedError], str]] = {
    400: (BadRequestError, "the request is malformed"),
    401: (AuthenticationError, "authentication failed: check the api_key, and that it belongs to this partner_id"),
    403: (AccessDeniedError, "access denied: ask the account manager to open the tracking API for this shop"),
    404: (NotFoundError, "no such resource: check the base_url"),
    407: (
        RejectedError,
        "the proxy on the way asks for credentials: write them into its URL, as http://user:password@host:port",
    ),
}
_REFUSED = "the API refused the request"
_REDIRECTED = "the address redirects, and the key is never sent on: check the base_url"


def meaning_of(status: int) -> str:
    """Return what a refusal by `status` means, and what can mend it."""
    default = _REDIRECTED if 300 <= status <= 399 else _REFUSED
    return _REJECTIONS.get(status, (RejectedError, default))[1]


def error_for(outcome: Undelivered | Kept) -> DeliveryError:
    """Return the typed error that says the same as `outcome`, ready to be raised."""
    match outcome:
        case Rejected(status=status):
            kind = _REJECTIONS.get(status, (RejectedError, ""))[0]
            return kind(f"{meaning_of(status)} (HTTP {status})", outcome)
        case Dropped(reason=reason):
            return DroppedError(f"the event was never sent: {reason}", outcome)
        case Kept():
            return KeptError("the client closed first: the event is in the spool, whose next user sends it", outcome)
        case Abandoned():
            known = "may have been recorded" if outcome.maybe_recorded else "was certainly not recorded"
            told = f"HTTP {outcome.status}" if outcome.status is not None else (outcome.failure or "no attempt")
            message = f"given up after {outcome.attempts} attempt(s), {outcome.reason}: {told}; the event {known}"
            return _abandoned_error(outcome)(message, outcome)


def _abandoned_error(outcome: Abandoned) -> type[AbandonedError]:
    status = outcome.status
    if outcome.reason == "halted":
        return HaltedError
    if status is None:
        return NoAnswerError
    if status == 429:
        return ThrottledError
    return ServerError if status >= 500 else AbandonedError


class Receipt(Uncopyable):
    """The awaitable stub that `track` hands out for one event.

    ``await receipt`` gives the event's `Outcome` and never raises for a failed delivery. Any number of tasks may
    await it; cancelling one of them cancels neither the delivery nor the others. A receipt that nobody awaits
    costs nothing and never warns.

    Attributes:
        event_name: the event's name as the API spells it, e.g. ``"view"`` (str).
    """

    _instead = "await it where it is, and hand on the outcome"

    # `mark` is an observer's, and is not there without one.
    __slots__ = ("_outcome", "_waiters", "event_name", "mark")

    mark: object

    def __init__(self, event_name: str) -> None:
        self.event_name = event_name
        self._outcome: Outcome | None = None
        # A dict for its order: thousands may await one receipt, and be cancelled together.
        self._waiters: dict[asyncio.Future[None], None] | None = None

    @property
    def outcome(self) -> Outcome | None:
        """The outcome, or None while there is none yet; never blocks."""
        return self._outcome

    def done(self) -> bool:
        """Whether the event has its outcome; never blocks."""
        return self._outcome is not None

    def __await__(self) -> Generator[asyncio.Future[None], None, Outcome]:
        if self._outcome is None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if self._waiters is None:
                self._waiters = {}
            self._waiters[waiter] = None
            try:
                # Looked at again: in another thread's loop the outcome may have come meanwhile.
                if self._outcome is None:
                    yield from waiter
            finally:
                # Cancelled: whoever polls with a time-out would leave a waiter behind every time.
                if self._waiters is not None:
                    self._waiters.pop(waiter, None)
        assert self._outcome is not None  # noqa: S101 - settle() sets it before it wakes anyone
        return self._outcome

    async def delivered(self) -> Delivered:
        """Wait for the outcome and return it if the event was delivered.

        Raises:
            DeliveryError: the subclass that matches the outcome otherwise.
        """
        outcome = await self
        if isinstance(outcome, Delivered):
            return outcome
        raise error_for(outcome)

    def __repr__(self) -> str:
        return f"<Receipt {self.event_name} {self._outcome or 'pending'}>"


def settle(receipts: Iterable[Receipt], outcome: Outcome) -> None:
    """Give every receipt its outcome and wake who awaits it; a receipt that has one keeps it."""
    here: asyncio.AbstractEventLoop | None = None
    for receipt in receipts:
        if receipt._outcome is not None:
            continue
        receipt._outcome = outcome
        if receipt._waiters is not None:
            waiters, receipt._waiters = receipt._waiters, None
            here = here or _running_loop()
            # A copy, as another thread may be adding one, which will find the outcome itself.
            for waiter in list(waiters):
                _wake(waiter, here)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _wake(waiter: asyncio.Future[None], here: asyncio.AbstractEventLoop | None) -> None:
    if (loop := waiter.get_loop()) is here:
        _set_done(waiter)
        return
    # Another thread's loop, which may be closed by now.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(_set_done, waiter)


def _set_done(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
