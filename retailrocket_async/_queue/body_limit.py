"""Learns the largest request body that the server accepts.

The API documents no maximum (contract, "Batches"). An answer of 413 shows that the refused body was larger than the
server's maximum, so later bodies are made smaller. The limit then grows slowly, up to the configured maximum. If the
limit has grown too far, the next body is refused, and its batch is divided and sent again in parts.
"""

from __future__ import annotations

from typing import Final

LEAST: Final = 1024
"""Smallest limit in bytes. A single event is sent even if the event is larger."""

_STEP: Final = 8
"""Each step up raises the limit by the limit divided by this number."""

_FIRST_WAIT, _LAST_WAIT = 60.0, 3600.0
"""Seconds between two steps up: the first value, and the largest. The value doubles whenever a step was too large."""


class BodyLimit:
    """Computes the largest request body to send, from the bodies that the server has accepted and refused.

    Args:
        most: the configured maximum in bytes.

    Attributes:
        bytes: the current limit in bytes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.bytes = most
        self._taken = 0
        self._wait = _FIRST_WAIT
        self._grows_at = 0.0

    def refused(self, size: int, now: float) -> None:
        """Note that the server refused a body of several events and `size` bytes as too large."""
        if self._taken >= size:
            # The server accepted a body of this size before, so its maximum has changed.
            self._taken = 0
        elif self._taken and size <= self.bytes:
            self._wait = min(_LAST_WAIT, self._wait * 2.0)
        # The server's maximum lies between the largest accepted size and the refused size. If only small bodies were
        # accepted so far, half of the refused size is the better estimate.
        self.bytes = max(LEAST, min(self.bytes, max(self._taken, size // 2)))
        self._grows_at = now + self._wait

    def accepted(self, size: int, now: float) -> None:
        """Note that the server accepted a body of `size` bytes."""
        if self.bytes == self._most:
            return
        self._taken = max(self._taken, size)
        # Only a body near the limit shows that the server may accept more.
        if now >= self._grows_at and size >= self.bytes - self.bytes // 4:
            self.bytes = min(self._most, self.bytes + max(LEAST, self.bytes // _STEP))
            self._grows_at = now + self._wait
            if self.bytes == self._most:
                self._taken, self._wait = 0, _FIRST_WAIT
