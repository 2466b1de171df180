"""A limit on the time of one test: a test that hangs fails alone, with the stacks of all its threads and tasks.

`pytest-timeout` has two ways to do this, and both fall short for asyncio. Its `signal` raises `Failed` once. A task or
callback of a loop stores that exception, and the test goes on hanging. Its `thread` ends the whole process.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import io
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType


class TimedOut(KeyboardInterrupt):
    """A test ran too long. Its base is one of the two that tasks and callbacks of a loop let through."""


class TimeLimit:
    """Pytest plugin that ends a test whose setup, call and teardown take too long together; needs POSIX signals.

    Args:
        seconds: how long a test may take.
        again: seconds after which a test that does not end then is interrupted again.
    """

    def __init__(self, seconds: float, again: float = 30.0) -> None:
        self._limit = seconds
        self._again = again
        self._phase = ""
        self._stacks = ""
        self._hung = False
        self._exitstatus = 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        """Interrupt the main thread when the time of a test is over."""
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
            return (yield)
        before = signal.signal(signal.SIGALRM, self._interrupt)
        signal.setitimer(signal.ITIMER_REAL, self._limit, self._again)
        try:
            return (yield)
        finally:
            _stop()
            signal.signal(signal.SIGALRM, before)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None]:
        """Make an interruption of the setup a failure of this test."""
        return (yield from self._limited(item, "setup"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        """Make an interruption of the test its failure."""
        return (yield from self._limited(item, "call"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None]:
        """Make an interruption of the teardown a failure of this test."""
        return (yield from self._limited(item, "teardown"))

    def pytest_enter_pdb(self) -> None:
        """Give a debugger all the time it wants."""
        _stop()

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Kill the children that a test has left when it hung, before pytest-xdist says that this process is done."""
        self._exitstatus = exitstatus
        if self._hung:
            for child in _descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """End the process although a test has left a thread that does not end."""
        others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
        if self._hung and not all(thread.daemon for thread in others):
            # The interpreter would wait for them. Coverage writes its data here, too.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self._exitstatus)

    def _limited(self, item: pytest.Item, phase: str) -> Generator[None]:
        self._phase, self._stacks = phase, ""
        try:
            return (yield)
        finally:
            self._phase = ""
            if self._stacks:
                item.add_report_section(phase, "stacks", self._stacks)
                # Now, and not while pytest parses source for its report: tasks that are destroyed there log tracebacks,
                # for which CPython before 3.11.5 parses source, too, and it cannot do the one inside the other.
                gc.collect()
                # Instead of whatever came of the interruption, even if the test has swallowed it.
                pytest.fail(f"took longer than {self._limit:g} s")

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if not self._phase:
            return
        self._hung = True
        self._stacks = self._stacks or _all_stacks()
        if self._phase == "teardown":
            # Of what a fixture raises here pytest knows only its own, and goes on with the next fixture.
            pytest.fail(f"took longer than {self._limit:g} s")
        raise TimedOut


def _stop() -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)


def _all_stacks() -> str:
    """Return the stacks of all threads, and those of all tasks that are not done."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = io.StringIO()
        text.write(file.read())
    for task in gc.get_objects():
        # `isinstance` would ask a proxy, which may refuse.
        if issubclass(type(task), asyncio.Task) and not task.done():
            task.print_stack(file=text)
    return text.getvalue()


def _descendants(parent: int) -> list[int]:
    """Return the processes that this one has started, and those that they have; none if there is no /proc."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(status.read_text().rpartition(")")[2].split()[1]), []).append(
                int(status.parent.name)
            )
    found = list(children.get(parent, []))
    for child in found:
        found += children.get(child, [])
    return found
