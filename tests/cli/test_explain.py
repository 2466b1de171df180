"""Tests of the command line's explanations of why an event was not delivered."""

from __future__ import annotations

import pytest

from retailrocket_async import Abandoned, Dropped, Rejected
from retailrocket_async.cli._explain import Undelivered, explain, is_hopeless


@pytest.mark.parametrize("status", range(300, 500))
def test_refusal_is_explained_by_options(status: int) -> None:
    """If an event was refused, the explanation names options of the command line, not constructor parameters."""
    explanation = explain(Rejected(status=status))

    assert [] == [name for name in ("base_url", "api_key", "partner_id") if name in explanation]
    assert explanation.endswith(f"(HTTP {status})")


@pytest.mark.parametrize("status", [None, 503, 429])
def test_an_event_that_is_sent_at_most_once(status: int | None) -> None:
    """If an event must not be sent twice and may have been recorded, it is not advised to send it again."""
    explanation = explain(Abandoned(reason="at_most_once", maybe_recorded=True, status=status))

    assert explanation == "perhaps recorded, and never sent twice by this command: find out before you send it again"


@pytest.mark.parametrize(
    ("outcome", "hopeless"),
    [
        *((Rejected(status=status), True) for status in (301, 401, 403, 404, 405, 407)),
        *((Rejected(status=status), False) for status in (400, 413, 418)),
        (Abandoned(reason="retries_exhausted", maybe_recorded=True), True),
        (Abandoned(reason="halted", maybe_recorded=False), True),
        (Abandoned(reason="closed", maybe_recorded=True), False),
        (Dropped(reason="closed"), False),
    ],
)
def test_is_hopeless(outcome: Undelivered, *, hopeless: bool) -> None:
    """`is_hopeless` is true if the API refuses access, does not answer or cannot be reached; otherwise it is false."""
    assert hopeless is is_hopeless(outcome)
