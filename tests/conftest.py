"""For all tests: a time limit, the virtual clock, and the rule for tests that need a real server."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.support.time_limit import TimeLimit
from tests.support.virtual_time import CheckedLoop

with suppress(ImportError):
    # Not on Windows, whose permissions bind everybody.
    import pwd

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

# A property is a claim about values, not about the time that the machine takes for them.
settings.register_profile("every", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("few", settings.get_profile("every"), max_examples=15, stateful_step_count=15)
settings.load_profile("every")

REQUIRED = os.environ.get("RETAILROCKET_REQUIRE_SERVERS") == "1"


# On a machine that has much else to do a test may take a hundred times as long.
SECONDS = 120.0


def pytest_configure(config: pytest.Config) -> None:
    """Limit the time of each test; let Ctrl-C end what tests start even if a shell runs this in its background."""
    config.pluginmanager.register(TimeLimit(SECONDS))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `needs_server("redis-server")` where that program is not installed."""
    for marker in item.iter_markers("needs_server"):
        for program in marker.args:
            if shutil.which(program) is None:
                pytest.skip(f"{program} is not installed")


def pytest_collection_finish() -> None:
    """Spare the collector what is there for the whole run: it is asked to look at everything by some tests."""
    gc.collect()
    gc.freeze()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let the collector complain of what a library leaves to it where that is known, and in no other test."""
    if item.get_closest_marker("leaves_connections"):
        item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


@pytest.fixture(autouse=True)
def collected(request: pytest.FixtureRequest) -> Generator[None]:
    """Collect what such a test has left, before the next one begins."""
    yield
    if request.node.get_closest_marker("leaves_connections"):
        gc.collect()


def pytest_asyncio_loop_factories(item: pytest.Function) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run an async test that uses the fixture `virtual_clock` on a virtual loop of its own, any other on a real one."""
    virtual = "virtual_clock" in item.fixturenames
    return {"virtual": CheckedLoop} if virtual else {"real": asyncio.new_event_loop}


@pytest.fixture
async def virtual_clock() -> CheckedLoop:
    """Run the async test that asks for this fixture on a virtual clock that begins at 0, and return its loop.

    The loop belongs to this test alone. It raises `Stuck` if every task waits and no timer is set.
    """
    loop = asyncio.get_running_loop()
    assert isinstance(loop, CheckedLoop), "virtual_clock is for async tests"
    return loop


@pytest.fixture
def unprivileged() -> Generator[Path]:
    """A directory of a user without root's rights, who the process belongs to until the test ends."""
    with tempfile.TemporaryDirectory() as directory:
        if os.name == "nt" or os.geteuid() != 0:
            yield Path(directory)
            return
        nobody, groups = pwd.getpwnam("nobody").pw_uid, os.getgroups()
        os.chown(directory, nobody, -1)
        os.setgroups([])
        os.seteuid(nobody)
        try:
            yield Path(directory)
        finally:
            os.seteuid(0)
            os.setgroups(groups)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make a skip of such a test a failure where servers are required, whatever its reason."""
    report = yield
    if REQUIRED and report.skipped and item.get_closest_marker("needs_server"):
        report.outcome = "failed"
        report.longrepr = f"needs a real server, and was skipped: {report.longrepr}"
    return report
