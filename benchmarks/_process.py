"""A server in a process of its own, so that a blocked client cannot make the clock that judges it late."""

from __future__ import annotations

import contextlib
import multiprocessing
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

Pipe: TypeAlias = "Connection[object, object]"
_Settings = TypeVar("_Settings")


@contextlib.contextmanager
def running(main: Callable[[Pipe, _Settings], None], settings: _Settings) -> Iterator[tuple[int, Pipe]]:
    """Run `main` while the block runs; give the port, which it must send first, and the pipe to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=main, args=(theirs, settings), daemon=True)
    process.start()
    try:
        port = ours.recv()
        assert isinstance(port, int)
        yield port, ours
    finally:
        process.terminate()
        process.join()
