"""Passes SIGINT and SIGTERM to a command's event loop."""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import FrameType


@contextmanager
def ending_signals(interrupt: Callable[[int], None]) -> Generator[None]:
    """While the block runs, call `interrupt` in the event loop with the signal's number at each SIGINT and SIGTERM."""
    loop = asyncio.get_running_loop()

    def handle(number: int, _frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(interrupt, number)

    # signal.signal works on every platform, and the earlier handler can be restored; with loop.add_signal_handler
    # neither is possible. A signal that is ignored stays ignored: a shell starts background commands with SIGINT
    # ignored.
    handled = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
