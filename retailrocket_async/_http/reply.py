"""The reply to one request, and the table that says what each kind of reply means.

::

    2xx                              ACCEPTED    recorded
    400, other 4xx                   REFUSED     not recorded; a retry would be refused too, so there is none
    401 403 404 405 407, 3xx         BLOCKED     not recorded; every request is refused until key, shop, address or
                                                 proxy is corrected (`Rejected.scope` is "access")
    no answer: config, proxy         BLOCKED     not recorded; no request can be sent until the environment, or the
                                                 proxy, is corrected
    429, `RetryPolicy.is_throttled`  THROTTLED   not recorded: retried, and all requests slow down
    408 425                          TRANSIENT   not recorded: retried
    500 502 503 504                  TRANSIENT   may be recorded: retried
    other 5xx, 1xx                   UNCLEAR     may be recorded; a retry cannot help
    no answer: name, connect, tls,   TRANSIENT   not recorded: retried
      pool, key, limiter
    no answer: timeout, broken       TRANSIENT   may be recorded if the body was handed to the connection: retried
    no answer: closed                UNCLEAR     the caller closed its own `http_client`: a retry cannot help

A proxy that refuses to connect to the API (CONNECT, or SOCKS) answers in the API's place. Its 407 is a status like any
other. Its 408, 425, 429 and 5xx are the failure `connect`, as a retry may help; its 501, 505 and all others are the
failure `proxy`, as no retry can help.

Only the status counts: the API's bodies are empty, and a client must not depend on them (contract, "Responses").
A redirect is never followed: its target may be another host, and the key is sent to no other host.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal, TypeAlias

import attrs

from retailrocket_async._outcome import refusal_of

FailureKind: TypeAlias = Literal[
    "name", "connect", "tls", "pool", "key", "limiter", "config", "proxy", "timeout", "broken", "closed"
]
"""Why there is no answer, in this order: the host's name is unknown; no connection; no TLS handshake; no free
connection in the pool; no key; the limiter failed; a variable of the environment cannot be used; a proxy refuses; the
time was up; the connection broke; the HTTP client is closed."""


class Verdict(enum.Enum):
    """The meaning of a reply, by the table of this module."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    BLOCKED = "blocked"
    THROTTLED = "throttled"
    TRANSIENT = "transient"
    UNCLEAR = "unclear"


_RETRIED = frozenset({408, 425, 500, 502, 503, 504})
_UNSENT = frozenset({"name", "connect", "tls", "pool", "key", "limiter", "config", "proxy"})
_FAILURES: dict[FailureKind | None, Verdict] = {
    "config": Verdict.BLOCKED,
    "proxy": Verdict.BLOCKED,
    "closed": Verdict.UNCLEAR,
}
"""The failures that a retry cannot fix."""


@attrs.frozen(kw_only=True)
class Reply:
    """The answer to one request, or the reason why there is none.

    Attributes:
        status: the HTTP status; None if no answer arrived.
        failure: why no answer arrived; None if one did.
        detail: the name of the underlying error, never its text, which could hold a URL; for `config` and `proxy`, and
            for a proxy's 407, a sentence that says what to correct; ``""`` with any other answer.
        sent: whether the body was handed to the connection, so that the API may have read it.
        retry_after: seconds that the server asked to wait (`Retry-After`), 0 or more; None if it did not.
        throttled: whether the caller's `RetryPolicy.is_throttled` treats this answer as a 429.
        proxy: host and port of the proxy that failed or refused; None if the proxy is not to blame.
        serial: `Credentials.serial` of the key that the request carried.
        body: the start of the answer's body, at most 4 KiB; for `is_throttled` alone.
    """

    status: int | None = None
    failure: FailureKind | None = None
    detail: str = ""
    sent: bool = True
    retry_after: float | None = None
    throttled: bool = False
    proxy: str | None = None
    serial: int = attrs.field(default=0, eq=False)
    body: bytes = attrs.field(default=b"", repr=False, eq=False)

    @property
    def verdict(self) -> Verdict:
        """What this reply means, by the table of this module."""
        status = self.status
        if status is None:
            return _FAILURES.get(self.failure, Verdict.TRANSIENT)
        if 200 <= status <= 299:
            return Verdict.ACCEPTED
        if status == 429 or self.throttled:
            return Verdict.THROTTLED
        if status in _RETRIED:
            return Verdict.TRANSIENT
        if 300 <= status <= 499:
            return Verdict.BLOCKED if refusal_of(status).scope == "access" else Verdict.REFUSED
        return Verdict.UNCLEAR

    @property
    def maybe_recorded(self) -> bool:
        """Whether the API may have recorded the events of the request."""
        if self.status is None:
            return self.sent and self.failure not in _UNSENT
        return not (300 <= self.status <= 499 or self.throttled)


def parse_retry_after(value: str | None, *, now: datetime) -> float | None:
    """Return the seconds that a `Retry-After` header asks for, 0 or more; None if it is missing or malformed.

    Args:
        value: the header: seconds, or an HTTP-date (RFC 9110, 10.2.3).
        now: the server's time, from its `Date` header if it sent one, so that a wrong clock here does no harm.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        # Python refuses to parse an int of more than 4,300 digits; a float becomes infinity.
        return float(text)
    moment = parse_http_date(text)
    return None if moment is None else max(0.0, (moment - now).total_seconds())


def parse_http_date(value: str | None) -> datetime | None:
    """Return an HTTP-date as an aware datetime; None if it is missing or malformed."""
    if not value:
        return None
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
