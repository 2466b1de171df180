"""Runs a program of examples/ in a new process; the program sends its events to an emulator."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from retailrocket_async.emulator import EmulatorProcess, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


def environment_of(emulator: EmulatorProcess, **more: str) -> dict[str, str]:
    """Return environment variables with which a program sends to the emulator, and imports from this repository."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "RETAILROCKET_API_KEY": Settings().api_key,
        "RETAILROCKET_PARTNER_ID": Settings().partner_id,
        "RETAILROCKET_BASE_URL": emulator.url,
        **more,
    }


@contextmanager
def example(
    *arguments: str, emulator: EmulatorProcess, pass_fds: tuple[int, ...] = (), **more: str
) -> Iterator[subprocess.Popen[str]]:
    """Run ``python -m arguments`` while the block runs; yield the process, whose standard output is a pipe."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=environment_of(emulator, **more),
        pass_fds=pass_fds,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    # A program that hangs is killed, so that only the current test fails.
    killer = threading.Timer(100, os.killpg, (process.pid, signal.SIGKILL))
    killer.start()
    with process:
        try:
            yield process
        finally:
            killer.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Send SIGTERM to the program and wait for its end; return its exit status and the rest of its output."""
    assert process.stdout is not None
    process.send_signal(signal.SIGTERM)
    printed = process.stdout.read()
    return process.wait(), printed
