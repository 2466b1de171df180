"""Runs a server in a process of its own, so that a client that blocks its event loop does not delay the server."""

from __future__ import annotations

import contextlib
import multiprocessing
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from tests.support.parent_end import exit_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

Pipe: TypeAlias = "Connection[object, object]"
_Settings = TypeVar("_Settings")


@contextlib.contextmanager
def running(main: Callable[[Pipe, _Settings], None], settings: _Settings) -> Iterator[tuple[int, Pipe]]:
    """Run `main` in a new process while the block runs; yield the port of the new process and the pipe to it.

    The port is the first value that `main` must send through the pipe. The new process ends with the block, and also if
    this process is killed.

    Raises:
        EOFError: the process ended before it sent its port.
    """
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = start(main, theirs, settings)
    # Only the server has this end of the pipe open from now on, so the pipe ends when the server ends.
    theirs.close()
    try:
        port = ours.recv()
        assert isinstance(port, int)
        yield port, ours
    finally:
        process.terminate()
        process.join()
        ours.close()


def start(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """Start a process that calls `target`; the new process ends when this process ends, even if this one is killed."""
    process = multiprocessing.get_context("spawn").Process(target=_call, args=(target, arguments), daemon=True)
    process.start()
    return process


def _call(target: Callable[..., None], arguments: tuple[object, ...]) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    exit_with_parent(parent.join)
    target(*arguments)
