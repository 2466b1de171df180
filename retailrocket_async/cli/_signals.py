"""Signals that end a command, heard in its event loop."""

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
    """Call `interrupt` in the event loop for every SIGINT and SIGTERM."""
    loop = asyncio.get_running_loop()

    def handle(number: int, _frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(interrupt, number)

    # signal.signal and not loop.add_signal_handler: it works on every platform and can be undone.
    # One that is ignored stays so: a command in the background of a script is not to be interrupted.
    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
