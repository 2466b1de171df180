"""Represents ids of events as ranges of consecutive ids.

Events that get their outcome together mostly have consecutive ids, so one range replaces hundreds of ids.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Range: TypeAlias = tuple[int, int]
"""Consecutive ids: the first id and the last id, both included."""

_MOST_STATEMENTS: Final = 8
"""Largest number of ranges that get one SQL condition per range. For more ranges, one condition lists all ids."""


def ranges(ids: Iterable[int]) -> list[Range]:
    """Return `ids` as ranges of consecutive ids, in ascending order."""
    found: list[Range] = []
    first = last = None
    for number in sorted(ids):
        if last is not None and number == last + 1:
            last = number
            continue
        if first is not None and last is not None:
            found.append((first, last))
        first = last = number
    if first is not None and last is not None:
        found.append((first, last))
    return found


def size_of(ids: Iterable[Range]) -> int:
    """Return how many ids are in the ranges."""
    return sum(last - first + 1 for first, last in ids)


def conditions(ids: Sequence[Range]) -> list[tuple[str, tuple[object, ...]]]:
    """Return pairs of an SQL condition and its parameters. Together the conditions select the rows with these ids."""
    if len(ids) <= _MOST_STATEMENTS:
        return [("id BETWEEN ? AND ?", span) for span in ids]
    each = [number for first, last in ids for number in range(first, last + 1)]
    return [("id IN (SELECT value FROM json_each(?))", (json.dumps(each),))]


def encode_ranges(ids: Sequence[Range]) -> str:
    """Return the ranges as JSON, as the outcome log stores them."""
    return json.dumps(ids, separators=(",", ":"))


def decode_ranges(text: str) -> list[Range]:
    """Return the ranges that `encode_ranges` has encoded; an empty list if the text is damaged."""
    try:
        return [(int(first), int(last)) for first, last in json.loads(text)]
    except (ValueError, TypeError):
        return []
