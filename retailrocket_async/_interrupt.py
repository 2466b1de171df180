"""Distinguishes the user's Ctrl-C from an error that foreign code raised."""

from __future__ import annotations

import dis
import signal
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import TracebackType

_RAISING: Final = frozenset({"RAISE_VARARGS", "RERAISE"})
"""Instructions that raise an error on purpose."""


def is_interrupt(error: BaseException) -> bool:
    """Whether the handler of a signal raised an error, as that of Ctrl-C does; such an error must end the program.

    Signals are handled in the main thread only. `asyncio.run` installs a handler of its own, which cancels the main
    task at the first Ctrl-C, and raises at the second.
    """
    if isinstance(error, Exception):
        return False
    if threading.current_thread() is not threading.main_thread():
        return False
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    # A partial has its function in `func`; a method has the code of its function.
    codes = {getattr(getattr(handler, "func", handler), "__code__", None) for handler in handlers}
    innermost: TracebackType | None = None
    traceback = error.__traceback__
    while traceback is not None:
        innermost, traceback = traceback, traceback.tb_next
        if innermost.tb_frame.f_code in codes:
            return True
    # Python's own handler of Ctrl-C has no frame: its error comes from between two instructions.
    by_default = isinstance(error, KeyboardInterrupt) and signal.default_int_handler in handlers
    return by_default and (innermost is None or not _raises(innermost))


def _raises(traceback: TracebackType) -> bool:
    return dis.opname[traceback.tb_frame.f_code.co_code[traceback.tb_lasti]] in _RAISING
