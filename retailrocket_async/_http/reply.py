"""The reply to one request, and the table that says what each kind of reply means.

::

    2xx                              ACCEPTED    recorded
    400, other 4xx                   REFUSED     not recorded; not retried, because a retry would be refused, too
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

If a proxy refuses to connect to the API, the proxy's answer to CONNECT decides. Status 407 has the meaning that the
table gives. Statuses 408, 425, 429 and 5xx (except 501 and 505) become the failure `connect`, because a retry may help.
All other statuses become the failure `proxy`, because a retry cannot help. If a SOCKS proxy refuses the user and
password, the failure is `proxy`; if a SOCKS proxy refuses for another reason, the failure is `connect`.

Apart from `RetryPolicy.is_throttled`, only the status decides, never the body: the API's bodies are empty, and a client
must not depend on a body (contract, "Responses"). Redirects are never followed: the target may be another host, and the
key must not be sent to another host.
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
"""The reason why no answer arrived.

In the order of the values: the host's name could not be resolved; no connection could be opened; the TLS handshake
failed; no connection of the pool was free; the user's function returned no key; the rate limiter failed; a variable of
the environment cannot be used; a proxy refused; the time-out passed; the connection broke; the HTTP client is closed.
"""


class Verdict(enum.Enum):
    """The meaning of a reply; the table at the top of this module explains the values."""

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
"""The verdicts of the failures that a retry cannot fix; the verdict of all other failures is `TRANSIENT`."""


@attrs.frozen(kw_only=True)
class Reply:
    """The answer to one request, or the reason why no answer arrived.

    Attributes:
        status: the HTTP status; None if no answer arrived.
        failure: why no answer arrived; None if an answer arrived.
        detail: for the failures `config` and `proxy`, and for a proxy's 407, a sentence that says what to correct. For
            another failure, the name of the error or a short sentence, never the error's text, which could contain a
            URL. ``""`` for any other answer.
        sent: whether the body was handed to the connection, so that the API may have read the body.
        retry_after: seconds that the server asked to wait (`Retry-After`), 0 or more; None if the server did not ask.
        throttled: whether the caller's `RetryPolicy.is_throttled` treats this answer as a 429.
        proxy: host and port of the proxy that failed or refused; None if the proxy is not to blame.
        serial: `Credentials.serial` of the key that the request carried.
        body: the start of the answer's body, at most 4 KiB; only `is_throttled` reads it.
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
        """The meaning of this reply, by the table at the top of this module."""
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
    """Return the seconds that a `Retry-After` header asks for, 0 or more; None if the header is missing or malformed.

    Args:
        value: the header: seconds, or an HTTP-date (RFC 9110, 10.2.3).
        now: the time of the answer's `Date` header, so that a wrong clock on this machine does not matter; the time of
            this machine if the answer has no `Date`.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        # `int` raises an error if the text has more than 4,300 digits; `float` returns infinity.
        return float(text)
    moment = parse_http_date(text)
    return None if moment is None else max(0.0, (moment - now).total_seconds())


def parse_http_date(value: str | None) -> datetime | None:
    """Return an HTTP-date as an aware datetime, or None if `value` is missing or malformed."""
    if not value:
        return None
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
