"""What goes on, told on the standard error, so that the standard output holds tables alone."""

from __future__ import annotations

import sys


def tell(text: str) -> None:
    """Print one line."""
    print(text, file=sys.stderr, flush=True)
