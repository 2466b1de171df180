"""The outcomes of an event; each event gets exactly one.

::

    Outcome = Delivered | Rejected | Abandoned | Dropped | Kept

Undelivered events are to be expected, so an outcome is a value and not an exception: `await receipt` never raises for
it. `await receipt.delivered()` raises an exception instead.
"""

from typing import ClassVar, Final, Literal, NamedTuple, TypeAlias

import attrs


@attrs.frozen(kw_only=True)
class Delivered:
    """The API accepted the event.

    Attributes:
        status: the HTTP status, 200-299.
        attempts: requests that carried the event, 1 or more; direct sends and batches count alike.
        elapsed: seconds from the first attempt to the answer.
        maybe_duplicate: True if an earlier attempt got no clear answer and may have been recorded as well.
    """

    status: int
    attempts: int = 1
    elapsed: float = 0.0
    maybe_duplicate: bool = False

    @property
    def maybe_recorded(self) -> bool:
        """Always True: the API has confirmed it."""
        return True


RejectionScope: TypeAlias = Literal["event", "access"]


class Refusal(NamedTuple):
    """The meaning of a status by which the API, or a proxy, refuses a request.

    Attributes:
        scope: see `Rejected.scope`.
        advice: see `Rejected.advice`.
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
    """Return the meaning of a refusal by `status`, which is a 3xx, or a 4xx that is not retried."""
    return _REFUSALS.get(status) or (_REDIRECTED if 300 <= status <= 399 else _REFUSED)


@attrs.frozen(kw_only=True)
class Rejected:
    """The API refused the request that carried the event, and would refuse the same request again.

    Attributes:
        status: the HTTP status, e.g. 400, 401, 403, 404, or a redirect (which is never followed).
        attempts: requests that carried the event; 0 if it was never sent, because requests before it were refused for
            the key, the shop or the address.
        elapsed: seconds from the first attempt to the answer.
        isolated: whether the event itself was refused: alone in its request, or for the key, the shop or the address.
            False if its batch was refused, and the search for the bad events in it was given up.
    """

    status: int
    attempts: int = 1
    elapsed: float = 0.0
    isolated: bool = True
    maybe_recorded: ClassVar[bool] = False

    @property
    def scope(self) -> RejectionScope:
        """Whether the API refused the event, or all access to the API, by the status.

        ``"event"``: a request with other events may succeed. ``"access"``: the key, the shop, the address or the
        proxy is wrong (401, 403, 404, 405, 407 or a redirect), so every event is refused until that is corrected.
        """
        return refusal_of(self.status).scope

    @property
    def advice(self) -> str:
        """The meaning of the status and, if it is known, what to correct; as in `StateChange.advice`."""
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
    """The client gave the event up after it was sent at least once, or because nothing could be sent.

    Attributes:
        reason: ``"retries_exhausted"`` (attempts or elapsed time used up), ``"not_retryable"`` (the answer was no clear
            refusal, but a retry cannot help), ``"at_most_once"`` (it may have been recorded, and
            `RetryPolicy.at_most_once` forbids to send it again), ``"halted"`` (a variable of the environment cannot be
            used, or a proxy refuses to connect to the API, and this was not corrected within `RetryPolicy.max_halt`;
            `failure` says what to correct), ``"expired"`` (older than `Buffer.max_age` before its retry), ``"closed"``
            (`aclose` ran out of time), ``"cancelled"`` (a direct send was cancelled), ``"internal_error"`` (a defect:
            please report it). With a spool also ``"untold"`` (another process settled it, and this process was stopped
            for longer than the spool keeps outcomes), ``"lost"`` (somebody removed or replaced the spool's directory
            while it was in use) or ``"damaged"`` (its bytes on disk have changed).
        maybe_recorded: True if the API may have recorded at least one attempt; False if it certainly recorded none.
        status: the HTTP status of the last attempt; None if no answer arrived.
        failure: the failure of the last attempt if no answer arrived, e.g. ``"connect: ConnectError"``.
        attempts: requests that carried the event; 0 if it was never sent.
        elapsed: seconds from the first attempt until the event was given up.
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
    """The client closed before the event had another outcome; it is in the spool, and the next client sends it.

    Attributes:
        maybe_recorded: True if the API may have recorded a request that carried the event; it is sent again.
        attempts: requests of this process that carried the event.
    """

    maybe_recorded: bool = False
    attempts: int = 0
    status: ClassVar[None] = None
    elapsed: ClassVar[float] = 0.0


Outcome: TypeAlias = Delivered | Rejected | Abandoned | Dropped | Kept
Undelivered: TypeAlias = Rejected | Abandoned | Dropped
