"""What is left unclosed fails the test that left it."""

from __future__ import annotations

from tests.support.unclosed import pytest_runtest_teardown

__all__ = ["pytest_runtest_teardown"]
