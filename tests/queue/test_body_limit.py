"""`BodyLimit`, the largest request body that is sent: lower after a refusal, and slowly higher again."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from retailrocket_async._queue.body_limit import LEAST, BodyLimit
from tests.support.strategies import PROPERTY

MOST = 512 * 1024


def fill(
    cap: BodyLimit, limit: int, seconds: float, *, start: float = 0.0, every: float = 0.5
) -> list[tuple[float, int]]:
    """Send full bodies to a server that accepts `limit` bytes; return the time and size of each refused body."""
    refused: list[tuple[float, int]] = []
    for step in range(int(seconds / every)):
        now, size = start + step * every, cap.bytes
        if size > limit:
            refused.append((now, size))
            cap.refused(size, now)
        else:
            cap.accepted(size, now)
    return refused


def test_it_begins_as_configured() -> None:
    """If no body was refused yet, the limit is the configured size."""
    assert BodyLimit(MOST).bytes == MOST


def test_refused_bodies_halve_it() -> None:
    """If bodies are refused, each refusal halves the limit, down to `LEAST`."""
    cap = BodyLimit(MOST)
    sizes = []
    for _ in range(12):
        cap.refused(cap.bytes, 0.0)
        sizes.append(cap.bytes)

    assert sizes[:3] == [MOST // 2, MOST // 4, MOST // 8]
    assert sizes[-1] == LEAST


def test_a_small_body_between_two_refusals_does_not_make_the_cap_small() -> None:
    """If a small body is accepted between two refusals, each of the refusals halves the limit, and no more."""
    cap = BodyLimit(MOST)
    cap.refused(MOST, 0.0)
    cap.accepted(300, 1.0)
    cap.refused(MOST // 2, 2.0)

    assert cap.bytes == MOST // 4


def test_it_probes_upward_slowly_and_less_and_less_often() -> None:
    """If a server accepts 100 kB, it refuses few of the full bodies that are sent in an hour, at growing intervals."""
    cap = BodyLimit(MOST)
    refused = fill(cap, 100_000, 3600.0)
    later = [at for at, _ in refused if at > 10.0]

    assert len(later) <= 8
    gaps = [after - before for before, after in itertools.pairwise(later)]
    assert gaps == sorted(gaps)
    assert cap.bytes <= 100_000
    assert cap.bytes > 75_000


def test_it_comes_back_when_the_server_does() -> None:
    """If the server accepts all sizes again, the limit grows to the configured size, and no body is refused."""
    cap = BodyLimit(MOST)
    fill(cap, 100_000, 60.0)

    assert fill(cap, MOST, 7200.0, start=60.0) == []
    assert cap.bytes == MOST


def test_small_bodies_do_not_raise_it() -> None:
    """If accepted bodies are far below the limit, the limit does not grow."""
    cap = BodyLimit(MOST)
    cap.refused(MOST, 0.0)
    for step in range(10_000):
        cap.accepted(2000, step * 10.0)

    assert cap.bytes == MOST // 2


@given(st.lists(st.tuples(st.booleans(), st.integers(2, MOST), st.floats(0, 1e6)), max_size=60))
@PROPERTY
def test_it_stays_within_its_bounds(history: list[tuple[bool, int, float]]) -> None:
    """If bodies are refused and accepted in any order, the limit stays in its range, and below each refused size."""
    cap = BodyLimit(MOST)
    for refused, size, now in history:
        if refused:
            cap.refused(size, now)
            assert cap.bytes < max(size, LEAST + 1)
        else:
            cap.accepted(size, now)
        assert LEAST <= cap.bytes <= MOST
