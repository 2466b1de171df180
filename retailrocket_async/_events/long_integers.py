"""Finds integers of more than 64 bits in JSON.

orjson would replace such an integer by the nearest double, so the API would record a different id.
"""

from __future__ import annotations

import json
import re
from typing import Any, cast

from retailrocket_async._events.validators import INT64_MAX, INT64_MIN

_MAYBE_LONG = re.compile(rb"[0-9]{19}")
_STRING_OR_LONG = re.compile(rb'"(?:[^"\\]++|\\.)*+"|([-+.0-9Ee]{19,})')


def has_long_integer(text: bytes) -> bool:
    """Whether a JSON text contains an integer of more than 64 bits."""
    if not _MAYBE_LONG.search(text):
        return False
    numbers = (found[1] for found in _STRING_OR_LONG.finditer(text) if found[1])
    return any(
        number.lstrip(b"-").isdigit() and (len(number) > 20 or not INT64_MIN <= int(number) <= INT64_MAX)
        for number in numbers
    )


class _Long:
    """Replaces an integer of more than 64 bits in the result of `exact_json`."""


def exact_json(text: bytes) -> Any:  # noqa: ANN401 - any JSON
    """Return the value of a JSON text; a `_Long` object replaces each integer of more than 64 bits, see `has_long`.

    The text must be valid JSON that is not nested deeply.
    """
    return json.loads(text, parse_int=_exact)


def _exact(digits: str) -> int | _Long:
    return int(digits) if len(digits) <= 20 and INT64_MIN <= int(digits) <= INT64_MAX else _Long()


def has_long(value: object) -> bool:
    """Whether the JSON text, of which `exact_json` returned `value`, has an integer of more than 64 bits."""
    left = [value]
    while left:
        each = left.pop()
        if type(each) is _Long:
            return True
        if type(each) is dict:
            left += cast("dict[str, object]", each).values()
        elif type(each) is list:
            left += cast("list[object]", each)
    return False
