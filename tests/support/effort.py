"""Limits the number of examples of a Hypothesis test in runs that measure coverage, see `nox -s tests`."""

from __future__ import annotations

from hypothesis import settings


def most(count: int) -> int:
    """Return `count`, or the smaller number of the profile "few" if that profile is loaded.

    A test that sets `max_examples=count` itself would override the profile, which `conftest.py` defines.
    """
    return min(count, settings.default.max_examples) if settings.get_current_profile_name() == "few" else count
