"""Limits the number of examples of a Hypothesis test in runs that measure coverage, see `nox -s tests`."""

from __future__ import annotations

from hypothesis import settings


def most(count: int) -> int:
    """Return `count`, or the smaller number of the profile "few" if that profile is loaded.

    `conftest.py` defines this Hypothesis profile. A test that set `max_examples=count` directly would override it.
    """
    return min(count, settings.default.max_examples) if settings.get_current_profile_name() == "few" else count
