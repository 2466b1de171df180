"""A pytest plugin that limits the time of each test. A test that hangs fails, and the other tests still run.

The report of a failed test shows the stacks of all threads and tasks. `pytest-timeout` has two methods, and neither
suits asyncio. Its method `signal` raises `Failed` once; a task or callback of the event loop stores that exception, and
the test goes on hanging. Its method `thread` ends the whole process.
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
    """A test ran too long.

    The base class is KeyboardInterrupt, because an event loop stores any other error of its tasks and callbacks, except
    SystemExit, and goes on.
    """


class TimeLimit:
    """Pytest plugin that ends a test if its setup, call and teardown together take too long. It needs POSIX signals.

    Args:
        seconds: the most seconds that a test may take.
        again: seconds after which an interrupted test is interrupted again if the test still runs.
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
        """Start a timer that interrupts the main thread when the test has run too long."""
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
        """Report this test as failed if its setup was interrupted."""
        return (yield from self._limited(item, "setup"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        """Report this test as failed if its call was interrupted."""
        return (yield from self._limited(item, "call"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None]:
        """Report this test as failed if its teardown was interrupted."""
        return (yield from self._limited(item, "teardown"))

    def pytest_enter_pdb(self) -> None:
        """Stop the timer when the user enters a debugger."""
        _stop()

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Kill the child processes that a hanging test has left.

        This must be done before pytest-xdist reports that this process is done.
        """
        self._exitstatus = exitstatus
        if self._hung:
            for child in _descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """End the process, even if a hanging test has left a thread that does not end."""
        others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
        if self._hung and not all(thread.daemon for thread in others):
            # At its normal exit, the interpreter would wait for these threads. `os._exit` does not wait.
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
                # Destroyed tasks log tracebacks, for which CPython parses source code. pytest parses source code for
                # its report, too, and CPython before 3.11.5 cannot parse while it parses. So garbage is collected
                # here, and not at a random moment of the report.
                gc.collect()
                # The test fails even if its own code has caught the interruption.
                pytest.fail(f"took longer than {self._limit:g} s")

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if not self._phase:
            return
        self._hung = True
        self._stacks = self._stacks or _all_stacks()
        if self._phase == "teardown":
            # After an error in a teardown, pytest goes on with the next fixture only if the error is an Exception or an
            # error of pytest. `TimedOut` is neither.
            pytest.fail(f"took longer than {self._limit:g} s")
        raise TimedOut


def _stop() -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)


def _all_stacks() -> str:
    """Return the stacks of all threads, and of all tasks that are not done."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = io.StringIO()
        text.write(file.read())
    for task in gc.get_objects():
        # `isinstance` would read the attribute `__class__`, which may raise an error if the object is a proxy.
        if issubclass(type(task), asyncio.Task) and not task.done():
            task.print_stack(file=text)
    return text.getvalue()


def _descendants(parent: int) -> list[int]:
    """Return the ids of all descendants of the process `parent`; an empty list if there is no /proc."""
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
