"""Checks time-outs, and measures the time that is left until a deadline."""

from __future__ import annotations

import math
import time

from retailrocket_async._errors import ConfigurationError


def checked_timeout(timeout: float | None) -> float | None:
    """Check a time-out that a caller gave, and return the time-out unchanged.

    Args:
        timeout: seconds; None for no time-out.

    Raises:
        ConfigurationError: `timeout` is neither None nor a number of seconds, 0 or more.
    """
    if timeout is None or (type(timeout) in (int, float) and timeout >= 0):
        return timeout
    raise ConfigurationError(f"timeout must be None or a number of seconds, 0 or more, not {timeout!r}")


class Deadline:
    """The moment until which a thread waits, measured with `time.monotonic`.

    Args:
        timeout: seconds from now; None for no deadline.

    Raises:
        ConfigurationError: `timeout` is not valid; see `checked_timeout`.
    """

    def __init__(self, timeout: float | None) -> None:
        timeout = checked_timeout(timeout)
        self._at = math.inf if timeout is None else time.monotonic() + timeout

    def passed(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self._at

    def remaining(self) -> float:
        """Return the seconds until the deadline, 0 or more."""
        return max(0.0, self._at - time.monotonic())
