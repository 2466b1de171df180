"""Holds the state of one emulator: settings, window, ledger, order, feed and faults."""

from __future__ import annotations

import asyncio
import time
from random import Random
from typing import TYPE_CHECKING, Any

from ._faults import FaultScript
from ._feed import Feed
from ._ledger import Ledger
from ._order import VisitorOrder
from ._window import SlidingWindow

if TYPE_CHECKING:
    from ._records import RequestRecord
    from ._settings import Settings

__all__ = ["Emulator"]


class Emulator:
    """Holds the state that all parts of one emulator share. An emulator belongs to one event loop.

    Args:
        settings: how the emulator behaves.

    Attributes:
        settings: the current settings; `configure` replaces them.
        ledger: records requests and events.
        order: finds violations of the order of a visitor's events.
        window: counts arrivals in a sliding window, and applies the limit.
        faults: the pending faults, i.e. deliberate failures that are applied to the next requests.
        feed: the latest requests, for the live page.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ledger = Ledger(settings.keep)
        self.order = VisitorOrder(settings.keep)
        self.window = SlidingWindow(settings.per)
        self._random = Random(settings.seed)  # noqa: S311 - imitates a network, keeps no secret
        self.faults = FaultScript(self._random)
        self.feed = Feed()
        self._stopping = asyncio.Event()
        # Reported times are computed from the monotonic clock, so the time between two reported times is right even if
        # the wall clock is changed.
        self._epoch = time.time() - time.monotonic()
        self._latest = 0.0

    def now(self) -> float:
        """Return the current time of the window's clock (monotonic), in seconds."""
        return time.monotonic()

    def arrival(self, read_at: float | None) -> float:
        """Return the time at which a request arrived, on the window's clock; never earlier than the previous arrival.

        Args:
            read_at: when the request's head was read, on the window's clock; None for the current time.
        """
        self._latest = max(self._latest, self.now() if read_at is None else read_at)
        return self._latest

    def wall(self, now: float) -> float:
        """Convert *now*, a time of the window's clock, to seconds since 1970."""
        return self._epoch + now

    def jitter(self) -> float:
        """Return a random delay of the next arrival, in seconds; see `Settings.arrival_jitter`."""
        return self._random.uniform(0.0, self.settings.arrival_jitter)

    async def pause(self, seconds: float) -> bool:
        """Wait *seconds* and return True. If the emulator stops or has stopped, return False immediately."""
        if seconds > 0 and not self._stopping.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()
            except TimeoutError:
                return True
        return not self._stopping.is_set()

    def configure(self, /, **changes: object) -> None:
        """Change settings at run time. If one of *changes* is wrong, no setting is changed.

        Args:
            changes: any of ``api_key``, ``arrival_jitter``, ``batch_latency``, ``forbidden``, ``latency``, ``limit``,
                ``max_body_bytes`` and ``strict_order``.

        Raises:
            ValueError: a setting is unknown, may not change at run time, or has a wrong value.
        """
        self.settings = self.settings.changed(**changes)

    def close(self, record: RequestRecord, status: int | None) -> None:
        """Record the *status* of a request's answer; None if the request gets no answer."""
        if self.ledger.close(record, status):
            self.feed.add(record)

    def reset(self) -> None:
        """Forget all requests, events, violations and faults; keep the settings."""
        self.ledger.clear()
        self.order.clear()
        self.feed.clear()
        self.window.clear()
        self.faults.clear()

    def stats(self) -> dict[str, Any]:
        """Return the counters of `Ledger.stats`, of `VisitorOrder.stats` and of the window.

        Those of the window are ``over_limit``, the requests that the limit refused, and ``worst_window``, the most
        arrivals in any window; see `SlidingWindow.worst`.
        """
        window = {"over_limit": self.window.over_limit, "worst_window": self.window.worst}
        return self.ledger.stats() | self.order.stats() | window

    def stop(self) -> None:
        """Stop the emulator: every `pause` returns False from now on."""
        self._stopping.set()
