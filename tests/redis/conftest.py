"""Settings for the tests of this folder: a test fails if it leaves a socket or another resource unclosed."""

from __future__ import annotations

from tests.support.unclosed import pytest_runtest_teardown

__all__ = ["pytest_runtest_teardown"]
