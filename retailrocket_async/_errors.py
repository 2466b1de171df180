"""Defines all errors of this package. The tree groups the errors by who must act.

::

    RetailRocketError
    ├── UsageError                      the calling code must change
    │   ├── ConfigurationError          a constructor got an argument that cannot work (ValueError)
    │   ├── EventValidationError        an event breaks the API's contract             (ValueError)
    │   ├── UncopyableError             an object of one process was copied or pickled (TypeError)
    │   ├── ClientClosedError           the client was closed before this call         (RuntimeError)
    │   └── WrongLoopError              another event loop, thread or forked process   (RuntimeError)
    ├── BufferFullError                 the buffer is full: events are tracked faster than sent
    │   └── SpoolFullError              the spool has reached a limit, e.g. of its size
    ├── SpoolError                      the spool's file cannot be used
    ├── FlushTimeoutError               the time-out of `flush` passed                 (TimeoutError)
    ├── HandleTimeoutError              the time-out of a thread's call passed         (TimeoutError)
    └── DeliveryError                   an event was not delivered; the error has the outcome
        ├── RejectedError               the API refused the event: sending it again cannot help
        │   ├── BadRequestError         400: the request is malformed
        │   ├── AuthenticationError     401: `apiKey` is wrong, or does not belong to `partnerId`
        │   ├── AccessDeniedError       403: ask the account manager to open the API
        │   └── NotFoundError           404: the base URL is wrong
        ├── AbandonedError              the client stopped retrying; see `maybe_recorded`
        │   ├── ThrottledError          429: the shop's limit is used up
        │   ├── ServerError             5xx: the API failed
        │   ├── NoAnswerError           no answer arrived: the network, or a time-out
        │   └── HaltedError             an environment variable, or a proxy, prevents all requests
        ├── DroppedError                never sent: full buffer, age, `before_send` or close
        └── KeptError                   the client was closed; the event is in the spool, for the next client

No exception of `httpx` leaves the package, not even as the cause or context of another error. Such an exception refers
to the request, and the request contains the API key.
"""

from __future__ import annotations

import itertools
import reprlib
from typing import TYPE_CHECKING, Final

from retailrocket_async._interrupt import is_interrupt
from retailrocket_async._outcome import Abandoned, Dropped, Kept, Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable

    from retailrocket_async._outcome import Outcome, Undelivered


class RetailRocketError(Exception):
    """The root of every error this package raises."""


class UsageError(RetailRocketError):
    """The calling code, or its configuration, must change."""


class ConfigurationError(UsageError, ValueError):
    """A constructor got an argument that cannot work; the message says what to write instead."""


class _Redacted:
    """The type of the constant `REDACTED`, which replaces a value that must not be shown.

    None cannot be used for this purpose, because the value itself may be None.
    """

    def __repr__(self) -> str:
        return "<withheld>"

    def __reduce__(self) -> str:
        # Pickle stores the name of the constant, so a copied or unpickled error refers to the same object.
        return "REDACTED"


REDACTED: Final = _Redacted()


class EventValidationError(UsageError, ValueError):
    """An event breaks the API's contract; raised when the event is constructed, so before the event is queued.

    Attributes:
        event: the event's name as the API spells it, e.g. ``"addToBasket"`` (str).
        field: the field's Python name, e.g. ``"product_id"``; ``""`` if the rule is about the whole event (str).
        rule: the broken rule, e.g. ``"must be 1-50 letters or digits"`` (str).
        value: the value that breaks the rule; `REDACTED` if the value is personal data.
    """

    def __init__(self, event: str, field: str, rule: str, value: object = REDACTED) -> None:
        self.event = event
        self.field = field
        self.rule = rule
        self.value = value
        place = f"{event}.{field}" if field else event
        got = "" if value is REDACTED else f" (got {brief(value)})"
        super().__init__(f"{place} {rule}{got}")

    def __reduce__(self) -> tuple[type[EventValidationError], tuple[str, str, str, object]]:
        return type(self), (self.event, self.field, self.rule, self.value)


class UncopyableError(UsageError, TypeError):
    """An object that works in one process only, e.g. a client, was copied, pickled or passed to another process."""


class ClientClosedError(UsageError, RuntimeError):
    """The client was closed, or is being closed, and a closed client accepts no new events."""


class WrongLoopError(UsageError, RuntimeError):
    """The client was used from another event loop, another thread or a forked process."""


class BufferFullError(RetailRocketError):
    """The buffer is at its limit of events, of bytes, or of one visitor's events.

    Raised by `track_nowait`, and with ``overflow="raise"`` also by `track`.
    """


class SpoolFullError(BufferFullError):
    """The spool had no room for an event within `SqliteSpool.full_timeout`; the event was not accepted."""


class SpoolError(RetailRocketError):
    """The spool cannot be used, e.g. because of its disk, file permissions or version; the message says what to do."""


class FlushTimeoutError(RetailRocketError, TimeoutError):
    """The time-out of `flush` passed; the client continues to send the remaining events."""


class HandleTimeoutError(RetailRocketError, TimeoutError):
    """The time-out of `ThreadsafeHandle.track`, `track_many` or `wait` passed.

    `track` and `track_many` did not accept the event that was still waiting for room in the buffer.

    Attributes:
        accepted: how many events the call had accepted before the time-out passed (int).
    """

    def __init__(self, message: str, accepted: int = 0) -> None:
        super().__init__(message)
        self.accepted = accepted

    def __reduce__(self) -> tuple[type[HandleTimeoutError], tuple[str, int]]:
        return type(self), (str(self), self.accepted)


class DeliveryError(RetailRocketError):
    """An event was not delivered.

    Attributes:
        outcome: the outcome of the event (`Rejected`, `Abandoned`, `Dropped` or `Kept`).
        status: the HTTP status of the last attempt; None if no answer arrived (int | None).
        attempts: how many requests contained the event (int).
        elapsed: seconds from the first attempt to the last answer (float).
        maybe_recorded: whether the API may have recorded the event (bool).
    """

    def __init__(self, message: str, outcome: Outcome) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.status: int | None = outcome.status
        self.attempts: int = outcome.attempts
        self.elapsed: float = outcome.elapsed
        self.maybe_recorded: bool = outcome.maybe_recorded

    def __reduce__(self) -> tuple[type[DeliveryError], tuple[str, Outcome]]:
        return type(self), (str(self), self.outcome)


class RejectedError(DeliveryError):
    """The API refused the request: the same request would be refused again."""


class BadRequestError(RejectedError):
    """400: the request is malformed (API document, response codes)."""


class AuthenticationError(RejectedError):
    """401: `apiKey` is wrong, or does not belong to `partnerId` (API document, response codes)."""


class AccessDeniedError(RejectedError):
    """403: the shop may not use this API; ask the account manager to enable the API (API document, response codes)."""


class NotFoundError(RejectedError):
    """404: the address does not exist; the base URL is wrong (API document, response codes)."""


class AbandonedError(DeliveryError):
    """The client stopped retrying the event; `maybe_recorded` says whether the API may have recorded the event."""


class ThrottledError(AbandonedError):
    """429 at the last attempt: the shop's request limit is used up, perhaps by other processes of the shop."""


class ServerError(AbandonedError):
    """5xx at the last attempt: the API failed."""


class NoAnswerError(AbandonedError):
    """The last attempt got no answer: the network failed, or the time-out passed."""


class HaltedError(AbandonedError):
    """An environment variable or a proxy prevents all requests; the message says what to correct."""


class DroppedError(DeliveryError):
    """The event was never sent; `Dropped.reason` says why, e.g. because the buffer was full."""


class KeptError(DeliveryError):
    """The client was closed before delivery; the event is in the spool, and the next client sends the event."""


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = self.maxother = 80
        self.maxlong = 40

    def repr_int(self, x: int, level: int) -> str:
        # The time to print an int grows with the square of its number of digits, and Python refuses to print more than
        # 4,300 digits.
        if x.bit_length() > 256:
            return f"an int of {x.bit_length()} bits"
        return super().repr_int(x, level)


_repr = _Brief().repr


def brief(value: object) -> str:
    """Return the start of a value's repr, about 200 characters.

    Values come from visitors and may be hostile, so an error that a value's repr raises is caught.
    """
    try:
        text = _repr(value)
    except BaseException as error:  # reprlib chooses a method by the name of the class, e.g. "list"
        if is_interrupt(error):
            raise
        return f"<{type(value).__name__}>"
    return text if len(text) <= 200 else f"{text[:200]}..."


def type_name(value: object) -> str:
    """Return the name of a value's type, for messages that must not show the value.

    If the value is a secret in a wrapper, such as pydantic's `SecretStr`, the text also says how to unwrap the secret.
    """
    kind = type(value)
    wrapped = any("get_secret_value" in vars(base) for base in kind.__mro__)
    hint = ": pass what its get_secret_value() returns" if wrapped else ""
    return f"{kind.__name__}{hint}"


def brief_names(names: Iterable[object]) -> str:
    """Return at most eight of `names` as one sorted text; ``...`` at the end stands for further names.

    Only the first nine names are read, because there may be very many names. `brief` shortens each name.
    """
    shown = sorted(map(brief, itertools.islice(names, 9)))
    return ", ".join(shown[:8] + ["..."] * (len(shown) > 8))


_REJECTIONS: dict[int, type[RejectedError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: AccessDeniedError,
    404: NotFoundError,
}


def error_for(outcome: Undelivered | Kept) -> DeliveryError:
    """Return the error to raise for the outcome of an undelivered event."""
    match outcome:
        case Rejected(status=status):
            return _REJECTIONS.get(status, RejectedError)(f"{outcome.advice} (HTTP {status})", outcome)
        case Dropped(reason=reason):
            return DroppedError(f"the event was never sent: {reason}", outcome)
        case Kept():
            return KeptError("the client closed first: the event is in the spool, whose next user sends it", outcome)
        case Abandoned():
            known = "may have been recorded" if outcome.maybe_recorded else "was certainly not recorded"
            last = f"HTTP {outcome.status}" if outcome.status is not None else (outcome.failure or "no attempt")
            message = f"given up after {outcome.attempts} attempt(s), {outcome.reason}: {last}; the event {known}"
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
