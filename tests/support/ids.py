"""Names of parametrized tests that are the same in every process; pytest-xdist needs the same names in all workers."""

from __future__ import annotations

import re


def stable_id(value: object) -> str:
    """Return a short text for a parameter of a test, without the addresses of objects."""
    if type(value) is int and abs(value) >= 10**20:
        return f"{value.bit_length()} bits"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))[:60]
