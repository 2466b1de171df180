"""The emulator's whole state in one place: settings, window, ledger, feed, faults, and the end of all waiting."""

from __future__ import annotations

import asyncio
import time
from random import Random
from typing import TYPE_CHECKING, Any

from ._faults import FaultScript
from ._feed import Feed
from ._ledger import Ledger
from ._window import SlidingWindow

if TYPE_CHECKING:
    from ._records import RequestRecord
    from ._settings import Settings

__all__ = ["Emulator"]


class Emulator:
    """What every part of one emulator shares; it belongs to one event loop.

    Args:
        settings: how the emulator behaves.

    Attributes:
        settings: as they are now; replaced whole by `configure`.
        ledger: what arrived.
        window: how dense the arrivals were.
        faults: what is to go wrong.
        feed: what has just happened, for whoever watches.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ledger = Ledger(settings.keep)
        self.window = SlidingWindow(settings.per)
        self._random = Random(settings.seed)  # noqa: S311 - imitates a network, keeps no secret
        self.faults = FaultScript(self._random)
        self.feed = Feed()
        self._stopping = asyncio.Event()
        # Reported moments follow the window's clock, so their distances hold even when the wall clock is set.
        self._epoch = time.time() - time.monotonic()
        self._latest = 0.0

    def now(self) -> float:
        """Return the moment on the window's clock, in seconds."""
        return time.monotonic()

    def arrival(self, read_at: float | None) -> float:
        """Return the moment on the window's clock at which a request arrived; never one before the last one's.

        Args:
            read_at: when its head was read; None where only the present moment is known.
        """
        self._latest = max(self._latest, self.now() if read_at is None else read_at)
        return self._latest

    def wall(self, now: float) -> float:
        """Return the moment *now* of the window's clock in seconds since 1970."""
        return self._epoch + now

    def jitter(self) -> float:
        """Return by how many seconds the next arrival is put off."""
        return self._random.uniform(0.0, self.settings.arrival_jitter)

    async def pause(self, seconds: float) -> bool:
        """Wait *seconds*; whether the whole time passed, False at once when the emulator stops."""
        if seconds > 0 and not self._stopping.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()
            except TimeoutError:
                return True
        return not self._stopping.is_set()

    def configure(self, /, **changes: object) -> None:
        """Change settings at run time, all or none.

        Args:
            changes: any of ``api_key``, ``arrival_jitter``, ``forbidden``, ``latency``, ``limit`` and
                ``max_body_bytes``.

        Raises:
            ValueError: another setting, or a wrong value.
        """
        self.settings = self.settings.changed(**changes)

    def close(self, record: RequestRecord, status: int | None) -> None:
        """Note the *status* that a request is answered; None for one that gets no answer."""
        if self.ledger.close(record, status):
            self.feed.add(record)

    def reset(self) -> None:
        """Forget all that arrived and all faults; settings stay as they are."""
        self.ledger.clear()
        self.feed.clear()
        self.window.clear()
        self.faults.clear()

    def stats(self) -> dict[str, Any]:
        """Return `Ledger.stats` with ``over_limit`` (requests the limit refused) and ``worst_window``."""
        return self.ledger.stats() | {"over_limit": self.window.over_limit, "worst_window": self.window.worst}

    def stop(self) -> None:
        """End every wait, for good."""
        self._stopping.set()
