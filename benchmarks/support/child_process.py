"""Calls a function in a new process, so that earlier calls do not influence the measurement.

::

    figures = call("benchmarks.contestants:ours_by_track", port=8080, events=100_000)

The function may be a coroutine function. Its arguments and its result are values that JSON can hold.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.parent_end import exit_with_parent

_ROOT = Path(__file__).resolve().parents[2]


def call(target: str, *, env: dict[str, str] | None = None, **arguments: Any) -> dict[str, Any]:
    """Call ``module:function`` in a new process, and return its result.

    The process ends as well if this process is killed.

    Args:
        target: the module's full name and the function's name.
        env: environment variables in addition to those of this process.
        arguments: keyword arguments of the function.

    Raises:
        RuntimeError: the process failed; the message is the end of its standard error.
    """
    output = run("benchmarks.support.child_process", target, json.dumps(arguments), env=env)
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def run(module: str, *arguments: str, env: dict[str, str] | None = None) -> str:
    """Run ``python -m module arguments`` in the root of the repository, and return its standard output.

    The module must call `exit_at_end_of_input`, so that it ends if this process is killed.

    Raises:
        RuntimeError: the process failed; the message is the end of its standard error.
    """
    # This process never writes to the pipe. When this process ends, the pipe ends, and the module notices that and
    # exits.
    reading, writing = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            stdin=reading,
            capture_output=True,
            text=True,
            check=False,
            cwd=_ROOT,
            env=os.environ | (env or {}),
        )
    finally:
        os.close(reading)
        os.close(writing)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def exit_at_end_of_input() -> None:
    """End this process when its standard input ends, because the process that started it by `run` has ended."""

    def read_to_end() -> None:
        while os.read(0, 1):
            pass

    exit_with_parent(read_to_end)


def _main() -> None:
    exit_at_end_of_input()
    target, arguments = sys.argv[1:]
    module, _, name = target.partition(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    print(json.dumps(result))
    sys.stdout.flush()
    # `os._exit` is used, because threads of the compared libraries would keep this process running for minutes.
    os._exit(0)


if __name__ == "__main__":
    _main()
