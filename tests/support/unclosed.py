"""Fail the test that leaves something unclosed, a connection for example, and not a later one on the same worker.

A folder's conftest.py takes part by importing the hook::

    from tests.support.unclosed import pytest_runtest_teardown

    __all__ = ["pytest_runtest_teardown"]
"""

from __future__ import annotations

import gc
import warnings
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """Collect garbage after the fixtures have ended; fail the test if the garbage held anything unclosed.

    A test marked `leaves_connections` does not fail: what its library leaves is closed here, and no later test sees it.
    """
    yield
    if isinstance(item, pytest.Function):
        # Until the end of its protocol the item holds the values of its fixtures.
        item.funcargs.clear()
    left = collected()
    if left and not item.get_closest_marker("leaves_connections"):
        pytest.fail("the test left unclosed:\n" + "\n".join(left), pytrace=False)


def collected() -> list[str]:
    """Collect garbage, and return the warnings of what was not closed."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", ResourceWarning)
        # What a first collection finalizes may release what a second one finds.
        gc.collect()
        gc.collect()
    return [str(each.message) for each in found if issubclass(each.category, ResourceWarning)]
