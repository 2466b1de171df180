"""The verdict that the client derives from every reply, and the reading of `Retry-After`."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any, get_args

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retailrocket_async._http.reply import FailureKind, Reply, Verdict, parse_http_date, parse_retry_after
from tests.support.ids import shown
from tests.support.strategies import PROPERTY

TABLE: list[tuple[set[int], Verdict, bool]] = [
    (set(range(100, 200)), Verdict.UNCLEAR, True),
    (set(range(200, 300)), Verdict.ACCEPTED, True),
    ({401, 403, 404, 405, 407} | set(range(300, 400)), Verdict.BLOCKED, False),
    (set(range(400, 500)) - {401, 403, 404, 405, 407, 408, 425, 429}, Verdict.REFUSED, False),
    ({429}, Verdict.THROTTLED, False),
    ({408, 425}, Verdict.TRANSIENT, False),
    ({500, 502, 503, 504}, Verdict.TRANSIENT, True),
    (set(range(500, 600)) - {500, 502, 503, 504}, Verdict.UNCLEAR, True),
]
STATUSES = {status: (verdict, recorded) for statuses, verdict, recorded in TABLE for status in statuses}


@pytest.mark.parametrize("others", [{}, {"retry_after": 1.0, "sent": False}], ids=shown)
def test_status(others: dict[str, Any]) -> None:
    """If a reply has a status, its verdict and `maybe_recorded` depend only on this status."""
    replies = {status: Reply(status=status, **others) for status in range(100, 600)}

    assert {status: (reply.verdict, reply.maybe_recorded) for status, reply in replies.items()} == STATUSES


@pytest.mark.parametrize("status", [400, 403, 429, 500, 503, 599])
def test_declared_as_throttling(status: int) -> None:
    """If `is_throttled` returned True for an answer, the event was not recorded, and the request is retried."""
    reply = Reply(status=status, throttled=True)

    assert (reply.verdict, reply.maybe_recorded) == (Verdict.THROTTLED, False)


FAILURES: list[tuple[FailureKind, Verdict, bool]] = [
    ("name", Verdict.TRANSIENT, False),
    ("connect", Verdict.TRANSIENT, False),
    ("tls", Verdict.TRANSIENT, False),
    ("pool", Verdict.TRANSIENT, False),
    ("key", Verdict.TRANSIENT, False),
    ("limiter", Verdict.TRANSIENT, False),
    ("config", Verdict.BLOCKED, False),
    ("proxy", Verdict.BLOCKED, False),
    ("timeout", Verdict.TRANSIENT, True),
    ("broken", Verdict.TRANSIENT, True),
    ("closed", Verdict.UNCLEAR, True),
]


@pytest.mark.parametrize("sent", [False, True])
@pytest.mark.parametrize(("failure", "verdict", "recorded_if_sent"), FAILURES)
def test_no_answer(failure: FailureKind, verdict: Verdict, sent: bool, recorded_if_sent: bool) -> None:  # noqa: FBT001
    """If there is no answer, the event may be recorded only if the body was written to the connection."""
    reply = Reply(failure=failure, detail="ReadError", sent=sent)

    assert (verdict, sent and recorded_if_sent) == (reply.verdict, reply.maybe_recorded)


def test_every_failure_is_in_the_table() -> None:
    """If a kind of failure exists, the table of these tests contains it."""
    assert list(get_args(FailureKind)) == [failure for failure, _, _ in FAILURES]


def test_reply_is_a_value() -> None:
    """If a reply exists, it is frozen; it can only be created with keywords."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Reply(status=200).status = 500  # type: ignore[misc]
    with pytest.raises(TypeError):
        Reply(200)  # type: ignore[call-arg]

    assert Reply(status=200) == Reply(status=200)


# --- Retry-After ---

NOW = datetime(2024, 2, 29, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0.0),
        ("1", 1.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("007", 7.0),
        ("00000000000000000005", 5.0),
        ("999999999", 999_999_999.0),
        ("9999999999", 9_999_999_999.0),
        ("9" * 400, math.inf),
        ("9" * 100_000, math.inf),
        ("Thu, 29 Feb 2024 12:00:30 GMT", 30.0),
        ("Thursday, 29-Feb-24 12:00:30 GMT", 30.0),
        ("Thu Feb 29 12:00:30 2024", 30.0),
        ("Thu, 29 Feb 2024 15:00:30 +0300", 30.0),
        ("Thu, 29 Feb 2024 12:00:30 -0000", 30.0),
        ("Thu, 29 Feb 2024 12:00:00 GMT", 0.0),
        ("Thu, 29 Feb 2024 11:59:59 GMT", 0.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_retry_after(value: str, expected: float) -> None:
    """If `Retry-After` is a number or any form of HTTP date, the seconds are returned; 0 for a date in the past."""
    assert expected == parse_retry_after(value, now=NOW)


@pytest.mark.parametrize(
    "value",
    [
        *(None, "", " ", "-1", "-0", "+5", "1.5", "1e3", "0x10", "1 s", "1,2", "soon", "inf", "nan", "1_000", "\x00"),
        *(
            "١٢",
            "²",
            "５",
            "Thu, 31 Feb 2024 12:00:30 GMT",
            "Thu, 29 Feb 99999999999 12:00:30 GMT",
            ",",
            ", ,",
            "\ud800",
        ),
        *(
            "Thu, 29 Feb 2024 12:00:30 +9999",
            "Thu, 29 Feb 2024 99:00:30 GMT",
            "GMT",
            "x" * 100_000,
            "2024-02-29T12:00:30Z",
        ),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_no_retry_after(value: str | None) -> None:
    """If the header is neither a number of seconds nor a valid HTTP date, None is returned."""
    assert parse_retry_after(value, now=NOW) is None


DATE_PARTS = st.sampled_from(
    [
        *("Thu,", "Thu", "29", "Feb", "feb", "2024", "24", "99999", "12:00:30", "12:00", "12.00.30", "GMT", "EST"),
        *("+0300", "-0000", "+9999", "-", "+", ",", ":", "::", "0", "-1", "Feb-29", "29-Feb-24", "am", "(comment)"),
    ]
)


@given(
    st.text() | st.integers().map(str) | st.lists(DATE_PARTS, max_size=8).map(" ".join),
    st.datetimes(timezones=st.just(UTC) | st.just(timezone(timedelta(hours=-12)))),
)
@example("9" * 5000, NOW)
@example("Fri, 31 Dec 9999 23:59:59 -2359", datetime.min.replace(tzinfo=UTC))
@example("Mon, 01 Jan 0001 00:00:00 +2359", datetime.max.replace(tzinfo=UTC))
@PROPERTY
def test_any_retry_after(value: str, now: datetime) -> None:
    """If the header has any value, reading it raises no error and returns no negative number."""
    seconds = parse_retry_after(value, now=now)

    assert seconds is None or seconds >= 0


@given(st.integers(0, 10**15))
@PROPERTY
def test_seconds(seconds: int) -> None:
    """If the header is a number of seconds, the number is returned."""
    assert float(seconds) == parse_retry_after(str(seconds), now=NOW)


@given(st.integers(-(10**9), 10**9))
@PROPERTY
def test_http_date(seconds: int) -> None:
    """If the header is a date, the seconds until then are returned; 0 for a date in the past."""
    header = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)

    assert max(0.0, seconds) == parse_retry_after(header, now=NOW)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("Thu, 29 Feb 2024 12:00:00 GMT", NOW),
        ("Thu, 29 Feb 2024 12:00:00 -0000", NOW),
        ("Thu, 29 Feb 2024 15:00:00 +0300", NOW),
    ],
)
def test_date(value: str | None, expected: datetime | None) -> None:
    """If a text is an HTTP date, an aware datetime is returned, in UTC if the text names no zone."""
    moment = parse_http_date(value)

    assert expected == moment
    assert moment is None or moment.tzinfo is not None
