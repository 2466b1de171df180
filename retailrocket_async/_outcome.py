"""Defines the outcomes of an event; each event gets exactly one outcome.

::

    Outcome = Delivered | Rejected | Abandoned | Dropped | Kept

A failed delivery is normal, so an outcome is a value and not an exception: `await receipt` returns the outcome and does
not raise. `await receipt.delivered()` raises an exception if the event was not delivered.
"""

from typing import ClassVar, Final, Literal, NamedTuple, TypeAlias

import attrs


@attrs.frozen(kw_only=True)
class Delivered:
    """The API accepted the event.

    Attributes:
        status: the HTTP status, 200-299.
        attempts: number of requests that contained the event, 1 or more; a request is a batch or a direct send.
        elapsed: seconds from the first attempt to the answer.
        maybe_duplicate: True if the event may be recorded twice, because an earlier attempt got no clear answer.
    """

    status: int
    attempts: int = 1
    elapsed: float = 0.0
    maybe_duplicate: bool = False

    @property
    def maybe_recorded(self) -> bool:
        """Always True: the API has confirmed that it recorded the event."""
        return True


RejectionScope: TypeAlias = Literal["event", "access"]


class Refusal(NamedTuple):
    """The meaning of an HTTP status with which the API, or a proxy, refuses a request.

    Attributes:
        scope: what is refused, this event or all access; see `Rejected.scope`.
        advice: what the status means and what to correct; see `Rejected.advice`.
    """

    scope: RejectionScope
    advice: str


_REFUSALS: Final[dict[int, Refusal]] = {
    400: Refusal("event", "the request is malformed"),
    401: Refusal("access", "authentication failed: check the api_key, and that it belongs to this partner_id"),
    403: Refusal("access", "access denied: ask the account manager to open the tracking API for this shop"),
    404: Refusal("access", "no such resource: check the base_url"),
    405: Refusal("access", "the address takes no POST requests: check the base_url"),
    407: Refusal(
        "access",
        "the proxy on the way asks for credentials: write them into its URL, as http://user:password@host:port",
    ),
    413: Refusal("event", "the request is too large"),
}
_REDIRECTED: Final = Refusal("access", "the address redirects, and the key is never sent on: check the base_url")
_REFUSED: Final = Refusal("event", "the API refused the request")


def refusal_of(status: int) -> Refusal:
    """Return the meaning of an HTTP status that refuses a request: a 3xx, or a 4xx that is not retried."""
    return _REFUSALS.get(status) or (_REDIRECTED if 300 <= status <= 399 else _REFUSED)


@attrs.frozen(kw_only=True)
class Rejected:
    """The API refused the request that contained the event, and would refuse the same request again.

    Attributes:
        status: the HTTP status, e.g. 400, 401, 403, 404, or a redirect (which is never followed).
        attempts: number of requests that contained the event; 0 if the event was never sent, because the API refused
            earlier requests for the key, the shop or the address.
        elapsed: seconds from the first attempt to the answer.
        isolated: True if the event itself was refused: no other event was in the request, or the API refuses the key,
            the shop or the address. False if the event's batch was refused and the client stopped looking for the bad
            events, so this event may be valid.
    """

    status: int
    attempts: int = 1
    elapsed: float = 0.0
    isolated: bool = True
    maybe_recorded: ClassVar[bool] = False

    @property
    def scope(self) -> RejectionScope:
        """What the API refused, judged by the status: this event, or all access.

        ``"event"``: a request with other events may succeed. ``"access"``: the key, the shop, the address or the
        proxy is wrong (401, 403, 404, 405, 407 or a redirect), so every event is refused until the mistake is
        corrected.
        """
        return refusal_of(self.status).scope

    @property
    def advice(self) -> str:
        """What the status means and, if known, what to correct; the same text as `StateChange.advice`."""
        return refusal_of(self.status).advice


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
    """The client stopped trying to deliver the event, after at least one attempt or because nothing could be sent.

    Attributes:
        reason: why the client stopped: ``"retries_exhausted"`` (the attempts or the time for retries are used up),
            ``"not_retryable"`` (the answer was no clear refusal, but a retry cannot help), ``"at_most_once"`` (the
            event may have been recorded, and `RetryPolicy.at_most_once` forbids to send it again), ``"halted"`` (an
            environment variable cannot be used, or a proxy refuses to connect to the API, and this was not corrected
            within `RetryPolicy.max_halt`; `failure` says what to correct), ``"expired"`` (the event became older than
            `Buffer.max_age` before its retry), ``"closed"`` (the time-out of `aclose` passed), ``"cancelled"`` (a
            direct send was cancelled), ``"internal_error"`` (a defect of this package: please report it). With a spool
            also ``"untold"`` (another process has the outcome, but this process was stopped for longer than the spool
            stores outcomes), ``"lost"`` (the spool's directory was removed or replaced while it was in use) or
            ``"damaged"`` (the event's bytes on disk have changed).
        maybe_recorded: True if the API may have recorded the event; False if the API has certainly not recorded the
            event.
        status: the HTTP status of the last attempt; None if no answer arrived.
        failure: the failure of the last attempt if no answer arrived, e.g. ``"connect: ConnectError"``.
        attempts: number of requests that contained the event; 0 if the event was never sent.
        elapsed: seconds from the first attempt until the client stopped trying.
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
        reason: ``"closed"`` (the time-out of `aclose` passed), ``"overflow"`` (the buffer was full, see
            `Buffer.overflow`), ``"expired"`` (the event became older than `Buffer.max_age`), ``"before_send"`` (your
            hook returned None) or ``"purged"`` (somebody removed the event from the spool).
    """

    reason: DropReason
    status: ClassVar[None] = None
    attempts: ClassVar[int] = 0
    elapsed: ClassVar[float] = 0.0
    maybe_recorded: ClassVar[bool] = False


@attrs.frozen(kw_only=True)
class Kept:
    """The client was closed before delivery; the event is in the spool, and the next client sends the event.

    Attributes:
        maybe_recorded: True if this process sent the event and the API may have recorded it. The next client sends the
            event, whether this attribute is True or False.
        attempts: number of requests of this process that contained the event.
    """

    maybe_recorded: bool = False
    attempts: int = 0
    status: ClassVar[None] = None
    elapsed: ClassVar[float] = 0.0


Outcome: TypeAlias = Delivered | Rejected | Abandoned | Dropped | Kept
Undelivered: TypeAlias = Rejected | Abandoned | Dropped
