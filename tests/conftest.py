"""What all tests share: the rule for tests that need a real server."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

REQUIRED = os.environ.get("RETAILROCKET_REQUIRE_SERVERS") == "1"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `needs_server("redis-server")` where that program is not installed."""
    for marker in item.iter_markers("needs_server"):
        for program in marker.args:
            if shutil.which(program) is None:
                pytest.skip(f"{program} is not installed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make a skip of such a test a failure where servers are required, whatever its reason."""
    report = yield
    if REQUIRED and report.skipped and item.get_closest_marker("needs_server"):
        report.outcome = "failed"
        report.longrepr = f"needs a real server, and was skipped: {report.longrepr}"
    return report
