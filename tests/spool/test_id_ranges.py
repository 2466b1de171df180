"""Sets of ids, written as ranges."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from retailrocket_async._spool.id_ranges import ranges


@given(st.sets(st.integers(1, 200)))
def test_ranges(ids: set[int]) -> None:
    """The ranges of a set contain exactly the ids of the set, and there is a gap between any two ranges."""
    found = ranges(ids)
    assert {number for first, last in found for number in range(first, last + 1)} == ids
    assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(found))
