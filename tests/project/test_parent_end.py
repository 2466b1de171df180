"""If a benchmark or an acceptance run ends, or the parent of a test server, all its child processes end, too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.endurance,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
]

PARENT = """
import subprocess
from tests.support.parent_end import until_parent_ends

subprocess.Popen(until_parent_ends("sleep", "1000")).wait()
"""


def alive(pid: int) -> bool:
    """Return True if the process runs; False if it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def descendants(pid: int) -> list[int]:
    """Return the ids of the running processes that `pid` started, directly or indirectly."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in children.read_text("ascii").split()]
        except OSError:
            continue
    return [each for child in found for each in (child, *descendants(child)) if alive(each)]


def wait_until(condition: Callable[[], bool], description: str) -> None:
    """Poll until `condition()` is true, for at most 60 s; then fail."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"this did not happen: {description}"
        time.sleep(0.05)


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python in the root of the repository while the block runs; then kill the process and all its descendants."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    known: set[int] = set()
    try:
        yield process
    finally:
        known.update(descendants(process.pid))
        process.kill()
        process.wait()
        for pid in known:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("arguments", "processes"),
    [
        # Child processes: the server, the measured process, and the resource tracker of `multiprocessing`.
        ("benchmarks.bench --quick --only profile", 3),
        ("acceptance.faults --only close-stalled", 2),
        # Child processes: the server, and processes that share a spool (a queue in a file).
        ("acceptance.fleet --quick --only torture", 4),
        # Child processes: Redis, a relay, a watcher of each of the two, and the server.
        pytest.param("acceptance.fleet --quick --only crash", 6, marks=pytest.mark.needs_server("redis-server")),
    ],
)
def test_a_killed_run_leaves_no_process(arguments: str, processes: int) -> None:
    """If a run is killed, every process that it has started ends."""
    with running("-m", *arguments.split()) as run:
        # `processes` includes the resource tracker, which `multiprocessing` starts.
        wait_until(lambda: len(descendants(run.pid)) >= processes, f"{processes} processes run")
        children = descendants(run.pid)
        run.kill()
        run.wait()

        try:
            wait_until(lambda: not any(map(alive, children)), "all children have ended")
        finally:
            for pid in filter(alive, children):
                os.kill(pid, signal.SIGKILL)


def test_a_program_ends_with_its_parent() -> None:
    """If the parent of a program ends, the program is killed, even if it does not check whether its parent runs."""
    with running("-c", PARENT) as parent:
        wait_until(lambda: len(descendants(parent.pid)) == 2, "the program and its watcher run")
        children = descendants(parent.pid)
        parent.kill()
        parent.wait()

        wait_until(lambda: not any(map(alive, children)), "the program has ended")


def test_a_watcher_ends_with_its_program() -> None:
    """If a program ends, the process that watches it ends, too, and the parent gets the program's exit status."""
    with running("-c", PARENT.replace(".wait()", ".wait() == -9 or exit(3)")) as parent:
        wait_until(lambda: len(descendants(parent.pid)) == 2, "the program and its watcher run")
        program, watcher = descendants(parent.pid)
        os.kill(program, signal.SIGKILL)

        assert parent.wait(60) == 0
        wait_until(lambda: not alive(watcher), "the watcher has ended")
