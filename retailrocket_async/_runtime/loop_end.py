"""Notices that an event loop is closed, or the process ends, while somebody's work in it is not done.

asyncio calls nobody when a loop is closed. But it drops its timers then: so one timer, far in the future, holds the
only reference to an object, which ends with the loop.
"""

from __future__ import annotations

import atexit
import contextvars
import weakref
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import asyncio

FAR: Final = 1e9
"""Seconds until the timer, which is never to fire: thirty years."""


class Resident(Protocol):
    """What has work in a loop."""

    def loop_ended(self, how: str) -> None:
        """Take note of the end: nothing more is done. Called in whatever thread; `how` is the start of a sentence."""
        ...


class _Tether:
    """What a timer holds, and nothing else."""


def watch(loop: asyncio.AbstractEventLoop, resident: Resident) -> None:
    """Tell `resident`, as long as it is alive, when `loop` is closed or the process ends, whichever comes first."""
    known = _residents.get(loop)
    if known is None:
        known = _residents[loop] = weakref.WeakSet()
        tether = _Tether()
        weakref.finalize(tether, _ended, known, "its event loop was closed").atexit = False
        # In a context of its own, or that of the first visitor would live as long as the loop.
        loop.call_later(FAR, _nothing, tether, context=contextvars.Context())
    known.add(resident)


_residents: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.WeakSet[Resident]]] = (
    weakref.WeakKeyDictionary()
)


def _nothing(tether: _Tether) -> None:
    """Be what the timer calls."""


def _ended(residents: weakref.WeakSet[Resident], how: str) -> None:
    for resident in list(residents):
        resident.loop_ended(how)


def _process_ends() -> None:
    for residents in list(_residents.values()):
        _ended(residents, "the process ended")


# With the import, so that it runs after the handlers of the application, which may close the client, and before that of
# `logging`, which ends the log.
atexit.register(_process_ends)
