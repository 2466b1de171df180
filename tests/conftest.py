"""Fixtures and hooks for all tests: the time limit, the virtual clock, and the rule for tests that need a server."""

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
    # Windows has no module `pwd`. The fixture `unprivileged` does not need it there, because on Windows file
    # permissions apply to every user.
    import pwd

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

# A property is a claim about values and not about the speed of the machine, so examples have no deadline.
settings.register_profile("every", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("few", settings.get_profile("every"), max_examples=15, stateful_step_count=15)
settings.load_profile("every")

REQUIRED = os.environ.get("RETAILROCKET_REQUIRE_SERVERS") == "1"


# The time limit of a test. On a busy machine a test may take a hundred times as long as on an idle one.
SECONDS = 120.0


def pytest_configure(config: pytest.Config) -> None:
    """Limit the time of each test, and make sure that the processes that tests start react to Ctrl-C.

    A shell starts its background jobs with SIGINT ignored, and child processes would inherit this.
    """
    config.pluginmanager.register(TimeLimit(SECONDS))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `needs_server("redis-server")` if the named program is not installed."""
    for marker in item.iter_markers("needs_server"):
        for program in marker.args:
            if shutil.which(program) is None:
                pytest.skip(f"{program} is not installed")


def pytest_collection_finish() -> None:
    """Exclude all present objects from garbage collection, because they live until the end of the run.

    Some tests run full garbage collections, which are faster without these objects.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Collect garbage after the last test of a module, and exclude the remaining objects from later collections.

    pytest keeps some thirty objects of each test until the end of the run. After thousands of tests, each full garbage
    collection would check these objects for a tenth of a second.
    """
    result = yield
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()
    return result


def pytest_itemcollected(item: pytest.Item) -> None:
    """Allow a test marked `leaves_connections` to leave unclosed objects, because the library that it uses leaves some.

    In every other test a warning about an unclosed object is a failure.
    """
    if item.get_closest_marker("leaves_connections"):
        item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


@pytest.fixture(autouse=True)
def collected(request: pytest.FixtureRequest) -> Generator[None]:
    """Run the garbage collector after a test marked `leaves_connections`, before the next test begins."""
    yield
    if request.node.get_closest_marker("leaves_connections"):
        gc.collect()


def pytest_asyncio_loop_factories(item: pytest.Function) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run an async test on a virtual loop if the test uses the fixture `virtual_clock`, otherwise on a real loop."""
    virtual = "virtual_clock" in item.fixturenames
    return {"virtual": CheckedLoop} if virtual else {"real": asyncio.new_event_loop}


@pytest.fixture
async def virtual_clock() -> CheckedLoop:
    """Run the async test that uses this fixture on a virtual clock that begins at 0, and return the event loop.

    Each test gets a loop of its own. The loop raises `Stuck` if every task waits and no timer is set.
    """
    loop = asyncio.get_running_loop()
    assert isinstance(loop, CheckedLoop), "virtual_clock is for async tests"
    return loop


@pytest.fixture
def unprivileged() -> Generator[Path]:
    """Run the test as the user "nobody" instead of root; yield a directory that this user owns."""
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
    """Report a skipped test marked `needs_server` as failed if RETAILROCKET_REQUIRE_SERVERS=1 is set."""
    report = yield
    if REQUIRED and report.skipped and item.get_closest_marker("needs_server"):
        report.outcome = "failed"
        report.longrepr = f"needs a real server, and was skipped: {report.longrepr}"
    return report
