"""What came back for one request, and the one table that decides what it means.

::

    2xx                                  ACCEPTED    recorded
    400 401 403 404, other 4xx, 3xx      REFUSED     not recorded, and never will be: not retried
    408 425 429                          TRANSIENT   not recorded: retried
    500 502 503 504                      TRANSIENT   may be recorded: retried
    other 5xx, 1xx                       UNCLEAR     may be recorded, and no retry can mend it
    no answer (connect, pool, limiter)   TRANSIENT   not recorded: retried
    no answer (timeout, broken)          TRANSIENT   may be recorded if the body was on its way: retried
    no answer (closed)                   UNCLEAR     the caller closed its own `http_client`: no retry can mend it

Only the status counts: the API's bodies are empty, and a client that looks into them breaks (contract, "Responses").
A redirect is never followed: its target could be another host, and the key goes to no other host.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal, TypeAlias

import attrs

FailureKind: TypeAlias = Literal["connect", "pool", "limiter", "timeout", "broken", "closed"]
"""Why there is no answer: no connection; no free one; limiter failed; too slow; broken off; client closed."""


class Verdict(enum.Enum):
    """What a reply means for the request that it answers."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    TRANSIENT = "transient"
    UNCLEAR = "unclear"


_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


@attrs.frozen(kw_only=True)
class Reply:
    """What came back for one request.

    Attributes:
        status: the HTTP status; None where no answer arrived.
        failure: why no answer arrived; None where one did.
        detail: the name of the underlying error, never its text, which could hold a URL; ``""`` with an answer.
        sent: whether the body was handed to the connection, so that the API may have read it.
        retry_after: seconds the server asked to wait (`Retry-After`), 0 or more; None where it did not.
    """

    status: int | None = None
    failure: FailureKind | None = None
    detail: str = ""
    sent: bool = True
    retry_after: float | None = None

    @property
    def verdict(self) -> Verdict:
        """What this reply means, by the table above."""
        status = self.status
        if status is None:
            return Verdict.UNCLEAR if self.failure == "closed" else Verdict.TRANSIENT
        if 200 <= status <= 299:
            return Verdict.ACCEPTED
        if status in _RETRIED:
            return Verdict.TRANSIENT
        return Verdict.REFUSED if 300 <= status <= 499 else Verdict.UNCLEAR

    @property
    def maybe_recorded(self) -> bool:
        """Whether the API may have recorded what the request carried."""
        if self.status is None:
            return self.sent and self.failure not in ("connect", "pool", "limiter")
        return not 300 <= self.status <= 499


def parse_retry_after(value: str | None, *, now: datetime) -> float | None:
    """Return the seconds a `Retry-After` header asks for, 0 or more; None where it is missing or says nothing.

    Args:
        value: the header: seconds, or an HTTP-date (RFC 9110, 10.2.3).
        now: the server's time, from its `Date` header where it sends one, so that a wrong clock does not count.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        # A float, as Python refuses to read an int of more than some 4,000 digits; too many give infinity.
        return float(text)
    moment = parse_http_date(text)
    return None if moment is None else max(0.0, (moment - now).total_seconds())


def parse_http_date(value: str | None) -> datetime | None:
    """Return an HTTP-date as an aware datetime; None where it is missing or none."""
    if not value:
        return None
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
