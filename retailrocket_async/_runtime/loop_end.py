"""Notifies objects when their event loop is closed, or the process ends.

asyncio has no callback for the close of a loop, but a closed loop drops its timers. So a timer far in the future holds
the only reference to a sentinel. If the loop is closed, the timer is dropped, the sentinel is freed, and the finalizer
of the sentinel notifies the objects that use the loop.
"""

from __future__ import annotations

import atexit
import contextvars
import weakref
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import asyncio

FAR: Final = 1e9
"""Delay of the timer in seconds: thirty years, so the timer never fires."""


class Resident(Protocol):
    """An object that uses an event loop, and must be notified when the loop ends."""

    def loop_ended(self, how: str) -> None:
        """Handle the end of the loop or the process; called in any thread.

        Args:
            how: the start of a sentence that says what ended, e.g. ``"the process ended"``.
        """
        ...


class _Tether:
    """An object to which only the timer refers, so the object is finalized when the loop drops its timers."""


def watch(loop: asyncio.AbstractEventLoop, resident: Resident) -> None:
    """Call `resident.loop_ended` when `loop` is closed, and when the process ends, as long as `resident` is alive."""
    known = _residents.get(loop)
    if known is None:
        known = _residents[loop] = weakref.WeakSet()
        tether = _Tether()
        weakref.finalize(tether, _ended, known, "its event loop was closed").atexit = False
        # Use an empty context: the caller's context would otherwise stay in memory as long as the loop.
        loop.call_later(FAR, _nothing, tether, context=contextvars.Context())
    known.add(resident)


_residents: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.WeakSet[Resident]]] = (
    weakref.WeakKeyDictionary()
)


def _nothing(tether: _Tether) -> None:
    """Do nothing. The timer needs a function to call, and refers to `tether` as the function's argument."""


def _ended(residents: weakref.WeakSet[Resident], how: str) -> None:
    for resident in list(residents):
        resident.loop_ended(how)


def _process_ends() -> None:
    for residents in list(_residents.values()):
        _ended(residents, "the process ended")


# Exit handlers run in reverse order. This handler is registered at import, so it runs after the application's handlers,
# which may close the client, and before the handler of `logging`, which shuts the log down.
atexit.register(_process_ends)
