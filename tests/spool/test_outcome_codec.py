"""Outcomes as text: they are read as they were written, and a text that cannot be read is no error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from retailrocket_async import Abandoned, Delivered, Dropped, Rejected
from retailrocket_async._spool.outcome_codec import decode_outcome, encode_outcome

if TYPE_CHECKING:
    from retailrocket_async import Outcome

UNKNOWN = (Abandoned(reason="untold", maybe_recorded=True, attempts=0), "")


@pytest.mark.parametrize(
    "outcome",
    [
        Delivered(status=200, attempts=3, maybe_duplicate=True),
        Rejected(status=400),
        Abandoned(reason="retries_exhausted", maybe_recorded=True, status=503, failure="timeout"),
        Dropped(reason="expired"),
    ],
    ids=lambda outcome: type(outcome).__name__,
)
def test_an_outcome_is_read_as_it_was_written(outcome: Outcome) -> None:
    """An outcome and the name of its events come out of their text unchanged."""
    assert (outcome, "view") == decode_outcome(encode_outcome(outcome, "view"))


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "{}", "null", '["Newer",{},""]', '["Delivered",{"field":1},""]', "[1,2,3]"]
)
def test_a_text_that_cannot_be_read(text: str) -> None:
    """A damaged text, or one of a newer version, means that the outcome is not known."""
    assert UNKNOWN == decode_outcome(text)
