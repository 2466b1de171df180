"""The outcome that an event gets for each sequence of answers of the server, through the whole engine.

`Engine` and `CheckedLoop` (see `tests/support`) check after each turn of the loop, and at each request, that the
counters add up and that no bound is exceeded. The tests here therefore do not repeat these checks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from retailrocket_async._delivery.retry import RetryPolicy
from retailrocket_async._errors import (
    AccessDeniedError,
    AuthenticationError,
    BadRequestError,
    DeliveryError,
    NoAnswerError,
    NotFoundError,
    RejectedError,
    ServerError,
    ThrottledError,
)
from retailrocket_async._outcome import Abandoned, Delivered, Rejected
from tests.support.fakes import (
    NEVER,
    NO_CONNECTION,
    OK,
    TIMED_OUT,
    Engine,
    RecordingLimiter,
    ScriptedTransport,
    Step,
    near,
)
from tests.support.virtual_time import CheckedLoop, run

if TYPE_CHECKING:
    from retailrocket_async._outcome import Outcome


@pytest.mark.parametrize("code", [200, 201, 204, 299])
def test_accepted(code: int) -> None:
    """If the answer is any 2xx, the event is delivered."""
    assert outcome_of(code) == Delivered(status=code, attempts=1, elapsed=near(0.05))


@pytest.mark.parametrize("code", [301, 307, 400, 401, 403, 404, 405, 413, 418])
def test_refused(code: int) -> None:
    """If the answer refuses the event, the event is rejected after one request."""
    assert outcome_of(code) == Rejected(status=code, attempts=1, elapsed=near(0.05))


@pytest.mark.parametrize("code", [101, 501, 505, 599])
def test_unclear(code: int) -> None:
    """If the answer's status has no known meaning, the event is not retried, and may have been recorded."""
    expected = Abandoned(reason="not_retryable", maybe_recorded=True, status=code, attempts=1, elapsed=near(0.05))

    assert outcome_of(code) == expected


@pytest.mark.parametrize("code", [408, 425, 429])
def test_refused_for_now(code: int) -> None:
    """If an answer refuses the event only for now, the event is tried again and cannot be recorded twice."""
    outcome = outcome_of(code, 200)

    assert outcome == Delivered(status=200, attempts=2, elapsed=outcome.elapsed, maybe_duplicate=False)


@pytest.mark.parametrize("step", [500, 502, 503, 504, TIMED_OUT])
def test_ambiguous_failure_may_duplicate(step: Step | int) -> None:
    """If an event is delivered after an answer that leaves open whether it was recorded, `maybe_duplicate` is True."""
    outcome = outcome_of(step, 200)

    assert outcome == Delivered(status=200, attempts=2, elapsed=outcome.elapsed, maybe_duplicate=True)


@pytest.mark.parametrize("code", [401, 403, 404])
def test_refusal_after_an_ambiguous_failure(code: int) -> None:
    """If a refusal follows an attempt that may have been recorded, the outcome says that the event may be recorded."""
    outcome = outcome_of(TIMED_OUT, 429, code)

    assert isinstance(outcome, Abandoned)
    assert (outcome.reason, outcome.maybe_recorded, outcome.status) == ("not_retryable", True, code)


def test_malformed_after_an_ambiguous_failure() -> None:
    """If a request is malformed, no attempt of it was recorded, because each attempt had the same body."""
    assert outcome_of(TIMED_OUT, 400) == Rejected(status=400, attempts=2, elapsed=pytest.approx(0.1, abs=0.6))


def outcome_of(*script: Step | int) -> Outcome:
    """Return the outcome of an event whose requests get these answers."""

    async def test() -> Outcome:
        engine = Engine(ScriptedTransport(*script, then=NEVER), retry=RetryPolicy(max_halt=0.0))
        return await (await engine.track(1))

    return run(test())


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ([400], BadRequestError),
        ([401], AuthenticationError),
        ([403], AccessDeniedError),
        ([404], NotFoundError),
        ([302], RejectedError),
        ([429, 429], ThrottledError),
        ([503, 503], ServerError),
        ([501], ServerError),
        ([TIMED_OUT, NO_CONNECTION], NoAnswerError),
    ],
)
async def test_direct_send_raises_the_typed_error(
    virtual_clock: CheckedLoop, script: list[Step | int], error: type[DeliveryError]
) -> None:
    """If a direct send fails, it raises the error type for its outcome, with its attempts and no chained error."""
    engine = Engine(ScriptedTransport(*script, then=NEVER), retry=RetryPolicy(max_attempts=2))
    with pytest.raises(error) as caught:
        await engine.send(1)

    assert type(caught.value) is error
    assert caught.value.attempts == len(script)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


async def test_direct_sends_go_to_their_endpoints(virtual_clock: CheckedLoop) -> None:
    """If one event is sent directly, it goes to its own endpoint, a list to `visitorEvents`; both without linger."""
    engine = Engine(ScriptedTransport())

    assert await engine.send(1) == Delivered(status=200, elapsed=near(0.05))
    assert await engine.send_batch([2, 3]) == Delivered(status=200, elapsed=near(0.05))
    assert engine.stats().delivered == engine.stats().tracked == 3

    assert [(request.at, request.path, request.numbers) for request in engine.transport.requests] == [
        (near(0.0), "view", [1]),
        (near(0.05), "visitorEvents", [2, 3]),
    ]


@pytest.mark.parametrize(("recorded", "latency"), [(True, 0.0), (False, 1.0)])
async def test_transport_that_raises(
    virtual_clock: CheckedLoop,
    caplog: pytest.LogCaptureFixture,
    recorded: bool,  # noqa: FBT001
    latency: float,
) -> None:
    """If the transport raises, only its own batch is abandoned (maybe recorded), and the next one is delivered."""
    broken = Step(reply=ZeroDivisionError("with?apiKey=secret"), recorded=recorded, latency=latency)
    engine = Engine(ScriptedTransport(broken, OK, broken), limiter=(limiter := RecordingLimiter()))
    outcomes = [await (await engine.track(number)) for number in (1, 2)]
    with pytest.raises(NoAnswerError) as caught:
        await engine.send(3)
    assert limiter.open == 0
    first, second, third = [*outcomes, caught.value.outcome]
    expected = {"reason": "internal_error", "maybe_recorded": True, "status": None}

    assert {name: getattr(first, name) for name in expected} == expected
    assert isinstance(second, Delivered)
    assert {name: getattr(third, name) for name in expected} == expected
    assert [record.message for record in caplog.records if "ZeroDivisionError" in record.message] == [
        "a request ended in ZeroDivisionError (logged once; stats() counts on)"
    ]
    assert "secret" not in caplog.text
