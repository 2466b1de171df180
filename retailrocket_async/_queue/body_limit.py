"""How large a request's body may be: as configured, or what the server was seen to take.

No maximum is documented (contract, "Batches"). A 413 tells that there is one, and about where: later bodies stay below
it. The cap grows again slowly, as far as the configured one, and a body that is refused on the way costs no more than
its own splitting.
"""

from __future__ import annotations

from typing import Final

LEAST: Final = 1024
"""Bytes that the cap never goes below; an event on its own is sent whatever its size."""

_STEP: Final = 8
"""The cap grows by an eighth of itself."""

_FIRST_WAIT, _LAST_WAIT = 60.0, 3600.0
"""Seconds between two steps up; doubled every time that one was too many."""


class BodyLimit:
    """The largest body that is sent, in bytes; see the module's text.

    Args:
        most: the configured maximum.

    Attributes:
        bytes: the cap as it is now.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.bytes = most
        self._taken = 0
        self._wait = _FIRST_WAIT
        self._grows_at = 0.0

    def refused(self, size: int, now: float) -> None:
        """Tell that a body of several events and `size` bytes was too large."""
        if self._taken >= size:
            # The server has changed its mind.
            self._taken = 0
        elif self._taken and size <= self.bytes:
            self._wait = min(_LAST_WAIT, self._wait * 2.0)
        # The truth lies between what was taken and what was not: a small body that was taken says little.
        self.bytes = max(LEAST, min(self.bytes, max(self._taken, size // 2)))
        self._grows_at = now + self._wait

    def accepted(self, size: int, now: float) -> None:
        """Tell that a body of `size` bytes was taken."""
        if self.bytes == self._most:
            return
        self._taken = max(self._taken, size)
        # Only what fills the cap says that there is room beyond it.
        if now >= self._grows_at and size >= self.bytes - self.bytes // 4:
            self.bytes = min(self._most, self.bytes + max(LEAST, self.bytes // _STEP))
            self._grows_at = now + self._wait
            if self.bytes == self._most:
                self._taken, self._wait = 0, _FIRST_WAIT
