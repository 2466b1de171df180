"""Ids as ranges."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from retailrocket_async._spool.id_ranges import ranges


@given(st.sets(st.integers(1, 200)))
def test_ranges(ids: set[int]) -> None:
    """Ranges hold exactly the ids that they were made of, and no two of them touch."""
    found = ranges(ids)
    assert {number for first, last in found for number in range(first, last + 1)} == ids
    assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(found))
