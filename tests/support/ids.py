"""Makes names of parametrised test cases that are equal in every process, as pytest-xdist requires."""

from __future__ import annotations

import re


def shown(value: object) -> str:
    """Return the repr of `value` without memory addresses, which differ between processes."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
