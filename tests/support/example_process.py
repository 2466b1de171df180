"""A program of examples/ in a process of its own, which sends to an emulator."""

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
    """Return the environment in which `from_env` finds the emulator, and Python this repository."""
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
    """Run ``python -m arguments``; what it prints is its stdout, and with the block it is gone."""
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
    # A program that hangs ends the test, not the run.
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
    """End it as a process manager does; return its exit status and what else it printed."""
    assert process.stdout is not None
    process.send_signal(signal.SIGTERM)
    printed = process.stdout.read()
    return process.wait(), printed
