"""Runs a function in a process of its own, so that what one thing has left behind is not charged to the next.

::

    figures = call("_cost:ours_by_track", port=8080, events=100_000)

The function returns what JSON can hold. It may be a coroutine function. `Meter` measures the part of it that counts.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

_HERE = Path(__file__).resolve()


def call(target: str, *, env: dict[str, str] | None = None, **arguments: Any) -> dict[str, Any]:
    """Call ``module:function`` in a new process, and return what it returns.

    Raises:
        RuntimeError: it failed; the message is what it wrote.
    """
    command = [sys.executable, str(_HERE), target, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | (env or {}))
    if done.returncode:
        raise RuntimeError(f"{target} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def peak_memory() -> int:
    """Return the bytes of memory that this process has held at most; on Linux only."""
    # Not `getrusage`: what it says begins with what the process that started this one had held.
    found = re.search(rb"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_bytes())
    assert found is not None
    return int(found[1]) * 1024


class Meter:
    """Measures what a block costs this process.

    Attributes:
        cpu: seconds of user and system time.
        wall: seconds.
        peak: bytes of memory that the process has held at most, since its start.
    """

    def __enter__(self) -> Self:
        gc.collect()
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cpu = time.process_time() - self._cpu
        self.wall = time.perf_counter() - self._wall
        self.peak = peak_memory()


def _main() -> None:
    target, arguments = sys.argv[1:]
    module, _, name = target.partition(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    print(json.dumps(result))
    sys.stdout.flush()
    # Peers leave threads behind that would go on for minutes.
    os._exit(0)


if __name__ == "__main__":
    _main()
