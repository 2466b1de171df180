"""The counts of settled events: each event counts once, by its outcome, and a dropped one also by reason and name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from retailrocket_async import Abandoned, Delivered, Dropped, Kept, Rejected
from retailrocket_async._delivery.counts import OutcomeCounts, merged

OUTCOMES = [
    Delivered(status=200),
    Rejected(status=400),
    Abandoned(reason="closed", maybe_recorded=True),
    Dropped(reason="overflow"),
    Dropped(reason="expired"),
    Kept(),
]


@given(st.lists(st.tuples(st.sampled_from(OUTCOMES), st.lists(st.sampled_from(["view", "order"])))))
def test_every_event_counts_once(added: list) -> None:
    """If outcomes are added, each count is the number of events with that outcome; drops are by reason and name."""
    counts = OutcomeCounts()
    for outcome, names in added:
        counts.add(outcome, len(names), iter(names))

    ended = [(outcome, name) for outcome, names in added for name in names]
    kinds = [type(outcome) for outcome, _ in ended]
    found = (counts.delivered, counts.rejected, counts.abandoned, counts.dropped, counts.kept)
    assert found == tuple(kinds.count(kind) for kind in (Delivered, Rejected, Abandoned, Dropped, Kept))
    assert counts.total == len(ended)
    for reason, by_name in counts.dropped_copy().items():
        for name, count in by_name.items():
            assert count == ended.count((Dropped(reason=reason), name))  # type: ignore[arg-type]
    assert sum(sum(by_name.values()) for by_name in counts.dropped_by.values()) == counts.dropped


def test_merged_counts_are_sums() -> None:
    """If two tables of dropped events are merged, their counts are added, and neither table changes."""
    one, other = {"overflow": {"view": 1}}, {"overflow": {"view": 2, "order": 3}, "expired": {"view": 4}}

    assert merged(one, other) == {"overflow": {"view": 3, "order": 3}, "expired": {"view": 4}}
    assert one == {"overflow": {"view": 1}}
