"""Notifies objects when their event loop is closed, or the process ends.

asyncio has no callback for the close of a loop, but a closed loop drops its timers. So a timer far in the future holds
the only reference to an object, and the finalizer of that object is the callback.
"""

from __future__ import annotations

import atexit
import contextvars
import weakref
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import asyncio

FAR: Final = 1e9
"""Seconds until the timer, thirty years: it never fires."""


class Resident(Protocol):
    """An object that has work in an event loop."""

    def loop_ended(self, how: str) -> None:
        """Handle the end of the loop or the process; called in any thread.

        Args:
            how: what ended, as the start of a sentence.
        """
        ...


class _Tether:
    """An object to which only the timer refers; it is finalized when the loop drops its timers."""


def watch(loop: asyncio.AbstractEventLoop, resident: Resident) -> None:
    """Call `resident.loop_ended`, while it is alive, when `loop` is closed or the process ends, whatever is first."""
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
    """Do nothing; the timer needs a function."""


def _ended(residents: weakref.WeakSet[Resident], how: str) -> None:
    for resident in list(residents):
        resident.loop_ended(how)


def _process_ends() -> None:
    for residents in list(_residents.values()):
        _ended(residents, "the process ended")


# Registered at import, so that it runs after the handlers of the application, which may close the client, and before
# the handler of `logging`, which ends the log.
atexit.register(_process_ends)
