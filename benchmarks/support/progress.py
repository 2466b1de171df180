"""Reports progress on the standard error, so that the standard output contains only tables."""

from __future__ import annotations

import sys


def report(text: str) -> None:
    """Print one line to the standard error."""
    print(text, file=sys.stderr, flush=True)
