"""Learns the largest request body that the server accepts.

The API documents no maximum (contract, "Batches"). A 413 shows that there is one below the size of that body, so later
bodies stay smaller. The limit grows again slowly, up to the configured one. A body that is refused meanwhile costs only
its own division.
"""

from __future__ import annotations

from typing import Final

LEAST: Final = 1024
"""Smallest limit in bytes; a single event is sent whatever its size."""

_STEP: Final = 8
"""The limit grows by this fraction of itself: an eighth."""

_FIRST_WAIT, _LAST_WAIT = 60.0, 3600.0
"""Seconds between two steps up, at first and at most; doubled each time that a step was too large."""


class BodyLimit:
    """The largest body to send, in bytes; see the module's text.

    Args:
        most: the configured maximum.

    Attributes:
        bytes: the current limit.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.bytes = most
        self._taken = 0
        self._wait = _FIRST_WAIT
        self._grows_at = 0.0

    def refused(self, size: int, now: float) -> None:
        """Note that a body of several events and `size` bytes was too large."""
        if self._taken >= size:
            # The server accepted this size before: its limit has changed.
            self._taken = 0
        elif self._taken and size <= self.bytes:
            self._wait = min(_LAST_WAIT, self._wait * 2.0)
        # The limit lies between the largest accepted size and the refused one; a small accepted body says little.
        self.bytes = max(LEAST, min(self.bytes, max(self._taken, size // 2)))
        self._grows_at = now + self._wait

    def accepted(self, size: int, now: float) -> None:
        """Note that a body of `size` bytes was accepted."""
        if self.bytes == self._most:
            return
        self._taken = max(self._taken, size)
        # Only a body near the limit shows that the server may accept more.
        if now >= self._grows_at and size >= self.bytes - self.bytes // 4:
            self.bytes = min(self._most, self.bytes + max(LEAST, self.bytes // _STEP))
            self._grows_at = now + self._wait
            if self.bytes == self._most:
                self._taken, self._wait = 0, _FIRST_WAIT
