"""The text form of outcomes: encoding, decoding, and texts that cannot be decoded."""

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
    """If an outcome and an event name are encoded, decoding the text returns both unchanged."""
    assert (outcome, "view") == decode_outcome(encode_outcome(outcome, "view"))


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "{}", "null", '["Newer",{},""]', '["Delivered",{"field":1},""]', "[1,2,3]"]
)
def test_a_text_that_cannot_be_read(text: str) -> None:
    """If the text is damaged or from a newer version, decoding returns `Abandoned` with the reason "untold"."""
    assert UNKNOWN == decode_outcome(text)
