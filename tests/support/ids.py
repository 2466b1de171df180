"""Names of parametrised cases that are the same in every process: the tests run in several, which must agree."""

from __future__ import annotations

import re


def shown(value: object) -> str:
    """Return the repr of `value` without the addresses in it."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
