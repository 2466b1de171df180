"""Distinguishes the user's Ctrl-C from an error that a hook or another function of the user raised."""

from __future__ import annotations

import dis
import signal
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import TracebackType

_RAISING: Final = frozenset({"RAISE_VARARGS", "RERAISE"})
"""Bytecode instructions of `raise` statements."""


def is_interrupt(error: BaseException) -> bool:
    """Whether a signal handler raised the error, as on Ctrl-C; such an error must end the program.

    Signal handlers run in the main thread only. `asyncio.run` installs its own handler, which cancels the main task at
    the first Ctrl-C and raises `KeyboardInterrupt` at the second.
    """
    if isinstance(error, Exception):
        return False
    if threading.current_thread() is not threading.main_thread():
        return False
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    # A `functools.partial` holds its function in `func`. A method has the same `__code__` as its function.
    codes = {getattr(getattr(handler, "func", handler), "__code__", None) for handler in handlers}
    innermost: TracebackType | None = None
    traceback = error.__traceback__
    while traceback is not None:
        innermost, traceback = traceback, traceback.tb_next
        if innermost.tb_frame.f_code in codes:
            return True
    # Python's default Ctrl-C handler has no frame of its own. So the last frame of the traceback belongs to the
    # interrupted code, which was at an instruction other than a `raise`.
    by_default = isinstance(error, KeyboardInterrupt) and signal.default_int_handler in handlers
    return by_default and (innermost is None or not _raises(innermost))


def _raises(traceback: TracebackType) -> bool:
    return dis.opname[traceback.tb_frame.f_code.co_code[traceback.tb_lasti]] in _RAISING
