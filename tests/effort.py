"""How many examples a property has: fewer where a tracer watches, see `nox -s tests`."""

from __future__ import annotations

from hypothesis import settings

FEW = "few"
"""The name of the profile."""

_MOST = 15


def register() -> None:
    """Make the profile known."""
    settings.register_profile(FEW, max_examples=_MOST, stateful_step_count=_MOST, deadline=None)


def most(count: int) -> int:
    """Return so many, or a few under the profile, which says nothing where a property has a number of its own."""
    return min(count, _MOST) if settings.get_current_profile_name() == FEW else count
