"""The retry policy: when a failed request is tried again, for each kind of answer."""

from __future__ import annotations

import itertools
import math
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailrocket_async._delivery.retry import RetryPolicy
from retailrocket_async._errors import ConfigurationError
from retailrocket_async._http.reply import FailureKind, Reply, Verdict

# --- further attempts ---

TRANSIENT = Reply(status=503)
FINAL = [Reply(status=status) for status in (200, 204, 301, 400, 401, 403, 404, 413, 501, 505, 101)]


@pytest.mark.parametrize("reply", [*FINAL, Reply(failure="closed")])
def test_final_replies_end_it(reply: Reply) -> None:
    """If a request was accepted, refused or answered unclearly, it is never tried again."""
    assert RetryPolicy().wait_before_next(reply, attempt=1, elapsed=0.0) is None


@pytest.mark.parametrize(
    "reply",
    [
        *(Reply(status=status) for status in (408, 425, 429, 500, 502, 503, 504)),
        *(Reply(failure=kind) for kind in get_args(FailureKind) if Reply(failure=kind).verdict is Verdict.TRANSIENT),
    ],
)
def test_transient_replies_are_tried_again(reply: Reply) -> None:
    """If a request may still succeed, it is tried again."""
    assert RetryPolicy().wait_before_next(reply, attempt=1, elapsed=0.0) is not None


@pytest.mark.parametrize("max_attempts", [1, 2, 20])
def test_attempts_are_limited(max_attempts: int) -> None:
    """If a request always fails, it has exactly `max_attempts` attempts, the first included."""
    policy = RetryPolicy(max_attempts=max_attempts, max_elapsed=1e9)
    waits = [policy.wait_before_next(TRANSIENT, attempt=attempt, elapsed=0.0) for attempt in range(1, max_attempts + 3)]

    assert max_attempts - 1 == sum(wait is not None for wait in waits)
    assert waits[max_attempts - 1 :] == [None] * 3


@pytest.mark.parametrize(("elapsed", "again"), [(0.0, True), (9.9, True), (10.0, False), (11.0, False)])
def test_time_is_limited(elapsed: float, again: bool) -> None:  # noqa: FBT001
    """If `max_elapsed` seconds have passed since the first attempt, no further attempt starts."""
    policy = RetryPolicy(max_elapsed=10.0, initial_backoff=0.0)

    assert again == (policy.wait_before_next(TRANSIENT, attempt=1, elapsed=elapsed) is not None)


@pytest.mark.parametrize(("retry_after", "again"), [(9.0, True), (11.0, False)])
def test_no_wait_beyond_the_time(retry_after: float, again: bool) -> None:  # noqa: FBT001
    """If the next attempt would start too late, the retries end at once, without a useless wait."""
    policy = RetryPolicy(max_elapsed=20.0, initial_backoff=0.0)
    reply = Reply(status=429, retry_after=retry_after)

    assert again == (policy.wait_before_next(reply, attempt=1, elapsed=10.0) is not None)


def test_no_time_no_second_attempt() -> None:
    """If `max_elapsed` is 0, nothing is tried twice."""
    policy = RetryPolicy(max_elapsed=0.0, initial_backoff=0.0)

    assert policy.wait_before_next(TRANSIENT, attempt=1, elapsed=0.0) is None


# --- waits ---

seconds = st.floats(0.0, 100.0)
attempts = st.integers(1, 1000)


@settings(deadline=None)
@given(initial=seconds, longest=seconds, attempt=attempts)
def test_wait_is_within_its_bounds(initial: float, longest: float, attempt: int) -> None:
    """If an attempt fails, the wait is at least 0 and at most the initial backoff, doubled each time to the maximum."""
    policy = RetryPolicy(
        max_attempts=10_000, max_elapsed=1e9, initial_backoff=min(initial, longest), max_backoff=max(initial, longest)
    )
    wait = policy.wait_before_next(TRANSIENT, attempt=attempt, elapsed=0.0)

    assert wait is not None
    assert 0.0 <= wait <= min(policy.max_backoff, policy.initial_backoff * 2.0 ** (attempt - 1))


@settings(deadline=None, max_examples=10)
@given(attempt=st.integers(1, 12))
def test_wait_is_anywhere_between_its_bounds(attempt: int) -> None:
    """If clients failed together, their waits are spread from 0 to the whole backoff, so they do not collide."""
    policy = RetryPolicy(initial_backoff=1.0, max_backoff=8.0)
    bound = min(8.0, 2.0 ** (attempt - 1))
    waits = [policy.wait_before_next(TRANSIENT, attempt=attempt, elapsed=0.0) or 0.0 for _ in range(300)]

    assert min(waits) < 0.1 * bound
    assert max(waits) > 0.9 * bound


@settings(deadline=None)
@given(retry_after=st.floats(0.0, 1000.0), attempt=st.integers(1, 100))
def test_retry_after_is_a_minimum(retry_after: float, attempt: int) -> None:
    """If an answer has `Retry-After`, the wait is never shorter, even above `max_backoff`."""
    policy = RetryPolicy(max_attempts=1000, max_elapsed=1e9, initial_backoff=0.5, max_backoff=2.0)
    wait = policy.wait_before_next(Reply(status=429, retry_after=retry_after), attempt=attempt, elapsed=0.0)

    assert wait is not None
    assert retry_after <= wait <= max(retry_after, 2.0)


def test_retry_after_does_not_mend_a_refusal() -> None:
    """If a final answer has `Retry-After`, it is still not tried again."""
    assert RetryPolicy().wait_before_next(Reply(status=404, retry_after=1.0), attempt=1, elapsed=0.0) is None


# --- invalid settings ---


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *itertools.product(["max_attempts"], [0, -1, 1.0, True, "3", None, math.inf]),
        *itertools.product(
            ["max_elapsed", "initial_backoff", "max_backoff"], [-0.1, math.inf, math.nan, True, "1", None]
        ),
    ],
)
def test_impossible_value(field: str, value: Any) -> None:
    """If a setting is outside its range, the error at construction has the name of the setting."""
    with pytest.raises(ConfigurationError, match=rf"^RetryPolicy\.{field} must be .*, not "):
        RetryPolicy(**{field: value})


def test_backoffs_in_order() -> None:
    """If the initial backoff is above `max_backoff`, the policy is refused."""
    with pytest.raises(ConfigurationError, match="initial_backoff must not be above max_backoff"):
        RetryPolicy(initial_backoff=2.0, max_backoff=1.0)


def test_possible_values() -> None:
    """If a setting is at the end of its range, it is accepted."""
    policy = RetryPolicy(max_attempts=1, max_elapsed=0, initial_backoff=0, max_backoff=0)

    assert policy.wait_before_next(TRANSIENT, attempt=1, elapsed=0.0) is None


def test_defaults() -> None:
    """If no settings are given, the defaults are the documented ones."""
    assert RetryPolicy(max_attempts=20, max_elapsed=300.0, initial_backoff=0.5, max_backoff=30.0) == RetryPolicy()
