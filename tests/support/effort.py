"""The number of examples of a property: fewer under a tracer, see `nox -s tests`."""

from __future__ import annotations

from hypothesis import settings


def most(count: int) -> int:
    """Return so many, or as few as the profile has that `conftest.py` makes, which a number of one's own would hide."""
    return min(count, settings.default.max_examples) if settings.get_current_profile_name() == "few" else count
