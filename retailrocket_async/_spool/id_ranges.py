"""Represents ids of events as ranges. Settled events mostly have consecutive ids, so one range replaces hundreds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Range: TypeAlias = tuple[int, int]
"""The first and the last of ids that follow one another."""

_MOST_STATEMENTS: Final = 8
"""Ranges that get one SQL condition each; more ranges are turned into one list of ids."""


def ranges(ids: Iterable[int]) -> list[Range]:
    """Return `ids` as ranges, in ascending order."""
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
    """Return how many ids the ranges hold."""
    return sum(last - first + 1 for first, last in ids)


def conditions(ids: Sequence[Range]) -> list[tuple[str, tuple[object, ...]]]:
    """Return SQL conditions, each with its values, that together select the rows with these ids."""
    if len(ids) <= _MOST_STATEMENTS:
        return [("id BETWEEN ? AND ?", span) for span in ids]
    each = [number for first, last in ids for number in range(first, last + 1)]
    return [("id IN (SELECT value FROM json_each(?))", (json.dumps(each),))]


def encode_ranges(ids: Sequence[Range]) -> str:
    """Return ranges as the JSON text that the outcome log holds."""
    return json.dumps(ids, separators=(",", ":"))


def decode_ranges(text: str) -> list[Range]:
    """Return the ranges that an entry of the outcome log names; none if its text is damaged."""
    try:
        return [(int(first), int(last)) for first, last in json.loads(text)]
    except (ValueError, TypeError):
        return []
