"""A pytest hook that fails a test if the test leaves an unclosed object, such as a connection.

Without the hook the warning would appear in a later test of the same worker. The hook applies to the tests of a folder
whose conftest.py imports the hook::

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
    """Collect garbage after the teardown of the fixtures; fail the test if there was an unclosed object.

    A test marked `leaves_connections` does not fail: its library is known to leave connections. This garbage
    collection closes these connections, so no later test is affected.
    """
    yield
    if isinstance(item, pytest.Function):
        # The item refers to the values of its fixtures, so the reference has to be removed before the collection.
        item.funcargs.clear()
    left = collected()
    if left and not item.get_closest_marker("leaves_connections"):
        pytest.fail("the test left unclosed:\n" + "\n".join(left), pytrace=False)


def collected() -> list[str]:
    """Collect garbage, and return the texts of all warnings about unclosed objects."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", ResourceWarning)
        # Finalizers that run in the first collection may release objects that only a second collection finds.
        gc.collect()
        gc.collect()
    return [str(each.message) for each in found if issubclass(each.category, ResourceWarning)]
